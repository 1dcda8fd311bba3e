"""Forecasters: functions from the trajectory points of a weight to its forecast, and their evaluation on an array."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx
from jax import lax

from . import arguments
from .network import Dense, Stack, dense_stack
from .plan import PAPER_POINTS, checked_points

# The units of a network are written out one by one for the largest arrays of a tree, and for all so large that the
# time to compile is made up for by the first jump: 3 ns a weight, and 0.15 s to compile an array. All others are
# evaluated in the broadcast form: about 130 ns a weight, and 0.02 s to compile (two CPU cores).
_WRITTEN_OUT_FROM = 1 << 16
_MOST_WRITTEN_OUT = 24
_WORTH_IT_FROM = 1 << 20

# A network of more multiplications than this is evaluated in chunks: as one expression it would be slow to compile.
_MOST_MULTIPLICATIONS = 1 << 10

# Weights that a network is evaluated for at a time, where its activations have to be held in memory.
_CHUNK = 1 << 14


class Forecaster(Protocol):
    """What :func:`optax_introspect.introspect` asks of a forecaster.

    Attributes:
      points: the trajectory points that it looks at: decreasing fractions of the jump step, the first of which is 1.
    """

    @property
    def points(self) -> tuple[float, ...]:
        """The trajectory points that it looks at."""
        ...

    def __call__(self, *weights: jax.Array, key: jax.Array) -> jax.Array:
        """Forecasts every weight of one array.

        Args:
          *weights: the array at every trajectory point: float32, all of one shape.
          key: a PRNG key that no other array and no other jump gets.

        Returns:
          The forecast, float32 of the same shape.
        """
        ...


ForecasterT = TypeVar("ForecasterT", bound=Forecaster)


@dataclasses.dataclass(frozen=True, eq=False)  # two networks are not compared weight by weight
class Introspection:
    """The forecaster of :func:`introspection`.

    Attributes:
      network: the Flax module.
      points: its trajectory points.
      scale: what weights are multiplied by on the way in, and forecasts divided by on the way out.
    """

    network: nnx.Module | nn.Module
    points: tuple[float, ...]
    scale: float
    _stack: Stack | None = dataclasses.field(repr=False)
    _compact: bool = dataclasses.field(default=False, repr=False)

    def __call__(self, *weights: jax.Array, key: jax.Array) -> jax.Array:
        """Forecasts one array, see :class:`Forecaster`."""
        del key
        if self._stack is None:
            return _in_chunks(lambda piece: self._scaled(self.definition, piece), list(weights))
        broadcast = functools.partial(self._stacked, _broadcast, self._stack)
        if self._compact or weights[0].size < _WRITTEN_OUT_FROM:
            return broadcast(list(weights))
        written_out = functools.partial(self._stacked, _written_out, self._stack)
        # On a GPU XLA splits the written-out form into several kernels, and keeps 31 arrays in between.
        forecast: jax.Array = lax.platform_dependent(list(weights), cuda=broadcast, rocm=broadcast, default=written_out)
        return forecast

    def _stacked(
        self,
        form: Callable[[tuple[Dense, ...], list[jax.Array]], jax.Array],
        stack: Stack,
        weights: list[jax.Array],
    ) -> jax.Array:
        evaluate = functools.partial(self._scaled, functools.partial(form, stack.layers))
        if not stack.relative:
            return evaluate(weights)
        # Of unscaled weights: their differences are exact within a factor of 2; scaled, each would be rounded first.
        now, *before = weights
        return now + evaluate([weight - now for weight in before])

    def _scaled(self, function: Callable[[list[jax.Array]], jax.Array], weights: list[jax.Array]) -> jax.Array:
        forecast = function([weight * np.float32(self.scale) for weight in weights])
        return forecast.astype(jnp.float32) * np.float32(1 / self.scale)

    def definition(self, weights: list[jax.Array]) -> jax.Array:
        """Evaluates the module by `jax.vmap` over scaled flat arrays: what every other form is tested against."""
        network: Any = self.network

        def one(*points: jax.Array) -> jax.Array:
            return jnp.reshape(network(jnp.stack(points)), ())

        return jax.vmap(one)(*weights)


def introspection(
    network: nnx.Module | nn.Module, *, points: Sequence[float] = PAPER_POINTS, scale: float = 1000.0
) -> Introspection:
    r"""Makes a forecaster of a Flax module that maps the trajectory points of a weight to its forecast.

    .. math:: F(w_t, \dots, w_0) = I(c\, w_t, \dots, c\, w_0) / c

    A stack of dense layers with elementwise activations, as :class:`optax_introspect.IntrospectionNetwork` is, is
    evaluated in a form that XLA fuses into one loop: no memory but for the result, no communication between devices.
    If it is relative, differences are taken first and scaled then, so that no digits are lost. Any other module goes
    through `jax.vmap`, over chunks of 16384 weights.

    Args:
      network: an NNX module, or a bound Linen module (`module.bind(variables)`), from float32 `[num_points]` to `[1]`
        or a scalar. It is evaluated as it is now; later changes to it have no effect.
      points: the trajectory points that it was trained for.
      scale: `c`, which brings weights into the range that the network was trained for.

    Returns:
      The forecaster.

    Raises:
      ValueError: points that are not decreasing fractions from 1, a scale that is not a positive number, a network
        with another number of inputs or outputs, or with weights that are not finite.
      TypeError: something that is not a Flax module, or a Linen module that is not bound to its variables.

    Examples:
      >>> from flax import nnx
      >>> import optax_introspect
      >>> network = optax_introspect.IntrospectionNetwork(rngs=nnx.Rngs(0))
      >>> optax_introspect.introspection(network).points
      (1.0, 0.7, 0.4, 0.0)

    References:
      Sinha et al., "Introspection: Accelerating Neural Network Training by Learning Weight Evolution", ICLR 2017,
      sections 3 and 4.1.
    """
    points = checked_points(points)
    scale = arguments.number("scale", scale)
    if isinstance(network, nnx.Module):
        network = nnx.clone(network)  # what happens to it later is of no effect
        variables: Any = nnx.state(network)
    elif isinstance(network, nn.Module):
        if network.scope is None:
            raise TypeError("a Linen module must be bound to its variables: introspection(module.bind(variables))")
        variables = network.variables
    else:
        raise TypeError(f"network must be an NNX module or a bound Linen module; got {type(network).__name__}")
    for path, leaf in jax.tree.leaves_with_path(variables):
        if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact) and not np.all(np.isfinite(np.asarray(leaf, np.float32))):
            raise ValueError(f"the weights of the network must be finite; {jax.tree_util.keystr(path)} is not")
    try:
        shape = jax.eval_shape(network, jax.ShapeDtypeStruct((len(points),), jnp.float32)).shape
    except Exception as error:
        raise ValueError(
            f"the network must take {len(points)} inputs, one for each of the points {points}; applied to them: {error}"
        ) from error
    if math.prod(shape) != 1:
        raise ValueError(f"the network must give one forecast for {len(points)} inputs; its output has shape {shape}")
    stack = dense_stack(network)
    if stack is not None:
        few = sum(layer.kernel.size for layer in stack.layers) <= _MOST_MULTIPLICATIONS
        stack = stack._replace(layers=_with_signs(stack.layers)) if few else None
    return Introspection(network, points, scale, stack)


@dataclasses.dataclass(frozen=True)
class Polynomial:
    """The forecaster of :func:`polynomial`.

    Attributes:
      degree: the degree of the polynomial.
      jump_ratio: where it is evaluated, as a multiple of the jump step.
      points: the trajectory points that it is fitted to.
      coefficients: float64 [points], what each point counts in the forecast; they add up to 1.
    """

    degree: int
    jump_ratio: float
    points: tuple[float, ...]
    coefficients: np.ndarray = dataclasses.field(repr=False, compare=False)

    def __call__(self, *weights: jax.Array, key: jax.Array) -> jax.Array:
        """Forecasts one array, see :class:`Forecaster`."""
        del key
        now, *before = weights
        # As a displacement from the weight now, so that nothing is lost by subtracting large numbers.
        terms = [np.float32(c) * (w - now) for c, w in zip(self.coefficients[1:], before, strict=True)]
        return sum(terms, start=now)


def polynomial(degree: int, jump_ratio: float, *, points: Sequence[float] = PAPER_POINTS) -> Polynomial:
    r"""Makes a forecaster that fits a polynomial to the trajectory points of every weight, and extrapolates it.

    .. math:: F(w_{f_1 t}, \dots, w_{f_m t}) = p(r), \qquad
       p = \arg\min_{\deg p \le d} \sum_i (p(f_i) - w_{f_i t})^2

    It is linear in the weights. Degree 1 through the points `(1, 0.4)` is two-point extrapolation, which needs but one
    snapshot; degree 0 is the average of the points.

    Args:
      degree: `d`, 0 or more and less than the number of points.
      jump_ratio: `r`: the forecast is that of step `r t`.
      points: the trajectory points.

    Returns:
      The forecaster.

    Raises:
      ValueError: points that are not decreasing fractions from 1, a degree that is not an integer from 0 to the
        number of points less one, a jump ratio that is not a positive number.

    Examples:
      >>> two_point = polynomial(1, 1.3, points=(1.0, 0.4))
      >>> two_point.coefficients.round(6)  # w_t + 0.5 (w_t - w_{0.4t})
      array([ 1.5, -0.5])

    References:
      Sinha et al., "Introspection: Accelerating Neural Network Training by Learning Weight Evolution", ICLR 2017,
      section 4.3.1 (quadratic and linear fits).
    """
    points = checked_points(points)
    degree = arguments.integer(f"for {len(points)} points, degree", degree, 0, len(points) - 1)
    jump_ratio = arguments.number("jump_ratio", jump_ratio)
    powers = np.vander(points, degree + 1, increasing=True)
    coefficients = jump_ratio ** np.arange(degree + 1) @ np.linalg.pinv(powers)
    if not np.all(np.abs(coefficients) < np.finfo(np.float32).max):
        raise ValueError(
            f"jump_ratio must be one with which float32 can extrapolate by degree {degree}; got {jump_ratio!r}"
        )
    return Polynomial(degree, jump_ratio, points, coefficients)


@dataclasses.dataclass(frozen=True)
class GaussianNoise:
    """The forecaster of :func:`gaussian_noise`."""

    stddev: float
    seed: int
    points: tuple[float, ...] = (1.0,)

    def __call__(self, *weights: jax.Array, key: jax.Array) -> jax.Array:
        """Forecasts one array, see :class:`Forecaster`."""
        (now,) = weights
        noise = jax.random.normal(jax.random.fold_in(key, self.seed), now.shape, now.dtype)
        return now + np.float32(self.stddev) * noise


def gaussian_noise(stddev: float, seed: int) -> GaussianNoise:
    r"""Makes a forecaster that adds noise to every weight: the paper's control for whether the forecast matters.

    .. math:: F(w_t) = w_t + \sigma \epsilon, \qquad \epsilon \sim \mathcal{N}(0, 1)

    Args:
      stddev: `sigma`, in the units of the weights.
      seed: of the noise; every jump and every array get noise of their own.

    Returns:
      The forecaster.

    Raises:
      ValueError: a standard deviation that is negative or not finite, a seed that is not an integer of 32 bits.

    Examples:
      >>> gaussian_noise(0.01, seed=0).points
      (1.0,)

    References:
      Sinha et al., "Introspection: Accelerating Neural Network Training by Learning Weight Evolution", ICLR 2017,
      section 4.3.1 (comparison with adding noise).
    """
    return GaussianNoise(arguments.number("stddev", stddev, zero=True), arguments.integer("seed", seed, 0, 2**32 - 1))


@dataclasses.dataclass(frozen=True)
class Function:
    """The forecaster of :func:`forecaster`."""

    function: Callable[..., jax.Array]
    points: tuple[float, ...]

    def __call__(self, *weights: jax.Array, key: jax.Array) -> jax.Array:
        """Forecasts one array, see :class:`Forecaster`."""
        del key
        return self.function(*weights)


def forecaster(function: Callable[..., jax.Array], points: Sequence[float]) -> Function:
    """Makes a forecaster of a function of your own.

    Args:
      function: from float32 arrays of one shape, one for every trajectory point, to their forecast of that same
        shape. To stay as cheap as the others in memory and communication it should be elementwise.
      points: the trajectory points that it wants, in its order: decreasing fractions, the first of which is 1.

    Returns:
      The forecaster.

    Raises:
      ValueError: points that are not decreasing fractions from 1, a function that cannot be called with one array
        for every point, or whose output has another shape.

    Examples:
      >>> import optax_introspect
      >>> average = forecaster(lambda now, before: (now + before) / 2, points=(1.0, 0.7))
      >>> tx = optax_introspect.introspect(jump_steps=(1000,), forecaster=average)
    """
    return checked_forecaster(Function(function, checked_points(points)))


def checked_forecaster(candidate: ForecasterT) -> ForecasterT:
    """Returns a forecaster after a trial run on shapes.

    Raises:
      TypeError: something that is not callable, or that has no trajectory points.
      ValueError: bad points, another number of arguments than points, another shape of the output than of the input.
    """
    if not callable(candidate) or not hasattr(candidate, "points"):
        raise TypeError(
            "a forecaster is a callable with trajectory points, such as optax_introspect.polynomial(1, 1.3) or "
            f"optax_introspect.forecaster(function, points); got {candidate!r}"
        )
    points = checked_points(candidate.points)
    shape = (3, 2)
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32)] * len(points)
    try:
        output = jax.eval_shape(lambda *w: candidate(*w, key=jax.random.key(0)), *arrays)
    except TypeError as error:
        raise ValueError(
            f"the forecaster cannot be called with {len(points)} arrays, its points {points}: {error}"
        ) from error
    if getattr(output, "shape", None) != shape:
        raise ValueError(f"a forecast must have the shape of the weights; for {shape} the forecaster gave {output}")
    return candidate


def forecaster_of_arrays(
    forecaster: Forecaster, arrays: Sequence[jax.Array | jax.ShapeDtypeStruct]
) -> list[Forecaster]:
    """Chooses the form of a forecaster for every array of a tree, so that compilation takes a bounded time.

    Args:
      forecaster: the forecaster.
      arrays: the arrays, of which only the sizes count.

    Returns:
      For every array, the forecaster in the form for it.
    """
    if not isinstance(forecaster, Introspection) or forecaster._stack is None:
        return [forecaster] * len(arrays)
    compact = dataclasses.replace(forecaster, _compact=True)
    by_size = sorted(range(len(arrays)), key=lambda i: -arrays[i].size)
    large = {i for rank, i in enumerate(by_size) if rank < _MOST_WRITTEN_OUT or arrays[i].size >= _WORTH_IT_FROM}
    return [forecaster if i in large else compact for i in range(len(arrays))]


def forecast_array(forecaster: Forecaster, weights: Sequence[jax.Array], key: jax.Array) -> jax.Array:
    """Forecasts one array of any floating or complex dtype, in float32.

    Args:
      forecaster: the forecaster.
      weights: the array at every trajectory point, all of one shape.
      key: a PRNG key of its own.

    Returns:
      The forecast, of the shape and dtype of `weights[0]`.
    """
    dtype = weights[0].dtype
    if jnp.issubdtype(dtype, jnp.complexfloating):
        keys = jax.random.split(key)
        parts = ([w.real for w in weights], [w.imag for w in weights])
        real, imag = (forecast_array(forecaster, part, k) for part, k in zip(parts, keys, strict=True))
        return lax.complex(real, imag).astype(dtype)
    return forecaster(*(w.astype(jnp.float32) for w in weights), key=key).astype(dtype)


def _with_signs(layers: tuple[Dense, ...]) -> tuple[Dense, ...]:
    """Returns the same function with 1 and -1 as the last weights, if they are those of units with ReLU.

    `v max(0, z) = sign(v) max(0, |v| z)`: one multiplication less for every unit, a fifth of those of the paper's `I`.
    """
    if len(layers) < 2 or layers[-2].activation is not nnx.relu:
        return layers
    *rest, hidden, last = layers
    outgoing = np.abs(last.kernel[:, 0])
    signed = Dense(hidden.kernel * outgoing, hidden.bias * outgoing, hidden.activation)
    if not (np.all(np.isfinite(signed.kernel)) and np.all(np.isfinite(signed.bias))):
        return layers
    return (*rest, signed, last._replace(kernel=np.sign(last.kernel)))


def _written_out(layers: tuple[Dense, ...], weights: list[jax.Array]) -> jax.Array:
    """Evaluates dense layers with every unit an elementwise expression of its own, which XLA fuses into one loop."""
    units = weights
    for kernel, bias, activation in layers:
        units = [
            activation(sum((unit * k for unit, k in zip(units, column, strict=True)), start=b))
            for column, b in zip(kernel.T, bias, strict=True)
        ]
    (forecast,) = units
    return forecast


def _broadcast(layers: tuple[Dense, ...], weights: list[jax.Array]) -> jax.Array:
    """Evaluates dense layers with the units along a last axis, quick to compile: XLA fuses the sums over the units."""
    first, *rest = layers
    terms = [w[..., None] * row for w, row in zip(weights, first.kernel, strict=True)]
    units = first.activation(sum(terms, start=jnp.asarray(first.bias)))
    for kernel, bias, activation in rest:
        units = activation(jnp.sum(units[..., None] * kernel, axis=-2) + bias)
    return jnp.squeeze(units, -1)


def _in_chunks(function: Callable[[list[jax.Array]], jax.Array], weights: list[jax.Array]) -> jax.Array:
    """Applies a function of flat arrays to chunks of them, so that what it holds in memory is bounded."""
    shape, size = weights[0].shape, weights[0].size
    flat = [w.reshape(-1) for w in weights]
    if size <= _CHUNK:
        return function(flat).reshape(shape)

    def chunk(i: jax.Array, forecast: jax.Array) -> jax.Array:
        # The last chunk overlaps the one before, instead of being shorter.
        start = jnp.minimum(i * _CHUNK, size - _CHUNK)
        piece = function([lax.dynamic_slice(w, (start,), (_CHUNK,)) for w in flat])
        return lax.dynamic_update_slice(forecast, piece, (start,))

    forecast: jax.Array = lax.fori_loop(0, -(-size // _CHUNK), chunk, jnp.zeros_like(flat[0]))
    return forecast.reshape(shape)
