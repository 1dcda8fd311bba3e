"""What makes a predictor good: predictors of several kinds, fitted to the same histories of `N_0`."""

import dataclasses
import functools
import itertools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import optax
from flax import nnx

import optax_introspect
from optax_introspect import Examples, Forecaster, WeightHistory

from . import runs
from .forecasters import path_of_predictor
from .networks import ConvNet
from .predictor import BATCH_SIZE, LEARNING_RATE
from .recording import record
from .records import Paper, Study
from .runner import Context
from .training import Task

Array = npt.NDArray[Any]

# Runs of `N_0` that predictors are fitted to: how it starts, and the seed. What the paper started it with is not known.
HISTORIES: dict[str, tuple[nnx.Initializer | None, int]] = {
    "lecun": (None, 0),
    "lecun-1": (None, 1),
    # As in the MNIST tutorial of TensorFlow of that time.
    "wide": (nnx.initializers.truncated_normal(0.1), 0),
}
STEPS, RECORD_EVERY, NUM_EXAMPLES, FIT_STEPS = 20_000, 100, 800_000, 30_000


@dataclasses.dataclass(frozen=True)
class Fit:
    """A predictor to be fitted.

    Attributes:
      name: what it is called.
      history: a key of `HISTORIES`.
      jump_ratio: `k`, what it forecasts.
      loss: `"l1"`, `"l2"` or `"percentage"`.
      activation: of its hidden layer.
      equivariant: whether it sees differences to `w_t` and has no biases, instead of the weights themselves.
    """

    name: str
    history: str = "lecun"
    jump_ratio: float = 2.0
    loss: str = "l1"
    activation: str = "relu"
    equivariant: bool = False


FITS = (
    Fit("l1"),
    Fit("l2", loss="l2"),
    Fit("percentage", loss="percentage"),
    Fit("k1.5", jump_ratio=1.5),
    Fit("k2.2", jump_ratio=2.2),
    Fit("k3", jump_ratio=3.0),
    Fit("linear", activation="identity"),
    Fit("equivariant", equivariant=True),
    Fit("equivariant-linear", equivariant=True, activation="identity"),
    Fit("l1-seed-1", history="lecun-1"),
    Fit("equivariant-seed-1", history="lecun-1", equivariant=True),
    Fit("l1-wide", history="wide"),
    Fit("equivariant-wide", history="wide", equivariant=True),
)


_PAPER = Paper("section 4.1: L1 of 3.1 on training and 3.4 on validation examples, weights times 1000")


@dataclasses.dataclass(frozen=True)
class Fits(Study):
    """The experiment that fits them all."""

    name: str = "predictors"
    question: str = "Which loss, jump ratio and form give the smallest error on weights that were not fitted to?"
    minutes: int = 15
    paper: Paper = _PAPER
    choices: str = (
        "How N_0 starts and how long it runs is not given: LeCun normal and 20 000 steps, and two variants. Steps t "
        "are uniform. Of the examples half are from the 50 % of weights that have moved most, a quarter each from the "
        "next and the last 25 %, as the paper has it, though that reweights hardly anything. The learning rate of the "
        "predictor is halved every 8000 steps: by how much it falls is not given."
    )

    @property
    def arms(self) -> tuple[Fit, ...]:
        """The predictors."""
        return FITS


@dataclasses.dataclass(frozen=True)
class FitUnit:
    """What one process does at a time: one history, and the predictors that are fitted to it.

    Attributes:
      experiment: the experiment.
      history: a key of `HISTORIES`.
      fits: the predictors.
    """

    experiment: Fits
    history: str
    fits: tuple[Fit, ...]

    @property
    def name(self) -> str:
        """What is shown of it."""
        return f"{self.experiment.name}, N_0 {self.history}"

    def unfinished(self, context: Context) -> list[Fit]:
        """Returns the predictors that there is something to do for."""
        return [
            fit
            for fit in self.fits
            if not self._path(context, fit).exists() or not path_of_predictor(context.predictors, fit.name).exists()
        ]

    def steps(self, context: Context) -> int:
        """Returns how many steps of training `N_0` there are."""
        return STEPS if self.unfinished(context) else 0

    def check(self, context: Context, versions: bool = True) -> None:
        """Raises a ValueError if results that are there already are of other settings (or versions)."""
        for fit in self.fits:
            if (path := self._path(context, fit)).exists():
                runs.check_header(path, self._header(context, fit), versions)

    def run(self, context: Context) -> None:
        """Trains the network, and fits what is not fitted yet."""
        folder = self._folder(context)
        with runs.locked(folder):
            self.check(context)
            if not (unfinished := self.unfinished(context)):
                return
            init, seed = HISTORIES[self.history]
            images = context.images("mnist")
            settings = {"images": images.source.partition(",")[0], "history": self.history}
            network = ConvNet if init is None else functools.partial(ConvNet, kernel_init=init)
            task = Task(network, images, BATCH_SIZE, seed)
            reported = 0
            for step, _ in record(task, optax.adam(LEARNING_RATE), folder, settings, STEPS, RECORD_EVERY):
                context.advance(step - reported)
                reported = step
                context.check_time()
            history = WeightHistory.open(folder / "history")
            for fit in unfinished:
                self._fit(context, fit, history)
                context.check_time()

    def _fit(self, context: Context, fit: Fit, history: WeightHistory) -> None:
        examples = optax_introspect.sample_examples(history, NUM_EXAMPLES, jump_ratio=fit.jump_ratio, seed=0)
        fitted = optax_introspect.fit(
            examples,
            loss=fit.loss,
            activation=fit.activation,
            use_bias=not fit.equivariant,
            relative=fit.equivariant,
            num_steps=FIT_STEPS,
            progress=False,
        )
        destination = path_of_predictor(context.predictors, fit.name)
        if not destination.exists():
            destination.parent.mkdir(parents=True, exist_ok=True)
            optax_introspect.save(fitted.forecaster, destination)
        if (path := self._path(context, fit)).exists():
            return
        journal = runs.Journal(self._folder(context) / f"{fit.name}.jsonl", self._header(context, fit), None)
        journal.write(errors(fitted.forecaster, fitted.train, fitted.validation))
        journal.write(linear_rule(fitted.forecaster, fitted.validation))
        for line in displacements(fitted.forecaster, fitted.validation):
            journal.write(line)
        journal.complete(path, {"end": "complete"})

    def _header(self, context: Context, fit: Fit) -> runs.Line:
        return {
            "experiment": self.experiment.name,
            "arm": dataclasses.asdict(fit),
            "seed": 0,
            "steps": [STEPS, RECORD_EVERY, NUM_EXAMPLES, FIT_STEPS],
            "images": context.images("mnist").source.partition(",")[0],
            "versions": runs.versions(),
            "machine": runs.machine(),
        }

    def _folder(self, context: Context) -> Path:
        return runs.working(context.workdir, self.experiment.name, self.history, 0)

    def _path(self, context: Context, fit: Fit) -> Path:
        return runs.path_of(context.workdir, self.experiment.name, fit.name, 0)


