"""Experiments that train in no time, on few digits."""

import functools

import jax
import numpy as np
from flax import nnx

from experiments import data, networks, runs, training
from experiments._config import Arm, Experiment
from experiments.data import Images
from experiments.runs import Context, TrainingRun


class Dense(nnx.Module):
    """784-8-10 with dropout of the hidden units."""

    def __init__(self, *, rngs):
        self.dense1 = nnx.Linear(784, 8, rngs=rngs)
        self.dense2 = nnx.Linear(8, 10, rngs=rngs)
        self.dropout = nnx.Dropout(0.5)

    def __call__(self, images, key=None):
        x = nnx.relu(self.dense1(images.reshape(images.shape[0], -1)))
        return self.dense2(self.dropout(x, deterministic=key is None, rngs=key))


class Conv(nnx.Module):
    """A convolution with batch norm, and a dense layer."""

    def __init__(self, *, rngs):
        # Without a bias, whose gradient would be nothing but rounding: Adam would make steps of it.
        self.conv1 = nnx.Conv(1, 2, (3, 3), 4, use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(2, rngs=rngs)
        self.dense1 = nnx.Linear(98, 10, rngs=rngs)

    def __call__(self, images, key=None):
        x = nnx.relu(self.norm(self.conv1(images[..., None]), use_running_average=key is None))
        return self.dense1(x.reshape(x.shape[0], -1))


@functools.cache
def digits():
    whole = data.load("digits")
    parts = (whole.train_images[:300], whole.train_labels[:300], whole.test_images[:100], whole.test_labels[:100])
    return Images("digits", "few digits, from nowhere", *parts)


networks.NETWORKS |= {"dense": Dense, "conv": Conv}
ARMS = (
    Arm("plain", "plain", steps=24, seeds=2),
    Arm("introspection", "network", "mnist-n0", (10, 20), steps=24, seeds=2),
)


def experiment(network="dense", **settings):
    defaults = {
        "name": f"tiny-{network}",
        "title": "Tiny",
        "question": "Does it work?",
        "minutes": 1,
        "network": network,
        "optimizer": "adam",
        "learning_rate": 0.01,
        "batch_size": 50,
        "arms": ARMS,
        "every": 4,
        "around": (10, 20),
        "train_examples": 100,
        "data": "digits",
    }
    return Experiment(**(defaults | settings))


def context(workdir, **settings):
    return Context(workdir, lambda name: digits(), **settings)


def runs_of(experiment):
    return [TrainingRun(experiment, arm, 0) for arm in experiment.arms]


def work(network, workdir, checkpoint_seconds=None):
    """Does all runs of an experiment, with a checkpoint as often as can be."""
    if checkpoint_seconds is not None:
        training.CHECKPOINT_SECONDS = checkpoint_seconds
    for run in runs_of(experiment(network)):
        run.complete(context(workdir))


def measured(workdir, experiment):
    """The rows of all complete runs of seed 0, without what differs from run to run."""
    found = {}
    for run in runs_of(experiment):
        result = runs.read_json(run.folder(context(workdir)) / "result.json")
        rows = result["tables"][""]
        found[run.arm.name] = [{k: v for k, v in row.items() if not k.endswith("seconds")} for row in rows]
    return found


def assert_same(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))
