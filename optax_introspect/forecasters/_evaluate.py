"""Three ways to evaluate a network on every weight of an array.

Measured on two CPU cores by `python -m experiments benchmark`, with the default predictor:

=============  ============  ====================
form           ns a weight   compiles
=============  ============  ====================
`vmapped`      34 to 57      in between
`broadcast`    153 to 222    fastest
`written_out`  7 to 13       slowest
=============  ============  ====================

So `written_out` is for arrays of more than a quarter of a million weights and for those with a long last axis,
`broadcast` for all others and for GPUs, where XLA splits the long expression into many kernels, and `vmapped` for
networks that are not dense layers. It is also the definition that the other two are tested against.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

# Weights of an array above which writing out the units saves more in a few jumps than it costs to compile. Below, what
# XLA does not fuse of `broadcast`, an array of the same size, takes a megabyte at most.
WRITTEN_OUT_ABOVE = 1 << 18

# The same for arrays with a long last axis: with jax 0.12 on CPUs, `broadcast` takes time that grows with its square.
LONG_WRITTEN_OUT_ABOVE, LONG_AXIS = 1 << 12, 1 << 10

# Multiplications of a network up to which its units are fused into one loop.
MOST_MULTIPLICATIONS = 1 << 10

# Weights that a network is vmapped over at a time, which bounds the memory of its activations.
CHUNK = 1 << 14

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {"relu": nnx.relu, "identity": lambda x: x}


class Dense(NamedTuple):
    """A dense layer as NumPy arrays: JAX closes over those in every process and under every trace.

    Attributes:
      kernel: float [inputs, outputs], cast to the dtype of the weights.
      bias: float [outputs].
      activation: Key of `ACTIVATIONS`. A name, since functions of JAX can't be pickled.
    """

    kernel: np.ndarray
    bias: np.ndarray
    activation: str


def evaluate_dense(layers: Sequence[Dense], inputs: Sequence[jax.Array]) -> jax.Array:
    """Evaluates dense layers on every element of some arrays, without memory for activations.

    Args:
      layers: The layers, the last of which has one output.
      inputs: An array for each input of the first layer, all of one shape and dtype.

    Returns:
      The output, an array of that shape and dtype.
    """
    is_long = inputs[0].shape[-1:] > (LONG_AXIS,)
    if inputs[0].size <= (LONG_WRITTEN_OUT_ABOVE if is_long else WRITTEN_OUT_ABOVE):
        return broadcast(layers, inputs)
    output: jax.Array = lax.platform_dependent(
        *inputs,
        cuda=lambda *x: broadcast(layers, x),
        rocm=lambda *x: broadcast(layers, x),
        default=lambda *x: written_out(layers, x),
    )
    return output


def with_signs(layers: Sequence[Dense]) -> Sequence[Dense]:
    """Returns the same function with 1 and -1 as the last weights, if they are those of units with ReLU.

    `v max(0, z) = sign(v) max(0, |v| z)` saves a multiplication a unit, a fifth of those of the paper's network.
    """
    if len(layers) < 2 or layers[-2].activation != "relu":
        return layers
    *rest, hidden, last = layers
    # In float64, so that float32 rounds them once, and float64 weights see the network as it was fitted.
    size = np.abs(last.kernel[:, 0].astype(np.float64))
    kernel, bias = hidden.kernel * size, hidden.bias * size
    if max(np.abs(kernel).max(), np.abs(bias).max()) > np.finfo(np.float32).max:
        return layers
    return [*rest, Dense(kernel, bias, hidden.activation), last._replace(kernel=np.sign(last.kernel))]


def written_out(layers: Sequence[Dense], inputs: Sequence[jax.Array]) -> jax.Array:
    """Evaluates dense layers with every unit as an elementwise expression, all of which XLA fuses into one loop."""
    units = list(inputs)
    dtype = units[0].dtype.type
    for kernel, bias, activation in layers:
        units = [
            ACTIVATIONS[activation](
                sum((unit * dtype(k) for unit, k in zip(units, column, strict=True)), start=dtype(b))
            )
            for column, b in zip(kernel.T, bias, strict=True)
        ]
    (output,) = units
    return output


def broadcast(layers: Sequence[Dense], inputs: Sequence[jax.Array]) -> jax.Array:
    """Evaluates dense layers with the units along a last axis, over which XLA fuses the sums."""
    dtype, ndim = inputs[0].dtype, inputs[0].ndim

    def constant(array: np.ndarray) -> Any:
        return array.astype(dtype).reshape((1,) * ndim + array.shape)

    first, *rest = layers
    terms = [x[..., None] * constant(row) for x, row in zip(inputs, first.kernel, strict=True)]
    units = ACTIVATIONS[first.activation](sum(terms, start=constant(first.bias)))
    for kernel, bias, activation in rest:
        units = ACTIVATIONS[activation](jnp.sum(units[..., None] * constant(kernel), axis=-2) + constant(bias))
    return jnp.squeeze(units, -1)


def vmapped(function: Callable[..., jax.Array], inputs: Sequence[jax.Array]) -> jax.Array:
    """Evaluates a function of one vector on every element of some arrays, a chunk at a time.

    Args:
      function: From an array [inputs] to an array with one element.
      inputs: An array for each input, all of one shape and dtype.

    Returns:
      The output, an array of that shape and dtype.
    """

    def one(*x: jax.Array) -> jax.Array:
        return jnp.reshape(function(jnp.stack(x)), ()).astype(x[0].dtype)

    flat = [x.reshape(-1) for x in inputs]
    output = jax.vmap(one)(*flat) if flat[0].size <= CHUNK else lax.map(lambda x: one(*x), flat, batch_size=CHUNK)
    return output.reshape(inputs[0].shape)
