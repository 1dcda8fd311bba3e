"""How the layers of the experiments' networks are computed, against the other way that they could be."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import lax

from ..networks import CifarNet, max_pool
from ..networks.layers import local_response_norm, overlapping_max_pool
from .rows import Row, interleaved, row

SECTION = "layers, as they are against otherwise"
_BATCH = 128

Layer = Callable[..., jax.Array]


def both_forms(repetitions: int) -> list[Row]:
    """Measures forward and backward passes of each layer in both forms, and gradients of CIFAR_1 without its norms."""
    rows = [measured(case, repetitions) for case in CASES]
    return [*rows, batch_norms(repetitions)]


class Case(NamedTuple):
    """Two forms of a layer.

    Attributes:
      name: what they are.
      ours: the one that networks have.
      other: the other one.
      shapes: of the images, and of the kernel if there is one.
    """

    name: str
    ours: Layer
    other: Layer
    shapes: tuple[tuple[int, ...], ...]


def measured(case: Case, repetitions: int) -> Row:
    """Measures both forms of a layer."""
    random = np.random.default_rng(0)
    operands = [jnp.asarray(random.normal(size=shape), jnp.float32) for shape in case.shapes]
    forms = {form: there_and_back(layer) for form, layer in (("ours", case.ours), ("other", case.other))}
    seconds = interleaved({form: functools.partial(run, *operands) for form, run in forms.items()}, repetitions)
    return row(SECTION, case.name, "x", seconds["ours"] / seconds["other"], note=_milliseconds(seconds["ours"]))


def there_and_back(layer: Layer) -> Callable[..., Any]:
    """Returns a compiled function that gives what a layer returns, and the gradients of the sum of its squares."""

    def forward_and_backward(*operands: jax.Array) -> Any:
        found, transpose = jax.vjp(layer, *operands)
        return found, transpose(found)

    return jax.jit(forward_and_backward)


def batch_norms(repetitions: int) -> Row:
    """Measures gradients of CIFAR_1 against those of the same network without its batch norms."""
    images = jnp.asarray(np.random.default_rng(0).normal(size=(_BATCH, 24, 24, 3)), jnp.float32)
    labels = jnp.arange(_BATCH) % 10
    with_norms, without = (CifarNet(rngs=nnx.Rngs(0)) for _ in range(2))
    for norm in ("norm1", "norm2"):
        setattr(without, norm, _identity)
    seconds = interleaved(
        {
            name: functools.partial(gradient_function(network), images, labels)
            for name, network in (("with", with_norms), ("without", without))
        },
        repetitions,
    )
    what, note = "gradients of CIFAR_1, against without its batch norms", _milliseconds(seconds["with"])
    return row(SECTION, what, "x", seconds["with"] / seconds["without"], note=note)


def gradient_function(network: Any) -> Callable[[jax.Array, jax.Array], Any]:
    """Returns a compiled function from images and labels to the gradients of a network's loss."""
    parts: Any = nnx.split(network, nnx.Param, ...)
    graphdef, params, rest = parts

    def loss(params: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
        logits = nnx.merge(graphdef, params, rest, copy=True)(images, jax.random.key(0))
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))

    return functools.partial(jax.jit(jax.grad(loss)), params)


def _identity(x: jax.Array, use_running_average: bool) -> jax.Array:
    return x


def _milliseconds(seconds: Any) -> str:
    return f"{1e3 * np.median(seconds):.1f} ms"


def _windowed(size: int, x: jax.Array) -> jax.Array:
    maxima: jax.Array = lax.reduce_window(x, -jnp.inf, lax.max, (1, size, size, 1), (1, 2, 2, 1), "SAME")
    return maxima


def _convolution(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _by_patches(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Returns the convolution as one matrix product, of the patches that it sees."""
    height, width = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0)))
    patches = [padded[:, i : i + height, j : j + width] for i in range(5) for j in range(5)]
    return jnp.concatenate(patches, axis=-1) @ kernel.reshape(-1, kernel.shape[-1])


def _plain_norm(x: jax.Array) -> jax.Array:
    sums: jax.Array = lax.reduce_window(x * x, 0.0, lax.add, (1, 1, 1, 5), (1, 1, 1, 1), "SAME")
    return x / (2 + 1e-4 * sums) ** 0.75


CASES = (
    Case(
        "2x2 maxima of 50x28x28x32 (MNIST_1), by a reshape against a windowed reduction",
        max_pool,
        functools.partial(_windowed, 2),
        ((50, 28, 28, 32),),
    ),
    Case(
        "3x3 maxima of 128x24x24x64 (CIFAR_1), one axis after the other against a windowed reduction",
        overlapping_max_pool,
        functools.partial(_windowed, 3),
        ((_BATCH, 24, 24, 64),),
    ),
    Case(
        "5x5 convolution of 128x24x24x3 to 64 channels (CIFAR_1), XLA's against patches and a matrix product",
        _convolution,
        _by_patches,
        ((_BATCH, 24, 24, 3), (5, 5, 3, 64)),
    ),
    Case(
        "local response normalisation of 32x27x27x96 (AlexNet), against a windowed sum and JAX's gradient",
        local_response_norm,
        _plain_norm,
        ((32, 27, 27, 96),),
    ),
)
