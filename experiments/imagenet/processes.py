"""How one run of several processes begins, and how it is told to end."""

import contextlib
import importlib.util
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

ADDRESS = "JAX_COORDINATOR_ADDRESS"

# Who says how many processes there are, and which one this is.
_NUMBERS = {
    "JAX": ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID"),
    "Slurm": ("SLURM_NTASKS", "SLURM_PROCID"),
    "Open MPI": ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
}


class Launch(NamedTuple):
    """How this process finds the others.

    Attributes:
      by: who started them.
      arguments: of `jax.distributed.initialize`; JAX finds out the rest by itself.
    """

    by: str
    arguments: dict[str, Any]


def launch(environ: Mapping[str, str], tpu: bool = False) -> Launch | None:
    """Returns how this process finds the others of its run; None if it is alone.

    What is looked at, in this order:

    * `JAX_COORDINATOR_ADDRESS`, host and port of process 0, with `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`; or with the
      numbers that Slurm or Open MPI give to every process, which is what newer versions of Open MPI need.
    * Slurm: a step of several tasks, as `srun` starts them.
    * Open MPI: several ranks, started by an `mpirun` that tells them where process 0 is (before version 5).
    * TPU: several workers in `TPU_PROCESS_ADDRESSES` or `TPU_WORKER_HOSTNAMES`, several slices in
      `MEGASCALE_NUM_SLICES`, or a TPU machine, which JAX asks for its neighbours.

    Args:
      environ: the environment variables.
      tpu: whether this machine has a TPU.

    Raises:
      ValueError: variables that are incomplete, or no numbers.
    """
    if address := environ.get(ADDRESS):
        return _launch_with_address(environ, address)
    slurm = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
    if all(name in environ for name in slurm) and _number(environ, "SLURM_NTASKS") > 1:
        return Launch("Slurm", {})
    if "OMPI_COMM_WORLD_SIZE" in environ and (count := _number(environ, "OMPI_COMM_WORLD_SIZE")) > 1:
        if "OMPI_MCA_orte_hnp_uri" not in environ:
            raise ValueError(
                f"Open MPI started {count} processes, but doesn't tell them where process 0 is: "
                f"set {ADDRESS} to its host and a free port, such as node1:1234, for all of them"
            )
        return Launch("Open MPI", {})
    workers = environ.get("TPU_PROCESS_ADDRESSES") or environ.get("TPU_WORKER_HOSTNAMES") or ""
    slices = _number(environ, "MEGASCALE_NUM_SLICES") if environ.get("MEGASCALE_NUM_SLICES") else 1
    if "," in workers or slices > 1 or tpu:
        return Launch("TPU", {})
    return None


def _launch_with_address(environ: Mapping[str, str], address: str) -> Launch | None:
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError(f"{ADDRESS} must be a host and a port, such as node1:1234; got {address!r}")
    for by, (count_name, index_name) in _NUMBERS.items():
        if count_name in environ and index_name in environ:
            count, index = _number(environ, count_name), _number(environ, index_name)
            if not 0 <= index < count:
                raise ValueError(f"{index_name} must be from 0 to {count_name} - 1 = {count - 1}; got {index}")
            if count == 1:
                return None
            arguments = {"coordinator_address": address, "num_processes": count, "process_id": index}
            return Launch(by, arguments)
    pairs = ", or ".join(" and ".join(pair) for pair in _NUMBERS.values())
    raise ValueError(f"{ADDRESS} is set, but not how many processes there are, and which one this is: set {pairs}")


def _number(environ: Mapping[str, str], name: str) -> int:
    try:
        return int(environ[name])
    except ValueError:
        raise ValueError(f"{name} must be an integer; got {environ[name]!r}") from None


def initialise() -> None:
    """Joins the other processes of this run, if the environment tells of any; goes before all that JAX computes.

    Raises:
      ValueError: the environment is not understood.
    """
    if jax.distributed.is_initialized():
        return
    found = launch(os.environ, _has_tpu())
    if found is None:
        return
    # SIGTERM is answered here, by `Ending`, and not by JAX as well.
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(**found.arguments)


def _has_tpu() -> bool:
    platforms = (os.environ.get("JAX_PLATFORMS") or "tpu").split(",")
    chips = [*Path("/dev").glob("accel[0-9]*"), *Path("/dev/vfio").glob("[0-9]*")]
    # Machines that are lent with a TPU, but are no cloud of their own, say that there is nobody to ask.
    alone = "TPU_SKIP_MDS_QUERY" in os.environ
    return "tpu" in platforms and bool(chips) and not alone and importlib.util.find_spec("libtpu") is not None


class OtherProcessError(OSError):
    """Another process of this run failed."""


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Lets all processes fail if one does at what is done within, since the others would wait for it from then on.

    Raises:
      OtherProcessError: another one failed, but not this one.
    """
    failure = None
    try:
        yield
    except Exception as error:
        failure = error
    if jax.process_count() > 1:
        failed = multihost_utils.process_allgather(np.array(failure is not None))
        if failure is None and failed.any():
            raise OtherProcessError(f"process {failed.argmax()} of this run failed; what it prints says why")
    if failure is not None:
        raise failure


class Ending:
    """Whether this process was told to end."""

    def __init__(self) -> None:
        self.told = False

    @contextlib.contextmanager
    def on_sigterm(self) -> Iterator[None]:
        """Takes SIGTERM, with which clusters announce that they need the machine, as being told to end."""
        if threading.current_thread() is not threading.main_thread():
            yield  # only the main thread may answer signals
            return

        def answer(number: int, frame: Any) -> None:
            del number, frame
            self.told = True

        before = signal.signal(signal.SIGTERM, answer)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)
