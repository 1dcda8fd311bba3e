"""What is done to the images of CIFAR-10 before a network sees them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np

from .images import Bytes, Images
from .pipeline import Augment, batches_of

_SIZE = 32  # of the images of CIFAR-10


@dataclass(frozen=True)
class Augmentation:
    """A way to prepare images, for training and for evaluation.

    Random things and cropping are done in NumPy, on bytes, which are small to hand over; the arithmetic is left to the
    device.

    Attributes:
      image_size: height and width of the images that a network gets.
      augmented: for training: from uint8 `[n, 32, 32, channels]` and a random generator to uint8
        `[n, image_size, image_size, channels]`.
      evaluated: for evaluation: the same, but nothing is random.
    """

    image_size: int
    augmented: Augment
    evaluated: Callable[[Bytes], Bytes]

    def batches(self, images: Images, batch_size: int, seed: int) -> grain.MapDataset[tuple[Bytes, Bytes]]:
        """Returns `training_batches` with this augmentation."""
        if (shape := images.train_images.shape)[1:3] != (_SIZE, _SIZE) or len(shape) != 4:
            raise ValueError(f"images must be of shape [n, {_SIZE}, {_SIZE}, channels], found {list(shape)}")
        return batches_of(images, batch_size, seed, self.augmented)

    def prepared(self, images: Any) -> jax.Array:
        """Returns what a network gets for the images that `augmented` or `evaluated` gave."""
        return standardise(images)


def training_batches(
    images: Images, batch_size: int, seed: int, augmentation: str = "crop-24"
) -> grain.MapDataset[tuple[Bytes, Bytes]]:
    """Returns the batches of a training without end, where `batches[step]` is that of a step.

    Every epoch is a new permutation of the training images, and its incomplete last batch is left out. Crops and flips
    follow from `seed` and `step` alone, as the permutations do: the number of the step is the whole position in the
    pipeline, and is part of any checkpoint that has it.

    Args:
      images: with a training set `[n, 32, 32, channels]`.
      batch_size: images in a batch.
      seed: of permutations, crops and flips.
      augmentation: a key of `AUGMENTATIONS`.

    Returns:
      A `grain.MapDataset` of tuples: uint8 images `[batch_size, image_size, image_size, channels]`, to be given to
      `standardise` on the device, and uint8 labels `[batch_size]`.

    Raises:
      ValueError: if there is no such augmentation, the images have another size, there are fewer than `batch_size`, or
        `batch_size` or `seed` are not valid.

    Examples:
      >>> images = np.zeros((10, 32, 32, 3), np.uint8), np.zeros(10, np.uint8)
      >>> batches = training_batches(Images("cifar10", "zeros", *images, *images), batch_size=4, seed=0)
      >>> batches[1000][0].shape
      (4, 24, 24, 3)
    """
    if augmentation not in AUGMENTATIONS:
        raise ValueError(f"augmentation must be one of {', '.join(AUGMENTATIONS)}, got {augmentation!r}")
    return AUGMENTATIONS[augmentation].batches(images, batch_size, seed)


def standardise(images: Any) -> jax.Array:
    """Returns each image with mean 0 and standard deviation 1, over all its pixels and channels.

    The standard deviation that is divided by is at least `1/sqrt(n)`, for the `n` values from 0 to 255 of an image. An
    image of one colour becomes 0. It is what TensorFlow's `per_image_standardization` does to such values.

    Args:
      images: `[..., height, width, channels]`, of any real dtype.

    Returns:
      float32, of the same shape.
    """
    values = jnp.asarray(images, jnp.float32)
    axes = (-3, -2, -1)
    differences = values - values.mean(axes, keepdims=True)
    deviation = jnp.sqrt(jnp.square(differences).mean(axes, keepdims=True))
    count = np.prod(values.shape[-3:])
    return differences / jnp.maximum(deviation, np.float32(1 / np.sqrt(count)))


def _cropped_and_flipped(images: Bytes, generator: np.random.Generator, size: int, padding: int = 0) -> Bytes:
    """Returns a random square of each image; in about half of them, left and right are exchanged."""
    count, height, width, channels = images.shape
    if padding:
        sides = (padding, padding)
        images = np.pad(images, ((0, 0), sides, sides, (0, 0)))
    tops = generator.integers(height + 2 * padding - size + 1, size=count)
    lefts = generator.integers(width + 2 * padding - size + 1, size=count)
    flipped = generator.integers(2, size=count, dtype=bool)
    squares = np.lib.stride_tricks.sliding_window_view(images, (size, size, channels), axis=(1, 2, 3))
    crops: Bytes = squares[np.arange(count), tops, lefts, 0]
    crops[flipped] = crops[flipped, :, ::-1]
    return crops


def _centre(images: Bytes, size: int) -> Bytes:
    top, left = (images.shape[1] - size) // 2, (images.shape[2] - size) // 2
    return images[:, top : top + size, left : left + size]


AUGMENTATIONS: dict[str, Augmentation] = {
    "none": Augmentation(_SIZE, lambda images, generator: images, lambda images: images),
    # The network that the paper calls CIFAR_1 is that of TensorFlow's tutorial. That one also changes brightness and
    # contrast, which the paper doesn't name.
    "crop-24": Augmentation(24, partial(_cropped_and_flipped, size=24), partial(_centre, size=24)),
    # For networks on whole images: moved by up to 4 pixels (He et al. 2015, section 4.2), with black where nothing was.
    "pad-4": Augmentation(_SIZE, partial(_cropped_and_flipped, size=_SIZE, padding=4), lambda images: images),
}
