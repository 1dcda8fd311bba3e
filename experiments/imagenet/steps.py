"""The programs of a run, compiled for all its devices: the start, one training step, the evaluation of a batch."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from ..networks import NETWORKS
from .input import normalise
from .mesh import replicated, shardings

# `nnx.Rngs` of the same seed makes the initial weights of the keys from 0 on.
_DROPOUT = 1 << 30

Batch = dict[str, jax.Array]


class TrainState(NamedTuple):
    """All that a step changes.

    Attributes:
      params: the weights.
      statistics: of batch norm.
      opt_state: of the optimizer, with the snapshots.
    """

    params: Any
    statistics: Any
    opt_state: Any


class StepResult(NamedTuple):
    """What a step tells; the same on all processes.

    Attributes:
      loss: float32, the mean over the batch.
      wishes: int32 `[n]`, the sum over the processes.
    """

    loss: jax.Array
    wishes: jax.Array


class Scores(NamedTuple):
    """Sums over the examples of a batch, or of several; the same on all processes.

    Attributes:
      loss: of the cross entropies.
      top1: of the examples whose class is the likeliest.
      top5: of those whose class is among the five likeliest.
      examples: of all.
      wishes: int32 `[n]`, the sum over the processes.
    """

    loss: Any
    top1: Any
    top5: Any
    examples: Any
    wishes: Any


class Programs:
    """What runs on the devices.

    Args:
      network: a key of `experiments.networks.NETWORKS`.
      classes: the number of classes.
      image_size: the height and width of the images.
      tx: the optimizer.
      mesh: all devices.
      seed: of the initial weights and the dropout.
      fsdp: whether weights, optimizer state and snapshots are shared among the devices.
      dtype: what the network computes in; None is float32. Weights, losses and logits are float32 anyway.
      auxiliary_weight: of the losses of auxiliary heads.

    Attributes:
      shapes: the shapes of a training state, with the shardings that it has.

    Raises:
      ValueError: smaller images than the network can take.
    """

    def __init__(
        self,
        network: str,
        classes: int,
        image_size: int,
        tx: optax.GradientTransformation,
        mesh: Mesh,
        *,
        seed: int = 0,
        fsdp: bool = False,
        dtype: Any = None,
        auxiliary_weight: float = 0.3,
    ):
        self.mesh, self.seed, self.tx, self.fsdp, self.auxiliary_weight = mesh, seed, tx, fsdp, auxiliary_weight
        self._network: Callable[[], nnx.Module] = lambda: NETWORKS[network](
            classes=classes, image_size=image_size, dtype=dtype, rngs=nnx.Rngs(seed)
        )
        variables: Any = nnx.split(nnx.eval_shape(self._network), nnx.Param, nnx.BatchStat)
        self._graphdef = variables[0]
        shapes = jax.eval_shape(self._start)
        self.shapes: TrainState = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            shapes,
            shardings(shapes, mesh, fsdp),
        )

    def start(self) -> TrainState:
        """Returns the state at step 0."""
        state: TrainState = self._jit(self._start, self._shardings)()
        return state

    @functools.cached_property
    def step(self) -> Any:
        """Maps state, batch and number of the step to state and `StepResult`, in the buffers of the old state."""
        return self._jit(self._step, (self._shardings, replicated(self.mesh)), donate_argnums=0)

    @functools.cached_property
    def evaluate(self) -> Any:
        """Maps state and batch to `Scores`."""
        return self._jit(self._evaluate, replicated(self.mesh))

    @functools.cached_property
    def is_finite(self) -> Any:
        """Maps weights and statistics to whether they are all finite."""

        def is_finite(state: tuple[Any, Any]) -> jax.Array:
            leaves = [leaf for leaf in jax.tree.leaves(state) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
            return jnp.all(jnp.array([jnp.all(jnp.isfinite(leaf)) for leaf in leaves]))

        return self._jit(is_finite, replicated(self.mesh))

    @property
    def _shardings(self) -> Any:
        return jax.tree.map(lambda leaf: leaf.sharding, self.shapes)

    def _jit(self, function: Any, out_shardings: Any, **options: Any) -> Any:
        return jax.jit(function, out_shardings=out_shardings, **options)

    def _start(self) -> TrainState:
        variables: Any = nnx.split(self._network(), nnx.Param, nnx.BatchStat)
        _, params, statistics = variables
        return TrainState(params, statistics, self.tx.init(params))

    def _outputs(self, params: Any, statistics: Any, images: Any, key: Any = None) -> tuple[list[jax.Array], Any]:
        """Returns the logits, first those that count, and the new statistics."""
        network: Any = nnx.merge(self._graphdef, params, statistics, copy=True)
        outputs = network(images, key)
        parts: Any = nnx.split(network, nnx.Param, nnx.BatchStat)
        return list(outputs) if isinstance(outputs, tuple) else [outputs], parts[2]

    def _step(self, state: TrainState, batch: Batch, number: jax.Array) -> tuple[TrainState, StepResult]:
        key = jax.random.fold_in(jax.random.key(self.seed), _DROPOUT + number)

        def loss_function(params: Any) -> tuple[jax.Array, Any]:
            if self.fsdp:
                # Whole weights and shared examples: XLA could as well share the activations, and move those.
                params = jax.lax.with_sharding_constraint(params, replicated(self.mesh))
            logits, statistics = self._outputs(params, state.statistics, normalise(batch["image"]), key)
            losses = [_mean_loss(of_head, batch) for of_head in logits]
            return losses[0] + self.auxiliary_weight * sum(losses[1:]), statistics

        (loss, statistics), gradients = jax.value_and_grad(loss_function, has_aux=True)(state.params)
        updates, opt_state = self.tx.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return TrainState(params, statistics, opt_state), StepResult(loss, jnp.sum(batch["wishes"], axis=0))

    def _evaluate(self, state: TrainState, batch: Batch) -> Scores:
        (logits, *_), _ = self._outputs(state.params, state.statistics, normalise(batch["image"]))
        weight, label = batch["weight"], batch["label"]
        _, likeliest = jax.lax.top_k(logits, min(5, logits.shape[-1]))
        hits = likeliest == label[:, None]
        return Scores(
            loss=jnp.sum(weight * _losses(logits, label)),
            top1=jnp.sum(weight * hits[:, 0]),
            top5=jnp.sum(weight * jnp.any(hits, axis=-1)),
            examples=jnp.sum(weight),
            wishes=jnp.sum(batch["wishes"], axis=0),
        )


def _losses(logits: jax.Array, label: jax.Array) -> jax.Array:
    losses: jax.Array = optax.softmax_cross_entropy_with_integer_labels(logits, label)
    return losses


def _mean_loss(logits: jax.Array, batch: Batch) -> jax.Array:
    return jnp.sum(batch["weight"] * _losses(logits, batch["label"])) / jnp.sum(batch["weight"])
