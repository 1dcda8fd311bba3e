"""From jump steps and points to snapshots and their slots."""

import dataclasses
import heapq
import itertools
import math
import operator
from collections.abc import Iterable, Sequence
from fractions import Fraction
from numbers import Integral, Real
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ._snapshots import checked_snapshot_dtype, dtype_of_snapshot

Point = int | float

PAPER_POINTS: tuple[Point, ...] = (1.0, 0.7, 0.4, 0.0)

# The step counter in the optimizer state is an int32, which stops at its largest value.
LAST_STEP = 2**31 - 2

# Rows that a printed plan shows, at its beginning and at its end.
_ROWS = 12


class Capture(NamedTuple):
    """A snapshot to take.

    Attributes:
      step: The step whose weights are kept.
      slot: The slot that they are kept in.
      last_jump: The last jump step that reads them.
    """

    step: int
    slot: int
    last_jump: int


class Jump(NamedTuple):
    """A jump to make.

    Attributes:
      step: The jump step `t`.
      sources: The step of every point, `t` itself first.
      slots: The slot of every point but the first, whose weights are the parameters themselves.
    """

    step: int
    sources: tuple[int, ...]
    slots: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Plan:
    """Snapshots, slots and jumps of a schedule; made by :func:`plan`.

    Attributes:
      points: The points of the forecaster.
      captures: The snapshots, by step.
      jumps: The jumps, by step.
      num_slots: Number of slots, that is of copies of the parameters in the optimizer state. Jumps write their
        displacement into the last one.
    """

    points: tuple[Point, ...]
    captures: tuple[Capture, ...]
    jumps: tuple[Jump, ...]
    num_slots: int

    @property
    def first_slot(self) -> int | None:
        """The slot of the weights of step 0, if 0 is one of the points; it holds nothing else until the last jump."""
        return next(c.slot for c in self.captures if c.step == 0) if 0.0 in self.points else None

    @property
    def jump_steps(self) -> tuple[int, ...]:
        """The steps of the jumps."""
        return tuple(jump.step for jump in self.jumps)

    def needed(self, step: int) -> dict[int, int]:
        """Returns the snapshots that must exist after `step` updates for all later jumps to be made.

        Args:
          step: Number of updates made. The snapshot of this very step is not needed: the next update takes it.

        Returns:
          The slot of each snapshot, by its step.

        Examples:
          >>> sorted(plan((3000, 4000)).needed(2500))
          [0, 1200, 1600, 2100]
        """
        return {c.step: c.slot for c in self.captures if c.step < step <= c.last_jump}

    def nbytes(self, params: Any, snapshot_dtype: Any = None) -> int:
        """Returns the bytes that snapshots take in the optimizer state.

        Args:
          params: The parameters, or their shapes, as from `jax.eval_shape`.
          snapshot_dtype: As for :func:`optax_introspect.introspect`.

        Returns:
          Bytes: exactly those of `IntrospectState.snapshots`.

        Raises:
          ValueError: `snapshot_dtype` is not a floating dtype.

        Examples:
          >>> import jax, jax.numpy as jnp
          >>> params = jax.eval_shape(lambda: {"w": jnp.zeros((1000, 1000)), "b": jnp.zeros(1000)})
          >>> plan((3000, 4000, 5000)).nbytes(params)  # 6 slots of 1 001 000 float32 numbers
          24024000
        """
        snapshot_dtype = checked_snapshot_dtype(snapshot_dtype)
        total = 0
        for slot in range(self.num_slots):
            for leaf in jax.tree.leaves(params):
                kept_in = None if slot == self.first_slot else snapshot_dtype
                dtype = dtype_of_snapshot(jnp.result_type(leaf), kept_in)
                total += 0 if dtype is None else math.prod(jnp.shape(leaf)) * jnp.dtype(dtype).itemsize
        return total

    def __str__(self) -> str:
        """Returns a table with a row for every snapshot and jump; the middle of a long one is left out."""
        captures = [(c.step, 0, f"capture  slot {c.slot} until {c.last_jump}") for c in self.captures]
        jumps = [(j.step, 1, f"jump     {_sources(j)}") for j in self.jumps]
        width = len(str(self.jumps[-1].step)) + 2
        rows = [f"{step:>{width}}  {text}" for step, _, text in sorted(captures + jumps)]
        if len(rows) > 2 * _ROWS:
            rows[_ROWS:-_ROWS] = [f"{'...':>{width}}  {len(rows) - 2 * _ROWS} more"]
        head = f"{len(self.jumps)} jumps, {len(self.captures)} snapshots in {self.num_slots} slots"
        return "\n".join([head, f"{'step':>{width}}  event    weights", *rows])


