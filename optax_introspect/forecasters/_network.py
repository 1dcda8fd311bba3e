"""The introspection network, and forecasters made of a network."""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from .. import _arguments
from .._plan import PAPER_POINTS, Point, checked_points
from ._evaluate import ACTIVATIONS, MOST_MULTIPLICATIONS, Dense, evaluate_dense, vmapped, with_signs


class IntrospectionNetwork(nnx.Module):
    r"""The introspection network `I`: dense layers from the points of a weight to its forecast.

    .. math:: I(x) = W_2 \max(0, W_1 x + b_1) + b_2, \qquad W_1 \in \mathbb{R}^{40 \times 4}

    With `residual=True` the layers `g` map differences to the first point to the change of the weight:

    .. math:: I(x) = x_1 + g(x_2 - x_1, \dots, x_m - x_1)

    Then :math:`I(x + s) = I(x) + s`. Without biases :math:`I(a x) = a I(x)` for positive `a`. With both, a weight that
    has not moved is forecast not to move.

    Args:
      num_points: Number of points, `m`. The network maps `[..., m]` to `[..., 1]`.
      hidden: Number of units of each hidden layer.
      activation: `"relu"`, or `"identity"` for the paper's linear `I`.
      use_bias: Adds biases.
      residual: Maps differences to the first point to the change of the weight.
      rngs: Generator of the initial weights: LeCun normal, with biases of zero.

    Raises:
      ValueError: An argument is out of its range, or a residual network has only one point.

    Examples:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> IntrospectionNetwork(rngs=nnx.Rngs(0))(jnp.ones((8, 4))).shape
      (8, 1)
      >>> equivariant = IntrospectionNetwork(use_bias=False, residual=True, rngs=nnx.Rngs(0))
      >>> equivariant(jnp.full(4, 0.5))
      Array([0.5], dtype=float32)

    References:
      Sinha et al., "Introspection: Accelerating Neural Network Training by Learning Weight Evolution", ICLR 2017,
      section 4.1.
    """

    def __init__(
        self,
        num_points: int = 4,
        hidden: Sequence[int] = (40,),
        activation: str = "relu",
        *,
        use_bias: bool = True,
        residual: bool = False,
        rngs: nnx.Rngs,
    ):
        if not isinstance(activation, str) or activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {sorted(ACTIVATIONS)}; got {activation!r}")
        if not isinstance(hidden, Sequence):
            raise ValueError(f"hidden must be a sequence of integers such as (40,); got {hidden!r}")
        for name, value in {"use_bias": use_bias, "residual": residual}.items():
            if not isinstance(value, bool):
                raise ValueError(f"{name} must be True or False; got {value!r}")
        self.num_points = _arguments.integer("num_points", num_points, 2 if residual else 1)
        self.hidden = tuple(_arguments.integer("each of hidden", units) for units in hidden)
        self.activation = activation
        self.use_bias = use_bias
        self.residual = residual
        widths = [self.num_points - residual, *self.hidden, 1]
        self.layers = nnx.List(
            # Every weight of a network hangs on these few multiplications: they are not the place to save precision.
            nnx.Linear(inputs, outputs, use_bias=use_bias, precision=jax.lax.Precision.HIGHEST, rngs=rngs)
            for inputs, outputs in itertools.pairwise(widths)
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Forecasts weights, from `[..., num_points]` to `[..., 1]`."""
        now = x[..., :1]
        h = x[..., 1:] - now if self.residual else x
        *hidden, last = self.layers
        for layer in hidden:
            h = ACTIVATIONS[self.activation](layer(h))
        return now + last(h) if self.residual else last(h)

    def dense(self) -> list[Dense]:
        """Returns the layers as NumPy arrays."""
        activations = [self.activation] * len(self.hidden) + ["identity"]
        return [
            Dense(
                np.asarray(layer.kernel[...]),
                np.zeros(layer.out_features, np.float32) if layer.bias is None else np.asarray(layer.bias[...]),
                activation,
            )
            for layer, activation in zip(self.layers, activations, strict=True)
        ]


@dataclasses.dataclass(frozen=True, eq=False)  # networks are not compared weight by weight
class NetworkForecaster:
    """Forecaster made by :func:`network_forecaster`.

    Attributes:
      module: The Flax module; its weights are NumPy arrays.
      points: The points.
      scale: Factor of the weights on the way in; forecasts are divided by it.
    """

    module: Any
    points: tuple[Point, ...]
    scale: float
    _dense: Sequence[Dense] | None = dataclasses.field(repr=False)

    def __call__(self, *weights: jax.Array, key: jax.Array) -> jax.Array:
        """Forecasts one array, see :class:`Forecaster`."""
        del key
        if self._dense is None:
            return self.definition(*weights)
        if not self.module.residual:
            return self._scaled(weights)
        # Differences are taken before they are scaled: then they are exact where weights differ by less than a factor
        # of 2.
        now, *before = weights
        return now + self._scaled([weight - now for weight in before])

    def definition(self, *weights: jax.Array) -> jax.Array:
        """Forecasts one array by the module itself under `jax.vmap`."""
        graphdef, state = nnx.split(self.module)
        scale = weights[0].dtype.type(self.scale)

        def forecast(x: jax.Array) -> jax.Array:
            module: Any = nnx.merge(graphdef, state)
            output: jax.Array = module(x * scale)
            return output

        result: jax.Array = vmapped(forecast, weights) / scale
        return result

    def _scaled(self, inputs: Sequence[jax.Array]) -> jax.Array:
        assert self._dense is not None
        scale = inputs[0].dtype.type
        output = evaluate_dense(self._dense, [x * scale(self.scale) for x in inputs])
        result: jax.Array = output * scale(1 / self.scale)
        return result


def network_forecaster(
    module: nnx.Module, points: Sequence[Point] = PAPER_POINTS, scale: float = 1000.0
) -> NetworkForecaster:
    r"""Makes a forecaster of a Flax NNX module from the points of a weight to its forecast.

    .. math:: F(w_t, \dots, w_0) = I(c\, w_t, \dots, c\, w_0) / c

    An :class:`optax_introspect.IntrospectionNetwork` of up to 1024 multiplications is evaluated in one fused loop,
    without memory for activations or communication between devices. Larger ones and other modules go through
    `jax.vmap`, 16384 weights at a time. For a Linen module use :func:`optax_introspect.custom_forecaster`.

    Args:
      module: A module from float `[num_points]` to `[1]` or a scalar. Later changes to it have no effect.
      points: The points that it was trained for.
      scale: `c`, which brings weights into the range that the module was trained for.

    Returns:
      The forecaster.

    Raises:
      TypeError: `module` is not an NNX module.
      ValueError: `points` or `scale` are not valid, or the module has other inputs, other outputs, or weights that are
        not finite.

    Examples:
      >>> from flax import nnx
      >>> import optax_introspect
      >>> network = optax_introspect.IntrospectionNetwork(rngs=nnx.Rngs(0))
      >>> optax_introspect.network_forecaster(network).points
      (1.0, 0.7, 0.4, 0.0)

    References:
      Sinha et al., "Introspection: Accelerating Neural Network Training by Learning Weight Evolution", ICLR 2017,
      sections 3 and 4.1.
    """
    if not isinstance(module, nnx.Module):
        raise TypeError(f"module must be a flax.nnx.Module; got {type(module).__name__}")
    points = checked_points(points)
    scale = _arguments.number("scale", scale)
    graphdef, state = nnx.split(module)
    # Generators of random numbers have keys, which NumPy doesn't know.
    state = jax.tree.map(lambda x: x if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else np.asarray(x), state)
    for path, leaf in jax.tree.leaves_with_path(state):
        if jnp.issubdtype(leaf.dtype, jnp.inexact) and not np.all(np.isfinite(leaf)):
            raise ValueError(f"weights of module must be finite; {jax.tree_util.keystr(path)} is not")
    try:
        inputs = jax.ShapeDtypeStruct((len(points),), jnp.float32)
        output = jax.eval_shape(lambda x: nnx.merge(graphdef, state)(x), inputs)
    except Exception as error:
        raise ValueError(f"module must take {len(points)} inputs, one for each of {points}: {error}") from error
    if math.prod(getattr(output, "shape", (0,))) != 1:
        raise ValueError(f"module must return one forecast for {len(points)} inputs, an array; got {output}")
    copy = nnx.merge(graphdef, state)
    dense = copy.dense() if type(copy) is IntrospectionNetwork else None
    if dense is not None and sum(layer.kernel.size for layer in dense) > MOST_MULTIPLICATIONS:
        dense = None
    return NetworkForecaster(copy, points, scale, None if dense is None else with_signs(dense))
