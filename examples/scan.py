"""Many steps in one call with `jax.lax.scan`."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

import optax_introspect
from examples.problem import JUMP_STEPS, Run, batch, initial_params, loss, report


def main(steps: int = 600, jump_steps: tuple[int, ...] = JUMP_STEPS, steps_a_call: int = 50) -> Run:
    """Trains. A jump may fall anywhere within a call."""
    tx = optax.chain(optax.adam(3e-3), optax_introspect.introspect(jump_steps))

    def train_step(carry: Any, step: jax.Array) -> Any:
        params, state = carry
        value, gradients = jax.value_and_grad(loss)(params, *batch(step))
        updates, state = tx.update(gradients, state, params)
        return (optax.apply_updates(params, updates), state), value

    @functools.partial(jax.jit, donate_argnums=0)
    def train_steps(carry: Any, first: int) -> Any:
        return jax.lax.scan(train_step, carry, first + jnp.arange(steps_a_call))

    params = initial_params()
    carry, losses = (params, tx.init(params)), []
    for first in range(0, steps, steps_a_call):
        carry, values = train_steps(carry, first)
        losses += values.tolist()
    params, state = carry
    return report(Run(params, losses, int(optax.tree.get(state, "jumps_taken"))))


if __name__ == "__main__":
    main()
