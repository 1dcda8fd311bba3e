"""Figures of the results: each line has its own colour, marker and dash, for readers of every colour vision."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .results import Results
from .statistics import Difference, difference, pairs

# Okabe and Ito's colours without yellow, which is too light for lines; black is for plain.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
_MARKERS, _DASHES = ("o", "s", "^", "D", "v", "P"), ("-", "--", "-.", (0, (1, 1)), (0, (4, 1, 1, 1)), (0, (6, 2)))
Style = dict[str, Any]
DOTTED = ", cosine decay"  # end of the name of a dotted line
CURVES = 6  # single weights that are drawn
FLOOR = -2.0  # points below which gains of schedules are drawn at it
FAR = 12.0  # points from which a difference is written at the edge instead of drawn
MINUS = "\N{MINUS SIGN}"


def style(index: int) -> Style:
    """Returns colour, marker and dash of a line; -1 is plain training."""
    if index < 0:
        return {"color": "black", "marker": "x", "linestyle": "-"}
    i = index % len(_COLOURS)
    return {"color": _COLOURS[i], "marker": _MARKERS[i], "linestyle": _DASHES[i]}


def save(figure: Figure, path: Path) -> None:
    """Writes a figure as PNG, without the version and the time in it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


def _axes(columns: int = 1, height: float = 3.6, width: float = 8.6, **options: Any) -> tuple[Figure, Any]:
    mpl.use("Agg")
    figure, axes = plt.subplots(1, columns, figsize=(width, height), layout="constrained", squeeze=False, **options)
    for axis in axes[0]:
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes[0]


def curves(results: Results, labels: Mapping[str, str], plain_of: Callable[[str], str]) -> Figure:
    """Draws test accuracy against steps, and the differences to plain training; means over seeds, bands their range.

    Args:
      results: the results.
      labels: labels of the arms to be drawn, plain training first.
      plain_of: from an arm to the one without jumps that it is compared with.
    """
    figure, (left, right) = _axes(2)
    shown: list[float] = []
    gains: list[float] = []
    for i, (arm, label) in enumerate(labels.items(), start=-1):
        look = style(i) | {"markevery": 0.12, "markersize": 4.5, "linewidth": 1.4}
        own = list(results.curves(arm).values())
        steps = functools.reduce(np.intersect1d, [curve["step"] for curve in own])
        accuracy = 100 * np.stack([curve["test_accuracy"][np.isin(curve["step"], steps)] for curve in own])
        left.plot(steps, accuracy.mean(0), label=label, **look)
        left.fill_between(steps, accuracy.min(0), accuracy.max(0), color=look["color"], alpha=0.15, linewidth=0)
        # Falls right after a jump may leave the axes: they would hide all that is small.
        shown += accuracy[:, (steps >= steps[-1] * (0.8 if arm != plain_of(arm) else 0.2))].mean(0).tolist()
        if arm != (plain := plain_of(arm)):
            at, gain = _differences(results, arm, plain)
            right.plot(at, gain.mean(0), **look)
            late = gain[:, at >= at[-1] * 0.8]
            gains += [late.min(), late.max(), gain.mean(0).max()]
            right.fill_between(at, gain.min(0), gain.max(0), color=look["color"], alpha=0.15, linewidth=0)
            settings = results.info["arms"][arm]
            for step in [] if settings.get("even_intervals") else settings["jump_steps"]:
                for axis in (left, right):
                    axis.axvline(step, color="0.6", linewidth=0.6, linestyle=":", zorder=0)
    left.set(xlabel="step", ylabel="test accuracy, %")
    _limit(left, shown)
    right.set(xlabel="step", ylabel="difference to plain, points")
    right.axhline(0, color="black", linewidth=0.8)
    _limit(right, [0, *gains])
    _legend(figure, left)
    return figure


def _differences(results: Results, arm: str, plain: str) -> tuple[Any, Any]:
    both = pairs(results, arm, plain)
    steps = functools.reduce(np.intersect1d, [curve["step"] for pair in both for curve in pair])
    rows = [
        ours["test_accuracy"][np.isin(ours["step"], steps)] - other["test_accuracy"][np.isin(other["step"], steps)]
        for ours, other in both
    ]
    return steps, 100 * np.stack(rows)


def _limit(axis: Axes, values: Sequence[float]) -> None:
    low, high = min(values), max(values)
    margin = 0.15 * max(high - low, 0.2)
    axis.set_ylim(low - margin, high + margin)


