"""The arrays of a weight history: what they say of themselves is checked before memory is taken for it.

TensorStore ends the process where it is told to take more memory than there is, or to read JSON of a million brackets.
"""

import contextlib
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts

from .files import check_regular, read_json
from .history_files import ARRAYS, Leaf

_MAX_CHUNK_BYTES = 4 * 2**20
_MAX_METADATA_BYTES = 2**14
# For float32 weights this is as fast as no compression, and an eighth smaller; zstd is slower and no smaller.
# The checksum is there because blosc decodes flipped bits to wrong weights without complaint.
_CODECS = [
    {"name": "bytes", "configuration": {"endian": "little"}},
    {"name": "blosc", "configuration": {"cname": "lz4", "clevel": 1, "shuffle": "bitshuffle"}},
    {"name": "crc32c"},
]
_CODEC_NAMES = ["bytes", "blosc", "crc32c"]
# TensorStore writes a file under its name, a random number and this, and then gives it its name.
_BEING_WRITTEN = ".__lock"


class Arrays:
    """For each leaf a zarr array `[rows, *leaf.shape]` in the folder of a history.

    Attributes:
        layout: The leaves by name.
    """

    def __init__(self, path: Path, layout: dict[str, Leaf]):
        self.layout = layout
        self._path = path
        # The number makes a folder unique; the name is for people, without what has a meaning in paths.
        names = [re.sub(r"[^A-Za-z0-9_-]+", ".", name)[:80] for name in layout]
        self._folders = [path / ARRAYS / f"{index:04d}.{name}" for index, name in enumerate(names)]
        self._opened: list[ts.TensorStore] = []

    @property
    def rows(self) -> int:
        """How many rows all of them had when they were opened."""
        return min((array.shape[0] for array in self._opened), default=0)

    def create(self) -> None:
        """Creates them, without rows, in the place of any that are there."""
        flat = {"chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}}}
        creating = []
        for spec, leaf in zip(self._specs(), self.layout.values(), strict=True):
            chunk = [1, *(0 for _ in leaf.shape)]  # one row; TensorStore chooses where there is a 0
            grid = ts.ChunkLayout.Grid(shape=chunk, elements=_MAX_CHUNK_BYTES // leaf.dtype.itemsize)
            array = ts.open(
                {**spec, "metadata": flat},
                create=True,
                delete_existing=True,
                dtype=ts.dtype(leaf.dtype),
                shape=[0, *leaf.shape],
                chunk_layout=ts.ChunkLayout(chunk=grid),
                codec=ts.CodecSpec({"driver": "zarr3", "codecs": _CODECS}),
            )
            creating.append(array)
        _wait(creating)

    def open(self, num_steps: int) -> None:
        """Opens them, with as many rows as they have now.

        Raises:
            ValueError: If one is missing, damaged, of another shape or dtype than its leaf, or has too few rows.
        """
        opened = []
        for (name, leaf), folder, spec in zip(self.layout.items(), self._folders, self._specs(), strict=True):
            try:
                _check_metadata(folder / "zarr.json", leaf)
                opened.append(ts.open(spec, open=True))
            except Exception as error:
                raise ValueError(f"the array of leaf {name!r} in {self._path} is damaged: {error}") from error
        arrays = []
        for (name, leaf), opening in zip(self.layout.items(), opened, strict=True):
            try:
                array = opening.result()
                rows, *shape = array.shape
                found = Leaf(tuple(shape), array.dtype.numpy_dtype)
                if found != leaf or rows < num_steps:
                    raise ValueError(f"it has {rows} rows of {found} for {num_steps} steps of {leaf}")
                arrays.append(array)
            except Exception as error:
                raise ValueError(f"the array of leaf {name!r} in {self._path} is damaged: {error}") from error
        self._opened = arrays

    def read(self, row: int) -> dict[str, np.ndarray]:
        """Returns one row of each by name.

        Raises:
            ValueError: If it is damaged.
        """
        reading, leaves = {}, {}
        for name, folder, array in zip(self.layout, self._folders, self._opened, strict=True):
            try:
                _check_chunks(folder, array, row)
                reading[name] = array[row].read()
            except Exception as error:
                raise ValueError(f"leaf {name!r} in {self._path}: {error}") from error
        for name, result in reading.items():
            try:
                leaves[name] = np.asarray(result.result())
            except Exception as error:
                raise ValueError(f"leaf {name!r} in {self._path}: {error}") from error
        return leaves

    def write(self, row: int, leaves: list[np.ndarray]) -> None:
        """Writes a row after all others; they may not be changed any more. If it fails, there is no such row."""
        try:
            arrays = _wait(
                array.resize(None, [row + 1, *array.shape[1:]], expand_only=True, resize_metadata_only=True)
                for array in self._opened
            )
            _wait(
                array[row].write(leaf, can_reference_source_data_indefinitely=True)
                for array, leaf in zip(arrays, leaves, strict=True)
            )
        except Exception:
            self.drop(row)
            raise

    def keep(self, rows: int) -> None:
        """Drops all rows but the first ones, and what a killed process left half written; only while nothing writes."""
        # TensorStore would look for each chunk that there could be, and a damaged array may say that it has any number.
        # They go before their number is written, which takes space that a full disk has only then.
        for folder in self._folders:
            for file in folder.iterdir():
                chunk = re.fullmatch(r"c\.([0-9]+)(\.[0-9]+)*", file.name)
                if (chunk and int(chunk[1]) >= rows) or file.name.endswith(_BEING_WRITTEN):
                    file.unlink()
        _wait(
            array.resize(None, [rows, *array.shape[1:]], shrink_only=True, resize_metadata_only=True)
            for array in self._opened
        )

    def drop(self, row: int) -> None:
        """Drops a row that could not be completed, if that can be done: without a line it only takes space."""
        with contextlib.suppress(Exception):
            self.keep(row)

    def _specs(self) -> list[dict[str, Any]]:
        """Returns where TensorStore finds each of them, and how it treats it."""
        return [
            {
                "driver": "zarr3",
                # The lock of the history is enough. With TensorStore's own, what is written next would go over what a
                # killed process had written of a file: a shorter file would end with the rest of a longer one.
                "kvstore": {"driver": "file", "path": str(folder), "file_io_locking": {"mode": "none"}},
                # Zeros are stored like other weights, so that missing weights are an error, and not zeros.
                "store_data_equal_to_fill_value": True,
                "fill_missing_data_reads": False,
            }
            for folder in self._folders
        ]


def _check_metadata(file: Path, leaf: Leaf) -> None:
    """Raises an error unless an array has the chunks and codecs that it would have been created with."""
    found = read_json(file, _MAX_METADATA_BYTES)
    chunk = found["chunk_grid"]["configuration"]["chunk_shape"]
    if not all(type(size) is int and size > 0 for size in chunk):
        raise ValueError(f"its chunks have the shape {chunk}")
    # TensorStore takes the size that it is asked for as a wish.
    if chunk[0] != 1 or math.prod(chunk) * leaf.dtype.itemsize > 2 * _MAX_CHUNK_BYTES:
        raise ValueError(f"its chunks have the shape {chunk}, and not one row of at most {2 * _MAX_CHUNK_BYTES} bytes")
    if (codecs := [codec["name"] for codec in found["codecs"]]) != _CODEC_NAMES:
        raise ValueError(f"its codecs are {codecs}")


def _check_chunks(folder: Path, array: ts.TensorStore, row: int) -> None:
    """Raises an error unless each chunk of a row is a file that says of itself that it has the size of a chunk.

    So no more memory is taken for a row than a small multiple of its files.
    """
    chunk = array.chunk_layout.read_chunk_template.shape
    num_bytes = math.prod(chunk) * array.dtype.numpy_dtype.itemsize
    grid = [-(-size // of) for size, of in zip(array.shape[1:], chunk[1:], strict=True)]
    for index in range(math.prod(grid)):
        place = np.unravel_index(index, grid) if grid else ()
        file = folder / ".".join(["c", str(row), *map(str, place)])
        check_regular(file, 2 * num_bytes + 2**10)
        with file.open("rb") as opened:
            # Of the sixteen bytes before what blosc compressed, those for the size when it is decompressed.
            size = int.from_bytes(opened.read(16)[4:8], "little")
        if size != num_bytes:
            raise ValueError(f"the chunk {file.name} is of {size} bytes, not of {num_bytes}")


def _wait(operations: Iterable[ts.Future[Any] | ts.WriteFutures]) -> list[Any]:
    """Starts all operations, and returns their results or raises the first error when all are done."""
    started = list(operations)
    for operation in started:
        operation.exception()
    return [operation.result() for operation in started]
