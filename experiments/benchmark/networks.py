"""Networks of any size, with one array or hundreds: what the steps of the benchmark train."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable

import jax
import numpy as np
from flax import nnx

from ..data import Images
from ..networks import Mlp, max_pool
from ..training import Task


class Convolutions(nnx.Module):
    """Four 3x3 convolutions to `c`, `2c`, `4c` and `8c` channels with 2x2 max pooling, then the mean and a dense layer.

    Args:
      channels: `c`.
      rngs: where the initial weights come from.
    """

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        widths = (1, channels, 2 * channels, 4 * channels, 8 * channels)
        self.convolutions = nnx.List(
            nnx.Conv(inputs, outputs, (3, 3), rngs=rngs) for inputs, outputs in itertools.pairwise(widths)
        )
        self.last = nnx.Linear(widths[-1], 10, rngs=rngs)

    def __call__(self, images: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Maps images `[batch, 28, 28]` to logits `[batch, 10]`; a `key` is not used."""
        x = images[..., None]
        for convolution in self.convolutions:
            x = max_pool(nnx.relu(convolution(x)))
        return self.last(x.mean((1, 2)))


class Transformer(nnx.Module):
    """A transformer over the rows of an image: 16 arrays a block and 7 more.

    Args:
      width: units of every layer, a multiple of 8; 4 times as many between the two dense layers of a block.
      blocks: how many blocks.
      rngs: where the initial weights come from.
    """

    def __init__(self, width: int, blocks: int, *, rngs: nnx.Rngs):
        self.first = nnx.Linear(28, width, rngs=rngs)
        self.positions = nnx.Param(0.02 * rngs.params.normal((28, width)))
        self.blocks = nnx.List(_Block(width, rngs) for _ in range(blocks))
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.last = nnx.Linear(width, 10, rngs=rngs)

    def __call__(self, images: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Maps images `[batch, 28, 28]` to logits `[batch, 10]`; a `key` is not used."""
        x = self.first(images) + self.positions[...]
        for block in self.blocks:
            x = block(x)
        return self.last(self.norm(x).mean(1))


class _Block(nnx.Module):
    def __init__(self, width: int, rngs: nnx.Rngs):
        self.norms = nnx.List(nnx.LayerNorm(width, rngs=rngs) for _ in range(2))
        self.projections = nnx.List(nnx.Linear(width, width, rngs=rngs) for _ in range(4))
        self.up, self.down = nnx.Linear(width, 4 * width, rngs=rngs), nnx.Linear(4 * width, width, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        *inputs, output = self.projections
        normed = self.norms[0](x)
        heads = [layer(normed).reshape(*x.shape[:-1], 8, -1) for layer in inputs]
        x = x + output(jax.nn.dot_product_attention(*heads).reshape(x.shape))
        return x + self.down(nnx.gelu(self.up(self.norms[1](x))))


@dataclasses.dataclass(frozen=True)
class Family:
    """Networks of one kind.

    Attributes:
      name: what they are called.
      make: makes the network that has about so many weights, given `rngs`.
      batches: examples a step for about 1, 10 and 50 million weights: less for larger ones, as nothing is learned here.
    """

    name: str
    make: Callable[[float], Callable[..., nnx.Module]]
    batches: dict[float, int]

    def task(self, weights: float) -> Task:
        """Returns the training of a network with about so many weights, on random images."""
        return Task(self.make(weights), noise_images(), self.batches[weights], seed=0)


def mlp(weights: float) -> Callable[..., nnx.Module]:
    """Makes four dense layers with about so many weights."""
    hidden = round((math.sqrt(784**2 + 8 * weights) - 784) / 4)
    return functools.partial(Mlp, (784, hidden, hidden, hidden, 10))


def convolutions(weights: float) -> Callable[..., nnx.Module]:
    """Makes four convolutions with about so many weights."""
    return functools.partial(Convolutions, round(math.sqrt(weights / 378)))


def transformer(weights: float, blocks: int = 10) -> Callable[..., nnx.Module]:
    """Makes a transformer with about so many weights."""
    return functools.partial(Transformer, 8 * round(math.sqrt(weights / (12 * blocks)) / 8), blocks)


FAMILIES = (
    Family("MLP", mlp, {1e6: 64, 10e6: 64, 50e6: 64}),
    Family("conv net", convolutions, {1e6: 32, 10e6: 8, 50e6: 2}),
    Family("transformer", transformer, {1e6: 8, 10e6: 4, 50e6: 2}),
)


def noise_images() -> Images:
    """Returns images of the size of MNIST: what they show makes no difference to the time."""
    random = np.random.default_rng(0)
    images, labels = random.integers(256, size=(5000, 28, 28)), random.integers(10, size=5000)
    return Images("noise", "random numbers", *(array.astype(np.uint8) for array in (images, labels, images, labels)))
