"""Section 3 of the paper: how much weights change, on what curves, and what jumps do to one."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ...figures import BLACK, BLUE, ORANGE
from ...movement import Movement, Recorded
from ...runs import Run
from ...table import EXPERIMENTS
from .. import charts, verdicts
from ..blocks import Block, Claim, Figure, Section, Table, sketch
from ..results import Results
from ..wording import NONE, listed, percent, spaced
from .common import section

_MEASURES = {"difference": "w_end - w_0", "deviation": "root of the second moment about w_0"}
_CURVES = 24


class _Found(NamedTuple):
    """A training and its result."""

    recorded: Recorded
    run: Run


def movement(results: Results, name: str, title: str) -> Section:
    """Returns the section on how weights move in some trainings.

    Args:
      results: all complete runs.
      name: the experiment.
      title: the heading.
    """
    experiment = EXPERIMENTS[name]
    assert isinstance(experiment, Movement)
    found = [_Found(r, runs[0]) for r in experiment.recorded if (runs := results.of(name, r.name))]
    claim = _verdict(found, len(experiment.recorded))
    if not found:
        return section(results, title, [name], [claim], [])
    blocks: list[Block] = [_histograms(name, found), _curves(name, found), _one_weight(name, found), _table(found)]
    return section(results, title, [name], [claim], blocks)


def _lines(run: Run, key: str) -> list[dict[str, Any]]:
    return [line for line in run.lines if key in line]


def _shares(run: Run) -> dict[str, float]:
    return {line["share_of"]: line["share"] for line in _lines(run, "share_of")}


def _unmoved(run: Run) -> float | None:
    """Returns the share of the weights that never move; None where it wasn't measured."""
    return next((line["unmoved"] for line in _lines(run, "unmoved")), None)


def _verdict(found: Sequence[_Found], foreseen: int) -> Claim:
    title = "few weights carry most of the change"
    count = f"{len(found)} of {foreseen} trainings"
    if len(found) < foreseen:
        return Claim(title, "Not enough runs.", "open", count)
    shares = [_shares(run)["difference"] for _, run in found]
    told = listed([f"{percent(share, 1)} % ({r.title})" for share, (r, _) in zip(shares, found, strict=True)])
    words = (
        f"Half of the sum of all absolute changes is made by {told} of the weights; if changes were normally "
        f"distributed, it would be {percent(verdicts.NORMAL_SHARE, 1)} %."
    )
    # These are among the many that make the other half, so that they alone may make the rest few.
    unmoved = [f"{percent(share, 1)} % ({r.title})" for r, run in found if (share := _unmoved(run)) is not None]
    words += f" Weights that never move: {listed(unmoved)}." if unmoved else ""
    return Claim(title, words, verdicts.few_weights(shares), count)


def _histograms(name: str, found: Sequence[_Found]) -> Figure:
    caption = (
        "How many weights change by how much from start to end (left), and how far from their start they are over the "
        "training (right): 100 bins, logarithmic counts."
    )
    with sketch(f"{name}-histograms", caption, 2, rows=len(found), width=4.6, height=2.9) as drawn:
        axes = iter(drawn.axes)
        for recorded, run in found:
            for line in _lines(run, "histogram"):
                ax = next(axes)
                edges = np.linspace(line["low"], line["high"], len(line["counts"]) + 1)
                ax.stairs(line["counts"], edges, fill=True, color=BLUE)
                ax.set_yscale("log")
                ax.set(title=recorded.title, xlabel=_MEASURES[line["histogram"]], ylabel="weights", ylim=(0.7, None))
                ax.locator_params(axis="x", nbins=6)
    return drawn.figure


def _steps(run: Run) -> list[int]:
    steps: list[int] = _lines(run, "steps")[0]["steps"]
    return steps


def _curves(name: str, found: Sequence[_Found]) -> Figure:
    caption = (
        "Curves of weights from all parts of the histogram of w_end - w_0, plain training: difference to the start. "
        "Line styles and colours only tell them apart."
    )
    palette = (BLUE, ORANGE, "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
    with sketch(f"{name}-curves", caption, len(found), width=4.8, height=3.4) as drawn:
        for ax, (recorded, run) in zip(drawn.axes, found, strict=True):
            for i, line in enumerate(_evenly(_lines(run, "weight"))):
                curve = np.array(line["plain"]) - line["plain"][0]
                ax.plot(_steps(run), curve, color=palette[i % 6], linestyle=("-", "--")[i % 2], linewidth=0.8)
            ax.set(title=recorded.title, xlabel="step", ylabel="w - w_0")
            ax.locator_params(axis="x", nbins=6)
    return drawn.figure


def _evenly(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns some of the curves, from the smallest difference to the largest."""
    ordered = sorted(lines, key=lambda line: line["difference"])
    chosen = np.unique(np.linspace(0, len(ordered) - 1, _CURVES).round().astype(int))
    return [ordered[i] for i in chosen]


def _one_weight(name: str, found: Sequence[_Found]) -> Figure:
    caption = "The weight among these that changes most, with and without jumps."
    with sketch(f"{name}-one-weight", caption, len(found), width=4.8, height=3.2) as drawn:
        for ax, (recorded, run) in zip(drawn.axes, found, strict=True):
            line = max(_lines(run, "weight"), key=lambda line: abs(line["difference"]))
            ax.plot(_steps(run), line["plain"], color=BLACK, label="plain")
            ax.plot(_steps(run), line["jumps"], color=ORANGE, linestyle="--", label="with jumps")
            charts.mark_jumps(ax, recorded.jump_steps)
            ax.set(title=f"{recorded.title}, weight {spaced(line['weight'])}", xlabel="step", ylabel="w")
            ax.locator_params(axis="x", nbins=6)
            ax.legend(fontsize=9)
    return drawn.figure


def _table(found: Sequence[_Found]) -> Table:
    rows = []
    for recorded, run in found:
        shares = _shares(run)
        weights = _lines(run, "share_of")[0]["weights"]
        told = (*(shares.get(measure) for measure in _MEASURES), _unmoved(run))
        rows.append([recorded.title, spaced(weights), *(NONE if x is None else percent(x, 1) for x in told)])
    columns = (
        "training", "weights", "share for half of the differences, %", "share for half of the deviations, %",
        "never move, %",
    )  # fmt: skip
    caption = "The smallest share of the weights that makes half of the sum of all absolute changes."
    return Table(columns, rows, caption)
