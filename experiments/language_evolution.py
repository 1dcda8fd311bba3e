"""Coefficients that differ by kind of array and half of the training, tuned by evolution.

They are those of outer momentum, or the learning rates of AdamW without jumps, with as many trainings. One program
makes a whole training, with the coefficients as its arguments: a set of them costs a training and no compilation.
"""

import dataclasses
import functools
import itertools
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import optax
from jax import lax

import optax_introspect as oi

from ._config import Study
from .data.text import Text
from .language_task import TextTask
from .optimizers import adamw
from .runs import Context, Run, Tables, read_json, write_json
from .training import Row, StoppedError, Trained

Array = npt.NDArray[np.float64]
PERIOD = 20
# Parts of the names of arrays that tell their kind.
KINDS = {
    "embedding": ("embedding", "positions"),
    "attention": ("inputs", "outputs"),
    "mlp": ("up", "down"),
    "norm": ("scale",),
}
HALVES = ("early", "late")
PERIODIC = "Nesterov, every 20"
# What the tuned ones are compared with: outer learning rate and momentum, or no jumps.
WAYS = {"AdamW": None, "lookahead, every 20": (0.5, 0.0), PERIODIC: (0.8, 0.75)}
# What is tuned, and from which of the ways.
TUNED = {"momentum by kind": (PERIODIC, ("eta", "mu")), "rates by kind": ("AdamW", ("factor",))}
RATES = (2e-3, 4e-3, 8e-3, 16e-3, 32e-3)
# What is compared, on another text and on seeds that no generation has.
COMPARED, CHOOSES = "text", 1000
SEEDS = (1001, 1002, 1003, 1004, 1005)
_SHAPE = (len(HALVES), len(KINDS))


class Coefficients(NamedTuple):
    """Coefficients of a training.

    Attributes:
      rate: largest learning rate of AdamW.
      eta: outer learning rates `[half, kind]`; None trains without jumps.
      mu: momenta, as `eta`.
      factor: factors of the learning rate `[half, kind]`; None is a factor of 1.
    """

    rate: Any
    eta: Any = None
    mu: Any = None
    factor: Any = None

    @classmethod
    def of_way(cls, way: str, rate: float) -> "Coefficients":
        """Returns those of one of `WAYS`, the same for all kinds and both halves."""
        momentum = WAYS[way]
        return cls(rate) if momentum is None else cls(rate, *(np.full(_SHAPE, value) for value in momentum))

    def vector(self, free: Sequence[str]) -> Array:
        """Returns the rate and the named fields as a vector, with the logarithms of rates."""
        fields = {"factor": np.ones(_SHAPE)} | self.tables()
        parts = [np.log(fields[name]) if name == "factor" else fields[name] for name in free]
        return np.concatenate([[math.log(self.rate)], *(part.ravel() for part in parts)])

    def changed(self, free: Sequence[str], vector: Array) -> "Coefficients":
        """Returns coefficients with the rate and the named fields of a vector, within what makes sense."""
        parts = dict(zip(free, vector[1:].reshape(len(free), *_SHAPE), strict=True))
        within: dict[str, Callable[[Array], Array]]
        within = {"eta": lambda x: np.clip(x, 0, 1.5), "mu": lambda x: np.clip(x, 0, 0.95), "factor": np.exp}
        return self._replace(rate=math.exp(vector[0]), **{name: within[name](part) for name, part in parts.items()})

    def tables(self) -> dict[str, Any]:
        """Returns the tables `[half, kind]` that it has, by name."""
        return {name: its for name, its in self._asdict().items() if name != "rate" and its is not None}

    def row(self) -> Row:
        """Returns all by name."""
        named = {
            f"{name}_{half}_{kind}": float(its[i, j])
            for name, its in self.tables().items()
            for i, half in enumerate(HALVES)
            for j, kind in enumerate(KINDS)
        }
        return {"rate": float(self.rate), **named}


# What evolution came to (results/language-evolution.csv.gz), in the order of `KINDS`; the rate is to be tuned.
EVOLVED = {
    "momentum by kind": Coefficients(
        rate=8.7e-3,
        eta=np.array([[0.82, 0.57, 0.51, 1.22], [1.10, 0.54, 0.73, 0.86]]),
        mu=np.array([[0.85, 0.00, 0.25, 0.59], [0.39, 0.95, 0.61, 0.70]]),
    ),
    "rates by kind": Coefficients(rate=7.7e-3, factor=np.array([[5.45, 0.44, 0.84, 0.75], [1.82, 2.15, 3.04, 0.93]])),
}


