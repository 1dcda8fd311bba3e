"""The paper's rows: one network and optimizer, without jumps and with the jumps of several forecasters."""

import math
from collections.abc import Mapping, Sequence

from ...records import Training
from .. import charts, claims
from ..blocks import Block, Figure, Section, Table, sketch
from ..results import Results, training
from ..statistics import Comparison, Curve, clocks, mean, median
from ..wording import NONE, complete, interval, listed, name_of, number, percent, signed, spaced
from .common import section
from .rows import ROWS, Row

COLUMNS = (
    "arm", "seeds", "steps", "final, %", "difference to plain", "best, %", "its step", "plain's best reached at",
    "share of steps",
)  # fmt: skip
LEGEND = (
    "Means over seeds, and medians where they are of steps or seconds. Final: test accuracy at the last step. "
    "Difference: of the same seed at the same step, in percentage points, with its 95 % interval (with two seeds it is "
    "12.7 times as wide as they are apart). In brackets how many runs reach the best test accuracy of the plain run of "
    "the same seed, up to where the arm ends. Share of steps: to that best. Seconds: of training, to it as well, those "
    "of plain to its own best; CPU time where the machine may have done other work, and wall-clock time on an "
    "accelerator, which other runs may have shared. They are without evaluation and compilation, and without what the "
    "snapshots before the first jump and that jump itself take. Time of a step: after the last jump, where all "
    "are idle, as a multiple of plain's over the same steps on the same machine; in brackets the least and the most. "
    "On a processor plain training may have been at another hour, so that some tenths either way tell little; for "
    "measurements in turn there is `python -m experiments benchmark`."
)


def comparison(results: Results, name: str) -> Section:
    """Returns the section of a row."""
    row = ROWS[name]
    found = [claim for of in row.claims if (claim := of(results, name))]
    if not results.progress(name)[0]:
        return section(results, row.title, [name], found, [])
    everything = _everything(results, name)
    blocks: list[Block] = [_curves(results, name), *(figure(results, name) for figure in row.figures)]
    jumping = [c for c in everything if c.arm.name != "plain"]
    if sum(c.n > 0 for c in jumping) > 3:
        blocks.append(_differences(name, jumping))
    blocks += [
        _table(name, everything),
        _on_the_way(name, [c for c in jumping if c.arm.jump_steps and c.until == c.arm.steps]),
    ]
    return section(results, row.title, [name], found, blocks)


def _everything(results: Results, name: str) -> list[Comparison]:
    """Returns all arms, compared with plain.

    Where some end sooner, plain and the main arm stand before them a second time, as they are at that step: what the
    arms come to is not to be compared with the end of a longer training.
    """
    arms = [results.compare(name, "plain"), *claims.comparisons(results, name)]
    arms = [c for c in arms if c.curves or c.not_finite]
    whole = max(arm.steps for arm in training(name).arms)
    shown = [c for c in arms if c.until == whole]
    for until in sorted({c.until for c in arms} - {whole}):
        shown += [results.compare(name, arm, until=until) for arm in ("plain", ROWS[name].main)]
        shown += [c for c in arms if c.until == until]
    return shown


def _name(c: Comparison) -> str:
    return name_of(c.arm.name) + (f", at step {spaced(c.until)}" if c.until < c.arm.steps else "")


