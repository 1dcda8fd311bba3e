"""Loss, top-1 and top-5 accuracy on the validation split."""

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np

from .feed import Batches, on_mesh
from .steps import Programs, TrainState
from .wishes import Clock, Wishes, fetched


def evaluate(
    programs: Programs, state: TrainState, batches: Callable[[], Batches], clock: Clock
) -> dict[str, Any] | None:
    """Returns the scores of a state, the same on all processes; None if a process was told to stop meanwhile.

    Args:
      programs: of the run.
      state: whose weights are evaluated.
      batches: makes the batches of this process.
      clock: what this process wishes.

    Raises:
      ValueError: there is nothing to evaluate on.
    """
    with contextlib.closing(batches()) as own:
        scores = (
            programs.evaluate(state, on_mesh(batch, clock.wishes(int(batch["skipped"])), programs.mesh))
            for batch in own
        )
        total = np.zeros(4)
        skipped = 0
        for of_batch in fetched(scores):
            total += np.array(of_batch[:4], np.float64)
            wishes = Wishes(*of_batch.wishes.tolist())
            skipped += wishes.skipped
            if wishes.stop:
                return None
    loss, top1, top5, examples = total.tolist()
    if not examples:
        raise ValueError("none of the validation images could be read")
    return {
        "top1": top1 / examples,
        "top5": top5 / examples,
        "validation_loss": loss / examples,
        "examples": int(examples),
        "skipped": skipped,
    }
