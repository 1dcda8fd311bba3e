"""Batch norm after jumps: the network with the running statistics against the same one with recalibrated ones."""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from ...figures import BLACK
from ...records import Arm
from .. import charts
from ..blocks import Block, Claim, Figure, Section, Table, sketch
from ..results import Results, training
from ..statistics import Curve, Paired, mean
from ..verdicts import sign
from ..wording import NONE, complete, interval, listed, name_of, number, percent, seeds, signed
from .common import section
from .rows import ROWS

_EXPERIMENTS = ("cifar_1-tenth", "cifar_1")
_QUESTION = "With which statistics of batch norm is a network to be evaluated after a jump?"
_CHOICES = (
    "Running statistics are averages over past steps, so that after a jump they are those of weights from before it. "
    "Recalibrated ones are averages over the ten batches that come next, with the weights of now. Training uses "
    "neither, and goes on in the same way. Of the arms with jumps, those that jump where plain training was evaluated "
    "with both are shown."
)
# What is less than this, in percentage points of accuracy and in percent of the loss, is not worth a recalibration.
_LEAST_ACCURACY, _LEAST_LOSS = 0.1, 1.0
_END = -1


class Both(NamedTuple):
    """What a measure is with the running statistics and with recalibrated ones, of each seed."""

    running: tuple[float, ...]
    recalibrated: tuple[float, ...]

    @property
    def difference(self) -> Paired:
        """Recalibrated less running, in hundredths."""
        return Paired(tuple(100 * (b - a) for a, b in zip(*self, strict=True)))

    @property
    def change(self) -> Paired:
        """By how much recalibrated is more than running, in percent."""
        return Paired(tuple(100 * (b / a - 1) for a, b in zip(*self, strict=True)))


class Effect(NamedTuple):
    """What recalibration does to an arm at one moment after its jumps."""

    accuracy: Both
    loss: Both

    @property
    def better(self) -> str:
        """Returns which statistics are better, by rule."""
        accuracy, loss = self.accuracy.difference, self.loss.change
        if accuracy.n < 2:
            return "one seed" if accuracy.n else NONE
        gains = sign(accuracy) if abs(accuracy.mean) >= _LEAST_ACCURACY else 0
        saves = -sign(loss) if abs(loss.mean) >= _LEAST_LOSS else 0
        if gains * saves < 0:
            return "contradictory"
        return {1: "recalibrated", 0: "either", -1: "running"}[gains or saves]


def batch_norm(results: Results) -> Section:
    """Returns the section on the statistics of batch norm."""
    blocks: list[Block] = []
    answers: list[Claim] = []
    for name in _EXPERIMENTS:
        if any(e.accuracy.running for arm in _arms(name) for e in _effects(results, name, arm).values()):
            blocks += [_figure(results, name), _table(results, name)]
            answers += [claim for of in (_answer, _gains) if (claim := of(results, name))]
    made = section(results, "Batch norm after jumps", list(_EXPERIMENTS), answers, blocks, _QUESTION)
    # The paper doesn't say which it uses.
    return dataclasses.replace(made, paper="", choices=_CHOICES)


def effect(results: Results, experiment: str, arm: Arm, after: int) -> Effect:
    """Returns what recalibration does, the mean over jumps for each seed.

    Args:
      results: all complete runs.
      experiment: the experiment.
      arm: the arm; plain training has no jumps, and is evaluated at the same steps as those that have.
      after: steps after each jump; -1 is the end of training.
    """
    jumps = arm.jump_steps or training(experiment).around
    steps = [arm.steps] if after == _END else [jump + after for jump in jumps]
    curves = [curve for curve in results.curves(experiment, arm.name).values() if curve.finite]
    return Effect(*(_both(curves, steps, measure) for measure in ("test_accuracy", "test_loss")))


def _both(curves: list[Curve], steps: list[int], measure: str) -> Both:
    found: list[tuple[float, float]] = []
    for curve in curves:
        lines = [line for line in curve.lines if line["step"] in steps and f"recalibrated_{measure}" in line]
        values = np.array([[line[measure], line[f"recalibrated_{measure}"]] for line in lines], np.float64)
        if lines and np.isfinite(values).all():
            found.append((float(values[:, 0].mean()), float(values[:, 1].mean())))
    return Both(tuple(a for a, _ in found), tuple(b for _, b in found))


def _arms(experiment: str) -> list[Arm]:
    record = training(experiment)
    return [arm for arm in record.arms if arm.jump_steps in ((), record.around)]


def _effects(results: Results, experiment: str, arm: Arm) -> dict[int, Effect]:
    moments = (*training(experiment).after_jump, _END)
    return {after: effect(results, experiment, arm, after) for after in moments}


def _moment(after: int) -> str:
    return "at the end" if after == _END else "1 step after" if after == 1 else f"{after} steps after"


