"""A Flax Linen module with batch norm, whose running statistics are recomputed after the last jump."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

import optax_introspect
from examples.problem import JUMP_STEPS, Run, batch, report


class Network(nn.Module):
    """Two dense layers with a batch norm between them."""

    momentum: float = 0.99

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps inputs to outputs."""
        x = nn.BatchNorm(use_running_average=not train, momentum=self.momentum)(nn.Dense(64)(x))
        return nn.Dense(4)(nn.tanh(x))


@jax.jit
def recalibrated(variables: dict[str, Any], batches: list[jax.Array]) -> Any:
    """Returns the average of the statistics of each batch, which are those after a pass with momentum 0."""
    module = Network(momentum=0.0)
    passes = [module.apply(variables, x, train=True, mutable="batch_stats")[1]["batch_stats"] for x in batches]
    return jax.tree.map(lambda *values: sum(values) / len(values), *passes)


def main(steps: int = 600, jump_steps: tuple[int, ...] = JUMP_STEPS) -> Run:
    """Trains."""
    tx = optax.chain(optax.adam(3e-3), optax_introspect.introspect(jump_steps))
    variables = Network().init(jax.random.key(0), jnp.ones((1, 8)), train=False)
    state = tx.init(variables["params"])

    @jax.jit
    def train_step(variables: dict[str, Any], state: Any, x: jax.Array, y: jax.Array) -> tuple[Any, Any, jax.Array]:
        def loss(params: Any) -> tuple[jax.Array, Any]:
            outputs, new = Network().apply({**variables, "params": params}, x, train=True, mutable="batch_stats")
            return jnp.mean((outputs - y) ** 2), new

        (value, new), gradients = jax.value_and_grad(loss, has_aux=True)(variables["params"])
        updates, state = tx.update(gradients, state, variables["params"])
        return {"params": optax.apply_updates(variables["params"], updates), **new}, state, value

    losses = []
    for step in range(steps):
        variables, state, value = train_step(variables, state, *batch(step))
        losses.append(float(value))
        if step == jump_steps[-1]:
            variables["batch_stats"] = recalibrated(variables, [batch(step + i)[0] for i in range(10)])
    return report(Run(variables["params"], losses, int(optax.tree.get(state, "jumps_taken"))))


if __name__ == "__main__":
    main()
