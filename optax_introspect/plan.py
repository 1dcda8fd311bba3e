"""Which weights a list of jump steps needs to remember, and where: jump steps -> snapshots and slots."""

import dataclasses
import itertools
import math
import operator
from collections.abc import Iterable, Sequence
from fractions import Fraction
from numbers import Real
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .snapshots import checked_snapshot_dtype, dtype_of_snapshot, forecast_leaves

PAPER_POINTS = (1.0, 0.7, 0.4, 0.0)

# The step counter of the optimizer state is an int32, which stops counting at its largest value.
LAST_STEP = 2**31 - 2


class Capture(NamedTuple):
    """A snapshot to be taken.

    Attributes:
      step: the step whose weights are kept.
      slot: the slot that they are kept in.
      last_jump: the last jump step that reads them; after it the slot is free.
    """

    step: int
    slot: int
    last_jump: int


class Jump(NamedTuple):
    """A forecast to be made.

    Attributes:
      step: the jump step `t`.
      sources: the step of every trajectory point, `t` itself first.
      slots: the slot of every trajectory point but the first, whose weights are the parameters themselves.
    """

    step: int
    sources: tuple[int, ...]
    slots: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Plan:
    """Snapshots and slots of a list of jump steps; made by :func:`plan`.

    Attributes:
      points: the trajectory points, as fractions of a jump step.
      captures: the snapshots to be taken, by step.
      jumps: the forecasts to be made, by step.
      num_slots: slots for snapshots; no schedule can do with fewer, since so many are alive at once.
      scratch: whether one more slot is needed in which a jump writes its forecast. Almost never: it is
        written over a snapshot that this very jump reads for the last time, or into a slot that is free.
    """

    points: tuple[float, ...]
    captures: tuple[Capture, ...]
    jumps: tuple[Jump, ...]
    num_slots: int
    scratch: bool

    @property
    def jump_steps(self) -> tuple[int, ...]:
        """The steps at which the weights are replaced by their forecast."""
        return tuple(jump.step for jump in self.jumps)

    @property
    def num_buffers(self) -> int:
        """Copies of the weights in the optimizer state: the slots and, if there is one, the scratch slot."""
        return self.num_slots + self.scratch

    def needed(self, step: int) -> tuple[int, ...]:
        """The snapshots that have to be there after so many updates, for the jumps from then on to be made.

        What is taken at `step` itself is not among them, since the coming update takes it.

        Args:
          step: the number of updates made.

        Returns:
          Their steps, increasing.

        Examples:
          >>> plan((3000, 4000)).needed(2500)
          (0, 1200, 1600, 2100)
          >>> plan((3000, 4000)).needed(3001)
          (0, 1600, 2800)
        """
        return tuple(capture.step for capture in self.captures if capture.step < step <= capture.last_jump)

    def nbytes(self, params: Any, snapshot_dtype: Any = None, *, mask: Any = None) -> int:
        """Bytes that the snapshots take in the optimizer state.

        Args:
          params: the parameters, or their shapes (as from `jax.eval_shape`): nothing but shape and dtype is read.
            Only floating and complex leaves count; others are never kept.
          snapshot_dtype: as for :func:`optax_introspect.introspect`.
          mask: as for :func:`optax_introspect.introspect`.

        Returns:
          Bytes, exactly those of `IntrospectState.snapshots`.

        Raises:
          ValueError: a `snapshot_dtype` that is not floating, a mask that doesn't fit the parameters.

        Examples:
          >>> import jax, jax.numpy as jnp
          >>> params = jax.eval_shape(lambda: {"w": jnp.zeros((1000, 1000)), "b": jnp.zeros(1000)})
          >>> plan((3000, 4000, 5000)).nbytes(params)  # six slots of 1 001 000 float32 numbers
          24024000
        """
        snapshot_dtype = checked_snapshot_dtype(snapshot_dtype)
        nbytes_of_a_copy: int = sum(
            math.prod(jnp.shape(leaf)) * jnp.dtype(dtype_of_snapshot(jnp.result_type(leaf), snapshot_dtype)).itemsize
            for leaf, here in zip(jax.tree.leaves(params), forecast_leaves(params, mask), strict=True)
            if here
        )
        return self.num_buffers * nbytes_of_a_copy

    def __str__(self) -> str:
        """Lay the plan out as a table, one line for every capture and jump."""
        events: list[tuple[int, int, str, str]] = [
            (jump.step, 0, "jump", " ".join(_source(*source) for source in _sources(jump))) for jump in self.jumps
        ]
        events += [(c.step, 1, "capture", f"slot {c.slot} until {c.last_jump}") for c in self.captures]
        width = len(str(self.jumps[-1].step))
        scratch = " and a scratch slot" if self.scratch else ""
        head = f"{len(self.jumps)} jumps, {len(self.captures)} snapshots in {self.num_slots} slots{scratch}"
        rows = [f"{step:>{width + 2}}  {kind:7}  {text}" for step, _, kind, text in sorted(events)]
        return "\n".join([head, f"{'step':>{width + 2}}  event    weights", *rows])


