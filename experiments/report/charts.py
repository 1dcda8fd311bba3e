"""The kinds of drawings that several sections share."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..figures import AMBER, BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, SKY
from .statistics import Curve, Paired, clocks
from .wording import name_of, signed

Look = dict[str, Any]

# What stands in several figures looks the same in all of them.
FIXED: dict[str, Look] = {
    "plain": {"color": BLACK, "linestyle": "-", "marker": "o"},
    "introspection": {"color": ORANGE, "linestyle": "-", "marker": "s"},
    "two-point-1.3": {"color": BLUE, "linestyle": "--", "marker": "^"},
    "introspection-equivariant": {"color": GREEN, "linestyle": "-.", "marker": "D"},
}
FIXED["fitted-equivariant"] = FIXED["introspection-equivariant"]
# The main arms of CIFAR_1 jump at the paper's third set of steps.
FIXED |= {f"{name}-set-3": FIXED[name] for name in ("introspection", "two-point-1.3", "introspection-equivariant")}
FIXED["introspection-early"] = FIXED["introspection"]
FIXED["introspection-late"] = {"color": PURPLE, "linestyle": "--", "marker": "P"}
_OTHERS: list[Look] = [
    {"color": color, "linestyle": line, "marker": marker}
    for color, line, marker in (
        (AMBER, "-", "v"),
        (PURPLE, "--", "P"),
        (SKY, "-", "*"),
        (GREY, (0, (3, 1, 1, 1)), "X"),
        (GREEN, (0, (1, 1)), "d"),
        (ORANGE, (0, (6, 1)), "<"),
        (BLACK, (0, (2, 2)), ">"),
    )
]
# Test errors, in percent, at which an axis of accuracies may have ticks.
_TICKS = (
    90, 80, 70, 60, 50, 45, 40, 35, 30, 28, 26, 24, 22, 20, 15, 10, 8, 7, 6, 5, 4.5, 4, 3.5, 3, 2.5, 2, 1.8, 1.6, 1.4,
    1.2, 1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1,
)  # fmt: skip


def looks(names: Sequence[str]) -> dict[str, Look]:
    """Returns colour, line style and marker for each of at most a dozen names."""
    others = iter(_OTHERS)
    return {name: FIXED[name] if name in FIXED else next(others) for name in names}


def error(accuracy: Any) -> Any:
    """Returns the test error in percent, not quite 0, to be drawn on an `accuracy_axis`."""
    return np.maximum(100 * (1 - np.asarray(accuracy, np.float64)), 0.01)


def accuracy_axis(ax: Any) -> None:
    """Makes the y axis of test errors one of accuracies, on which 90, 99 and 99.9 % are equally far apart."""
    say_if_empty(ax)
    ax.set_yscale("log")
    ax.invert_yaxis()
    high, low = ax.get_ylim()
    ticks = [tick for tick in _TICKS if low <= tick <= high]
    ticks = ticks[:: max(1, math.ceil(len(ticks) / 7))]
    ax.set_yticks(ticks, [f"{100 - tick:g}" for tick in ticks], minor=False)
    ax.set_yticks([], minor=True)
    ax.set_ylabel("test accuracy, %")


def say_if_empty(ax: Any) -> None:
    """Writes into axes that nothing is drawn into that there are no runs yet."""
    if not np.isfinite(ax.dataLim.get_points()).all():
        ax.text(0.5, 0.5, "no complete runs yet", transform=ax.transAxes, ha="center", va="center", color=GREY)
        ax.set(xlim=(1, 10), ylim=(1, 10))


def mark_jumps(ax: Any, jump_steps: Sequence[int]) -> None:
    """Draws a line at each jump."""
    for i, step in enumerate(jump_steps):
        ax.axvline(step, color=GREY, linewidth=0.9, linestyle=(0, (1, 2)), label="jump" if i == 0 else None)


def mark_jumps_of(ax: Any, jump_steps: Mapping[str, Sequence[int]], looks: Mapping[str, Look]) -> None:
    """Draws the jumps of arms: lines if they are the same for all, else a row of marks above the axes for each."""
    if len(set(jump_steps.values())) == 1:
        mark_jumps(ax, next(iter(jump_steps.values())))
        return
    for i, (name, steps) in enumerate(jump_steps.items()):
        look = {"color": looks[name]["color"], "marker": "v", "markersize": 5, "linestyle": "none"}
        ax.plot(steps, [1.03 + 0.04 * i] * len(steps), transform=ax.get_xaxis_transform(), clip_on=False, **look)


def mark_drops(ax: Any, steps: Sequence[int]) -> None:
    """Draws a line where the learning rate falls steeply."""
    for i, step in enumerate(steps):
        label = "drop of the learning rate" if i == 0 else None
        ax.axvline(step, color=GREY, linewidth=1.5, alpha=0.6, label=label)


def accuracy_curves(ax: Any, arms: Mapping[str, Sequence[Curve]], since: Mapping[str, int], x: str = "step") -> None:
    """Draws test accuracy against steps or seconds: thin lines for the seeds, a thick one for their mean.

    Where the mean of an arm is far below all of plain training, it leaves the axes, with a mark at the edge.

    Args:
      ax: what to draw into.
      arms: the runs of each arm; those that became non-finite end there with a cross, and are not in the mean.
      since: the step from which on each arm is drawn.
      x: `"step"` or `"seconds"`.
    """
    means: dict[str, tuple[Any, Any]] = {}
    for name, look in looks([name for name in arms if arms[name]]).items():
        color = look["color"]
        runs = [curve.since(since[name]) for curve in arms[name]]
        # The seeds as one line with gaps.
        places = np.concatenate([np.append(curve[x], math.nan) for curve in runs])
        errors = error(np.concatenate([np.append(curve["test_accuracy"], math.nan) for curve in runs]))
        ax.plot(places, errors, color=color, linewidth=0.5, alpha=0.45)
        for curve in runs:
            if not curve.finite:
                ax.plot(curve[x][-1:], error(curve["test_accuracy"][-1:]), "x", color=color)
        whole = [curve for curve in runs if curve.finite] or runs[:1]
        middle, mean = (np.mean([curve[key] for curve in whole], axis=0) for key in (x, "test_accuracy"))
        look = {**look, "markevery": max(1, len(middle) // 6), "markersize": 4, "linewidth": 1.6}
        ax.plot(middle, error(mean), label=name_of(name), **look)
        means[name] = middle, error(mean)
    _leave(ax, means)
    accuracy_axis(ax)
    ax.locator_params(axis="x", nbins=6)
    clock = clocks(curve for curves in arms.values() for curve in curves)
    ax.set_xlabel({"step": "step", "seconds": f"{clock} seconds of training"}[x])


def _leave(ax: Any, means: Mapping[str, tuple[Any, Any]]) -> None:
    """Cuts off what is far worse than plain training where the others begin, which would crush the rest."""
    others = {name: mean for name, mean in means.items() if name != "plain"}
    if "plain" not in means or not others:
        return
    begins = min(x[0] for x, _ in others.values())
    x, y = means["plain"]
    if not (x >= begins).any():
        return
    limit = 2 * float(y[x >= begins].max())
    ax.set_yscale("log")  # before the limits, since those of a linear axis may be below 0
    if max(float(y.max()) for _, y in means.values()) > limit:
        ax.set_ylim(top=limit)
    colors = {line.get_label(): line.get_color() for line in ax.lines}
    for name, (x, y) in others.items():
        if (y > limit).any():
            left = x[y > limit]
            ax.plot(left, [limit] * len(left), linestyle="none", marker="v", color=colors[name_of(name)], clip_on=False)


def dots(ax: Any, rows: Mapping[str, Paired], xlabel: str, color: str = BLUE, digits: int = 2) -> None:
    """Draws paired differences as a row each: the seeds, their mean and its interval.

    What is far to the left of 0, compared with the gains, stands at the edge, with its mean as a number.
    """
    shown = {name: d for name, d in rows.items() if d.n}
    seeds = [x for d in shown.values() for x in d.differences]
    if not seeds:
        say_if_empty(ax)
        return
    low, high = min(0.0, *seeds), max(0.0, *seeds)
    if high > 0:
        low = max(low, -1.5 * max(high, statistics.median(abs(d.mean) for d in shown.values())))
    margin = 0.08 * (high - low) or 1.0
    low, high = low - margin, high + margin
    for y, d in enumerate(shown.values()):
        if d.mean < low:
            ax.plot(low, y, "<", color=ORANGE, clip_on=False)
            ax.annotate(signed(d.mean, digits), (low, y), (8, 0), textcoords="offset points", va="center", fontsize=8)
            continue
        if d.n > 1:
            ax.plot([max(d.low, low), min(d.high, high)], [y, y], color=color, linewidth=2)
        ax.plot(d.mean, y, "o", color=color)
        ax.plot(d.differences, [y] * d.n, "|", color=BLACK, markersize=8, markeredgewidth=0.8)
    ax.axvline(0, color=BLACK, linewidth=1)
    ax.set_yticks(range(len(shown)), list(shown))
    ax.set(xlim=(low, high), ylim=(len(shown) - 0.5, -0.5), xlabel=xlabel)


def error_bar(ax: Any, x: float, d: Paired, **look: Any) -> None:
    """Draws a mean and its 95 % interval, if it has one."""
    half = 0.0 if math.isinf(d.half_width) else d.half_width
    ax.errorbar(x, d.mean, yerr=half, capsize=3, **look)


def legend_below(ax: Any, columns: int = 2) -> None:
    """Puts the legend below the axes, if there is anything in them."""
    if ax.get_legend_handles_labels()[1]:
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=columns, fontsize=9)