def plan(jump_steps: Sequence[int], points: Sequence[Point] = PAPER_POINTS) -> Plan:
    r"""Plans the snapshots that jumps need, and assigns them to few slots.

    A point :math:`f` between 0 and 1 is the step nearest to :math:`f t`, ties upwards, computed exactly. A point
    :math:`-k` is the step :math:`t - k`, or 0 if that is before the start. The snapshot of step :math:`s`, read last by
    the jump at :math:`e`, has its slot to itself from :math:`s` through :math:`e`.

    Args:
      jump_steps: Increasing positive integers; may be a `range`.
      points: The points of the forecaster, from the latest to the earliest, the first of which is 1.

    Returns:
      The plan. `print` shows it as a table.

    Raises:
      ValueError: `jump_steps` are not increasing positive integers, `points` are not fractions or steps back that begin
        with 1, or two points of a jump come in the wrong order or fall on one step, other than before the start.

    Examples:
      >>> print(plan((3000, 4000)))
      2 jumps, 5 snapshots in 5 slots
        step  event    weights
           0  capture  slot 0 until 4000
        1200  capture  slot 4 until 3000
        1600  capture  slot 1 until 4000
        2100  capture  slot 2 until 3000
        2800  capture  slot 3 until 4000
        3000  jump     w_3000 w_2100 (slot 2) w_1200 (slot 4) w_0 (slot 0)
        4000  jump     w_4000 w_2800 (slot 3) w_1600 (slot 1) w_0 (slot 0)

      Jumps at even intervals over a window need the same few slots, however many jumps there are:

      >>> plan(range(49, 200_000, 50), (1.0, -49, -50, -99)).num_slots
      5

    References:
      Sinha et al., "Introspection: Accelerating Neural Network Training by Learning Weight Evolution", ICLR 2017,
      sections 3 and 4.
    """
    steps = checked_jump_steps(jump_steps)
    points = checked_points(points)
    sources = {t: _checked_sources(points, t) for t in steps}

    last_jump: dict[int, int] = {}
    for t, at in sources.items():
        last_jump.update(dict.fromkeys(at[1:], t))
    lifetimes = sorted(last_jump.items())

    # The last slot must be free at every jump, for the displacement, or hold a snapshot that is read there for the last
    # time. So it takes the snapshots during whose life there is no other jump; one for each jump, the longest.
    in_last_slot: dict[int, int] = {}
    jumps_before = dict(zip(steps, (-1, *steps), strict=False))
    for step, end in lifetimes:
        if jumps_before[end] < step:
            in_last_slot.setdefault(end, step)
    chosen = set(in_last_slot.values())
    slots = _slots([(step, end) for step, end in lifetimes if step not in chosen])
    last_slot = max(slots.values(), default=-1) + 1
    slots |= dict.fromkeys(chosen, last_slot)

    return Plan(
        points=points,
        captures=tuple(Capture(step, slots[step], end) for step, end in lifetimes),
        jumps=tuple(Jump(t, at, tuple(slots[step] for step in at[1:])) for t, at in sources.items()),
        num_slots=last_slot + 1,
    )


