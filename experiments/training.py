"""The training loop of all experiments, written down.

All that a run does follows from its seed and the number of the step. So arms with the same seed have the same start,
the same batches and the same dropout, and a run that was killed goes on with the same bits.
"""

import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import optax
import orbax.checkpoint as ocp
from flax import nnx
from jax import lax
from scipy import optimize, special

from optax_introspect import recalibrate

from ._config import Arm, Experiment
from .data import AUGMENTATIONS, Batches, Images, standardise
from .optimizers import Optimizer

Array = npt.NDArray[Any]
Row = dict[str, Any]
# Seconds of training that a run that is killed loses at most.
CHECKPOINT_SECONDS = 30.0
# Steps made in one call, where they are made in a loop on the device.
BLOCK = 250
# Steps between two looks at the clock, where each is made in a call of its own.
FEW = 20
# `nnx.Rngs` of the same seed makes the initial weights of the keys from 0 on.
_DROPOUT = 1 << 30
# Weight of the losses of auxiliary heads in the loss that is trained on (Szegedy et al. 2014, section 5).
_AUXILIARY = 0.3
# Augmented images that are evaluated at a time.
_EVALUATED = 500


class StoppedError(Exception):
    """The time is up, and everything is on disk."""


class Trained(NamedTuple):
    """Weights, optimizer state and batch norm statistics, which a step updates."""

    params: Any
    opt_state: Any
    statistics: Any


@dataclasses.dataclass
class State:
    """State of a run.

    Attributes:
      trained: what was trained.
      step: updates made.
      rows: what was measured so far.
      seconds: time of training, without evaluation and compilation.
      cpu_seconds: the same for all threads of the process together.
    """

    trained: Trained
    step: int = 0
    rows: list[Row] = dataclasses.field(default_factory=list)
    seconds: float = 0.0
    cpu_seconds: float = 0.0


class Trainable(Protocol):
    """Protocol of what `train` trains.

    Attributes:
      in_blocks: whether many steps are made in one call.
      params: the initial weights.
    """

    in_blocks: bool
    params: Any

    def start(self, optimizer: Optimizer) -> State:
        """Returns the state at step 0, in buffers of its own."""
        ...

    def stepper(self, optimizer: Optimizer) -> Callable[[Trained, int, int], Trained]:
        """Returns the function that makes the steps from one number to another, in the buffers that it is given."""
        ...


