"""Local paths, files that are whole or absent, and the leaves of a tree that histories hold."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


class Leaf(NamedTuple):
    """Shape and dtype of one leaf of the parameters, as a history holds it."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def __str__(self) -> str:
        return f"{self.dtype.name}{list(self.shape)}"


def local_path(name: str, path: str | os.PathLike[str]) -> Path:
    """Returns an absolute path, in which `~` is the home folder.

    Raises:
      ValueError: It is a URL.
    """
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", os.fspath(path)):  # Path("gs://bucket") is "gs:/bucket"
        raise ValueError(f"{name} must be a local folder; got {os.fspath(path)!r}: copy it to a local folder first")
    return Path(path).expanduser().absolute()


def write_whole(file: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Writes a file under another name and renames it, so that a killed process leaves a whole file or none."""
    temporary = file.with_name("unfinished")
    try:
        with temporary.open("wb") as opened:
            write(opened)
            opened.flush()
            os.fsync(opened.fileno())
        temporary.replace(file)
    except OSError as error:  # when no space is left, it doesn't say where
        temporary.unlink(missing_ok=True)
        raise OSError(error.errno, f"{error.strerror or error}; while writing", str(file)) from error


def floating_leaves(tree: Any) -> dict[str, Any]:
    """Returns the floating and complex leaves of a tree by name, such as `dense/kernel`.

    Raises:
      ValueError: There are none, or two have the same name.
    """
    leaves: dict[str, Any] = {}
    for path, leaf in jax.tree.leaves_with_path(tree):
        if not jnp.issubdtype(_dtype(leaf), np.inexact):
            continue
        if path and path[-1] == jax.tree_util.GetAttrKey("value"):  # of a Flax variable, which is a node
            path = path[:-1]
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name in leaves:
            raise ValueError(f"params must have leaves of different names; two are named {name!r}")
        leaves[name] = leaf
    if not leaves:
        raise ValueError("params must have floating leaves; got none")
    return leaves


def layout_of(leaves: dict[str, Any]) -> dict[str, Leaf]:
    """Returns shapes, and the dtypes that leaves are kept in: float32 for all narrower ones."""
    return {name: Leaf(tuple(np.shape(leaf)), _kept(np.dtype(_dtype(leaf)))) for name, leaf in leaves.items()}


def check_layout(where: str, found: dict[str, Leaf], expected: dict[str, Leaf]) -> None:
    """Raises a ValueError that names the first difference between two layouts."""
    for name in expected | found:
        if found.get(name) != expected.get(name):
            new, old = found.get(name, "missing"), expected.get(name, "no leaf")
            raise ValueError(f"{where}: {name!r} is {new}, and must be {old}")


def _dtype(leaf: Any) -> Any:
    return leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype


def _kept(dtype: np.dtype[Any]) -> np.dtype[Any]:
    if dtype.kind == "c":
        return np.dtype(np.complex64 if dtype.itemsize <= 8 else np.complex128)
    return np.dtype(np.float32 if dtype.itemsize <= 4 else np.float64)
