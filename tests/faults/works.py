"""Work that can be killed at any moment and goes on: what each does, and what is taken for whole of it on the disk."""

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

import optax_introspect
from experiments import fits, recording, runner, runs
from experiments.fits import FITS, Fits, FitUnit
from experiments.networks import NETWORKS
from optax_introspect import Examples, WeightHistory
from tests.experiments import tiny

# The function of the same name hides the module.
fit_module = sys.modules["optax_introspect.fit"]

POINTS = (1.0, 0.7, 0.4, 0.0)
Found = dict[str, str]


class Work(NamedTuple):
    """Something that a process does in a folder, from the start or from where another left it.

    `found` returns everything that a reader takes for whole, by name, as digests: part of what there is in the end.
    """

    name: str
    do: Callable[[Path], None]
    found: Callable[[Path], Found]


def digest(*parts: Any) -> str:
    """Returns what tells weights from others that differ in any bit."""
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(parts):
        array = np.asarray(leaf)
        found.update(f"{array.dtype}{array.shape}".encode() + np.ascontiguousarray(array).tobytes())
    return found.hexdigest()[:16]


# Recording: large steps, one after another, so that most of the time is spent in writing.

STEPS = 30


def weights_at(step: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(step)
    return {
        "kernel": random.normal(size=(300, 400)).astype(np.float32),
        "embedding": random.normal(size=(1100, 1000)).astype(np.float32),  # in two chunks
        "scale": np.float32(step),
    }


def record_history(folder: Path) -> None:
    with WeightHistory.record(folder / "history", weights_at(0), metadata={"seed": 0}) as history:
        done = history.steps.tolist()
        for step in range(done[-1] + 1 if done else 0, STEPS):
            history.append(step, weights_at(step))


def history_found(folder: Path) -> Found:
    if not (folder / "steps.jsonl").exists():
        return {}  # not begun
    history = WeightHistory.open(folder)
    return {f"step {step}": digest(history.tree(step)) for step in history.steps.tolist()}


# Fitting: a checkpoint after every few steps, and then the predictor.


def examples() -> Examples:
    random = np.random.default_rng(0)
    weights = (0.05 * random.normal(size=(2000, 5)).cumsum(axis=1)).astype(np.float32)
    return Examples(weights[:, :4], weights[:, 4], np.arange(2000), np.full(2000, 100), POINTS, 2.0)


def fit_a_predictor(folder: Path) -> None:
    fit_module._BLOCK, fit_module._CHECKPOINT_EVERY = 20, 1
    fitted = optax_introspect.fit(examples(), num_steps=240, workdir=folder / "fit", progress=False)
    if not (folder / "predictor").exists():
        optax_introspect.save(fitted.forecaster, folder / "predictor")


def predictor_found(folder: Path) -> Found:
    if not folder.exists():
        return {}
    predictor = optax_introspect.load(folder)
    return {"predictor": digest(nnx.state(predictor.network), predictor.scale)}


# The experiment that fits predictors: trains and records a network, samples, fits, saves, and measures.

UNIT = FitUnit(Fits(), "lecun", (FITS[0],))


def run_the_fits(folder: Path) -> None:
    fits.STEPS, fits.RECORD_EVERY, fits.NUM_EXAMPLES, fits.FIT_STEPS = 60, 2, 2000, 200
    fits.ConvNet = tiny.SMALL_MLP
    recording.CHECKPOINT_EVERY = 6
    UNIT.run(tiny.context(folder))


def fits_found(folder: Path) -> Found:
    history = folder / ".working" / "predictors" / "lecun" / "seed-0" / "history"
    return results_found(folder) | history_found(history) | predictor_found(folder / "predictors" / "l1" / "predictor")


def results_found(folder: Path) -> Found:
    """Returns the complete runs, without their clocks."""
    found = {}
    for path in sorted(folder.glob("*/*/seed-*.jsonl")):
        run = runs.read(path)
        lines = [{key: line[key] for key in line if not key.endswith("seconds")} for line in run.lines]
        found[str(path.relative_to(folder))] = hashlib.sha256(json.dumps([lines, run.end]).encode()).hexdigest()[:16]
    return found


# Training with checkpoints: an arm without jumps, and one that branches from it.

EXPERIMENT = tiny.training(
    tiny.arm("plain"), tiny.arm("two-point", "two-point-1.3", (10, 16)), every=6, after_jump=(1,)
)


def train(folder: Path) -> None:
    NETWORKS.update(tiny.TINY_NETWORKS)
    runner.CHECKPOINT_SECONDS = -1.0  # a checkpoint at each evaluation
    measure = runner._Trainer._measure

    def measured(self: Any, state: Any, journal: Any) -> bool:
        """Writes down a digest of all weights, moments and snapshots, too."""

        class WithDigest:
            @staticmethod
            def write(line: runs.Line) -> None:
                journal.write(line | {"digest": digest(state.trained)})

        return measure(self, state, WithDigest)

    runner._Trainer._measure = measured
    tiny.unit(EXPERIMENT).run(tiny.context(folder))


WORKS = {
    "record": Work("recording a history", record_history, lambda folder: history_found(folder / "history")),
    "fit": Work("fitting, with checkpoints", fit_a_predictor, lambda folder: predictor_found(folder / "predictor")),
    "fits": Work("the experiment that fits predictors", run_the_fits, fits_found),
    "train": Work("training with checkpoints", train, results_found),
}
