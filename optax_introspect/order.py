"""Whether an optimizer lets forecasts through: `introspect` stands where nothing changes its updates any more."""

from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import optax

from .transform import Arrays, updates_given

# The marks are 64, 65, ... 127, again and again, and every other time twice as much: numbers that every floating dtype
# of 16 bits has, large enough to be clipped, and positive, for weights that are kept so.
_FIRST, _MANY = 64, 64

# How often to ask an optimizer that gives nothing but zeros, as with gradients that are accumulated.
_MOST_CALLS = 64


def check_order(tx: optax.GradientTransformation, params: Any, **extra_args: Any) -> None:
    """Finds out, before training, whether the weights will become their forecast at a jump.

    Runs a few updates in which every `introspect` in the optimizer gives marked numbers in place of its updates, and
    looks for them in what comes out. What changes updates only later in the training, such as a schedule that starts
    with 1, is not seen. Parameters and the state of the optimizer are allocated once.

    Args:
      tx: an optimizer with `introspect` in it, however deep.
      params: the parameters, or their shapes (as from `jax.eval_shape`), with shardings.
      **extra_args: what `update` needs besides, such as `value`.

    Raises:
      ValueError: what an `introspect` gives is changed by what comes after it; `tx` has none that forecasts any of
        these parameters; `tx` gives out nothing but zeros for 64 updates, so that there is nothing to see.

    Examples:
      >>> import jax.numpy as jnp, optax, optax_introspect
      >>> params = jnp.ones(3)
      >>> optax_introspect.check_order(optax.chain(optax.sgd(0.1), optax_introspect.introspect((10,))), params)
      >>> optax_introspect.check_order(optax.chain(optax_introspect.introspect((10,)), optax.sgd(0.1)), params)
      Traceback (most recent call last):
        ...
      ValueError: introspect does not stand last: what comes after it changes 1 of the 1 arrays of updates that it gives
    """
    params = jax.tree.map(_ones, params)
    state = tx.init(params)
    marks: Counter[int] = Counter()

    @jax.jit  # as one program: in a context of their own, operations one by one would be compiled anew in every call
    def update(params: Any, state: Any, factor: Any) -> tuple[Any, Any]:
        given, updates, state = _marked_update(tx, params, state, factor, extra_args)
        marks.clear()
        marks.update(given)
        leaves = [leaf for leaf in jax.tree.leaves(updates) if jnp.issubdtype(leaf.dtype, jnp.inexact) and leaf.size]
        return jnp.array([_only_number(leaf) for leaf in leaves]), state

    rounds = 0
    for call in range(_MOST_CALLS):
        factor = 1 + call % 2
        numbers, state = update(params, state, factor)
        if not marks:
            raise ValueError("there is no introspect in tx that forecasts any of these params")
        if not numbers.any():
            continue  # nothing is given out in this call
        found = Counter((numbers / factor).tolist())
        changed = sum(max(0, count - found[mark]) for mark, count in marks.items())
        if changed:
            raise ValueError(
                f"introspect does not stand last: what comes after it changes {changed} of the {marks.total()} arrays "
                "of updates that it gives"
            )
        # Twice, since an average of updates lets the first one through.
        rounds += 1
        if rounds == 2:
            return
    raise ValueError(
        f"the order cannot be checked, since tx gives out nothing but zeros in {_MOST_CALLS - rounds} of "
        f"{_MOST_CALLS} updates; check the optimizer that is wrapped in it"
    )


def _ones(leaf: Any) -> jax.Array:
    return jnp.ones(jnp.shape(leaf), jnp.result_type(leaf), device=getattr(leaf, "sharding", None))


def _only_number(array: jax.Array) -> jax.Array:
    """Returns the number that all elements are equal to, or NaN."""
    largest = jnp.max(jnp.real(array))
    return jnp.where(jnp.all(array == largest), largest, jnp.nan).astype(jnp.float32)


def _marked_update(
    tx: optax.GradientTransformation, params: Any, state: Any, factor: Any, extra_args: Any
) -> tuple[Counter[int], Any, Any]:
    """Makes one update, marked with multiples of marks; returns how often each was given, the updates, the state."""
    firsts: dict[Any, int] = {}  # the number of the first array of each introspect
    counts: dict[Any, int] = {}
    given: Arrays = []
    factors = [factor]

    def mark(updates: Arrays, weights: Arrays, introspect: Any) -> Arrays:
        first = firsts.setdefault(introspect, sum(counts.values()))  # it may be traced more than once
        marked = list(updates)
        number = first
        for i, (update, weight) in enumerate(zip(updates, weights, strict=True)):
            # What an introspect before this one has marked stays, as a jump of that one does.
            if update is None or not weight.size or any(update is array for array in given):
                continue
            marked[i] = jnp.full_like(weight, factors[0] * (_FIRST + number % _MANY))
            given.append(marked[i])
            number += 1
        counts[introspect] = number - first
        return marked

    with updates_given(mark):
        updates, state = tx.update(jax.tree.map(jnp.zeros_like, params), state, params, **extra_args)
    # JAX remembers what it has called in this context, and all that hangs from it.
    given.clear()
    factors.clear()
    numbers = [firsts[each] + i for each, count in counts.items() for i in range(count)]
    return Counter(_FIRST + number % _MANY for number in numbers), updates, state
