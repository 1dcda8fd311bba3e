"""Training examples for an introspection network, sampled from a weight history."""

import itertools
import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from numbers import Integral, Real
from typing import Any, NamedTuple, Protocol

import numpy as np

from .. import _arguments
from .._plan import PAPER_POINTS, Point, checked_points, plan, step_of
from ._files import Array


class History(Protocol):
    """Protocol of what examples are sampled from, such as :class:`optax_introspect.WeightHistory`."""

    @property
    def steps(self) -> Any:
        """Increasing recorded steps."""
        ...

    @property
    def num_weights(self) -> int:
        """Number of weights."""
        ...

    def read(self, step: int) -> Array:
        """Returns the weights of one step, float32 `[num_weights]`."""
        ...


class Examples(NamedTuple):
    """Values of sampled weights at the points of a step, and where these weights went.

    Attributes:
      inputs: The weight at each point of `t`, float32 `[num_examples, num_points]`.
      targets: The weight at the target, float32 `[num_examples]`.
      weights: Index of the weight in `WeightHistory.read`, int64 `[num_examples]`.
      steps: `t`, int64 `[num_examples]`.
      points: The points.
      target: The target: a float is a multiple of `t`, an integer a number of steps ahead.
    """

    inputs: Array
    targets: Array
    weights: Array
    steps: Array
    points: tuple[Point, ...]
    target: Point


def sample_examples(
    history: History,
    num_examples: int = 800_000,
    *,
    points: Sequence[Point] = PAPER_POINTS,
    target: Point = 2.0,
    bands: Sequence[float] = (0.5, 0.25, 0.25),
    shares: Sequence[float] = (0.5, 0.25, 0.25),
    t_density: Callable[[Array], Array] | None = None,
    tolerance: float = 0.02,
    seed: int = 0,
) -> Examples:
    r"""Samples examples of how weights evolve.

    An example is a random weight at a random step `t`: its values at the points of `t`, and at the target. Candidates
    are ordered by how far the weight moved, :math:`|w_t - w_0|` with the first recorded step for step 0, and cut into
    bands. A share of the examples is drawn from each, without replacement.

    Args:
      history: Weights of a training run: a :class:`optax_introspect.WeightHistory`, or any object with `steps`,
        `num_weights` and `read(step)`. Each step is read once.
      num_examples: Number of examples.
      points: Points of the forecaster: fractions of `t`, or negative integers, steps back.
      target: Step to forecast: a float above 1 is a multiple of `t`, such as 2.0 for `2t`; a positive integer is a
        number of steps ahead, such as 1000 for `t + 1000`. So 2 is two steps ahead.
      bands: Widths of the bands as fractions of all candidates, from those that moved most to those that moved least.
        They add up to 1.
      shares: Fractions of the examples to draw from each band. They add up to 1. The defaults, the paper's, draw from
        all candidates alike.
      t_density: Function from the steps that can be `t` to their relative probabilities, such as `lambda t: 1 / t`.
        None is uniform.
      tolerance: Largest distance of a recorded step from that of a point or of the target: as a fraction of `t`, or of
        the distance to `t` where that is given in steps.
      seed: Seed of the random numbers.

    Returns:
      The examples, in random order.

    Raises:
      ValueError: An argument is out of its range, or the history has fewer than two steps, or none that can be `t`.

    Examples:
      >>> import tempfile
      >>> import optax_introspect
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     with optax_introspect.WeightHistory.record(folder, {"w": np.zeros(3, np.float32)}) as history:
      ...         for step in range(0, 201, 10):
      ...             history.append(step, {"w": np.full(3, step, np.float32)})
      ...     examples = sample_examples(history, 4, tolerance=0)
      >>> examples.inputs[0], examples.targets[0]  # t = 100 is the only step of which all points are recorded
      (array([100.,  70.,  40.,   0.], dtype=float32), np.float32(200.0))

    References:
      Sinha et al., "Introspection: Accelerating Neural Network Training by Learning Weight Evolution", ICLR 2017,
      section 4.1.
    """
    points = checked_points(points)
    target = _checked_target(target)
    widths, counts = _checked_bands(num_examples, bands, shares)
    _arguments.integer("seed", seed, 0)
    if not (isinstance(tolerance, Real) and 0 <= tolerance < 0.5):
        raise ValueError(f"tolerance must be from 0 to less than 0.5; got {tolerance!r}")
    steps = np.asarray(history.steps, np.int64)
    read_at = _read_at(steps, points, target, tolerance)
    t = read_at[:, 0]
    probability = np.ones(len(t)) if t_density is None else np.asarray(t_density(t), np.float64)
    if probability.shape != t.shape or not np.all(np.isfinite(probability)) or np.any(probability < 0):
        raise ValueError(f"t_density must return {len(t)} finite numbers of at least 0; got {probability}")
    if not probability.sum() > 0:
        raise ValueError(f"t_density must not be 0 for every step that can be t, from {t[0]} to {t[-1]}")

    random = np.random.default_rng(seed)
    # As many candidates as the band that has the fewest for its share needs; one more, since edges are rounded.
    num_candidates = math.ceil(max((count + 1) / width for count, width in zip(counts, widths, strict=True)))
    chosen = random.choice(len(t), num_candidates, p=probability / probability.sum())
    weights = random.integers(history.num_weights, size=num_candidates)
    first = np.full((num_candidates, 1), steps[0])
    values = _values(history, np.concatenate([read_at[chosen], first], axis=1), weights)

    order = np.argsort(-np.abs(values[:, 0] - values[:, -1]), kind="stable")
    edges = np.rint(np.cumsum([0, *widths]) * num_candidates).astype(int)
    drawn = [
        random.choice(order[start:end], count, replace=False)
        for (start, end), count in zip(itertools.pairwise(edges), counts, strict=True)
    ]
    examples = random.permutation(np.concatenate(drawn))
    return Examples(
        inputs=values[examples, : len(points)],
        targets=values[examples, len(points)],
        weights=weights[examples],
        steps=t[chosen[examples]],
        points=points,
        target=target,
    )


