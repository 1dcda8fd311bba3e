"""How every experiment trains: its batches, one jitted step a call, and its evaluation."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import optax
from flax import nnx

from .data import Images

Params = Any
# `nnx.Rngs` of the same seed makes the initial weights of the keys from 0 on.
_DROPOUT = 1 << 30

StepFunction = Callable[[Params, Any, int], tuple[Params, Any]]


class Task:
    """A network, its start, and the batches and dropout that it is trained with: all that paired arms share.

    Everything follows from the seed and the number of the step, so that arms can branch and runs can resume anywhere.

    Args:
      network: makes the network from `rngs`; it maps `[batch, 28, 28]` and a dropout key to logits.
      images: the training and the test set.
      batch_size: examples a step; every epoch is a new permutation, and its incomplete last batch is left out.
      seed: of the initial weights, the batches and the dropout.

    Attributes:
      params: the initial weights; the first step donates them.
    """

    def __init__(self, network: Callable[..., nnx.Module], images: Images, batch_size: int, seed: int):
        self.graphdef, self.params = nnx.split(network(rngs=nnx.Rngs(seed)))
        self.images = images
        self.batch_size = batch_size
        self.seed = seed
        self._order = functools.lru_cache(maxsize=2)(self._permutation)

    def _permutation(self, epoch: int) -> npt.NDArray[np.int64]:
        return np.random.default_rng([self.seed, epoch]).permutation(len(self.images.train_labels))

    def batch(self, step: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        """Returns the images and labels of a step."""
        epoch, place = divmod(step, len(self.images.train_labels) // self.batch_size)
        chosen = self._order(epoch)[place * self.batch_size : (place + 1) * self.batch_size]
        return self.images.train_images[chosen], self.images.train_labels[chosen]

    def step_function(self, tx: optax.GradientTransformation) -> StepFunction:
        """Returns a function that makes one update, given the number of the step, in the buffers of its arguments."""
        jitted = self._jitted_update(tx)
        return lambda params, opt_state, step: jitted(params, opt_state, *self.batch(step), np.int32(step))

    def lower(self, tx: optax.GradientTransformation, params: Params, opt_state: Any) -> Any:
        """Returns the lowered form of one update, to be compiled and looked at."""
        return self._jitted_update(tx).lower(params, opt_state, *self.batch(0), np.int32(0))

    def _jitted_update(self, tx: optax.GradientTransformation) -> Any:
        def update(params: Params, opt_state: Any, images: Any, labels: Any, step: Any) -> tuple[Params, Any]:
            key = jax.random.fold_in(jax.random.key(self.seed), _DROPOUT + step)
            gradients = jax.grad(lambda p: jnp.mean(self._losses(p, images, labels, key)[0]))(params)
            updates, opt_state = tx.update(gradients, opt_state, params)
            return optax.apply_updates(params, updates), opt_state

        return jax.jit(update, donate_argnums=(0, 1))

    def evaluate(self, params: Params) -> tuple[float, float]:
        """Returns the mean cross entropy and the accuracy on the test set."""
        losses, hits = self._evaluate(params, self.images.test_images, self.images.test_labels)
        return float(np.mean(np.asarray(losses, np.float64))), float(np.mean(np.asarray(hits, np.float64)))

    def _losses(self, params: Params, images: Any, labels: Any, key: Any = None) -> tuple[jax.Array, jax.Array]:
        network: Any = nnx.merge(self.graphdef, params)
        logits = network(images.astype(jnp.float32) / 255, key)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels), jnp.argmax(logits, -1) == labels

    @functools.cached_property
    def _evaluate(self) -> Callable[..., tuple[jax.Array, jax.Array]]:
        return jax.jit(self._losses)
