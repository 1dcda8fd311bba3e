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

import optax_introspect

from .data import AUGMENTATIONS, Images

Params = Any
# `nnx.Rngs` of the same seed makes the initial weights of the keys from 0 on.
_DROPOUT = 1 << 30

# Of the losses of auxiliary heads, in the loss that is trained on (Szegedy et al. 2014, section 5).
_AUXILIARY = 0.3
# Test images at a time, where all at once would take too much memory.
_EVALUATED = 500


class Trained(NamedTuple):
    """What a step changes.

    Attributes:
      params: what is trained.
      opt_state: of the optimizer.
      statistics: the running statistics of batch norm, empty for networks without.
    """

    params: Params
    opt_state: Any
    statistics: Any

    def saved(self) -> dict[str, Any]:
        """Returns what a checkpoint has of it, as NumPy arrays."""
        # Orbax has no place for a tree without arrays, such as the statistics of a network without batch norm.
        trees = {name: tree for name, tree in self._asdict().items() if jax.tree.leaves(tree)}
        arrays: dict[str, Any] = jax.tree.map(np.asarray, trees)
        return arrays

    def restored(self, saved: dict[str, Any]) -> "Trained":
        """Returns what a checkpoint has, in the structure of this one."""
        return self._replace(**jax.tree.map(jnp.asarray, saved))


