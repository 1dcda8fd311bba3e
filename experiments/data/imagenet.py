"""ImageNet as batches: image files from a folder or TensorFlow Datasets, decoded and cropped in a Grain pipeline.

Training examples are an endless stream, one shuffled epoch after the other. Step `n` gets the examples from
`n * batch_size` on, and each process its part of them. Order, crops and flips follow from the seed and the place in the
stream. So the number of processes, devices and threads changes nothing about what a run sees, and the position of the
pipeline, `iterator.get_state()`, is the same on all processes.

An image that can't be decoded is black, and has weight 0: it counts neither in the loss nor in the accuracy.
"""

import io
import math
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import grain
import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from PIL import Image

from .shards import damaged_shards

Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels
Crop = Callable[[int, int], Box]  # from the width and height of an image
Example = dict[str, Any]

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SUFFIXES = (".jpeg", ".jpg", ".png")
SIZES = {"train": 1_281_167, "validation": 50_000}

_TFDS = "imagenet2012"
_IMAGENET_CLASS = re.compile(r"n\d{8}")
_MISSING = 0.001  # share of the images that may be missing: some users remove the few that are broken


class Source(Protocol):
    """Image files with random access: the contents of a file and its label."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any) -> tuple[bytes, int]: ...


class Split(NamedTuple):
    """The images of one split.

    Attributes:
      source: the image files.
      classes: number of classes; labels are from 0 to `classes - 1`.
      description: where they come from.
    """

    source: Source
    classes: int
    description: str


def open_split(data: Path, split: Literal["train", "validation"]) -> Split:
    """Returns one split of ImageNet, or of other images in folders.

    Args:
      data: a folder with `train/CLASS/*.JPEG` and `val/CLASS/*.JPEG` (or .jpg or .png); the class folders, sorted by
        name, are the labels. Or the `data_dir` of TensorFlow Datasets with `imagenet2012` prepared as array_record.
      split: the split.

    Raises:
      FileNotFoundError: there is no data.
      ValueError: the data is not complete.
    """
    if not data.is_dir():
        raise FileNotFoundError(f"data must be a folder; got {data}")
    folders = {"train": data / "train", "validation": data / "val"}
    missing = [folder.name for folder in folders.values() if not folder.is_dir()]
    if not missing:
        return _open_folder(folders, split)
    if (data / _TFDS).is_dir():
        return _open_tfds(data, split)
    raise FileNotFoundError(
        f"data must be a folder with {_TFDS}, prepared by TensorFlow Datasets, or with train and val; {data} has no "
        f"{_TFDS} and no {' and no '.join(missing)}"
    )


def training_batches(
    split: Split,
    *,
    image_size: int,
    batch_size: int,
    seed: int,
    crop: str = "resized",
    process: int = 0,
    processes: int = 1,
    threads: int = 16,
) -> grain.IterDataset:
    """Returns the batches of one process, shuffled and without end.

    Args:
      split: the images.
      image_size: side of the images.
      batch_size: examples of a step on all processes, which divide it.
      seed: seed of the order, the crops and the flips.
      crop: `"resized"` cuts 8 to 100 % of the area with an aspect ratio from 3/4 to 4/3, as GoogLeNet; `"alexnet"`
        cuts a square of 227/256 of the shorter side out of the central square.
      process: index of this process.
      processes: number of processes.
      threads: number of threads that decode images.

    Returns:
      Batches with `image` uint8 `[batch_size / processes, image_size, image_size, 3]`, `label` int32 and `weight`
      float32 `[batch_size / processes]`.
    """
    random_crop = {"resized": _resized_crop, "alexnet": _alexnet_crop}[crop]

    def load(file: tuple[bytes, int], rng: np.random.Generator) -> Example:
        flip = rng.random() < 0.5
        example = _example(file, lambda width, height: random_crop(width, height, rng), image_size)
        return example | {"image": example["image"][:, ::-1]} if flip else example

    examples = grain.MapDataset.source(split.source).seed(seed).shuffle().repeat().random_map(load)
    return _batches(examples, sys.maxsize, batch_size, process, processes, threads)


def evaluation_batches(
    split: Split, *, image_size: int, batch_size: int, process: int = 0, processes: int = 1, threads: int = 16
) -> grain.IterDataset:
    """Returns the batches of one process once over the split; all processes have as many.

    The images are the central crops of images 256/224 as large. The last batch is filled up with images of weight 0.
    Arguments and batches are those of `training_batches`.
    """

    def central_crop(width: int, height: int) -> Box:
        side = min(width, height) * image_size / round(image_size * 256 / 224)
        left, top = (width - side) / 2, (height - side) / 2
        return left, top, left + side, top + side

    examples = grain.MapDataset.source(split.source).map(lambda file: _example(file, central_crop, image_size))
    return _batches(examples, len(split.source), batch_size, process, processes, threads)


def normalize(images: jax.Array) -> jax.Array:
    """Returns uint8 images as float32 with the mean and standard deviation of ImageNet's channels taken out."""
    return (images.astype(jnp.float32) / 255 - jnp.array(MEAN)) / jnp.array(STD)


