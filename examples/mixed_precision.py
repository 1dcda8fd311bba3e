"""Computing in bfloat16 with float32 master weights, which are what is optimized and forecast."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

import optax_introspect
from examples.problem import JUMP_STEPS, Run, batch, initial_params, loss, report


def main(steps: int = 600, jump_steps: tuple[int, ...] = JUMP_STEPS) -> Run:
    """Trains; the snapshots are kept in bfloat16 as well."""
    jumps = optax_introspect.introspect(jump_steps, snapshot_dtype=jnp.bfloat16)
    tx = optax.chain(optax.adam(3e-3), jumps)

    def narrow_loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        narrow = optax.tree.cast((params, x, y), jnp.bfloat16)
        return loss(*narrow).astype(jnp.float32)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def train_step(params: Any, state: Any, x: jax.Array, y: jax.Array) -> Any:
        value, gradients = jax.value_and_grad(narrow_loss)(params, x, y)
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, value

    params = initial_params()
    state, losses = tx.init(params), []
    for step in range(steps):
        params, state, value = train_step(params, state, *batch(step))
        losses.append(float(value))
    return report(Run(params, losses, int(optax.tree.get(state, "jumps_taken"))))


if __name__ == "__main__":
    main()