class Task:
    """A network, its start, batches and dropout: all that arms of one seed share.

    Args:
      network: makes the network from `rngs`. It maps images and a dropout key to logits; in training, that is with a
        key, it may return logits of auxiliary heads after them.
      images: the training and the test set.
      batch_size: number of examples in a step.
      seed: seed of the initial weights, the batches and the dropout.
      augmentation: key of an augmentation; None scales images to [0, 1].
    """

    def __init__(
        self,
        network: Callable[..., nnx.Module],
        images: Images,
        batch_size: int,
        seed: int,
        augmentation: str | None = None,
    ):
        made = network(rngs=nnx.Rngs(seed))
        parts: Any = nnx.split(made, nnx.Param, ...)
        self.graphdef, self.params, self.statistics = parts
        self.images, self.seed = images, seed
        self.augmentation = None if augmentation is None else AUGMENTATIONS[augmentation]
        self.batches = Batches(images, batch_size, seed, self.augmentation.train if self.augmentation else None)
        # XLA on a CPU runs convolutions inside of a loop several times slower, and NumPy augments batch by batch.
        convolves = any(isinstance(module, nnx.Conv) for _, module in nnx.iter_modules(made))
        self.in_blocks = self.augmentation is None and not convolves
        self._jitted_logits = jax.jit(lambda params, statistics, x: self._forward(params, statistics, x)[0][0])

    def start(self, optimizer: Optimizer) -> State:
        """Returns the state at step 0, in buffers of its own: the steps take those that they are given."""
        params, statistics = jax.tree.map(jnp.copy, (self.params, self.statistics))
        return State(Trained(params, jax.jit(optimizer.tx.init)(params), statistics))

    def stepper(self, optimizer: Optimizer) -> Callable[[Trained, int, int], Trained]:
        """Returns the function that makes the steps from one number to another, in the buffers that it is given."""
        update = functools.partial(self._update, optimizer.tx)
        if not self.in_blocks:
            one = jax.jit(update, donate_argnums=0)

            def steps(trained: Trained, start: int, end: int) -> Trained:
                for step in range(start, end):
                    trained = one(trained, *self.batches[step], np.int32(step))
                return trained

            return steps

        images, labels = jnp.asarray(self.images.train_images), jnp.asarray(self.images.train_labels)

        @functools.partial(jax.jit, donate_argnums=0)
        def block(trained: Trained, images: Any, labels: Any, order: Any, first: Any, count: Any) -> Trained:
            def body(i: Any, trained: Trained) -> Trained:
                return update(trained, images[order[i]], labels[order[i]], first + i)

            result: Trained = lax.fori_loop(0, count, body, trained)
            return result

        def blocks(trained: Trained, start: int, end: int) -> Trained:
            # The number of steps is an argument of one program: which steps make a block doesn't change any bit.
            for first in range(start, end, BLOCK):
                count = min(BLOCK, end - first)
                order = np.zeros((BLOCK, self.batches.batch_size), np.int32)
                for i in range(count):
                    order[i] = self.batches.order(first + i)
                trained = block(trained, images, labels, order, np.int32(first), np.int32(count))
            return trained

        return blocks

    def _update(
        self, tx: optax.GradientTransformation, trained: Trained, images: Any, labels: Any, step: Any
    ) -> Trained:
        """Makes one update, the only one there is."""
        key = jax.random.fold_in(jax.random.key(self.seed), _DROPOUT + step)

        def loss(params: Any) -> tuple[jax.Array, Any]:
            (logits, *auxiliary), statistics = self._forward(params, trained.statistics, images, key)
            losses = [
                jnp.mean(optax.softmax_cross_entropy_with_integer_labels(x, labels)) for x in (logits, *auxiliary)
            ]
            return losses[0] + _AUXILIARY * sum(losses[1:]), statistics

        gradients, statistics = jax.grad(loss, has_aux=True)(trained.params)
        updates, opt_state = tx.update(gradients, trained.opt_state, trained.params)
        return Trained(optax.apply_updates(trained.params, updates), opt_state, statistics)

    def _forward(self, params: Any, statistics: Any, images: Any, key: Any = None) -> tuple[tuple[jax.Array, ...], Any]:
        """Returns the logits, those of auxiliary heads after them, and the statistics after this pass."""
        # Copied, since a pass may not change variables of another level of tracing.
        network: Any = nnx.merge(self.graphdef, params, statistics, copy=True)
        outputs = network(self._prepared(images), key)
        return outputs if isinstance(outputs, tuple) else (outputs,), nnx.state(network, nnx.Not(nnx.Param))

    def _prepared(self, images: Any) -> Any:
        return jnp.asarray(images, jnp.float32) / 255 if self.augmentation is None else standardise(images)

    def logits(self, params: Any, statistics: Any, images: Array) -> Array:
        """Returns the logits of images as they are in the data, float32 `[n, classes]`."""
        if self.augmentation is None:
            return np.asarray(self._jitted_logits(params, statistics, images))
        images = self.augmentation.evaluate(images)
        parts = (images[i : i + _EVALUATED] for i in range(0, len(images), _EVALUATED))
        return np.concatenate([np.asarray(self._jitted_logits(params, statistics, part)) for part in parts])

    def metrics(self, params: Any, statistics: Any, train_examples: int) -> dict[str, float]:
        """Returns what is measured of weights on the first training images and on all test images."""
        images = self.images
        return metrics(
            self.logits(params, statistics, images.train_images[:train_examples]),
            images.train_labels[:train_examples],
            self.logits(params, statistics, images.test_images),
            images.test_labels,
        )

    def recalibrated(self, params: Any, statistics: Any, step: int, batches: int = 10) -> Any:
        """Returns the statistics of batch norms that the weights have on the training batches after a step."""
        network = nnx.merge(self.graphdef, params, statistics, copy=True)
        recalibrate(network, (self.batches[step + i][0] for i in range(batches)), self._training_pass)
        return nnx.state(network, nnx.Not(nnx.Param))

    def _training_pass(self, network: Any, images: Any) -> Any:
        return network(self._prepared(images), jax.random.key(0))


