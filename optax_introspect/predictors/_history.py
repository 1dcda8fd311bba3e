"""Weight histories: the weights of one training run at many steps."""

import collections
import concurrent.futures
import json
import math
import os
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np

from .. import _arguments
from ._files import Array, check_layout, floating_leaves, layout_of, local_path
from ._npz import NpzFolder
from ._orbax import CheckpointFolder

# Copies of the weights that wait to be written: they bound the memory that a slow disk can take.
_MAX_PENDING = 2


class WeightHistory:
    """Weights of one training run at many steps, on disk.

    Made by :meth:`record` to write, by :meth:`open` to read, also while another process is still recording, or by
    :meth:`from_checkpoints`. It holds the floating and complex leaves of the parameters. Leaves narrower than float32,
    such as bfloat16, are kept as float32.

    A recorded history is a folder with a file a step, such as `00001000.npz`, which `numpy.load` reads, and
    `history.json`. Each file is written under another name and renamed, so that a run that is killed leaves whole steps
    only.

    Attributes:
      path: Folder of the history.
      names: Name of each leaf, such as `dense/kernel`.
      shapes: Shape of each leaf.
      dtypes: Dtype of each leaf.
      num_weights: Number of weights in all leaves. A complex number counts as two.
      metadata: The dict given when it was recorded.

    Examples:
      >>> import tempfile
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

    def __init__(self, source: NpzFolder | CheckpointFolder):
        self._source = source
        self._layout = source.layout
        self.path: Path = source.path
        self.metadata: dict[str, Any] = source.metadata
        self.names = tuple(self._layout)
        self.shapes = tuple(leaf.shape for leaf in self._layout.values())
        self.dtypes = tuple(leaf.dtype for leaf in self._layout.values())
        self.num_weights = sum(math.prod(leaf.shape) * (1 + (leaf.dtype.kind == "c")) for leaf in self._layout.values())
        # The rest is for writing.
        self._thread: concurrent.futures.ThreadPoolExecutor | None = None
        self._pending: collections.deque[concurrent.futures.Future[None]] = collections.deque()
        self._last = -1

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """Opens a history for reading. It needs no closing.

        Args:
          path: Its folder.

        Returns:
          The history.

        Raises:
          FileNotFoundError: There is no history.
          ValueError: `path` is a URL, or the description of the history is damaged.
        """
        return cls(NpzFolder(local_path("path", path)))

    @classmethod
    def record(cls, path: str | os.PathLike[str], params: Any, metadata: dict[str, Any] | None = None) -> Self:
        """Opens a history for writing: a new one, or one to go on with.

        Args:
          path: Its folder, made if missing. One process at a time may write to it.
          params: A tree with the shapes and dtypes of the weights. Its values are not recorded.
          metadata: A dict for JSON that describes the run. None accepts that of a history to go on with.

        Returns:
          The history, a context manager. Close it after the last step.

        Raises:
          ValueError: `path` is a URL, `params` have no floating leaf, JSON can't hold `metadata`, or the folder holds a
            history of other leaves or with other metadata.
        """
        layout = layout_of(floating_leaves(params))
        try:
            # JSON has no tuples, and no keys but strings.
            given = json.loads(json.dumps(dict(metadata or {}), allow_nan=False))
        except (TypeError, ValueError) as error:
            raise ValueError(f"metadata must be a dict that JSON can hold; got {metadata!r}: {error}") from error
        history = cls(NpzFolder.create(local_path("path", path), layout, given))
        check_layout(f"params must have the leaves of {history.path}", layout, history._layout)
        if metadata is not None and history.metadata != given:
            raise ValueError(f"metadata must be that of {history.path}, {history.metadata}; got {metadata}")
        history._last = max(history.steps.tolist(), default=-1)
        history._thread = concurrent.futures.ThreadPoolExecutor(1, "weight-history")
        return history

    @classmethod
    def from_checkpoints(cls, path: str | os.PathLike[str], *, item: str | None = None, key: str | None = None) -> Self:
        """Opens the checkpoints of a run, written by an Orbax `CheckpointManager`, as a history for reading.

        Neither the model nor the optimizer is needed. A checkpoint is read when its step is, and only its parameters.

        Args:
          path: Folder of the `CheckpointManager`.
          item: Item that holds the parameters, the name given to `ocp.args.Composite`. None is the only one.
          key: Place of the parameters in the item, such as `"params"` or `"model/params"`. None is `"params"` if the
            item has such an entry, as that of a `TrainState` has, and else the whole item.

        Returns:
          The history.

        Raises:
          FileNotFoundError: There is no such folder.
          ValueError: `path` is a URL or holds no checkpoint, or there is no such `item` or `key`.

        Examples:
          >>> import tempfile
          >>> import orbax.checkpoint as ocp
          >>> with tempfile.TemporaryDirectory() as folder:
          ...     with ocp.CheckpointManager(folder) as manager:
          ...         for step in (0, 100):
          ...             params = {"w": np.full(2, step, np.float32)}
          ...             _ = manager.save(step, args=ocp.args.StandardSave(params))
          ...     history = WeightHistory.from_checkpoints(folder)
          ...     history.steps, history.read(100)
          (array([  0, 100]), array([100., 100.], dtype=float32))
        """
        return cls(CheckpointFolder(local_path("path", path), item, key))

    @property
    def steps(self) -> Array:
        """The recorded steps, as they are on disk now: increasing, int64 `[num_steps]`."""
        return np.array(self._source.steps(), np.int64)

    def read(self, step: int) -> Array:
        """Returns all weights of one step.

        Args:
          step: One of `steps`.

        Returns:
          float32 `[num_weights]`, in the order of `names`. A complex leaf gives its real, then its imaginary parts.

        Raises:
          ValueError: `step` is not recorded, or its file is damaged.
        """
        parts = []
        for leaf in self.tree(step).values():
            parts += [leaf.real, leaf.imag] if np.iscomplexobj(leaf) else [leaf]
        return np.concatenate([part.ravel() for part in parts], dtype=np.float32, casting="same_kind")

    def tree(self, step: int) -> dict[str, Array]:
        """Returns the leaves of one step by name, each in its shape and dtype.

        Args:
          step: One of `steps`.

        Returns:
          The leaves.

        Raises:
          ValueError: `step` is not recorded, or its file is damaged.
        """
        steps = self._source.steps()
        if step not in steps:
            known = f"{len(steps)} steps from {steps[0]} to {steps[-1]}" if steps else "no steps"
            raise ValueError(f"step must be recorded in {self.path}, which holds {known}; got {step!r}")
        try:
            leaves = self._source.read(step)
            check_layout("it has other leaves", layout_of(leaves), self._layout)
        except Exception as error:
            raise ValueError(f"step {step} of {self.path} is damaged: {error!r}") from error
        return leaves

    def append(self, step: int, params: Any) -> None:
        """Records the weights of one step.

        They are copied before this returns, so that `params` may be donated next. A background thread writes them. If
        two earlier steps still wait to be written, this waits for the first.

        Args:
          step: A step after the last one.
          params: A tree with the same floating leaves as that given to :meth:`record`.

        Raises:
          ValueError: `step` is not after the last one, or `params` has other leaves.
          RuntimeError: The history is not open for writing.
          OSError: An earlier step could not be written.
        """
        thread = self._writing_thread()
        step = _arguments.integer("step", step, self._last + 1)
        leaves = floating_leaves(params)
        check_layout(f"params must have the leaves of {self.path}", layout_of(leaves), self._layout)
        while len(self._pending) >= _MAX_PENDING:
            self._pending.popleft().result()
        for leaf in leaves.values():
            if isinstance(leaf, jax.Array):
                leaf.copy_to_host_async()  # starts all transfers before the first is waited for
        copies = {name: np.asarray(leaves[name]).astype(leaf.dtype) for name, leaf in self._layout.items()}
        self._last = step
        self._pending.append(thread.submit(self._folder().write, step, copies))

    def flush(self) -> None:
        """Waits until all appended steps are on disk.

        Raises:
          OSError: A step could not be written.
        """
        while self._pending:
            self._pending.popleft().result()

    def truncate(self, step: int) -> None:
        """Removes all steps after `step`, for a run that goes on from an earlier checkpoint.

        Args:
          step: The last step to keep.

        Raises:
          RuntimeError: The history is not open for writing.
          OSError: A step could not be written.
        """
        self._writing_thread()
        self.flush()
        steps = self.steps.tolist()
        for later in reversed([recorded for recorded in steps if recorded > step]):
            self._folder().remove(later)
        self._last = max((recorded for recorded in steps if recorded <= step), default=-1)

    def close(self) -> None:
        """Waits until all appended steps are on disk, and ends the recording. Steps can still be read.

        Raises:
          OSError: A step could not be written.
        """
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.shutdown()
            self.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _folder(self) -> NpzFolder:
        assert isinstance(self._source, NpzFolder)
        return self._source

    def _writing_thread(self) -> concurrent.futures.ThreadPoolExecutor:
        if self._thread is None:
            raise RuntimeError(f"{self.path} is not open for writing: see WeightHistory.record")
        return self._thread