def _legend(figure: Figure, *axes: Axes) -> None:
    """Draws one legend of all labels of some axes, each of them once."""
    both = (axis.get_legend_handles_labels() for axis in axes)
    labels = {label: handle for handles, names in both for handle, label in zip(handles, names, strict=True)}
    figure.legend(
        labels.values(),
        labels.keys(),
        loc="outside lower center",
        ncols=len(labels) if len(labels) < 6 else 3,
        fontsize=8,
        frameon=False,
    )


def intervals(groups: Mapping[str, Mapping[str, Difference]], xlabel: str, far: float = FAR) -> Figure:
    """Draws means and 95 % intervals of differences, a row for each name and a marker for each group.

    Args:
      groups: from the name of a group to its differences, by name.
      xlabel: label of the x axis.
      far: means from which on a number stands at the edge instead.
    """
    names = list(dict.fromkeys(name for group in groups.values() for name in group))
    figure, (axis,) = _axes(height=1.2 + 0.26 * len(names))
    for i, (group, rows) in enumerate(groups.items()):
        shift = 0.16 * (i - (len(groups) - 1) / 2)
        for name, found in rows.items():
            y = names.index(name) + shift
            low, high = found.interval
            look = style(i) | {"linestyle": "none", "markersize": 5}
            label = group if name == next(iter(rows)) else None
            axis.plot(found.mean, y, label=label, **look | ({} if math.isfinite(low) else {"markerfacecolor": "none"}))
            if math.isfinite(low):
                axis.plot([low, high], [y, y], color=look["color"], linewidth=1.5)
    ends = [(*found.interval, found.mean) for rows in groups.values() for found in rows.values()]
    near = [x for low, high, mean in ends if abs(mean) < far for x in (low, high, mean) if math.isfinite(x)]
    low, high = min([*near, 0]), max([*near, 0])
    axis.set_xlim(low - 0.05 * (high - low) - 0.1, high + 0.05 * (high - low) + 0.1)
    for y, name in enumerate(names):
        for rows in groups.values():
            if name in rows and abs(mean := rows[name].mean) >= far:
                x, number = axis.get_xlim()[mean > 0], f"{mean:+.1f}".replace("-", MINUS)
                text, side = (f"{number} ▶ ", "right") if mean > 0 else (f" ◀ {number}", "left")
                axis.annotate(text, (x, y), ha=side, va="center")
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set(yticks=range(len(names)), yticklabels=names, xlabel=xlabel)
    axis.set_ylim(len(names) - 0.4, -0.6)
    if len(groups) > 1:
        _legend(figure, axis)
    return figure


def lines(
    panels: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]], xlabel: str, ylabel: str
) -> Figure:
    """Draws lines over a logarithmic axis in panels side by side; a name that ends with `DOTTED` is a variant."""
    figure, axes = _axes(len(panels))
    for axis, (title, named) in zip(axes, panels.items(), strict=True):
        order = [name for name in named if name != "plain" and not name.endswith(DOTTED)]
        for name, (x, y) in named.items():
            base = name.removesuffix(DOTTED)
            look = style(-1 if base == "plain" else order.index(base)) | ({"linestyle": ":"} if base != name else {})
            axis.plot(x, y, label=name, markersize=5, linewidth=1.4, **look)
        axis.set(xlabel=xlabel, ylabel=ylabel, title=title, xscale="log")
        ticks = sorted({tick for x, _ in named.values() for tick in x})
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.minorticks_off()
    _legend(figure, axes[0])
    return figure


def changes(panels: Mapping[str, Mapping[str, tuple[Any, Any]]], xlabel: str, ylabel: str) -> Figure:
    """Draws lines about zero in panels side by side: means over seeds, bands their range.

    Args:
      panels: from the title of a panel to its lines: from a name to x `[n]` and y `[seeds, n]`.
      xlabel: label of the x axes.
      ylabel: label of the y axes.
    """
    figure, axes = _axes(len(panels), sharey=True)
    names = list(dict.fromkeys(name for named in panels.values() for name in named))
    for axis, (title, named) in zip(axes, panels.items(), strict=True):
        for name, (x, y) in named.items():
            look = style(names.index(name)) | {"markersize": 4.5, "linewidth": 1.4}
            axis.plot(x, y.mean(0), label=name, **look)
            axis.fill_between(x, y.min(0), y.max(0), color=look["color"], alpha=0.15, linewidth=0)
        axis.axhline(0, color="black", linewidth=0.8)
        axis.set(xlabel=xlabel, title=title)
        axis.locator_params(axis="x", nbins=4)
    axes[0].set_ylabel(ylabel)
    _legend(figure, *axes)
    return figure


