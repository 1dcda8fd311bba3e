"""The small files of a weight history: its header, its steps, its lock. None of them is believed unchecked."""

import errno
import functools
import json
import operator
import os
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import tensorstore as ts

from .files import read_regular

HEADER, STEPS, LOCK, ARRAYS = "history.json", "steps.jsonl", "writer.lock", "arrays"
# Histories of version 1, which have no checksums but those of the chunks, can be read and continued.
VERSIONS = (1, 2)
DTYPES: dict[str, np.dtype[Any]] = {
    name: ts.dtype(name).numpy_dtype
    for name in ("float16", "bfloat16", "float32", "float64", "complex64", "complex128")
}
# Far more than any history needs.
_MAX_BYTES = 2**28


class Leaf(NamedTuple):
    """What the weights of one leaf have in common at all steps."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def __str__(self) -> str:
        return f"{self.dtype.name}{list(self.shape)}"


class Header(NamedTuple):
    """What `history.json` says.

    Attributes:
        layout: The leaves by name.
        metadata: The user's.
        crc32: Its checksum; None in version 1, which has none.
    """

    layout: dict[str, Leaf]
    metadata: dict[str, Any]
    crc32: int | None


class Steps(NamedTuple):
    """What `steps.jsonl` says.

    Attributes:
        steps: Increasing, int64 `[num_steps]`.
        weights: The checksum of the weights of each step; None in version 1.
    """

    steps: np.ndarray
    weights: tuple[int | None, ...]


def header_of(layout: dict[str, Leaf], metadata: dict[str, Any]) -> bytes:
    """Returns the header of a new history.

    Raises:
        TypeError: If JSON can't hold the metadata.
        ValueError: If it has numbers that are not finite.
    """
    header = {
        "version": VERSIONS[-1],
        "leaves": {name: {"shape": leaf.shape, "dtype": leaf.dtype.name} for name, leaf in layout.items()},
        "metadata": metadata,
    }
    # As it will be read: JSON has no tuples, and no keys that are numbers.
    header = json.loads(json.dumps(header, allow_nan=False))
    return json.dumps(header | {"crc32": _crc32_of_header(header)}, indent=2).encode()


def read_header(path: Path) -> Header:
    """Returns the header of the history in a folder.

    Raises:
        ValueError: If there is none, or it can't be used.
    """
    file = path / HEADER
    if not file.exists():
        if (path / STEPS).exists():
            raise ValueError(f"{path} is damaged: it has no {HEADER}")
        raise ValueError(f"{path} is not a weight history: it has no {HEADER}")
    try:
        header = json.loads(read_regular(file, _MAX_BYTES))
        crc32 = header.pop("crc32", None)
        if header["version"] not in VERSIONS:
            raise ValueError(f"its format version is {header['version']!r}, and only 1 and 2 are known")
        if crc32 != (None if header["version"] == 1 else _crc32_of_header(header)):
            raise ValueError("it is not as it was written, by its checksum")
        layout = {}
        for name, leaf in header["leaves"].items():
            shape, dtype = tuple(leaf["shape"]), DTYPES[leaf["dtype"]]
            if not all(type(size) is int and size >= 0 for size in shape):
                raise ValueError(f"leaf {name!r} has the shape {shape}")
            layout[name] = Leaf(shape, dtype)
        return Header(layout, dict(header["metadata"]), crc32)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise ValueError(f"{file} can't be read: {error!r}") from error


def line_of(step: int, weights: int | None, before: int | None) -> tuple[bytes, int | None]:
    """Returns the line of a step, and its checksum.

    Args:
        step: The step.
        weights: The checksum of its weights.
        before: The checksum of the line before, or of the header: so no line can be missing, or elsewhere. None in
            version 1.
    """
    if before is None:
        return json.dumps({"step": step}).encode() + b"\n", None
    crc32 = zlib.crc32(f"{step} {weights}".encode(), before)
    return json.dumps({"step": step, "weights": weights, "line": crc32}).encode() + b"\n", crc32


def crc32_of_weights(step: int, leaves: Iterable[np.ndarray], header: int) -> int:
    """Returns the checksum of the weights of a step, in the order of the leaves; `header` is that of the header.

    Those of the chunks can't tell that two chunks were swapped.
    """
    crc32 = zlib.crc32(str(step).encode(), header)
    for leaf in leaves:
        crc32 = zlib.crc32(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data, crc32)
    return crc32


def read_steps(path: Path, header_crc32: int | None) -> Steps:
    """Returns the complete steps of the history in a folder.

    Raises:
        ValueError: If a line other than the last is damaged, or the file is missing and weights are there.
    """
    file = path / STEPS
    try:
        if file.exists():
            return _parse_steps(read_regular(file, _MAX_BYTES), header_crc32)
        # The first step may be still to come, and the file with it.
        if next((path / ARRAYS).glob("*/c*"), None):
            raise ValueError("it is missing, but weights are there")
        return _parse_steps(b"", header_crc32)
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}") from error


@functools.lru_cache(maxsize=8)  # each read asks for the steps; they seldom change
def _parse_steps(content: bytes, header_crc32: int | None) -> Steps:
    """Returns the steps in the content of `steps.jsonl`, of which the end may be torn off."""
    lines = content.split(b"\n")[:-1]
    steps: list[int] = []
    weights: list[int | None] = []
    before = header_crc32
    for index, line in enumerate(lines):
        try:
            found = json.loads(line)
            step, crc32 = checked_step(found["step"]), found.get("weights")
            expected, next_before = line_of(step, crc32, before)
            if line + b"\n" != expected:
                raise ValueError("it is not as it was written")
            if steps and step <= steps[-1]:
                raise ValueError(f"step {step} after step {steps[-1]}")
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
            if index < len(lines) - 1:
                raise ValueError(f"line {index + 1}: {error}") from error
            break
        steps.append(step)
        weights.append(crc32)
        before = next_before
    array = np.array(steps, np.int64)
    array.flags.writeable = False
    return Steps(array, tuple(weights))


def checked_step(step: Any) -> int:
    """Returns a step as an int.

    Raises:
        TypeError: If it is no integer.
        ValueError: If it is negative or too large.
    """
    try:
        number = int(operator.index(step))
    except TypeError:
        raise TypeError(f"a step must be an integer, not {step!r}") from None
    if not 0 <= number < 2**63:
        raise ValueError(f"a step must be at least 0 and below 2**63, not {number}")
    return number


def check_no_links(path: Path) -> None:
    """Raises a ValueError if a link could lead what is written to elsewhere."""
    for file in (path / HEADER, path / STEPS, path / LOCK, path / ARRAYS, *(path / ARRAYS).glob("*")):
        if file.is_symlink():
            raise ValueError(f"{file} is a link, and a history is written to its own folder only")


def lock(path: Path) -> IO[bytes]:
    """Returns the locked file of a folder. It is unlocked when it is closed or the process ends, however it ends.

    Raises:
        BlockingIOError: If it is locked already.
    """
    import fcntl  # missing on Windows, where histories can still be read

    file = os.fdopen(os.open(path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666), "wb")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise BlockingIOError(f"{path} is already open for writing") from error
    return file


def append(path: Path, content: bytes) -> None:
    """Appends to a file, or leaves it as it was."""
    with path.open("ab", buffering=0) as file:
        size = file.tell()
        try:
            if file.write(content) < len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            os.fsync(file.fileno())
        except BaseException:
            os.truncate(path, size)
            raise


def _crc32_of_header(header: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(header, sort_keys=True).encode())
