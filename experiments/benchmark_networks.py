"""Networks of the benchmark, of any size and with few or many arrays, trained on random images."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import lax


class Mlp(nnx.Module):
    """Dense layers with about so many weights, 784 inputs and 10 outputs."""

    def __init__(self, weights: float, hidden_layers: int = 3, *, rngs: nnx.Rngs):
        squares = hidden_layers - 1
        width = round((math.sqrt(794**2 + 4 * squares * weights) - 794) / (2 * squares))
        widths = [784, *[width] * hidden_layers, 10]
        self.layers = nnx.List(nnx.Linear(a, b, rngs=rngs) for a, b in itertools.pairwise(widths))

    def __call__(self, images: jax.Array) -> jax.Array:
        """Maps images [batch, 28, 28] to logits [batch, 10]."""
        x = images.reshape(len(images), -1)
        *hidden, last = self.layers
        for layer in hidden:
            x = nnx.relu(layer(x))
        return last(x)


class ConvNet(nnx.Module):
    """Four 3x3 convolutions with about so many weights, each with 2x2 max pooling, and a dense layer."""

    def __init__(self, weights: float, *, rngs: nnx.Rngs):
        c = max(round(math.sqrt(weights / 378)), 1)
        widths = (1, c, 2 * c, 4 * c, 8 * c)
        self.layers = nnx.List(nnx.Conv(a, b, (3, 3), rngs=rngs) for a, b in itertools.pairwise(widths))
        self.last = nnx.Linear(8 * c, 10, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Maps images [batch, 28, 28] to logits [batch, 10]."""
        x = images[..., None]
        for layer in self.layers:
            x = nnx.max_pool(nnx.relu(layer(x)), (2, 2), (2, 2))
        return self.last(x.mean((1, 2)))


class Transformer(nnx.Module):
    """A transformer over the rows of an image with about so many weights: 16 arrays a block and 7 more."""

    def __init__(self, weights: float, blocks: int = 10, *, rngs: nnx.Rngs):
        width = max(8 * round(math.sqrt(weights / (12 * blocks)) / 8), 8)
        self.first = nnx.Linear(28, width, rngs=rngs)
        self.positions = nnx.Param(0.02 * rngs.params.normal((28, width)))
        self.blocks = nnx.List(_Block(width, rngs) for _ in range(blocks))
        self.norm, self.last = nnx.LayerNorm(width, rngs=rngs), nnx.Linear(width, 10, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Maps images [batch, 28, 28] to logits [batch, 10]."""
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


def images_and_labels(batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns images float32 [batch, 28, 28] and labels int64 [batch], of noise."""
    random = np.random.default_rng(0)
    return random.normal(size=(batch, 28, 28)).astype(np.float32), random.integers(10, size=batch)


def loss_of(model: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns the mean cross-entropy."""
    losses: jax.Array = optax.softmax_cross_entropy_with_integer_labels(model(images), labels)
    return losses.mean()


class Training:
    """The training of a network whose parameters are a plain list of arrays.

    Args:
      make: Makes the network, given `rngs`.
      batch: Number of images a step.
    """

    def __init__(self, make: Callable[..., nnx.Module], batch: int):
        graphdef, state = nnx.split(network := make(rngs=nnx.Rngs(0)))
        treedef: Any
        self.params, treedef = jax.tree.flatten(state)
        self.batch = images_and_labels(batch)
        self.size = sum(param.size for param in self.params)
        self.name = f"{type(network).__name__}, {self.size / 1e6:.2g} M weights in {len(self.params)} arrays"

        def loss(params: Any, images: Any, labels: Any) -> jax.Array:
            return loss_of(nnx.merge(graphdef, treedef.unflatten(params)), images, labels)

        self.loss = loss

    def jit(self, tx: optax.GradientTransformation, steps: int = 1) -> Any:
        """Returns the jitted function of one step, or of several, in the buffers of parameters and optimizer state."""

        def step(carry: Any, images: Any, labels: Any) -> Any:
            params, state = carry
            updates, state = tx.update(jax.grad(self.loss)(params, images, labels), state, params)
            return optax.apply_updates(params, updates), state

        def call(params: Any, state: Any, images: Any, labels: Any) -> Any:
            if steps == 1:
                return step((params, state), images, labels)
            return lax.scan(lambda carry, _: (step(carry, images, labels), None), (params, state), length=steps)[0]

        return jax.jit(call, donate_argnums=(0, 1))

    def compile(self, tx: optax.GradientTransformation) -> Any:
        """Returns one step, compiled."""
        return self.jit(tx).lower(self.params, jax.eval_shape(tx.init, self.params), *self.batch).compile()

    def run(self, tx: optax.GradientTransformation, step: Any) -> Callable[[int], Any]:
        """Returns a function that makes so many calls of a step."""
        params = jax.tree.map(jnp.copy, self.params)
        carry = [params, jax.jit(tx.init)(params)]

        def calls(count: int) -> Any:
            for _ in range(count):
                carry[:] = step(*carry, *self.batch)
            return carry[0]

        jax.block_until_ready(calls(1))  # which takes the snapshot of step 0
        return calls
