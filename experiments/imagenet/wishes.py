"""How processes agree without a word more: what each wishes goes with its batch, and the step returns the sum.

So all processes learn the same, of the same step, and stop or save together. The sum is one tiny reduction, which is
part of the step anyway, and is read a few steps later, when it has long been there.
"""

import time
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
import numpy.typing as npt

from .processes import Ending

# Steps that may be on their way, so that the devices never wait for this process, nor batches pile up there.
AHEAD = 2


class Wishes(NamedTuple):
    """What processes tell each other, or the sum of it.

    Attributes:
      stop: to stop after this step.
      save: to write a checkpoint.
      skipped: examples that could not be read and were replaced.
    """

    stop: Any = 0
    save: Any = 0
    skipped: Any = 0


class Clock:
    """What this process wishes; the time is told by the first one alone.

    Args:
      ending: whether this process was told to end.
      deadline: when the run is to stop, on the clock of `time.monotonic`; None is never.
      checkpoint_minutes: between two checkpoints.
    """

    def __init__(self, ending: Ending, deadline: float | None, checkpoint_minutes: float):
        self._ending, self._between = ending, 60 * checkpoint_minutes
        self._tells = jax.process_index() == 0
        self._deadline = deadline
        self._saved_at = time.monotonic()

    def wishes(self, skipped: int = 0) -> npt.NDArray[np.int32]:
        """Returns what is to go with a batch."""
        now = time.monotonic()
        late = self._tells and self._deadline is not None and now > self._deadline
        save = self._tells and now - self._saved_at >= self._between
        return np.array(Wishes(self._ending.told or late, save, skipped), np.int32)

    def saved(self) -> None:
        """Is told that a checkpoint was begun."""
        self._saved_at = time.monotonic()


def fetched(results: Iterable[Any]) -> Iterator[Any]:
    """Yields what is computed on the devices, as NumPy arrays, a few behind what was asked for."""
    pending: deque[Any] = deque()
    for result in results:
        pending.append(result)
        if len(pending) > AHEAD:
            yield jax.device_get(pending.popleft())
    while pending:
        yield jax.device_get(pending.popleft())
