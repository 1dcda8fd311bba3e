"""Trains from some step on: reports, evaluates, saves, and stops when it is to."""

import contextlib
import math
from collections import deque
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

import optax_introspect

from .checkpoints import CheckpointError, Checkpoints
from .evaluation import evaluate
from .feed import Batch, Feed, on_mesh
from .meter import Meter
from .records import ImageNetTraining
from .reporter import Reporter
from .steps import Programs, TrainState
from .wishes import AHEAD, Clock, Wishes


class NotFiniteError(ArithmeticError):
    """The loss or the weights are not finite; no checkpoint of that was kept."""


class Loop:
    """A run that goes on from some state. All processes do the same at the same steps.

    Args:
      record: the experiment.
      programs: what it computes.
      feed: what it is fed with.
      checkpoints: where it saves.
      reporter: what it tells.
      clock: when it is to save, and to stop.
      state: the training state.
      step: the number of updates that were made.
      evaluated: whether the evaluation that may be due at that step was made.

    Attributes:
      state: the training state.
      step: the number of updates made.
    """

    def __init__(
        self,
        record: ImageNetTraining,
        programs: Programs,
        feed: Feed,
        checkpoints: Checkpoints,
        reporter: Reporter,
        clock: Clock,
        state: TrainState,
        step: int,
        evaluated: bool,
    ):
        self._record, self._programs, self._feed = record, programs, feed
        self._checkpoints, self._reporter, self._clock = checkpoints, reporter, clock
        self.state, self.step, self._evaluated = state, step, evaluated
        self._stop = self._save = False
        self._meter = Meter()
        self._compiled = False
        self._pending: deque[tuple[int, Any]] = deque()

    def run(self) -> bool:
        """Trains to the end, or until it is to stop; returns whether all is done. What was reached is on disk then.

        Raises:
          NotFiniteError: the loss or the weights are not finite.
          CheckpointError: what was reached could not be saved; or, of several processes, any checkpoint.
        """
        with contextlib.closing(self._feed.training(self.step)) as batches:
            while True:
                if self._evaluation_is_due():
                    self._evaluate()
                if self._stop or self.step >= self._record.steps:
                    break
                if self._save:
                    self._save_meanwhile()
                self._make_step(next(batches))
        self._write_checkpoint()
        self._checkpoints.wait()
        return self._evaluated and self.step >= self._record.steps

    def _make_step(self, batch: Batch) -> None:
        wishes = self._clock.wishes(int(batch["skipped"]))
        self.state, result = self._programs.step(
            self.state, on_mesh(batch, wishes, self._programs.mesh), np.int32(self.step)
        )
        self.step += 1
        self._evaluated = False
        self._pending.append((self.step, result))
        report = self.step % self._record.report_every == 0
        self._read(0 if report or not self._compiled else AHEAD)
        if not self._compiled:  # which took most of the first step
            self._compiled = True
            self._meter.resume()
        self._reporter.made(self.step)
        if report:
            self._report()

    def _read(self, ahead: int) -> None:
        """Reads what the steps told, but for the last few, which may be on their way."""
        while len(self._pending) > ahead:
            step, result = self._pending.popleft()
            loss, wishes = jax.device_get(result)
            stop, save, skipped = Wishes(*wishes.tolist())
            self._stop, self._save = self._stop or stop > 0, self._save or save > 0
            if not math.isfinite(loss):
                raise self._not_finite("loss after {} steps is", step)
            self._meter.add(float(loss), skipped)

    def _report(self) -> None:
        line = {"step": self.step, **self._meter.report(self._record.batch_size), **self.jumps()}
        self._reporter.line(line)

    def jumps(self) -> dict[str, int]:
        """Returns how many jumps were taken and refused."""
        last = self.state.opt_state[-1]
        if not isinstance(last, optax_introspect.IntrospectState):
            return {}
        return {"jumps_taken": int(last.jumps_taken), "jumps_refused": int(last.jumps_refused)}

    def _evaluation_is_due(self) -> bool:
        due = self.step > 0 and (self.step % self._record.every == 0 or self.step >= self._record.steps)
        return due and not self._evaluated

    def _evaluate(self) -> None:
        self._read(0)
        self._meter.pause()
        scores = evaluate(self._programs, self.state, self._feed.validation, self._clock)
        if scores is None:
            self._stop = True
        else:
            self._reporter.line({"step": self.step, **scores})
            self._evaluated = True
        if self._compiled:
            self._meter.resume()

    def _save_meanwhile(self) -> None:
        self._read(0)
        self._meter.pause()
        with self._going_on():
            self._write_checkpoint()
        self._save = False
        self._clock.saved()
        self._meter.resume()

    def _write_checkpoint(self) -> None:
        """Begins to write a checkpoint, unless there is one of this step."""
        self._read(0)
        if not bool(self._programs.is_finite((self.state.params, self.state.statistics))):
            raise self._not_finite("weights after {} steps are", self.step)
        if self._meter.steps:
            self._report()
        self._reporter.commit()  # a checkpoint must not be ahead of it
        with self._going_on():
            self._checkpoints.wait()  # for the one before
        if self._checkpoints.latest != self.step:
            notes = {"evaluated": self._evaluated, "next_example": self.step * self._record.batch_size}
            self._checkpoints.save(self.step, self.state, notes)

    @contextlib.contextmanager
    def _going_on(self) -> Iterator[None]:
        """Lets training go on if a checkpoint could not be written: the next one may be."""
        try:
            yield
        except CheckpointError as error:
            # Others may wait for this process to write its part: together they begin anew from the last good one.
            if not is_alone():
                raise
            self._reporter.say(f"Training goes on: {error}")
            self._reporter.line({"step": self.step, "checkpoint_not_written": error.step})

    def _not_finite(self, what: str, step: int) -> NotFiniteError:
        self._reporter.line({"step": step, "loss": math.nan})
        self._reporter.commit()
        with contextlib.suppress(CheckpointError):
            self._checkpoints.wait()
        last = self._checkpoints.latest
        kept = "there is no checkpoint yet" if last is None else f"the last checkpoint is of step {last}"
        return NotFiniteError(f"the {what.format(step)} not finite, so that training ended; {kept}")


def is_alone() -> bool:
    """Returns whether this is the only process of the run."""
    return bool(jax.process_count() == 1)
