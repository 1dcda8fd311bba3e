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
from ..statistics import mean
from ..wording import NONE, listed, percent, seeds, spaced
from .common import section

_MEASURES = {"difference": "w_end - w_0", "deviation": "root of the second moment about w_0"}
_CURVES = 24  # that can still be told apart


class _Found(NamedTuple):
    """A training and its results, by seed."""

    recorded: Recorded
    runs: dict[int, Run]

    @property
    def shown(self) -> Run:
        """The one that has curves."""
        return self.runs[0]

    def shares(self, measure: str) -> list[float]:
        """Returns which share of the weights makes half of the change, for each seed."""
        return [line["share"] for run in self.runs.values() for line in run.lines if line.get("share_of") == measure]

    @property
    def unmoved(self) -> list[float]:
        """Which share of the weights never moves, for each seed."""
        return [line["unmoved"] for run in self.runs.values() for line in run.lines if "unmoved" in line]


def movement(results: Results, name: str, title: str) -> Section:
    """Returns the section on how weights move in some trainings.

    Args:
      results: all complete runs.
      name: the experiment.
      title: the heading.
    """
    experiment = EXPERIMENTS[name]
    assert isinstance(experiment, Movement)
    found = [_Found(r, runs) for r in experiment.recorded if 0 in (runs := results.of(name, r.name))]
    claim = _verdict(found, experiment)
    if not found:
        return section(results, title, [name], [claim], [])
    blocks: list[Block] = [_histograms(name, found), _curves(name, found), _one_weight(name, found), _table(found)]
    return section(results, title, [name], [claim], blocks)


def _lines(run: Run, key: str) -> list[dict[str, Any]]:
    return [line for line in run.lines if key in line]


def _verdict(found: Sequence[_Found], experiment: Movement) -> Claim:
    title = "few weights carry most of the change"
    count = seeds(min((len(f.runs) for f in found), default=0), len(experiment.seeds))
    if len(found) < len(experiment.recorded):
        return Claim(title, "Not enough runs.", "open", count)
    told = listed([f"{_span(f.shares('difference'))} % ({f.recorded.title})" for f in found])
    words = (
        f"Half of the sum of all absolute changes is made by {told} of the weights; if changes were normally "
        f"distributed, it would be {percent(verdicts.NORMAL_SHARE, 1)} %. "
        # These are among the many that make the other half, so that they alone may make the rest few.
        f"Weights that never move: {listed([f'{_span(f.unmoved)} % ({f.recorded.title})' for f in found])}."
    )
    return Claim(title, words, verdicts.few_weights([mean(f.shares("difference")) for f in found]), count)


def _span(shares: Sequence[float]) -> str:
    """Returns the mean of shares in percent, and in which range the seeds are."""
    if not shares:
        return NONE
    middle, *ends = (percent(share, 1) for share in (mean(shares), min(shares), max(shares)))
    return middle if ends[0] == ends[1] else f"{middle} ({ends[0]} to {ends[1]})"


def _histograms(name: str, found: Sequence[_Found]) -> Figure:
    caption = (
        "How many weights change by how much from start to end (left), and how far from their start they are over the "
        "training (right): 100 bins, logarithmic counts."
    )
    with sketch(f"{name}-histograms", caption, 2, rows=len(found), width=4.6, height=2.9) as drawn:
        axes = iter(drawn.axes)
        for f in found:
            for line in _lines(f.shown, "histogram"):
                ax = next(axes)
                edges = np.linspace(line["low"], line["high"], len(line["counts"]) + 1)
                ax.stairs(line["counts"], edges, fill=True, color=BLUE)
                ax.set_yscale("log")
                ax.set(title=f.recorded.title, xlabel=_MEASURES[line["histogram"]], ylabel="weights", ylim=(0.7, None))
                ax.locator_params(axis="x", nbins=6)
    return drawn.figure


def _steps(run: Run) -> list[int]:
    steps: list[int] = _lines(run, "steps")[0]["steps"]
    return steps


def _curves(name: str, found: Sequence[_Found]) -> Figure:
    caption = (
        "Curves of weights, one from each of some bins of the two histograms, plain training: difference to the start. "
        "Line styles and colours only tell them apart."
    )
    palette = (BLUE, ORANGE, "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
    with sketch(f"{name}-curves", caption, 2, rows=len(found), width=4.8, height=3.4) as drawn:
        axes = iter(drawn.axes)
        for f in found:
            for measure, spelled in _MEASURES.items():
                ax = next(axes)
                for i, line in enumerate(_evenly(_lines(f.shown, "weight"), measure)):
                    curve = np.array(line["plain"]) - line["plain"][0]
                    ax.plot(_steps(f.shown), curve, color=palette[i % 6], linestyle=("-", "--")[i % 2], linewidth=0.8)
                ax.set(title=f"{f.recorded.title}: one of a bin by\n{spelled}", xlabel="step", ylabel="w - w_0")
                ax.locator_params(axis="x", nbins=6)
    return drawn.figure


def _evenly(lines: Sequence[dict[str, Any]], measure: str) -> list[dict[str, Any]]:
    """Returns some of the curves from the bins of a measure, from its smallest value to its largest."""
    ordered = sorted((line for line in lines if line["bins_of"] == measure), key=lambda line: float(line[measure]))
    chosen = np.unique(np.linspace(0, len(ordered) - 1, _CURVES).round().astype(int))
    return [ordered[i] for i in chosen]


def _one_weight(name: str, found: Sequence[_Found]) -> Figure:
    caption = "The weight among these that changes most, with and without jumps."
    with sketch(f"{name}-one-weight", caption, len(found), width=4.8, height=3.2) as drawn:
        for ax, f in zip(drawn.axes, found, strict=True):
            line = max(_lines(f.shown, "weight"), key=lambda line: abs(line["difference"]))
            ax.plot(_steps(f.shown), line["plain"], color=BLACK, label="plain")
            ax.plot(_steps(f.shown), line["jumps"], color=ORANGE, linestyle="--", label="with jumps")
            charts.mark_jumps(ax, f.recorded.jump_steps)
            ax.set(title=f"{f.recorded.title}, weight {spaced(line['weight'])}", xlabel="step", ylabel="w")
            ax.locator_params(axis="x", nbins=6)
            ax.legend(fontsize=9)
    return drawn.figure


def _table(found: Sequence[_Found]) -> Table:
    rows = [
        [
            f.recorded.title,
            spaced(_lines(f.shown, "share_of")[0]["weights"]),
            *(_span(f.shares(measure)) for measure in _MEASURES),
            _span(f.unmoved),
            str(len(f.runs)),
        ]
        for f in found
    ]
    columns = (
        "training", "weights", "share for half of the differences, %", "share for half of the deviations, %",
        "never moving, %", "seeds",
    )  # fmt: skip
    caption = (
        "The smallest share of the weights that makes half of the sum of all absolute changes: the mean over seeds, "
        "and their range."
    )
    return Table(columns, rows, caption)
