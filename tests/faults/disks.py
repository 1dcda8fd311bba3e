"""Disks that are full or may not be written to, in a process of its own: what is told, and what is left.

A disk that is really full needs the right to mount one. Everywhere a process can be forbidden to make files longer, and
a folder can be made one that nobody may write to, once root has given up the right to write everywhere.
"""

import contextlib
import ctypes
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orbax.checkpoint as ocp

import optax_introspect
from optax_introspect import WeightHistory

from . import predictors, works

_CLONE_NEWNS, _MS_REC, _MS_PRIVATE = 0x20000, 0x4000, 0x40000
_CAPABILITIES_VERSION = 0x20080522


class Disk(NamedTuple):
    """A disk.

    Attributes:
      folder: on it.
      fill: takes all of its space.
      free: gives the space back.
    """

    folder: Path
    fill: Callable[[], None]
    free: Callable[[], None]


class Outcome(NamedTuple):
    """What came of doing something while it could not be written.

    Attributes:
      errors: what was raised, by what raised it.
      left: what was found wrong then, or when there was space again, in words.
    """

    errors: dict[str, str]
    left: list[str]


def mounted(folder: Path, spare: int = 0) -> Disk:
    """Mounts a disk of four megabytes, which only this process sees, and which goes with it.

    Raises:
      PermissionError: it may not.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    for failed in (
        lambda: libc.unshare(_CLONE_NEWNS),
        lambda: libc.mount(None, b"/", None, _MS_REC | _MS_PRIVATE, None),
        lambda: libc.mount(b"none", os.fsencode(folder), b"tmpfs", 0, b"size=4m"),
    ):
        if failed():
            raise PermissionError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    filler = folder / "filler"

    def fill() -> None:
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while file.write(bytes(2**12)):
                pass
        os.truncate(filler, filler.stat().st_size - spare)

    return Disk(folder / "on it", fill, filler.unlink)


def limited(folder: Path, spare: int = 0) -> Disk:
    """Returns a disk on which no file can be made longer than `spare` while it is full."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    return Disk(
        folder / "on it",
        lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (spare, hard)),
        lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard)),
    )


def may_mount(folder: Path) -> bool:
    """Whether this process may mount a disk; to be asked in one that is not needed any more."""
    try:
        mounted(folder)
    except PermissionError:
        return False
    return True


def read_only(folder: Path, spare: int = 0) -> Disk:
    """Returns a disk that, when it is full, may not be written to."""
    del spare  # there is none
    _give_up_writing_everywhere()

    def everything() -> Iterator[Path]:
        yield from folder.rglob("*")
        yield folder

    def protect() -> None:
        for path in everything():
            path.chmod(0o555 if path.is_dir() else 0o444)

    def allow() -> None:
        for path in [folder, *everything()]:
            path.chmod(0o755 if path.is_dir() else 0o644)

    return Disk(folder / "on it", protect, allow)


