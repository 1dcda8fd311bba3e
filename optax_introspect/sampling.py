"""Training examples for an introspection network, sampled from a weight history."""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from . import arguments
from .history import WeightHistory
from .plan import PAPER_POINTS, checked_points

Array = npt.NDArray[Any]


class Examples(NamedTuple):
    """Trajectory points of sampled weights, and where these weights went.

    Attributes:
      inputs: float32 [examples, points], the weight at each trajectory point of `t`.
      targets: float32 [examples], the weight at step `jump_ratio * t`.
      weights: int64 [examples], which weight of the history it is, as an index into `WeightHistory.read`.
      steps: int64 [examples], `t`.
      points: the trajectory points.
      jump_ratio: `k`.
    """

    inputs: Array
    targets: Array
    weights: Array
    steps: Array
    points: tuple[float, ...]
    jump_ratio: float


def sample_examples(
    history: WeightHistory,
    num_examples: int = 800_000,
    *,
    points: Sequence[float] = PAPER_POINTS,
    jump_ratio: float = 2.0,
    bands: Sequence[float] = (0.5, 0.25, 0.25),
    shares: Sequence[float] = (0.5, 0.25, 0.25),
    t_density: Callable[[Array], Array] | None = None,
    tolerance: float = 0.02,
    seed: int = 0,
) -> Examples:
    r"""Samples examples of how weights evolve.

    An example is a weight and a step `t`, both random: from the weight at each trajectory point of `t` to the weight
    at step `k t`. Candidates are ordered by how far the weight moved, :math:`|w_t - w_0|` with the first recorded step
    for step 0, and cut into bands, of each of which a share of the examples is drawn; no candidate is drawn twice.

    Args:
      history: the weights of a training run.
      num_examples: how many.
      points: the trajectory points, decreasing fractions of `t`, the first of which is 1.
      jump_ratio: `k`.
      bands: widths of the bands as fractions of all candidates, from those that moved most to those that moved
        least; they add up to 1.
      shares: fractions of the examples to be drawn from each band; they add up to 1. The paper's bands and shares, the
        defaults, taken literally draw from all candidates alike.
      t_density: from the recorded steps that can be `t` to their relative probabilities, for example
        `lambda t: 1 / t`; uniform if None.
      tolerance: how far the nearest recorded step may lie from a trajectory point or from `k t`, as a fraction of `t`.
      seed: of the random numbers.

    Returns:
      The examples, in random order.

    Raises:
      ValueError: arguments that are out of their range, a history with fewer than two steps, or one without any step
        `t` for which the points and `k t` are recorded.

    Examples:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     with WeightHistory.record(folder, {"w": np.zeros(3, np.float32)}) as history:
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
    widths, counts = _checked_bands(num_examples, bands, shares)
    jump_ratio = arguments.number("jump_ratio", jump_ratio)
    if jump_ratio in points:
        raise ValueError(f"jump_ratio must be none of the trajectory points {points}; got {jump_ratio!r}")
    if not 0 <= tolerance < 0.5:
        raise ValueError(f"tolerance must be a fraction of t from 0 to less than 0.5; got {tolerance!r}")

    pairings = _pairings(history.steps, (*points, jump_ratio), tolerance)
    t = np.array([pairing[0] for pairing in pairings])
    probability = np.ones(len(t)) if t_density is None else np.asarray(t_density(t), np.float64)
    if probability.shape != t.shape or not np.all(np.isfinite(probability)) or np.any(probability < 0):
        raise ValueError(
            f"t_density must give a finite number of at least 0 for each of {len(t)} steps; it gave {probability}"
        )
    if not probability.sum() > 0:
        raise ValueError(f"t_density is 0 for every step that can be t, from {t[0]} to {t[-1]}")

    random = np.random.default_rng(seed)
    # As many candidates as the band that has the fewest for its share needs; one more, since edges are rounded.
    num_candidates = math.ceil(max((count + 1) / width for count, width in zip(counts, widths, strict=True)))
    chosen = random.choice(len(t), num_candidates, p=probability / probability.sum())
    weights = random.integers(history.num_weights, size=num_candidates)
    values = np.empty((num_candidates, len(points) + 1), np.float32)
    read = functools.lru_cache(maxsize=8)(history.read)
    for i in np.unique(chosen):
        here = np.flatnonzero(chosen == i)
        for column, step in enumerate(pairings[i]):
            values[here, column] = read(step)[weights[here]]

    moved = np.abs(values[:, 0] - read(history.steps[0])[weights])
    order = np.argsort(-moved, kind="stable")
    edges = np.rint(np.cumsum([0, *widths]) * num_candidates).astype(int)
    drawn = [
        random.choice(order[start:end], count, replace=False)
        for (start, end), count in zip(itertools.pairwise(edges), counts, strict=True)
    ]
    examples = random.permutation(np.concatenate(drawn))
    return Examples(
        inputs=values[examples, :-1],
        targets=values[examples, -1],
        weights=weights[examples],
        steps=t[chosen[examples]],
        points=points,
        jump_ratio=jump_ratio,
    )


def split_by_weight(examples: Examples, share: float, seed: int) -> tuple[Examples, Examples]:
    """Splits examples in two that have no weight in common.

    Args:
      examples: the examples.
      share: the share of the weights whose examples make up the second part.
      seed: of the choice of these weights.

    Returns:
      The first and the second part; neither is empty.

    Raises:
      ValueError: a share that leaves one of the parts empty.
    """
    weights = np.unique(examples.weights)
    count = round(share * len(weights)) if 0 < share < 1 else 0
    if not 0 < count < len(weights):
        raise ValueError(
            f"a share of the weights must be between 0 and 1 and leave both parts some; got {share!r} of {len(weights)}"
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


def _checked_bands(
    num_examples: int, bands: Sequence[float], shares: Sequence[float]
) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """Returns the width of every band and the number of examples to draw from it."""
    arguments.integer("num_examples", num_examples)
    bands, shares = tuple(bands), tuple(shares)
    if len(bands) != len(shares) or not bands:
        raise ValueError(f"every band needs one share; got {len(bands)} bands and {len(shares)} shares")
    if min(bands) <= 0 or not math.isclose(sum(bands), 1):
        raise ValueError(f"bands must be positive and add up to 1; got {bands}, which add up to {sum(bands)}")
    if min(shares) < 0 or not math.isclose(sum(shares), 1):
        raise ValueError(f"shares must be at least 0 and add up to 1; got {shares}, which add up to {sum(shares)}")
    edges = np.rint(np.cumsum([0, *shares]) * num_examples).astype(int)
    return bands, tuple(np.diff(edges).tolist())


def _pairings(steps: Array, fractions: Sequence[float], tolerance: float) -> list[tuple[int, ...]]:
    """Returns, for every recorded step that can be `t`, the recorded steps nearest to `fractions` of it."""
    if len(steps) < 2:
        raise ValueError(f"a history needs at least two steps to learn from; this one has {len(steps)}")
    exact = [Fraction(str(fraction)) for fraction in fractions]
    allowed = Fraction(str(tolerance))
    pairings = []
    for t in steps[steps > 0].tolist():
        nearest = [_nearest(steps, fraction * t) for fraction in exact]
        far = any(abs(step - fraction * t) > allowed * t for step, fraction in zip(nearest, exact, strict=True))
        if not far and len(set(nearest)) == len(nearest):
            pairings.append(tuple(nearest))
    if not pairings:
        raise ValueError(
            f"no recorded step can be t: for none of them are {', '.join(f'{f:g} t' for f in fractions)} recorded to "
            f"within {tolerance:g} t; the history has {len(steps)} steps from {steps[0]} to {steps[-1]}"
        )
    return pairings


def _nearest(steps: Array, wanted: Fraction) -> int:
    """Returns the recorded step nearest to a number, ties upwards."""
    after = int(np.searchsorted(steps, math.ceil(wanted)))
    around: list[int] = steps[max(after - 1, 0) : after + 1].tolist()
    return min(reversed(around), key=lambda step: abs(step - wanted))