def _curves(results: Results, name: str) -> Figure:
    record, row = training(name), ROWS[name]
    jump_steps = {arm.name: arm.jump_steps for arm in record.arms if arm.jump_steps}
    first = min(steps[0] for steps in jump_steps.values())
    since = {arm.name: jump_steps[arm.name][0] if arm.jump_steps else first // 2 for arm in record.arms}
    curves = {arm.name: list(results.curves(name, arm.name).values()) for arm in record.arms}
    plain = {"plain": curves["plain"]}
    panels = _panels({arm: c for arm, c in curves.items() if c and arm != "plain"}, row.panels)
    jumps = "dotted lines are jumps" + (
        ", where arms have different ones triangles of their colours," if len(set(jump_steps.values())) > 1 else ","
    )
    drops = " Solid grey lines are where the learning rate falls to a tenth." if row.drops else ""
    caption = (
        f"{row.title}: test accuracy. Thin lines are seeds, thick lines their mean; {jumps} and arms leave plain at "
        f"the first. The last panel has seconds of training instead of steps. On the axis of accuracies, 90, 99 "
        f"and 99.9 % are equally far apart; triangles on its lower edge are means that are below it.{drops}"
    )
    columns = min(len(panels) + 1, 3)
    rows = math.ceil((len(panels) + 1) / columns)
    with sketch(f"{name}-accuracy", caption, columns, rows=rows, width=4, height=3.9) as drawn:
        for ax, (title, arms) in zip(drawn.axes, panels.items(), strict=False):
            charts.accuracy_curves(ax, {**plain, **arms}, since)
            # Arms without jumps stand beside some that have them.
            marked = {arm: jump_steps[arm] for arm in arms if arm in jump_steps} or dict(list(jump_steps.items())[:1])
            charts.mark_jumps_of(ax, marked, charts.looks([arm for arm in ("plain", *arms) if curves[arm]]))
            charts.mark_drops(ax, row.drops)
            ax.set_title(title, pad=6 if len(set(marked.values())) == 1 else 8 + 6 * len(marked))
            charts.legend_below(ax)
        ax = drawn.axes[len(panels)]
        charts.accuracy_curves(ax, {**plain, row.main: curves[row.main]}, since, "seconds")
        ax.set_title("against time")
        charts.legend_below(ax)
        drawn.hide(len(panels) + 1)
    return drawn.figure


def _panels(
    curves: Mapping[str, list[Curve]], begins_of: Mapping[str, tuple[str, ...]]
) -> dict[str, dict[str, list[Curve]]]:
    """Returns which arms are drawn together; few ones all together, and who is alone with the first."""
    if len(curves) <= 4:
        return {"against steps": dict(curves)}
    panels: dict[str, dict[str, list[Curve]]] = {}
    alone = next(iter(begins_of))
    for title, begins in begins_of.items():
        members = {arm: c for arm, c in curves.items() if arm.startswith(begins)}
        if members:
            panels.setdefault(title if len(members) > 1 else alone, {}).update(members)
    return panels


def _differences(name: str, compared: Sequence[Comparison]) -> Figure:
    caption = (
        f"{ROWS[name].title}: final test accuracy of each arm less that of plain training with the same seed; ticks "
        "are seeds, dots their mean, bars its 95 % interval, cut off at the edge. What is far below plain is at the "
        "left edge, with its mean."
    )
    sooner = sorted({c.until for c in compared if c.until == c.arm.steps} - {max(a.steps for a in training(name).arms)})
    if sooner:
        ends = listed([spaced(step) for step in sooner])
        caption += f" Arms that end before plain does are compared with it at their own end, step {ends}."
    rows = {_name(c): c.gain for c in compared}
    with sketch(f"{name}-differences", caption, 1, width=7.5, height=0.24 * len(rows) + 1) as drawn:
        charts.dots(drawn.axes[0], rows, "difference of final test accuracy to plain, percentage points")
    return drawn.figure


def _table(name: str, compared: Sequence[Comparison]) -> Table:
    rows = [_row(c) for c in compared]
    seconds = f"{clocks(curve for c in compared for curve in c.curves)} seconds"
    columns = (*COLUMNS, seconds, "time of a step, x plain")
    return Table(columns, rows + _papers_rows(training(name), ROWS[name]), LEGEND)


def _row(c: Comparison) -> list[str]:
    own = c.arm.name == "plain"
    bests = [curve.best() for curve in c.curves]
    reached = [line for line in c.reached if line is not None]
    at = spaced(median([line["step"] for line in reached]))
    share = median(c.shares())
    return [
        _name(c),
        complete(len(c.curves), c.foreseen, c.not_finite),
        spaced(c.until),
        percent(mean([curve.final("test_accuracy") for curve in c.curves])),
        NONE if own else interval(c.gain),
        percent(mean([best["test_accuracy"] for best in bests])),
        spaced(median([best["step"] for best in bests])),
        NONE if own else f"{at} ({len(reached)} of {c.n})",
        NONE if own or math.isinf(share) else number(share),
        spaced(median([line["seconds"] for line in reached])),
        NONE if own else _step_time(c),
    ]


def _step_time(c: Comparison) -> str:
    if not c.arm.jump_steps or not (times := c.step_times):
        return NONE
    return f"{number(median(times))} [{number(min(times))}, {number(max(times))}]"


def _on_the_way(name: str, compared: Sequence[Comparison]) -> Table:
    """Returns how soon arms are where plain training comes to on its way: at its end a jump may be long made up for."""
    whole = max(arm.steps for arm in training(name).arms)
    marks = [whole * quarter // 4 for quarter in range(1, 5)]
    rows = [[_name(c), *(_share_of(c, mark) for mark in marks)] for c in compared]
    caption = (
        "On the way: the steps that an arm takes to the best test accuracy that plain training of the same seed has "
        "had up to a step, as a share of those that plain training took to it. Medians over seeds, with how many get "
        "there if not all do; a dash where the arm ends before, or plain training had that accuracy before the first "
        "jump."
    )
    return Table(("arm", *(f"up to step {spaced(mark)}" for mark in marks)), rows, caption)


def _share_of(c: Comparison, step: int) -> str:
    first_jump = c.arm.jump_steps[0]
    others = [pair.other.since(1).until(step) for pair in c.pairs] if first_jump < step <= c.until else []
    bests = [curve.best() for curve in others if curve.lines]
    if not bests or len(bests) < len(others) or any(best["step"] <= first_jump for best in bests):
        return NONE
    lines = [pair.mine.reaches(best["test_accuracy"]) for pair, best in zip(c.pairs, bests, strict=True)]
    shares = [
        math.inf if line is None else line["step"] / best["step"] for line, best in zip(lines, bests, strict=True)
    ]
    there = sum(map(math.isfinite, shares))
    share = median(shares)
    return (number(share) if math.isfinite(share) else NONE) + (f" ({there} of {c.n})" if there < c.n else "")


def _papers_rows(record: Training, row: Row) -> list[list[str]]:
    paper = record.paper
    if paper is None or paper.plain is None or paper.jumps is None:
        return []
    gained = signed(100 * (paper.jumps - paper.plain))
    plain_step, step, share = NONE, NONE, NONE
    if paper.plain_steps and paper.jumps_steps:
        plain_step, step = spaced(paper.plain_steps), spaced(paper.jumps_steps)
        share = number(paper.jumps_steps / paper.plain_steps)
    plain = [f"*the paper{row.scale}: plain*", NONE, NONE, percent(paper.plain), NONE, NONE, plain_step, NONE, NONE]
    jumps = [f"*the paper{row.scale}: network*", NONE, NONE, percent(paper.jumps), gained, NONE, NONE, step, share]
    return [[*plain, NONE, NONE], [*jumps, NONE, NONE]]
