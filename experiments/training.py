"""How every experiment trains: its batches, one jitted step a call, and its evaluation."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

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


class Optimizer(NamedTuple):
    """How weights are trained, where what is trained is not what is evaluated.

    Attributes:
      tx: the gradient transformation.
      start: from the initial weights to the parameters of `tx`.
      trained: from these parameters to the weights that see the batches.
      evaluated: from parameters and optimizer state to the weights that are evaluated.
    """

    tx: optax.GradientTransformation
    start: Callable[[Params], Params] = lambda params: params
    trained: Callable[[Params], Params] = lambda params: params
    evaluated: Callable[[Params, Any], Params] = lambda params, opt_state: params


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

    def step_function(self, optimizer: Optimizer | optax.GradientTransformation) -> StepFunction:
        """Returns a function that makes one update, given the number of the step, in the buffers of its arguments."""
        jitted = self._jitted_update(optimizer if isinstance(optimizer, Optimizer) else Optimizer(optimizer))
        return lambda params, opt_state, step: jitted(params, opt_state, *self.batch(step), np.int32(step))

    def lower(self, tx: optax.GradientTransformation, params: Params, opt_state: Any) -> Any:
        """Returns the lowered form of one update, to be compiled and looked at."""
        return self._jitted_update(Optimizer(tx)).lower(params, opt_state, *self.batch(0), np.int32(0))

    def _jitted_update(self, optimizer: Optimizer) -> Any:
        def update(params: Params, opt_state: Any, images: Any, labels: Any, step: Any) -> tuple[Params, Any]:
            key = jax.random.fold_in(jax.random.key(self.seed), _DROPOUT + step)
            weights = optimizer.trained(params)
            gradients = jax.grad(lambda w: jnp.mean(self._losses(w, images, labels, key)[0]))(weights)
            updates, opt_state = optimizer.tx.update(gradients, opt_state, params)
            return optax.apply_updates(params, updates), opt_state

        return jax.jit(update, donate_argnums=(0, 1))

    def evaluate(self, params: Params) -> tuple[float, float]:
        """Returns the mean cross entropy and the accuracy on the test set."""
        losses, hits = self._evaluate(params, self.images.test_images, self.images.test_labels)
        return float(np.mean(np.asarray(losses, np.float64))), float(np.mean(np.asarray(hits, np.float64)))

    def logits(self, params: Params, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Returns what the network says of images `[n, 28, 28]`, float32 `[n, 10]`."""
        return np.asarray(self._jitted_logits(params, images))

    def _logits(self, params: Params, images: Any, key: Any = None) -> jax.Array:
        network: Any = nnx.merge(self.graphdef, params)
        logits: jax.Array = network(images.astype(jnp.float32) / 255, key)
        return logits

    def _losses(self, params: Params, images: Any, labels: Any, key: Any = None) -> tuple[jax.Array, jax.Array]:
        logits = self._logits(params, images, key)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels), jnp.argmax(logits, -1) == labels

    @functools.cached_property
    def _evaluate(self) -> Callable[..., tuple[jax.Array, jax.Array]]:
        return jax.jit(self._losses)

    @functools.cached_property
    def _jitted_logits(self) -> Callable[..., jax.Array]:
        return jax.jit(self._logits)