StepFunction = Callable[[Params, Any, int], tuple[Params, Any]]
UpdateFunction = Callable[[Trained, int], Trained]


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
      network: makes the network from `rngs`; it maps images and a dropout key to logits, and in training, that is with
        a key, may return logits of auxiliary heads beside them.
      images: the training and the test set.
      batch_size: examples a step; every epoch is a new permutation, and its incomplete last batch is left out.
      seed: of the initial weights, the batches and the dropout.
      augmentation: what is done to the images of a batch, a key of `experiments.data.AUGMENTATIONS`; by default they
        are only scaled to [0, 1].

    Attributes:
      params: the initial weights; the first step donates them.
      statistics: the initial statistics of batch norm; empty for networks without.
    """

    def __init__(
        self,
        network: Callable[..., nnx.Module],
        images: Images,
        batch_size: int,
        seed: int,
        augmentation: str | None = None,
    ):
        parts: Any = nnx.split(network(rngs=nnx.Rngs(seed)), nnx.Param, ...)
        self.graphdef, self.params, self.statistics = parts
        self.images = images
        self.batch_size = batch_size
        self.seed = seed
        self.augmentation = None if augmentation is None else AUGMENTATIONS[augmentation]
        self._batches = None if self.augmentation is None else self.augmentation.batches(images, batch_size, seed)
        self._order = functools.lru_cache(maxsize=2)(self._permutation)

    def _permutation(self, epoch: int) -> npt.NDArray[np.int64]:
        return np.random.default_rng([self.seed, epoch]).permutation(len(self.images.train_labels))

    def batch(self, step: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        """Returns the images and labels of a step."""
        if self._batches is not None:
            images, labels = self._batches[step]
            return images, labels
        epoch, place = divmod(step, len(self.images.train_labels) // self.batch_size)
        chosen = self._order(epoch)[place * self.batch_size : (place + 1) * self.batch_size]
        return self.images.train_images[chosen], self.images.train_labels[chosen]

    def update_function(self, optimizer: Optimizer) -> UpdateFunction:
        """Returns a function that makes one update, given the number of the step, in the buffers that it is given."""
        jitted = self._jitted_update(optimizer)
        return lambda trained, step: Trained(*jitted(*trained, *self.batch(step), np.int32(step)))

    def step_function(self, optimizer: Optimizer | optax.GradientTransformation) -> StepFunction:
        """Returns `update_function` for a network without statistics, from and to parameters and optimizer state."""
        update = self.update_function(optimizer if isinstance(optimizer, Optimizer) else Optimizer(optimizer))
        return lambda params, opt_state, step: update(Trained(params, opt_state, self.statistics), step)[:2]

    def lower(self, tx: optax.GradientTransformation, params: Params, opt_state: Any) -> Any:
        """Returns the lowered form of one update, to be compiled and looked at."""
        jitted = self._jitted_update(Optimizer(tx))
        return jitted.lower(params, opt_state, self.statistics, *self.batch(0), np.int32(0))

    def _jitted_update(self, optimizer: Optimizer) -> Any:
        def update(
            params: Params, opt_state: Any, statistics: Any, images: Any, labels: Any, step: Any
        ) -> tuple[Params, Any, Any]:
            key = jax.random.fold_in(jax.random.key(self.seed), _DROPOUT + step)

            def loss(weights: Params) -> tuple[jax.Array, Any]:
                (logits, *auxiliary), new = self._outputs(weights, statistics, images, key)
                total = jnp.mean(_cross_entropy(logits, labels))
                for other in auxiliary:
                    total += _AUXILIARY * jnp.mean(_cross_entropy(other, labels))
                return total, new

            gradients, statistics = jax.grad(loss, has_aux=True)(optimizer.trained(params))
            updates, opt_state = optimizer.tx.update(gradients, opt_state, params)
            return optax.apply_updates(params, updates), opt_state, statistics

        return jax.jit(update, donate_argnums=(0, 1, 2))

    def recalibrated(self, params: Params, step: int, batches: int = 10) -> Any:
        """Returns the statistics of batch norm that weights have on the training batches that follow a step."""
        network = nnx.merge(self.graphdef, params, self.statistics, copy=True)  # lest these change
        inputs = (self.batch(step + i)[0] for i in range(batches))
        optax_introspect.recalibrate(network, inputs, self._training_pass)
        return nnx.state(network, nnx.Not(nnx.Param))

    def _training_pass(self, network: Any, images: Any) -> Any:
        return network(self._prepared(images), jax.random.key(0))

    def evaluate(self, params: Params) -> tuple[float, float]:
        """Returns the mean cross entropy and the accuracy on the test set."""
        losses, hits = self._evaluate(params, self.images.test_images, self.images.test_labels)
        return float(np.mean(np.asarray(losses, np.float64))), float(np.mean(np.asarray(hits, np.float64)))

    def logits(self, params: Params, images: npt.NDArray[np.uint8], statistics: Any = None) -> npt.NDArray[np.float32]:
        """Returns what the network says of images as they are in the data, float32 `[n, classes]`."""
        statistics = self.statistics if statistics is None else statistics
        if self.augmentation is None:
            return np.asarray(self._jitted_logits(params, statistics, images))
        images = self.augmentation.evaluated(images)
        parts = (images[i : i + _EVALUATED] for i in range(0, len(images), _EVALUATED))
        return np.concatenate([np.asarray(self._jitted_logits(params, statistics, part)) for part in parts])

    def _prepared(self, images: Any) -> Any:
        return images.astype(jnp.float32) / 255 if self.augmentation is None else self.augmentation.prepared(images)

    def _outputs(
        self, params: Params, statistics: Any, images: Any, key: Any = None
    ) -> tuple[tuple[jax.Array, ...], Any]:
        """Returns the logits, then those of auxiliary heads, and the statistics after this pass."""
        # Copied, since a pass may not change variables of another level of tracing.
        network: Any = nnx.merge(self.graphdef, params, statistics, copy=True)
        outputs = network(self._prepared(images), key)
        return outputs if isinstance(outputs, tuple) else (outputs,), nnx.state(network, nnx.Not(nnx.Param))

    def _logits(self, params: Params, statistics: Any, images: Any) -> jax.Array:
        (logits,), _ = self._outputs(params, statistics, images)
        return logits

    def _losses(self, params: Params, images: Any, labels: Any) -> tuple[jax.Array, jax.Array]:
        logits = self._logits(params, self.statistics, images)
        return _cross_entropy(logits, labels), jnp.argmax(logits, -1) == labels

    @functools.cached_property
    def _evaluate(self) -> Callable[..., tuple[jax.Array, jax.Array]]:
        return jax.jit(self._losses)

    @functools.cached_property
    def _jitted_logits(self) -> Callable[..., jax.Array]:
        return jax.jit(self._logits)


def _cross_entropy(logits: jax.Array, labels: Any) -> jax.Array:
    losses: jax.Array = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return losses
