"""The loss and the speed of the steps since the last report."""

import time
from typing import Any


class Meter:
    """Counts from one report to the next; the clock runs between `resume` and `pause`."""

    def __init__(self) -> None:
        self._resumed: float | None = None
        self._begin()

    def _begin(self) -> None:
        self._losses: list[float] = []
        self._skipped = self._timed_steps = 0
        self._seconds = 0.0

    @property
    def steps(self) -> int:
        """The number of steps since the last report."""
        return len(self._losses)

    def add(self, loss: float, skipped: int) -> None:
        """Counts one step.

        Args:
          loss: the mean over its batch.
          skipped: how many of its examples were replaced.
        """
        self._losses.append(loss)
        self._skipped += skipped
        self._timed_steps += self._resumed is not None

    def resume(self) -> None:
        """Lets the clock run."""
        self._resumed = time.perf_counter()

    def pause(self) -> None:
        """Stops the clock."""
        if self._resumed is not None:
            self._seconds += time.perf_counter() - self._resumed
        self._resumed = None

    def report(self, batch_size: int) -> dict[str, Any]:
        """Returns what is to be reported, and begins anew; the clock goes on if it runs."""
        running = self._resumed is not None
        self.pause()
        line = {
            "loss": sum(self._losses) / len(self._losses),
            "images_per_second": self._timed_steps * batch_size / self._seconds if self._timed_steps else None,
            "skipped": self._skipped,
        }
        self._begin()
        if running:
            self.resume()
        return line
