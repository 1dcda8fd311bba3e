"""A Flax NNX module with `nnx.Optimizer`."""

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import optax_introspect
from examples.problem import JUMP_STEPS, Run, batch, report


class Network(nnx.Module):
    """Two dense layers."""

    def __init__(self, rngs: nnx.Rngs):
        self.first = nnx.Linear(8, 64, rngs=rngs)
        self.second = nnx.Linear(64, 4, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps inputs to outputs."""
        return self.second(nnx.tanh(self.first(x)))


def main(steps: int = 600, jump_steps: tuple[int, ...] = JUMP_STEPS) -> Run:
    """Trains."""
    model = Network(nnx.Rngs(0))
    tx = optax.chain(optax.adam(3e-3), optax_introspect.introspect(jump_steps))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    @nnx.jit
    def train_step(model: Network, optimizer: nnx.Optimizer, x: jax.Array, y: jax.Array) -> jax.Array:
        value, gradients = nnx.value_and_grad(lambda model: jnp.mean((model(x) - y) ** 2))(model)
        optimizer.update(model, gradients)
        return value

    losses = [float(train_step(model, optimizer, *batch(step))) for step in range(steps)]
    jumps = int(optimizer.opt_state[-1].jumps_taken[...])
    return report(Run(nnx.state(model, nnx.Param), losses, jumps))


if __name__ == "__main__":
    main()