def _figure(results: Results, name: str) -> Figure:
    caption = (
        f"{ROWS[name].title}: what recalibrated statistics change, against the running ones of the same network: "
        "means over jumps, lines through the means over seeds, small marks are seeds. Plain training is evaluated at "
        "the same steps. Forecasters that destroy the weights are only in the table."
    )
    shown = [arm for arm in _arms(name) if arm.name in charts.FIXED]
    with sketch(f"{name}-batch-norm", caption, 2, width=4.8, height=3.6) as drawn:
        panels = {"test accuracy": "percentage points", "test loss": "%"}
        for ax, (measure, unit) in zip(drawn.axes, panels.items(), strict=True):
            for arm in shown:
                effects = _effects(results, name, arm)
                found = [
                    e.accuracy.difference if measure == "test accuracy" else e.loss.change for e in effects.values()
                ]
                if all(d.n for d in found):
                    look = charts.FIXED[arm.name]
                    ax.plot([d.mean for d in found], label=name_of(arm.name), linewidth=1.4, **look)
                    for x, d in enumerate(found):
                        ax.plot([x] * d.n, d.differences, marker="_", color=look["color"], linestyle="none", alpha=0.6)
            charts.say_if_empty(ax)
            ax.axhline(0, color=BLACK, linewidth=0.8)
            ax.set_xticks(range(len(effects)), ["end" if after == _END else str(after) for after in effects])
            ax.set(title=measure, ylabel=f"change, {unit}", xlim=(-0.3, len(effects) - 0.7))
            ax.set_xlabel("steps after a jump, or the end of training")
            charts.legend_below(ax)
    return drawn.figure


def _table(results: Results, name: str) -> Table:
    rows = []
    for arm in _arms(name):
        for after, e in _effects(results, name, arm).items():
            rows.append(
                [
                    f"{name_of(arm.name)}, {_moment(after)}",
                    complete(e.accuracy.difference.n, len(arm.seeds)),
                    *(percent(mean(values)) for values in e.accuracy),
                    interval(e.accuracy.difference),
                    *(number(mean(values), 3) for values in e.loss),
                    interval(e.loss.change, 1),
                    e.better,
                ]
            )
    columns = (
        "arm, when", "seeds", "accuracy, running, %", "recalibrated, %", "difference, points", "loss, running",
        "recalibrated", "change, %", "better",
    )  # fmt: skip
    caption = (
        f"{ROWS[name].title}: test accuracy and loss with both statistics, means over jumps and seeds; differences "
        "with 95 % intervals. Better: the statistics with clearly the higher accuracy, by at least "
        f"{_LEAST_ACCURACY:g} points, or clearly the lower loss, by at least {_LEAST_LOSS:g} %; contradictory if the "
        "two say different things, either if neither is clear."
    )
    return Table(columns, rows, caption)


def _arm(experiment: str, name: str) -> Arm:
    return next(arm for arm in training(experiment).arms if arm.name == name)


def _answer(results: Results, name: str) -> Claim | None:
    arm = _arm(name, ROWS[name].main)
    jumps, plain = (_effects(results, name, a) for a in (arm, _arm(name, "plain")))
    n = min(e.accuracy.difference.n for e in jumps.values())
    if not n:
        return None
    each = listed(
        [
            f"{_moment(after)} {interval(e.accuracy.difference)} points and {interval(e.loss.change, 1)} % ({e.better})"
            for after, e in jumps.items()
        ]
    )
    words = f"{to_use(jumps)} Recalibrated against running, test accuracy and loss of {name_of(arm.name)}: {each}."
    if all(e.accuracy.running for e in plain.values()):
        each = listed([signed(e.accuracy.difference.mean) for e in plain.values()])
        words += f" Plain training at the same steps: {each} points."
    return Claim(f"Which statistics are to be used? ({ROWS[name].title})", words, seeds=seeds(n, len(arm.seeds)))


def to_use(effects: Mapping[int, Effect]) -> str:
    """Returns which statistics to use, from which are better at each moment, in their order."""
    better = [e.better for e in effects.values()]
    if "one seed" in better:
        return "Open: one seed is not enough."
    if set(better) == {"recalibrated"}:
        return "Recalibrate before every evaluation."
    recalibrated, running = ([m for m, e in effects.items() if e.better == w] for w in ("recalibrated", "running"))
    against = f"; {listed([_moment(after) for after in running])} they are better" if running else ""
    if not recalibrated:
        return f"Use the running statistics: recalibrated ones are nowhere clearly better{against}."
    if recalibrated == list(effects)[: len(recalibrated)]:
        when = f"up to {_moment(recalibrated[-1])} a jump"
    else:
        when = listed([_moment(after) for after in recalibrated])
    return f"Recalibrate for an evaluation {when}. Otherwise the running statistics do{against}."


def _gains(results: Results, name: str) -> Claim | None:
    arm = _arm(name, ROWS[name].main)
    c = results.compare(name, arm.name)
    keys = {"running": "test_accuracy", "recalibrated": "recalibrated_test_accuracy"}
    pairs = [pair for pair in c.pairs if all(run.lines[-1].get(keys["recalibrated"]) is not None for run in pair)]
    if not pairs:
        return None
    gains = {
        statistics: Paired(tuple(100 * (p.mine.final(key) - p.other.final(key)) for p in pairs))
        for statistics, key in keys.items()
    }
    running, recalibrated = gains.values()
    apart = Paired(tuple(b - a for a, b in zip(running.differences, recalibrated.differences, strict=True)))
    same = sign(running) == sign(recalibrated) != 0
    decided = "No" if same else "Yes" if sign(apart) else "Not decided"
    how = "Open, with one seed" if len(pairs) < 2 else decided
    told = listed([f"{interval(d)} points with {statistics} statistics" for statistics, d in gains.items()])
    words = f"{how}: final test accuracy of {name_of(arm.name)} against plain is {told}."
    title = f"Does it depend on the statistics whether jumps gain? ({ROWS[name].title})"
    return Claim(title, words, seeds=seeds(len(pairs), c.foreseen))
