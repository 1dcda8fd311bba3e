"""Pooling and local response normalisation, in forms that are quickly differentiated, and what networks check."""

import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

Padding = Literal["SAME", "VALID"]


def max_pool(images: jax.Array) -> jax.Array:
    """Takes the maximum of every 2x2 square; an odd edge is padded.

    As a reshape and a maximum, which on a CPU is differentiated 3 to 4 times faster than a windowed reduction.
    """
    batch, height, width, channels = images.shape
    edges = ((0, 0), (0, height % 2), (0, width % 2), (0, 0))
    padded = jnp.pad(images, edges, constant_values=-jnp.inf)
    squares = padded.reshape(batch, (height + 1) // 2, 2, (width + 1) // 2, 2, channels)
    return squares.max(axis=(2, 4))


def overlapping_max_pool(images: jax.Array, stride: Literal[1, 2] = 2, padding: Padding = "SAME") -> jax.Array:
    """Takes the maximum of 3x3 squares, one at every `stride` pixels: `[batch, height, width, channels]`.

    Values and gradients are those of a windowed reduction: of equal maxima, the first one gets the gradient. It is made
    of maxima of three along one axis after the other, and differentiated without a scatter, which on a CPU takes a
    fifth of the time.
    """
    return _max_of_three(_max_of_three(images, 2, stride, padding), 1, stride, padding)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _max_of_three(x: jax.Array, axis: int, stride: int, padding: str) -> jax.Array:
    first, second, third = _threes(x, axis, stride, padding)
    return jnp.maximum(jnp.maximum(first, second), third)


def _max_of_three_forward(
    x: jax.Array, axis: int, stride: int, padding: str
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    maxima = _max_of_three(x, axis, stride, padding)
    return maxima, (x, maxima)


def _max_of_three_backward(
    axis: int, stride: int, padding: str, residuals: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array]:
    x, maxima = residuals
    (first, second, _), transpose = jax.vjp(lambda x: _threes(x, axis, stride, padding), x)
    is_first = first == maxima
    is_second = (second == maxima) & ~is_first
    chosen = (is_first, is_second, ~(is_first | is_second))
    (result,) = transpose(tuple(jnp.where(here, gradient, jnp.zeros_like(gradient)) for here in chosen))
    return (result,)


_max_of_three.defvjp(_max_of_three_forward, _max_of_three_backward)


def _threes(x: jax.Array, axis: int, stride: int, padding: str) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the first, second and third element of each window along an axis; what is beyond the edge is -inf."""
    size = x.shape[axis]
    low, high = lax.padtype_to_pads((size,), (3,), (stride,), padding)[0]
    windows = (size + low + high - 3) // stride + 1

    def padded(length: int) -> jax.Array:
        edges = [(low, length - size - low, 0) if a == axis else (0, 0, 0) for a in range(x.ndim)]
        return lax.pad(x, jnp.array(-jnp.inf, x.dtype), edges)

    if stride == 1:
        first, second, third = (lax.slice_in_dim(padded(windows + 2), i, i + windows, axis=axis) for i in range(3))
        return first, second, third
    # Of pairs, since slices with a stride are differentiated by padding between all elements.
    pairs = padded(2 * windows + 2).reshape(*x.shape[:axis], windows + 1, 2, *x.shape[axis + 1 :])
    even, odd = (lax.index_in_dim(pairs, i, axis + 1, keepdims=False) for i in range(2))
    return (
        lax.slice_in_dim(even, 0, windows, axis=axis),
        lax.slice_in_dim(odd, 0, windows, axis=axis),
        lax.slice_in_dim(even, 1, windows + 1, axis=axis),
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def local_response_norm(
    x: jax.Array, size: int = 5, alpha: float = 1e-4, beta: float = 0.75, k: float = 2.0
) -> jax.Array:
    r"""Divides every value by what its neighbours among the channels, the last axis, sum up to.

    .. math::
      y_c = x_c \Big/ \Big(k + \alpha \sum_{|d - c| \le n / 2} x_d^2\Big)^\beta

    with :math:`n` = `size`, odd; where there are no channels any more, nothing is added. This is the convention of
    Krizhevsky et al. 2012, and so are the defaults. Caffe and PyTorch divide :math:`\alpha` by :math:`n`, and have
    :math:`k = 1`. It is computed in float32, and returned in the dtype of `x`.
    """
    values = x.astype(jnp.float32)
    return (values * _power(k + alpha * _sum_of_neighbours(values * values, size), beta)).astype(x.dtype)


def _norm_forward(x: jax.Array, size: int, alpha: float, beta: float, k: float) -> tuple[jax.Array, jax.Array]:
    return local_response_norm(x, size, alpha, beta, k), x


def _norm_backward(
    size: int, alpha: float, beta: float, k: float, x: jax.Array, gradient: jax.Array
) -> tuple[jax.Array]:
    # With s_c the sum in brackets, dy_c / dx_d is s_c^-b where d = c, less 2 a b x_c x_d s_c^(-b - 1) where d is one of
    # the neighbours of c. Who is whose neighbour is symmetric, so that the transpose sums over neighbours once more.
    # Left to JAX, this takes 3 times as long, most of it for a power, and keeps s.
    values, gradient32 = x.astype(jnp.float32), gradient.astype(jnp.float32)
    sums = k + alpha * _sum_of_neighbours(values * values, size)
    scaled = gradient32 * _power(sums, beta)
    through_sums = _sum_of_neighbours(scaled * values / sums, size)
    return ((scaled - 2 * alpha * beta * values * through_sums).astype(x.dtype),)


local_response_norm.defvjp(_norm_forward, _norm_backward)


def _power(sums: jax.Array, beta: float) -> jax.Array:
    """Returns the power of `-beta`, by square roots if it is that of the paper, which a power would take longer for."""
    return lax.rsqrt(sums * jnp.sqrt(sums)) if beta == 0.75 else sums**-beta


def _sum_of_neighbours(x: jax.Array, size: int) -> jax.Array:
    channels, reach = x.shape[-1], size // 2
    padded = jnp.pad(x, ((0, 0),) * (x.ndim - 1) + ((reach, reach),))
    return functools.reduce(jnp.add, (padded[..., i : i + channels] for i in range(2 * reach + 1)))


def check_images(images: jax.Array, image_size: int, last_side: Callable[[int], int]) -> None:
    """Raises a ValueError if images are of another size than a network was made for, as far as its weights can tell."""
    if images.ndim != 4 or any(last_side(side) != last_side(image_size) for side in images.shape[1:3]):
        raise ValueError(f"images must be [batch, {image_size}, {image_size}, 3], not {list(images.shape)}")
