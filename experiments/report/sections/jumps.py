"""What a jump does to the loss: before it, right after, and over the next steps; and which weights gain from it."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import charts, claims
from ..blocks import Block, Claim, Figure, Section, Table, sketch
from ..results import Results, training
from ..statistics import Comparison, Curve, mean
from ..verdicts import sign
from ..wording import NONE, complete, interval, listed, name_of, number, percent, seeds, significant, spaced
from .common import section

EXPERIMENTS = {"MNIST_3 with SGD": "mnist_3-layers", "MNIST_1 with SGD": "mnist_1-layers"}
MEASURES = {"test_loss": "test loss", "train_loss": "training loss"}
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
            blocks += [_figure(title, name, found), _around(title, name, found), _finals(results, title, name, found)]
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
        for measure, spelled in MEASURES.items():
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


def _finals(results: Results, title: str, name: str, found: Mapping[str, list[Curve]]) -> Table:
    compared = {arm: results.compare(name, arm) for arm in found}
    end = spaced(compared["plain"].until) if "plain" in compared else "the end"
    rows = [
        [
            name_of(arm),
            complete(len(curves), c.foreseen),
            percent(mean([curve.final("test_accuracy") for curve in curves])),
            NONE if arm == "plain" else interval(c.gain),
            NONE if arm == "plain" else interval(c.relative("test_loss"), 1),
        ]
        for (arm, curves), c in zip(found.items(), compared.values(), strict=True)
    ]
    columns = ("weights that jump", "seeds", "test accuracy, %", "difference to plain", "test loss, %")
    caption = (
        f"{title}: at step {end}, against plain training of the same seed, with 95 % intervals where there are several."
    )
    return Table(columns, rows, caption)


def _around(title: str, name: str, found: Mapping[str, list[Curve]]) -> Table:
    record = training(name)
    moments = (0, 1, record.after_jump[-1])
    rows = [
        [
            f"{spaced(jump)}, {name_of(arm)}",
            *(significant(_then(curves, jump + step, m)) for m in ("test_loss", "train_loss") for step in moments),
            *(percent(_then(curves, jump + step, "test_accuracy")) for step in moments),
        ]
        for jump in record.around
        for arm, curves in found.items()
    ]
    when = ("just before", "1 step after", f"{moments[-1]} steps after")
    measures = ("test loss", "training loss", "test accuracy, %")
    columns = (
        "jump, weights that jump",
        *(f"{m}, {w}" if w == when[0] else w for m in measures for w in when),
    )
    caption = f"{title}: around each jump, means over seeds. Plain makes the same steps without a jump."
    return Table(columns, rows, caption)


def _then(curves: list[Curve], step: int, measure: str) -> float:
    return mean([curve.at(step, measure) for curve in curves])


def _answers(results: Results, title: str, name: str, found: Mapping[str, list[Curve]]) -> list[Claim]:
    answers = []
    count = seeds(len(found.get("all", [])), len(training(name).seeds))
    if "all" in found and "plain" in found:
        for measure, spelled in MEASURES.items():
            words = _told(name, found["all"], found["plain"], measure)
            answers.append(Claim(f"What does a jump do to the {spelled}? ({title})", words, seeds=count))
    gains = {c.arm.name: c for c in claims.comparisons(results, name) if c.n and c.arm.name != "all"}
    if gains:
        told = listed([f"{name_of(arm)} {interval(c.gain)}" for arm, c in gains.items()])
        everything = results.compare(name, "all")
        beside = f"; all together {interval(everything.gain)}" if everything.n else ""
        until = next(iter(gains.values())).until
        words = f"{_most(results, name, gains)} Test accuracy at step {spaced(until)} against plain: {told}{beside}."
        answers.append(Claim(f"Which weights gain from jumps? ({title})", words, seeds=count))
    return answers


def _told(name: str, jumping: list[Curve], plain: list[Curve], measure: str) -> str:
    """Returns in words what each jump does to a loss; of several jumps one may do what the others don't."""
    record = training(name)
    last = record.after_jump[-1]
    right_after, later, without = (
        {jump: [float(around(c, jump, (after,), measure)[0]) for c in curves] for jump in record.around}
        for curves, after in ((jumping, 1), (jumping, last), (plain, last))
    )
    each = listed(
        [
            f"{number(mean(right_after[jump]))} right after the jump at {spaced(jump)} and {number(mean(later[jump]))} "
            f"{last} steps later (plain {number(mean(without[jump]))})"
            for jump in record.around
        ]
    )
    return (
        f"Right after it is {_directions(right_after)}; {last} steps later {_directions(later)}. Times what it was "
        f"just before: {each}."
    )


def _directions(ratios: Mapping[int, list[float]]) -> str:
    """Returns after which jumps a measure is higher or lower than before, in all seeds or not."""
    told: dict[str, list[str]] = {}
    for jump, of in ratios.items():
        lower = [ratio < 1 for ratio in of]
        how = "lower" if all(lower) else "lower in some seeds and higher in others" if any(lower) else "higher"
        told.setdefault(how, []).append(spaced(jump))
    return listed([f"{how} at {listed(jumps)}" for how, jumps in told.items()])


def _most(results: Results, name: str, gains: Mapping[str, Comparison]) -> str:
    """Returns which weights gain most, if that is clear."""
    most = max(gains, key=lambda arm: gains[arm].gain.mean)
    if gains[most].n < 2:
        return "One seed doesn't tell which gain most."
    clear = all(sign(results.compare(name, most, other).gain) > 0 for other in gains if other != most)
    return f"{name_of(most).capitalize()} {'most' if clear else 'by the mean, but not clearly more than each other'}."
