"""Forecasters that are a weighted sum of the points."""

import dataclasses
import math
from collections.abc import Sequence

import jax
import numpy as np

from .. import _arguments
from .._plan import PAPER_POINTS, Point, checked_points


@dataclasses.dataclass(frozen=True)
class Linear:
    """Forecaster made by :func:`linear` and its special cases.

    Attributes:
      coefficients: The coefficient of each point; they add up to 1.
      points: The points.
      period: Steps from one jump to the next, where the coefficients are made for jumps at even intervals.
    """

    coefficients: tuple[float, ...]
    points: tuple[Point, ...]
    period: int | None = None

    def __call__(self, *weights: jax.Array, key: jax.Array) -> jax.Array:
        """Forecasts one array, see :class:`Forecaster`."""
        del key
        now, *before = weights
        # Differences keep what a sum of large terms would round off, and a weight that did not move is not moved.
        forecast = now
        for c, w in zip(self.coefficients[1:], before, strict=True):
            forecast = forecast + np.asarray(c, now.dtype) * (w - now)
        return forecast


def linear(coefficients: Sequence[float], points: Sequence[Point]) -> Linear:
    r"""Makes a forecaster that is a weighted sum of the points.

    .. math:: F(w_{p_1}, \dots, w_{p_m}) = \sum_i c_i w_{p_i}, \qquad \sum_i c_i = 1

    Args:
      coefficients: The coefficient :math:`c_i` of each point. They must add up to 1, so that a weight that has not
        moved is not moved.
      points: The points: fractions of the jump step or negative integers, `1.0` first.

    Returns:
      The forecaster.

    Raises:
      ValueError: There is not one finite coefficient for each point, they do not add up to 1, or `points` are not
        valid.

    Examples:
      >>> import optax_introspect
      >>> two_point = linear((1.5, -0.5), points=(1.0, 0.4))  # w_t + 0.5 (w_t - w_{0.4 t})
      >>> tx = optax_introspect.introspect((3000, 4000), two_point)
    """
    points = checked_points(points)
    try:
        values = tuple(float(c) for c in coefficients)
    except (TypeError, ValueError, OverflowError):
        values = ()
    if len(values) != len(points) or not all(map(math.isfinite, values)) or abs(math.fsum(values) - 1) > 1e-6:
        raise ValueError(
            f"coefficients must be {len(points)} finite numbers that add up to 1, one for each of the points {points}; "
            f"got {coefficients!r}"
        )
    return Linear(values, points)


def polynomial(degree: int, jump_ratio: float, points: Sequence[Point] = PAPER_POINTS) -> Linear:
    r"""Makes a forecaster that extrapolates a polynomial fitted to the points of each weight.

    .. math:: F(w_{f_1 t}, \dots, w_{f_m t}) = p(r), \qquad
       p = \arg\min_{\deg p \le d} \sum_i (p(f_i) - w_{f_i t})^2

    Degree 1 with points `(1.0, 0.4)` is two-point extrapolation, which keeps one snapshot. Degree 0 is the average.

    Args:
      degree: `d`, from 0 to the number of points less one.
      jump_ratio: `r`. The forecast is that of step `r t`.
      points: The points, all of them fractions of the jump step.

    Returns:
      The forecaster.

    Raises:
      ValueError: `points` are not valid or have steps back among them, `degree` is not an integer in its range, or
        `jump_ratio` is not a positive number with which float32 can extrapolate.

    Examples:
      >>> [round(c, 6) for c in polynomial(1, 1.3, points=(1.0, 0.4)).coefficients]  # w_t + 0.5 (w_t - w_{0.4 t})
      [1.5, -0.5]

    References:
      Sinha et al., "Introspection: Accelerating Neural Network Training by Learning Weight Evolution", ICLR 2017,
      section 4.3.1.
    """
    points = checked_points(points)
    if any(point < 0 for point in points):
        raise ValueError(f"points of a polynomial must be fractions of the jump step; got {points}")
    degree = _arguments.integer(f"degree, with {len(points)} points,", degree, 0, len(points) - 1)
    jump_ratio = _arguments.number("jump_ratio", jump_ratio)
    powers = np.vander(points, degree + 1, increasing=True)
    coefficients = jump_ratio ** np.arange(degree + 1) @ np.linalg.pinv(powers)
    if not np.all(np.abs(coefficients) < 1e30):
        raise ValueError(f"jump_ratio is too large to extrapolate by degree {degree} in float32; got {jump_ratio!r}")
    return Linear(tuple(coefficients.tolist()), points)


