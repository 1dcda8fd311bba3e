"""Files that may be damaged, or come from anybody: reading is bounded, and what is written is whole or not there."""

import json
import os
import stat
from pathlib import Path
from typing import Any

# JSON of a million brackets ends the process in some parsers.
_MAX_BRACKETS = 1000


def check_regular(file: Path, max_bytes: int) -> None:
    """Raises an error unless it is a file: a device or a pipe could be read from for ever.

    Raises:
      OSError: there is none.
      ValueError: it is something else, or larger than that; a file can be large without taking any space on the disk.
    """
    found = file.stat()
    if not stat.S_ISREG(found.st_mode):
        raise ValueError(f"{file} is not a regular file")
    if found.st_size > max_bytes:
        raise ValueError(f"{file} has {found.st_size} bytes, where at most {max_bytes} are expected")


def read_regular(file: Path, max_bytes: int) -> bytes:
    """Returns what is in a file, if :func:`check_regular` has nothing against it."""
    check_regular(file, max_bytes)
    return file.read_bytes()


def read_json(file: Path, max_bytes: int) -> Any:
    """Returns what is in a small file of JSON.

    Raises:
      OSError: it can't be read.
      ValueError: it is not such a file.
    """
    content = read_regular(file, max_bytes)
    if content.count(b"[") + content.count(b"{") > _MAX_BRACKETS:
        raise ValueError(f"{file} has more than {_MAX_BRACKETS} brackets")
    try:
        return json.loads(content)
    except ValueError as error:
        raise ValueError(f"{file} is no JSON: {error}") from error


def write_atomically(path: Path, content: bytes) -> None:
    """Replaces a file: whenever this is interrupted, the old or the new one is there."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.unlink(missing_ok=True)  # of a process that was killed; or a link, and then not to be followed
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        name_file(error, path)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    os.fsync(folder)  # makes the replacement itself durable
    os.close(folder)


def name_file(error: BaseException, path: Path) -> None:
    """Lets an error of the operating system say where, which it doesn't when there is no space left."""
    if isinstance(error, OSError) and error.filename is None:
        error.filename = str(path)
