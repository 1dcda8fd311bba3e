"""Text as bytes, and the batches of a language model that sees each of them once."""

import functools
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .images import Bytes, FromSource
from .places import cache_folder

# Bytes of a block, and one block in so many is held out.
BLOCK, HOLD_OUT = 1 << 14, 16
PACKAGE = "sympy==1.13.3"
WHEEL = "sympy-1.13.3-py3-none-any.whl"
SHA256 = "54612cf55a62755ee71824ce692986f23c88ffa77207b30c1368eda4a7060f73"
TIMEOUT_S = 120.0


@dataclass(frozen=True, eq=False)  # arrays cannot be compared by a generated `__eq__`
class Text(FromSource):
    """A text in blocks of bytes, some of which are held out.

    Attributes:
      source: where the text came from, for people to read.
      train: uint8 `[blocks, BLOCK]`.
      validation: as `train`.
    """

    source: str
    train: Bytes
    validation: Bytes


@dataclass(frozen=True, eq=False)
class Sequences:
    """The sequences of one pass over blocks of text, in an order that follows from the seed.

    The target of a byte is the next one. A sequence and its targets lie within a block, so that no byte is predicted
    twice, and none of a held-out block is seen.

    Attributes:
      blocks: uint8 `[blocks, BLOCK]`.
      batch_size: number of sequences in a batch.
      context: bytes of a sequence.
      seed: seed of the order; None is that of the text.

    Raises:
      ValueError: the text is too short for one batch.
    """

    blocks: Bytes
    batch_size: int
    context: int
    seed: int | None

    def __post_init__(self) -> None:
        if len(self) < 1:
            raise ValueError(
                f"the text must have {self.batch_size} sequences of {self.context} bytes, one batch, in blocks of "
                f"{BLOCK} bytes; got {len(self.starts)} sequences"
            )

    def __len__(self) -> int:
        """Number of batches."""
        return len(self.starts) // self.batch_size

    @functools.cached_property
    def starts(self) -> npt.NDArray[np.int32]:
        """Index of the first byte of each sequence, int32 `[sequences]`, in the flattened blocks."""
        in_block = np.arange(0, BLOCK - self.context, self.context)
        starts = (np.arange(len(self.blocks))[:, None] * BLOCK + in_block).ravel().astype(np.int32)
        return starts if self.seed is None else np.random.default_rng(self.seed).permutation(starts)

    def batch(self, step: int) -> npt.NDArray[np.int32]:
        """Returns the starts of the sequences of a step, `[batch_size]`."""
        return self.starts[step * self.batch_size : (step + 1) * self.batch_size]


def load_text(data_dir: Path | None = None, tests: bool = False) -> Text:
    """Returns the text of a folder or a file, or of the Python sources of SymPy.

    Args:
      data_dir: a file of UTF-8 text, or a folder, all files of which are. None takes the sources of SymPy from the
        cache folder, into which its wheel is fetched if need be.
      tests: takes the tests of SymPy instead, which are not in its sources here.

    Raises:
      FileNotFoundError: there is no such file or folder, or the wheel can't be had.
      ValueError: a file is not UTF-8, the text is shorter than two blocks, or the wheel is not the original one.
    """
    if data_dir is None:
        return _split(f"{'tests' if tests else 'Python sources'} of {PACKAGE}", _sources(_wheel(), tests))
    if not data_dir.exists():
        raise FileNotFoundError(f"data_dir must be a folder or a file of text; there is no {data_dir}")
    files = [data_dir] if data_dir.is_file() else sorted(path for path in data_dir.rglob("*") if path.is_file())
    content = b"\n".join(_text(path) for path in files)
    digest = hashlib.sha256(content).hexdigest()[:8]
    return _split(f"text {digest}, {len(files)} files of {data_dir}", content)


def _split(source: str, content: bytes) -> Text:
    count = len(content) // BLOCK
    if count < 2:
        raise ValueError(f"text must have at least {2 * BLOCK} bytes; got {len(content)} of {source}")
    blocks = np.frombuffer(content, np.uint8, count * BLOCK).reshape(count, BLOCK)
    held_out = np.arange(count) % HOLD_OUT == min(HOLD_OUT, count) - 1
    return Text(source, blocks[~held_out], blocks[held_out])


def _text(path: Path) -> bytes:
    content = path.read_bytes()
    try:
        content.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"data_dir must hold UTF-8 text; {path} is none: {error}") from error
    return content


def _wheel() -> Path:
    """Returns the wheel of SymPy, fetched if it is not in the cache folder, and checked."""
    wheel = cache_folder("sympy") / WHEEL
    if not wheel.exists():
        wheel.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=wheel.parent) as scratch:  # on the disk of the folder: `replace` is atomic
            command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", scratch, PACKAGE]
            try:
                subprocess.run(command, check=True, timeout=TIMEOUT_S, capture_output=True, text=True)
                Path(scratch, WHEEL).replace(wheel)
            except (OSError, subprocess.SubprocessError) as error:
                lines = str(getattr(error, "stderr", None) or error).strip().splitlines()
                raise FileNotFoundError(
                    f"fetching {PACKAGE} failed ({lines[-1] if lines else error}). Give a folder of text as "
                    f"--data-dir, or put {WHEEL} into {wheel.parent}"
                ) from error
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if found != SHA256:
        raise ValueError(f"{wheel} must have the SHA-256 {SHA256}; got {found}: remove it")
    return wheel


def _sources(wheel: Path, tests: bool) -> bytes:
    """Returns the Python files of a wheel, either the tests or all others, in sorted order."""
    with zipfile.ZipFile(wheel) as archive:
        names = sorted(n for n in archive.namelist() if n.endswith(".py") and ("tests" in Path(n).parts) == tests)
        return b"".join(archive.read(name) for name in names)
