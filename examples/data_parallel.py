"""Several devices with `jit` and shardings: batches and weights are split, and snapshots are split as the weights."""

import functools
from typing import Any

import jax
import optax
from jax.sharding import NamedSharding, PartitionSpec

import optax_introspect
from examples.problem import JUMP_STEPS, Run, batch, initial_params, loss, report

# How the parameters are split over the devices.
SPECS = {
    "w1": PartitionSpec(None, "data"),
    "b1": PartitionSpec("data"),
    "w2": PartitionSpec("data"),
    "b2": PartitionSpec(),
}


def main(steps: int = 600, jump_steps: tuple[int, ...] = JUMP_STEPS) -> Run:
    """Trains on all devices."""
    tx = optax.chain(optax.adam(3e-3), optax_introspect.introspect(jump_steps))
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    params = jax.device_put(initial_params(), {name: NamedSharding(mesh, spec) for name, spec in SPECS.items()})
    # Outside of jit, so that the state is split as the parameters are.
    state = tx.init(params)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def train_step(params: Any, state: Any, x: jax.Array, y: jax.Array) -> Any:
        value, gradients = jax.value_and_grad(loss)(params, x, y)
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, value

    losses = []
    for step in range(steps):
        x, y = jax.device_put(batch(step), NamedSharding(mesh, PartitionSpec("data")))
        params, state, value = train_step(params, state, x, y)
        losses.append(float(value))
    return report(Run(params, losses, int(optax.tree.get(state, "jumps_taken"))))


if __name__ == "__main__":
    main()
