"""Crops and flips of the images of CIFAR-10, and their standardisation."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .images import Bytes
from .pipeline import Augment


@dataclass(frozen=True)
class Augmentation:
    """A way to prepare images, on bytes and in NumPy; the device standardises them.

    Attributes:
      train: from uint8 `[n, 32, 32, channels]` and a random generator to uint8 `[n, size, size, channels]`.
      evaluate: the same without anything random.
    """

    train: Augment
    evaluate: Callable[[Bytes], Bytes]


def standardise(images: Any) -> jax.Array:
    """Returns each image with mean 0 and standard deviation 1, over all its pixels and channels.

    The standard deviation is at least `1/sqrt(n)`, for the `n` values from 0 to 255 of an image, so that an image of
    one colour becomes 0. It is TensorFlow's `per_image_standardization`.

    Args:
      images: `[..., height, width, channels]`, of any real dtype.

    Returns:
      float32, of the same shape.
    """
    values = jnp.asarray(images, jnp.float32)
    axes = (-3, -2, -1)
    differences = values - values.mean(axes, keepdims=True)
    deviation = jnp.sqrt(jnp.square(differences).mean(axes, keepdims=True))
    return differences / jnp.maximum(deviation, np.float32(1 / np.sqrt(np.prod(values.shape[-3:]))))


def crop_and_flip(images: Bytes, generator: np.random.Generator, size: int, padding: int = 0) -> Bytes:
    """Returns a random square of each image; in about half of them, left and right are exchanged."""
    count, height, width, channels = images.shape
    if padding:
        images = np.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    tops = generator.integers(height + 2 * padding - size + 1, size=count)
    lefts = generator.integers(width + 2 * padding - size + 1, size=count)
    flipped = generator.integers(2, size=count, dtype=bool)
    squares = np.lib.stride_tricks.sliding_window_view(images, (size, size, channels), axis=(1, 2, 3))
    crops: Bytes = squares[np.arange(count), tops, lefts, 0]
    crops[flipped] = crops[flipped, :, ::-1]
    return crops


def centre(images: Bytes, size: int) -> Bytes:
    """Returns the central square of each image."""
    top, left = (images.shape[1] - size) // 2, (images.shape[2] - size) // 2
    return images[:, top : top + size, left : left + size]


AUGMENTATIONS: dict[str, Augmentation] = {
    # The network that the paper calls CIFAR_1 is that of TensorFlow's tutorial. That one also changes brightness and
    # contrast, which the paper doesn't name.
    "crop-24": Augmentation(partial(crop_and_flip, size=24), partial(centre, size=24)),
    # For networks on whole images: moved by up to 4 pixels (He et al. 2015, section 4.2), with black where nothing was.
    "pad-4": Augmentation(partial(crop_and_flip, size=32, padding=4), lambda images: images),
}
