"""A language model and its text: the task that trainings of it share."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import lax

from .data.text import Sequences, Text
from .networks.language import LanguageModel
from .optimizers import Optimizer
from .training import BLOCK, State, Trained

CONTEXT, BLOCKS = 128, 2
# Of nearly all trainings.
WIDTH, BATCH_SIZE = 64, 8
# Held-out bytes that are evaluated, and sequences of them at a time.
EVALUATED, AT_A_TIME = 1 << 16, 64


class TextTask:
    """A language model, its start and its text.

    Args:
      text: the text.
      seed: seed of the initial weights and of the order of the text.
      width: width of the model.
      batch_size: sequences in a step.
    """

    in_blocks = True

    def __init__(self, text: Text, seed: int, width: int, batch_size: int):
        model = LanguageModel(width, BLOCKS, context=CONTEXT, rngs=nnx.Rngs(seed))
        parts: Any = nnx.split(model)
        self.graphdef, self.params = parts
        self.sequences = Sequences(text.train, batch_size, CONTEXT, seed)
        held_out = Sequences(text.validation, 1, CONTEXT, None)
        self.text, self._validation = jnp.asarray(text.train.ravel()), jnp.asarray(text.validation.ravel())
        self._evaluated = held_out.starts[: EVALUATED // CONTEXT]
        self._loss = jax.jit(self._mean_loss)

    def start(self, optimizer: Optimizer) -> State:
        """Returns the state at step 0."""
        params = jax.tree.map(jnp.copy, self.params)
        return State(Trained(params, jax.jit(optimizer.tx.init)(params), {}))

    def stepper(self, optimizer: Optimizer) -> Callable[[Trained, int, int], Trained]:
        """Returns the function that makes the steps from one number to another, in the buffers that it is given."""

        @functools.partial(jax.jit, donate_argnums=0)
        def block(trained: Trained, text: Any, starts: Any, count: Any) -> Trained:
            result: Trained = lax.fori_loop(
                0, count, lambda i, trained: self.update(optimizer.tx, trained, text, starts[i]), trained
            )
            return result

        def blocks(trained: Trained, start: int, end: int) -> Trained:
            for first in range(start, end, BLOCK):
                count = min(BLOCK, end - first)
                starts = np.zeros((BLOCK, self.sequences.batch_size), np.int32)
                starts[:count] = [self.sequences.batch(first + i) for i in range(count)]
                trained = block(trained, self.text, starts, np.int32(count))
            return trained

        return blocks

    def update(self, tx: optax.GradientTransformation, trained: Trained, text: Any, starts: Any) -> Trained:
        """Makes one update, with the sequences of a text that begin at `starts`."""
        gradients = jax.grad(self._mean_loss)(trained.params, text, starts)
        updates, opt_state = tx.update(gradients, trained.opt_state, trained.params)
        return Trained(optax.apply_updates(trained.params, updates), opt_state, trained.statistics)

    def validation_loss(self, params: Any) -> float:
        """Returns the mean loss on held-out text, in nats a byte."""
        parts = np.split(self._evaluated, range(AT_A_TIME, len(self._evaluated), AT_A_TIME))
        losses = [float(self._loss(params, self._validation, part)) for part in parts]
        return float(np.average(losses, weights=[len(part) for part in parts]))

    def _mean_loss(self, params: Any, text: Any, starts: Any) -> jax.Array:
        sequences = text[starts[:, None] + np.arange(CONTEXT + 1)].astype(jnp.int32)
        model: Any = nnx.merge(self.graphdef, params)
        losses = optax.softmax_cross_entropy_with_integer_labels(model(sequences[:, :-1]), sequences[:, 1:])
        return jnp.mean(losses)
