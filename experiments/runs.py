"""Results on disk: one small file a run, which says by itself what it is a run of.

`WORKDIR/EXPERIMENT/ARM/seed-N.jsonl` is written when the run is complete, and never again. Its first line is the
header: settings, versions and machine; then a line for each evaluation; the last line says how the run ended. What a
run needs to go on is in `WORKDIR/.working`, and not worth keeping. So results from elsewhere are merged by copying
folders.
"""

import contextlib
import importlib.metadata
import json
import math
import os
import platform
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import filelock
import jax

Line = dict[str, Any]

_PLUGINS = {"jax-cuda13-plugin", "jax-cuda12-plugin", "jax-rocm7-plugin", "libtpu"}


class Run(NamedTuple):
    """A complete run.

    Attributes:
      header: what it is a run of.
      lines: its evaluations, by step; those before the first jump are in the run that it branched from.
      end: how it ended: `complete`, or `not finite`.
    """

    header: Line
    lines: list[Line]
    end: str


def path_of(workdir: Path, experiment: str, arm: str, seed: int) -> Path:
    """Returns the file of a complete run."""
    return workdir / experiment / arm / f"seed-{seed}.jsonl"


def working(workdir: Path, experiment: str, arm: str, seed: int) -> Path:
    """Returns the folder of what a run needs to go on."""
    return workdir / ".working" / experiment / arm / f"seed-{seed}"


def versions() -> Line:
    """Returns the versions that a result may depend on; on an accelerator, also that of its plugin for JAX."""
    packages = ["jax", "jaxlib", "flax", "optax", "numpy", "optax-introspect"]
    if jax.default_backend() != "cpu":
        packages += sorted(_PLUGINS & {installed.name for installed in importlib.metadata.distributions()})
    return {package: importlib.metadata.version(package) for package in packages}


def machine() -> str:
    """Returns the hardware that this process trains on, for people to read."""
    device = jax.devices()[0]
    if device.platform != "cpu":
        return f"{device.device_kind}, {jax.device_count()} of them"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{_processor()}, {cores} core{'s' if cores != 1 else ''} a run"


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def plain(value: Any) -> Any:
    """Returns a value as it comes back from JSON."""
    return json.loads(json.dumps(value))


def check_header(path: Path, expected: Line, versions: bool = True) -> None:
    """Raises a ValueError if a file of results is not of these settings; the machine may differ.

    Args:
      path: the file.
      expected: the header that it should have.
      versions: whether it must also be of these versions.
    """
    may_differ = {"machine": None} if versions else {"machine": None, "versions": None}
    differ = _differences(read_header(path) | may_differ, plain(expected | may_differ), "")
    if differ:
        raise ValueError(f"{path} belongs to a run with other settings: {'; '.join(differ)}. Use another workdir")


def read_header(path: Path) -> Line:
    """Returns the header of a file of results.

    Raises:
      ValueError: it has none.
    """
    with path.open() as file:
        try:
            header: Line = json.loads(file.readline())["header"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} does not begin with the header of a run") from error
    return header


def read(path: Path) -> Run:
    """Reads a complete run.

    Raises:
      ValueError: it is not whole.
    """
    header = read_header(path)
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines()[1:]]
        end = lines.pop()["end"]
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise ValueError(f"{path} is not the whole of a run") from error
    return Run(header, lines, end)


def _differences(found: Any, expected: Any, name: str) -> list[str]:
    """Returns in words what differs; of settings within settings only those that do."""
    if isinstance(found, dict) and isinstance(expected, dict):
        within = f"{name}." if name else ""
        keys = sorted(found.keys() | expected.keys())
        return [text for key in keys for text in _differences(found.get(key), expected.get(key), f"{within}{key}")]
    return [] if found == expected else [f"{name} was {_short(found)} and is {_short(expected)}"]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."


class Journal:
    """The evaluations of a run that goes on, on disk: a line is there for good once `commit` has returned.

    Args:
      path: the file; it is begun with the header, or continued.
      header: what it is a run of.
      step: the last step to be believed; later lines are dropped, since the run goes on from there.

    Raises:
      ValueError: the file is of a run with other settings.
    """

    def __init__(self, path: Path, header: Line, step: int | None):
        path.parent.mkdir(parents=True, exist_ok=True)
        kept: list[str] = []
        if path.exists() and step is not None:
            kept = [text for text in _whole_lines(path) if json.loads(text).get("step", step + 1) <= step]
        whole = path.with_suffix(".new")
        with whole.open("w") as file:
            file.writelines(f"{text}\n" for text in (_dump({"header": header}), *kept))
        _synced(whole)
        whole.replace(path)
        self.path = path
        self._file = path.open("a")

    def write(self, line: Line) -> None:
        """Appends a line."""
        self._file.write(_dump(line) + "\n")

    def commit(self) -> None:
        """Returns when all lines are on disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def complete(self, destination: Path, end: Line) -> None:
        """Ends the run, and puts its file where complete ones are."""
        self.write(end)
        self.commit()
        self._file.close()
        destination.parent.mkdir(parents=True, exist_ok=True)
        self.path.replace(destination)

    def close(self) -> None:
        """Leaves the run to be continued."""
        self.commit()
        self._file.close()


def _dump(line: Line) -> str:
    return json.dumps({name: _number(value) for name, value in line.items()}, separators=(",", ":"), allow_nan=False)


def _number(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    return float(f"{value:.7g}") if math.isfinite(value) else None  # JSON has no NaN


def _whole_lines(path: Path) -> Iterable[str]:
    text = path.read_text()
    return text[: text.rfind("\n") + 1].splitlines()[1:]


def _synced(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps others from working on what is in a folder; the lock goes with the process, however it ends.

    Raises:
      BlockingIOError: somebody else does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder / "lock")
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout as error:
        raise BlockingIOError(f"another run works on {folder}") from error
    try:
        yield
    finally:
        lock.release()
