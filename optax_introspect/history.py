"""Weight histories: the weights of one training run at many steps, on disk.

Introspection networks are fitted to such histories (Sinha et al. 2017, section 4.1). A history is a folder:

- `history.json`: the format version, the name, shape and dtype of each leaf, and the user's metadata;
- `steps.jsonl`: one line a step, `{"step": 100}`;
- `arrays/`: for each leaf a zarr array `[num_steps, *leaf.shape]`, with a row for each of these lines;
- `writer.lock`: locked while a run is being recorded.

A step's line is written only after its weights are committed, and only whole lines are believed. So a run that
is killed at any moment leaves a history of all its complete steps, and one that still goes on can be read.
"""

from __future__ import annotations

import collections
import concurrent.futures
import functools
import json
import math
import operator
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
import tensorstore as ts

_HEADER, _STEPS, _VERSION = "history.json", "steps.jsonl", 1
_DTYPES: dict[str, np.dtype[Any]] = {
    name: ts.dtype(name).numpy_dtype
    for name in ("float16", "bfloat16", "float32", "float64", "complex64", "complex128")
}
# Host copies of the weights that wait to be written: they bound the memory that a slow disk can take.
_MAX_PENDING = 2
_MAX_CHUNK_BYTES = 4 * 2**20
# For float32 weights this is as fast as no compression, and an eighth smaller; zstd is slower and no smaller.
# The checksum is there because blosc decodes flipped bits to wrong weights without complaint.
_CODECS = [
    {"name": "bytes", "configuration": {"endian": "little"}},
    {"name": "blosc", "configuration": {"cname": "lz4", "clevel": 1, "shuffle": "bitshuffle"}},
    {"name": "crc32c"},
]


