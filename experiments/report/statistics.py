"""What is computed from runs: where each gets, and how it differs from another of the same seed."""

import dataclasses
import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats

from ..records import Arm
from ..runs import Run

Array = npt.NDArray[Any]
# What a loss is at least, so that it has a log.
TINY = 1e-12


class Paired(NamedTuple):
    """Differences between two arms, one for each seed that both have."""

    differences: tuple[float, ...]

    @property
    def n(self) -> int:
        """How many seeds."""
        return len(self.differences)

    @property
    def mean(self) -> float:
        """Their mean; NaN of none."""
        return mean(self.differences)

    @property
    def half_width(self) -> float:
        """Half of the 95 % interval of the mean, after Student; infinite with fewer than two seeds."""
        if self.n < 2:
            return math.inf
        return float(stats.t.ppf(0.975, self.n - 1)) * float(np.std(self.differences, ddof=1)) / math.sqrt(self.n)

    @property
    def low(self) -> float:
        """The lower end of the interval."""
        return self.mean - self.half_width

    @property
    def high(self) -> float:
        """The upper end of the interval."""
        return self.mean + self.half_width


@dataclasses.dataclass(frozen=True)
class Curve:
    """The evaluations of one run.

    Attributes:
      lines: one for each evaluation, by step.
      finite: whether the run got to its end.
      clock: what `seconds` are of.
      machine: where it was trained.
    """

    lines: tuple[dict[str, Any], ...]
    finite: bool
    clock: str = "wall-clock"
    machine: str = ""

    @classmethod
    def of(cls, run: Run) -> "Curve":
        """Returns the evaluations of a run, with its CPU time where it was measured: others may work there too."""
        finite, machine = run.end == "complete", run.header.get("machine", "")
        if not all("cpu_seconds" in line for line in run.lines):
            return cls(tuple(run.lines), finite, machine=machine)
        return cls(tuple({**line, "seconds": line["cpu_seconds"]} for line in run.lines), finite, "CPU", machine)

    def __getitem__(self, measure: str) -> Array:
        return np.array([line[measure] for line in self.lines], np.float64)  # None becomes NaN

    def until(self, step: int) -> "Curve":
        """Returns the evaluations up to a step."""
        return dataclasses.replace(self, lines=tuple(line for line in self.lines if line["step"] <= step))

    def since(self, step: int) -> "Curve":
        """Returns the evaluations from a step on."""
        return dataclasses.replace(self, lines=tuple(line for line in self.lines if line["step"] >= step))

    def at(self, step: int, measure: str) -> float:
        """Returns what was measured at a step; NaN if nothing was."""
        return next((float(line[measure]) for line in self.lines if line["step"] == step), math.nan)

    def final(self, measure: str) -> float:
        """Returns what was measured at the end."""
        return float(self.lines[-1][measure])

    def best(self) -> dict[str, Any]:
        """Returns the first evaluation with the best test accuracy; what the start scores was not learned."""
        return max((line for line in self.lines if line["step"] > 0), key=lambda line: line["test_accuracy"])

    def reaches(self, accuracy: float) -> dict[str, Any] | None:
        """Returns the first evaluation with at least this test accuracy."""
        return next((line for line in self.lines if line["step"] > 0 and line["test_accuracy"] >= accuracy), None)

    def unsteadiness(self, step: int) -> float:
        """Returns the mean absolute change of test accuracy between evaluations from a step on, in points."""
        return 100 * float(np.mean(np.abs(np.diff(self.since(step)["test_accuracy"]))))


