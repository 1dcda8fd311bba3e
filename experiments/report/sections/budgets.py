"""Equal budgets: how many steps jumps save when the learning rate falls to zero at the end of each budget."""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence

from ...records import Arm
from .. import charts
from ..blocks import Block, Claim, Figure, Section, Table, sketch
from ..results import Results, training
from ..statistics import TINY, Paired, mean
from ..verdicts import sign
from ..wording import NONE, complete, interval, listed, name_of, number, percent, significant, spaced, times
from .common import section
from .rates import WAYS, edge, way_of

EXPERIMENTS = {"MNIST_3": "mnist_3-budgets", "MNIST_3 with He's initial weights": "he-budgets"}
MEASURES = {"train_loss": "training loss", "test_accuracy": "test accuracy"}


@dataclasses.dataclass(frozen=True)
class Point:
    """What a way comes to with one budget, at the learning rate that is best for it.

    Attributes:
      value: the mean over seeds.
      arm: the arm with this learning rate.
      n: how many seeds.
      edge: what is to be said if the rate is an extreme of those tried; else nothing.
    """

    value: float
    arm: Arm
    n: int
    edge: str = ""

    @property
    def rate(self) -> str:
        """The learning rate, as a multiple of the experiment's."""
        return f"x {self.arm.rate:g}{self.edge}"


def points(results: Results, experiment: str, way: str, measure: str) -> dict[int, Point]:
    """Returns what a way comes to with each budget, by the measure at the end."""
    found: dict[int, list[Point]] = {}
    for arm in training(experiment).arms:
        curves = list(results.curves(experiment, arm.name).values())
        if way_of(arm.name) == way and curves and all(curve.finite for curve in curves):
            value = mean([curve.final(measure) for curve in curves])
            found.setdefault(arm.steps, []).append(Point(value, arm, len(curves)))
    better = -1 if measure == "train_loss" else 1
    chosen = {}
    for budget, options in sorted(found.items()):
        most = max(p.n for p in options)
        tried = [p for p in options if p.n == most]
        best = max(tried, key=lambda p: better * p.value)
        chosen[budget] = dataclasses.replace(best, edge=edge(best.arm.rate, {p.arm.rate for p in tried}))
    return chosen


def equal_budget(plain: Mapping[int, float], value: float, *, falls: bool) -> float | None:
    """Returns the budget with which plain training comes to a value, read off its curve over the log of the budget.

    Args:
      plain: what it comes to with each budget.
      value: what is sought.
      falls: whether the measure is better if it is smaller; then it is read off the log of it.

    Returns:
      the smallest such budget, or None where the curve doesn't reach the value, or begins beyond it.
    """
    budgets = sorted(plain)

    def height(x: float) -> float:
        return -math.log(max(x, TINY)) if falls else x

    sought = height(value)
    if not budgets or height(plain[budgets[0]]) > sought:
        return None
    for low, high in itertools.pairwise(budgets):
        below, above = height(plain[low]), height(plain[high])
        if below <= sought <= above:
            part = 0.0 if above == below else (sought - below) / (above - below)
            return math.exp(math.log(low) + part * (math.log(high) - math.log(low)))
    return None


def shares(results: Results, experiment: str, way: str, measure: str) -> dict[int, float | None]:
    """Returns each budget as a share of that with which plain training comes to the same.

    None where it cannot be read off, and where test accuracy is below plain's with the same budget.
    """
    plain = {budget: p.value for budget, p in points(results, experiment, "plain", measure).items()}
    found: dict[int, float | None] = {}
    for budget, point in points(results, experiment, way, measure).items():
        # A budget's worth of steps below plain is read off a nearly flat curve: by how much below tells more.
        below = measure == "test_accuracy" and point.value < plain.get(budget, -math.inf)
        equal = None if below else equal_budget(plain, point.value, falls=measure == "train_loss")
        found[budget] = None if equal is None else budget / equal
    return found


def differences(results: Results, experiment: str, way: str, measure: str) -> dict[int, Paired]:
    """Returns for each budget how a way differs from plain training, both at the rates that are best for them.

    Test accuracies differ by percentage points, training losses by the logs of their ratios.
    """
    plain = points(results, experiment, "plain", measure)
    found = {}
    for budget, point in points(results, experiment, way, measure).items():
        if budget in plain:
            c = results.compare(experiment, point.arm.name, plain[budget].arm.name)
            found[budget] = c.log_ratio(measure) if measure == "train_loss" else c.difference(measure, 100)
    return {budget: d for budget, d in found.items() if d.n}


def missing(results: Results, experiment: str) -> list[float]:
    """Returns the learning rates of which not all runs are complete."""
    arms = training(experiment).arms
    return sorted({arm.rate for arm in arms if len(results.of(experiment, arm.name)) < len(arm.seeds)})


def budgets(results: Results) -> Section:
    """Returns the section on equal budgets."""
    shown = {network: name for network, name in EXPERIMENTS.items() if results.progress(name)[0]}
    blocks: list[Block] = [_figure(results, shown), _table(results, shown)] if shown else []
    answers = [
        Claim(
            f"How many steps do jumps save at equal {spelled}? ({network})",
            told(results, name, measure),
            seeds=f"{results.progress(name)[0]} of {results.progress(name)[1]} runs",
        )
        for network, name in shown.items()
        for measure, spelled in MEASURES.items()
    ]
    return section(results, "Equal budgets", list(EXPERIMENTS.values()), answers, blocks)


