"""Batches of ImageNet, in an order that depends on nothing but a seed.

Training examples are an endless stream, one random permutation of the source after the other. Step `b` always gets the
examples `b * batch_size` to `(b + 1) * batch_size` of it; at the end of an epoch a batch goes on into the next one, so
that no example is left out. Permutations follow from the seed and the number of the epoch, crops and flips from the
seed and the position in the stream. With `n` processes, process `p` gets the `p`-th of `n` equal parts of each batch.
Hence the number of processes, of workers and of threads changes nothing about what a run sees, and the number of the
next step is all that a checkpoint needs of the input.

An example that cannot be read or decoded is replaced by the next one of the source that can, and counted.
"""

import dataclasses
import functools
import math
import sys
from collections.abc import Callable
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from .crops import AUGMENTATIONS, Box, central_crop, random_crop
from .decoding import UndecodableError, decode
from .sources import Source
from .workers import Batch, BatchesAhead

_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)

_END = sys.maxsize  # of the endless stream of training examples
_TRIES = 100  # broken examples in a row, after which it is the source that is broken
_PERMUTATIONS, _AUGMENTATIONS = 0, 1  # independent streams of random numbers from one seed

Pixels = npt.NDArray[np.uint8]


def training_batches(
    source: Source,
    *,
    image_size: int,
    batch_size: int,
    seed: int,
    start: int,
    augmentation: str = "resized-crop",
    process_index: int = 0,
    process_count: int = 1,
    workers: int = 0,
) -> BatchesAhead:
    """Returns the batches of one process from a step on, without end.

    Args:
      source: where examples come from.
      image_size: width and height of the images.
      batch_size: examples a step, of all processes together.
      seed: decides about order, crops and flips; not negative.
      start: the number of the first step.
      augmentation: `"resized-crop"` or `"alexnet"`, see `crops.random_crop`; each followed by a flip of every other
        image.
      process_index: the number of this process.
      process_count: the number of processes.
      workers: processes that decode images; without any, threads of this process do.

    Returns:
      An iterator of dictionaries: `image` uint8 `[local, image_size, image_size, 3]`, `label` int32 `[local]`, `weight`
      float32 `[local]`, which is 1, and `skipped` int32 `[]`, how many of these examples were replaced. Its `close()`
      ends the workers, as does its end, and the end of all references to it.

    Raises:
      ValueError: if an argument is out of range, or the processes do not divide the batch. While iterating: if a label
        is out of range, or 100 examples in a row cannot be decoded.
    """
    local = _checked(source, image_size, batch_size, process_index, process_count, workers)
    for name, number in (("seed", seed), ("start", start)):
        if number < 0:
            raise ValueError(f"{name} must not be negative, got {number}")
    if augmentation not in AUGMENTATIONS:
        raise ValueError(f"augmentation must be one of {', '.join(AUGMENTATIONS)}, got {augmentation!r}")

    load = _TrainingBatch(source, image_size, batch_size, process_index * local, local, seed, augmentation)
    return BatchesAhead(grain.MapDataset.range(start, _END // batch_size).map(load), workers)


def evaluation_batches(
    source: Source,
    *,
    image_size: int,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    workers: int = 0,
) -> BatchesAhead:
    """Returns the batches of one process over the whole source, once, in its order.

    The last batch is filled up with black images of weight 0. An example that cannot be decoded gets weight 0 too, and
    so counts neither for nor against a network. Every process gets the same number of batches.

    Args:
      source: where examples come from.
      image_size: width and height of the images, the central crops of images 256/224 as large.
      batch_size: examples a step, of all processes together.
      process_index: the number of this process.
      process_count: the number of processes.
      workers: processes that decode images, see `training_batches`.

    Returns:
      An iterator of dictionaries as in `training_batches`; `skipped` says how many examples could not be decoded.

    Raises:
      ValueError: as `training_batches`.
    """
    local = _checked(source, image_size, batch_size, process_index, process_count, workers)
    load = _EvaluationBatch(source, image_size, batch_size, process_index * local, local)
    return BatchesAhead(grain.MapDataset.range(math.ceil(len(source) / batch_size)).map(load), workers)


def normalise(images: jax.Array) -> jax.Array:
    """Returns uint8 images as float32, with the mean and standard deviation of ImageNet taken out of each channel."""
    return (images.astype(jnp.float32) / 255 - jnp.array(_MEAN)) / jnp.array(_STD)


def _checked(
    source: Source, image_size: int, batch_size: int, process_index: int, process_count: int, workers: int
) -> int:
    """Returns how many examples of a batch one process gets."""
    for name, number in (("image_size", image_size), ("batch_size", batch_size), ("process_count", process_count)):
        if number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}")
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index must be between 0 and {process_count - 1}, got {process_index}")
    if workers < 0:
        raise ValueError(f"workers must not be negative, got {workers}")
    if batch_size % process_count:
        raise ValueError(f"a batch of {batch_size} examples cannot be divided equally by {process_count} processes")
    if not len(source):
        raise ValueError(f"{source.description}: there are no examples")
    return batch_size // process_count


@dataclasses.dataclass(frozen=True)
class _TrainingBatch:
    """Reads the part of one process of a batch; random access, so that any worker can make any batch."""

    source: Source
    image_size: int
    batch_size: int
    first: int
    local: int
    seed: int
    augmentation: Any

    def __call__(self, step: int) -> Batch:
        batch = _empty(self.local, self.image_size)
        begin = step * self.batch_size + self.first
        for i, position in enumerate(range(begin, begin + self.local)):
            epoch, place = divmod(position, len(self.source))
            number = int(_permutation(len(self.source), self.seed, epoch)[place])
            to_image = functools.partial(self._augmented, position)
            batch["image"][i], batch["label"][i], replaced = _load(self.source, number, to_image)
            batch["weight"][i] = 1
            batch["skipped"] += replaced
        return batch

    def _augmented(self, position: int, content: bytes) -> Pixels:
        rng = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(_AUGMENTATIONS, position)))
        flip = rng.random() < 0.5

        def crop(width: int, height: int) -> Box:
            return random_crop(self.augmentation, width, height, self.image_size, rng)

        image = decode(content, crop, self.image_size)
        return image[:, ::-1] if flip else image


