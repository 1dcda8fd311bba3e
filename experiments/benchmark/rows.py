"""What a measurement is, and how functions are timed against each other."""

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np


@dataclasses.dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
      section: the part of the benchmark that it belongs to.
      what: what was measured, and against what.
      unit: of the three figures.
      low: the first quartile of all repetitions.
      median: their median.
      high: the third quartile.
      at_most: the bound that the median is to keep, if there is one.
      at_least: the same, from below.
      note: what else is known of it.
      place: where it stands in a figure.
    """

    section: str
    what: str
    unit: str
    low: float
    median: float
    high: float
    at_most: float | None = None
    at_least: float | None = None
    note: str = ""
    place: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def met(self) -> bool | None:
        """Whether the median keeps its bound; None without a bound."""
        if self.at_most is None and self.at_least is None:
            return None
        return (
            (-math.inf if self.at_least is None else self.at_least)
            <= self.median
            <= (math.inf if self.at_most is None else self.at_most)
        )


def row(section: str, what: str, unit: str, figures: Any, **others: Any) -> Row:
    """Returns the row of one figure, or of those of many repetitions."""
    low, median, high = np.quantile(np.atleast_1d(figures), [0.25, 0.5, 0.75])
    return Row(section, what, unit, float(low), float(median), float(high), **others)


def interleaved(functions: dict[str, Callable[[], Any]], repetitions: int) -> dict[str, np.ndarray]:
    """Returns the seconds that each function took, called in turn; the first round is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repetitions + 1):
        for name, function in functions.items():
            began = time.perf_counter()
            jax.block_until_ready(function())
            seconds[name].append(time.perf_counter() - began)
    return {name: np.array(taken[1:]) for name, taken in seconds.items()}


def temporaries(compiled: Any) -> float:
    """Returns the temporary memory of a compiled function, in MB."""
    return float(compiled.memory_analysis().temp_size_in_bytes / 1e6)
