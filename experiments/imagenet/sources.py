"""Where the images of ImageNet come from: a folder of image files, or TFDS."""

import os
import re
from pathlib import Path
from typing import Any, Literal, Protocol, TypedDict

import numpy as np

from ..data.shards import damaged_shards

Split = Literal["train", "val"]

SUFFIXES = (".jpeg", ".jpg", ".png")  # in small or capital letters
CLASSES_FILE = "classes.txt"

# The names of the splits in TFDS, and how many examples they have, in TFDS and in folders alike.
_TFDS_SPLITS = {"train": ("train", 1_281_167), "val": ("validation", 50_000)}
_TFDS_NAME = "imagenet2012"
_CLASS_OF_IMAGENET = re.compile(r"n\d{8}")  # what folders of its 1000 classes are called
_MISSING = 0.001  # the share of the images that may be missing: some leave out the few that are broken
_NAMED = 5  # how many folders or files a message names


class Example(TypedDict):
    """One image file.

    Attributes:
      image: its content, not decoded.
      label: its class, from 0 on.
      name: for messages.
    """

    image: bytes
    label: int
    name: str


class Source(Protocol):
    """Examples with random access; must survive pickling, for worker processes.

    Attributes:
      classes: the number of classes.
      description: what it is, for people to read.
    """

    classes: int
    description: str

    def __len__(self) -> int: ...

    def __getitem__(self, number: int) -> Example: ...


def open_source(data: Path, split: Split) -> Source:
    """Returns the examples of one split of ImageNet.

    Args:
      data: a folder with `train/CLASS/*.JPEG` and `val/CLASS/*.JPEG` (or .jpg or .png). The class folders, sorted by
        name, are the classes from 0 on; if there is a file `classes.txt`, its lines are, and classes may lack a
        folder. Of 1000 classes that are called as those of ImageNet, no folder and hardly any image may be missing.
        Or the `data_dir` of TFDS, with `imagenet2012` prepared there as array_record.
      split: `"train"` or `"val"`.

    Raises:
      FileNotFoundError: if the folder, or something in it, is missing.
      ValueError: if what is in it does not fit together, or `split` is another one.
    """
    if split not in _TFDS_SPLITS:
        raise ValueError(f"split must be one of {', '.join(_TFDS_SPLITS)}, got {split!r}")
    if not data.is_dir():
        raise FileNotFoundError(f"data is not an existing folder: {data}")
    found = [name for name in _TFDS_SPLITS if (data / name).is_dir()]
    if len(found) == 1:
        (missing,) = set(_TFDS_SPLITS) - set(found)
        raise FileNotFoundError(f"{data} has a folder {found[0]}, but none called {missing}")
    if found:
        return FolderSource(data, split)
    if (data / _TFDS_NAME).is_dir():
        return TfdsSource(data, split)
    raise FileNotFoundError(
        f"{data} has neither the folders train and val, with a folder of images for each class, nor a folder "
        f"{_TFDS_NAME} made by TFDS; it has {_some(entry.name for entry in data.iterdir()) or 'nothing'}"
    )


class FolderSource:
    """The image files of one split in a folder; see `open_source`."""

    def __init__(self, data: Path, split: Split) -> None:
        self._folder, self._classes = data / split, _class_names(data)
        self.classes = len(self._classes)
        # A million Python strings would take ten times the memory, once more in every worker.
        self._files, self._labels = _list_images(self._folder, self._classes)
        _check_whole(self._folder, split, self._classes, len(self._files))
        self.description = f"{len(self)} images of {self.classes} classes in {self._folder}"

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, number: int) -> Example:
        label = int(self._labels[number])
        path = self._folder / self._classes[label] / os.fsdecode(self._files[number])
        return {"image": path.read_bytes(), "label": label, "name": str(path)}


