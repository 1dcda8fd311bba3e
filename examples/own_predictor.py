"""A predictor of your own
=======================

Records how the weights of one training move, fits a predictor to them, and uses it in another training with another
seed. Half a minute on a CPU.
"""

import argparse
import functools
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib import pyplot as plt

import optax_introspect as oi

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=2000, help="number of updates")
steps = parser.parse_args().steps
folder = Path(tempfile.mkdtemp())

# %%
# A task: two layers learn the sine of a linear map.

teacher = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32) / 3


def loss_fn(params: Any, x: jax.Array) -> jax.Array:
    """Returns the mean squared error."""
    return jnp.mean((jnp.tanh(x @ params["in"]) @ params["out"] - jnp.sin(x @ teacher)) ** 2)


def train(tx: optax.GradientTransformation, seed: int, history: oi.WeightHistory | None = None) -> list[float]:
    """Trains, records a hundred steps if there is a history, and returns the loss of each step."""

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def train_step(params: Any, state: Any, x: jax.Array) -> Any:
        loss, gradients = jax.value_and_grad(loss_fn)(params, x)
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, loss

    rng, params, losses = np.random.default_rng(seed), initial(seed), []
    state = tx.init(params)
    for step in range(steps):
        if history is not None and step % (steps // 100) == 0:
            history.append(step, params)
        params, state, loss = train_step(params, state, rng.normal(size=(64, 8)).astype(np.float32))
        losses.append(float(loss))
    return losses


def initial(seed: int) -> dict[str, jax.Array]:
    """Returns the initial weights."""
    first, second = jax.random.split(jax.random.key(seed))
    return {"in": jax.random.normal(first, (8, 256)) / 3, "out": jax.random.normal(second, (256, 4)) / 16}


# %%
# Record a training, sample examples from it, and fit. The predictor forecasts step ``1.5t`` from ``t``, ``0.7t``,
# ``0.4t`` and 0, and doesn't depend on the units of the weights.

with oi.WeightHistory.record(folder / "history", initial(0)) as history:
    train(optax.adam(1e-3), seed=0, history=history)
examples = oi.sample_examples(oi.WeightHistory.open(folder / "history"), 40_000, target=1.5, seed=0)
fitted = oi.fit(
    examples, residual=True, use_bias=False, num_steps=4000, decay_every=1000, workdir=folder / "fit", progress=False
)
for name, forecaster in {"fitted": fitted.forecaster, "shipped": oi.pretrained(), "no change": None}.items():
    print(f"{name:9s} mean absolute error {oi.mean_absolute_error(forecaster, fitted.validation):.2g}")

# %%
# Save it, load it, and use it with another seed.

oi.save(fitted.forecaster, folder / "predictor")
jump_steps = tuple(round(share * steps) for share in (0.4, 0.55, 0.7))
jumps = oi.introspect(jump_steps, oi.load(folder / "predictor"))
losses = {
    "Adam": train(optax.adam(1e-3), seed=1),
    "with jumps of the fitted predictor": train(optax.chain(optax.adam(1e-3), jumps), seed=1),
}
for name, each in losses.items():
    print(f"{name}: loss {np.mean(each[-steps // 20 :]):.5f} in the last steps")

# %%
# Right after a jump the loss may be higher. What counts is the loss some hundred steps later.

figure, axis = plt.subplots(figsize=(7, 3.6), layout="constrained")
window = max(steps // 50, 1)
for (name, each), colour in zip(losses.items(), ("black", "#0072B2"), strict=True):
    means = np.convolve(each, np.ones(window) / window, "valid")
    axis.semilogy(np.arange(len(means)) + window, means, label=name, color=colour)
for jump in jump_steps:
    axis.axvline(jump, color="0.6", linewidth=0.8, linestyle=":")
axis.set(xlabel="step (dotted: jumps)", ylabel=f"loss, mean of {window} steps")
axis.grid(alpha=0.3)
axis.legend()
figure.savefig("own_predictor.png", dpi=110)
