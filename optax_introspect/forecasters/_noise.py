"""The control of the paper: noise in place of a forecast."""

import dataclasses

import jax
import numpy as np

from .. import _arguments
from .._plan import Point


@dataclasses.dataclass(frozen=True)
class GaussianNoise:
    """Forecaster made by :func:`gaussian_noise`."""

    stddev: float
    seed: int
    points: tuple[Point, ...] = (1.0,)

    def __call__(self, *weights: jax.Array, key: jax.Array) -> jax.Array:
        """Forecasts one array, see :class:`Forecaster`."""
        (now,) = weights
        noise = jax.random.normal(jax.random.fold_in(key, self.seed), now.shape, now.dtype)
        return now + np.asarray(self.stddev, now.dtype) * noise


def gaussian_noise(stddev: float, seed: int) -> GaussianNoise:
    r"""Makes a forecaster that adds noise to every weight, to compare forecasts with.

    .. math:: F(w_t) = w_t + \sigma \epsilon, \qquad \epsilon \sim \mathcal{N}(0, 1)

    Args:
      stddev: `sigma`, in the units of the weights.
      seed: Seed of the noise, a 32-bit integer. Every jump and every array of an `introspect` gets noise of its
        own; give several of them different seeds.

    Returns:
      The forecaster.

    Raises:
      ValueError: `stddev` is negative or not finite, or `seed` is not a 32-bit integer.

    Examples:
      >>> gaussian_noise(0.01, seed=0).points
      (1.0,)

    References:
      Sinha et al., "Introspection: Accelerating Neural Network Training by Learning Weight Evolution", ICLR 2017,
      section 4.3.1.
    """
    return GaussianNoise(_arguments.number("stddev", stddev, zero=True), _arguments.integer("seed", seed, 0, 2**32 - 1))
