"""Differences between arms with their intervals, and the steps that one arm takes to the best of another.

Runs of one seed have the same start, batches and dropout, so that arms are compared seed by seed. An arm is compared at
the last step that both arms were evaluated at.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats

from ._config import Claim
from .results import Results

Array = npt.NDArray[Any]
Curve = Mapping[str, Array]
SLOWER = 0.1  # share of steps above the paper's that still counts as reproduced
COLLAPSE = 20.0  # points of accuracy below plain that count as destroyed weights


class Difference(NamedTuple):
    """Paired differences, one for each seed.

    Attributes:
      values: the differences.
    """

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean of the differences; NaN of none."""
        return float(np.mean(self.values)) if self.values else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """95 % confidence interval of the mean, by Student's t; infinite for fewer than two seeds."""
        n = len(self.values)
        if n < 2:
            return -math.inf, math.inf
        half = float(stats.t.ppf(0.975, n - 1)) * float(np.std(self.values, ddof=1)) / math.sqrt(n)
        return self.mean - half, self.mean + half


def pairs(results: Results, arm: str, against: str) -> list[tuple[Curve, Curve]]:
    """Returns the runs of two arms for each seed that both have, up to the last step that both were evaluated at."""
    ours, others = results.curves(arm), results.curves(against)
    both = []
    for seed in sorted(ours.keys() & others.keys()):
        last = min(ours[seed]["step"].max(), others[seed]["step"].max())
        both.append((_until(ours[seed], last), _until(others[seed], last)))
    return both


def difference(results: Results, arm: str, against: str, measure: str = "test_accuracy") -> Difference:
    """Returns the differences of a measure at the end; accuracies in percentage points."""
    scale = 100 if measure.endswith("accuracy") else 1
    ends = [(ours[measure][-1], other[measure][-1]) for ours, other in pairs(results, arm, against)]
    return Difference(tuple(float(scale * (a - b)) for a, b in ends))


def relative(results: Results, arm: str, against: str, measure: str) -> Difference:
    """Returns by how much a measure at the end is changed, in percent of the other arm's."""
    ends = [(ours[measure][-1], other[measure][-1]) for ours, other in pairs(results, arm, against)]
    return Difference(tuple(float(100 * (a / b - 1)) for a, b in ends))


def steadiness(results: Results, arm: str, against: str) -> Difference:
    """Returns how much steadier an arm is: the mean change of accuracy between evaluations, with the sign reversed.

    Counted from the first jump of the arm, in percentage points.
    """
    since = next(iter(results.info["arms"][arm]["jump_steps"]), 0)

    def changes(curve: Curve) -> float:
        return float(np.mean(np.abs(np.diff(curve["test_accuracy"][curve["step"] >= since]))))

    return Difference(tuple(100 * (changes(b) - changes(a)) for a, b in pairs(results, arm, against)))


def final(results: Results, arm: str, against: str | None = None) -> float:
    """Returns the mean test accuracy at the end, in percent; of the seeds and steps shared with another arm, if any."""
    curves = [ours for ours, _ in pairs(results, arm, against or arm)]
    return 100 * float(np.mean([curve["test_accuracy"][-1] for curve in curves])) if curves else math.nan


def share_of_steps(results: Results, arm: str, against: str) -> float:
    """Returns the median share of the steps to the other arm's best accuracy that an arm takes to the same accuracy.

    Infinite if half of the runs or more don't get there.
    """
    shares = []
    for ours, other in pairs(results, arm, against):
        trained = other["step"] > 0  # the accuracy before training is luck
        best = int(np.argmax(np.where(trained, other["test_accuracy"], -1)))
        there = ours["step"][(ours["step"] > 0) & (ours["test_accuracy"] >= other["test_accuracy"][best])]
        shares.append(float(there[0] / other["step"][best]) if len(there) else math.inf)
    return float(np.median(shares)) if shares else math.nan


def share_of_budget(plain: Mapping[int, float], loss: float, budget: int) -> float:
    """Returns the share of plain's steps that a way to train takes to the same loss.

    Plain's steps are read off its own losses at the end of several budgets: the loss is linear in `1 / steps` between
    two budgets, and goes on so beyond the first and the last.

    Args:
      plain: from two budgets or more to plain's loss at their end; longer budgets have lower losses.
      loss: loss of the other way at the end of its budget, of the same seed.
      budget: its steps.
    """
    steps = sorted(plain)
    inverse, ends = 1 / np.array(steps), np.array([plain[n] for n in steps])
    i = int(np.clip(np.searchsorted(-ends, -loss), 1, len(ends) - 1))
    slope = (inverse[i] - inverse[i - 1]) / (ends[i] - ends[i - 1])
    return float(budget * (inverse[i] + slope * (loss - ends[i])))


def deepest_fall(results: Results, arm: str, against: str) -> float:
    """Returns how far below the other arm any run is at any step after the first jump, in percentage points."""
    since = next(iter(results.info["arms"][arm]["jump_steps"]), 0)
    falls = [0.0]
    for ours, other in pairs(results, arm, against):
        _, i, j = np.intersect1d(ours["step"], other["step"], return_indices=True)
        falls += [
            float(100 * (b - a))
            for step, a, b in zip(ours["step"][i], ours["test_accuracy"][i], other["test_accuracy"][j], strict=True)
            if step > since
        ]
    return max(falls)


def verdict(results: Results, claim: Claim) -> str:
    """Returns the verdict on a claim: `reproduced`, `partly`, `not` or `open`.

    With the interval of the difference, and the difference that the paper reports:

    - a gain is reproduced if the interval is above 0, partly if it then takes over 0.1 more of the steps than in the
      paper, and not reproduced if the interval reaches neither above the paper's difference nor is above 0;
    - that there is no gain is reproduced if the interval includes 0 or less but not the gain of the paper's network,
      and not reproduced if the interval is above 0;
    - that a jump destroys the weights is reproduced if a run falls 20 points below plain after it;
    - all else is open, as is what one seed shows.
    """
    if claim.expects == "collapse":
        return "reproduced" if deepest_fall(results, claim.arm, claim.against) >= COLLAPSE else "open"
    measure = steadiness if claim.measure == "steadiness" else difference
    low, high = measure(results, claim.arm, claim.against).interval
    if claim.expects == "no gain":
        return "not" if low > 0 else "reproduced" if high < claim.points else "open"
    if low > 0:
        slow = claim.share is not None and share_of_steps(results, claim.arm, claim.against) > claim.share + SLOWER
        return "partly" if slow else "reproduced"
    return "not" if high < claim.points else "open"


def _until(curve: Curve, step: float) -> Curve:
    chosen = curve["step"] <= step
    return {name: column[chosen] for name, column in curve.items()}
