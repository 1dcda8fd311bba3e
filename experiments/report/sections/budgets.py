"""Equal budgets: how many steps jumps save when the learning rate falls to zero at the end of each budget."""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np

from .. import charts
from ..blocks import Block, Claim, Figure, Section, Table, sketch
from ..results import Results, training
from ..statistics import mean
from ..wording import NONE, complete, listed, name_of, number, percent, significant, spaced
from .common import section
from .rates import WAYS, way_of

EXPERIMENTS = {"MNIST_3": "mnist_3-budgets", "MNIST_3 with He's initial weights": "he-budgets"}
MEASURES = {"train_loss": "training loss", "test_accuracy": "test accuracy"}


@dataclasses.dataclass(frozen=True)
class Point:
    """What a way comes to with one budget, at the learning rate that is best for it.

    Attributes:
      value: the mean over seeds.
      rate: the learning rate, as a multiple of the experiment's.
      n: how many seeds.
      foreseen: of how many.
    """

    value: float
    rate: float
    n: int
    foreseen: int


def points(results: Results, experiment: str, way: str, measure: str) -> dict[int, Point]:
    """Returns what a way comes to with each budget, by the measure at the end."""
    found: dict[int, list[Point]] = {}
    for arm in training(experiment).arms:
        curves = list(results.curves(experiment, arm.name).values())
        if way_of(arm.name) == way and curves and all(curve.finite for curve in curves):
            value = mean([curve.final(measure) for curve in curves])
            found.setdefault(arm.steps, []).append(Point(value, arm.rate, len(curves), len(arm.seeds)))
    better = -1 if measure == "train_loss" else 1
    chosen = {}
    for budget, options in sorted(found.items()):
        most = max(p.n for p in options)
        chosen[budget] = max((p for p in options if p.n == most), key=lambda p: better * p.value)
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
        return -math.log(max(x, 1e-12)) if falls else x

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
    """Returns each budget as a share of that with which plain training comes to the same; None where it is unknown."""
    plain = {budget: p.value for budget, p in points(results, experiment, "plain", measure).items()}
    found: dict[int, float | None] = {}
    for budget, point in points(results, experiment, way, measure).items():
        equal = equal_budget(plain, point.value, falls=measure == "train_loss")
        found[budget] = None if equal is None else budget / equal
    return found


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
    """Returns in words how many steps the network saves at an equal measure."""
    found = shares(results, experiment, "introspection", measure)
    if not found or not points(results, experiment, "plain", measure):
        return "Not enough runs."
    readable = {budget: share for budget, share in found.items() if share is not None}
    unreadable = [spaced(budget) for budget, share in found.items() if share is None]
    words = ""
    if readable:
        each = listed([f"{number(share, 2)} at {spaced(budget)}" for budget, share in readable.items()])
        middle = number(float(np.median(list(readable.values()))), 2)
        words = f"They take {middle} times the steps of plain training in the median: {each}. "
    if unreadable:
        words += (
            f"With a budget of {listed(unreadable)} it cannot be read off, since no budget of the plain runs comes to "
            "the same value."
        )
    return words.strip()


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
        of_plain = {(way, measure): shares(results, name, way, measure) for way in WAYS[1:] for measure in MEASURES}
        for budget in sorted({arm.steps for arm in training(name).arms}):
            for way in WAYS:
                if budget not in found[way, "train_loss"]:
                    continue
                loss, accuracy = found[way, "train_loss"][budget], found[way, "test_accuracy"][budget]
                taken = [of_plain[way, m].get(budget) if way != "plain" else None for m in MEASURES]
                rows.append(
                    [
                        f"{network}, {spaced(budget)} steps, {name_of(way)}",
                        f"{significant(loss.value)} (x {loss.rate:g})",
                        f"{percent(accuracy.value)} (x {accuracy.rate:g})",
                        *(NONE if share is None else number(share, 2) for share in taken),
                        complete(loss.n, loss.foreseen),
                    ]
                )
    columns = (
        "network, budget, way", "training loss", "test accuracy, %", "steps to equal loss / plain's",
        "steps to equal accuracy / plain's", "seeds",
    )  # fmt: skip
    caption = (
        "Cosine decay to zero at the budget; in brackets the learning rate, as a multiple of 0.001, that is best for "
        "this measure. Steps / plain's: the budget by that with which plain training comes to the same, interpolated "
        "over the log of the budget, so that 0.8 is a fifth saved; a dash where it cannot be read off."
    )
    return Table(columns, rows, caption)