@dataclasses.dataclass(frozen=True)
class _EvaluationBatch:
    """As `_TrainingBatch`, for evaluation."""

    source: Source
    image_size: int
    batch_size: int
    first: int
    local: int

    def __call__(self, step: int) -> Batch:
        batch = _empty(self.local, self.image_size)
        begin = step * self.batch_size + self.first
        for i, number in enumerate(range(begin, min(begin + self.local, len(self.source)))):
            batch["image"][i], batch["label"][i], replaced = _load(self.source, number, self._cropped)
            batch["weight"][i] = not replaced
            batch["skipped"] += replaced
        return batch

    def _cropped(self, content: bytes) -> Pixels:
        return decode(content, lambda width, height: central_crop(width, height, self.image_size), self.image_size)


# Grain's own shuffle is made for large sources: for the photographs it would take longer than to decode them.
@functools.lru_cache(maxsize=4)  # 10 MB each for ImageNet, made in 20 ms
def _permutation(size: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    sequence = np.random.SeedSequence(seed, spawn_key=(_PERMUTATIONS, epoch))
    return np.random.default_rng(sequence).permutation(size)


def _empty(local: int, image_size: int) -> Batch:
    return {
        "image": np.zeros((local, image_size, image_size, 3), np.uint8),
        "label": np.zeros(local, np.int32),
        "weight": np.zeros(local, np.float32),
        "skipped": np.zeros((), np.int32),
    }


def _load(source: Source, number: int, to_image: Callable[[bytes], Pixels]) -> tuple[Pixels, int, bool]:
    """Returns image and label of the first decodable example from a number on, and whether it is not that number's."""
    first = ""
    tries = min(_TRIES, len(source))
    for ahead in range(tries):
        try:
            example = source[(number + ahead) % len(source)]
        except OSError as error:  # its text names the file
            first = first or str(error)
            continue
        label, name = example["label"], example["name"]
        if not 0 <= label < source.classes:
            raise ValueError(
                f"{source.description}: {name} has the label {label}, not one of 0 to {source.classes - 1}"
            )
        try:
            return to_image(example["image"]), label, ahead > 0
        except UndecodableError as error:
            first = first or f"{name}: {error}"
    raise ValueError(f"{source.description}: {tries} examples in a row could not be decoded; the first: {first}")
