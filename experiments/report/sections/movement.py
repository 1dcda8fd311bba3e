"""Section 3 of the paper: how much weights change, on what curves, and what jumps do to one."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...figures import BLACK, BLUE, ORANGE
from ...movement import JUMP_STEPS, RECORDED
from ...runs import Run
from .. import charts, verdicts
from ..blocks import Block, Claim, Figure, Section, Table, sketch
from ..results import Results
from ..wording import NONE, listed, percent, spaced
from .common import section

_NAME = "movement"
_TITLES = {"convolutional-sgd": "N_0 with SGD", "dense-adam": "MNIST_3 with Adam"}
_MEASURES = {"difference": "w_end - w_0", "deviation": "root of the second moment about w_0"}
_CURVES = 24


def movement(results: Results) -> Section:
    """Returns the section on how weights move."""
    found = {r.name: runs[0] for r in RECORDED if (runs := results.of(_NAME, r.name))}
    if not found:
        return section(results, "How weights move", [_NAME], [_verdict({})], [])
    blocks: list[Block] = [_histograms(found), _curves(found), _one_weight(found), _table(found)]
    return section(results, "How weights move", [_NAME], [_verdict(found)], blocks)


def _lines(run: Run, key: str) -> list[dict[str, Any]]:
    return [line for line in run.lines if key in line]


def _shares(run: Run) -> dict[str, float]:
    return {line["share_of"]: line["share"] for line in _lines(run, "share_of")}


def _verdict(found: dict[str, Run]) -> Claim:
    title = "few weights carry most of the change"
    shares = {name: _shares(run)["difference"] for name, run in found.items()}
    count = f"{len(found)} of {len(RECORDED)} trainings"
    if len(found) < len(RECORDED):
        return Claim(title, "Not enough runs.", "open", count)
    told = listed([f"{percent(share, 1)} % ({_TITLES[name]})" for name, share in shares.items()])
    words = (
        f"Half of the sum of all absolute changes is made by {told} of the weights; if changes were normally "
        f"distributed, it would be {percent(verdicts.NORMAL_SHARE, 1)} %."
    )
    return Claim(title, words, verdicts.few_weights(list(shares.values())), count)


def _histograms(found: dict[str, Run]) -> Figure:
    caption = (
        "How many weights change by how much from start to end (left), and how far from their start they are over the "
        "training (right): 100 bins, logarithmic counts."
    )
    with sketch("movement-histograms", caption, 2, rows=len(found), width=4.6, height=2.9) as drawn:
        axes = iter(drawn.axes)
        for name, run in found.items():
            for line in _lines(run, "histogram"):
                ax = next(axes)
                edges = np.linspace(line["low"], line["high"], len(line["counts"]) + 1)
                ax.stairs(line["counts"], edges, fill=True, color=BLUE)
                ax.set_yscale("log")
                ax.set(title=_TITLES[name], xlabel=_MEASURES[line["histogram"]], ylabel="weights", ylim=(0.7, None))
                ax.locator_params(axis="x", nbins=6)
    return drawn.figure


def _steps(run: Run) -> list[int]:
    steps: list[int] = _lines(run, "steps")[0]["steps"]
    return steps


def _curves(found: dict[str, Run]) -> Figure:
    caption = (
        "Curves of weights from all parts of the histogram of w_end - w_0, plain training: difference to the start. "
        "Line styles and colours only tell them apart."
    )
    palette = (BLUE, ORANGE, "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
    with sketch("movement-curves", caption, len(found), width=4.8, height=3.4) as drawn:
        for ax, (name, run) in zip(drawn.axes, found.items(), strict=True):
            for i, line in enumerate(_evenly(_lines(run, "weight"))):
                curve = np.array(line["plain"]) - line["plain"][0]
                ax.plot(_steps(run), curve, color=palette[i % 6], linestyle=("-", "--")[i % 2], linewidth=0.8)
            ax.set(title=_TITLES[name], xlabel="step", ylabel="w - w_0")
            ax.locator_params(axis="x", nbins=6)
    return drawn.figure


def _evenly(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns some of the curves, from the smallest difference to the largest."""
    ordered = sorted(lines, key=lambda line: line["difference"])
    chosen = np.unique(np.linspace(0, len(ordered) - 1, _CURVES).round().astype(int))
    return [ordered[i] for i in chosen]


def _one_weight(found: dict[str, Run]) -> Figure:
    caption = "The weight among these that changes most, with and without jumps."
    with sketch("movement-one-weight", caption, len(found), width=4.8, height=3.2) as drawn:
        for ax, (name, run) in zip(drawn.axes, found.items(), strict=True):
            line = max(_lines(run, "weight"), key=lambda line: abs(line["difference"]))
            ax.plot(_steps(run), line["plain"], color=BLACK, label="plain")
            ax.plot(_steps(run), line["jumps"], color=ORANGE, linestyle="--", label="with jumps")
            charts.mark_jumps(ax, JUMP_STEPS)
            ax.set(title=f"{_TITLES[name]}, weight {spaced(line['weight'])}", xlabel="step", ylabel="w")
            ax.locator_params(axis="x", nbins=6)
            ax.legend(fontsize=9)
    return drawn.figure


def _table(found: dict[str, Run]) -> Table:
    rows = []
    for name, run in found.items():
        shares = _shares(run)
        weights = _lines(run, "share_of")[0]["weights"]
        rows.append(
            [_TITLES[name], spaced(weights), *(percent(shares[m], 1) if m in shares else NONE for m in _MEASURES)]
        )
    columns = ("training", "weights", "share for half of the differences, %", "share for half of the deviations, %")
    caption = "The smallest share of the weights that makes half of the sum of all absolute changes."
    return Table(columns, rows, caption)
