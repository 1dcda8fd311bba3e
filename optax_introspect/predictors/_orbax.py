"""Weights of a training run in its Orbax checkpoints."""

import re
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ._files import Array, floating_leaves, layout_of


class CheckpointFolder:
    """Folder of an Orbax `CheckpointManager`, of which only the parameters are read.

    Attributes:
      path: The folder.
      layout: Shape and dtype of each leaf, by the first checkpoint.
      metadata: Empty.
    """

    def __init__(self, path: Path, item: str | None, key: str | None):
        self.path = path
        self.metadata: dict[str, Any] = {}
        if not path.is_dir():
            raise FileNotFoundError(f"there is no folder of checkpoints at {path}")
        folders = self._folders()
        if not folders:
            raise ValueError(f"{path} holds no Orbax checkpoint: none of its folders is named after a step")
        first = min(folders)
        items = sorted(file.parent.name for file in folders[first].glob("*/_METADATA"))
        if item not in items and not (item is None and len(items) == 1):
            raise ValueError(f"item must be one of those that {folders[first]} holds, {items}; got {item!r}")
        self._item = item or items[0]
        self._key = key
        tree = self._metadata(first)
        if key is None and isinstance(tree, dict) and "params" in tree:
            self._key = "params"
        self.layout = layout_of(self._parameters(tree))

    def steps(self) -> list[int]:
        """Returns the steps of the checkpoints, as they are on disk now."""
        return sorted(self._folders())

    def read(self, step: int) -> dict[str, Array]:
        """Returns the leaves of one step."""
        import orbax.checkpoint as ocp

        tree = self._metadata(step)
        wanted = {id(leaf) for leaf in self._parameters(tree).values()}
        item = jax.tree.map(lambda leaf: leaf if id(leaf) in wanted else ocp.PLACEHOLDER, tree)
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        args = ocp.args.PyTreeRestore(item=item, restore_args=as_numpy)
        leaves = self._parameters(ocp.PyTreeCheckpointHandler().restore(self._folders()[step] / self._item, args=args))
        kept = layout_of(leaves)
        return {name: leaf.astype(kept[name].dtype) for name, leaf in leaves.items()}

    def _folders(self) -> dict[int, Path]:
        """Returns the folder of each step. The manager may put a prefix and zeros before the number."""
        names = {path: re.fullmatch(r"(?:.*_)?(\d+)", path.name) for path in self.path.iterdir() if path.is_dir()}
        return {int(name[1]): path for path, name in names.items() if name}

    def _metadata(self, step: int) -> Any:
        import orbax.checkpoint as ocp

        folder = self._folders()[step] / self._item
        try:
            return ocp.PyTreeCheckpointHandler().metadata(folder).tree
        except Exception as error:
            raise ValueError(f"{folder} is not a checkpoint of Orbax: {error}") from error

    def _parameters(self, tree: Any) -> dict[str, Any]:
        for part in self._key.split("/") if self._key else ():
            if not isinstance(tree, dict) or part not in tree:
                known = f"{part!r} must be one of {sorted(tree) if isinstance(tree, dict) else []}"
                raise ValueError(f"key must lead to the parameters in item {self._item!r}; got {self._key!r}: {known}")
            tree = tree[part]
        leaves = floating_leaves(tree)
        if all(name.endswith("/value") for name in leaves):  # of an nnx.State, whose variables Orbax saves as dicts
            leaves = {name.removesuffix("/value"): leaf for name, leaf in leaves.items()}
        return leaves