class Pair(NamedTuple):
    """Two runs of one seed, up to the same step."""

    other: Curve
    mine: Curve


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What the runs of an arm come to, and how they differ from those of another arm of the same seeds.

    Attributes:
      arm: the arm.
      until: the step at which the arms are compared; the end of the shorter one, or an earlier one.
      foreseen: how many seeds the record has.
      curves: the runs that got to their end.
      not_finite: how many became non-finite instead; they are in no average.
      pairs: the runs of both arms, for each seed where both got to their end.
    """

    arm: Arm
    until: int
    foreseen: int
    curves: Sequence[Curve]
    not_finite: int
    pairs: Sequence[Pair]

    @property
    def n(self) -> int:
        """How many seeds of both arms got to their end."""
        return len(self.pairs)

    @property
    def gain(self) -> Paired:
        """The differences of the final test accuracies, in percentage points."""
        return self.difference("test_accuracy", scale=100)

    def gain_at(self, step: int) -> Paired:
        """Returns the differences of the test accuracies at a step, in percentage points; NaN if it wasn't measured."""
        return Paired(
            tuple(100 * (p.mine.at(step, "test_accuracy") - p.other.at(step, "test_accuracy")) for p in self.pairs)
        )

    def difference(self, measure: str, scale: float = 1.0) -> Paired:
        """Returns the differences of a measure at the end."""
        return Paired(tuple(scale * (pair.mine.final(measure) - pair.other.final(measure)) for pair in self.pairs))

    def relative(self, measure: str) -> Paired:
        """Returns by how much a measure at the end is changed, in percent of the other arm's."""
        return Paired(tuple(100 * (pair.mine.final(measure) / pair.other.final(measure) - 1) for pair in self.pairs))

    def log_ratio(self, measure: str) -> Paired:
        """Returns the logs of a measure at the end over that of the other arm."""
        ends = [(pair.mine.final(measure), pair.other.final(measure)) for pair in self.pairs]
        return Paired(tuple(math.log(max(mine, TINY) / max(other, TINY)) for mine, other in ends))

    @property
    def unsteadiness(self) -> Paired:
        """The differences of `Curve.unsteadiness` since the first jump."""
        since = self.arm.jump_steps[0]
        return Paired(tuple(p.mine.unsteadiness(since) - p.other.unsteadiness(since) for p in self.pairs))

    @property
    def reached(self) -> list[dict[str, Any] | None]:
        """The first evaluation of each run that is as good as the other run's best."""
        return [pair.mine.reaches(pair.other.best()["test_accuracy"]) for pair in self.pairs]

    def shares(self, measure: str = "step") -> list[float]:
        """Returns which share of the other run's steps (or seconds) to its best each run takes to get as far."""
        return [
            math.inf if line is None else line[measure] / pair.other.best()[measure]
            for line, pair in zip(self.reached, self.pairs, strict=True)
        ]

    @property
    def step_times(self) -> list[float]:
        """How long a step after the last jump takes, as a multiple of the other run's; of pairs on one machine."""
        since = max(self.arm.jump_steps, default=0)
        times = []
        for other, mine in self.pairs:
            measured = {line["step"] for line in other.lines if line["step"] > since}
            both = [line["step"] for line in mine.lines if line["step"] in measured]
            if len(both) > 1 and (mine.machine, mine.clock) == (other.machine, other.clock):
                own, others = (c.at(both[-1], "seconds") - c.at(both[0], "seconds") for c in (mine, other))
                times.append(own / others)
        return times

    @property
    def largest_loss(self) -> float:
        """The most by which the test accuracy of any run is below the other run's at one step, in percentage points."""
        since = min(self.arm.jump_steps, default=0)
        return max(
            (
                100 * (pair.other.at(line["step"], "test_accuracy") - line["test_accuracy"])
                for pair in self.pairs
                for line in pair.mine.lines
                if line["step"] > since and not math.isnan(pair.other.at(line["step"], "test_accuracy"))
            ),
            default=math.nan,
        )


def mean(values: Sequence[float]) -> float:
    """Returns the mean; NaN of nothing."""
    return statistics.fmean(values) if values else math.nan


def clocks(curves: Iterable[Curve]) -> str:
    """Returns what the seconds of curves are of."""
    return " or ".join(sorted({curve.clock for curve in curves})) or "wall-clock"


def median(values: Sequence[float]) -> float:
    """Returns the median; NaN of nothing."""
    return statistics.median(values) if values else math.nan