def told(results: Results, experiment: str, measure: str) -> str:
    """Returns in words what the network's jumps do at each budget, and how many steps they save at an equal measure."""
    found = differences(results, experiment, "introspection", measure)
    if not found:
        return "Not enough runs."
    left = missing(results, experiment)
    words = [f"Not all runs are complete yet, at learning rates {_rates(left)}. So far:"] if left else []
    each = listed([f"{_difference(d, measure)} at {spaced(budget)}" for budget, d in found.items()])
    words.append(
        f"With the same budget they end with {by_sign(found, measure)}: "
        + (f"{each} times plain's." if measure == "train_loss" else f"{each} percentage points.")
    )
    words += _steps_saved(results, experiment, measure, not left)
    at_edge = [
        f"{name_of(way)} at {listed([spaced(budget) for budget in budgets])}"
        for way in ("plain", "introspection")
        if (budgets := [b for b, point in points(results, experiment, way, measure).items() if point.edge])
    ]
    if at_edge:
        words.append(f"The best rate is an extreme of those tried for {listed(at_edge)}: a better one may lie beyond.")
    return " ".join(words)


def by_sign(found: Mapping[int, Paired], measure: str) -> str:
    """Returns at how many budgets a measure is clearly higher or lower than plain's."""
    signs = [sign(d) for d in found.values()]
    parts = [
        f"clearly {how} {MEASURES[measure]} at {signs.count(s)} of {len(signs)} budgets"
        for s, how in ((1, "higher"), (-1, "lower"))
        if s in signs
    ]
    return listed(parts) or f"no clear difference in {MEASURES[measure]} at any of {len(signs)} budgets"


def _steps_saved(results: Results, experiment: str, measure: str, complete: bool) -> list[str]:
    found = shares(results, experiment, "introspection", measure)
    readable = {budget: share for budget, share in found.items() if share is not None}
    words = []
    if readable:
        each = listed([f"{number(share, 2)} at {spaced(budget)}" for budget, share in readable.items()])
        words.append(f"To an equal value they take, times the steps of plain training, {each}.")
    unreadable = [spaced(budget) for budget in found if budget not in readable]
    if unreadable and complete and measure == "train_loss":
        words.append(
            f"With a budget of {listed(unreadable)} that cannot be read off, since no budget of the plain runs comes "
            "to the same value."
        )
    return words


def _difference(d: Paired, measure: str) -> str:
    return times(d) if measure == "train_loss" else interval(d)


def _rates(rates: Sequence[float]) -> str:
    return listed([f"x {rate:g}" for rate in rates])


def _figure(results: Results, shown: Mapping[str, str]) -> Figure:
    caption = (
        "Training loss and test accuracy at the end of each budget, the means over seeds of the best learning rate for "
        "each way. The horizontal distance between two lines is what is saved."
    )
    with sketch("equal-budgets", caption, 2, rows=len(shown), width=4.6, height=3.5) as drawn:
        axes = iter(drawn.axes)
        for network, name in shown.items():
            for measure, spelled in MEASURES.items():
                ax = next(axes)
                for way in WAYS:
                    found = points(results, name, way, measure)
                    values = [point.value for point in found.values()]
                    drawn_values = charts.error(values) if measure == "test_accuracy" else values
                    ax.plot(list(found), drawn_values, label=name_of(way), **charts.FIXED[way])
                if measure == "test_accuracy":
                    charts.accuracy_axis(ax)
                else:
                    charts.say_if_empty(ax)
                    ax.set(yscale="log", ylabel=spelled)
                ax.set_xscale("log")
                ticks = sorted({arm.steps for arm in training(name).arms})
                ax.set_xticks(ticks, [spaced(budget) for budget in ticks])
                ax.set_xticks([], minor=True)
                ax.set(title=network, xlabel="budget, steps")
                ax.legend(fontsize=9)
    return drawn.figure


def _table(results: Results, shown: Mapping[str, str]) -> Table:
    rows: list[Sequence[str]] = []
    for network, name in shown.items():
        found = {(way, measure): points(results, name, way, measure) for way in WAYS for measure in MEASURES}
        apart = {(way, m): differences(results, name, way, m) for way in WAYS[1:] for m in MEASURES}
        of_plain = {(way, m): shares(results, name, way, m) for way in WAYS[1:] for m in MEASURES}
        for budget in sorted({arm.steps for arm in training(name).arms}):
            for way in WAYS:
                if budget not in found[way, "train_loss"]:
                    continue
                row = [f"{network}, {spaced(budget)} steps, {name_of(way)}"]
                for m in MEASURES:
                    point = found[way, m][budget]
                    value = significant(point.value) if m == "train_loss" else percent(point.value)
                    d = apart[way, m].get(budget) if way != "plain" else None
                    share = of_plain[way, m].get(budget) if way != "plain" else None
                    row += [
                        f"{value} ({point.rate})",
                        NONE if d is None else _difference(d, m),
                        NONE if share is None else number(share),
                    ]
                last = found[way, "train_loss"][budget]
                rows.append([*row, complete(last.n, len(last.arm.seeds))])
    columns = (
        "network, budget, way", "training loss", "times plain's", "steps to equal loss / plain's",
        "test accuracy, %", "difference to plain", "steps to equal accuracy / plain's", "seeds",
    )  # fmt: skip
    caption = (
        "Cosine decay to zero at the budget; in brackets the learning rate, as a multiple of 0.001, that is best for "
        "this measure by the mean of the very seeds that are compared. Times plain's, and difference to plain: of the "
        "same seed and budget, both at their best rates, with 95 % intervals. Steps / plain's: the budget by that with "
        "which plain training comes to the same, interpolated over the log of the budget, so that 0.8 is a fifth "
        "saved; a dash where it cannot be read off, or test accuracy is below plain's."
    )
    return Table(columns, rows, caption)
