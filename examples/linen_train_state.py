"""A Flax Linen module with `TrainState`."""

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax.training.train_state import TrainState

import optax_introspect
from examples.problem import JUMP_STEPS, Run, batch, report


def main(steps: int = 600, jump_steps: tuple[int, ...] = JUMP_STEPS) -> Run:
    """Trains."""
    module = nn.Sequential([nn.Dense(64), nn.tanh, nn.Dense(4)])
    state = TrainState.create(
        apply_fn=module.apply,
        params=module.init(jax.random.key(0), jnp.ones((1, 8)))["params"],
        tx=optax.chain(optax.adam(3e-3), optax_introspect.introspect(jump_steps)),
    )

    @jax.jit
    def train_step(state: TrainState, x: jax.Array, y: jax.Array) -> tuple[TrainState, jax.Array]:
        value, gradients = jax.value_and_grad(
            lambda params: jnp.mean((state.apply_fn({"params": params}, x) - y) ** 2)
        )(state.params)
        return state.apply_gradients(grads=gradients), value

    losses = []
    for step in range(steps):
        state, value = train_step(state, *batch(step))
        losses.append(float(value))
    return report(Run(state.params, losses, int(optax.tree.get(state.opt_state, "jumps_taken"))))


if __name__ == "__main__":
    main()
