"""When to jump: the gain by the first jump, the number of jumps and their distance."""

import itertools
import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from ...records import Arm
from .. import claims
from ..blocks import Block, Claim, Figure, Section, Table, sketch
from ..results import Results, training
from ..statistics import Comparison, mean
from ..wording import complete, interval, listed, percent, seeds, signed, spaced
from .common import section

_NAME = "mnist_3-schedules"
_PAPERS = "6000-by-2000-x3"
_TOP = 8


class Place(NamedTuple):
    """Where a schedule is in the heat maps."""

    first: int
    interval: int
    jumps: int


def schedules(results: Results) -> Section:
    """Returns the section on when to jump."""
    found = [c for c in claims.comparisons(results, _NAME) if c.n]
    blocks: list[Block] = [_heat_maps(found), _table(found)] if found else []
    answers = [_answer(results, found)] if found else []
    return section(results, "When to jump", [_NAME], answers, blocks)


def _place(arm: Arm) -> Place:
    steps = arm.jump_steps
    return Place(steps[0], steps[1] - steps[0] if len(steps) > 1 else 0, len(steps))


def _heat_maps(found: list[Comparison]) -> Figure:
    places = [_place(arm) for arm in training(_NAME).arms if arm.jump_steps]
    firsts = sorted({place.first for place in places})
    intervals = sorted({place.interval for place in places if place.interval})
    counts = sorted({place.jumps for place in places})
    gains = {_place(c.arm): c.gain.mean for c in found}
    limit = max(abs(gain) for gain in gains.values()) or 1.0
    caption = (
        "MNIST_3 with SGD: mean difference of final test accuracy to plain training, in percentage points, by when the "
        "first jump is and how many there are; a panel for each distance of jumps. One jump has no distance: its "
        "column is the same in all panels. Empty cells were not run."
    )
    with sketch("schedules", caption, len(intervals), width=3.9, height=3.2) as drawn:
        for ax, apart in zip(drawn.axes, intervals, strict=True):
            cells = np.full((len(firsts), len(counts)), math.nan)
            for (i, first), (j, many) in itertools.product(enumerate(firsts), enumerate(counts)):
                cells[i, j] = gains.get(Place(first, apart if many > 1 else 0, many), math.nan)
            # Brown and blue-green, which colour-blind readers can tell apart.
            drawn_cells = ax.pcolormesh(np.ma.masked_invalid(cells), cmap="BrBG", vmin=-limit, vmax=limit)
            drawn_cells.set_edgecolor("white")
            for (i, j), gain in np.ndenumerate(cells):
                if not math.isnan(gain):
                    dark = abs(gain) > 0.6 * limit
                    ax.text(j + 0.5, i + 0.5, signed(gain), ha="center", va="center", fontsize=8.5,
                            color="white" if dark else "black")  # fmt: skip
            ax.set_xticks(np.arange(len(counts)) + 0.5, counts)
            ax.set_yticks(np.arange(len(firsts)) + 0.5, [spaced(first) for first in firsts])
            ax.grid(visible=False)
            ax.set(title=f"every {spaced(apart)} steps", xlabel="number of jumps", ylabel="first jump, step")
    return drawn.figure


def _table(found: list[Comparison]) -> Table:
    ordered = sorted(found, key=lambda c: -c.gain.mean)
    shown = ordered[:_TOP]
    shown += [c for c in ordered[_TOP:] if c.arm.name == _PAPERS]
    shown += [c for c in ordered[-1:] if c not in shown]
    rows = [
        [
            _steps(c.arm) + (" (the paper's)" if c.arm.name == _PAPERS else ""),
            complete(len(c.curves), c.foreseen),
            percent(mean([curve.final("test_accuracy") for curve in c.curves])),
            interval(c.gain),
        ]
        for c in shown
    ]
    beside = ["the paper's"] * any(c.arm.name == _PAPERS for c in shown[_TOP:]) + ["the worst"] * (len(shown) > _TOP)
    caption = f"{listed([f'The best {min(_TOP, len(ordered))} of {len(ordered)} schedules', *beside])}."
    return Table(("jumps at", "seeds", "final, %", "difference to plain"), rows, caption)


def _answer(results: Results, found: list[Comparison]) -> Claim:
    title = "When should one jump, and how often?"
    done, foreseen = results.progress(_NAME)
    if done < foreseen:
        return Claim(title, f"Not decided yet: {done} of {foreseen} runs are complete.", seeds=f"{done} runs")
    worst, *_, best = sorted(found, key=lambda c: c.gain.mean)
    papers = next(c for c in found if c.arm.name == _PAPERS)
    apart = results.compare(_NAME, best.arm.name, _PAPERS).gain
    gains = _cells({_place(c.arm): c.gain.mean for c in found})
    first, count = _best_level(gains, 0), _best_level(gains, 2)
    words = (
        f"Best of {len(found)}: jumps at {_steps(best.arm)}, with "
        f"{interval(best.gain)} percentage points of final test accuracy against plain and {interval(apart)} against "
        f"the paper's schedule, which has {interval(papers.gain)}; it is picked on the same seeds, for which intervals "
        f"aren't adjusted. On average over schedules that differ in nothing else, a first jump at {spaced(first)} and "
        f"{count} jump{'s' if count > 1 else ''} are best. Worst are jumps at {_steps(worst.arm)}, with "
        f"{interval(worst.gain)}."
    )
    return Claim(title, words, seeds=seeds(best.n, best.foreseen))


def _steps(arm: Arm) -> str:
    return listed([spaced(step) for step in arm.jump_steps])


def _cells(gains: Mapping[Place, float]) -> dict[Place, float]:
    """Returns the cells of the heat maps: one jump has no distance, and stands in each panel."""
    intervals = {place.interval for place in gains if place.interval}
    alone = {place._replace(interval=i): gain for place, gain in gains.items() if not place.interval for i in intervals}
    return {**{place: gain for place, gain in gains.items() if place.interval}, **alone}


def _best_level(cells: Mapping[Place, float], field: int) -> int:
    """Returns the value of a field of the place that is best on average over what all its values were run with."""
    levels = {place[field] for place in cells}
    by_rest: dict[tuple[int, ...], dict[int, float]] = {}
    for place, gain in cells.items():
        by_rest.setdefault(place[:field] + place[field + 1 :], {})[place[field]] = gain
    shared = [of for of in by_rest.values() if of.keys() == levels]
    return max(sorted(levels), key=lambda level: mean([of[level] for of in shared]))
