"""The images that the experiments learn from, as NumPy arrays, and the batches to train on."""

from collections.abc import Callable
from pathlib import Path

from .augmentation import AUGMENTATIONS, Augmentation, standardise
from .cifar10 import load_cifar10
from .digits import load_digits
from .images import Images
from .mnist import load_mnist
from .pipeline import Batches

__all__ = ["AUGMENTATIONS", "DATA", "Augmentation", "Batches", "Images", "load", "standardise"]

# By the keys that records use.
DATA: dict[str, Callable[[Path | None], Images]] = {
    "mnist": load_mnist,
    "digits": load_digits,
    "cifar10": load_cifar10,
}


def load(name: str, data_dir: Path | None = None) -> Images:
    """Returns a data set by its key.

    Args:
      name: a key of `DATA`.
      data_dir: the folder to take it from; None looks in the usual places.

    Raises:
      FileNotFoundError: it can't be had, or `data_dir` is no folder or lacks files.
      ValueError: a file is not the original one.
    """
    if data_dir is not None and not data_dir.is_dir():
        raise FileNotFoundError(f"data_dir must be a folder; {data_dir} is none")
    return DATA[name](data_dir)
