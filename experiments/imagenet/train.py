"""Trains the paper's networks on ImageNet: on any number of devices and processes, from where it stopped last."""

import contextlib
import enum
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from rich.console import Console

import optax_introspect

from .. import runs
from . import processes
from .checkpoints import Checkpoints, check_same
from .feed import Feed, imagenet_feed
from .loop import Loop, NotFiniteError
from .mesh import check_batch_size, device_mesh
from .optimizers import optimizer
from .options import Options
from .reporter import Reporter
from .steps import Programs
from .wishes import Clock


class Outcome(enum.IntEnum):
    """How a run ended; its value is the exit status for that.

    Attributes:
      COMPLETE: it is over: all steps are made, or its loss or weights were not finite, as its results then say.
      STOPPED: it was told to end by SIGTERM, or its time was up; everything is saved, and the same command goes on. The
        status is that of `EX_TEMPFAIL`: try again.
    """

    COMPLETE = 0
    STOPPED = 75


def train(options: Options, data: Path, workdir: Path, console: Console | None = None) -> Outcome:
    """Trains a network on ImageNet, and goes on where an earlier call stopped or was killed.

    It is one of several processes if the environment says so, see `processes.launch`; they share the workdir. What a
    run needs to go on doesn't depend on how many processes and devices there are, nor on `fsdp`. SIGTERM to any of
    the processes lets all finish a step, save, and end with `Outcome.STOPPED`. A checkpoint that can't be written
    leaves those before it as they were: a run of one process says so, goes on, and tries again later; one of several
    ends. The checkpoints of a complete run stay: with more steps it goes on from the last one.

    Args:
      options: what to do, see `options.resolve`.
      data: a folder of images, or where TensorFlow Datasets prepared ImageNet, see `sources.open_source`.
      workdir: the folder for results.
      console: for people.

    Raises:
      ValueError, FileNotFoundError: settings, environment or data that can't be used; a checkpoint of another run.
      BlockingIOError: another run works on it.
      OtherProcessError: another process of this run failed to begin.
      OSError: no space for checkpoints, or the last one could not be written.
    """
    processes.initialise()
    mesh = device_mesh()
    check_batch_size(options.record.batch_size, mesh)
    with processes.together():
        feed = imagenet_feed(
            data,
            image_size=options.record.image_size,
            augmentation=options.record.augmentation,
            batch_size=options.record.batch_size,
            seed=options.seed,
            workers=options.workers,
        )
    return fit(options, feed, workdir, mesh, console)


def fit(options: Options, feed: Feed, workdir: Path, mesh: Mesh, console: Console | None = None) -> Outcome:
    """Trains on any feed; see `train`.

    Args:
      options: what to do.
      feed: the examples.
      workdir: the folder for results.
      mesh: the devices.
      console: for people.
    """
    console = Console(quiet=jax.process_index() > 0) if console is None else console
    ending = processes.Ending()
    with ending.on_sigterm():
        return _Run(options, feed, workdir, mesh, console).go(ending)


