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
parser.add_argument("--steps", type=int, default=800, help="number of updates")
steps = parser.parse_args().steps

# %%
# The text, of which the end is held out, and a transformer over bytes.

text = np.frombuffer(b"".join(path.read_bytes() for path in sorted(Path(os.__file__).parent.glob("*.py"))), np.uint8)
text, held_out = text[: -(1 << 16)], text[-(1 << 16) :].reshape(-1, 128)


class Transformer(nnx.Module):
    """Decoder-only transformer over bytes."""

    def __init__(self, rngs: nnx.Rngs, width: int = 64, blocks: int = 2, length: int = 128):
        self.embedding = nnx.Embed(256, width, embedding_init=nnx.initializers.normal(0.02), rngs=rngs)
        self.positions = nnx.Param(0.02 * rngs.params.normal((length, width)))
        self.attentions = nnx.List(nnx.MultiHeadAttention(2, width, decode=False, rngs=rngs) for _ in range(blocks))
        self.ups = nnx.List(nnx.Linear(width, 4 * width, rngs=rngs) for _ in range(blocks))
        self.downs = nnx.List(nnx.Linear(4 * width, width, rngs=rngs) for _ in range(blocks))
        self.norms = nnx.List(nnx.RMSNorm(width, rngs=rngs) for _ in range(2 * blocks + 1))

    def __call__(self, text: jax.Array) -> jax.Array:
        """Maps bytes `[batch, length]` to logits of the next ones, `[batch, length, 256]`."""
        x, mask = self.embedding(text) + self.positions[: text.shape[1]], nnx.make_causal_mask(text)
        norms = iter(self.norms)
        for attention, up, down in zip(self.attentions, self.ups, self.downs, strict=True):
            x = x + attention(next(norms)(x), mask=mask)
            x = x + down(nnx.relu(up(next(norms)(x))) ** 2)
        return self.embedding.attend(next(norms)(x))


@nnx.jit
def loss_fn(model: Transformer, sequences: jax.Array) -> jax.Array:
    """Returns the mean loss in nats a byte."""
    logits = model(sequences[:, :-1])
    return optax.softmax_cross_entropy_with_integer_labels(logits, sequences[:, 1:]).mean()


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


def train(tx: optax.GradientTransformation) -> dict[int, float]:
    """Trains, and returns the loss on the held-out text at ten steps; all ways see the same batches."""
    model = Transformer(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    @nnx.jit
    def train_step(model: Transformer, optimizer: nnx.Optimizer, sequences: jax.Array) -> None:
        optimizer.update(model, nnx.grad(loss_fn)(model, sequences))

    rng, losses = np.random.default_rng(0), {}
    for step in range(1, steps + 1):
        starts = rng.integers(len(text) - 128, size=(8, 1))
        train_step(model, optimizer, text[starts + np.arange(129)].astype(np.int32))
        if step % (steps // 10) == 0:
            losses[step] = float(loss_fn(model, held_out.astype(np.int32)))
    return losses


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
