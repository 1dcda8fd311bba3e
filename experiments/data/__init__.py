"""The images that the experiments learn from, as NumPy arrays, and the batches to train on."""

from collections.abc import Callable
from pathlib import Path

from .augmentation import AUGMENTATIONS, Augmentation, standardise, training_batches
from .cifar10 import load_cifar10
from .images import Images
from .mnist import load_digits, load_mnist

__all__ = [
    "AUGMENTATIONS",
    "DATA",
    "Augmentation",
    "Images",
    "load",
    "load_cifar10",
    "load_digits",
    "load_mnist",
    "standardise",
    "training_batches",
]

# By the names that the records of the experiments use.
DATA: dict[str, Callable[[Path | None], Images]] = {
    "mnist": lambda data_dir: load_mnist(data_dir, fallback=False),
    "cifar10": load_cifar10,
}


def load(name: str, data_dir: Path | None = None) -> Images:
    """Returns a data set by its name, from the first place that has it; `data_dir` is one of them."""
    return DATA[name](data_dir)