def _batches(
    examples: grain.MapDataset, size: int, batch_size: int, process: int, processes: int, threads: int
) -> grain.IterDataset:
    own = batch_size // processes
    steps = size // batch_size if size == sys.maxsize else math.ceil(size / batch_size)

    def example(index: int) -> Example:
        step, place = divmod(index, own)
        index = step * batch_size + process * own + place
        if index < size:
            found: Example = examples[index]
            return found
        return {name: np.zeros_like(array) for name, array in examples[0].items()}

    # Whole batches are the elements that threads make, so that the position of the pipeline is the step.
    batches = grain.MapDataset.range(steps * own).map(example).batch(own)
    return batches.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads))


def _example(file: tuple[bytes, int], crop: Crop, image_size: int) -> Example:
    content, label = file
    image = decode(content, crop, image_size)
    black = np.zeros((image_size, image_size, 3), np.uint8)
    return {
        "image": black if image is None else image,
        "label": np.int32(label),
        "weight": np.float32(image is not None),
    }


def decode(content: bytes, crop: Crop, image_size: int) -> npt.NDArray[np.uint8] | None:
    """Returns a part of an image as RGB, resized with antialiasing.

    Args:
      content: a JPEG (RGB, grey or CMYK) or PNG file (also with a palette, 16 bits or an alpha channel, which is
        dropped), whatever its name.
      crop: function from the width and height of the image to the part wanted.
      image_size: side of the result.

    Returns:
      uint8 `[image_size, image_size, 3]`, or None if the file is empty, truncated, corrupt or of another format.
    """
    try:
        with Image.open(io.BytesIO(content), formats=("JPEG", "PNG")) as image:
            box = crop(*image.size)
            # A JPEG at least twice too large is decoded smaller: no pixel moves by more than 1 of 255 on average.
            ratio = min(box[2] - box[0], box[3] - box[1]) / image_size
            divisor = next((divisor for divisor in (8, 4, 2) if ratio >= 2 * divisor), 1)
            if divisor > 1 and image.draft(None, (image.width // divisor, image.height // divisor)) is not None:
                box = (box[0] / divisor, box[1] / divisor, box[2] / divisor, box[3] / divisor)
            return np.asarray(_rgb(image).resize((image_size, image_size), Image.Resampling.BILINEAR, box))
    except MemoryError:
        raise
    except Exception:  # Pillow raises a dozen kinds of errors for broken files
        return None


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "I;16":  # which `convert` clips instead of scaling
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image.convert("RGB")


def _resized_crop(width: int, height: int, rng: np.random.Generator) -> Box:
    for _ in range(10):
        area = width * height * rng.uniform(0.08, 1)
        aspect = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        side, other = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 1 <= side <= width and 1 <= other <= height:
            left, top = int(rng.integers(width - side + 1)), int(rng.integers(height - other + 1))
            return left, top, left + side, top + other
    # An image longer than any crop may be: as much of its middle as the aspect ratios allow.
    dx, dy = max(0, width - height * 4 / 3) / 2, max(0, height - width * 4 / 3) / 2
    return dx, dy, width - dx, height - dy


def _alexnet_crop(width: int, height: int, rng: np.random.Generator) -> Box:
    shorter = min(width, height)
    left = (width - shorter) / 2 + shorter / 256 * int(rng.integers(256 - 227 + 1))
    top = (height - shorter) / 2 + shorter / 256 * int(rng.integers(256 - 227 + 1))
    return left, top, left + shorter * 227 / 256, top + shorter * 227 / 256


class _Folder:
    """The image files of class folders."""

    def __init__(self, folder: Path, classes: list[str]):
        files: list[bytes] = []
        labels: list[int] = []
        for label, name in enumerate(classes):
            images = sorted(map(os.fsencode, _images(folder / name)))
            if not images:
                raise ValueError(f"data must have images in each class folder; {folder / name} has none")
            files += images
            labels += [label] * len(images)
        self._folder, self._classes = folder, classes
        # As arrays, since a million Python strings take ten times the memory.
        self._files, self._labels = np.array(files), np.array(labels, np.int32)

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: Any) -> tuple[bytes, int]:
        label = int(self._labels[index])
        path = self._folder / self._classes[label] / os.fsdecode(self._files[index])
        try:
            return path.read_bytes(), label
        except OSError:  # as a file that can't be decoded
            return b"", label


def _open_folder(folders: dict[str, Path], split: str) -> Split:
    classes = {name: sorted(_subfolders(folder)) for name, folder in folders.items()}
    for name, folder in folders.items():
        if not classes[name]:
            raise ValueError(
                f"data must have a folder for each class; {folder} has none ({len(list(_images(folder)))} images "
                "lie directly in it)"
            )
    if differ := set(classes["train"]) ^ set(classes["validation"]):
        raise ValueError(
            f"data must have the same classes in train and val; {folders['train'].parent} differs in "
            f"{len(differ)}: {_few(differ)}"
        )
    source = _Folder(folders[split], classes[split])
    whole = len(classes[split]) == 1000 and all(map(_IMAGENET_CLASS.fullmatch, classes[split]))
    if whole and len(source) < SIZES[split] * (1 - _MISSING):
        raise ValueError(
            f"data must have all {SIZES[split]} images of ImageNet if it has its 1000 classes; {folders[split]} has "
            f"{len(source)}"
        )
    count = len(classes[split])
    return Split(source, count, f"{len(source)} images of {count} classes in {folders[split]}")


class _Tfds:
    """A data source of TensorFlow Datasets."""

    def __init__(self, examples: Any):
        self._examples = examples

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: Any) -> tuple[bytes, int]:
        example = self._examples[index]
        return example["image"], int(example["label"])


