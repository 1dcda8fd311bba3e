"""Tuned learning rates: plain training and jumps, each at the rate that is best for it."""

import dataclasses
from collections.abc import Collection

import numpy as np

from ...records import Arm
from .. import charts, claims
from ..blocks import Block, Claim, Figure, Section, Table, sketch
from ..results import Results, training
from ..statistics import Comparison, mean
from ..wording import NONE, complete, interval, listed, name_of, percent, seeds
from .common import section

EXPERIMENTS = {"SGD": "mnist_3-rates-sgd", "Adam": "mnist_3-rates-adam"}
WAYS = ("plain", "introspection", "two-point-1.3")
_DECAYS = {"none": "constant", "cosine": "cosine"}


@dataclasses.dataclass(frozen=True)
class Tuned:
    """What comes out when a way is run at several learning rates.

    Attributes:
      arm: the one with the best mean.
      accuracy: its mean final test accuracy.
      edge: what is to be said if its rate is an extreme of those tried, with the same decay; else nothing.
      tried: how many arms are complete, so far as any is.
      foreseen: how many arms there are.
    """

    arm: Arm
    accuracy: float
    edge: str
    tried: int
    foreseen: int

    @property
    def words(self) -> str:
        """The learning rate."""
        return f"x {self.arm.rate:g}, {_DECAYS[self.arm.decay]}{self.edge}"


def edge(rate: float, tried: Collection[float]) -> str:
    """Returns what is to be said if the best rate is an extreme of those tried: a better one may lie beyond."""
    extreme = "the only one" if len(tried) == 1 else {max(tried): "the largest", min(tried): "the smallest"}.get(rate)
    return f", {extreme} tried" if extreme else ""


def way_of(name: str) -> str:
    """Returns the way of an arm of the experiments with several learning rates or budgets."""
    return next(way for way in WAYS if name.startswith(f"{way}-"))


def tuned(results: Results, experiment: str, way: str, decay: str | None = None) -> Tuned | None:
    """Returns the best arm of a way by mean final test accuracy.

    Only arms with as many complete seeds as any, and no run that became non-finite, are chosen from.
    """
    arms = [a for a in training(experiment).arms if way_of(a.name) == way and decay in (None, a.decay)]
    curves = {arm: list(results.curves(experiment, arm.name).values()) for arm in arms}
    most = max(len(found) for found in curves.values())
    tried = {arm: found for arm, found in curves.items() if found and len(found) == most}
    means = {
        arm: mean([curve.final("test_accuracy") for curve in found])
        for arm, found in tried.items()
        if all(curve.finite for curve in found)
    }
    if not means:
        return None
    best = max(means, key=lambda arm: means[arm])
    at_edge = edge(best.rate, {arm.rate for arm in tried if arm.decay == best.decay})
    return Tuned(best, means[best], at_edge, len(tried), len(arms))


def all_tried(results: Results, optimizer: str) -> bool:
    """Returns whether plain training and jumps have been run at all their learning rates, with equally many seeds."""
    found = [tuned(results, EXPERIMENTS[optimizer], way) for way in ("plain", "introspection")]
    return all(best is not None and best.tried == best.foreseen for best in found)


def headline(results: Results, optimizer: str, way: str = "introspection") -> Comparison | None:
    """Returns the best arm of a way compared with the best plain arm."""
    experiment = EXPERIMENTS[optimizer]
    plain, jumps = tuned(results, experiment, "plain"), tuned(results, experiment, way)
    if plain is None or jumps is None:
        return None
    return results.compare(experiment, jumps.arm.name, plain.arm.name)


def rates(results: Results) -> Section:
    """Returns the section on learning rates."""
    names = list(EXPERIMENTS.values())
    blocks: list[Block] = []
    if any(results.progress(name)[0] for name in names):
        blocks = [_figure(results), headline_table(results), _table(results)]
    answers = [claim for optimizer in EXPERIMENTS if (claim := answer(results, optimizer))]
    question = "Do jumps still help when the learning rate is tuned, for both?"
    return section(results, "Tuned learning rates", names, answers, blocks, question)


def answer(results: Results, optimizer: str) -> Claim | None:
    """Returns what is left of the gain when the learning rate is tuned for both."""
    compared = headline(results, optimizer)
    if compared is None or not compared.n:
        return None
    d = compared.gain
    how = claims.helps(d)
    words = f"{how[0].upper()}{how[1:]}: {interval(d)} percentage points of final test accuracy."
    if not all_tried(results, optimizer):
        words = f"Not all learning rates are complete yet. So far: {words}"
    best = {way: tuned(results, EXPERIMENTS[optimizer], way) for way in ("plain", "introspection")}
    at_edge = [f"{name_of(way)} ({found.words})" for way, found in best.items() if found and found.edge]
    if at_edge:
        words += f" The best rate is an extreme of those tried for {listed(at_edge)}: a better one may lie beyond."
    title = f"Do jumps still gain when the learning rate is tuned for both? (MNIST_3, {optimizer})"
    return Claim(title, words, seeds=seeds(compared.n, compared.foreseen))


