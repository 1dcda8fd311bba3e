"""The introspection network, and how the weights of a stack of dense layers are read out of a Flax module."""

import inspect
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx

from . import arguments

Activation = Callable[[jax.Array], jax.Array]


def _identity(x: jax.Array) -> jax.Array:
    return x


ACTIVATIONS: dict[str, Activation] = {"relu": nnx.relu, "identity": _identity}

# Functions that act on every number by itself, and so may be applied to the units of a layer one after another.
_ELEMENTWISE = (
    *ACTIVATIONS.values(), nnx.celu, nnx.elu, nnx.gelu, nnx.hard_sigmoid, nnx.hard_silu, nnx.hard_tanh,
    nnx.leaky_relu, nnx.log_sigmoid, nnx.relu6, nnx.selu, nnx.sigmoid, nnx.silu, nnx.soft_sign, nnx.softplus,
    nnx.tanh, jnp.abs, jnp.cos, jnp.exp, jnp.sin, jnp.square, jnp.tanh,
)  # fmt: skip


class IntrospectionNetwork(nnx.Sequential):
    r"""The introspection network `I`: dense layers from the trajectory points of a weight to its forecast.

    .. math:: I(x) = W_2 \max(0, W_1 x + b_1) + b_2, \qquad W_1 \in \mathbb{R}^{40 \times 4}

    or, relative to the first point, with layers `g` of that form and one input less,

    .. math:: I(x) = x_1 + g(x_2 - x_1, \dots, x_m - x_1)

    The latter is shift-equivariant: :math:`I(x + s) = I(x) + s`. Without biases either is scale-equivariant:
    :math:`I(a x) = a I(x)` for positive `a`, since :math:`\max(0, a z) = a \max(0, z)`. With both properties, it
    forecasts that a weight that has not moved will not move.

    It sees one weight at a time. In the paper the weights are multiplied by 1000 on the way in; that is a matter of
    the forecaster, see :func:`optax_introspect.introspection`.

    Args:
      num_points: trajectory points, `m`: it maps `[..., m]` to `[..., 1]`.
      hidden: units of each hidden layer.
      activation: `"relu"` or `"identity"` (the paper's linear `I`), after each hidden layer.
      use_bias: whether the layers have biases.
      relative: whether the layers map the differences to the first point to the change of the weight.
      rngs: where the initial weights come from (LeCun normal; biases are zero).

    Raises:
      ValueError: an activation that is not known, no points or units in a layer, only one point where the network is
        relative to it, or a `use_bias` or `relative` that is neither True nor False.

    Examples:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> network = IntrospectionNetwork(rngs=nnx.Rngs(0))
      >>> network(jnp.ones((8, 4))).shape
      (8, 1)
      >>> equivariant = IntrospectionNetwork(use_bias=False, relative=True, rngs=nnx.Rngs(0))
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
        relative: bool = False,
        rngs: nnx.Rngs,
    ):
        if not isinstance(activation, str) or activation not in ACTIVATIONS:
            raise ValueError(f"unknown activation {activation!r}; known are {sorted(ACTIVATIONS)}")
        if not isinstance(hidden, Sequence):
            raise ValueError(f"hidden must be a sequence such as (40,); got {hidden!r}")
        for name, value in {"use_bias": use_bias, "relative": relative}.items():
            if not isinstance(value, bool):
                raise ValueError(f"{name} must be True or False; got {value!r}")
        num_points = arguments.integer("num_points", num_points)
        hidden = tuple(arguments.integer("units of a hidden layer", units) for units in hidden)
        num_inputs = num_points
        if relative:
            num_inputs -= 1
            if not num_inputs:
                raise ValueError("a relative network needs a second point to differ from the first; got num_points=1")
        widths = [num_inputs, *hidden, 1]
        layers: list[Any] = []
        for inputs, outputs in itertools.pairwise(widths):
            # A forecast moves every weight of a network: it is not the place to save multiplications.
            layers += [nnx.Linear(inputs, outputs, use_bias=use_bias, precision=jax.lax.Precision.HIGHEST, rngs=rngs)]
            layers += [ACTIVATIONS[activation]]
        super().__init__(*layers[:-1])
        self.num_points = num_points
        self.hidden = hidden
        self.activation = activation
        self.use_bias = use_bias
        self.relative = relative

    # One array, where Flax's takes whatever its layers take; the newer releases don't say what that is.
    def __call__(self, x: jax.Array) -> jax.Array:  # type: ignore[override, unused-ignore]
        """Forecasts weights, from float32 `[..., num_points]` to `[..., 1]`."""
        layers: Callable[[jax.Array], jax.Array] = super().__call__
        if not self.relative:
            return layers(x)
        now, before = x[..., :1], x[..., 1:]
        return now + layers(before - now)


class Dense(NamedTuple):
    """A dense layer with its activation, as NumPy arrays.

    NumPy, since JAX refuses to close over arrays that are not addressable from every process.

    Attributes:
      kernel: float32 [inputs, outputs].
      bias: float32 [outputs].
      activation: an elementwise function.
    """

    kernel: np.ndarray
    bias: np.ndarray
    activation: Activation


class Stack(NamedTuple):
    """A network that is nothing but dense layers, as :class:`IntrospectionNetwork` is.

    Attributes:
      layers: one after another.
      relative: whether they map differences to the first input to what is added to it.
    """

    layers: tuple[Dense, ...]
    relative: bool = False


def dense_stack(network: Any) -> Stack | None:
    """Returns the layers of a network that is nothing but dense layers and elementwise activations, else None.

    Args:
      network: `nnx.Sequential` of `nnx.Linear`, :class:`IntrospectionNetwork` among them, or a bound `linen.Sequential`
        of `linen.Dense`, with activations among the layers that are known to be elementwise.
    """
    call = type(network).__call__
    if call in (nnx.Sequential.__call__, IntrospectionNetwork.__call__):
        layers = [_nnx_layer(layer) for layer in network.layers]
    elif type(network) is nn.Sequential:
        params = nn.unbox(network.variables.get("params", {}))
        layers = [_linen_layer(layer, params.get(f"layers_{i}", {})) for i, layer in enumerate(network.layers)]
    else:
        return None

    stack: list[Dense] = []
    for layer in layers:
        if isinstance(layer, Dense):
            stack.append(layer)
        elif layer in _ELEMENTWISE and stack:
            stack[-1] = stack[-1]._replace(activation=_compose(stack[-1].activation, layer))
        else:
            return None
    relative = call is IntrospectionNetwork.__call__ and network.relative
    return Stack(tuple(stack), relative) if stack else None


def _nnx_layer(layer: Any) -> Any:
    if type(layer) is not nnx.Linear or not _computes_as_usual(layer):
        return layer
    return _dense(layer.kernel[...], None if layer.bias is None else layer.bias[...])


def _linen_layer(layer: Any, params: Any) -> Any:
    # A layer that stands in the stack twice has its parameters only once.
    if type(layer) is not nn.Dense or not _computes_as_usual(layer) or "kernel" not in params:
        return layer
    return _dense(params["kernel"], params.get("bias"))


def _computes_as_usual(layer: Any) -> bool:
    defaults = inspect.signature(type(layer)).parameters
    ways = {"dot_general", "dot_general_cls", "preferred_element_type", "promote_dtype"} & defaults.keys()
    return layer.dtype in (None, jnp.float32) and all(getattr(layer, way) is defaults[way].default for way in ways)


def _dense(kernel: Any, bias: Any) -> Dense:
    matrix = np.asarray(kernel, np.float32)
    return Dense(
        matrix,
        np.zeros(matrix.shape[1], np.float32) if bias is None else np.asarray(bias, np.float32),
        _identity,
    )


def _compose(first: Activation, second: Activation) -> Activation:
    return second if first is _identity else lambda x: second(first(x))
