"""The protocol of forecasters, and forecasters made of a function."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import jax
import jax.numpy as jnp

from .._plan import Point, checked_points


class Forecaster(Protocol):
    """Protocol of what :func:`optax_introspect.introspect` forecasts with.

    Attributes:
      points: The steps that it looks at: fractions of the jump step, or steps back as negative integers.

    A forecaster may have an attribute `period` as well, an integer: jumps are then made at the end of every period, at
    `range(period - 1, total, period)` or a later part of it, and other jump steps are an error.
    """

    @property
    def points(self) -> tuple[Point, ...]:
        """The steps that it looks at."""
        ...

    def __call__(self, *weights: jax.Array, key: jax.Array) -> jax.Array:
        """Forecasts every weight of one array.

        Args:
          *weights: The array at each point, all of one shape; float32, or float64 where the weights are.
          key: A PRNG key that no other array and no other jump gets.

        Returns:
          The forecast, of the same shape and dtype.
        """
        ...


ForecasterT = TypeVar("ForecasterT", bound=Forecaster)


@dataclasses.dataclass(frozen=True)
class CustomForecaster:
    """Forecaster made by :func:`custom_forecaster`."""

    function: Callable[..., jax.Array]
    points: tuple[Point, ...]

    def __call__(self, *weights: jax.Array, key: jax.Array) -> jax.Array:
        """Forecasts one array, see :class:`Forecaster`."""
        del key
        return self.function(*weights)


def custom_forecaster(function: Callable[..., jax.Array], points: Sequence[Point]) -> CustomForecaster:
    """Makes a forecaster of a function.

    Args:
      function: From the array at each point, all of one shape, to the forecast of that shape. They are float32, or
        float64 for float64 weights; a complex array is given as two. An elementwise function takes no memory and no
        communication between devices.
      points: The points, in the order of the function's arguments: fractions of the jump step or negative integers,
        from the latest to the earliest, `1.0` first.

    Returns:
      The forecaster.

    Raises:
      ValueError: `points` are not valid, the function can't be called with one array for each point, or its output has
        another shape.

    Examples:
      >>> import optax_introspect
      >>> average = custom_forecaster(lambda now, before: (now + before) / 2, points=(1.0, 0.7))
      >>> tx = optax_introspect.introspect((1000,), average)
    """
    return checked_forecaster(CustomForecaster(function, checked_points(points)))


def checked_forecaster(candidate: ForecasterT) -> ForecasterT:
    """Returns a forecaster after calling it on shapes.

    Raises:
      TypeError: It is not callable, or has no points.
      ValueError: Its points are not valid, or it does not take one array for each or return one of their shape.
    """
    if not callable(candidate) or not hasattr(candidate, "points"):
        raise TypeError(
            "forecaster must be callable and have points, as those of optax_introspect.nesterov, polynomial or "
            f"custom_forecaster do; got {candidate!r}"
        )
    points = checked_points(candidate.points)
    shape = (3, 2)
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32)] * len(points)
    try:
        output: Any = jax.eval_shape(lambda *w: candidate(*w, key=jax.random.key(0)), *arrays)
    except TypeError as error:
        raise ValueError(f"forecaster can't be called with {len(points)} arrays, for {points}: {error}") from error
    if getattr(output, "shape", None) != shape:
        raise ValueError(f"forecaster must return an array of the shape of the weights, {shape}; got {output}")
    return candidate
