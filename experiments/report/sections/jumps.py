"""What a jump does to the loss: before it, right after, and over the next steps; and which weights gain from it."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import charts, claims
from ..blocks import Block, Claim, Figure, Section, Table, sketch
from ..results import Results, training
from ..statistics import Curve, median
from ..wording import NONE, complete, interval, listed, name_of, number, percent, seeds, significant, spaced
from .common import section

EXPERIMENTS = {"MNIST_3 with SGD": "mnist_3-layers", "MNIST_1 with SGD": "mnist_1-layers"}
_LOOKS = {"all": charts.FIXED["introspection"], "plain": charts.FIXED["plain"]}
Array = npt.NDArray[np.float64]


def jumps(results: Results) -> Section:
    """Returns the section on the loss around jumps."""
    shown = {title: name for title, name in EXPERIMENTS.items() if results.progress(name)[0]}
    blocks: list[Block] = []
    answers: list[Claim] = []
    for title, name in shown.items():
        found = {arm.name: list(results.curves(name, arm.name).values()) for arm in training(name).arms}
        found = {arm: [c for c in curves if c.finite] for arm, curves in found.items()}
        found = {arm: curves for arm, curves in found.items() if curves}
        if found:
            blocks += [_figure(title, name, found), _table(results, title, name, found)]
            answers += _answers(results, title, name, found)
    return section(results, "What a jump does to the loss", list(EXPERIMENTS.values()), answers, blocks)


def around(curve: Curve, jump: int, after: tuple[int, ...], measure: str) -> Array:
    """Returns a measure at some steps after a jump, relative to the one just before it."""
    before = curve.at(jump, measure)
    return np.array([curve.at(jump + step, measure) / before for step in after])


def _figure(title: str, name: str, found: Mapping[str, list[Curve]]) -> Figure:
    record = training(name)
    caption = (
        f"{title}: loss after each jump relative to the loss just before it, means over seeds; *plain* makes the "
        "same steps without a jump. Names are of the weights that jump."
    )
    others = iter(charts.looks([arm for arm in found if arm not in _LOOKS]).values())
    looks = {arm: _LOOKS[arm] if arm in _LOOKS else next(others) for arm in found}
    columns = len(record.around)
    with sketch(f"{name}-loss", caption.replace("*", ""), columns, rows=2, width=3.6, height=3) as drawn:
        axes = iter(drawn.axes)
        for measure, spelled in (("test_loss", "test loss"), ("train_loss", "training loss")):
            for jump in record.around:
                ax = next(axes)
                for arm, curves in found.items():
                    ratios = np.mean([around(c, jump, record.after_jump, measure) for c in curves], axis=0)
                    ax.plot(record.after_jump, ratios, label=name_of(arm), markersize=4, linewidth=1.2, **looks[arm])
                ax.axhline(1, color="black", linewidth=0.8)
                ax.set_xscale("log")
                ax.set_yscale("log")
                _few_ticks(ax)
                ax.set(title=f"jump at {spaced(jump)}", xlabel="steps after the jump", ylabel=f"{spelled}, relative")
        drawn.axes[columns - 1].legend(fontsize=8)
    return drawn.figure


def _few_ticks(ax: Any) -> None:
    ax.set_xticks([1, 10, 100, 500], ["1", "10", "100", "500"])
    ax.set_xticks([], minor=True)
    low, high = ax.get_ylim()
    ticks = [
        t for t in (0.01, 0.1, 0.2, 0.5, 0.7, 0.8, 0.9, 1, 1.1, 1.2, 1.5, 2, 3, 5, 10, 30, 100) if low <= t <= high
    ]
    ticks = ticks if len(ticks) < 7 else [t for t in ticks if t in (0.01, 0.1, 0.5, 1, 2, 5, 10, 30, 100)]
    ax.set_yticks(ticks, [f"{t:g}" for t in ticks])
    ax.set_yticks([], minor=True)


def _ratios(name: str, curves: list[Curve], measure: str, after: int) -> list[float]:
    found = [around(c, jump, (after,), measure)[0] for c in curves for jump in training(name).around]
    return [float(ratio) for ratio in found if not math.isnan(ratio)]


def _table(results: Results, title: str, name: str, found: Mapping[str, list[Curve]]) -> Table:
    last = training(name).after_jump[-1]
    rows = []
    for arm, curves in found.items():
        c = results.compare(name, arm)
        rows.append(
            [
                name_of(arm),
                complete(len(curves), c.foreseen),
                percent(float(np.mean([curve.final("test_accuracy") for curve in curves]))),
                NONE if arm == "plain" else interval(c.gain),
                NONE if arm == "plain" else interval(c.relative("test_loss"), 1),
                *(
                    significant(median(_ratios(name, curves, measure, after)))
                    for measure in ("test_loss", "train_loss")
                    for after in (1, last)
                ),
            ]
        )
    columns = (
        "weights that jump", "seeds", "final, %", "difference to plain", "final test loss, %", "test loss 1 step after",
        f"{last} steps after", "training loss 1 step after", f"{last} steps after",
    )  # fmt: skip
    caption = (
        f"{title}: losses after a jump relative to just before it, medians over jumps and seeds; final values against "
        "plain training of the same seed, with 95 % intervals where there are several."
    )
    return Table(columns, rows, caption)


def _answers(results: Results, title: str, name: str, found: Mapping[str, list[Curve]]) -> list[Claim]:
    answers = []
    last = training(name).after_jump[-1]
    count = seeds(len(found.get("all", [])), len(training(name).seeds))
    if "all" in found and "plain" in found:
        right_after = median(_ratios(name, found["all"], "test_loss", 1))
        later = median(_ratios(name, found["all"], "test_loss", last))
        plain = median(_ratios(name, found["plain"], "test_loss", last))
        kind = (
            "the gain is in the recovery" if right_after > 1 and later < plain
            else "it is better at once and stays so" if right_after <= 1 and later < plain
            else f"within {last} steps it gains nothing in loss"
        )  # fmt: skip
        words = (
            f"Right after a jump it is {number(right_after)} times what it was, and after {last} steps {number(later)} "
            f"times, plain {number(plain)} times (medians): {kind}."
        )
        answers.append(Claim(f"What does a jump do to the test loss? ({title})", words, seeds=count))
    gains = {c.arm.name: c.gain for c in claims.comparisons(results, name) if c.n and c.arm.name != "all"}
    if gains:
        told = listed([f"{name_of(arm)} {interval(gain)}" for arm, gain in gains.items()])
        everything = results.compare(name, "all").gain
        most = max(gains, key=lambda arm: gains[arm].mean)
        beside = f"; all together {interval(everything)}" if everything.n else ""
        words = f"{name_of(most).capitalize()} most. Final test accuracy against plain: {told}{beside}."
        answers.append(Claim(f"Which weights gain from jumps? ({title})", words, seeds=count))
    return answers