def _give_up_writing_everywhere() -> None:
    """Makes permissions bind root, too: CAP_DAC_OVERRIDE is the second bit of the capabilities."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(_CAPABILITIES_VERSION, 0)
    data = (ctypes.c_uint32 * 6)()
    if libc.capget(header, data):
        raise OSError(ctypes.get_errno(), "capget")
    for part in range(2):  # effective and permitted
        data[part] &= ~0b10
    if libc.capset(header, data):
        raise OSError(ctypes.get_errno(), "capset")


NOTHING = "nothing"
DISKS: dict[str, Callable[[Path, int], Disk]] = {"mounted": mounted, "limited": limited, "read-only": read_only}


def params_at(step: int) -> dict[str, np.ndarray]:
    return {"kernel": np.random.default_rng(step).normal(size=(100, 300)).astype(np.float32), "scale": np.float32(step)}


def record(disk: Disk) -> Outcome:
    """Recording."""
    writer = WeightHistory.record(disk.folder, params_at(0))
    for step in (0, 1, 2):
        writer.append(step, params_at(step))
    writer.flush()
    disk.fill()
    writer.append(3, params_at(3))
    errors = {
        "flush": _raised(writer.flush),
        "append": _raised(lambda: writer.append(4, params_at(4))),
        "close": _raised(writer.close),
        "record": _raised(lambda: WeightHistory.record(disk.folder, params_at(0)).close()),
    }
    there = len(WeightHistory.open(disk.folder).steps)
    expected = 3 + sum(errors[call] == NOTHING for call in ("flush", "close"))
    left = _not_recorded(disk.folder, range(expected)) + _unexpected(disk.folder)
    if WeightHistory.open(disk.folder)._arrays.rows != there:
        left.append("there is a row without a line")
    disk.free()
    with WeightHistory.record(disk.folder, params_at(0)) as again:
        for step in range(there, 5):
            again.append(step, params_at(step))
    return Outcome(errors, left + _not_recorded(disk.folder, range(5)) + _unexpected(disk.folder))


def begin(disk: Disk) -> Outcome:
    """Beginning to record."""
    disk.fill()
    errors = {"record": _raised(lambda: WeightHistory.record(disk.folder, params_at(0)).close())}
    left = [f"{path} is there" for path in disk.folder.rglob("*.tmp*")]
    if _raised(lambda: WeightHistory.open(disk.folder)) == NOTHING:
        left += _not_recorded(disk.folder, range(0))
    disk.free()
    with WeightHistory.record(disk.folder, params_at(0)) as again:
        again.append(0, params_at(0))
    return Outcome(errors, left + _not_recorded(disk.folder, range(1)) + _unexpected(disk.folder))


def truncate(disk: Disk) -> Outcome:
    """Truncating a history."""
    with WeightHistory.record(disk.folder, params_at(0)) as writer:
        for step in range(4):
            writer.append(step, params_at(step))
        writer.flush()
        disk.fill()
        errors = {"truncate": _raised(lambda: writer.truncate(1))}
    # The lines are cut first, and then the rows.
    there = 2 if errors["truncate"] == NOTHING else len(WeightHistory.open(disk.folder).steps)
    left = _not_recorded(disk.folder, range(there)) + ([] if there in (2, 4) else [f"there are {there} steps"])
    disk.free()
    with WeightHistory.record(disk.folder, params_at(0)) as again:
        again.truncate(1)
    return Outcome(errors, left + _not_recorded(disk.folder, range(2)) + _unexpected(disk.folder))


def save(disk: Disk) -> Outcome:
    """Saving a predictor."""
    made = predictors.make(disk.folder / "first", 0)
    predictor = optax_introspect.load(made)
    disk.fill()
    errors = {"save": _raised(lambda: optax_introspect.save(predictor, disk.folder / "second"))}
    left = []
    if errors["save"] != NOTHING:
        left = [f"{path} is left" for path in disk.folder.iterdir() if path != made]
        works.predictor_found(made)  # raises, if it can't be read now
    disk.free()
    if errors["save"] != NOTHING:
        optax_introspect.save(predictor, disk.folder / "second")
    if works.predictor_found(disk.folder / "second") != works.predictor_found(made):
        left.append("what was saved is another predictor")
    return Outcome(errors, left)


def fit(disk: Disk) -> Outcome:
    """Fitting with checkpoints."""
    return _interrupted(disk, works.fit_a_predictor, works.WORKS["fit"].found)


def train(disk: Disk) -> Outcome:
    """Training with checkpoints."""
    return _interrupted(disk, works.train, works.WORKS["train"].found)


def _interrupted(disk: Disk, do: Callable[[Path], None], found: Callable[[Path], Any]) -> Outcome:
    """Does some work; the disk is full when it has made its third checkpoint."""
    save, saved = ocp.CheckpointManager.save, 0

    def counting(self: Any, *arguments: Any, **options: Any) -> Any:
        nonlocal saved
        saved += 1
        if saved == 4:
            self.wait_until_finished()
            disk.fill()
        return save(self, *arguments, **options)

    ocp.CheckpointManager.save = counting
    errors = {"save": _raised(lambda: do(disk.folder))}
    ocp.CheckpointManager.save = save
    partly = found(disk.folder)
    disk.free()
    do(disk.folder)
    complete = disk.folder.parent / "complete"
    do(complete)
    left = [f"{name} was there, and is another" for name in partly if partly[name] != found(complete).get(name)]
    if found(disk.folder) != found(complete):
        left.append("what came of it at last is not what comes of it without interruption")
    shutil.rmtree(complete)
    return Outcome(errors, left)


def _raised(call: Callable[[], Any]) -> str:
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return NOTHING


def _not_recorded(folder: Path, steps: range) -> list[str]:
    """Returns in words how a history differs from what was recorded."""
    history = WeightHistory.open(folder)
    if history.steps.tolist() != list(steps):
        return [f"the history has the steps {history.steps.tolist()}, not {list(steps)}"]
    return [
        f"step {step} of the history is another"
        for step in steps
        if works.digest(history.tree(step)) != works.digest(params_at(step))
    ]


def _unexpected(folder: Path) -> list[str]:
    """Returns in words which files are there that a history doesn't have."""
    rows = len(WeightHistory.open(folder).steps)
    arrays, chunk = ("arrays/0000.kernel", "arrays/0001.scale"), ("c.{}.0.0", "c.{}")
    known = {"history.json", "steps.jsonl", "writer.lock", *(f"{array}/zarr.json" for array in arrays)}
    for array, name in zip(arrays, chunk, strict=True):
        known |= {f"{array}/{name.format(row)}" for row in range(rows)}
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    return [f"{name} should not be there" for name in sorted(found - known)]


SCENES: dict[str, Callable[[Disk], Outcome]] = {
    scene.__name__: scene for scene in (record, begin, truncate, save, fit, train)
}


def play(scene: str, disk: str, folder: Path, spare: int = 0) -> Outcome:
    """Plays a scene on a disk that has `spare` bytes when it is full, in a process of its own."""
    folder.mkdir(parents=True)
    return SCENES[scene](DISKS[disk](folder, spare))
