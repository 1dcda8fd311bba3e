"""Jumps of the shipped predictor
==============================

A dense network learns scikit-learn's handwritten digits with Adam: without jumps, and with three jumps of the predictor
that comes with the package. Some seconds on a CPU.
"""

import argparse
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx
from matplotlib import pyplot as plt
from sklearn.datasets import load_digits

from optax_introspect import introspect, plan

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=2000, help="number of updates")
steps = parser.parse_args().steps

# %%
# 1797 images of 8 x 8 pixels, of which 500 are held out.

images, labels = load_digits(return_X_y=True)
order = np.random.default_rng(0).permutation(len(images))
images, labels = (images[order] / 16).astype(np.float32), labels[order]

# %%
# The jumps. Three of them, far apart, with steps left after the last one. ``plan`` says what they keep.

jump_steps = tuple(round(share * steps) for share in (0.4, 0.55, 0.7))
print(plan(jump_steps))

# %%
# Training needs one line more. All the rest is the same.


def train(tx: optax.GradientTransformation) -> dict[int, float]:
    """Trains, and returns the accuracy on the held-out images at twenty steps."""
    large = nnx.initializers.normal(1.0)  # as in the paper's MNIST_3, where weights have far to go
    first, second = (nnx.Linear(*shape, kernel_init=large, rngs=nnx.Rngs(0)) for shape in ((64, 128), (128, 10)))
    model = nnx.Sequential(first, nnx.relu, second)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    @nnx.jit
    def train_step(model: nnx.Module, optimizer: nnx.Optimizer, images: Any, labels: Any) -> None:
        def loss_fn(model: Any) -> jax.Array:
            return optax.softmax_cross_entropy_with_integer_labels(model(images), labels).mean()

        optimizer.update(model, nnx.grad(loss_fn)(model))

    rng, accuracies = np.random.default_rng(0), {}
    for step in range(1, steps + 1):
        batch = rng.integers(500, len(images), size=50)
        train_step(model, optimizer, images[batch], labels[batch])
        if step % (steps // 20) == 0:
            accuracies[step] = 100 * float((model(images[:500]).argmax(-1) == labels[:500]).mean())
    return accuracies


accuracies = {
    "Adam": train(optax.adam(1e-3)),
    "with jumps": train(optax.chain(optax.adam(1e-3), introspect(jump_steps))),
}
for name, each in accuracies.items():
    print(f"{name}: {each[max(each)]:.1f} % at the end")

# %%
# One seed of a small task shows how it is done, and not how much it gains: see the results for that.

figure, axis = plt.subplots(figsize=(7, 3.6), layout="constrained")
for (name, each), colour, marker in zip(accuracies.items(), ("black", "#0072B2"), "xo", strict=True):
    axis.plot(list(each), list(each.values()), label=name, color=colour, marker=marker)
for jump in jump_steps:
    axis.axvline(jump, color="0.6", linewidth=0.8, linestyle=":")
axis.set(xlabel="step (dotted: jumps)", ylabel="held-out accuracy, %")
axis.grid(alpha=0.3)
axis.legend()
figure.savefig("digits.png", dpi=110)
