"""A network and a feed as small as can be, for the trainer of ImageNet."""

from pathlib import Path

import numpy as np
from flax import nnx

from experiments.imagenet.feed import Feed
from experiments.imagenet.optimizers import optimizer
from experiments.imagenet.options import resolve
from experiments.imagenet.records import Arm, ImageNetTraining, Rate, Sgd
from experiments.imagenet.steps import Programs

CLASSES, SIZE, EXAMPLES = 10, 8, 80
RATE = Rate(0.02, 0.5, 10, "steps")


class Tiny(nnx.Module):
    """192 x 96 x classes, with all that the trainer has to provide for: batch norm, dropout, two auxiliary heads."""

    def __init__(self, classes, *, image_size, dtype, rngs):
        self.dense = nnx.Linear(image_size**2 * 3, 96, dtype=dtype, rngs=rngs)
        self.norm = nnx.BatchNorm(96, momentum=0.9, dtype=dtype, rngs=rngs)
        self.dropout = nnx.Dropout(0.1)
        self.head = nnx.Linear(96, classes, dtype=dtype, rngs=rngs)
        self.auxiliary = nnx.Linear(96, classes, dtype=dtype, rngs=rngs)

    def __call__(self, images, key=None):
        x = self.dense(images.reshape(images.shape[0], -1))
        x = nnx.relu(self.norm(x, use_running_average=key is None))
        x = self.dropout(x, deterministic=key is None, rngs=key)
        logits = self.head(x).astype(np.float32)
        if key is None:
            return logits
        auxiliary = self.auxiliary(x).astype(np.float32)
        return logits, auxiliary, auxiliary


def record(**changes) -> ImageNetTraining:
    settings = {
        "name": "tiny",
        "question": "Does it train?",
        "network": "Tiny",
        "image_size": SIZE,
        "augmentation": "resized-crop",
        "optimizer": Sgd(RATE, momentum=0.9),
        "batch_size": 8,
        "steps": 12,
        "arms": (Arm("plain"), Arm("two-point", "two-point-1.3", (5, 8)), Arm("network", "introspection", (5, 8))),
        "every": 6,
        "report_every": 1,
    }
    return ImageNetTraining(**(settings | changes))


def options(the_record=None, **changes):
    return resolve(the_record or record(), **changes)


def examples():
    """Returns images and labels that can be told apart."""
    rng = np.random.default_rng(0)
    labels = np.arange(EXAMPLES) % CLASSES
    patterns = rng.integers(0, 256, (CLASSES, SIZE, SIZE, 3))
    noise = rng.integers(-40, 41, (EXAMPLES, SIZE, SIZE, 3))
    return np.clip(patterns[labels] + noise, 0, 255).astype(np.uint8), labels.astype(np.int32)


def feed(batch_size=8, process=0, processes=1, **changes) -> Feed:
    """Returns what a process gets of the examples, in their order, again and again."""
    images, labels = examples()
    local = batch_size // processes

    def batch(number):
        begin = number * batch_size + process * local
        chosen = np.arange(begin, begin + local)
        return {
            "image": images[chosen % EXAMPLES],
            "label": labels[chosen % EXAMPLES],
            "weight": np.ones(local, np.float32),
            "skipped": np.array(number == 3 and process == 0, np.int32),
        }

    def training(start):
        while True:
            yield batch(start)
            start += 1

    def validation():
        yield from map(batch, range(EXAMPLES // batch_size))

    return Feed(CLASSES, EXAMPLES, "synthetic images", training, validation)._replace(**changes)


def programs(mesh, chosen, **changes) -> Programs:
    """Returns the programs of a run, as `fit` makes them."""
    forecaster = chosen.forecaster(Path())
    tx = optimizer(chosen.record.optimizer, 10, chosen.arm.jump_steps, forecaster)
    return Programs(chosen.record.network, CLASSES, SIZE, tx, mesh, seed=chosen.seed, **changes)