class _Run:
    """One run, before it is begun."""

    def __init__(self, options: Options, feed: Feed, workdir: Path, mesh: Mesh, console: Console):
        check_batch_size(options.record.batch_size, mesh)
        self.options, self.record, self.feed, self.console = options, options.record, feed, console
        self.done = runs.path_of(workdir, self.record.name, options.arm.name, options.seed)
        self.folder = runs.working(workdir, self.record.name, options.arm.name, options.seed)
        forecasts = options.forecaster(workdir)
        self.settings = options.settings(feed.classes, feed.examples, forecasts)
        decay_steps = self.record.optimizer.rate.steps(feed.examples, self.record.batch_size)
        self.programs = Programs(
            self.record.network,
            feed.classes,
            self.record.image_size,
            optimizer(self.record.optimizer, decay_steps, options.arm.jump_steps, forecasts),
            mesh,
            seed=options.seed,
            fsdp=options.fsdp,
            dtype=options.dtype,
            auxiliary_weight=self.record.auxiliary_weight,
        )
        self.snapshot_bytes = 0
        if forecasts is not None:
            plan = optax_introspect.plan(options.arm.jump_steps, forecasts.points)
            self.snapshot_bytes = plan.nbytes(self.programs.shapes.params)

    def go(self, ending: processes.Ending) -> Outcome:
        """Trains, unless it is complete."""
        first = jax.process_index() == 0
        with contextlib.ExitStack() as held:
            with processes.together():
                if first:
                    held.enter_context(runs.locked(self.folder))
            if end := self._end():
                self.console.print(f"{end.capitalize()}: {self.done}")
                return Outcome.COMPLETE
            shapes = self.programs.shapes
            model = (shapes.params, shapes.statistics)
            with contextlib.closing(
                Checkpoints(self.folder / "checkpoints", self.settings, shapes, model)
            ) as checkpoints:
                if checkpoints.latest is not None and checkpoints.latest > self.record.steps:
                    raise ValueError(
                        f"steps must be at least {checkpoints.latest}, since there is a checkpoint of that step in "
                        f"{checkpoints.folder}; got {self.record.steps}"
                    )
                # From here on all processes have looked for it.
                journal = self.folder / "journal.jsonl"
                if first and self.done.exists():
                    self.done.replace(journal)
                self._introduce(checkpoints.latest)
                with Reporter.open(
                    journal, self._header(), checkpoints.latest, self.record.steps, self.console
                ) as reporter:
                    loop = self._loop(checkpoints, reporter, ending)
                    try:
                        end = "complete" if loop.run() else None
                    except NotFiniteError as error:  # on all processes, since it is the same everywhere
                        reporter.say(str(error))
                        end = "not finite"
                    if end:
                        reporter.complete(self.done, {"end": end, **loop.jumps()})
        if end is None:
            self.console.print(f"Stopped after {loop.step} steps: the same command goes on.")
            return Outcome.STOPPED
        self.console.print(f"{end.capitalize()}: {self.done}")
        return Outcome.COMPLETE

    def _loop(self, checkpoints: Checkpoints, reporter: Reporter, ending: processes.Ending) -> Loop:
        latest = checkpoints.latest
        return Loop(
            self.record,
            self.programs,
            self.feed,
            checkpoints,
            reporter,
            Clock(ending, self.options.deadline, self.options.checkpoint_minutes),
            self.programs.start() if latest is None else checkpoints.restore(),
            latest or 0,
            checkpoints.notes.get("evaluated", False),
        )

    def _end(self) -> str | None:
        """Returns how it ended; None if it didn't yet, or if it is to be gone on with since it was of fewer steps.

        Raises:
          ValueError: the results are of another run.
        """
        if not self.done.exists():
            return None
        run = runs.read(self.done)
        check_same(str(self.done), run.header.get("settings", {}), self.settings)
        # What was not finite would be so again.
        return run.end if run.end == "not finite" or run.header["steps"] >= self.record.steps else None

    def _header(self) -> runs.Line:
        mesh = self.programs.mesh
        return {
            "experiment": self.record.name,
            "arm": self.options.arm.name,
            "seed": self.options.seed,
            "steps": self.record.steps,
            "settings": runs.plain(self.settings),
            "data": self.feed.description,
            "devices": mesh.size,
            "processes": jax.process_count(),
            "fsdp": self.options.fsdp,
            "versions": runs.versions(),
            "machine": runs.machine(),
        }

    def _introduce(self, latest: int | None) -> None:
        mesh = self.programs.mesh
        params: Any = self.programs.shapes.params
        weights = sum(leaf.size for leaf in jax.tree.leaves(params))
        self.console.print(
            f"{self.record.name}, {self.options.arm.name}, seed {self.options.seed}: {self.record.network} with "
            f"{weights:,} weights and {self.snapshot_bytes / 1e6:,.1f} MB of snapshots; devices: {mesh.size}, "
            f"processes: {jax.process_count()}{', weights in shares' if self.options.fsdp else ''}\n"
            f"{self.feed.description}\n"
            f"{'From the start' if latest is None else f'From step {latest}'} to step {self.record.steps:,}",
            highlight=False,
        )
