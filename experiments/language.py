"""Language models: do jumps help a transformer with a tuned AdamW, in one pass over its text?

Every way to train gets the same budgets and four learning rates; plain AdamW gets three `b1` as well. Seed 0 chooses
(`run language-tuning`), and the seeds 1 to 3 are measured (`run language`).
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import lax

import optax_introspect as oi

from ._config import Study
from .data.text import Sequences, Text
from .networks.language import LanguageModel
from .optimizers import Optimizer, ema_of_weights
from .runs import Context, Run, Settings, Tables
from .training import BLOCK, Row, State, Trained, jump_counts, rounded, train

CONTEXT, BATCH_SIZE = 128, 8
# Held-out bytes that are evaluated, and sequences of them at a time.
EVALUATED, AT_A_TIME = 1 << 16, 64
EVALUATIONS = 10
BUDGETS = (1500, 3000, 6000, 12_000)
RATES = (2e-3, 4e-3, 8e-3, 16e-3)
# Of outer momentum, which multiplies the length of steps by two to three.
MOMENTUM_RATES = (1e-3, 2e-3, 4e-3, 8e-3)
PERIODS = (10, 20, 50, 100)
MOMENTA = ((0.8, 0.75), (1.0, 0.5))
Jumps = tuple[Sequence[int], oi.Forecaster]


class Way(NamedTuple):
    """A way to train.

    Attributes:
      label: the name in tables and figures.
      jumps: from the number of steps to the jump steps and the forecaster; None trains without jumps.
      averages: evaluates an average of the weights.
      rates: learning rates that are tried.
    """

    label: str
    jumps: Callable[[int], Jumps] | None = None
    averages: bool = False
    rates: tuple[float, ...] = RATES


def _even(make: Callable[..., oi.Forecaster], period: int, *arguments: float) -> Callable[[int], Jumps]:
    return lambda steps: (range(period - 1, steps, period), make(period, *arguments))


def _momentum(name: str, make: Callable[..., oi.Forecaster], period: int, eta: float, mu: float) -> Way:
    label = f"{name}, every {period}, {eta:g}, {mu:g}"
    return Way(label, _even(make, period, eta, mu), rates=MOMENTUM_RATES)


def _sparse(make: Callable[[], oi.Forecaster]) -> Callable[[int], Jumps]:
    return lambda steps: (tuple(round(f * steps) for f in (0.4, 0.55, 0.7)), make())


WAYS = {
    "plain": Way("AdamW"),
    "ema": Way("EMA of weights", averages=True),
    "lookahead": Way("lookahead", _even(oi.lookahead, 5, 0.5)),
    **{
        f"nesterov-{k}-{eta:g}-{mu:g}": _momentum("Nesterov", oi.nesterov, k, eta, mu)
        for k in PERIODS
        for eta, mu in MOMENTA
    },
    "heavy-ball": _momentum("heavy ball", oi.heavy_ball, 20, 1.0, 0.5),
    "network": Way("network, 3 jumps", _sparse(oi.pretrained)),
    "two-points": Way("two points, 1.3, 3 jumps", _sparse(lambda: oi.polynomial(1, 1.3, points=(1.0, 0.4)))),
}


@dataclasses.dataclass(frozen=True)
class Training:
    """One of the trainings.

    Attributes:
      way: key of `WAYS`.
      steps: number of updates, the budget.
      rate: largest learning rate.
      b1: of AdamW.
      seeds: the seeds.
    """

    way: str
    steps: int
    rate: float
    b1: float = 0.9
    seeds: tuple[int, ...] = (0,)

    @property
    def name(self) -> str:
        """The key in commands and in the results."""
        return f"{self.way}-{self.steps}-{self.rate:g}" + ("" if self.b1 == 0.9 else f"-b1_{self.b1:g}")

    def settings(self) -> Settings:
        """Returns what a run depends on, for JSON."""
        own: Settings = {"way": self.way, "steps": self.steps, "rate": self.rate, "b1": self.b1}
        jumps = WAYS[self.way].jumps
        if jumps is not None:
            jump_steps, forecaster = jumps(self.steps)
            own |= {"first_jump": jump_steps[0], "last_jump": jump_steps[-1], "jumps": len(jump_steps)}
            own["forecaster"] = repr(forecaster)
        return own

    def optimizer(self) -> Optimizer:
        """Returns AdamW with clipped gradients, warmup and linear decay to zero, and the jumps last."""
        warmup = max(self.steps // 20, 1)

        def rate(step: Any) -> Any:
            return self.rate * jnp.minimum((step + 1) / warmup, 1) * (1 - step / self.steps)

        base = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, b1=self.b1, b2=0.99, weight_decay=0.1))
        way = WAYS[self.way]
        if way.averages:
            return Optimizer(optax.chain(base, ema_of_weights(0.99)), lambda params, state: state[-1].average)
        return Optimizer(base if way.jumps is None else optax.chain(base, oi.introspect(*way.jumps(self.steps))))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Language(Study):
    """A comparison of trainings of a language model.

    Attributes:
      width: width of the model.
      blocks: its number of blocks.
      arms: the trainings.
    """

    data: str = "text"
    width: int
    blocks: int
    arms: tuple[Training, ...]

    def runs(self, arms: tuple[Training, ...], seeds: tuple[int, ...]) -> list[Run]:
        """Returns what is to be done, a training at a time."""
        return [LanguageRun(self, arm, seed) for arm in arms for seed in arm.seeds if not seeds or seed in seeds]

    @property
    def count(self) -> int:
        """Number of runs."""
        return sum(len(arm.seeds) for arm in self.arms)

    def settings(self) -> Settings:
        """Returns what its results depend on apart from their arm, for JSON."""
        return {"data": self.data, "width": self.width, "blocks": self.blocks, "context": CONTEXT, "batch": BATCH_SIZE}


class TextTask:
    """A language model, its start and its text: all that trainings of one seed share.

    Args:
      study: the study.
      text: the text.
      seed: seed of the initial weights and of the order of the text.
    """

    in_blocks = True

    def __init__(self, study: Language, text: Text, seed: int):
        model = LanguageModel(study.width, study.blocks, context=CONTEXT, rngs=nnx.Rngs(seed))
        parts: Any = nnx.split(model)
        self.graphdef, self.params = parts
        self.sequences = Sequences(text.train, BATCH_SIZE, CONTEXT, seed)
        held_out = Sequences(text.validation, 1, CONTEXT, None)
        self._train, self._validation = jnp.asarray(text.train.ravel()), jnp.asarray(text.validation.ravel())
        self._evaluated = held_out.starts[: EVALUATED // CONTEXT]
        self._loss = jax.jit(self._mean_loss)

    def start(self, optimizer: Optimizer) -> State:
        """Returns the state at step 0."""
        params = jax.tree.map(jnp.copy, self.params)
        return State(Trained(params, jax.jit(optimizer.tx.init)(params), {}))

    def stepper(self, optimizer: Optimizer) -> Callable[[Trained, int, int], Trained]:
        """Returns the function that makes the steps from one number to another, in the buffers that it is given."""

        @functools.partial(jax.jit, donate_argnums=0)
        def block(trained: Trained, text: Any, starts: Any, count: Any) -> Trained:
            def update(i: Any, trained: Trained) -> Trained:
                gradients = jax.grad(self._mean_loss)(trained.params, text, starts[i])
                updates, opt_state = optimizer.tx.update(gradients, trained.opt_state, trained.params)
                return Trained(optax.apply_updates(trained.params, updates), opt_state, trained.statistics)

            result: Trained = lax.fori_loop(0, count, update, trained)
            return result

        def blocks(trained: Trained, start: int, end: int) -> Trained:
            for first in range(start, end, BLOCK):
                count = min(BLOCK, end - first)
                starts = np.zeros((BLOCK, BATCH_SIZE), np.int32)
                starts[:count] = [self.sequences.batch(first + i) for i in range(count)]
                trained = block(trained, self._train, starts, np.int32(count))
            return trained

        return blocks

    def validation_loss(self, params: Any) -> float:
        """Returns the mean loss on held-out text, in nats a byte."""
        parts = np.split(self._evaluated, range(AT_A_TIME, len(self._evaluated), AT_A_TIME))
        losses = [float(self._loss(params, self._validation, part)) for part in parts]
        return float(np.average(losses, weights=[len(part) for part in parts]))

    def _mean_loss(self, params: Any, text: Any, starts: Any) -> jax.Array:
        sequences = text[starts[:, None] + np.arange(CONTEXT + 1)].astype(jnp.int32)
        model: Any = nnx.merge(self.graphdef, params)
        losses = optax.softmax_cross_entropy_with_integer_labels(model(sequences[:, :-1]), sequences[:, 1:])
        return jnp.mean(losses)


@dataclasses.dataclass(frozen=True)
class LanguageRun(Run):
    """One training of a language model."""

    experiment: Language
    arm: Training

    def arm_settings(self, context: Context) -> Settings:
        """Returns the settings of the training, for JSON."""
        return self.arm.settings()

    def work(self, context: Context, folder: Path) -> Tables:
        """Trains, and returns the losses on held-out text, up to the first that is not finite."""
        arm, how = self.arm, self.arm.optimizer()
        task = TextTask(self.experiment, context.data(self.experiment.data), self.seed)
        if arm.steps > len(task.sequences):
            raise ValueError(
                f"steps must be at most {len(task.sequences)}, one pass over the text; {arm.name} has {arm.steps}"
            )
        stops = {*range(0, arm.steps, max(arm.steps // EVALUATIONS, 1)), arm.steps}
        for state in train(
            task, how, stops, folder / "checkpoints", advance=context.advance, deadline=context.deadline
        ):
            loss = task.validation_loss(how.evaluated(state.trained.params, state.trained.opt_state))
            row: Row = {"step": state.step, "seconds": state.seconds, "cpu_seconds": state.cpu_seconds, "loss": loss}
            row |= jump_counts(state.trained.opt_state)
            state.rows.append({name: rounded(value) for name, value in row.items()})
            if not math.isfinite(loss):
                context.advance(arm.steps - state.step)
                break
        return {"": state.rows}


# From the way and the budget to the learning rate and the `b1` that were best on seed 0; the tests compare.
CHOSEN: dict[tuple[str, int], tuple[float, float]] = {
    ("plain", 3000): (8e-3, 0.9),
    ("nesterov-20-0.8-0.75", 3000): (2e-3, 0.9),
    ("nesterov-20-1-0.5", 3000): (2e-3, 0.9),
    ("plain", 6000): (4e-3, 0.9),
    ("nesterov-20-0.8-0.75", 6000): (4e-3, 0.9),
    ("nesterov-20-1-0.5", 6000): (2e-3, 0.9),
}


def _tuning() -> tuple[Training, ...]:
    plain = [Training("plain", n, rate, b1) for n in BUDGETS for rate in RATES for b1 in (0.9, 0.95, 0.97)]
    others = [Training(way, n, rate) for way in WAYS if way != "plain" for n in BUDGETS for rate in WAYS[way].rates]
    return (*plain, *others)


_CHOICES = (
    "123 000 weights; 1024 bytes a step; AdamW with b2 0.99, weight decay 0.1, gradients clipped to norm 1, warmup "
    "over a twentieth of the steps and linear decay to zero."
)

EXPERIMENTS = (
    Language(
        name="language-tuning",
        title="Language model, tuning",
        question="Which learning rate is best for each way to train and each budget?",
        minutes=340,
        width=64,
        blocks=2,
        arms=_tuning(),
        choices=f"{_CHOICES} Seed 0 only chooses. The minutes are extrapolated.",
    ),
    Language(
        name="language",
        title="Language model",
        question="Do jumps help a transformer with a tuned AdamW, in one pass over its text?",
        minutes=20,
        width=64,
        blocks=2,
        arms=tuple(Training(way, n, *chosen, seeds=(1, 2, 3)) for (way, n), chosen in CHOSEN.items()),
        choices=f"{_CHOICES} The seeds that are measured are others than the one that chose.",
    ),
)