class TfdsSource:
    """One split of `imagenet2012` as prepared by TFDS; needs no TensorFlow."""

    def __init__(self, data: Path, split: Split) -> None:
        import tensorflow_datasets as tfds  # slow to import

        folder = _newest_version(data / _TFDS_NAME)
        builder = tfds.builder_from_directory(folder)
        name, expected = _TFDS_SPLITS[split]
        self.description = f"TFDS {_TFDS_NAME} {builder.version}, split {name}, in {folder}"
        if name not in builder.info.splits:
            raise ValueError(f"{self.description}: expected {expected} examples, found no such split")
        self.classes: int = builder.info.features["label"].num_classes
        try:
            self._examples: Any = builder.as_data_source(name, decoders={"image": tfds.decode.SkipDecoding()})
        except NotImplementedError as error:
            raise ValueError(
                f"{self.description}: prepared as {builder.info.file_format.value}, which has no random access; "
                "prepare it with file_format='array_record'"
            ) from error
        found, damaged = damaged_shards(builder.info.splits[name])
        if damaged or found != expected:
            raise ValueError(
                f"{self.description}: expected {expected} examples, found {found}; "
                f"missing or incomplete files: {_some(damaged) or 'none'}"
            )

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, number: int) -> Example:
        try:
            example = self._examples[number]
        except RuntimeError as error:  # a block of the file is broken, or the file has gone
            raise OSError(f"{self.description}, example {number}: {error}") from error
        return {"image": example["image"], "label": int(example["label"]), "name": example["file_name"].decode()}


def _class_names(data: Path) -> list[str]:
    """Returns the names of the class folders in the order of their labels, checked for both splits."""
    found = {split: _folders(data / split) for split in _TFDS_SPLITS}
    for split, folders in found.items():
        if not folders:
            images = len(_image_names(data / split))
            raise ValueError(f"{data / split} has no class folders ({images} images lie directly in it)")
    listed = data / CLASSES_FILE
    if not listed.exists():
        train, val = found["train"], found["val"]
        if train != val:
            raise ValueError(
                f"{data}: train and val have different class folders; "
                f"only in train: {_some(set(train) - set(val)) or 'none'}; "
                f"only in val: {_some(set(val) - set(train)) or 'none'}"
            )
        return train
    names = [line.strip() for line in listed.read_text(encoding="utf-8").splitlines() if line.strip()]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"{listed}: classes listed twice: {_some(twice)}")
    for split, folders in found.items():
        if unknown := set(folders) - set(names):
            raise ValueError(f"{data / split} has class folders that {listed} does not list: {_some(unknown)}")
    return names


def _list_images(folder: Path, classes: list[str]) -> tuple[Any, Any]:
    """Returns the file names, as encoded by the file system, and labels of all images."""
    files: list[bytes] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        if not (folder / name).is_dir():  # which `classes.txt` allows
            continue
        images = sorted(os.fsencode(image) for image in _image_names(folder / name))
        if not images:
            raise ValueError(f"the class folder {folder / name} has no images ({', '.join(SUFFIXES)})")
        files += images
        labels += [label] * len(images)
    return np.array(files), np.array(labels, np.int32)


def _check_whole(folder: Path, split: Split, classes: list[str], found: int) -> None:
    """Raises a ValueError if a folder is that of ImageNet, and some of it is missing, as after half a download."""
    if len(classes) != 1000 or not all(map(_CLASS_OF_IMAGENET.fullmatch, classes)):
        return
    _, expected = _TFDS_SPLITS[split]
    missing = set(classes) - set(_folders(folder))
    if missing or found < expected * (1 - _MISSING):
        raise ValueError(
            f"{folder}: expected the {expected} images of ImageNet, found {found}; "
            f"classes without a folder: {_some(missing) or 'none'}. If a part of it is wanted, its class folders must "
            "be called otherwise"
        )


def _folders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))


def _image_names(folder: Path) -> list[str]:
    names = [entry.name for entry in os.scandir(folder)]
    return [name for name in names if name.lower().endswith(SUFFIXES) and not name.startswith(".")]


def _newest_version(folder: Path) -> Path:
    """Returns the folder of the newest version that TFDS has finished to prepare."""
    entries = list(folder.iterdir())
    versions = {
        tuple(map(int, entry.name.split("."))): entry
        for entry in entries
        if re.fullmatch(r"\d+\.\d+\.\d+", entry.name) and (entry / "dataset_info.json").is_file()
    }
    if not versions:
        raise FileNotFoundError(
            f"{folder}: expected a folder VERSION with a dataset_info.json, as TFDS makes it when it has prepared "
            f"everything; found {_some(entry.name for entry in entries) or 'nothing'}"
        )
    return versions[max(versions)]


def _some(names: Any) -> str:
    """Returns the first few of the names in words."""
    names = sorted(names)
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
