"""An Equinox module; `pip install equinox`."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

import optax_introspect
from examples.problem import JUMP_STEPS, Run, batch, report


def main(steps: int = 600, jump_steps: tuple[int, ...] = JUMP_STEPS) -> Run:
    """Trains."""
    model = eqx.nn.MLP(8, 4, width_size=64, depth=1, activation=jnp.tanh, key=jax.random.key(0))
    tx = optax.chain(optax.adam(3e-3), optax_introspect.introspect(jump_steps))
    state = tx.init(eqx.filter(model, eqx.is_inexact_array))

    @eqx.filter_jit
    def train_step(model: eqx.nn.MLP, state: Any, x: jax.Array, y: jax.Array) -> Any:
        value, gradients = eqx.filter_value_and_grad(lambda model: jnp.mean((jax.vmap(model)(x) - y) ** 2))(model)
        # The same filter as for `init`.
        updates, state = tx.update(gradients, state, eqx.filter(model, eqx.is_inexact_array))
        return eqx.apply_updates(model, updates), state, value

    losses = []
    for step in range(steps):
        model, state, value = train_step(model, state, *batch(step))
        losses.append(float(value))
    return report(Run(model, losses, int(optax.tree.get(state, "jumps_taken"))))


if __name__ == "__main__":
    main()
