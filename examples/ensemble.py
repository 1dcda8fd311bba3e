"""An ensemble under `jax.vmap`, whose members share the step counter of their jumps."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

import optax_introspect
from examples.problem import JUMP_STEPS, Run, batch, initial_params, loss, report


def main(steps: int = 600, jump_steps: tuple[int, ...] = JUMP_STEPS, members: int = 3) -> Run:
    """Trains; parameters, losses and jumps are those of the first member."""
    tx = optax.chain(optax.adam(3e-3), optax_introspect.introspect(jump_steps))
    params = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(initial_params(seed) for seed in range(members)))

    # Every array of the state has a member axis, but for the counter that tells when to capture and to jump. With one
    # for each member, every step would write all snapshots and make a forecast, to throw them away.
    shapes = jax.eval_shape(tx.init, params)
    axes = optax.tree.set(jax.tree.map(lambda leaf: 0, shapes), introspect_step=None)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    @functools.partial(jax.vmap, in_axes=(0, axes, None, None), out_axes=(0, axes, 0))
    def train_step(params: Any, state: Any, x: jax.Array, y: jax.Array) -> Any:
        value, gradients = jax.value_and_grad(loss)(params, x, y)
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, value

    state, losses = jax.vmap(tx.init, out_axes=axes)(params), []
    for step in range(steps):
        params, state, values = train_step(params, state, *batch(step))
        losses.append(float(values[0]))
    first = jax.tree.map(lambda leaf: leaf[0], params)
    return report(Run(first, losses, int(optax.tree.get(state, "jumps_taken")[0])))


if __name__ == "__main__":
    main()
