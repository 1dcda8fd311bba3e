"""What a run tells: lines of the journal, and a bar with the time left. Of several processes, the first one does."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from .. import runs

_WORDS = {
    "loss": "loss {:.4g}",
    "images_per_second": "{:.0f} images/s",
    "top1": "top-1 {:.2%}",
    "top5": "top-5 {:.2%}",
}


class Reporter:
    """Tells of one run.

    Args:
      path: the file of the journal.
      header: what it is a run of.
      step: where it goes on; later lines of the journal are dropped. None begins it.
      steps: where it ends.
      console: for people.
    """

    def __init__(self, path: Path, header: runs.Line, step: int | None, steps: int, console: Console):
        self._journal = runs.Journal(path, header, step) if jax.process_index() == 0 else None
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        # The time left follows from the last 10 minutes.
        self._progress = Progress(*columns, console=console, speed_estimate_period=600, disable=self._journal is None)
        self._bar = self._progress.add_task("", total=steps, completed=step or 0)

    @classmethod
    @contextlib.contextmanager
    def open(cls, *args: Any) -> Iterator[Self]:
        """Makes one, which shows its bar until it is left; the journal is then on disk."""
        reporter = cls(*args)
        with reporter._progress:
            try:
                yield reporter
            finally:
                if reporter._journal is not None:
                    reporter._journal.close()

    def made(self, step: int) -> None:
        """Is told how many updates were made."""
        self._progress.update(self._bar, completed=step)

    def line(self, line: runs.Line) -> None:
        """Writes a line of the journal, and shows it."""
        if self._journal is not None:
            self._journal.write(line)
        shown = [text.format(line[name]) for name, text in _WORDS.items() if line.get(name) is not None]
        if "top1" in line:
            self.say(f"step {line['step']}: {', '.join(shown)}")
        else:
            self._progress.update(self._bar, description=", ".join(shown))
        if skipped := line.get("skipped"):
            what = "validation images" if "top1" in line else "training images since the last report"
            self.say(f"step {line['step']}: {what} that could not be read: {skipped}")

    def say(self, text: str) -> None:
        """Shows something above the bar."""
        if self._journal is not None:
            self._progress.console.print(text, highlight=False)

    def commit(self) -> None:
        """Returns when the journal is on disk."""
        if self._journal is not None:
            self._journal.commit()

    def complete(self, destination: Path, end: runs.Line) -> None:
        """Ends the journal, and puts it where those of complete runs are."""
        if self._journal is not None:
            self._journal.complete(destination, end)
            self._journal = None
