"""The images that the experiments learn from, as NumPy arrays, and the batches to train on."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .augmentation import AUGMENTATIONS, Augmentation, standardise
from .cifar10 import load_cifar10
from .digits import load_digits
from .images import Images
from .mnist import load_mnist
from .pipeline import Batches
from .text import Text, load_text

__all__ = ["AUGMENTATIONS", "DATA", "Augmentation", "Batches", "Images", "Text", "load", "standardise"]

# By the keys that records use.
DATA: dict[str, Callable[[Path | None], Images | Text]] = {
    "mnist": load_mnist,
    "digits": load_digits,
    "cifar10": load_cifar10,
    "text": load_text,
    "text-tests": functools.partial(load_text, tests=True),
}


def load(name: str, data_dir: Path | None = None) -> Any:
    """Returns a data set by its key.

    Args:
      name: a key of `DATA`.
      data_dir: the folder, or the file of text, to take it from; None looks in the usual places.

    Raises:
      FileNotFoundError: it can't be had, or there is no `data_dir`, or it lacks files.
      ValueError: a file is not the original one.
    """
    if data_dir is not None and not data_dir.exists():
        raise FileNotFoundError(f"data_dir must be a folder, or a file of text; there is no {data_dir}")
    return DATA[name](data_dir)