def fit_units(experiment: Fits, arms: tuple[Fit, ...]) -> list[FitUnit]:
    """Returns what there is to do, one history at a time."""
    chosen = {name: tuple(fit for fit in arms if fit.history == name) for name in HISTORIES}
    return [FitUnit(experiment, name, fits) for name, fits in chosen.items() if fits]


def errors(forecaster: Forecaster, train: Examples, validation: Examples) -> runs.Line:
    """Returns mean absolute errors, times 1000 as in the paper, beside those of doing without a network."""
    two_point = optax_introspect.polynomial(1, 1.3, points=(1.0, 0.4))
    return {
        "train_l1": 1000 * optax_introspect.l1(forecaster, train),
        "validation_l1": 1000 * optax_introspect.l1(forecaster, validation),
        "staying_l1": 1000 * optax_introspect.l1(None, validation),
        "two_point_l1": 1000 * optax_introspect.l1(two_point, validation),
    }


def linear_rule(forecaster: Forecaster, validation: Examples) -> runs.Line:
    """Returns the fixed linear rule that is nearest to a forecaster on real weights, and how much of it that is.

    The displacement is regressed on the differences of the points to `w_t` and on a constant, by least squares.
    """
    now = validation.inputs[:, 0].astype(np.float64)
    moved = _forecast(forecaster, validation) - now
    differences = validation.inputs[:, 1:].astype(np.float64) - now[:, None]
    design = np.column_stack([differences, np.ones(len(now))])
    coefficients, *_ = np.linalg.lstsq(design, moved, rcond=None)
    rule = design @ coefficients
    return {
        "points": list(validation.points[1:]),
        "coefficients": coefficients[:-1].tolist(),
        "constant_x1000": 1000 * float(coefficients[-1]),
        "explained": 1 - float(np.var(moved - rule) / np.var(moved)),
        "rule_l1": 1000 * float(np.mean(np.abs(now + rule - validation.targets))),
        "displacement_x1000": 1000 * float(np.mean(np.abs(moved))),
    }


def displacements(forecaster: Forecaster, validation: Examples, bins: int = 41) -> list[runs.Line]:
    """Returns how far weights are forecast to move, and how far they moved, by how far they had come since `0.4t`.

    Quartiles in bins of `w_t - w_{0.4t}`, all times 1000; bins with fewer than 20 weights are left out.
    """
    now = validation.inputs[:, 0].astype(np.float64)
    came = now - validation.inputs[:, validation.points.index(0.4)]
    moved, truth = _forecast(forecaster, validation) - now, validation.targets - now
    edge = np.quantile(np.abs(came), 0.995)
    edges = np.linspace(-edge, edge, bins + 1)
    lines = []
    for low, high in itertools.pairwise(edges):
        here = (came >= low) & (came < high)
        if here.sum() >= 20:
            lines.append(
                {
                    "came": 1000 * float((low + high) / 2),
                    "weights": int(here.sum()),
                    "moved": (1000 * np.quantile(moved[here], (0.25, 0.5, 0.75))).round(4).tolist(),
                    "truth": (1000 * np.quantile(truth[here], (0.25, 0.5, 0.75))).round(4).tolist(),
                }
            )
    return lines


def _forecast(forecaster: Forecaster, examples: Examples) -> Array:
    inputs = [jnp.asarray(examples.inputs[:, examples.points.index(point)]) for point in forecaster.points]
    return np.asarray(jax.jit(lambda *w: forecaster(*w, key=jax.random.key(0)))(*inputs), np.float64)