def _open_tfds(data: Path, split: str) -> Split:
    import tensorflow_datasets as tfds  # slow to import

    try:
        builder = tfds.builder(_TFDS, data_dir=data, file_format="array_record")
        examples = tfds.data_source(
            _TFDS,
            split=split,
            data_dir=data,
            download=False,
            decoders={"image": tfds.decode.SkipDecoding()},
            builder_kwargs={"file_format": "array_record"},
        )
    except Exception as error:  # a dozen kinds
        raise ValueError(f"data must have {_TFDS} prepared as array_record; {data / _TFDS}: {error}") from error
    damaged = damaged_shards(builder.info.splits[split])
    if damaged or len(examples) != SIZES[split]:
        raise ValueError(
            f"data must have all {SIZES[split]} images of {_TFDS}; {data / _TFDS} has {len(examples)} in {split}; "
            f"missing or incomplete files: {_few(damaged) or 'none'}"
        )
    count = builder.info.features["label"].num_classes
    return Split(_Tfds(examples), count, f"{_TFDS} {builder.version} of TensorFlow Datasets, {split}, in {data}")


def _subfolders(folder: Path) -> Iterator[str]:
    return (entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))


def _images(folder: Path) -> Iterator[str]:
    names = (entry.name for entry in os.scandir(folder))
    return (name for name in names if name.lower().endswith(SUFFIXES) and not name.startswith("."))


def _few(names: Any) -> str:
    ordered = sorted(names)
    return ", ".join(ordered[:5]) + (f" and {len(ordered) - 5} more" if len(ordered) > 5 else "")