def train(
    task: Trainable,
    optimizer: Optimizer,
    stops: Iterable[int],
    folder: Path,
    *,
    before_save: Callable[[], None] = lambda: None,
    advance: Callable[[int], None] = lambda steps: None,
    deadline: float | None = None,
) -> Iterator[State]:
    """Trains, and yields the state at each stop; goes on from the last checkpoint.

    The caller may read the state, and add to its rows, which are part of the checkpoints.

    Args:
      task: what is trained.
      optimizer: how it is trained.
      stops: steps to yield the state at; the last one is the end.
      folder: folder of the checkpoints.
      before_save: called before each checkpoint.
      advance: called with the number of steps that were made.
      deadline: time of `time.time` at which to stop; None is never.

    Raises:
      StoppedError: the deadline has passed, and everything is on disk.
    """
    stops = sorted(stops)
    state, steps = task.start(optimizer), task.stepper(optimizer)
    # Compiles the program, so that the clock doesn't count that.
    jax.block_until_ready(steps(jax.tree.map(jnp.copy, state.trained), 0, 1))
    options = ocp.CheckpointManagerOptions(max_to_keep=1, enable_async_checkpointing=False)
    with ocp.CheckpointManager(folder.absolute(), options=options) as checkpoints:
        state = _restored(checkpoints, state)
        advance(state.step)
        if state.step == 0 and stops[0] == 0:
            yield state
        saved_at = time.monotonic()
        for stop in stops:
            while state.step < stop:
                end = min(stop, state.step + (BLOCK if task.in_blocks else FEW))
                with _clocked(state):
                    state.trained = steps(state.trained, state.step, end)
                    jax.block_until_ready(state.trained.params)
                advance(end - state.step)
                state.step = end
                if end == stop:
                    yield state
                late = deadline is not None and time.time() > deadline
                # None at the end, where the caller has all that it wants.
                if end < stops[-1] and (late or time.monotonic() - saved_at > CHECKPOINT_SECONDS):
                    before_save()
                    _save(checkpoints, state)
                    saved_at = time.monotonic()
                    if late:
                        raise StoppedError


def _save(checkpoints: ocp.CheckpointManager, state: State) -> None:
    about = {name: getattr(state, name) for name in ("step", "rows", "seconds", "cpu_seconds")}
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(state.trained)]
    items = ocp.args.Composite(about=ocp.args.JsonSave(about), trained=ocp.args.StandardSave(leaves))
    checkpoints.save(state.step, args=items)


def _restored(checkpoints: ocp.CheckpointManager, start: State) -> State:
    """Returns the state of the last checkpoint, or the start if there is none."""
    step = checkpoints.latest_step()
    if step is None:
        return start
    treedef: Any
    leaves, treedef = jax.tree.flatten(start.trained)
    like = [np.asarray(leaf) for leaf in leaves]
    items = ocp.args.Composite(about=ocp.args.JsonRestore(), trained=ocp.args.StandardRestore(like))
    found = checkpoints.restore(step, args=items)
    return State(treedef.unflatten([jnp.asarray(leaf) for leaf in found["trained"]]), **found["about"])


@contextlib.contextmanager
def _clocked(state: State) -> Iterator[None]:
    began, cpu_began = time.perf_counter(), time.process_time()
    yield
    state.seconds += time.perf_counter() - began
    state.cpu_seconds += time.process_time() - cpu_began


def stops_of(experiment: Experiment, arm: Arm) -> tuple[set[int], set[int]]:
    """Returns the steps at which an arm is evaluated, and those of them around jumps."""
    # Jumps at even intervals are too many to evaluate around each.
    jumps = {*experiment.around, *(() if isinstance(arm.jump_steps, range) else arm.jump_steps)}
    around = {t + after for t in jumps for after in (0, *experiment.after_jump) if t + after <= arm.steps}
    return {*range(0, arm.steps + 1, experiment.every), arm.steps, *around}, around | {arm.steps}