def kinds(params: Any) -> Any:
    """Returns the kind of each array of a language model."""

    def kind(path: Any, leaf: Any) -> str:
        (found,) = (
            name for name, parts in KINDS.items() if any(f"'{part}'" in jax.tree_util.keystr(path) for part in parts)
        )
        return found

    return jax.tree.map_with_path(kind, params)


def optimizer(steps: int, coefficients: Coefficients) -> optax.GradientTransformation:
    """Returns AdamW, with outer momentum or rates by kind; the coefficients may be traced.

    Args:
      steps: number of updates.
      coefficients: the coefficients.
    """

    def within(half: Any) -> optax.GradientTransformation:
        parts = [adamw(coefficients.rate, steps)]
        if coefficients.factor is not None:
            parts.append(_scaled(coefficients.factor[half]))
        if coefficients.eta is not None:
            parts += [_jumps(steps, i, coefficients.eta[half, i], coefficients.mu[half, i]) for i in range(len(KINDS))]
        return optax.chain(*parts)

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        step, inner = state
        updates, inner = within(2 * step // steps).update(updates, inner, params)
        return updates, (step + 1, inner)

    return optax.GradientTransformation(lambda params: (jnp.zeros((), jnp.int32), within(0).init(params)), update)


def _scaled(factors: Any) -> optax.GradientTransformation:
    def scale(updates: Any, params: Any) -> Any:
        return jax.tree.map(lambda kind, update: factors[list(KINDS).index(kind)] * update, kinds(updates), updates)

    return optax.stateless(scale)


def _jumps(steps: int, kind: int, eta: Any, mu: Any) -> optax.GradientTransformation:
    def forecast(now: Any, after: Any, before: Any, earlier: Any) -> Any:
        # As `oi.nesterov`, whose coefficients are numbers.
        shift = (1 + mu) * (1 - eta) * (after - now)
        return now + shift - eta * mu * (before - now) - mu * (1 - eta) * (earlier - now)

    momentum = oi.custom_forecaster(forecast, oi.nesterov(PERIOD).points)
    mask = functools.partial(jax.tree.map, lambda its: its == list(KINDS)[kind])
    return optax.masked(oi.introspect(range(PERIOD - 1, steps, PERIOD), momentum), lambda params: mask(kinds(params)))


class Trainings:
    """Short trainings of one size on one text.

    Args:
      text: the text.
      width: width of the model.
      batch_size: sequences in a step.
      steps: number of updates.
    """

    def __init__(self, text: Text, width: int, batch_size: int, steps: int):
        self._task = functools.lru_cache(maxsize=4)(lambda seed: TextTask(text, seed, width, batch_size))
        self._first = TextTask(text, 0, width, batch_size)
        self._steps = steps

        @jax.jit
        def trained(coefficients: Coefficients, params: Any, text: Any, starts: Any) -> Any:
            tx = optimizer(steps, coefficients)

            def update(i: Any, trained: Trained) -> Trained:
                return self._first.update(tx, trained, text, starts[i])

            return lax.fori_loop(0, steps, update, Trained(params, tx.init(params), {})).params

        self._trained = trained

    def loss(self, coefficients: Coefficients, seed: int) -> float:
        """Returns the loss on held-out text at the end of a training, in nats a byte; that of no knowledge at most."""
        task = self._task(seed)
        starts = np.stack([task.sequences.batch(step) for step in range(self._steps)])
        given = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), coefficients)
        loss = self._first.validation_loss(self._trained(given, task.params, task.text, starts))
        return min(loss, math.log(256)) if math.isfinite(loss) else math.log(256)