def around_jumps(results: Results, labels: Mapping[str, str], measure: str, ylabel: str) -> Figure:
    """Draws a measure around each jump, a panel each, as a multiple of what it was right before the jump."""
    jumps = results.info["settings"]["around"]
    figure, axes = _axes(len(jumps), sharey=True)
    for axis, jump in zip(axes, jumps, strict=True):
        for i, (arm, label) in enumerate(labels.items(), start=-1):
            ratios = []
            for curve in results.curves(arm).values():
                near = (curve["step"] >= jump) & (curve["step"] <= jump + 500)
                ratios.append(curve[measure][near] / curve[measure][near][0])
            steps = curve["step"][near] - jump
            look = style(i) | {"markersize": 4, "linewidth": 1.3}
            axis.plot(steps, np.mean(ratios, axis=0), label=label, **look)
        axis.set(xlabel=f"steps after {jump:g}", xscale="symlog", title=f"jump at {jump:g}")
        axis.set_xticks([0, 1, 10, 100, 500], ["0", "1", "10", "100", "500"])
        axis.axhline(1, color="black", linewidth=0.8)
    axes[0].set_ylabel(ylabel)
    _legend(figure, axes[0])
    return figure


def schedules(results: Results, gain: Callable[[str], float]) -> Figure:
    """Draws the gain of each schedule against the number of jumps: a panel an interval, a line a first jump."""
    named: dict[int, dict[int, list[tuple[int, float]]]] = {}
    for arm, settings in results.info["arms"].items():
        if jumps := settings["jump_steps"]:
            between = [jumps[1] - jumps[0]] if len(jumps) > 1 else [500, 1000, 2000]
            for interval in between:
                named.setdefault(interval, {}).setdefault(jumps[0], []).append((len(jumps), gain(arm)))
    figure, axes = _axes(len(named), sharey=True)
    for axis, interval in zip(axes, sorted(named), strict=True):
        for i, first in enumerate(sorted(named[interval])):
            counts, gains = zip(*sorted(named[interval][first]), strict=True)
            axis.plot(counts, np.maximum(gains, FLOOR), label=f"from step {first}", markersize=5, **style(i))
        axis.axhline(0, color="black", linewidth=0.8)
        axis.set(xlabel="number of jumps", title=f"{interval} steps apart")
    axes[0].set_ylabel(f"difference to plain, points (below {FLOOR:g}: at {FLOOR:g})")
    _legend(figure, axes[-1])
    return figure


def movement(results: Results, curves: Results, labels: Mapping[str, str]) -> Figure:
    """Draws histograms of `w_end - w_0`, and curves of single weights with and without jumps."""
    figure, axes = _axes(2 * len(labels), height=3.4, width=4.3 * 2 * len(labels) / (1 if len(labels) == 1 else 1.4))
    table = results.columns
    for k, (arm, label) in enumerate(labels.items()):
        histogram, trajectories = axes[2 * k], axes[2 * k + 1]
        chosen = (table["arm"] == arm) & (table["seed"] == 0) & (table["measure"] == "difference")

        def of(quantity: str, chosen: Any = chosen) -> Any:
            return table["value"][chosen & (table["quantity"] == quantity)]

        counts = of("count")
        edges = np.linspace(of("low")[0], of("high")[0], len(counts) + 1)
        histogram.stairs(counts, edges, fill=True, color=_COLOURS[0], alpha=0.7)
        histogram.set(yscale="log", xlabel="change of a weight, end less start", ylabel="weights", title=label)
        own = {name: column[curves.columns["arm"] == arm] for name, column in curves.columns.items()}
        weights = np.unique(own["weight"])
        for i, weight in enumerate(weights[:: max(1, len(weights) // CURVES)][:CURVES]):
            here = own["weight"] == weight
            steps, first = np.unique(own["step"][here], return_index=True)
            look = {"color": _COLOURS[i % len(_COLOURS)], "linewidth": 1.3}
            start = own["plain"][here][0]
            trajectories.plot(steps, own["plain"][here][first] - start, label="plain" if i == 0 else None, **look)
            trajectories.plot(steps, own["jumps"][here][first] - start, "--", label="jumps" if i == 0 else None, **look)
        for step in results.info["arms"][arm]["jump_steps"]:
            trajectories.axvline(step, color="0.6", linewidth=0.6, linestyle=":")
        trajectories.set(xlabel="step", ylabel="change since the start", title=f"{CURVES} weights")
        trajectories.legend(fontsize=8)
    return figure


def gains(results: Results, labels: Mapping[str, str]) -> dict[str, Difference]:
    """Returns the differences of arms to plain training, by their labels."""
    return {label: difference(results, arm, "plain") for arm, label in labels.items()}
