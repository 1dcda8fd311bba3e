"""Weight histories: the weights of one training run at many steps, on disk.

Introspection networks are fitted to such histories (Sinha et al. 2017, section 4.1). A history is a folder:

- `history.json`: the format version, the name, shape and dtype of each leaf, and the user's metadata;
- `steps.jsonl`: one line a step, `{"step": 100, "weights": 862461, "line": 5724}`;
- `arrays/`: for each leaf a zarr array `[num_steps, *leaf.shape]`, with a row for each of these lines;
- `writer.lock`: locked while a run is being recorded.

A step's line is written only after its weights are committed, and only whole lines are believed. So a run that
is killed at any moment leaves a history of all its complete steps, and one that still goes on can be read.

Everything has a checksum (CRC-32): the header, each line together with the one before, and the weights of a step
together with its number and the header. So what is read is what was recorded, or an error, whatever happened to the
files.
"""

from __future__ import annotations

import collections
import concurrent.futures
import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from .files import write_atomically
from .history_arrays import Arrays
from .history_files import (
    DTYPES,
    HEADER,
    STEPS,
    Header,
    Leaf,
    append,
    check_no_links,
    checked_step,
    crc32_of_weights,
    header_of,
    line_of,
    lock,
    read_header,
    read_steps,
)

# Host copies of the weights that wait to be written: they bound the memory that a slow disk can take.
_MAX_PENDING = 2


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

    def __init__(self, path: Path, header: Header):
        layout = header.layout
        self.path = path
        self.names = tuple(layout)
        self.shapes = tuple(leaf.shape for leaf in layout.values())
        self.dtypes = tuple(leaf.dtype for leaf in layout.values())
        self.num_weights = sum(math.prod(leaf.shape) * (2 if leaf.dtype.kind == "c" else 1) for leaf in layout.values())
        self.metadata = header.metadata
        self._layout = layout
        self._header_crc32 = header.crc32
        self._arrays = Arrays(path, layout)
        # The rest is for writing, and empty in a reader.
        self._lock: IO[bytes] | None = None
        self._thread: concurrent.futures.ThreadPoolExecutor | None = None
        self._pending: collections.deque[concurrent.futures.Future[None]] = collections.deque()
        self._last = -1  # the last step appended
        self._last_crc32 = header.crc32  # of its line
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
        history = cls(path, read_header(path))
        history._arrays.open(len(history.steps))
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
        content = header_of(layout, dict(metadata or {}))
        path.mkdir(parents=True, exist_ok=True)
        check_no_links(path)
        locked = lock(path)
        try:
            if not (path / HEADER).exists() and not (path / STEPS).exists():
                write_atomically(path / HEADER, content)
            history = cls(path, read_header(path))
            history._check_layout(layout)
            if metadata is not None and history.metadata != json.loads(content)["metadata"]:
                raise ValueError(f"the metadata of {path} is {history.metadata}, not {metadata}")
            history._start()
        except BaseException:
            locked.close()
            raise
        history._lock = locked
        return history

    @property
    def steps(self) -> np.ndarray:
        """The complete steps, as they are on disk now: increasing, int64 `[num_steps]`.

        Raises:
            ValueError: If a line other than the last is damaged, or the lines are missing though weights are there.
        """
        return read_steps(self.path, self._header_crc32).steps

    def read(self, step: int) -> np.ndarray:
        """Returns all weights of one step, in the order of `names`: float32 `[num_weights]`.

        A complex leaf gives its real parts, followed by its imaginary parts.

        Raises:
            KeyError: If the step is not in the history.
            ValueError: If its weights are damaged.
        """
        leaves = self.tree(step)
        weights = np.empty(self.num_weights, np.float32)
        start = 0
        for leaf in leaves.values():
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
        step = checked_step(step)
        steps, checksums = read_steps(self.path, self._header_crc32)
        row = int(np.searchsorted(steps, step))
        if step not in steps[row : row + 1]:
            known = f"{len(steps)} steps from {steps[0]} to {steps[-1]}" if len(steps) else "no step"
            raise KeyError(f"step {step} is not in {self.path}, which holds {known}")
        if self._arrays.rows <= row:
            self._arrays.open(len(steps))  # the step was recorded after they had been opened
        try:
            leaves = self._arrays.read(row)
        except ValueError as error:
            raise ValueError(f"step {step} of {error}") from error
        if checksums[row] not in (None, self._crc32_of_weights(step, leaves.values())):
            raise ValueError(f"the weights of step {step} in {self.path} are not those that were recorded")
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
        step = checked_step(step)
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
        step = checked_step(step)
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
        steps = self.steps
        if not len(steps):
            # The arrays are missing, or hold nothing that is complete.
            self._arrays.create()
        self._arrays.open(len(steps))
        self._keep(steps.tolist())
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "weight-history")

    def _keep(self, steps: list[int]) -> None:
        """Cuts the history down to these, its first steps."""
        checksums = read_steps(self.path, self._header_crc32).weights
        content, self._last_crc32 = b"", self._header_crc32
        for step, checksum in zip(steps, checksums, strict=False):
            line, self._last_crc32 = line_of(step, checksum, self._last_crc32)
            content += line
        # The lines go first: rows without a line do no harm if this is interrupted.
        write_atomically(self.path / STEPS, content)
        self._arrays.keep(len(steps))
        self._arrays.open(len(steps))
        self._last = steps[-1] if steps else -1

    def _write(self, step: int, copies: list[np.ndarray]) -> None:
        """Writes one step, in the background thread."""
        if self._failure is not None:
            return  # a history has no gaps
        try:
            row = (self.path / STEPS).read_bytes().count(b"\n")
            self._arrays.write(row, copies)
            try:
                line, crc32 = line_of(step, self._crc32_of_weights(step, copies), self._last_crc32)
                append(self.path / STEPS, line)
                self._last_crc32 = crc32
            except Exception:
                self._arrays.drop(row)
                raise
        except Exception as error:
            self._failure = step, error

    def _crc32_of_weights(self, step: int, leaves: Iterable[np.ndarray]) -> int | None:
        return None if self._header_crc32 is None else crc32_of_weights(step, leaves, self._header_crc32)

    def _writing_thread(self) -> concurrent.futures.ThreadPoolExecutor:
        if self._thread is None:
            raise RuntimeError(f"{self.path} is not open for writing: see WeightHistory.record")
        if self._failure is not None:
            step, error = self._failure
            raise RuntimeError(f"step {step} could not be written to {self.path}: {error}") from error
        return self._thread

    def _check_layout(self, given: dict[str, Leaf]) -> None:
        """Raises ValueError, naming the first difference, if these leaves are not those of the history."""
        for name in self._layout | given:
            new, old = given.get(name, "missing"), self._layout.get(name, "missing")
            if new != old:
                raise ValueError(f"leaf {name!r} is {new} in the parameters, but {old} in {self.path}")


def _flatten(params: Any) -> tuple[dict[str, Any], dict[str, Leaf]]:
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
        if dtype.name not in DTYPES:
            raise ValueError(f"leaf {name!r} is {dtype.name}, not one of {', '.join(DTYPES)}")
        leaves[name], layout[name] = leaf, Leaf(np.shape(leaf), dtype)
    if not leaves:
        raise ValueError("the parameters have no floating leaf")
    return leaves, layout
