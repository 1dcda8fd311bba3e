"""The task that the examples share: two dense layers learn the sine of a linear map."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

JUMP_STEPS = (200, 300, 400)

TEACHER = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32) / 3


class Run(NamedTuple):
    """Result of a training: the parameters, the loss of every step, and the number of jumps."""

    params: Any
    losses: list[float]
    jumps: int


def initial_params(seed: int = 0) -> dict[str, jax.Array]:
    """Returns the initial parameters."""
    first, second = jax.random.split(jax.random.key(seed))
    return {
        "w1": jax.random.normal(first, (8, 64)) / 3,
        "b1": jnp.zeros(64),
        "w2": jax.random.normal(second, (64, 4)) / 8,
        "b2": jnp.zeros(4),
    }


def predict(params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    """Applies the network."""
    return jnp.tanh(x @ params["w1"] + params["b1"]) @ params["w2"] + params["b2"]


def loss(params: dict[str, jax.Array], x: jax.Array, y: jax.Array) -> jax.Array:
    """Returns the mean squared error."""
    return jnp.mean((predict(params, x) - y) ** 2)


@jax.jit
def batch(step: int) -> tuple[jax.Array, jax.Array]:
    """Returns inputs and targets of a step."""
    x = jax.random.normal(jax.random.fold_in(jax.random.key(1), step), (64, 8))
    return x, jnp.sin(x @ TEACHER)


def report(run: Run) -> Run:
    """Prints the first and last loss and the number of jumps."""
    print(f"loss {run.losses[0]:.3f} -> {run.losses[-1]:.5f} in {len(run.losses)} steps, {run.jumps} jumps")
    return run
