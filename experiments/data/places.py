"""Places where data sets may be already: a folder that is given, the cache folder, and TFDS."""

import os
from pathlib import Path

import numpy as np

from .images import Bytes
from .shards import damaged_shards


def check_data_dir(data_dir: Path | None) -> None:
    """Raises FileNotFoundError if a folder is given that does not exist."""
    if data_dir is not None and not data_dir.is_dir():
        raise FileNotFoundError(f"data_dir is not an existing folder: {data_dir}")


def cache_folder(name: str) -> Path:
    """Returns the folder for what has been fetched of a data set; it may not exist yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "optax-introspect" / name


def check_complete(where: object, found: list[str], files: list[str]) -> None:
    """Raises FileNotFoundError if a place has only some of the files of a data set."""
    if missing := [name for name in files if name not in found]:
        what = f"{', '.join(found)}, but not {', '.join(missing)}" if found else f"none of {', '.join(files)}"
        raise FileNotFoundError(f"{where} has {what}")


def from_tfds(name: str, classes: int, shapes: list[tuple[int, ...]]) -> tuple[str, list[Bytes]] | None:
    """Reads a data set from TFDS, if that takes neither preparing it nor TensorFlow.

    Args:
      name: of the data set in TFDS.
      classes: how many there are.
      shapes: of the arrays to be returned; grey images have no axis of channels.

    Returns:
      Where the data came from, and the training images, training labels, test images and test labels; or None.

    Raises:
      ValueError: if files are damaged, the arrays have other shapes, or there are other labels.
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
        if damaged := damaged_shards(builder.info.splits[split])[1]:
            raise ValueError(f"{source}: missing or incomplete files {', '.join(damaged)}; {what_to_do}")
    arrays = []
    for split in splits:
        try:
            examples = split.__getitems__(range(len(split)))  # all at once is much faster than one by one
        except RuntimeError as error:
            raise ValueError(f"{source}: cannot be read, {error}; {what_to_do}") from error
        images = np.stack([example["image"] for example in examples])
        labels = np.array([example["label"] for example in examples])
        if wrong := sorted(set(labels[(labels < 0) | (labels >= classes)].tolist())):
            raise ValueError(f"{source}: expected labels from 0 to {classes - 1}, found {wrong}")
        arrays.append(images[..., 0] if images.shape[-1] == 1 else images)
        arrays.append(labels.astype(np.uint8))
    if (found := [array.shape for array in arrays]) != shapes:
        raise ValueError(f"{source}: expected arrays of shapes {shapes}, found {found}")
    return source, arrays
