"""Parameters in a plain pytree."""

import functools
from typing import Any

import jax
import optax

import optax_introspect
from examples.problem import JUMP_STEPS, Run, batch, initial_params, loss, report


def main(steps: int = 600, jump_steps: tuple[int, ...] = JUMP_STEPS) -> Run:
    """Trains, and prints a line at every jump."""
    tx = optax.chain(optax.adam(3e-3), optax_introspect.introspect(jump_steps))

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def train_step(params: Any, state: Any, x: jax.Array, y: jax.Array) -> Any:
        value, gradients = jax.value_and_grad(loss)(params, x, y)
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, value

    params = initial_params()
    state = tx.init(params)
    losses, jumps = [], 0
    for step in range(steps):
        params, state, value = train_step(params, state, *batch(step))
        losses.append(float(value))
        if (taken := int(optax.tree.get(state, "jumps_taken"))) > jumps:
            jumps = taken
            print(f"jumped at step {step}, from a loss of {losses[-2]:.5f}")
    return report(Run(params, losses, jumps))


if __name__ == "__main__":
    main()
