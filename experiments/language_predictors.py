"""Predictors for jumps at even intervals, fitted to the weights of a language model that learned another text."""

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

import optax_introspect as oi
from optax_introspect import Examples, WeightHistory

from .language_task import BATCH_SIZE, WIDTH, TextTask
from .optimizers import FITTED, adamw, forecaster
from .runs import Context, Run, Tables, locked
from .studies import Predictors, record

# Periods from a jump to the target, and whether the target is the average of the weights of the last of them.
TARGETS = {"next": (1, False), "fourth": (4, False), "average": (1, True)}
STEPS, RATE, RECORD_EVERY = 3000, 8e-3, 10
EXAMPLES, FIT_STEPS = 400_000, 10_000
# Another seed than that of the trainings with the predictors.
SEED = 7


@dataclasses.dataclass(frozen=True)
class Window:
    """A predictor to be fitted: from the weights at the last four jumps to where they go.

    Attributes:
      period: steps between two jumps.
      target: key of `TARGETS`.
    """

    period: int
    target: str

    @property
    def name(self) -> str:
        """The key in commands and in the results."""
        return f"language-{self.period}-{self.target}"

    @property
    def steps(self) -> int:
        """Number of steps of the training that it is fitted to."""
        return STEPS

    @property
    def points(self) -> tuple[float | int, ...]:
        """The points."""
        return (1.0, -self.period, -2 * self.period, -3 * self.period)

    def examples(self, history: WeightHistory) -> Examples:
        """Returns what to fit it to."""
        ahead, averaged = TARGETS[self.target]
        end = ahead * self.period
        examples = oi.sample_examples(history, EXAMPLES, points=self.points, target=end, tolerance=0, seed=SEED)
        if not averaged:
            return examples
        window = range(end - self.period + RECORD_EVERY, end + 1, RECORD_EVERY)
        targets = np.zeros_like(examples.targets)
        for step in np.unique(examples.steps):
            here = examples.steps == step
            for later in window:
                targets[here] += history.read(int(step) + later)[examples.weights[here]] / len(window)
        return examples._replace(targets=targets)


WINDOWS = tuple(Window(*both) for both in itertools.product((20, 50), TARGETS))


@dataclasses.dataclass(frozen=True, kw_only=True)
class LanguagePredictors(Predictors):
    """A study that fits predictors to the weights of a language model, each a `Window`."""

    data: str = "text-tests"

    def runs(self, arms: tuple[Any, ...]) -> list[Run]:
        """Returns what is to be done, a predictor at a time."""
        return [WindowRun(self, arm, 0) for arm in arms]


class WindowRun(Run):
    """Trains a language model, and fits one predictor to it."""

    def work(self, context: Context, folder: Path) -> Tables:
        """Records, fits, saves the predictor, and returns its errors."""
        arm: Window = self.arm
        text = context.data(self.experiment.data)
        about = {"text": text.kind, "steps": STEPS, "record_every": RECORD_EVERY}
        shared = folder.parents[1] / "history"
        with locked(shared, "another process works on", seconds=-1):  # others wait for it
            if not (path := shared / "history").exists() or STEPS not in WeightHistory.open(path).steps:
                task = TextTask(text, SEED, WIDTH, BATCH_SIZE)
                record(task, adamw(RATE, STEPS), STEPS, RECORD_EVERY, shared, context, about)
        fitted = oi.fit(
            arm.examples(WeightHistory.open(path)),
            use_bias=False,
            residual=True,
            batch_size=200,
            num_steps=FIT_STEPS,
            seed=SEED,
            workdir=folder / "fit",
            progress=False,
        )
        destination = context.predictors / arm.name
        if not destination.exists():
            oi.save(fitted.forecaster, destination)
        measured = {
            "train_l1": (fitted.forecaster, fitted.train),
            "validation_l1": (fitted.forecaster, fitted.validation),
            "staying_l1": (None, fitted.validation),
        }
        return {"": [{name: 1000 * oi.mean_absolute_error(*both) for name, both in measured.items()}]}


def amplified(name: str, gain: float, predictors: Path) -> oi.Forecaster:
    """Returns a fitted predictor whose jumps are longer.

    Args:
      name: its name.
      gain: factor of the length.
      predictors: folder of the fitted predictors.
    """
    found: Any = forecaster(FITTED + name, predictors)
    network = nnx.clone(found.module)
    kernel = network.layers[-1].kernel
    kernel.set_value(gain * kernel.get_value())
    return oi.network_forecaster(network, found.points, found.scale)


EXPERIMENTS = (
    LanguagePredictors(
        name="language-predictors",
        title="Predictors for language models",
        question="How well are weights forecast some periods ahead, from those at the last four jumps?",
        minutes=6,
        arms=WINDOWS,
        choices=(
            f"The language model learns the tests of SymPy for {STEPS} steps, with AdamW as in `language` and the "
            f"learning rate {RATE:g}. Its weights are recorded every {RECORD_EVERY} steps. "
            f"{EXAMPLES // 1000} 000 examples; {FIT_STEPS} steps of batches of 200."
        ),
    ),
)
