"""Batches to train on, each of which follows from the seed and the number of the step."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .images import Bytes, Images

Augment = Callable[[Bytes, np.random.Generator], Bytes]


@dataclass(frozen=True, eq=False)
class Batches:
    """The batches of a training without end: `batches[step]` is that of a step.

    Every epoch is a new permutation of the training images, and its incomplete last batch is left out. The number of
    the step is the whole position: a run that has it can go on anywhere, also in the middle of an epoch.

    Attributes:
      images: the images.
      batch_size: number of images in a batch.
      seed: seed of the permutations and the augmentation.
      augment: from uint8 images `[batch_size, ...]` and a random generator to what takes their place.

    Raises:
      ValueError: there are fewer images than `batch_size`.
    """

    images: Images
    batch_size: int
    seed: int
    augment: Augment | None = None

    def __post_init__(self) -> None:
        count = len(self.images.train_labels)
        if not 1 <= self.batch_size <= count:
            raise ValueError(
                f"batch_size must be from 1 to {count}, the number of training images; got {self.batch_size}"
            )

    def order(self, step: int) -> npt.NDArray[np.int64]:
        """Returns which images the batch of a step has, `[batch_size]`."""
        count = len(self.images.train_labels)
        epoch, place = divmod(step, count // self.batch_size)
        return _permutation(self.seed, epoch, count)[place * self.batch_size : (place + 1) * self.batch_size]

    def __getitem__(self, step: int) -> tuple[Bytes, Bytes]:
        """Returns images and labels of a step, both uint8."""
        chosen = self.order(step)
        images, labels = self.images.train_images[chosen], self.images.train_labels[chosen]
        if self.augment is None:
            return images, labels
        # The words of a `spawn_key` begin where those of the list that seeds a permutation end: the two never agree.
        return self.augment(images, np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(step,)))), labels


@functools.lru_cache(maxsize=8)  # the epochs that are being read; several seeds may take turns
def _permutation(seed: int, epoch: int, count: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng([seed, epoch]).permutation(count)
