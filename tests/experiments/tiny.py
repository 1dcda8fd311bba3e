"""What the tests of the experiments share: digits, networks that train in no time, and experiments with them."""

import functools
import json

import jax
import numpy as np
from flax import nnx

from experiments import runner
from experiments.data import load_digits
from experiments.networks import Mlp
from experiments.records import Arm, Training


class DropoutMlp(nnx.Module):
    """784-12-10, of which half of the hidden units are dropped."""

    def __init__(self, *, rngs):
        self.dense1 = nnx.Linear(784, 12, rngs=rngs)
        self.dense2 = nnx.Linear(12, 10, rngs=rngs)
        self.dropout = nnx.Dropout(0.5)

    def __call__(self, images, key=None):
        x = nnx.relu(self.dense1(images.reshape(images.shape[0], -1)))
        return self.dense2(self.dropout(x, deterministic=key is None, rngs=key))


class BatchNormMlp(nnx.Module):
    """784-12-10, with batch norm before the ReLU."""

    def __init__(self, *, rngs):
        self.dense1 = nnx.Linear(784, 12, rngs=rngs)
        self.norm = nnx.BatchNorm(12, rngs=rngs)
        self.dense2 = nnx.Linear(12, 10, rngs=rngs)

    def __call__(self, images, key=None):
        x = self.norm(self.dense1(images.reshape(images.shape[0], -1)), use_running_average=key is None)
        return self.dense2(nnx.relu(x))


SMALL_MLP = functools.partial(
    Mlp, (784, 8, 10), nnx.initializers.lecun_normal(), nnx.initializers.zeros
)  # its initial weights can be learned from in 20 steps
TINY_NETWORKS = {"tiny": SMALL_MLP, "tiny-dropout": DropoutMlp, "tiny-batch-norm": BatchNormMlp}


@functools.cache
def digits():
    return load_digits()


def arm(name, forecaster=None, jump_steps=(), *, steps=24, seeds=(0,), **settings):
    defaults = {"leaves": "all", "rate": 1.0, "decay": "none", "averaging": None}
    return Arm(name, forecaster, jump_steps, steps=steps, seeds=seeds, **(defaults | settings))


def training(*arms, name="tiny", **settings):
    defaults = {
        "question": "Does it work?",
        "network": "tiny",
        "optimizer": "adam",
        "learning_rate": 0.01,
        "batch_size": 50,
        "every": 4,
        "minutes": 1,
        "train_examples": 100,
    }
    return Training(name, arms=arms, **(defaults | settings))


def context(workdir, **settings):
    return runner.Context(workdir, lambda name: digits(), **settings)


def unit(experiment, *names, seed=0):
    """The unit of the first arm, and of those of these names (by default all) that branch from it."""
    trunk = experiment.arms[0]
    branches = [a for a in experiment.arms if a.jump_steps and (not names or a.name in names)]
    return runner.Unit(experiment, seed, trunk, tuple(branches))


def files(workdir):
    """All complete runs by experiment, arm and seed, parsed, without what differs from run to run."""
    found = {}
    for path in sorted(workdir.glob("*/*/*.jsonl")):
        lines = [json.loads(line, parse_constant=_no_constants) for line in path.read_text().splitlines()]
        found["/".join(path.with_suffix("").parts[-3:])] = [
            {name: value for name, value in line.items() if not name.endswith("seconds")} for line in lines
        ]
    return found


def _no_constants(constant):
    raise AssertionError(f"{constant} is no JSON")


def leaves(tree):
    return [np.array(leaf) for leaf in jax.tree.leaves(tree)]


def assert_same(a, b):
    for x, y in zip(leaves(a), leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)
