"""Data parallelism with `jax.shard_map`: gradients are averaged by hand, the update stands outside.

Outside, whether a forecast is finite is asked of the weights on all devices together. Inside, each device would ask for
its own part; with replicated weights that is the same.
"""

import functools
from typing import Any

import jax
import optax
from jax.sharding import NamedSharding, PartitionSpec

import optax_introspect
from examples.problem import JUMP_STEPS, Run, batch, initial_params, loss, report


def main(steps: int = 600, jump_steps: tuple[int, ...] = JUMP_STEPS) -> Run:
    """Trains on all devices."""
    tx = optax.chain(optax.adam(3e-3), optax_introspect.introspect(jump_steps))
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    replicated, split = PartitionSpec(), PartitionSpec("data")

    @functools.partial(jax.shard_map, mesh=mesh, in_specs=(replicated, split, split), out_specs=replicated)
    def value_and_gradients(params: Any, x: jax.Array, y: jax.Array) -> Any:
        return jax.value_and_grad(lambda params: jax.lax.pmean(loss(params, x, y), "data"))(params)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def train_step(params: Any, state: Any, x: jax.Array, y: jax.Array) -> Any:
        value, gradients = value_and_gradients(params, x, y)
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, value

    params = jax.device_put(initial_params(), NamedSharding(mesh, replicated))
    state, losses = tx.init(params), []
    for step in range(steps):
        x, y = jax.device_put(batch(step), NamedSharding(mesh, split))
        params, state, value = train_step(params, state, x, y)
        losses.append(float(value))
    return report(Run(params, losses, int(optax.tree.get(state, "jumps_taken"))))


if __name__ == "__main__":
    main()