def measure(task: Task, optimizer: Optimizer, state: State, train_examples: int, around: Iterable[int]) -> bool:
    """Adds a row of measurements to a state; returns whether the losses are finite.

    Where batch norms lag behind a jump, and at the same steps of other arms, recalibrated ones are measured as well.
    """
    weights = optimizer.evaluated(state.trained.params, state.trained.opt_state)
    statistics = state.trained.statistics
    found = task.metrics(weights, statistics, train_examples)
    row: Row = {"step": state.step, "seconds": state.seconds}
    if jax.default_backend() == "cpu":
        row["cpu_seconds"] = state.cpu_seconds
    row |= found
    if state.step in around and jax.tree.leaves(statistics):
        try:
            again = task.metrics(weights, task.recalibrated(weights, statistics, state.step), train_examples)
        except FloatingPointError:
            again = dict.fromkeys(found, math.nan)
        row |= {f"recalibrated_{name}": value for name, value in again.items()}
    row |= jump_counts(state.trained.opt_state)
    state.rows.append({name: rounded(value) for name, value in row.items()})
    return math.isfinite(found["train_loss"]) and math.isfinite(found["test_loss"])


def jump_counts(opt_state: Any) -> Row:
    """Returns the numbers of jumps that were taken and refused, if there is an `introspect`; of several, the most."""
    row: Row = {}
    for name in ("jumps_taken", "jumps_refused"):
        if counts := [int(count) for _, count in optax.tree.get_all_with_path(opt_state, name)]:
            row[name] = max(counts)
    return row


def rounded(value: Any) -> Any:
    """Returns a float with seven digits, and None for one that is not finite, which JSON doesn't have."""
    if not isinstance(value, float):
        return value
    return float(f"{value:.7g}") if math.isfinite(value) else None


def metrics(train_logits: Array, train_labels: Array, test_logits: Array, test_labels: Array) -> dict[str, float]:
    """Returns losses (cross entropies in nats) and accuracies of logits `[n, classes]` and labels `[n]`.

    `calibrated_loss` is the test loss with logits divided by a temperature, fitted for each half of the test images on
    the other half: what is left when it is only a matter of larger or smaller logits. `temperature` is the geometric
    mean of the two; above 1, the network is too sure of itself.
    """
    halves: Sequence[slice] = (slice(0, None, 2), slice(1, None, 2))
    fitted = [temperature(test_logits[half], test_labels[half]) for half in halves]
    calibrated = [
        cross_entropy(test_logits[half] / other, test_labels[half])
        for half, other in zip(halves, reversed(fitted), strict=True)
    ]
    return {
        "train_loss": float(np.mean(cross_entropy(train_logits, train_labels))),
        "train_accuracy": float(np.mean(np.argmax(train_logits, axis=1) == train_labels)),
        "test_loss": float(np.mean(cross_entropy(test_logits, test_labels))),
        "test_accuracy": float(np.mean(np.argmax(test_logits, axis=1) == test_labels)),
        "calibrated_loss": float(np.mean(np.concatenate(calibrated))),
        "temperature": float(np.sqrt(np.prod(fitted))),
    }


def cross_entropy(logits: Array, labels: Array) -> Array:
    """Returns the cross entropy of each example, float64 `[n]`."""
    chosen = np.take_along_axis(logits, labels[:, None].astype(int), axis=1)[:, 0]
    with np.errstate(invalid="ignore"):
        losses: Array = special.logsumexp(logits.astype(np.float64), axis=1) - chosen
    return losses


def temperature(logits: Array, labels: Array) -> float:
    r"""Returns the temperature from 1/1000 to 1000 with the smallest cross entropy; NaN if logits are not finite.

    .. math:: T = \arg\min_T \sum_i \log \sum_j e^{z_{ij} / T} - z_{i y_i} / T

    References:
      Guo et al., "On Calibration of Modern Neural Networks", ICML 2017.
    """
    if not np.all(np.isfinite(logits)):
        return math.nan
    largest = np.max(logits, axis=1, keepdims=True)
    below = logits - largest
    missed = float(np.mean(largest - np.take_along_axis(logits, labels[:, None].astype(int), axis=1)))

    def loss(log_temperature: float) -> float:
        inverse = np.exp(-np.float32(log_temperature))
        with np.errstate(over="ignore"):  # far below the largest is 0, however far
            return float(np.mean(np.log(np.sum(np.exp(below * inverse), axis=1)))) + missed * float(inverse)

    bounds = (np.log(1e-3), np.log(1e3))
    return float(np.exp(optimize.minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-3}).x))
