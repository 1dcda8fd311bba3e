import os
import signal
import threading

import jax
import numpy as np
import pytest
from rich.console import Console

from experiments import runs
from experiments.imagenet import processes
from experiments.imagenet.mesh import device_mesh
from experiments.imagenet.processes import Ending, Launch, OtherProcessError, launch
from experiments.imagenet.train import fit
from tests.experiments.imagenet import tiny
from tests.experiments.imagenet.several import Several, losses

SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "node[001-004]",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
}
OPEN_MPI = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}
URI = {"OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911"}
ADDRESS = {"JAX_COORDINATOR_ADDRESS": "node1:1234"}


def arguments(count, number):
    return {"coordinator_address": "node1:1234", "num_processes": count, "process_id": number}


class TestLaunch:
    @pytest.mark.parametrize(
        ("environ", "expected"),
        [
            ({}, None),
            ({"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"}, None),
            (ADDRESS | {"JAX_NUM_PROCESSES": "8", "JAX_PROCESS_ID": "3"}, Launch("JAX", arguments(8, 3))),
            (ADDRESS | {"JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"}, None),
            (ADDRESS | SLURM, Launch("Slurm", arguments(4, 2))),
            (ADDRESS | OPEN_MPI, Launch("Open MPI", arguments(2, 1))),
            (SLURM, Launch("Slurm", {})),
            (SLURM | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, None),
            # As in the script of a batch job, which is no step of it.
            ({name: value for name, value in SLURM.items() if "STEP" not in name}, None),
            (OPEN_MPI | URI, Launch("Open MPI", {})),
            (OPEN_MPI | URI | {"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"}, None),
            ({"TPU_WORKER_HOSTNAMES": "t0,t1,t2", "TPU_WORKER_ID": "1"}, Launch("TPU", {})),
            ({"TPU_WORKER_HOSTNAMES": "localhost"}, None),
            ({"TPU_PROCESS_ADDRESSES": "t0:8471,t1:8471"}, Launch("TPU", {})),
            ({"TPU_WORKER_HOSTNAMES": "t0", "MEGASCALE_NUM_SLICES": "2"}, Launch("TPU", {})),
            ({"TPU_WORKER_HOSTNAMES": "t0", "MEGASCALE_NUM_SLICES": "1"}, None),
        ],
    )
    def test_environments(self, environ, expected):
        assert launch(environ) == expected

    def test_a_machine_with_a_tpu(self):
        assert launch({}, tpu=True) == Launch("TPU", {})

    @pytest.mark.parametrize(
        ("environ", "message"),
        [
            (
                ADDRESS,
                "JAX_COORDINATOR_ADDRESS is set, but not how many processes there are, and which one this is: "
                "set JAX_NUM_PROCESSES and JAX_PROCESS_ID, or SLURM_NTASKS and SLURM_PROCID, or OMPI",
            ),
            (ADDRESS | {"JAX_NUM_PROCESSES": "2"}, "but not how many processes there are, and which one this is"),
            ({"JAX_COORDINATOR_ADDRESS": "node1"}, "must be a host and a port, such as node1:1234; got 'node1'"),
            ({"JAX_COORDINATOR_ADDRESS": ":80"}, "must be a host and a port, such as node1:1234; got ':80'"),
            (
                ADDRESS | {"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "2"},
                "JAX_PROCESS_ID must be from 0 to JAX_NUM_PROCESSES - 1 = 1; got 2",
            ),
            (
                ADDRESS | {"JAX_NUM_PROCESSES": "two", "JAX_PROCESS_ID": "0"},
                "JAX_NUM_PROCESSES must be an integer; got 'two'",
            ),
            (
                OPEN_MPI,
                "Open MPI started 2 processes, but doesn't tell them where process 0 is: set JAX_COORDINATOR_ADDRESS",
            ),
        ],
    )
    def test_what_cannot_be(self, environ, message):
        with pytest.raises(ValueError, match=message):
            launch(environ)


class TestInitialise:
    @pytest.fixture
    def calls(self, monkeypatch):
        found = []
        monkeypatch.setattr(jax.distributed, "initialize", lambda **arguments: found.append(arguments))
        for name in [*ADDRESS, *SLURM, *OPEN_MPI, *URI, "JAX_NUM_PROCESSES", "JAX_PROCESS_ID", "TPU_WORKER_HOSTNAMES"]:
            monkeypatch.delenv(name, raising=False)
        yield found
        jax.config.update("jax_enable_preemption_service", True)

    def test_alone(self, calls):
        processes.initialise()
        assert calls == []

    def test_with_others(self, calls, monkeypatch):
        for name, value in (ADDRESS | {"JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "1"}).items():
            monkeypatch.setenv(name, value)
        processes.initialise()
        assert calls == [arguments(4, 1)]

    def test_once(self, calls, monkeypatch):
        monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
        monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "t0,t1")
        processes.initialise()
        assert calls == []


class TestTogether:
    @pytest.fixture
    def others(self, monkeypatch):
        """Makes this one of three processes, the last of which may fail."""
        failed = [False, False]
        monkeypatch.setattr(processes.jax, "process_count", lambda: 3)
        monkeypatch.setattr(
            processes.multihost_utils, "process_allgather", lambda mine: np.array([bool(mine), *failed])
        )
        return failed

    def test_nobody_fails(self, others):
        with processes.together():
            pass

    def test_this_one_fails(self, others):
        with pytest.raises(KeyError, match="mine"), processes.together():
            raise KeyError("mine")

    def test_another_one_fails(self, others):
        others[1] = True
        message = "process 2 of this run failed; what it prints says why"
        with pytest.raises(OtherProcessError, match=message), processes.together():
            pass

    def test_both_fail(self, others):
        others[1] = True
        with pytest.raises(KeyError, match="mine"), processes.together():
            raise KeyError("mine")

    def test_alone(self):
        with processes.together():
            pass
        with pytest.raises(KeyError, match="mine"), processes.together():
            raise KeyError("mine")


class TestEnding:
    def test_sigterm(self):
        before = signal.getsignal(signal.SIGTERM)
        ending = Ending()
        with ending.on_sigterm():
            assert not ending.told
            os.kill(os.getpid(), signal.SIGTERM)
            assert ending.told
        assert signal.getsignal(signal.SIGTERM) is before

    def test_not_in_other_threads(self):
        ending, done = Ending(), []

        def work():
            with ending.on_sigterm():
                done.append(not ending.told)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert done == [True]


def assert_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        np.testing.assert_allclose([*one.values()], [*other.values()], rtol=1e-4)


class TestSeveral:
    """Runs of several processes, compared with that of this one."""

    @pytest.fixture
    def alone(self, tmp_path, compiled_once):
        fit(
            tiny.options(arm="two-point", steps=14), tiny.feed(), tmp_path / "alone", device_mesh(), Console(quiet=True)
        )
        return losses(tmp_path / "alone/tiny/two-point/seed-0.jsonl")

    @pytest.mark.parametrize(
        ("layout", "kills"),
        # After the first jump, after the second one, and once more.
        [("replicated", ((2, 6), (4, 9), (2, 10))), ("fsdp", ((4, 6), (2, 9)))],
    )
    def test_killed_and_resumed_with_others(self, tmp_path, compiled_once, alone, layout, kills):
        for count, step in kills:
            with Several(count, tmp_path, 14, hold_at=step, environ=compiled_once, layout=layout) as several:
                several.wait_for_checkpoint(step)
                several.signal(signal.SIGKILL)
                statuses, printed = several.wait()
            assert statuses == [-signal.SIGKILL] * count, printed
        with Several(1, tmp_path, 14, environ=compiled_once) as several:
            assert several.wait()[0] == [0]
        assert_same(losses(tmp_path / "tiny/two-point/seed-0.jsonl"), alone)

    def test_somebody_else_works_on_it(self, tmp_path, compiled_once):
        folder = runs.working(tmp_path, "tiny", "two-point", 0)
        with runs.locked(folder), Several(2, tmp_path, 14, environ=compiled_once) as several:
            statuses, printed = several.wait()
        assert statuses == [1, 1], printed
        assert "BlockingIOError: another run works on" in printed[0]
        assert "OtherProcessError: process 0 of this run failed; what it prints says why" in printed[1]

    def test_one_of_two_is_told_to_end(self, tmp_path, compiled_once, alone):
        with Several(2, tmp_path, 14, hold_at=7, environ=compiled_once) as several:
            several.wait_for_checkpoint(7)
            several.signal(signal.SIGTERM, slice(1, 2))
            (tmp_path / "go").touch()
            statuses, printed = several.wait()
        assert statuses == [75, 75], printed
        (step,) = {int(text.rpartition("STOPPED after ")[2]) for text in printed}
        assert 8 <= step < 14
        with Several(1, tmp_path, 14, environ=compiled_once) as several:
            statuses, printed = several.wait()
        assert statuses == [0], printed
        assert f"From step {step} to step 14" in printed[0]
        assert_same(losses(tmp_path / "tiny/two-point/seed-0.jsonl"), alone)
