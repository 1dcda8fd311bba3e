"""Which jumps cannot be made for want of snapshots, and which can."""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from itertools import pairwise
from math import ceil

from .plan import LAST_STEP, Plan


def check_nothing_missing(
    plan: Plan, updates_made: int, missing: Mapping[int, Sequence[str]], *, num_leaves: int, place: str
) -> None:
    """Raises a ValueError if weights are missing that jumps of a plan need.

    Args:
      plan: the plan to go on with.
      updates_made: the number of updates made.
      missing: the names of the leaves that are missing of every needed step; none, if it is there.
      num_leaves: the number of leaves that snapshots are kept of.
      place: where the `introspect` with this plan is, or nothing if there is no other.
    """
    missing = {step: names for step, names in missing.items() if names}
    if not missing:
        return
    coming = [jump for jump in plan.jumps if jump.step >= updates_made]
    blocked = [jump.step for jump in coming if missing.keys() & set(jump.sources)]
    possible = tuple(jump.step for jump in coming if jump.step not in blocked)
    steps = ", ".join(
        str(step) if len(names) == num_leaves else f"{step} (of {', '.join(names[:3])}{', ...' * (len(names) > 3)})"
        for step, names in missing.items()
    )
    several = len(blocked) > 1
    parts = [
        f"after {updates_made} updates the jump{'s' * several} at {', '.join(map(str, blocked))} cannot be made"
        f"{f' by the introspect at {place}' if place else ''}: "
        f"the weights of step{'s' * (len(missing) > 1)} {steps} are missing",
        "Give them as weights={step: params}"
        + (f", or leave the jump{'s' * several} out: possible is jump_steps={possible}" if possible else ""),
    ]
    free_from = _first_free_jump(plan.points, updates_made)
    if free_from <= LAST_STEP:
        condition = "Once those of step 0 are given, any" if 0 in missing and plan.points[-1] == 0 else "Any"
        parts.append(f"{condition} jump from step {free_from} on is possible")
    raise ValueError(". ".join(parts) + ".")


def _first_free_jump(points: Sequence[float], updates_made: int) -> int:
    """Returns a step from which on all jumps look at weights still to come, and at `w_0` if that is a point."""
    fractions = [Fraction(str(point)) for point in points]
    # The step nearest to f t, ties upwards, is at least n if f t + 1/2 is.
    reached = ceil((updates_made - Fraction(1, 2)) / min(fraction for fraction in fractions if fraction > 0))
    closest = min((a - b for a, b in pairwise(fractions)), default=Fraction(1))
    return max(reached, updates_made, ceil(1 / closest))
