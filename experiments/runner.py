"""Trains the arms of one experiment and seed that are one up to their first jumps, and goes on where it stopped."""

import contextlib
import dataclasses
import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

import optax_introspect

from . import runs
from .data import Images
from .evaluation import Metrics, metrics
from .forecasters import fingerprint, forecaster
from .networks import NETWORKS
from .optimizers import optimizer
from .records import Arm, Training
from .training import Optimizer, Task, Trained, UpdateFunction

# What a run that is killed loses at most, in seconds of training.
CHECKPOINT_SECONDS = 30.0


class StoppedError(Exception):
    """The time is up; everything is on disk."""


@dataclasses.dataclass(frozen=True)
class Context:
    """What all runs of one command have in common.

    Attributes:
      workdir: the folder of results.
      images: what there is to train on, by the name that records use.
      deadline: when to stop, on the clock of `time.time`; None is never.
      advance: is told of steps that were made.
    """

    workdir: Path
    images: Callable[[str], Images]
    deadline: float | None = None
    advance: Callable[[int], None] = lambda steps: None

    @property
    def time_is_up(self) -> bool:
        """Whether to stop now."""
        return self.deadline is not None and time.time() > self.deadline

    def check_time(self) -> None:
        """Raises `StoppedError` if it is time to."""
        if self.time_is_up:
            raise StoppedError

    @property
    def predictors(self) -> Path:
        """Where `run predictors` leaves them: with the results, since those of others are of these very ones."""
        return self.workdir / "predictors"


@dataclasses.dataclass
class State:
    """Where a run is.

    Attributes:
      step: updates made.
      trained: what they led to.
      seconds: of training, on the clock.
      cpu_seconds: of this process: the same on a core of its own, unless others work there too.
    """

    step: int
    trained: Trained
    seconds: float = 0.0
    cpu_seconds: float = 0.0

    def copy(self) -> "State":
        """Returns a state in buffers of its own, since every step writes into those that it is given."""
        return dataclasses.replace(self, trained=jax.tree.map(jnp.copy, self.trained))


@dataclasses.dataclass(frozen=True)
class Unit:
    """What one process does at a time: one trunk, and the arms that branch from it.

    Attributes:
      experiment: the experiment.
      seed: the seed.
      trunk: the arm without jumps.
      branches: arms with jumps.
    """

    experiment: Training
    seed: int
    trunk: Arm
    branches: tuple[Arm, ...]

    @property
    def name(self) -> str:
        """What is shown of it."""
        return f"{self.experiment.name}, {self.trunk.name}, seed {self.seed}"

    def path(self, workdir: Path, arm: Arm) -> Path:
        """Returns the file of a complete run of one of its arms."""
        return runs.path_of(workdir, self.experiment.name, arm.name, self.seed)

    def unfinished(self, context: Context) -> list[Arm]:
        """Returns the arms that there is something to do for."""
        return [arm for arm in (self.trunk, *self.branches) if not self.path(context.workdir, arm).exists()]

    def steps(self, context: Context) -> int:
        """Returns how many steps there are to be made, if none was made yet."""
        unfinished = self.unfinished(context)
        steps = sum(arm.steps - min(arm.jump_steps, default=0) for arm in unfinished)
        if self.trunk not in unfinished:
            first_jumps = [arm.jump_steps[0] for arm in unfinished]
            steps += max((t for t in first_jumps if not self.kept(context.workdir, t).exists()), default=0)
        return steps

    def header(self, context: Context, arm: Arm) -> runs.Line:
        """Returns the header of the results of an arm."""
        branch = {"arm": self.trunk.name, "step": arm.jump_steps[0]} if arm.jump_steps else None
        with_jumps = None if arm.forecaster is None else forecaster(arm.forecaster, context.predictors)
        return {
            **self.experiment.settings(),
            "arm": dataclasses.asdict(arm) | {"seeds": None},
            "seed": self.seed,
            "branch": branch,
            "forecaster": None if with_jumps is None else fingerprint(with_jumps),
            "images": context.images(self.experiment.data).source.partition(",")[0],
            "versions": runs.versions(),
            "machine": runs.machine(),
        }

    def check(self, context: Context, versions: bool = True) -> None:
        """Raises a ValueError if results that are there already are of other settings (or versions)."""
        for arm in (self.trunk, *self.branches):
            for path in (self.path(context.workdir, arm), self.working(context.workdir, arm) / "journal.jsonl"):
                if path.exists():
                    runs.check_header(path, self.header(context, arm), versions)

    def run(self, context: Context) -> None:
        """Trains what is not complete.

        Raises:
          StoppedError: it is to be continued later.
          BlockingIOError: another process works on it.
        """
        with runs.locked(self._folder(context.workdir)):
            self.check(context)
            unfinished = self.unfinished(context)
            if not unfinished:
                return
            experiment, images = self.experiment, context.images(self.experiment.data)
            network = NETWORKS[experiment.network]
            task = Task(network, images, experiment.batch_size, self.seed, experiment.augmentation)
            branches = [_Branch(self, context, task, arm) for arm in unfinished if arm.jump_steps]
            trunk = _Trunk(self, context, task, branches)
            trunk.train(self.trunk in unfinished)
            for branch in branches:
                branch.train(trunk)
        # What the trunk kept is of use as long as an arm may still branch from it.
        everything = [a for a in self.experiment.arms if a.trunk == self.trunk.trunk and self.seed in a.seeds]
        if all(self.path(context.workdir, arm).exists() for arm in everything):
            shutil.rmtree(self._folder(context.workdir), ignore_errors=True)

    def _folder(self, workdir: Path) -> Path:
        return runs.working(workdir, self.experiment.name, self.trunk.name, self.seed)

    def working(self, workdir: Path, arm: Arm) -> Path:
        """Returns the folder of what an arm needs to go on."""
        return self._folder(workdir) / arm.name

    def kept(self, workdir: Path, step: int) -> Path:
        """Returns the folder of a state of the trunk that arms branch from."""
        return (self.working(workdir, self.trunk) / "kept" / str(step)).absolute()


