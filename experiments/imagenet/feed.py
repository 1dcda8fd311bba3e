"""What a run is fed with: batches of this process's examples, made into batches that lie on all devices."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from .input import evaluation_batches, training_batches
from .mesh import in_shares
from .sources import open_source

# Of this process: `image` uint8 [local, size, size, 3], `label` int32 [local], `weight` float32 [local], and `skipped`
# int32 [], the number of examples that could not be read and were replaced.
Batch = dict[str, Any]


class Batches(Protocol):
    """Batches, one after the other; what makes them ends when they are closed."""

    def __iter__(self) -> Iterator[Batch]: ...

    def __next__(self) -> Batch: ...

    def close(self) -> None:
        """Ends what makes them."""
        ...


class Feed(NamedTuple):
    """The examples of a run, as one of its processes sees them.

    Attributes:
      classes: the number of classes.
      examples: the number of training examples.
      description: where they come from, for people to read.
      training: from the number of a step to the batches from there on, without end.
      validation: makes the batches of the validation split, as many on every process.
    """

    classes: int
    examples: int
    description: str
    training: Callable[[int], Batches]
    validation: Callable[[], Batches]


def imagenet_feed(data: Path, *, image_size: int, augmentation: str, batch_size: int, seed: int, workers: int) -> Feed:
    """Returns what a folder of images, or ImageNet prepared by TensorFlow Datasets, feeds this process with.

    Args:
      data: the folder.
      image_size: the height and width of the images.
      augmentation: how training images are cropped.
      batch_size: examples a step, of all processes together.
      seed: of the order, the crops and the flips.
      workers: processes that decode images for this one; 0 does it in threads.

    Raises:
      ValueError, FileNotFoundError: data that can't be used.
    """
    training, validation = open_source(data, "train"), open_source(data, "val")
    if training.classes != validation.classes:
        raise ValueError(
            f"{data}: the training split has {training.classes} classes, the validation split {validation.classes}"
        )
    share: dict[str, Any] = {
        "image_size": image_size,
        "batch_size": batch_size,
        "process_index": jax.process_index(),
        "process_count": jax.process_count(),
        "workers": workers,
    }
    return Feed(
        classes=training.classes,
        examples=len(training),
        description=f"{training.description}; {validation.description}",
        training=lambda start: training_batches(training, seed=seed, start=start, augmentation=augmentation, **share),
        validation=lambda: evaluation_batches(validation, **share),
    )


def on_mesh(batch: Batch, wishes: Any, mesh: Mesh) -> dict[str, jax.Array]:
    """Returns the batch of all processes, of which each gives its own examples.

    Args:
      batch: of this process.
      wishes: int32 `[n]`, what this process adds to the sum over all processes that the step returns.
      mesh: all devices.
    """
    mine = np.zeros((sum(device.process_index == jax.process_index() for device in mesh.devices.flat), len(wishes)))
    mine[0] = wishes
    arrays = {name: batch[name] for name in ("image", "label", "weight")} | {"wishes": mine.astype(np.int32)}
    sharding = in_shares(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, array) for name, array in arrays.items()}