def headline_table(results: Results) -> Table:
    """Returns tuned plain against tuned jumps."""
    rows = []
    for optimizer, experiment in EXPERIMENTS.items():
        for way in WAYS:
            chosen = tuned(results, experiment, way)
            compared = headline(results, optimizer, way)
            best = {decay: tuned(results, experiment, way, decay) for decay in _DECAYS}
            rows.append(
                [
                    f"{optimizer}, {name_of(way)}",
                    *(f"{percent(t.accuracy)} (x {t.arm.rate:g}{t.edge})" if (t := best[d]) else NONE for d in _DECAYS),
                    f"{chosen.words} (of {chosen.tried})" if chosen else NONE,
                    percent(chosen.accuracy) if chosen else NONE,
                    interval(compared.gain) if compared and way != "plain" else NONE,
                    complete(compared.n, compared.foreseen) if compared else NONE,
                ]
            )
    columns = (
        "MNIST_3", "best constant, %", "best cosine, %", "best (of so many)", "final, %",
        "difference to tuned plain", "seeds",
    )  # fmt: skip
    caption = (
        "Each way at the learning rate, times the paper's, that is best for it by mean final test accuracy, constant "
        "or with cosine decay to zero at the end. Test accuracy chooses the rate for all ways alike, on the seeds that "
        "are compared. Where the best rate is the largest or the smallest tried, a better one may lie beyond."
    )
    return Table(columns, rows, caption)


def _rates_of(experiment: str) -> list[float]:
    return sorted({arm.rate for arm in training(experiment).arms})


def _figure(results: Results) -> Figure:
    caption = (
        "MNIST_3: final test accuracy by learning rate, times the paper's. Small marks are seeds, lines their mean; "
        "runs that became non-finite are missing."
    )
    with sketch("tuned-rates", caption, 2, rows=2, width=4.4, height=3.4) as drawn:
        axes = iter(drawn.axes)
        for optimizer, experiment in EXPERIMENTS.items():
            for decay, spelled in _DECAYS.items():
                ax = next(axes)
                for way in WAYS:
                    look = charts.FIXED[way]
                    points = []
                    for arm in training(experiment).arms:
                        if way_of(arm.name) != way or arm.decay != decay:
                            continue
                        curves = [c for c in results.curves(experiment, arm.name).values() if c.finite]
                        finals = [curve.final("test_accuracy") for curve in curves]
                        small = {"color": look["color"], "marker": look["marker"], "markersize": 3, "alpha": 0.5}
                        ax.plot([arm.rate] * len(finals), charts.error(finals), linestyle="none", **small)
                        if finals:
                            points.append((arm.rate, mean(finals)))
                    x, y = [p[0] for p in points], np.array([p[1] for p in points])
                    ax.plot(x, charts.error(y), label=name_of(way), **look)
                charts.accuracy_axis(ax)
                ax.set_xscale("log", base=2)
                ticks = _rates_of(experiment)
                ax.set_xticks(ticks, [f"{rate:g}" for rate in ticks])
                ax.set(title=f"{optimizer}, {spelled}", xlabel="learning rate, times the paper's")
                ax.legend(fontsize=9)
    return drawn.figure


def _table(results: Results) -> Table:
    rows = []
    for optimizer, experiment in EXPERIMENTS.items():
        by_place = {(way_of(arm.name), arm.decay, arm.rate): arm.name for arm in training(experiment).arms}
        for decay, spelled in _DECAYS.items():
            for rate in _rates_of(experiment):
                compared = [results.compare(experiment, by_place[way, decay, rate]) for way in WAYS]
                cells = [_cell(c) for c in compared]
                plain = complete(len(compared[0].curves), compared[0].foreseen)
                rows.append([f"{optimizer}, {spelled}, x {rate:g}", *cells, plain])
    columns = ("learning rate", *(f"{name_of(way)}, %" for way in WAYS), "seeds of plain")
    return Table(columns, rows, "Mean final test accuracy; in brackets the difference to plain at the same rate.")


def _cell(c: Comparison) -> str:
    finals = percent(mean([curve.final("test_accuracy") for curve in c.curves]))
    gained = f" ({interval(c.gain)})" if c.arm.forecaster and c.n else ""
    return finals + gained + (f", {c.not_finite} not finite" if c.not_finite else "")
