"""Language models: do jumps help a transformer with a tuned AdamW, in one pass over its text?

Every way to train gets four or five learning rates at each budget that it is run for, and plain AdamW as many settings
or more. Seed 0 chooses (`run language-tuning`), and others, three to eight, are measured (`run language`). Of plain
AdamW at up to 6000 steps the two rates that were best on seed 0 are run on the seeds 1 to 3, and the better one is the
baseline.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import optax

import optax_introspect as oi

from ._config import Study
from .language_evolution import EVOLVED, KINDS, Coefficients
from .language_evolution import optimizer as by_kind
from .language_predictors import WINDOWS, Window, amplified
from .language_task import BATCH_SIZE, BLOCKS, CONTEXT, WIDTH, TextTask
from .optimizers import Optimizer, adamw, described, ema_of_weights
from .runs import Context, Run, Settings, Tables
from .training import Row, jump_counts, rounded, train

EVALUATIONS = 10
SEEDS = (1, 2, 3)
LATER_SEEDS = (4, 5, 6, 7, 8)
BUDGETS = (1500, 3000, 6000, 12_000)
RATES = (2e-3, 4e-3, 8e-3, 16e-3)
# Of outer momentum, which multiplies the length of steps by two to three.
MOMENTUM_RATES = (1e-3, 2e-3, 4e-3, 8e-3)
# Of wider models, and of outer momentum at a constant rate.
LOW_RATES = (5e-4, 1e-3, 2e-3, 4e-3, 8e-3)
# Budgets and rates at which other `b1` of AdamW are tried: the best rates of each.
B1_AT = ((1500, 4e-3), (3000, 8e-3), (6000, 4e-3), (6000, 8e-3))
PERIODS = (10, 20, 50, 100)
Jumps = tuple[Sequence[int], oi.Forecaster]


class Way(NamedTuple):
    """A way to train.

    Attributes:
      label: the name in tables and figures.
      jumps: from the number of steps and the folder of the fitted predictors to the jump steps and the forecaster;
        None trains without jumps.
      averages: evaluates an average of the weights.
      coefficients: of an AdamW that has them by kind of array; the rate is that of the training.
    """

    label: str
    jumps: Callable[[int, Path], Jumps] | None = None
    averages: bool = False
    coefficients: Coefficients | None = None


def _even(make: Callable[..., oi.Forecaster], period: int, *arguments: float) -> Callable[[int, Path], Jumps]:
    return lambda steps, predictors: (range(period - 1, steps, period), make(period, *arguments))


def _momentum(name: str, make: Callable[..., oi.Forecaster], period: int, eta: float, mu: float) -> Way:
    return Way(f"{name}, every {period}, {eta:g}, {mu:g}", _even(make, period, eta, mu))


def _sparse(make: Callable[[], oi.Forecaster]) -> Callable[[int, Path], Jumps]:
    return lambda steps, predictors: (tuple(round(f * steps) for f in (0.4, 0.55, 0.7)), make())


def _learned(window: Window, gain: float) -> Way:
    def jumps(steps: int, predictors: Path) -> Jumps:
        return range(window.period - 1, steps, window.period), amplified(window.name, gain, predictors)

    return Way(f"learned, {window.target}, every {window.period}, x {gain:g}", jumps)


_FACTORS = EVOLVED["rates by kind"].factor
_HALVES = np.exp(np.log(_FACTORS).mean(axis=1, keepdims=True))


def _factors(embedding: npt.ArrayLike, others: npt.ArrayLike) -> Coefficients:
    of_embedding = [kind == "embedding" for kind in KINDS]
    return Coefficients(rate=1.0, factor=np.where(of_embedding, embedding, np.broadcast_to(others, _FACTORS.shape)))


WAYS = {
    "plain": Way("AdamW"),
    "ema": Way("EMA of weights", averages=True),
    "lookahead": Way("lookahead", _even(oi.lookahead, 5, 0.5)),
    **{f"nesterov-{period}-0.8-0.75": _momentum("Nesterov", oi.nesterov, period, 0.8, 0.75) for period in PERIODS},
    "nesterov-20-1-0.5": _momentum("Nesterov", oi.nesterov, 20, 1.0, 0.5),
    "evolved": Way("Nesterov, every 20, by kind", coefficients=EVOLVED["momentum by kind"]),
    "rates": Way("AdamW, rates by kind", coefficients=EVOLVED["rates by kind"]),
    # What of the rates by kind matters: the embedding, the other kinds, the halves, and one factor for the embedding.
    "rates-embedding": Way("AdamW, rates by kind, of the embedding only", coefficients=_factors(_FACTORS, 1)),
    "rates-others": Way("AdamW, rates by kind, of the others only", coefficients=_factors(1, _FACTORS)),
    "rates-halves": Way("AdamW, rates by half, of all kinds alike", coefficients=_factors(_HALVES, _HALVES)),
    "embedding-4": Way("AdamW, embedding x 4", coefficients=_factors(4, 1)),
    "rates-lookahead": Way(
        "lookahead, rates by kind", _even(oi.lookahead, 5, 0.5), coefficients=EVOLVED["rates by kind"]
    ),
    "heavy-ball": _momentum("heavy ball", oi.heavy_ball, 20, 1.0, 0.5),
    "network": Way("network, 3 jumps", _sparse(oi.pretrained)),
    "two-points": Way("two points, 1.3, 3 jumps", _sparse(lambda: oi.polynomial(1, 1.3, points=(1.0, 0.4)))),
    **{f"learned-{w.period}-{w.target}-x{gain:g}": _learned(w, gain) for w in WINDOWS for gain in (1, 2, 4)},
}


# What most trainings have alike; the name of a training has those in which it differs.
_VARIED = ("b1", "until", "decay", "batch_size", "width")


@dataclasses.dataclass(frozen=True)
class Training:
    """One of the trainings.

    Attributes:
      way: key of `WAYS`.
      steps: number of updates, the budget.
      rate: largest learning rate.
      b1: of AdamW.
      until: share of the training that has jumps, from its start.
      decay: share of the training in which the learning rate falls to zero, up to its end; 0 is a constant rate.
      batch_size: sequences in a step.
      width: width of the model.
      seeds: the seeds.
    """

    way: str
    steps: int
    rate: float
    b1: float = 0.9
    until: float = 1.0
    decay: float = 1.0
    batch_size: int = BATCH_SIZE
    width: int = WIDTH
    seeds: tuple[int, ...] = (0,)

    @property
    def name(self) -> str:
        """The key in commands and in the results."""
        others = [f"-{key}_{value:g}" for key, value in self.variation().items()]
        return f"{self.way}-{self.steps}-{self.rate:g}{''.join(others)}"

    def variation(self) -> Settings:
        """Returns the settings in which it differs from most."""
        return {key: getattr(self, key) for key in _VARIED if getattr(self, key) != getattr(Training, key)}

    def jumps(self, predictors: Path) -> Jumps | None:
        """Returns the jump steps and the forecaster, or None of a training without jumps."""
        way = WAYS[self.way]
        if way.jumps is None:
            return None
        jump_steps, forecaster = way.jumps(self.steps, predictors)
        return jump_steps[: round(self.until * len(jump_steps))], forecaster

    def settings(self, predictors: Path) -> Settings:
        """Returns what a run depends on, for JSON; what it has in common with most is in those of the experiment."""
        own: Settings = {"way": self.way, "steps": self.steps, "rate": self.rate, "b1": self.b1}
        own |= self.variation()
        if (coefficients := WAYS[self.way].coefficients) is not None:
            own |= {name: its.tolist() for name, its in coefficients.tables().items()}
        if (jumps := self.jumps(predictors)) is not None:
            jump_steps, forecaster = jumps
            own |= {"first_jump": jump_steps[0], "last_jump": jump_steps[-1], "jumps": len(jump_steps)}
            own["forecaster"] = described(forecaster)
        return own

    def optimizer(self, predictors: Path) -> Optimizer:
        """Returns AdamW, and the jumps last; `predictors` is the folder of the fitted ones."""
        way, jumps = WAYS[self.way], self.jumps(predictors)
        if way.coefficients is None:
            parts = [adamw(self.rate, self.steps, self.b1, self.decay)]
        else:
            parts = [by_kind(self.steps, jax.tree.map(jnp.asarray, way.coefficients._replace(rate=self.rate)))]
        if way.averages:
            return Optimizer(optax.chain(*parts, ema_of_weights(0.99)), lambda params, state: state[-1].average)
        if jumps is not None:
            parts.append(oi.introspect(*jumps))
        return Optimizer(optax.chain(*parts))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Language(Study):
    """A comparison of trainings of a language model.

    Attributes:
      arms: the trainings.
    """

    data: str = "text"
    arms: tuple[Training, ...]

    def runs(self, arms: tuple[Training, ...]) -> list[Run]:
        """Returns what is to be done, a training at a time."""
        return [LanguageRun(self, arm, seed) for arm in arms for seed in arm.seeds]

    def settings(self) -> Settings:
        """Returns what its results depend on apart from their arm, for JSON."""
        return {"data": self.data, "width": WIDTH, "blocks": BLOCKS, "context": CONTEXT, "batch": BATCH_SIZE}


@dataclasses.dataclass(frozen=True)
class LanguageRun(Run):
    """One training of a language model."""

    experiment: Language
    arm: Training

    def arm_settings(self, context: Context) -> Settings:
        """Returns the settings of the training, for JSON."""
        return self.arm.settings(context.predictors)

    def work(self, context: Context, folder: Path) -> Tables:
        """Trains, and returns the losses on held-out text, up to the first that is not finite."""
        arm, how = self.arm, self.arm.optimizer(context.predictors)
        task = TextTask(context.data(self.experiment.data), self.seed, arm.width, arm.batch_size)
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


AHEAD = ("plain", "lookahead")
_BY_KIND = ("rates", "rates-embedding", "rates-others", "rates-halves", "embedding-4")
NESTEROV = ("nesterov-20-0.8-0.75", "nesterov-20-1-0.5")


def _on(seeds: tuple[int, ...], *trainings: Training) -> tuple[Training, ...]:
    return tuple(dataclasses.replace(training, seeds=seeds) for training in trainings)


# What is measured, each with the learning rate and the `b1` that were best in the tuning; the tests compare.
MEASURED = (
    *_on(
        SEEDS,
        Training(NESTEROV[0], 1500, 4e-3),
        Training("rates", 1500, 4e-3),
        Training(NESTEROV[0], 3000, 2e-3),
        Training(NESTEROV[1], 3000, 2e-3),
        Training("evolved", 3000, 4e-3),
        Training("rates", 3000, 4e-3),
        Training("rates-embedding", 3000, 4e-3),
        Training("rates-others", 3000, 8e-3),
        Training("rates-halves", 3000, 8e-3),
        Training("embedding-4", 3000, 4e-3),
        Training("rates-lookahead", 3000, 16e-3),
        Training("heavy-ball", 3000, 8e-3),
        Training("ema", 3000, 8e-3),
        Training("network", 3000, 8e-3),
        Training("two-points", 3000, 8e-3),
        Training(NESTEROV[0], 6000, 4e-3),
        Training(NESTEROV[1], 6000, 2e-3),
        Training("plain", 12_000, 4e-3),
        Training(NESTEROV[0], 12_000, 4e-3),
        Training("lookahead", 12_000, 8e-3),
        # Jumps that end early, at the rate that was chosen for jumps up to the end.
        *(Training(NESTEROV[0], 6000, 4e-3, until=until) for until in (0.5, 0.75)),
        Training("lookahead", 1500, 8e-3, until=0.75),
        Training("plain", 3000, 2e-3, decay=0.0),
        Training("lookahead", 3000, 4e-3, decay=0.0),
        Training(NESTEROV[0], 3000, 1e-3, decay=0.0),
        Training("plain", 3000, 4e-3, decay=0.5),
        Training("lookahead", 3000, 8e-3, decay=0.5),
        Training(NESTEROV[0], 750, 2e-3, batch_size=32),
        Training("rates", 1500, 2e-3, width=128),
        Training("plain", 1500, 1e-3, width=256),
        Training("lookahead", 1500, 2e-3, width=256),
        Training("rates", 1500, 1e-3, width=256),
    ),
    # Two seeds more, for what came out ahead on three and what it is compared with.
    *_on(
        (*SEEDS, 4, 5),
        Training("plain", 3000, 4e-3),
        Training("lookahead", 3000, 16e-3),
        Training("lookahead", 3000, 16e-3, until=0.5),
        Training("plain", 6000, 4e-3),
        Training("lookahead", 6000, 8e-3),
        Training("plain", 750, 8e-3, batch_size=32),
        Training("lookahead", 750, 16e-3, batch_size=32),
        Training("plain", 1500, 2e-3, width=128),
        Training("lookahead", 1500, 4e-3, width=128),
    ),
    *_on((*SEEDS, *LATER_SEEDS), Training("plain", 1500, 4e-3), Training("lookahead", 1500, 8e-3)),
    # The first three seeds suggested it, and are left out.
    *_on(LATER_SEEDS, Training("lookahead", 1500, 8e-3, until=0.5)),
)


def tries(training: Training) -> list[Training]:
    """Returns the trainings that the learning rate and the `b1` of one that is measured are chosen from."""
    free: Settings = {"rate": training.rate, "b1": training.b1, "until": training.until, "seeds": training.seeds}
    return [other for other in _tuning() if dataclasses.replace(other, **free) == training]


def _tuning() -> tuple[Training, ...]:
    """Returns what is tried: learning rates for each way, and for plain AdamW `b1` as well."""
    learned = tuple(way for way in WAYS if way.startswith("learned"))
    periods = tuple(f"nesterov-{period}-0.8-0.75" for period in PERIODS)
    tried: tuple[tuple[int, tuple[float, ...], tuple[str, ...], Settings], ...] = (
        (1500, (*RATES, 32e-3), ("lookahead",), {}),
        (1500, RATES, ("rates",), {}),
        (1500, MOMENTUM_RATES, periods, {}),
        (3000, RATES, ("ema", "network", "two-points", "evolved", *_BY_KIND, "rates-lookahead"), {}),
        (3000, (*RATES, 32e-3), ("lookahead",), {}),
        (3000, MOMENTUM_RATES, (*NESTEROV, "heavy-ball"), {}),
        (3000, (8e-3,), learned, {}),
        (6000, (*RATES[1:], 32e-3), ("lookahead",), {}),
        (6000, MOMENTUM_RATES, NESTEROV, {}),
        (12_000, RATES, ("lookahead",), {}),
        (12_000, MOMENTUM_RATES, NESTEROV[:1], {}),
        (3000, (1e-3, *RATES), ("plain",), {"decay": 0.0}),
        (3000, RATES, ("lookahead",), {"decay": 0.0}),
        (3000, LOW_RATES, NESTEROV[:1], {"decay": 0.0}),
        (3000, RATES, AHEAD, {"decay": 0.5}),
        # The same text as 3000 of the others.
        (750, (*RATES, 32e-3), AHEAD, {"batch_size": 32}),
        (750, MOMENTUM_RATES, NESTEROV[:1], {"batch_size": 32}),
        (1500, LOW_RATES, (*AHEAD, "rates"), {"width": 128}),
        (1500, LOW_RATES[:4], (*AHEAD, "rates"), {"width": 256}),
    )
    # One seed is little to choose by. The baseline has the best two rates on all seeds, and takes the better one.
    more = {(n, rate): (0, *SEEDS) for n in BUDGETS[:3] for rate in (4e-3, 8e-3)}
    return (
        *(Training("plain", n, rate, seeds=more.get((n, rate), (0,))) for n in BUDGETS for rate in RATES),
        *(Training("plain", n, rate, b1) for n, rate in B1_AT for b1 in (0.95, 0.97)),
        *(
            Training(way, steps, rate, **changed)
            for steps, rates, ways, changed in tried
            for way in ways
            for rate in rates
        ),
    )


_CHOICES = (
    "123 000 weights; 1024 bytes a step; AdamW with b2 0.99, weight decay 0.1, gradients clipped to norm 1, warmup "
    "over a twentieth of the steps and linear decay to zero."
)

EXPERIMENTS = (
    Language(
        name="language-tuning",
        title="Language model, tuning",
        question="Which learning rate is best for each way to train and each budget?",
        minutes=245,
        arms=_tuning(),
        choices=f"{_CHOICES} Seed 0 only chooses.",
    ),
    Language(
        name="language",
        title="Language model",
        question="Do jumps help a transformer with a tuned AdamW, in one pass over its text?",
        minutes=176,
        arms=MEASURED,
        choices=f"{_CHOICES} The seeds that are measured are others than the one that chose.",
    ),
)
