"""Batches to train on, as a Grain dataset that is read by the number of the step."""

import functools
from collections.abc import Callable

import grain
import numpy as np
import numpy.typing as npt

from .images import Bytes, Images

Augment = Callable[[Bytes, np.random.Generator], Bytes]


def batches_of(images: Images, batch_size: int, seed: int, augment: Augment) -> grain.MapDataset[tuple[Bytes, Bytes]]:
    """Returns the batches of a training without end, where `batches[step]` is that of a step.

    Every epoch is a new permutation of the training images, and its incomplete last batch is left out. Which images a
    batch has, and what is done to them, follow from `seed` and `step` alone. The number of the step therefore is the
    whole position in the pipeline: a checkpoint that has it can go on anywhere, also in the middle of an epoch.

    The elements of the dataset are batches, not examples: Grain handles each element in Python, which for single
    images takes longer than all that is done to them.

    Args:
      images: of which the training set is used; it is read in place.
      batch_size: images in a batch.
      seed: of the permutations and the augmentation.
      augment: from uint8 images `[batch_size, ...]` and a random generator to what the batch has in their place.

    Returns:
      A `grain.MapDataset` of tuples, the images and the uint8 labels `[batch_size]`. Its `to_iter_dataset(...)` reads
      ahead in threads; the state of such an iterator, too, is the number of the next step.

    Raises:
      ValueError: if there are fewer images than `batch_size`, or `batch_size` or `seed` are not valid.
      IndexError: from the dataset, if a step is negative.
    """
    count = len(images.train_labels)
    if not 1 <= batch_size <= count:
        raise ValueError(f"batch_size must be from 1 to {count}, the number of training images, got {batch_size}")
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    per_epoch = count // batch_size

    def batch(step: int, _: int) -> tuple[Bytes, Bytes]:
        if step < 0:
            raise IndexError(f"a step must not be negative, got {step}")
        epoch, place = divmod(step, per_epoch)
        chosen = _permutation(seed, epoch, count)[place * batch_size : (place + 1) * batch_size]
        # The words of a `spawn_key` begin where those of the list that seeds a permutation end: the two never agree.
        generator = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(step,)))
        return augment(images.train_images[chosen], generator), images.train_labels[chosen]

    return grain.MapDataset.range(per_epoch).repeat().map_with_index(batch)


@functools.lru_cache(maxsize=8)  # the epochs that are being read; readers of several seeds may take turns
def _permutation(seed: int, epoch: int, count: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng([seed, epoch]).permutation(count)
