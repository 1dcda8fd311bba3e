"""Gradients summed over parts of a batch within one step. Jump steps count updates, so nothing else changes.

For `optax.MultiSteps`, which spreads the parts over several calls, see docs/wrappers.md.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

import optax_introspect
from examples.problem import JUMP_STEPS, Run, batch, initial_params, loss, report


def main(steps: int = 600, jump_steps: tuple[int, ...] = JUMP_STEPS, parts: int = 4) -> Run:
    """Trains."""
    tx = optax.chain(optax.adam(3e-3), optax_introspect.introspect(jump_steps))

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def train_step(params: Any, state: Any, x: jax.Array, y: jax.Array) -> Any:
        def add(total: Any, part: Any) -> Any:
            return jax.tree.map(jnp.add, total, jax.value_and_grad(loss)(params, *part)), None

        split = jax.tree.map(lambda array: array.reshape(parts, -1, *array.shape[1:]), (x, y))
        total, _ = jax.lax.scan(add, (0.0, jax.tree.map(jnp.zeros_like, params)), split)
        value, gradients = jax.tree.map(lambda array: array / parts, total)
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