def lookahead(period: int, alpha: float = 0.5) -> Linear:
    r"""Makes the forecaster of lookahead: the weights move back, to between those now and those after the last jump.

    .. math:: s' = s + \alpha (w - s)

    with :math:`w` the weights now and :math:`s` those after the last jump. The update of the jump step comes on top, as
    of all forecasts. Use it with `jump_steps=range(period - 1, total, period)`, or a later part of it; others are an
    error. It keeps one copy of the weights.

    Args:
      period: Steps from one jump to the next, at least 2.
      alpha: Where between :math:`s` (0) and :math:`w` (1) the weights move to.

    Returns:
      The forecaster.

    Raises:
      ValueError: `period` is not an integer of at least 2, or `alpha` is not between 0 and 1.

    Examples:
      >>> import optax, optax_introspect
      >>> slow = optax_introspect.introspect(range(4, 1000, 5), lookahead(5))
      >>> tx = optax.chain(optax.adam(1e-3), slow)

    References:
      Zhang et al., "Lookahead Optimizer: k steps forward, 1 step back", NeurIPS 2019.
    """
    period = _arguments.integer("period", period, 2)
    alpha = _arguments.number("alpha", alpha, zero=True)
    if alpha > 1:
        raise ValueError(f"alpha must be from 0 to 1; got {alpha!r}")
    return Linear((alpha, 1 - alpha), (1.0, 1 - period), period)


def heavy_ball(period: int, learning_rate: float, momentum: float) -> Linear:
    r"""Makes the forecaster of outer heavy-ball momentum.

    .. math:: s' = s + \eta (w - s) + \mu (s - s_{\mathrm{before}})

    with :math:`w` the weights now, and :math:`s` and :math:`s_{\mathrm{before}}` those after the last two jumps. The
    update of the jump step comes on top, as of all forecasts. Use it with
    `jump_steps=range(period - 1, total, period)`, or a later part of it; others are an error. It keeps three copies of
    the weights.

    Args:
      period: Steps from one jump to the next, at least 2.
      learning_rate: :math:`\eta`, the outer learning rate.
      momentum: :math:`\mu`, at least 0 and less than 1.

    Returns:
      The forecaster.

    Raises:
      ValueError: An argument is out of its range.

    Examples:
      >>> heavy_ball(20, learning_rate=1.0, momentum=0.5).points
      (1.0, -19, -39)

    References:
      Polyak, "Some methods of speeding up the convergence of iteration methods", 1964.
    """
    period, eta, mu = _checked_momentum(period, learning_rate, momentum)
    return Linear((eta, 1 - eta + mu, -mu), (1.0, 1 - period, 1 - 2 * period), period)


def nesterov(period: int, learning_rate: float = 0.8, momentum: float = 0.75) -> Linear:
    r"""Makes the forecaster of outer Nesterov momentum: DiLoCo with one worker, or SNOO.

    .. math:: b' = \mu b + (w - s), \qquad s' = s + \eta (\mu b' + w - s)

    with :math:`w` the weights now and :math:`s` those after the last jump. Written without the buffer :math:`b`, it is
    a weighted sum of the weights now, after and before the last jump, and after the one before. The update of the jump
    step comes on top, as of all forecasts. Use it with `jump_steps=range(period - 1, total, period)`, or a later part
    of it; others are an error. It keeps five copies of the weights.

    Args:
      period: Steps from one jump to the next, at least 2.
      learning_rate: :math:`\eta`, the outer learning rate.
      momentum: :math:`\mu`, at least 0 and less than 1.

    Returns:
      The forecaster.

    Raises:
      ValueError: An argument is out of its range.

    Examples:
      >>> import optax, optax_introspect
      >>> outer = optax_introspect.introspect(range(19, 6000, 20), nesterov(20))
      >>> tx = optax.chain(optax.adamw(3e-4), outer)

    References:
      Douillard et al., "DiLoCo: Distributed Low-Communication Training of Language Models", 2023.

      Kallusky et al., "SNOO: Step-K Nesterov Outer Optimizer", 2025.
    """
    period, eta, mu = _checked_momentum(period, learning_rate, momentum)
    coefficients = (eta * (1 + mu), 1 + mu - eta * (1 + mu), -eta * mu, -mu + eta * mu)
    return Linear(coefficients, (1.0, 1 - period, -period, 1 - 2 * period), period)


def _checked_momentum(period: int, learning_rate: float, momentum: float) -> tuple[int, float, float]:
    momentum = _arguments.number("momentum", momentum, zero=True)
    if momentum >= 1:
        raise ValueError(f"momentum must be at least 0 and less than 1; got {momentum!r}")
    return _arguments.integer("period", period, 2), _arguments.number("learning_rate", learning_rate), momentum