class _Leaf(NamedTuple):
    """What the weights of one leaf have in common at all steps."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def __str__(self) -> str:
        return f"{self.dtype.name}{list(self.shape)}"


class WeightHistory:
    """The weights of one training run at many steps, on disk.

    Made by `WeightHistory.record`, to write, or by `WeightHistory.open`, to read, also while another process
    is still recording. Only the floating and complex leaves of the parameters are kept.

    Attributes:
        path: The folder of the history.
        names: The name of each leaf, its key path, for example `dense/kernel`.
        shapes: The shape of each leaf.
        dtypes: The dtype of each leaf.
        num_weights: The number of scalars of all leaves; a complex number counts as two.
        metadata: The JSON dict given when the history was created.

    Examples:
        >>> import tempfile
        >>> import numpy as np
        >>> params = {"dense": {"bias": np.zeros(2, np.float32), "kernel": np.ones((3, 2), np.float32)}}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with WeightHistory.record(folder, params, metadata={"seed": 0}) as history:
        ...         for step in (0, 100, 200):
        ...             history.append(step, params)
        ...     history = WeightHistory.open(folder)
        ...     history.steps, history.names, history.metadata
        ...     history.read(100)
        ...     history.tree(100)["dense/bias"]
        (array([  0, 100, 200]), ('dense/bias', 'dense/kernel'), {'seed': 0})
        array([0., 0., 1., 1., 1., 1., 1., 1.], dtype=float32)
        array([0., 0.], dtype=float32)
    """

    def __init__(self, path: Path, layout: dict[str, _Leaf], metadata: dict[str, Any]):
        self.path = path
        self.names = tuple(layout)
        self.shapes = tuple(leaf.shape for leaf in layout.values())
        self.dtypes = tuple(leaf.dtype for leaf in layout.values())
        self.num_weights = sum(math.prod(leaf.shape) * (2 if leaf.dtype.kind == "c" else 1) for leaf in layout.values())
        self.metadata = metadata
        self._layout = layout
        self._arrays: list[ts.TensorStore] = []
        # The rest is for writing, and empty in a reader.
        self._lock: IO[bytes] | None = None
        self._thread: concurrent.futures.ThreadPoolExecutor | None = None
        self._pending: collections.deque[concurrent.futures.Future[None]] = collections.deque()
        self._last = -1  # the last step appended
        self._failure: tuple[int, Exception] | None = None

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """Opens a history for reading. It keeps no file open, and needs no closing.

        Raises:
            FileNotFoundError: If there is no such folder.
            ValueError: If the folder holds no history, one of an unknown format version, or a damaged one.
        """
        path = Path(path).resolve()
        if not path.exists():
            raise FileNotFoundError(f"there is no weight history at {path}")
        history = cls(path, *_read_header(path))
        history._open_arrays()
        return history

    @classmethod
    def record(cls, path: str | os.PathLike[str], params: Any, *, metadata: dict[str, Any] | None = None) -> Self:
        """Opens a history for writing: a new one, or one to be continued.

        Args:
            path: The folder of the history; made where it is missing.
            params: A tree with the shapes and dtypes of the weights. Its values are not recorded.
            metadata: A JSON dict that describes the run. `None` accepts that of a continued history.

        Returns:
            The history, a context manager, to be closed after the last step.

        Raises:
            TypeError: If JSON can't hold the metadata.
            ValueError: If `params` has no floating leaf, two of the same name or one of an unsupported dtype,
                or if the folder holds a damaged history, or that of another tree or with other metadata.
            BlockingIOError: If another writer has this history open.
        """
        path = Path(path).resolve()
        _, layout = _flatten(params)
        header = {
            "version": _VERSION,
            "leaves": {name: {"shape": leaf.shape, "dtype": leaf.dtype.name} for name, leaf in layout.items()},
            "metadata": dict(metadata or {}),
        }
        content = json.dumps(header, indent=2, allow_nan=False)
        path.mkdir(parents=True, exist_ok=True)
        lock = _lock(path / "writer.lock")
        try:
            if not (path / _HEADER).exists():
                _write_atomically(path / _HEADER, content.encode())
            history = cls(path, *_read_header(path))
            history._check_layout(layout)
            if metadata is not None and history.metadata != json.loads(content)["metadata"]:
                raise ValueError(f"the metadata of {path} is {history.metadata}, not {metadata}")
            history._start()
        except BaseException:
            lock.close()
            raise
        history._lock = lock
        return history

    @property
    def steps(self) -> np.ndarray:
        """The complete steps, as they are on disk now: increasing, int64 `[num_steps]`.

        Raises:
            ValueError: If a line other than the last is damaged.
        """
        file = self.path / _STEPS
        try:
            # The first step may be still to come, and the file with it.
            return _parse_steps(file.read_bytes() if file.exists() else b"")
        except ValueError as error:
            raise ValueError(f"{file} is damaged: {error}") from error

    def read(self, step: int) -> np.ndarray:
        """Returns all weights of one step, in the order of `names`: float32 `[num_weights]`.

        A complex leaf gives its real parts, followed by its imaginary parts.

        Raises:
            KeyError: If the step is not in the history.
            ValueError: If its weights are damaged.
        """
        weights = np.empty(self.num_weights, np.float32)
        start = 0
        for leaf in self.tree(step).values():
            for part in (leaf.real, leaf.imag) if np.iscomplexobj(leaf) else (leaf,):
                weights[start : start + part.size] = part.ravel()
                start += part.size
        return weights

    def tree(self, step: int) -> dict[str, np.ndarray]:
        """Returns the leaves of one step by name, each in its own shape and dtype.

        Raises:
            KeyError: If the step is not in the history.
            ValueError: If its weights are damaged.
        """
        step, steps = _check_step(step), self.steps
        row = int(np.searchsorted(steps, step))
        if step not in steps[row : row + 1]:
            known = f"{len(steps)} steps from {steps[0]} to {steps[-1]}" if len(steps) else "no step"
            raise KeyError(f"step {step} is not in {self.path}, which holds {known}")
        if any(array.shape[0] <= row for array in self._arrays):
            self._open_arrays()  # the step was recorded after they had been opened
        leaves = {}
        for name, reading in zip(self.names, [array[row].read() for array in self._arrays], strict=True):
            try:
                leaves[name] = np.asarray(reading.result())
            except Exception as error:
                raise ValueError(f"step {step} of leaf {name!r} in {self.path}: {error}") from error
        return leaves

    def append(self, step: int, params: Any) -> None:
        """Records the weights of one step.

        They are copied before this returns, so `params` may be donated next. A background thread writes the
        copy; this waits for it only if two earlier steps are still being written.

        Args:
            step: Larger than that of the last record.
            params: A tree with the same floating leaves as the one given to `record`.

        Raises:
            TypeError: If the step is not an integer.
            ValueError: If the step is negative or does not increase, or if the leaves differ.
            RuntimeError: If the history is not open for writing, or an earlier step could not be written.
        """
        step = _check_step(step)
        if step <= self._last:
            raise ValueError(f"steps must increase, but {step} was given after {self._last}")
        leaves, layout = _flatten(params)
        self._check_layout(layout)
        while len(self._pending) >= _MAX_PENDING:
            self._pending.popleft().result()
        thread = self._writing_thread()
        for leaf in leaves.values():
            if isinstance(leaf, jax.Array):
                leaf.copy_to_host_async()  # starts all transfers before the first is waited for
        copies = [np.array(leaves[name]) for name in self.names]
        self._last = step
        self._pending.append(thread.submit(self._write, step, copies))

    def flush(self) -> None:
        """Waits until all appended steps are on disk.

        Raises:
            RuntimeError: If the history is not open for writing, or a step could not be written.
        """
        concurrent.futures.wait(self._pending)
        self._writing_thread()

    def truncate(self, step: int) -> None:
        """Drops all records after `step`: training goes on from an earlier checkpoint.

        Nobody may be reading the dropped steps meanwhile.

        Raises:
            TypeError: If the step is not an integer.
            ValueError: If the step is negative.
            RuntimeError: If the history is not open for writing, or a step could not be written.
        """
        step = _check_step(step)
        self.flush()
        self._keep([kept for kept in self.steps.tolist() if kept <= step])

    def close(self) -> None:
        """Ends the recording when all appended steps are on disk. What is recorded can still be read.

        Raises:
            RuntimeError: If a step could not be written.
        """
        if self._thread is None or self._lock is None:
            return
        try:
            self.flush()
        finally:
            self._thread.shutdown()
            self._lock.close()
            self._thread = self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> None:
        """Prepares for writing after the last complete step, whatever an earlier writer left behind it."""
        steps = self.steps.tolist()
        if not steps:
            # The arrays are missing, or hold nothing that is complete.
            self._create_arrays()
        self._open_arrays()
        self._keep(steps)
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "weight-history")

    def _keep(self, steps: list[int]) -> None:
        """Cuts the history down to these, its first steps."""
        # The lines go first: rows without a line do no harm if this is interrupted.
        _write_atomically(self.path / _STEPS, b"".join(_line(step) for step in steps))
        rows = len(steps)
        _wait(array.resize(None, [rows, *array.shape[1:]], shrink_only=True) for array in self._arrays)
        self._open_arrays()
        self._last = steps[-1] if steps else -1

    def _write(self, step: int, copies: list[np.ndarray]) -> None:
        """Writes one step, in the background thread."""
        if self._failure is not None:
            return  # a history has no gaps
        try:
            row = (self.path / _STEPS).read_bytes().count(b"\n")
            arrays = _wait(
                array.resize(None, [row + 1, *array.shape[1:]], expand_only=True, resize_metadata_only=True)
                for array in self._arrays
            )
            _wait(
                array[row].write(copy, can_reference_source_data_indefinitely=True)
                for array, copy in zip(arrays, copies, strict=True)
            )
            with (self.path / _STEPS).open("ab") as file:
                file.write(_line(step))
                file.flush()
                os.fsync(file.fileno())
        except Exception as error:
            self._failure = step, error

    def _writing_thread(self) -> concurrent.futures.ThreadPoolExecutor:
        if self._thread is None:
            raise RuntimeError(f"{self.path} is not open for writing: see WeightHistory.record")
        if self._failure is not None:
            step, error = self._failure
            raise RuntimeError(f"step {step} could not be written to {self.path}: {error}") from error
        return self._thread

    def _check_layout(self, given: dict[str, _Leaf]) -> None:
        """Raises ValueError, naming the first difference, if these leaves are not those of the history."""
        for name in self._layout | given:
            new, old = given.get(name, "missing"), self._layout.get(name, "missing")
            if new != old:
                raise ValueError(f"leaf {name!r} is {new} in the parameters, but {old} in {self.path}")

    def _specs(self) -> list[dict[str, Any]]:
        """Returns where TensorStore finds the array of each leaf, and how it treats it."""
        # The number makes a folder unique; the name is for people, without what has a meaning in paths.
        names = [re.sub(r"[^A-Za-z0-9_-]+", ".", name)[:80] for name in self.names]
        folders = [self.path / "arrays" / f"{index:04d}.{name}" for index, name in enumerate(names)]
        return [
            {
                "driver": "zarr3",
                "kvstore": {"driver": "file", "path": str(folder)},
                # Zeros are stored like other weights, so that missing weights are an error, and not zeros.
                "store_data_equal_to_fill_value": True,
                "fill_missing_data_reads": False,
            }
            for folder in folders
        ]

    def _create_arrays(self) -> None:
        """Creates the arrays, without rows, in the place of any that are there."""
        flat = {"chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}}}
        creating = []
        for spec, leaf in zip(self._specs(), self._layout.values(), strict=True):
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

    def _open_arrays(self) -> None:
        """Opens the arrays, with as many rows as they have now.

        Raises:
            ValueError: If one is missing, damaged, or not as the header and the steps say.
        """
        num_steps = len(self.steps)
        opening = [ts.open(spec, open=True) for spec in self._specs()]
        arrays = []
        for (name, leaf), array in zip(self._layout.items(), opening, strict=True):
            try:
                arrays.append(array.result())
                rows, *shape = arrays[-1].shape
                found = _Leaf(tuple(shape), arrays[-1].dtype.numpy_dtype)
                if found != leaf or rows < num_steps:
                    raise ValueError(f"it has {rows} rows of {found} for {num_steps} steps of {leaf}")
            except Exception as error:
                raise ValueError(f"the array of leaf {name!r} in {self.path} is damaged: {error}") from error
        self._arrays = arrays


def _flatten(params: Any) -> tuple[dict[str, Any], dict[str, _Leaf]]:
    """Returns by name the floating and complex leaves of a tree, and their shapes and dtypes.

    Raises:
        ValueError: If there is none, if two have the same name, or if one can't be stored.
    """
    leaves: dict[str, Any] = {}
    layout = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        dtype = leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype
        if not jnp.issubdtype(dtype, np.inexact):
            continue
        # Flax's variables are nodes: `dense/kernel/value` is named as in a plain dict of the same weights.
        if path and path[-1] == jax.tree_util.GetAttrKey("value"):
            path = path[:-1]
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name in leaves:
            raise ValueError(f"two leaves of the parameters are named {name!r}")
        if dtype.name not in _DTYPES:
            raise ValueError(f"leaf {name!r} is {dtype.name}, not one of {', '.join(_DTYPES)}")
        leaves[name], layout[name] = leaf, _Leaf(np.shape(leaf), dtype)
    if not leaves:
        raise ValueError("the parameters have no floating leaf")
    return leaves, layout


def _check_step(step: int) -> int:
    try:
        step = int(operator.index(step))
    except TypeError:
        raise TypeError(f"a step must be an integer, not {step!r}") from None
    if not 0 <= step < 2**63:
        raise ValueError(f"a step must be at least 0 and below 2**63, not {step}")
    return step


def _line(step: int) -> bytes:
    return json.dumps({"step": step}).encode() + b"\n"


@functools.lru_cache(maxsize=8)  # each read asks for the steps; they seldom change
def _parse_steps(content: bytes) -> np.ndarray:
    """Returns the steps in the content of `steps.jsonl`, of which the end may be torn off."""
    lines = content.split(b"\n")[:-1]
    steps = np.full(len(lines), -1, np.int64)
    for index, line in enumerate(lines):
        try:
            steps[index] = _check_step(json.loads(line)["step"])
            if index and steps[index] <= steps[index - 1]:
                raise ValueError(f"step {steps[index]} after step {steps[index - 1]}")
        except (ValueError, TypeError, LookupError) as error:
            if index < len(lines) - 1:
                raise ValueError(f"line {index + 1}: {error}") from error
            steps = steps[:index]
    steps.flags.writeable = False
    return steps


def _read_header(path: Path) -> tuple[dict[str, _Leaf], dict[str, Any]]:
    """Returns the leaves and the metadata of the history in a folder."""
    file = path / _HEADER
    if not file.is_file():
        raise ValueError(f"{path} is not a weight history: it has no {_HEADER}")
    try:
        header = json.loads(file.read_bytes())
        if header["version"] != _VERSION:
            raise ValueError(f"its format version is {header['version']!r}, and only {_VERSION} is known")
        layout = {}
        for name, leaf in header["leaves"].items():
            shape, dtype = tuple(leaf["shape"]), _DTYPES[leaf["dtype"]]
            if not all(type(size) is int and size >= 0 for size in shape):
                raise ValueError(f"leaf {name!r} has the shape {shape}")
            layout[name] = _Leaf(shape, dtype)
        return layout, dict(header["metadata"])
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise ValueError(f"{file} can't be read: {error!r}") from error


def _lock(path: Path) -> IO[bytes]:
    """Returns the locked file. It is unlocked when it is closed or the process ends, however it ends."""
    import fcntl  # missing on Windows, where histories can still be read

    file = path.open("wb")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise BlockingIOError(f"{path.parent} is already open for writing") from error
    return file


def _write_atomically(path: Path, content: bytes) -> None:
    """Replaces a file: whenever this is interrupted, the old or the new one is there."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    os.fsync(folder)  # makes the replacement itself durable
    os.close(folder)


def _wait(operations: Iterable[ts.Future[Any] | ts.WriteFutures]) -> list[Any]:
    """Starts all operations, then returns their results."""
    return [operation.result() for operation in list(operations)]