class _Trainer:
    """Trains one arm from some state to its end, evaluates it, and keeps what it takes to go on."""

    def __init__(self, unit: Unit, context: Context, task: Task, arm: Arm, how: Optimizer):
        self.unit, self.context, self.task, self.arm, self.how = unit, context, task, arm, how
        self.folder = unit.working(context.workdir, arm)
        experiment = unit.experiment
        around = {*arm.jump_steps, *experiment.around}
        around_jumps = {*around, *(t + after for t in around for after in experiment.after_jump)}
        self.measured = {*range(0, arm.steps + 1, experiment.every), arm.steps, *around_jumps}
        # Where the running statistics of batch norm may be those of other weights, and, to compare, where they aren't.
        self.recalibrated = {arm.steps, *around_jumps} if jax.tree.leaves(task.statistics) else set()

    def start(self) -> State:
        """Returns the state at step 0."""
        params, statistics = jax.tree.map(jnp.copy, (self.task.params, self.task.statistics))
        params = self.how.start(params)
        return State(0, Trained(params, jax.jit(self.how.tx.init)(params), statistics))

    def finish(self, state: State, update: UpdateFunction) -> None:
        """Trains from a state, or from the last checkpoint, to the end of the arm."""
        update(state.copy().trained, state.step)  # compiles it, so that the clock doesn't count that
        began_at = state.step
        with ocp.CheckpointManager(
            (self.folder / "checkpoint").absolute(),
            options=ocp.CheckpointManagerOptions(max_to_keep=1, enable_async_checkpointing=False),
        ) as checkpoints:
            if (latest := checkpoints.latest_step()) is not None:
                state = _restored(checkpoints.restore(latest, args=ocp.args.StandardRestore(_saved(state))), state)
            self.context.advance(state.step - began_at)
            journal = runs.Journal(self.folder / "journal.jsonl", self.unit.header(self.context, self.arm), latest)
            saved_at, finite = time.monotonic(), True
            if latest is None and began_at == 0:
                self._measure(state, journal)
            while state.step < self.arm.steps:
                self.keep(state)
                self._step(state, update)
                self.context.advance(1)
                if state.step in self.measured:
                    finite = self._measure(state, journal)
                    if not finite:
                        break  # with no checkpoint, from which it would go on
                time_is_up = self.context.time_is_up
                if time_is_up or time.monotonic() - saved_at > CHECKPOINT_SECONDS:
                    _wait(state)
                    journal.commit()  # a checkpoint must not be ahead of it
                    checkpoints.save(state.step, args=ocp.args.StandardSave(_saved(state)))
                    saved_at = time.monotonic()
                if time_is_up:
                    journal.close()
                    raise StoppedError
        self.context.advance(self.arm.steps - state.step)
        end = {"end": "complete" if finite else "not finite", **_jumps(state.trained.opt_state)}
        journal.complete(self.unit.path(self.context.workdir, self.arm), end)
        shutil.rmtree(self.folder / "checkpoint", ignore_errors=True)

    def _step(self, state: State, update: UpdateFunction) -> None:
        with _clocked(state):
            state.trained = update(state.trained, state.step)
            state.step += 1
        if state.step in self.measured:
            _wait(state)

    def _measure(self, state: State, journal: runs.Journal) -> bool:
        """Writes down what is measured; returns whether it is finite."""
        params, opt_state, statistics = state.trained
        weights = self.how.evaluated(params, opt_state)
        found = self._metrics(weights, statistics)
        clocks = {"seconds": state.seconds}
        if jax.default_backend() == "cpu":
            clocks["cpu_seconds"] = state.cpu_seconds
        line = {"step": state.step, **clocks, **found._asdict()}
        if state.step in self.recalibrated:
            line |= {f"recalibrated_{name}": value for name, value in self._recalibrated(weights, state.step).items()}
        journal.write(line)
        return math.isfinite(found.train_loss) and math.isfinite(found.test_loss)

    def _metrics(self, weights: Any, statistics: Any) -> Metrics:
        images, count = self.task.images, self.unit.experiment.train_examples
        return metrics(
            self.task.logits(weights, images.train_images[:count], statistics),
            images.train_labels[:count],
            self.task.logits(weights, images.test_images, statistics),
            images.test_labels,
        )

    def _recalibrated(self, weights: Any, step: int) -> dict[str, float]:
        """Returns what is measured with recalibrated statistics; NaN where these are not finite."""
        try:
            return self._metrics(weights, self.task.recalibrated(weights, step))._asdict()
        except FloatingPointError:
            return dict.fromkeys(Metrics._fields, math.nan)

    def keep(self, state: State) -> None:
        """Keeps a state for the arms that branch."""