def split_by_weight(examples: Examples, share: float, seed: int) -> tuple[Examples, Examples]:
    """Splits examples into two parts that have no weight in common.

    Args:
      examples: The examples.
      share: Share of the weights whose examples make up the second part.
      seed: Seed of the choice of these weights.

    Returns:
      The two parts, neither of which is empty.

    Raises:
      ValueError: `share` leaves a part empty.
    """
    weights = np.unique(examples.weights)
    count = round(share * len(weights)) if isinstance(share, Real) and 0 < share < 1 else 0
    if not 0 < count < len(weights):
        raise ValueError(
            f"validation_share must be between 0 and 1 and leave both parts some of the {len(weights)} weights; "
            f"got {share!r}"
        )
    second = np.isin(examples.weights, np.random.default_rng(seed).choice(weights, count, replace=False))
    return _take(examples, ~second), _take(examples, second)


def _take(examples: Examples, which: Array) -> Examples:
    return examples._replace(
        inputs=examples.inputs[which],
        targets=examples.targets[which],
        weights=examples.weights[which],
        steps=examples.steps[which],
    )


def _checked_target(target: Any) -> Point:
    if not isinstance(target, bool):
        if isinstance(target, Integral) and int(target) > 0:
            return int(target)
        if isinstance(target, Real) and not isinstance(target, Integral) and 1 < float(target) < math.inf:
            return float(target)
    raise ValueError(
        "target must be a float above 1, a multiple of t such as 2.0, or a positive integer, a number of steps ahead "
        f"such as 1000; got {target!r}"
    )


def _checked_bands(
    num_examples: int, bands: Sequence[float], shares: Sequence[float]
) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """Returns the width of every band and the number of examples to draw from it."""
    _arguments.integer("num_examples", num_examples)
    bands, shares = tuple(bands), tuple(shares)
    if len(bands) != len(shares) or not bands:
        raise ValueError(f"bands and shares must be of one length; got {len(bands)} bands and {len(shares)} shares")
    for name, values in {"bands": bands, "shares": shares}.items():
        if not all(isinstance(value, Real) for value in values):
            raise ValueError(f"{name} must be numbers; got {values}")
    if min(bands) <= 0 or not math.isclose(sum(bands), 1):
        raise ValueError(f"bands must be positive and add up to 1; got {bands}")
    if min(shares) < 0 or not math.isclose(sum(shares), 1):
        raise ValueError(f"shares must be at least 0 and add up to 1; got {shares}")
    edges = np.rint(np.cumsum([0, *shares]) * num_examples).astype(int)
    return bands, tuple(np.diff(edges).tolist())


def _read_at(steps: Array, points: tuple[Point, ...], target: Point, tolerance: float) -> Array:
    """Returns for every step that can be `t` the recorded steps nearest to its points and its target.

    Returns:
      int64 `[num_t, num_points + 1]`.
    """
    if len(steps) < 2:
        raise ValueError(f"history must have at least two steps; got {len(steps)}")
    allowed = Fraction(str(tolerance))
    rows = []
    for t in steps[steps > 0].tolist():
        try:
            wanted = [*plan((t,), points).jumps[0].sources]
        except ValueError:  # so early that two points are one step
            continue
        wanted.append(step_of(target, t) if isinstance(target, float) else t + target)
        if wanted[-1] == t:  # so early that the target is the step itself
            continue
        nearest = [_nearest(steps, step) for step in wanted]
        far = any(
            abs(step - exact) > allowed * (t if isinstance(point, float) else abs(exact - t))
            for point, step, exact in zip((*points, target), nearest, wanted, strict=True)
        )
        if not far and len(set(nearest)) == len(set(wanted)):  # points before the start are all step 0
            rows.append(nearest)
    if not rows:
        named = ", ".join([*map(_name, points), _name(target)])
        raise ValueError(
            f"history must have a step t of which {named} are recorded too, within the tolerance {tolerance:g}; it has "
            f"{len(steps)} steps from {steps[0]} to {steps[-1]}"
        )
    return np.array(rows, np.int64)


def _name(point: Point) -> str:
    return f"{point:g} t" if isinstance(point, float) else f"t {'-' if point < 0 else '+'} {abs(point)}"


def _nearest(steps: Array, wanted: int) -> int:
    """Returns the recorded step nearest to a step, ties upwards."""
    after = int(np.searchsorted(steps, wanted))
    around: list[int] = steps[max(after - 1, 0) : after + 1].tolist()
    return min(reversed(around), key=lambda step: abs(step - wanted))


def _values(history: History, at: Array, weights: Array) -> Array:
    """Returns the values of weights `[n]` at steps `[n, columns]`; reads every step once."""
    values = np.empty(at.shape, np.float32)
    order = np.argsort(at, axis=None, kind="stable")
    steps, starts = np.unique(at.ravel()[order], return_index=True)
    for step, places in zip(steps.tolist(), np.split(order, starts[1:]), strict=True):
        values.flat[places] = history.read(step)[weights[places // at.shape[1]]]
    return values