def checked_points(points: Iterable[Point]) -> tuple[Point, ...]:
    """Returns points as a tuple: fractions of the jump step as floats, and steps back as negative integers.

    Raises:
      ValueError: They are something else, do not begin with 1, or are not from the latest to the earliest.
    """
    given = tuple(points) if isinstance(points, Iterable) and not isinstance(points, str) else ()
    result = tuple(map(_checked_point, given))
    fractions = [point for point in result if isinstance(point, float)]
    steps_back = [point for point in result if isinstance(point, int)]
    ordered = all(a > b for kind in (fractions, steps_back) for a, b in itertools.pairwise(kind))
    if not result or None in result or result[0] != 1 or not ordered:
        raise ValueError(
            "points must begin with 1.0 and go from the latest to the earliest, each a fraction of the jump step from "
            f"0 to 1 or a negative integer, such as {PAPER_POINTS} or (1.0, -49, -50); got {given or points!r}"
        )
    return tuple(point for point in result if point is not None)


def step_of(point: Point, t: int) -> int:
    """Returns the step of a point: the nearest to `point * t`, ties upwards, or `t + point` for a negative integer."""
    if isinstance(point, int) and point < 0:
        return max(t + point, 0)
    fraction = Fraction(str(point))  # 0.7 is seven tenths, not the float nearest to it
    return (2 * fraction.numerator * t + fraction.denominator) // (2 * fraction.denominator)


def checked_jump_steps(jump_steps: Sequence[int]) -> tuple[int, ...]:
    """Returns jump steps as a tuple of integers.

    Raises:
      ValueError: They are not increasing integers from 1 on.
    """
    allowed = f"jump_steps must be increasing integers from 1 to {LAST_STEP}"
    try:
        given = tuple(jump_steps)
    except TypeError:
        raise ValueError(f"{allowed}, in a sequence such as (3000, 4000, 5000); got {jump_steps!r}") from None
    if not given:
        raise ValueError(f"{allowed}; got none")
    previous = 0
    for value in given:
        try:
            step = None if isinstance(value, bool | np.bool_) else operator.index(value)
        except TypeError:
            step = None
        if step is None or not 1 <= step <= LAST_STEP:
            raise ValueError(f"{allowed}; got {value!r}")
        if step <= previous:
            raise ValueError(f"{allowed}; got {step} after {previous}")
        previous = step
    return tuple(map(operator.index, given))


def _checked_point(point: Any) -> Point | None:
    if isinstance(point, Integral) and not isinstance(point, bool) and point < 0:
        return int(point)
    real = isinstance(point, Real) and not isinstance(point, bool)
    return float(point) if real and 0 <= point <= 1 else None


def _checked_sources(points: tuple[Point, ...], t: int) -> tuple[int, ...]:
    """Returns the step of each point of a jump."""
    sources = tuple(step_of(point, t) for point in points)
    for (a, step_a), (b, step_b) in itertools.pairwise(zip(points, sources, strict=True)):
        clamped = any(isinstance(point, int) and t + point < 0 for point in (a, b))
        if step_b > step_a or (step_b == step_a and not clamped):
            raise ValueError(
                f"the points {a} and {b} of the jump at {t} are the steps {step_a} and {step_b}; "
                "each must be earlier than the one before"
            )
    return sources


def _slots(lifetimes: Sequence[tuple[int, int]]) -> dict[int, int]:
    """Returns a slot for each snapshot: as few as are alive at once, since lifetimes are intervals."""
    slots: dict[int, int] = {}
    busy: list[tuple[int, int]] = []  # the last jump of each slot in use, and the slot
    free: list[int] = []
    num_slots = 0
    for step, end in lifetimes:
        while busy and busy[0][0] < step:
            heapq.heappush(free, heapq.heappop(busy)[1])
        if free:
            slots[step] = heapq.heappop(free)
        else:
            slots[step] = num_slots
            num_slots += 1
        heapq.heappush(busy, (end, slots[step]))
    return slots


def _sources(jump: Jump) -> str:
    kept = (f"w_{step} (slot {slot})" for step, slot in zip(jump.sources[1:], jump.slots, strict=True))
    return " ".join([f"w_{jump.step}", *kept])