class _Trunk(_Trainer):
    """The arm without jumps, which keeps the states that the others need."""

    def __init__(self, unit: Unit, context: Context, task: Task, branches: list["_Branch"]):
        super().__init__(unit, context, task, unit.trunk, optimizer(unit.experiment, unit.trunk, None))
        self.wanted = sorted({step for branch in branches for step in branch.needs})

    def train(self, unfinished: bool) -> None:
        """Trains to the end, if that is not done, and at least as far as a state is wanted."""
        update = self.task.update_function(self.how)
        if unfinished:
            self.finish(self.start(), update)
        # What is missing now: this arm was complete before another was asked for, or went on from a checkpoint.
        missing = [step for step in self.wanted if not self._kept(step).exists()]
        if missing:
            self._train_again(missing, update)

    def _train_again(self, missing: list[int], update: UpdateFunction) -> None:
        """Trains to the states that are missing, from the last one before them that there is."""
        folder = self._kept(0).parent
        there = [int(path.name) for path in folder.iterdir() if path.name.isdecimal()] if folder.exists() else []
        before = [step for step in there if step < missing[0]]
        state = self.state(max(before)) if before else self.start()
        self.context.advance(state.step)
        saved_at = time.monotonic()
        while state.step < missing[-1]:
            self.keep(state)
            self._step(state, update)
            self.context.advance(1)
            if self.context.time_is_up or time.monotonic() - saved_at > CHECKPOINT_SECONDS:
                self._save(state)  # not wanted, but to go on from
                saved_at = time.monotonic()
                self.context.check_time()
        self.keep(state)

    def keep(self, state: State) -> None:
        """Keeps a state, if it is wanted."""
        if state.step in self.wanted:
            self._save(state)

    def _save(self, state: State) -> None:
        if not (path := self._kept(state.step)).exists():
            with ocp.StandardCheckpointer() as checkpointer:
                checkpointer.save(path, _saved(state))

    def state(self, step: int) -> State:
        """Returns a state that was kept."""
        start = self.start()
        with ocp.StandardCheckpointer() as checkpointer:
            return _restored(checkpointer.restore(self._kept(step), _saved(start)), start)

    def _kept(self, step: int) -> Path:
        return self.unit.kept(self.context.workdir, step)


