"""What a run does, from a record and what was asked for instead; all of it is checked before anything is begun."""

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from optax_introspect import Forecaster

from ..forecasters import fingerprint, forecaster
from .records import Arm, ImageNetTraining


@dataclasses.dataclass(frozen=True)
class Options:
    """What a run does.

    Attributes:
      record: the experiment, with what was asked for instead.
      arm: the run of it, likewise.
      seed: of the initial weights, the batches and the dropout.
      fsdp: whether weights, optimizer state and snapshots are shared among the devices.
      bfloat16: whether the network computes in bfloat16.
      deadline: when to stop, on the clock of `time.monotonic`; None is at the end.
      checkpoint_minutes: between two checkpoints.
      workers: processes that decode images, for each process of the run.
    """

    record: ImageNetTraining
    arm: Arm
    seed: int = 0
    fsdp: bool = False
    bfloat16: bool = False
    deadline: float | None = None
    checkpoint_minutes: float = 10.0
    workers: int = 0

    @property
    def dtype(self) -> Any:
        """What the network computes in; None is float32."""
        return jnp.bfloat16 if self.bfloat16 else None

    def forecaster(self, workdir: Path) -> Forecaster | None:
        """Returns what forecasts; predictors that were fitted lie in the workdir."""
        return None if self.arm.forecaster is None else forecaster(self.arm.forecaster, workdir / "predictors")

    def settings(self, classes: int, examples: int, forecasts: Forecaster | None) -> dict[str, dict[str, Any]]:
        """Returns what the state after so many steps depends on, as plain data.

        Args:
          classes: the number of classes.
          examples: the number of training examples.
          forecasts: what forecasts.
        """
        record = self.record
        optimizer = {"name": type(record.optimizer).__name__, **dataclasses.asdict(record.optimizer)}
        optimizer["rate"] |= {"steps": record.optimizer.rate.steps(examples, record.batch_size)}
        return {
            "model": {
                "network": record.network,
                "classes": classes,
                "image_size": record.image_size,
                "bfloat16": self.bfloat16,
            },
            "optimizer": optimizer | {"auxiliary_weight": record.auxiliary_weight},
            "plan": {
                "jump_steps": list(self.arm.jump_steps),
                "forecaster": None if forecasts is None else fingerprint(forecasts),
            },
            "input": {
                "examples": examples,
                "batch_size": record.batch_size,
                "augmentation": record.augmentation,
                "seed": self.seed,
            },
        }


def resolve(
    record: ImageNetTraining,
    *,
    arm: str | None = None,
    jump_steps: Sequence[int] | None = None,
    batch_size: int | None = None,
    steps: int | None = None,
    image_size: int | None = None,
    minutes: float | None = None,
    checkpoint_minutes: float = 10.0,
    workers: int = 0,
    seed: int = 0,
    fsdp: bool = False,
    bfloat16: bool = False,
) -> Options:
    """Returns what a run does; None leaves it to the record.

    Args:
      record: the experiment.
      arm: the name of the run; None is the first that has jumps.
      jump_steps: other jump steps than the arm's.
      batch_size: examples a step, on all devices together.
      steps: updates; jumps that come later aren't made.
      image_size: the height and width of the images.
      minutes: after how many, from now on, to stop; the same run goes on later.
      checkpoint_minutes: between two checkpoints.
      workers: processes that decode images.
      seed: of everything that is random.
      fsdp: whether weights are shared among the devices.
      bfloat16: whether the network computes in bfloat16.

    Raises:
      ValueError: what can't be done.
    """
    chosen = record.arm(arm) if arm is not None else next((a for a in record.arms if a.jump_steps), record.arms[0])
    if jump_steps is not None:
        if chosen.forecaster is None:
            raise ValueError(f"the arm {chosen.name} has no forecaster that could jump at {tuple(jump_steps)}")
        if not jump_steps:
            raise ValueError(f"jump_steps must name at least one step; arms without any are {_without_jumps(record)}")
        chosen = dataclasses.replace(chosen, jump_steps=tuple(jump_steps))
    given = {"batch_size": batch_size, "steps": steps, "image_size": image_size}
    asked: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    for name, value in asked.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1; got {value}")
    if minutes is not None and not minutes > 0:
        raise ValueError(f"minutes must be more than 0; got {minutes}")
    if not checkpoint_minutes >= 0:
        raise ValueError(f"checkpoint_minutes must be at least 0; got {checkpoint_minutes}")
    if workers < 0:
        raise ValueError(f"workers must be at least 0; got {workers}")
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed must be an integer from 0 to {2**32 - 1}; got {seed}")
    return Options(
        record=dataclasses.replace(record, **asked),
        arm=chosen,
        seed=seed,
        fsdp=fsdp,
        bfloat16=bfloat16,
        deadline=None if minutes is None else time.monotonic() + 60 * minutes,
        checkpoint_minutes=checkpoint_minutes,
        workers=workers,
    )


def _without_jumps(record: ImageNetTraining) -> str:
    return ", ".join(arm.name for arm in record.arms if not arm.jump_steps) or "none"
