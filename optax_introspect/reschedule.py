"""Optimizer states for other jumps than they were made for: another schedule, or jumps added later."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from .arguments import integer
from .layout import Layout, by_name, described
from .missing import check_nothing_missing
from .slots import Slots, Snapshot, held_by
from .transform import IntrospectState

LARGEST_STEP = 2**31 - 1


def reschedule(
    opt_state: Any,
    params: Any,
    *,
    old: optax.GradientTransformation,
    new: optax.GradientTransformation,
    weights: Mapping[int, Any] | None = None,
    step: int | None = None,
) -> Any:
    """Carries an optimizer state over to an optimizer with other jumps.

    `new` may have other jump steps, another forecaster, snapshot dtype, memory kind or mask, an `introspect` where
    `old` has none, or none where `old` has one; all else that the two keep must be the same. Training then goes on as
    if it had had the schedule of `new` from the start, but for jumps of `new` that lie in the past: these do not happen
    any more. It is the same to the last bit, unless `opt_state` keeps snapshots in a narrower dtype than `new`: what
    was lost by that stays lost.

    A snapshot that `new` needs of a step in the past is taken from `weights` or, if it isn't there, from `opt_state`.

    Args:
      opt_state: a state of `old`, however deep its `introspect` is nested.
      params: the parameters now, as `update` gets them.
      old: the optimizer that the state is of.
      new: the optimizer to go on with.
      weights: parameters of earlier steps, as from checkpoints, by the number of updates made before them; with the
        names, shapes and dtypes of `params`. Only those that `new` needs are looked up, one at a time; `needed` of its
        :class:`optax_introspect.Plan` says which.
      step: the number of updates made so far, as `introspect` counts them; only needed where no `introspect` in
        `opt_state` has counted.

    Returns:
      A state of `new`. Arrays that did not change are those of `opt_state` itself, not copies: to donate the one uses
      up the other.

    Raises:
      ValueError: weights that `new` needs are missing (the message names their steps, and the jumps that are possible
        without them); `opt_state` is not a state of `old`; `old` and `new` differ in more than `introspect`, or neither
        has one; `step` is missing or wrong; `weights` that are not like `params`.

    Examples:
      A run without jumps gets some after a hundred updates. Its first weights are known:

      >>> import jax.numpy as jnp, optax, optax_introspect
      >>> def chain(*jump_steps):
      ...     two_point = optax_introspect.polynomial(1, 1.3, points=(1.0, 0.4, 0.0))
      ...     return optax.chain(optax.adam(1e-3), optax_introspect.introspect(jump_steps, two_point))
      >>> plain = optax.adam(1e-3)
      >>> first = params = {"w": jnp.ones(3)}
      >>> state = plain.init(params)  # and a hundred updates
      >>> state = reschedule(state, params, old=plain, new=chain(250, 400), weights={0: first}, step=100)
      >>> int(state[1].introspect_step)
      100

      The first jump is to come sooner, but too soon:

      >>> reschedule(state, params, old=chain(250, 400), new=chain(200, 400))  # doctest: +NORMALIZE_WHITESPACE
      Traceback (most recent call last):
      ValueError: after 100 updates the jump at 200 cannot be made: the weights of step 80 are missing. Give them
      as weights={step: params}, or leave the jump out: possible is jump_steps=(400,). Any jump from step 249 on is
      possible.
    """
    before, after = Layout(old, params), Layout(new, params)
    if not before.introspects and not after.introspects:
        raise ValueError("there is no introspect in old nor in new, so that there is nothing to reschedule")
    rest, states = before.take_apart(opt_state)
    before.check_same_rest(after)
    step = _checked_step(step, states)
    views = jax.jit(after.views)
    earlier = _Earlier({} if weights is None else weights, params, views)

    pairs = _paired([each.place for each in before.introspects], [each.place for each in after.introspects])
    result = []
    for number, (target, pair) in enumerate(zip(after.introspects, pairs, strict=True)):
        state = _uncaptured(step) if pair is None else states[pair]
        updates_made = int(state.introspect_step)
        held = {} if pair is None else held_by(before.introspects[pair], state, updates_made)
        shapes = {name: leaf.shape for name, leaf in by_name(target.shapes.snapshots[-1]).items()}
        needed = target.plan.needed(updates_made)
        check_nothing_missing(
            target.plan,
            updates_made,
            {
                taken: [name for name, shape in shapes.items() if _shape_of(held.get((taken, name))) != shape]
                for taken in needed
                if taken not in earlier.steps
            },
            num_leaves=len(shapes),
            place=".".join(target.place) if len(after.introspects) > 1 else "",
        )
        slots = Slots(target, by_name(views(params)[number]), held)
        for taken in needed:
            slots.fill(taken, earlier.weights(taken, number) if taken in earlier.steps else None)
        result.append(state._replace(snapshots=slots.snapshots()))
    return after.put_together(rest, result)


class _Earlier:
    """Weights of earlier steps that are given."""

    def __init__(self, weights: Mapping[int, Any], params: Any, views: Callable[[Any], list[Any]]) -> None:
        for step in weights:
            integer("every step of weights", step, 0, LARGEST_STEP)
        self.steps = weights.keys()
        self._weights, self._params, self._views = weights, params, views

    def weights(self, step: int, number: int) -> dict[str, jax.Array]:
        """Returns the weights of a step as the `introspect` of this number sees them, by name."""
        given, expected = by_name(self._weights[step]), by_name(self._params)
        for name in [*expected, *given]:
            have, want = (described(leaves[name]) if name in leaves else "nothing" for leaves in (given, expected))
            if have != want:
                raise ValueError(
                    f"weights[{step}] must be like params: at {name or 'the root'} it has {have}, not {want}"
                )
        placed = [
            # Before anything else, since they may not fit on one device.
            jax.device_put(given[name], leaf.sharding) if isinstance(leaf, jax.Array) else given[name]
            for name, leaf in expected.items()
        ]
        return by_name(self._views(jax.tree.unflatten(jax.tree.structure(self._params), placed))[number])


def _uncaptured(step: int | None) -> IntrospectState:
    if step is None:
        raise ValueError("opt_state does not tell how many updates were made before introspect is added: give step")
    return IntrospectState(jnp.asarray(step, jnp.int32), (), jnp.zeros([], jnp.int32), jnp.zeros([], jnp.int32))


def _checked_step(step: int | None, states: list[IntrospectState]) -> int | None:
    """Returns the number of updates made, if it is given or all states agree on it."""
    counts = sorted({int(state.introspect_step) for state in states})
    if step is None:
        return counts[0] if len(counts) == 1 else None
    step = integer("step", step, 0, LARGEST_STEP)
    if counts not in ([], [step]):
        raise ValueError(
            f"step is {step}, but introspect in opt_state has counted {', '.join(map(str, counts))} updates"
        )
    return step


def _paired(before: list[tuple[str, ...]], after: list[tuple[str, ...]]) -> list[int | None]:
    """Returns for every `introspect` the one that it comes from: at the same place or, if only one is left, that."""
    left = list(range(len(before)))
    result: list[int | None] = []
    for place in after:
        same = next((i for i in left if before[i] == place), None)
        result.append(same)
        left = [i for i in left if i != same]
    if len(left) == result.count(None) == 1:
        result[result.index(None)] = left[0]
    return result


def _shape_of(snapshot: Snapshot | None) -> tuple[int, ...] | None:
    return None if snapshot is None else snapshot.array.shape
