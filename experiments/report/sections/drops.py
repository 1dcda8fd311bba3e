"""Does a jump before a steep drop of the learning rate still help after it?"""

import numpy as np

from ...figures import BLACK
from .. import charts, claims
from ..blocks import Claim, Figure, sketch
from ..results import Results, training
from ..wording import interval, listed, name_of, seeds, spaced

_POINTS = "percentage points"


def steps(experiment: str) -> tuple[int, ...]:
    """Returns the steps of which the update is the first with a tenth of the learning rate before."""
    # As experiments.optimizers.DECAYS has "thirds".
    third = {arm.steps // 3 for arm in training(experiment).arms if arm.decay == "thirds"}
    return tuple(n * t for t in third for n in (1, 2))


def answer(results: Results, experiment: str) -> Claim | None:
    """Returns whether the arms with jumps between two drops are better before and after the second."""
    compared = [c for c in claims.comparisons(results, experiment) if c.n]
    if not compared:
        return None
    last = steps(experiment)[-1]
    told = []
    for c in compared:
        before, after = claims.helps(c.gain_at(last)), claims.helps(c.gain)
        told.append(
            f"{name_of(c.arm.name).capitalize()}: at the end {after} ({interval(c.gain)}); just before the drop, at "
            f"step {spaced(last)}, {before} ({interval(c.gain_at(last))})."
        )
    words = f"{' '.join(told)} Test accuracy against plain, in {_POINTS}."
    title = "Does a jump before the second drop of the learning rate still help after it?"
    most = max(compared, key=lambda c: c.n)
    return Claim(title, words, seeds=seeds(most.n, most.foreseen))


def figure(results: Results, experiment: str) -> Figure:
    """Returns the difference to plain training over the steps."""
    compared = [c for c in claims.comparisons(results, experiment) if c.n]
    jump_steps = {c.arm.name: c.arm.jump_steps for c in compared}
    differ = len(set(jump_steps.values())) > 1
    marks = "triangles are jumps of the arm of their colour" if differ else "dotted lines are jumps"
    caption = (
        "Test accuracy less that of plain training with the same seed, at the same step. Thin lines are seeds, thick "
        f"lines their mean; {marks}, and at solid grey lines the learning rate falls to a tenth: after "
        f"{listed([spaced(step) for step in steps(experiment)])} steps."
    )
    with sketch(f"{experiment}-gain", caption, 1, width=7.5, height=3.8) as drawn:
        (ax,) = drawn.axes
        looks = charts.looks(list(jump_steps))
        for c in compared:
            look = looks[c.arm.name]
            since = c.arm.jump_steps[0]
            at = [s for s in c.pairs[0].mine.since(since)["step"].astype(int) if np.isfinite(c.gain_at(s).mean)]
            gains = np.array([c.gain_at(step).differences for step in at])
            ax.plot(at, gains, color=look["color"], linewidth=0.5, alpha=0.45)
            ax.plot(at, gains.mean(axis=1), color=look["color"], linestyle=look["linestyle"], linewidth=1.6,
                    label=name_of(c.arm.name))  # fmt: skip
        charts.say_if_empty(ax)
        charts.mark_jumps_of(ax, jump_steps, looks)
        charts.mark_drops(ax, steps(experiment))
        ax.axhline(0, color=BLACK, linewidth=0.8)
        ax.set(xlabel="step", ylabel="percentage points")
        ax.set_title("difference of test accuracy to plain training", pad=8 + 6 * len(compared) if differ else 6)
        charts.legend_below(ax, columns=3)
    return drawn.figure
