"""Whether an optimizer lets forecasts through: `introspect` stands where nothing changes its updates any more."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from .transform import Arrays, updates_given

# The marks are 64, 65, ... 127, and every other time twice as much: numbers that every floating dtype of 16 bits has,
# large enough to be clipped, and positive, for weights that are kept so.
_FIRST, _MANY = 64, 64

# How often to ask an optimizer that gives nothing but zeros, as with gradients that are accumulated.
_MOST_CALLS = 64


def check_order(tx: optax.GradientTransformation, params: Any, **extra_args: Any) -> None:
    """Finds out, before training, whether the weights will become their forecast at a jump.

    Runs a few updates in which every `introspect` in the optimizer gives marked numbers in place of its updates, and
    looks for them in what comes out. What changes updates only later in the training, such as a schedule that starts
    with 1, is not seen.

    Args:
      tx: an optimizer with `introspect` in it, however deep.
      params: the parameters, or their shapes (as from `jax.eval_shape`).
      **extra_args: what `update` needs besides, such as `value`.

    Raises:
      ValueError: there is no `introspect` in `tx`, or what it gives is changed by what comes after it.

    Examples:
      >>> import jax.numpy as jnp, optax, optax_introspect
      >>> params = jnp.ones(3)
      >>> optax_introspect.check_order(optax.chain(optax.sgd(0.1), optax_introspect.introspect((10,))), params)
      >>> optax_introspect.check_order(optax.chain(optax_introspect.introspect((10,)), optax.sgd(0.1)), params)
      Traceback (most recent call last):
        ...
      ValueError: introspect does not stand last: what comes after it changes 1 of the 1 arrays of updates that it gives
    """
    ones = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), params)
    state = tx.init(ones)
    rounds = 0
    for call in range(_MOST_CALLS):
        marks, updates, state = _marked_update(tx, ones, state, 1 + call % 2, extra_args)
        if not marks:
            raise ValueError("there is no introspect in tx, so that there is nothing to check")
        leaves = [leaf for leaf in jax.tree.leaves(updates) if jnp.issubdtype(leaf.dtype, jnp.inexact) and leaf.size]
        if not any(bool(jnp.any(leaf != 0)) for leaf in leaves):
            continue  # nothing is given out in this call
        changed = sum(not any(bool(jnp.all(leaf == mark)) for leaf in leaves) for mark in marks)
        if changed:
            raise ValueError(
                f"introspect does not stand last: what comes after it changes {changed} of the {len(marks)} arrays of "
                "updates that it gives"
            )
        # Twice, since an average of updates lets the first one through.
        rounds += 1
        if rounds == 2:
            return


def _marked_update(
    tx: optax.GradientTransformation, params: Any, state: Any, factor: int, extra_args: Any
) -> tuple[set[int], Any, Any]:
    marks: set[int] = set()

    def mark(weights: Arrays) -> Arrays:
        numbers = [factor * (_FIRST + i % _MANY) for i in range(len(weights))]
        marks.update(numbers)
        return [jnp.full_like(weight, number) for weight, number in zip(weights, numbers, strict=True)]

    token = updates_given.set(mark)
    try:
        updates, state = tx.update(jax.tree.map(jnp.zeros_like, params), state, params, **extra_args)
    finally:
        updates_given.reset(token)
    return marks, updates, state
