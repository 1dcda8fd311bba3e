"""Which part of an image is shown to a network, as a box in the coordinates of the image."""

import math
from typing import Literal

import numpy as np

Box = tuple[float, float, float, float]  # left, top, right, bottom; pixel `i` reaches from `i` to `i + 1`
Augmentation = Literal["resized-crop", "alexnet"]
AUGMENTATIONS: tuple[Augmentation, ...] = ("resized-crop", "alexnet")

_AREA = (0.08, 1.0)
_ASPECT = (3 / 4, 4 / 3)
_TRIES = 10


def random_crop(augmentation: Augmentation, width: int, height: int, image_size: int, rng: np.random.Generator) -> Box:
    """Returns the box of a random crop, to be resized to `image_size` squared.

    Args:
      augmentation: `"resized-crop"` is the one of GoogLeNet: 8 to 100 % of the area, with an aspect ratio between 3/4
        and 4/3. `"alexnet"` is that of AlexNet: the shorter side is resized to 256, the central square is kept, and a
        square of 227 is cut out of it anywhere (both in proportion, for another `image_size` than 227).
      width: of the image.
      height: of the image.
      image_size: what the crop will be resized to.
      rng: decides about the crop.
    """
    if augmentation == "alexnet":
        return _alexnet_crop(width, height, image_size, rng)
    return _resized_crop(width, height, rng)


def central_crop(width: int, height: int, image_size: int) -> Box:
    """Returns the box of the central square that is left of an image resized to 256/224 of `image_size`."""
    shorter = round(image_size * 256 / 224)
    side = min(width, height) * image_size / shorter
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def _resized_crop(width: int, height: int, rng: np.random.Generator) -> Box:
    for _ in range(_TRIES):
        area = width * height * rng.uniform(*_AREA)
        aspect = math.exp(rng.uniform(math.log(_ASPECT[0]), math.log(_ASPECT[1])))
        crop_width, crop_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 1 <= crop_width <= width and 1 <= crop_height <= height:
            left = int(rng.integers(width - crop_width + 1))
            top = int(rng.integers(height - crop_height + 1))
            return left, top, left + crop_width, top + crop_height
    # An image longer than any crop may be: as much of its middle as the aspect ratios allow.
    middle_width = min(width, height * _ASPECT[1])
    middle_height = min(height, width / _ASPECT[0])
    left_rest, top_rest = (width - middle_width) / 2, (height - middle_height) / 2
    return left_rest, top_rest, left_rest + middle_width, top_rest + middle_height


def _alexnet_crop(width: int, height: int, image_size: int, rng: np.random.Generator) -> Box:
    shorter = round(image_size * 256 / 227)
    scale = min(width, height) / shorter  # pixels of the image for one pixel of the resized image
    left = (width - min(width, height)) / 2 + scale * int(rng.integers(shorter - image_size + 1))
    top = (height - min(width, height)) / 2 + scale * int(rng.integers(shorter - image_size + 1))
    return left, top, left + scale * image_size, top + scale * image_size
