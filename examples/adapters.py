"""Low-rank adapters beside frozen weights (LoRA): only the adapters are optimized, forecast and kept."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

import optax_introspect
from examples.problem import JUMP_STEPS, Run, batch, initial_params, loss, report


def main(steps: int = 600, jump_steps: tuple[int, ...] = JUMP_STEPS, rank: int = 2) -> Run:
    """Trains."""
    trained = optax.chain(optax.adam(1e-2), optax_introspect.introspect(jump_steps))
    tx = optax.partition(
        {"trained": trained, "frozen": optax.set_to_zero()}, {"base": "frozen", "down": "trained", "up": "trained"}
    )

    def adapted_loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        base = jax.lax.stop_gradient(params["base"])
        return loss(base | {"w2": base["w2"] + params["down"] @ params["up"]}, x, y)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def train_step(params: Any, state: Any, x: jax.Array, y: jax.Array) -> Any:
        value, gradients = jax.value_and_grad(adapted_loss)(params, x, y)
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, value

    down = jax.random.normal(jax.random.key(2), (64, rank)) / 8
    params = {"base": initial_params(), "down": down, "up": jnp.zeros((rank, 4))}
    schedule = optax_introspect.plan(jump_steps)
    mask = {"base": False, "down": True, "up": True}
    print(f"snapshots: {schedule.nbytes(params, mask=mask)} bytes; of all weights: {schedule.nbytes(params)}")
    state, losses = tx.init(params), []
    for step in range(steps):
        params, state, value = train_step(params, state, *batch(step))
        losses.append(float(value))
    return report(Run(params, losses, int(optax.tree.get(state, "jumps_taken"))))


if __name__ == "__main__":
    main()
