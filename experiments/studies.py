"""Studies that record the weights of a training: how weights move, and predictors that are fitted to them."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import optax
from flax import nnx

import optax_introspect as oi
from optax_introspect import Examples, Forecaster, WeightHistory

from ._config import Study
from .networks import NETWORKS, ConvNet
from .optimizers import OPTIMIZERS, Optimizer
from .runs import Context, Run, Settings, Tables, locked
from .training import Row, Task, Trainable, train

Array = npt.NDArray[Any]
# Of `N_0` (section 4.1 of the paper).
BATCH_SIZE, LEARNING_RATE = 50, 1e-4
# Bins of the histograms of how far weights move.
BINS = 100
# Records from one point of a curve to the next.
CURVE_EVERY = 2
# Runs of `N_0` that predictors are fitted to: the initial weights, which the paper doesn't give, and the seed.
HISTORIES: dict[str, tuple[nnx.Initializer | None, int]] = {
    "lecun": (None, 0),
    "lecun-1": (None, 1),
    # As in the MNIST tutorial of TensorFlow of that time.
    "wide": (nnx.initializers.truncated_normal(0.1), 0),
}


@dataclasses.dataclass(frozen=True)
class Fit:
    """A predictor to be fitted.

    Attributes:
      name: the key in commands and results.
      history: key of `HISTORIES`.
      jump_ratio: multiple of `t` that is forecast.
      loss: `"l1"`, `"l2"` or `"percentage"`.
      activation: activation of the hidden layer.
      equivariant: maps differences to `w_t`, without biases.
      steps: updates of `N_0`.
      record_every: updates from one record of its weights to the next.
      examples: number of examples.
      fit_steps: updates of the predictor.
    """

    name: str
    history: str = "lecun"
    jump_ratio: float = 2.0
    loss: str = "l1"
    activation: str = "relu"
    equivariant: bool = False
    steps: int = 20_000
    record_every: int = 100
    examples: int = 800_000
    fit_steps: int = 30_000

    def fitted_to(self, history: WeightHistory, workdir: Path, seed: int = 0) -> Any:
        """Returns the `optax_introspect.Fit` to a history; goes on from checkpoints in `workdir`."""
        examples = oi.sample_examples(history, self.examples, target=float(self.jump_ratio), seed=seed)
        return oi.fit(
            examples,
            loss=self.loss,
            activation=self.activation,
            use_bias=not self.equivariant,
            residual=self.equivariant,
            num_steps=self.fit_steps,
            seed=seed,
            workdir=workdir,
            progress=False,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Predictors(Study):
    """A study that fits predictors.

    Attributes:
      arms: the predictors, each a `Fit` unless a subclass has others.
    """

    arms: tuple[Any, ...]

    def runs(self, arms: tuple[Any, ...]) -> list[Run]:
        """Returns what is to be done, a predictor at a time."""
        return [FitRun(self, arm, 0) for arm in arms]


@dataclasses.dataclass(frozen=True)
class Recorded:
    """A training whose weights are recorded, without and with the paper's jumps.

    Attributes:
      name: the key in commands and results.
      network: key of a network.
      optimizer: key of an optimizer.
      learning_rate: its learning rate.
      batch_size: examples in a step.
      steps: number of updates.
      record_every: updates from one record of the weights to the next.
      jump_steps: steps at which the weights jump.
      augmentation: key of an augmentation, or None.
    """

    name: str
    network: str
    optimizer: str
    learning_rate: float
    batch_size: int
    steps: int
    record_every: int
    jump_steps: tuple[int, ...]
    augmentation: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Movement(Study):
    """A study of how far, and on which curves, weights move (section 3 of the paper).

    Attributes:
      arms: the trainings.
      seeds: number of seeds.
    """

    arms: tuple[Recorded, ...]
    seeds: int

    def runs(self, arms: tuple[Recorded, ...]) -> list[Run]:
        """Returns what is to be done, a training at a time."""
        return [MovementRun(self, arm, seed) for arm in arms for seed in range(self.seeds)]


def record(
    task: Trainable,
    tx: optax.GradientTransformation,
    steps: int,
    every: int,
    folder: Path,
    context: Context,
    about: Settings,
) -> tuple[WeightHistory, Any]:
    """Trains, and records the weights at step 0 and every so many steps, or goes on with it.

    Args:
      task: what is trained.
      tx: how it is trained.
      steps: number of updates.
      every: updates from one record to the next.
      folder: gets the history, and checkpoints.
      context: the context.
      about: metadata of the history. A recording can only be continued with the same metadata.

    Returns:
      The history, and the last weights.
    """
    with WeightHistory.record(folder / "history", task.params, metadata=about) as history:
        began = False
        for state in train(
            task,
            Optimizer(tx),
            {*range(0, steps + 1, every), steps},
            folder / "checkpoints",
            before_save=history.flush,
            advance=context.advance,
            deadline=context.deadline,
        ):
            if not began:
                # What was recorded after the last checkpoint is recorded again.
                history.truncate(state.step - 1)
                began = True
            if state.step % every == 0:
                history.append(state.step, state.trained.params)
    return WeightHistory.open(folder / "history"), state.trained.params


class FitRun(Run):
    """Trains `N_0`, and fits one predictor to it."""

    def work(self, context: Context, folder: Path) -> Tables:
        """Records, fits, saves the predictor, and returns its errors and the linear rule nearest to it."""
        arm: Fit = self.arm
        init, seed = HISTORIES[arm.history]
        network = ConvNet if init is None else functools.partial(ConvNet, kernel_init=init)
        images = context.data(self.experiment.data)
        about = {"history": arm.history, "images": images.kind, "steps": arm.steps, "record_every": arm.record_every}
        shared = folder.parents[1] / "histories" / arm.history
        with locked(shared, "another process works on", seconds=-1):  # others wait for it
            if not (path := shared / "history").exists() or arm.steps not in WeightHistory.open(path).steps:
                task = Task(network, images, BATCH_SIZE, seed)
                record(task, optax.adam(LEARNING_RATE), arm.steps, arm.record_every, shared, context, about)
        history = WeightHistory.open(path)
        fitted = arm.fitted_to(history, folder / "fit")
        destination = context.predictors / arm.name
        if not destination.exists():
            oi.save(fitted.forecaster, destination)
        row = errors(fitted.forecaster, fitted.train, fitted.validation)
        row |= linear_rule(fitted.forecaster, fitted.validation)
        return {"": [row]}


class MovementRun(Run):
    """Records one training, without and with jumps."""

    @property
    def steps(self) -> int:
        """Number of steps of both trainings."""
        return 2 * int(self.arm.steps)

    def work(self, context: Context, folder: Path) -> Tables:
        """Records both, and returns how far weights move and, of one seed, some of their curves."""
        arm: Recorded = self.arm
        base = OPTIMIZERS[arm.optimizer](arm.learning_rate)
        jumps = optax.chain(base, oi.introspect(arm.jump_steps, oi.pretrained("mnist-n0")))
        histories = []
        for name, tx in {"plain": base, "jumps": jumps}.items():
            images = context.data(self.experiment.data)
            task = Task(NETWORKS[arm.network], images, arm.batch_size, self.seed, arm.augmentation)
            about = {"arm": dataclasses.asdict(arm), "seed": self.seed, "images": images.kind}
            history, _ = record(task, tx, arm.steps, arm.record_every, folder / name, context, about)
            histories.append(history)
        return {"": movement(histories[0])} | ({"curves": curves(*histories)} if self.seed == 0 else {})


def errors(forecaster: Forecaster, train: Examples, validation: Examples) -> Row:
    """Returns mean absolute errors, times 1000 as in the paper, beside those of doing without a network."""
    two_point = oi.polynomial(1, 1.3, points=(1.0, 0.4))
    measured = {
        "train_l1": (forecaster, train),
        "validation_l1": (forecaster, validation),
        "staying_l1": (None, validation),
        "two_point_l1": (two_point, validation),
    }
    return {name: 1000 * oi.mean_absolute_error(f, examples) for name, (f, examples) in measured.items()}


def linear_rule(forecaster: Forecaster, validation: Examples) -> Row:
    """Returns the linear rule nearest to a forecaster on real weights, and the share of its moves that it explains.

    The displacement is regressed on the differences of the points to `w_t` and on a constant, by least squares.
    """
    now = validation.inputs[:, 0].astype(np.float64)
    moved = _forecast(forecaster, validation) - now
    differences = validation.inputs[:, 1:].astype(np.float64) - now[:, None]
    design = np.column_stack([differences, np.ones(len(now))])
    *coefficients, constant = np.linalg.lstsq(design, moved)[0].tolist()
    rule = design @ np.array([*coefficients, constant])
    return {
        **{f"coefficient_{p:g}": c for p, c in zip(validation.points[1:], coefficients, strict=True)},
        "constant_x1000": 1000 * constant,
        "explained": 1 - float(np.var(moved - rule) / np.var(moved)),
        "rule_l1": 1000 * float(np.mean(np.abs(now + rule - validation.targets))),
        "displacement_x1000": 1000 * float(np.mean(np.abs(moved))),
    }


def _forecast(forecaster: Forecaster, examples: Examples) -> Array:
    inputs = [jnp.asarray(examples.inputs[:, examples.points.index(point)]) for point in forecaster.points]
    return np.asarray(jax.jit(lambda *w: forecaster(*w, key=jax.random.key(0)))(*inputs), np.float64)


def movement(history: WeightHistory) -> list[Row]:
    """Returns of each measure of change its histogram, and the share of the weights that makes half of the change."""
    change = oi.weight_change(history)
    rows: list[Row] = []
    for name, values in change._asdict().items():
        counts, edges = np.histogram(values, BINS)
        of_all = {"low": float(edges[0]), "high": float(edges[-1]), "share": half_share(values), "weights": len(values)}
        rows += [{"measure": name, "quantity": key, "bin": None, "value": x} for key, x in of_all.items()]
        rows += [{"measure": name, "quantity": "count", "bin": i, "value": n} for i, n in enumerate(counts.tolist())]
    unmoved = float(np.mean(change.deviation == 0))
    return [*rows, {"measure": "", "quantity": "unmoved", "bin": None, "value": unmoved}]


def half_share(change: Array) -> float:
    """Returns the smallest share of the weights that makes half of the sum of all absolute changes."""
    largest_first = np.sort(np.abs(change.astype(np.float64)))[::-1]
    enough = np.searchsorted(np.cumsum(largest_first), largest_first.sum() / 2) + 1
    return float(enough / len(change))


def curves(plain: WeightHistory, jumps: WeightHistory) -> list[Row]:
    """Returns the curve of one weight of each bin of both histograms, without and with jumps."""
    change = oi.weight_change(plain)._asdict()
    steps = plain.steps.tolist()[::CURVE_EVERY]
    both = [np.stack([history.read(step) for step in steps]) for history in (plain, jumps)]
    rows: list[Row] = []
    for name, values in change.items():
        random = np.random.default_rng(0)
        edges = np.histogram_bin_edges(values, BINS)
        bin_of = np.searchsorted(edges[1:-1], values, side="right")
        for weight in (int(random.choice(np.flatnonzero(bin_of == i))) for i in np.unique(bin_of)):
            base = {"weight": weight, "bins_of": name, **{key: float(x[weight]) for key, x in change.items()}}
            for i, step in enumerate(steps):
                points = {key: float(f"{x[i, weight]:.5g}") for key, x in zip(("plain", "jumps"), both, strict=True)}
                rows.append({"step": step} | base | points)
    return rows
