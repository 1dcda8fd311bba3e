"""Trains a network and records its weights on the way, and goes on where it stopped."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optax
import orbax.checkpoint as ocp

from optax_introspect import WeightHistory

from .training import Optimizer, Params, Task, Trained

CHECKPOINT_EVERY = 1000  # steps
CHECKPOINT_SECONDS = 30.0


def record(
    task: Task, tx: optax.GradientTransformation, folder: Path, settings: dict[str, Any], steps: int, every: int
) -> Iterator[tuple[int, Params]]:
    """Trains, and records the weights in `folder/history`.

    Yields every step that is recorded, the one that it goes on from and the last one, with its weights, in buffers that
    the next step takes.

    Args:
      task: what is trained.
      tx: how.
      folder: gets the history, and checkpoints.
      settings: metadata of the history.
      steps: updates.
      every: updates from one record to the next.

    Raises:
      ValueError: `folder` holds a run with other settings, or a checkpoint without its history.
    """
    trained, step = Trained(task.params, tx.init(task.params), task.statistics), 0
    update = task.update_function(Optimizer(tx))
    with (
        WeightHistory.record(folder / "history", task.params, metadata=settings) as history,
        ocp.CheckpointManager(
            (folder / "checkpoints").absolute(), options=ocp.CheckpointManagerOptions(max_to_keep=1)
        ) as checkpoints,
    ):
        if (latest := checkpoints.latest_step()) is not None:
            step = latest
            saved = checkpoints.restore(step, args=ocp.args.StandardRestore(trained.saved()))
            trained = trained.restored(saved)
        if step > 0 and step - step % every not in history.steps:
            raise ValueError(f"the history in {folder} does not reach its checkpoint at step {step}; start in another")
        history.truncate(step)
        yield step, trained.params
        saved_at = time.monotonic()
        if len(history.steps) == 0:
            history.append(0, trained.params)
        while step < steps:
            trained = update(trained, step)
            step += 1
            if step % every == 0:
                history.append(step, trained.params)
            late = time.monotonic() - saved_at > CHECKPOINT_SECONDS
            if late or step % CHECKPOINT_EVERY == 0 or step == steps:
                history.flush()  # a checkpoint must not be ahead of the history
                checkpoints.save(step, args=ocp.args.StandardSave(trained.saved()))
                saved_at = time.monotonic()
            if step % every == 0 or step == steps:
                yield step, trained.params