def plan(jump_steps: Sequence[int], points: Sequence[float] = PAPER_POINTS) -> Plan:
    r"""Plans which snapshots the jumps need, and lays them into as few slots as can be.

    A trajectory point :math:`f` of jump :math:`t` is the step nearest to :math:`f t`, ties upwards, computed
    exactly. The snapshot of step :math:`s`, whose last reader is jump :math:`e`, is alive in :math:`[s, e)`: the
    jump reads before a snapshot of that same step is taken. Hence the number of slots is the largest number of
    snapshots alive at once. One slot, the last, is never in use at a jump step but by a snapshot that this jump
    is the last to read: there the forecast is written.

    Args:
      jump_steps: increasing positive integers, the steps at which weights are replaced by their forecast.
      points: the trajectory points of the forecaster: decreasing fractions, the first of which is 1.

    Returns:
      The plan.

    Raises:
      ValueError: no jump steps, steps that are not increasing positive integers, points that are not decreasing
        fractions from 1 down to at least 0, or a jump so early that two of its points fall on one step.

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

    References:
      Sinha et al., "Introspection: Accelerating Neural Network Training by Learning Weight Evolution", ICLR 2017,
      sections 3 and 4.
    """
    steps = _checked_jump_steps(jump_steps)
    points = checked_points(points)
    fractions = [Fraction(str(point)) for point in points]
    sources = {t: tuple(nearest_step(fraction, t) for fraction in fractions) for t in steps}
    for t, at in sources.items():
        for i in range(1, len(at)):
            if at[i] == at[i - 1]:
                raise ValueError(
                    f"jump step {t} is too early: its trajectory points {points[i - 1]} and {points[i]} both fall on "
                    f"step {at[i]}; every point needs a step of its own"
                )

    last_jump: dict[int, int] = {}
    for t, at in sources.items():
        last_jump.update(dict.fromkeys(at[1:], t))
    lifetimes = sorted(last_jump.items())

    # A snapshot may share the forecast's slot if no earlier jump falls into its life; such snapshots of one jump
    # overlap each other, so that at most one of them can, and the longest relieves the other slots most.
    sharing: dict[int, int] = {}
    for step, end in lifetimes:
        if not any(step <= t < end for t in steps):
            sharing.setdefault(end, step)
    rest = [(step, end) for step, end in lifetimes if sharing.get(end) != step]
    num_slots = _most_alive(lifetimes)
    scratch = _most_alive(rest) == num_slots
    slots = _color(lifetimes if scratch else rest)
    if not scratch:
        slots |= dict.fromkeys(sharing.values(), num_slots - 1)

    return Plan(
        points=points,
        captures=tuple(Capture(step, slots[step], end) for step, end in lifetimes),
        jumps=tuple(Jump(t, at, tuple(slots[step] for step in at[1:])) for t, at in sources.items()),
        num_slots=num_slots,
        scratch=scratch,
    )


def checked_points(points: Iterable[float]) -> tuple[float, ...]:
    """Returns trajectory points as a tuple of floats.

    Raises:
      ValueError: if they are not decreasing fractions, the first of which is 1 and the last at least 0.
    """
    given = tuple(points) if isinstance(points, Iterable) else ()
    numbers = all(isinstance(point, Real) and not isinstance(point, bool) for point in given)
    result = tuple(float(point) for point in given) if numbers else ()
    decreasing = all(later < earlier for earlier, later in itertools.pairwise(result))
    if len(result) < 1 or result[0] != 1 or not decreasing or result[-1] < 0:
        raise ValueError(
            f"trajectory points must be decreasing fractions of a jump step within [0, 1], the first of which is 1, "
            f"for example {PAPER_POINTS}; got {given or points!r}"
        )
    return result


def nearest_step(fraction: Fraction, t: int) -> int:
    """Returns the step nearest to `fraction * t`, ties upwards, in exact arithmetic."""
    return (2 * fraction.numerator * t + fraction.denominator) // (2 * fraction.denominator)


def _checked_jump_steps(jump_steps: Sequence[int]) -> tuple[int, ...]:
    allowed = f"jump steps must be increasing integers from 1 to {LAST_STEP}"
    try:
        given = tuple(jump_steps)
    except TypeError:
        raise ValueError(f"{allowed}, in a sequence such as (3000, 4000, 5000); got {jump_steps!r}") from None
    if not given:
        raise ValueError(f"{allowed}; got none, and without jumps there is nothing to do")
    steps: list[int] = []
    for value in given:
        try:
            step = None if isinstance(value, bool | np.bool_) else operator.index(value)
        except TypeError:
            step = None
        if step is None or not 1 <= step <= LAST_STEP:
            raise ValueError(f"{allowed}; got {value!r} in {given}")
        if steps and step <= steps[-1]:
            raise ValueError(f"{allowed}; got {step} after {steps[-1]} in {given}")
        steps.append(step)
    return tuple(steps)


def _most_alive(lifetimes: Sequence[tuple[int, int]]) -> int:
    return max((sum(start <= step < end for start, end in lifetimes) for step, _ in lifetimes), default=0)


def _color(lifetimes: Sequence[tuple[int, int]]) -> dict[int, int]:
    """Gives every snapshot a slot free at its step, which takes the fewest slots since lifetimes are intervals.

    A slot that became free before the step goes before one that a jump of this very step reads for the last time, which
    could be written only after the jump.
    """
    slots: dict[int, int] = {}
    busy_until: list[int] = []
    for step, end in lifetimes:
        free = [(until == step, slot) for slot, until in enumerate(busy_until) if until <= step]
        slot = min(free)[1] if free else len(busy_until)
        busy_until[slot : slot + 1] = [end]
        slots[step] = slot
    return slots


def _sources(jump: Jump) -> list[tuple[int, int | None]]:
    return list(zip(jump.sources, (None, *jump.slots), strict=True))


def _source(step: int, slot: int | None) -> str:
    return f"w_{step}" if slot is None else f"w_{step} (slot {slot})"
