"""Batch statistics for the weights after a jump."""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

Model = TypeVar("Model", bound=nnx.Module)

_STATISTICS = nnx.All(nnx.BatchStat, lambda path, variable: jnp.issubdtype(variable.dtype, jnp.inexact))
# The first batch is passed twice, from statistics of one value and of the other. The results must agree.
_STARTS = 0.0, 1000.0


def recalibrate(model: Model, batches: Iterable[Any], forward: Callable[[Model, Any], Any] | None = None) -> None:
    r"""Replaces the running statistics of batch norms by those of the current weights, from a few batches.

    Running statistics lag behind a jump. They are replaced by

    .. math::
      \mu = \frac{1}{N} \sum_{i=1}^{N} \mu_i, \qquad \sigma^2 = \frac{1}{N} \sum_{i=1}^{N} \sigma_i^2

    where :math:`\mu_i` and :math:`\sigma_i^2` are the mean and variance of batch :math:`i`. Each of them comes from a
    forward pass in training mode with momentum 0 and without dropout. All batches count the same, so give batches of
    the size used in training. Only `nnx.BatchStat` variables change. They keep their dtype and sharding.

    With `forward=None` synchronised batch norms (`axis_name`) work as well: the pass isn't mapped, so each layer sees
    the whole batch. A `forward` of your own must bind their axis, for example with `nnx.vmap` or `jax.shard_map`.
    A layer that is used several times in a pass keeps the statistics of its last use. After an error the
    model is unchanged.

    Args:
      model: A Flax NNX module, changed in place. Layers of your own that hold `nnx.BatchStat` variables need an
        attribute `momentum`. For Flax Linen see `examples/linen_batch_norm.py`.
      batches: Batches, each an array or a tree of arrays. They are read once, one at a time.
      forward: `forward(model, batch)` makes a forward pass in training mode; its result is not used. `None` calls
        `model(batch)`. It is compiled once for each shape of batch, and again for each new function, so define it
        once for all jumps.

    Raises:
      TypeError: `model` is not an NNX module.
      ValueError: the model has no batch statistics, a pass doesn't replace some of them, or there are no batches.
      FloatingPointError: the new statistics are not finite.

    Examples:
      >>> import optax_introspect
      >>> model = nnx.Sequential(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.BatchNorm(3, rngs=nnx.Rngs(0)))
      >>> batches = [jax.random.normal(jax.random.key(i), (64, 2)) + 5.0 for i in range(10)]
      >>> optax_introspect.recalibrate(model, batches)
      >>> model.eval()
      >>> bool(jnp.max(jnp.abs(model(jnp.concatenate(batches)).mean(0))) < 1e-3)
      True

    References:
      Izmailov et al., "Averaging Weights Leads to Wider Optima and Better Generalization", UAI 2018, section 3.2.
    """
    if not isinstance(model, nnx.Module):
        raise TypeError(
            f"model must be a flax.nnx.Module; got {type(model).__name__} (examples/linen_batch_norm.py is for Linen)"
        )
    if isinstance(batches, Mapping):
        raise ValueError("batches must be an iterable of batches, such as a list; got a mapping")
    # A copy on the same arrays, so that the flags of the model itself stay as they are.
    training = nnx.with_attributes(model, deterministic=True, use_running_average=False, raise_if_not_found=False)
    norm_attributes = {"momentum": 0.0, "axis_name": None} if forward is None else {"momentum": 0.0}
    training = nnx.with_attributes(training, only=_has_statistics, raise_if_not_found=False, **norm_attributes)
    graphdef, *states = nnx.split(training, _STATISTICS, nnx.RngCount, ...)
    one_pass = functools.partial(_one_pass, graphdef, forward, *states)
    old = states[0]
    if not jax.tree.leaves(old):
        raise ValueError(f"{type(model).__name__} has no batch statistics (nnx.BatchStat) to recalibrate")

    total, count = None, 0
    for batch in batches:
        new = one_pass(batch, count, _STARTS[0])
        if total is None:
            again = one_pass(batch, count, _STARTS[1])
            _check(
                jax.tree.map(lambda a, b: jnp.all(~(jnp.abs(a - b) > 0.01 * (1 + jnp.abs(a)))), new, again),
                ValueError,
                "a forward pass with momentum 0 doesn't replace batch statistics {}: it has to use their layer in "
                "training mode, and the layer needs an attribute momentum",
            )
        total = new if total is None else jax.tree.map(jnp.add, total, new)
        count += 1
        # Otherwise many batches could wait on the device for their passes.
        jax.block_until_ready(total)
    if not count:
        raise ValueError("batches must give at least one batch; got none (an iterator gives its batches only once)")
    averages = jax.tree.map(lambda total, old: _placed_like((total / count).astype(old.dtype), old), total, old)
    _check(
        jax.tree.map(lambda average: jnp.all(jnp.isfinite(average)), averages),
        FloatingPointError,
        "the new batch statistics {} are not finite; all were left as they were",
    )
    nnx.update(model, averages)


def _has_statistics(path: Any, module: Any) -> bool:
    # Modules without statistics may use the names of the attributes for something else.
    return any(isinstance(value, nnx.BatchStat) for value in vars(module).values())


@functools.partial(jax.jit, static_argnums=(0, 1))
def _one_pass(
    graphdef: Any, forward: Any, old: Any, rng_counts: Any, rest: Any, batch: Any, number: Any, start: Any
) -> Any:
    """Returns the statistics of batch `number`, in at least float32."""
    # The old statistics may not be finite, and 0 * NaN is NaN.
    statistics = jax.tree.map(lambda x: jnp.full_like(x, start, jnp.promote_types(x.dtype, jnp.float32)), old)
    # Other random numbers for each batch.
    rng_counts = jax.tree.map(lambda x: x + 65536 * number, rng_counts)
    model = nnx.merge(graphdef, statistics, rng_counts, rest)
    _ = model(batch) if forward is None else forward(model, batch)
    return nnx.state(model, _STATISTICS)


def _check(passed: Any, error: type[Exception], message: str) -> None:
    """Raises an error that names the statistics that did not pass."""
    leaves = jax.tree.leaves_with_path(passed)
    if names := [jax.tree_util.keystr(path, simple=True, separator=".") for path, ok in leaves if not ok]:
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        raise error(message.format(", ".join(name.removesuffix(".value") for name in names[:5]) + more))


def _placed_like(value: Any, old: Any) -> Any:
    """Returns an array with the sharding of the old one, uncommitted if that was."""
    if isinstance(old, jax.Array) and old.committed:
        return jax.device_put(value, old.sharding)
    return jnp.asarray(jax.device_get(value))