class _Branch(_Trainer):
    """An arm with jumps, which begins at its first jump."""

    def __init__(self, unit: Unit, context: Context, task: Task, arm: Arm):
        assert arm.forecaster is not None
        self.forecaster = forecaster(arm.forecaster, context.predictors)
        super().__init__(unit, context, task, arm, optimizer(unit.experiment, arm, self.forecaster))
        self.first_jump = arm.jump_steps[0]
        schedule = optax_introspect.plan(arm.jump_steps, self.forecaster.points)
        self.captures = [c.step for c in schedule.captures if c.step < self.first_jump]
        self.needs = [*self.captures, self.first_jump]

    def train(self, trunk: _Trunk) -> None:
        """Trains from the first jump to the end."""
        update = self.task.update_function(self.how)
        # The snapshots are those of a training that had the jumps from the start: each step of the trunk at which one
        # is taken is made once more, by the very program that trains this arm, and only the snapshots are kept of it.
        # Trained alone, this arm can differ in the last bits: XLA may round the two programs differently.
        snapshots = self.start().trained.opt_state[-1]
        for step in self.captures:
            then = _with_snapshots(trunk.state(step), snapshots)
            snapshots = update(then.trained, step).opt_state[-1]
        self.finish(_with_snapshots(trunk.state(self.first_jump), snapshots), update)


def _with_snapshots(state: State, snapshots: Any) -> State:
    """Returns a state of the arm without jumps as one of an arm with them."""
    snapshots = snapshots._replace(introspect_step=jnp.asarray(state.step, jnp.int32))
    trained = state.trained._replace(opt_state=(state.trained.opt_state, snapshots))
    return dataclasses.replace(state, trained=trained)


@contextlib.contextmanager
def _clocked(state: State) -> Iterator[None]:
    """Adds to the clocks of a state how long something takes."""
    began, cpu_began = time.perf_counter(), time.process_time()
    yield
    state.seconds += time.perf_counter() - began
    state.cpu_seconds += time.process_time() - cpu_began


def _wait(state: State) -> None:
    """Waits for steps that JAX has not finished yet, on their clock."""
    with _clocked(state):
        jax.block_until_ready(state.trained.params)


_NUMBERS = ("step", "seconds", "cpu_seconds")


def _saved(state: State) -> dict[str, Any]:
    numbers = {name: np.asarray(getattr(state, name)) for name in _NUMBERS}
    return {**numbers, "trained": state.trained.saved()}


def _restored(saved: dict[str, Any], like: State) -> State:
    return State(trained=like.trained.restored(saved["trained"]), **{name: saved[name].item() for name in _NUMBERS})


def _jumps(opt_state: Any) -> runs.Line:
    """Returns how many jumps were taken and refused."""
    last = opt_state[-1] if isinstance(opt_state, tuple) and opt_state else None
    if not isinstance(last, optax_introspect.IntrospectState):
        return {}
    return {"jumps_taken": int(last.jumps_taken), "jumps_refused": int(last.jumps_refused)}


def training_units(experiment: Training, arms: Sequence[Arm], seeds: Sequence[int]) -> list[Unit]:
    """Returns what there is to do for some arms and seeds; the arms that they branch from come with them."""
    units = []
    for seed in seeds:
        chosen = [arm for arm in arms if seed in arm.seeds]
        for trunk in dict.fromkeys(experiment.trunk_of(arm) for arm in chosen):
            branches = tuple(arm for arm in chosen if arm.jump_steps and experiment.trunk_of(arm) == trunk)
            units.append(Unit(experiment, seed, trunk, branches))
    return units
