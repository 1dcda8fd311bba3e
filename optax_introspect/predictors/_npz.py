"""Weights of a training run in a folder: one `.npz` a step, and one JSON file that says what is in them."""

import json
import re
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np

from ._files import Array, Leaf, write_whole

_DTYPES = ("float32", "float64", "complex64", "complex128")


class NpzFolder:
    """Folder of `history.json` and files such as `00001000.npz`, which holds the leaves of step 1000.

    Attributes:
      path: The folder.
      layout: Shape and dtype of each leaf.
      metadata: The user's.
    """

    def __init__(self, path: Path):
        self.path = path
        file = path / "history.json"
        try:
            content = json.loads(file.read_bytes())
            self.metadata: dict[str, Any] = dict(content["metadata"])
            self.layout = {name: _leaf(**leaf) for name, leaf in content["leaves"].items()}
        except FileNotFoundError:
            raise FileNotFoundError(f"there is no weight history at {path}: it has no history.json") from None
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise ValueError(f"{file} is not the description of a weight history: {error!r}") from error

    @classmethod
    def create(cls, path: Path, layout: dict[str, Leaf], metadata: dict[str, Any]) -> "NpzFolder":
        """Makes a folder for the steps of a run, or opens the one that is there."""
        file = path / "history.json"
        if not file.exists():
            if any(path.glob("*.npz")):
                raise ValueError(f"{path} holds .npz files without a history.json; a new history needs a new folder")
            leaves = {name: {"shape": leaf.shape, "dtype": leaf.dtype.name} for name, leaf in layout.items()}
            content = json.dumps({"metadata": metadata, "leaves": leaves}, indent=2, allow_nan=False).encode()
            path.mkdir(parents=True, exist_ok=True)
            write_whole(file, lambda opened: opened.write(content))
        return cls(path)

    def steps(self) -> list[int]:
        """Returns the recorded steps, as they are on disk now."""
        names = [re.fullmatch(r"(\d{8}|[1-9]\d{8,})\.npz", file.name) for file in self.path.iterdir()]
        return sorted(int(name[1]) for name in names if name)

    def read(self, step: int) -> dict[str, Array]:
        """Returns the leaves of one step."""
        with self._file(step).open("rb") as opened, np.load(opened, allow_pickle=False) as arrays:
            return {name: arrays[f"{name}.npy"] for name in self.layout}  # the name of the file tells "a" from "a.npy"

    def write(self, step: int, leaves: dict[str, Array]) -> None:
        """Writes one step."""

        def write(opened: IO[bytes]) -> None:
            # As np.savez does, which takes no leaf named "file".
            with zipfile.ZipFile(opened, "w") as archive:
                for name, leaf in leaves.items():
                    with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                        np.lib.format.write_array(entry, leaf, allow_pickle=False)

        write_whole(self._file(step), write)

    def remove(self, step: int) -> None:
        """Removes one step."""
        self._file(step).unlink()

    def _file(self, step: int) -> Path:
        return self.path / f"{step:08d}.npz"


def _leaf(shape: list[int], dtype: str) -> Leaf:
    if dtype not in _DTYPES or not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError(f"a leaf can't be {dtype!r} of the shape {shape}")
    return Leaf(tuple(shape), np.dtype(dtype))
