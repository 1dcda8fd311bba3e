"""Labelled images, as all data sets give them."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]


class FromSource:
    """Mixin of data sets that say where they came from.

    Attributes:
      source: where the data came from, for people to read.
    """

    source: str

    @property
    def kind(self) -> str:
        """The part of `source` that results depend on: TFDS has an order of its own."""
        return self.source.partition(",")[0]


@dataclass(frozen=True, eq=False)  # arrays cannot be compared by a generated `__eq__`
class Images(FromSource):
    """Labelled images, split into a training and a test set.

    Attributes:
      name: `"mnist"`, `"digits"` or `"cifar10"`.
      source: where the images came from, for people to read.
      train_images: uint8 `[n, height, width]` of grey images (255 is ink), or `[n, height, width, 3]`.
      train_labels: uint8 `[n]`, the class of each image, from 0 on.
      test_images: as `train_images`.
      test_labels: as `train_labels`.
    """

    name: str
    source: str
    train_images: Bytes
    train_labels: Bytes
    test_images: Bytes
    test_labels: Bytes