@dataclasses.dataclass(frozen=True)
class Evolved:
    """An evolution of each of `TUNED`.

    Attributes:
      name: the key in commands and results.
      width: width of the model.
      batch_size: sequences in a step.
      training: updates of a training.
      generations: number of generations.
      pairs: trainings of a generation, in pairs: with a change of the coefficients, and with its opposite.
      deviation: standard deviation of the changes, of the logarithms of rates and factors twice as large.
    """

    name: str = "evolution"
    width: int = 32
    batch_size: int = 4
    training: int = 1500
    generations: int = 12
    pairs: int = 6
    deviation: float = 0.2

    @property
    def steps(self) -> int:
        """Number of updates of all trainings."""
        compared = len(WAYS) * len(RATES) + (len(WAYS) + len(TUNED)) * len(SEEDS)
        return self.training * (2 * self.pairs * self.generations * len(TUNED) + compared)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evolution(Study):
    """A study that tunes coefficients by evolution.

    Attributes:
      arms: one evolution.
    """

    data: str = "text-tests"
    arms: tuple[Evolved, ...]

    def runs(self, arms: tuple[Evolved, ...]) -> list[Run]:
        """Returns what is to be done."""
        return [EvolutionRun(self, arm, 0) for arm in arms]


class EvolutionRun(Run):
    """Tunes the coefficients of each of `TUNED`, and compares them with those of `WAYS`."""

    def work(self, context: Context, folder: Path) -> Tables:
        """Returns the coefficients after each generation with the mean loss in it, and the comparison."""
        arm: Evolved = self.arm
        # All follows from the losses: those of a command that was killed are read again, in the same order.
        path, asked = folder / "losses.json", itertools.count()
        known: list[float] = read_json(path) if path.exists() else []
        trainings = {
            data: Trainings(context.data(data), arm.width, arm.batch_size, arm.training)
            for data in (self.experiment.data, COMPARED)
        }

        def loss(data: str, coefficients: Coefficients, seed: int) -> float:
            if (i := next(asked)) == len(known):
                if context.deadline is not None and time.time() > context.deadline:
                    raise StoppedError
                known.append(trainings[data].loss(coefficients, seed))
                write_json(path, known)
            context.advance(arm.training)
            return known[i]

        rows, chosen = [], {}
        for name, (way, free) in TUNED.items():
            of_name, chosen[name] = self._generations(
                functools.partial(loss, self.experiment.data), Coefficients.of_way(way, 4e-3), free
            )
            rows += [{"tuned": name, **row} for row in of_name]
        for way in WAYS:
            tried = {rate: loss(self.experiment.data, Coefficients.of_way(way, rate), CHOOSES) for rate in RATES}
            chosen[way] = Coefficients.of_way(way, min(tried, key=tried.__getitem__))
        compared = [
            {"way": way, "rate": float(chosen[way].rate), "training": seed, "loss": loss(COMPARED, chosen[way], seed)}
            for way in (*WAYS, *TUNED)
            for seed in SEEDS
        ]
        return {"": rows, "compared": compared}

    def _generations(
        self, loss: Callable[[Coefficients, int], float], coefficients: Coefficients, free: Sequence[str]
    ) -> tuple[list[Row], Coefficients]:
        """Returns a row for each generation, and the last coefficients."""
        arm: Evolved = self.arm
        rows: list[Row] = []
        # Twice as large of logarithms.
        scale = np.repeat(
            arm.deviation * np.array([2.0, *(2.0 if name == "factor" else 1.0 for name in free)]),
            [1, *(math.prod(_SHAPE) for _ in free)],
        )
        for generation in range(arm.generations):
            center = coefficients.vector(free)
            changes = np.random.default_rng(generation).standard_normal((arm.pairs, len(center)))
            # Both of a pair have one seed, which no other pair has.
            losses = np.array(
                [
                    [
                        loss(coefficients.changed(free, center + x), 1 + generation * arm.pairs + i)
                        for x in (change, -change)
                    ]
                    for i, change in enumerate(scale * changes)
                ]
            )
            gains = losses[:, 1] - losses[:, 0]
            size = max(float(np.sqrt(np.mean(gains**2))), 1e-9)
            coefficients = coefficients.changed(free, center + scale * np.mean(gains[:, None] * changes, axis=0) / size)
            rows.append({"step": generation + 1, "loss": float(losses.mean())} | coefficients.row())
        return rows, coefficients


EXPERIMENTS = (
    Evolution(
        name="language-evolution",
        title="Coefficients by kind, evolved",
        question="Does outer momentum, or AdamW alone, gain by coefficients for each kind of array and half?",
        minutes=80,
        arms=(Evolved(),),
        choices=(
            f"AdamW as in `language`, jumps every {PERIOD} steps. Evolution on the tests of SymPy: of outer momentum "
            "from the coefficients of `nesterov`, and of AdamW's rates without jumps. Compared on its sources, with "
            "the best of five rates for each of the others."
        ),
    ),
)
