"""A language model with jumps at even intervals
=============================================

A small transformer learns the sources of Python's standard library, byte by byte: with AdamW, with lookahead every 5
steps on top of it, and with outer Nesterov momentum every 20. Two minutes on two CPU cores.
"""

import argparse
import os
from pathlib import Path

import jax
import numpy as np
import optax
from flax import nnx
from matplotlib import pyplot as plt

from optax_introspect import introspect, lookahead, nesterov

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=700, help="number of updates")
steps = parser.parse_args().steps

# %%
# The text, of which the end is held out, and a transformer over bytes. It tells positions by the causal mask alone.
text = np.frombuffer(b"".join(path.read_bytes() for path in sorted(Path(os.__file__).parent.glob("*.py"))), np.uint8)
text, held_out = text[: -(1 << 16)], text[-(1 << 16) :].reshape(-1, 128).astype(np.int32)


class Block(nnx.Module):
    """Causal attention and a perceptron."""

    def __init__(self, rngs: nnx.Rngs):
        self.attention = nnx.MultiHeadAttention(2, 64, decode=False, rngs=rngs)
        self.up, self.down = nnx.Linear(64, 256, rngs=rngs), nnx.Linear(256, 64, rngs=rngs)
        self.norms = nnx.List(nnx.RMSNorm(64, rngs=rngs) for _ in range(2))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[batch, length, 64]` to the same."""
        x = x + self.attention(self.norms[0](x), mask=nnx.make_causal_mask(x[..., 0]))
        return x + self.down(nnx.relu(self.up(self.norms[1](x))) ** 2)


@nnx.jit
def loss_fn(model: nnx.Sequential, sequences: jax.Array) -> jax.Array:
    """Returns the mean loss in nats a byte."""
    logits = model(sequences[:, :-1])
    return optax.softmax_cross_entropy_with_integer_labels(logits, sequences[:, 1:]).mean()


@nnx.jit
def train_step(model: nnx.Sequential, optimizer: nnx.Optimizer, sequences: jax.Array) -> None:
    """Updates the model."""
    optimizer.update(model, nnx.grad(loss_fn)(model, sequences))


def train(tx: optax.GradientTransformation) -> dict[int, float]:
    """Trains, and returns the loss on the held-out text at ten steps; all ways see the same batches."""
    rngs, rng, losses = nnx.Rngs(0), np.random.default_rng(0), {}
    ends = nnx.Embed(256, 64, rngs=rngs), nnx.RMSNorm(64, rngs=rngs), nnx.Linear(64, 256, rngs=rngs)
    model = nnx.Sequential(ends[0], Block(rngs), Block(rngs), *ends[1:])
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    for step in range(1, steps + 1):
        starts = rng.integers(len(text) - 128, size=(8, 1))
        train_step(model, optimizer, text[starts + np.arange(129)].astype(np.int32))
        if step % (steps // 10) == 0:
            losses[step] = float(loss_fn(model, held_out))
    return losses


# %%
# One line more in the chain. Lookahead goes half of the way back, so its learning rate is twice as large. Outer
# momentum takes longer steps, so its rate is half as large.
def adamw(rate: float) -> optax.GradientTransformation:
    """Returns AdamW with warmup and cosine decay to zero."""
    schedule = optax.warmup_cosine_decay_schedule(0, rate, steps // 20, steps)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.99, weight_decay=0.1))


optimizers = {
    "AdamW": adamw(8e-3),
    "lookahead": optax.chain(adamw(16e-3), introspect(range(4, steps, 5), lookahead(5))),
    "nesterov": optax.chain(adamw(4e-3), introspect(range(19, steps, 20), nesterov(20))),
}
losses = {name: train(tx) for name, tx in optimizers.items()}
print("step  ", *losses)
for step in losses["AdamW"]:
    print(f"{step:5d}", *(f"{each[step]:{len(name)}.3f}" for name, each in losses.items()))

# %%
# One seed of a short training shows little. Over several seeds and tuned learning rates lookahead ended ahead of AdamW,
# and outer momentum behind it or level: see the results.
figure, axis = plt.subplots(figsize=(7, 3.6), layout="constrained")
for (name, each), colour, marker in zip(losses.items(), ("black", "#0072B2", "#D55E00"), "xos", strict=True):
    axis.plot(list(each), list(each.values()), label=name, color=colour, marker=marker)
axis.set(xlabel="step", ylabel="held-out loss, nats a byte")
axis.grid(alpha=0.3)
axis.legend()
figure.savefig("language_model.png", dpi=110)
