"""The gradient transformation that replaces the weights by their forecast at jump steps."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from .checkpoint import pretrained
from .forecast import Forecaster, checked_forecaster, forecast_array, forecaster_of_arrays
from .plan import Plan, plan
from .snapshots import (
    as_snapshot,
    check_host_memory,
    checked_memory_kind,
    checked_snapshot_dtype,
    dtype_of_snapshot,
    empty_snapshot,
    forecast_leaves,
    from_snapshot,
    is_difference,
    promoted,
    to_device,
    to_host,
)

Arrays = list[jax.Array]


# The three contexts below are JAX's, which traces what was compiled outside of them anew.

# Whether `update` leaves everything as it is, which `cost` compares with.
left_out = jax.make_user_context(False)

# What gives updates in place of those that `update` is called with, for `check_order`: a function of them, of the
# weights, and of something that tells one `introspect` of an optimizer from another.
updates_given = jax.make_user_context(None)


class IntrospectState(NamedTuple):
    """State of :func:`introspect`.

    Attributes:
      introspect_step: int32, updates made so far.
      snapshots: `Plan.num_buffers` trees of the structure of the parameters, one for each slot. In place of leaves that
        are not forecast stands `optax.MaskedNode()`. In a dtype narrower than that of the weights, and with `w_0` among
        them, the others are differences to it.
      jumps_taken: int32, jumps made so far.
      jumps_refused: int32, jumps not made because a forecast was not finite.
    """

    introspect_step: jax.Array
    snapshots: tuple[optax.Params, ...]
    jumps_taken: jax.Array
    jumps_refused: jax.Array


class Initialised(NamedTuple):
    """What the `init` of one :func:`introspect` has made, and of what.

    Attributes:
      plan: its plan.
      params: the parameters as this one sees them, which a mask or a partition around it may have made fewer.
      slots_on_host: the slots that are kept in the memory of the host.
      state: the state.
    """

    plan: Plan
    params: optax.Params
    slots_on_host: range
    state: IntrospectState


# Told by every `init` what it has made: nobody else can tell which transformations a chain is made of.
on_init = jax.make_user_context(None)


def introspect(
    jump_steps: Sequence[int],
    forecaster: Forecaster | None = None,
    *,
    snapshot_dtype: Any = None,
    memory_kind: str | None = None,
    mask: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Replaces every weight by its forecast at a few steps; goes last in a chain.

    With :math:`w_n` the weights after :math:`n` updates, :math:`u_n` the updates of the transformations before this
    one and :math:`F` the forecaster,

    .. math::
      w_{n+1} = \begin{cases}
        F(w_t, w_{0.7t}, w_{0.4t}, w_0) & n = t \text{ is a jump step and the forecast is finite everywhere} \\
        w_n + u_n & \text{otherwise}
      \end{cases}

    The transformations before it see every gradient, also that of a jump step. What it costs in memory can be asked
    beforehand of :func:`optax_introspect.plan`; a step between jumps reads one slot, and has more arrays to hand over.

    Floating leaves are forecast in float32 and complex ones as two reals; all others are left alone.

    Args:
      jump_steps: increasing positive integers.
      forecaster: what forecasts; `None` is :func:`optax_introspect.pretrained`.
      snapshot_dtype: floating dtype in which snapshots of real weights are kept; `None` is each weight's own. In a
        narrower one, differences to `w_0` are kept where `w_0` is, with about an eighth of the error that the weights
        themselves would have.
      memory_kind: `"pinned_host"` keeps all snapshots but one in the memory of the host; only captures and jumps then
        move them. `None` keeps them beside the parameters.
      mask: which leaves to forecast: a tree of booleans with the structure of the parameters, where one boolean may
        stand for a whole subtree, or a function from the parameters to such a tree. Others are trained as ever, and no
        snapshots are kept of them. `None` forecasts all.

    Returns:
      The transformation. Its `update` needs `params`.

    Raises:
      ValueError: jump steps, points or a forecaster that cannot be used (see :func:`optax_introspect.plan`), a
        `snapshot_dtype` that is not floating, an unknown `memory_kind`; from `init`: a mask that doesn't fit, a
        `memory_kind` that the devices don't have; from `update`: no `params`, or `params` of another structure or
        other shapes than at `init`.
      TypeError: a forecaster that is none.

    Examples:
      >>> import jax, jax.numpy as jnp, optax, optax_introspect
      >>> two_point = optax_introspect.polynomial(1, 1.3, points=(1.0, 0.4))
      >>> tx = optax.chain(optax.sgd(0.1), optax_introspect.introspect((10,), two_point))
      >>> params = jnp.array([3.0, -4.0])
      >>> state = tx.init(params)
      >>> for step in range(12):
      ...     gradient = jax.grad(lambda w: jnp.sum(w**2) / 2)(params)
      ...     updates, state = tx.update(gradient, state, params)
      ...     before, params = params, optax.apply_updates(params, updates)
      ...     print(step, (params / before).round(2)) if step >= 9 else None
      9 [0.9 0.9]
      10 [0.56 0.56]
      11 [0.9 0.9]

    References:
      Sinha et al., "Introspection: Accelerating Neural Network Training by Learning Weight Evolution", ICLR 2017.
    """
    forecast_with = pretrained() if forecaster is None else checked_forecaster(forecaster)
    schedule = plan(jump_steps, forecast_with.points)
    snapshot_dtype = checked_snapshot_dtype(snapshot_dtype)
    # The last slot stays on the device, since the choice of the update reads it in every step.
    slots_on_host = range(0 if checked_memory_kind(memory_kind) is None else schedule.num_buffers - 1)
    advance = jax.jit(_advance_function(schedule, forecast_with, slots_on_host))

    def init_fn(params: optax.Params) -> IntrospectState:
        leaves, treedef = jax.tree.flatten(params)
        here = forecast_leaves(params, mask)
        if memory_kind is not None:
            check_host_memory([leaf for leaf, kept in zip(leaves, here, strict=True) if kept])

        def slot(number: int) -> optax.Params:
            def empty(leaf: Any) -> jax.Array:
                zeros = empty_snapshot(leaf, dtype_of_snapshot(jnp.result_type(leaf), snapshot_dtype))
                return to_host(zeros) if number in slots_on_host else zeros

            arrays = [empty(leaf) if kept else optax.MaskedNode() for leaf, kept in zip(leaves, here, strict=True)]
            return jax.tree.unflatten(treedef, arrays)

        state = IntrospectState(
            introspect_step=jnp.zeros([], jnp.int32),
            snapshots=tuple(slot(number) for number in range(schedule.num_buffers)),
            jumps_taken=jnp.zeros([], jnp.int32),
            jumps_refused=jnp.zeros([], jnp.int32),
        )
        if (tell := on_init.value) is not None:
            tell(Initialised(schedule, params, slots_on_host, state))
        return state

    def update_fn(
        updates: optax.Updates, state: IntrospectState, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Updates, IntrospectState]:
        del extra_args
        if left_out.value:
            return updates, state
        if params is None:
            raise ValueError("introspect forecasts the weights, and so needs them: call update(updates, state, params)")
        treedef: Any
        kept_treedef: Any
        leaves, treedef = jax.tree.flatten(params)
        forecast_here = forecast_leaves(params, mask)
        masked = [leaf if here else optax.MaskedNode() for leaf, here in zip(leaves, forecast_here, strict=True)]
        kept, kept_treedef = jax.tree.flatten(treedef.unflatten(masked))
        _check_same_tree(treedef.unflatten(masked), state.snapshots[-1], snapshot_dtype)
        # An update may be None, or of dtype float0, where its parameter is not trained.
        all_updates = treedef.flatten_up_to(updates)
        own_updates = [u for u, here in zip(all_updates, forecast_here, strict=True) if here]

        buffers = [jax.tree.leaves(tree) for tree in state.snapshots]
        if (give := updates_given.value) is not None:
            own_updates, outcome = give(own_updates, kept, (advance, kept_treedef)), _NO_JUMP
        else:
            own_updates, buffers, outcome = advance(own_updates, buffers, kept, state.introspect_step)

        chosen = iter(own_updates)
        all_updates = [next(chosen) if here else u for u, here in zip(all_updates, forecast_here, strict=True)]
        return treedef.unflatten(all_updates), IntrospectState(
            introspect_step=optax.safe_increment(state.introspect_step),
            snapshots=tuple(kept_treedef.unflatten(buffer) for buffer in buffers),
            jumps_taken=state.jumps_taken + (outcome == _TAKEN).astype(jnp.int32),
            jumps_refused=state.jumps_refused + (outcome == _REFUSED).astype(jnp.int32),
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


_NO_JUMP, _TAKEN, _REFUSED = np.arange(3, dtype=np.int32)


def _advance_function(schedule: Plan, forecaster: Forecaster, slots_on_host: range) -> Any:
    """Returns the function that does what one step asks for, on the leaves that are forecast.

    An idle step must cost nothing, though nearly all steps are idle. So weights are written only under conditionals
    that leave a slot as it is, which XLA does in place, and read nothing but parameters and slots. A jump writes
    *forecast less weight* into the last slot, which the plan keeps free for that, and the choice between it and the
    update is fused into whatever comes after.

    XLA writes in place only where data dependencies put all reads of a buffer before the write; otherwise it copies
    slots and parameters in every step (1.7 times the step time of Adam at 11 M weights). The captures come first, and
    write the slots that the jump then reads, whose outcome the choice of the update waits for: a chain by itself.
    A capture that takes over a slot in the very step in which a jump reads it must come later. Two numbers put it into
    the chain: `outcome`, from the jump to such captures, and `order`, from these to the choice.
    With all captures there, SGD would take 1.3 times the step time, since XLA then keeps all gradients until the end.
    """
    jump_steps = np.array(schedule.jump_steps, np.int32)
    jump_slots = np.array([jump.slots for jump in schedule.jumps], np.int32)  # [jumps, points - 1]
    capture_steps = [
        np.array([capture.step for capture in schedule.captures if capture.slot == slot], np.int32)
        for slot in range(schedule.num_buffers)
    ]

    # With a point 0, `w_0` is there whenever another snapshot is.
    has_first = schedule.points[-1] == 0
    first_slot = next((capture.slot for capture in schedule.captures if capture.step == 0), 0)

    def on_device(slot: int, array: jax.Array) -> jax.Array:
        return to_device(array) if slot in slots_on_host else array

    def in_slot(slot: int, array: jax.Array) -> jax.Array:
        return to_host(array) if slot in slots_on_host else array

    late_slots = {
        capture.slot
        for capture in schedule.captures
        for jump in schedule.jumps
        if jump.step == capture.step and capture.slot in jump.slots
    }

    def displacement(
        evaluate: Forecaster, slots_of_array: Arrays, weight: jax.Array, numbers: jax.Array, key: jax.Array
    ) -> jax.Array:
        slots_of_array = [on_device(slot, array) for slot, array in enumerate(slots_of_array)]
        as_differences = has_first and is_difference(weight, slots_of_array[-1].dtype)
        points = [weight]
        for j, fraction in enumerate(schedule.points[1:]):
            # One kernel serves all jumps: it picks the slot by number, from those that this point is ever in.
            candidates = np.unique(jump_slots[:, j])
            point = slots_of_array[candidates[0]]
            for slot in candidates[1:]:
                point = jnp.where(numbers[j] == slot, slots_of_array[slot], point)
            first = slots_of_array[first_slot] if as_differences and fraction > 0 else None
            points.append(from_snapshot(point, weight, first))
        forecast = forecast_array(evaluate, points, key)
        wide = promoted(weight.dtype, jnp.float32)
        return (forecast.astype(wide) - weight.astype(wide)).astype(slots_of_array[-1].dtype)

    def displacements(last: Arrays, others: list[Arrays], params: Arrays, step: jax.Array) -> Arrays:
        numbers = jnp.asarray(jump_slots)[jnp.argmax(step == jump_steps)]
        key = jax.random.fold_in(jax.random.key(0), step)
        slots = [list(arrays) for arrays in zip(*others, last, strict=True)]
        forms = forecaster_of_arrays(forecaster, params)
        # Traced once for all arrays of one shape and form.
        traced = {id(form): jax.jit(functools.partial(displacement, form)) for form in forms}
        result = []
        for i, form in enumerate(forms):
            this = traced[id(form)]
            operands = slots[i], params[i], numbers, jax.random.fold_in(key, i)
            # In a branch of its own, always taken, lest arrays of one shape share the constants of the network: XLA
            # would write each down for all weights and units of the array, and take twice as long to compile.
            result.append(_written_if(step >= 0, lambda _, *x, this=this: this(*x), last[i], *operands))
        return result

    def capture(
        slot: int, buffers: list[Arrays], params: Arrays, step: jax.Array, outcome: Any, order: jax.Array
    ) -> tuple[Arrays, jax.Array]:
        if not capture_steps[slot].size:
            return buffers[slot], order

        firsts: list[Any] = [None] * len(params)
        if has_first and first_slot != slot:
            pairs = zip(buffers[first_slot], params, strict=True)
            firsts = [first if is_difference(weight, first.dtype) else None for first, weight in pairs]

        def write(kept: tuple[Arrays, jax.Array], params: Arrays, firsts: list[Any]) -> tuple[Arrays, jax.Array]:
            snapshots = [
                in_slot(slot, as_snapshot(weight, old.dtype, first if first is None else on_device(first_slot, first)))
                for old, weight, first in zip(kept[0], params, firsts, strict=True)
            ]
            return snapshots, kept[1] + 1

        is_now = jnp.any(step == capture_steps[slot]) & (outcome <= _REFUSED)  # the latter is always true
        written: tuple[Arrays, jax.Array] = _written_if(is_now, write, (buffers[slot], order), params, firsts)
        return written

    def advance(
        updates: Arrays, buffers: list[Arrays], params: Arrays, step: jax.Array
    ) -> tuple[Arrays, list[Arrays], jax.Array]:
        buffers, order = list(buffers), step
        for slot in range(schedule.num_buffers):
            if slot not in late_slots:
                buffers[slot], _ = capture(slot, buffers, params, step, _NO_JUMP, order)
        is_jump = jnp.any(step == jump_steps)
        buffers[-1] = _written_if(is_jump, displacements, buffers[-1], buffers[:-1], params, step)
        # Updates narrower than their weights would miss the forecast.
        dtypes = [w.dtype if u is None else promoted(u.dtype, w.dtype) for u, w in zip(updates, params, strict=True)]
        # A conditional of its own, lest XLA compute the forecasts once more for the check.
        outcome = lax.cond(
            is_jump,
            lambda b, p: jnp.where(_all_finite(b, p, dtypes), _TAKEN, _REFUSED),
            lambda b, p: jnp.asarray(_NO_JUMP),
            buffers[-1],
            params,
        )
        for slot in late_slots:
            buffers[slot], order = capture(slot, buffers, params, step, outcome, order)
        jumps = (outcome == _TAKEN) & (order >= 0)  # the latter is always true
        chosen = [
            None if u is None else jnp.where(jumps, d.astype(dtype), u.astype(dtype))
            for u, d, dtype in zip(updates, buffers[-1], dtypes, strict=True)
        ]
        return chosen, buffers, outcome

    return advance


def _written_if(condition: jax.Array, write: Callable[..., Any], kept: Any, *operands: Any) -> Any:
    """Returns `write(kept, *operands)` if the condition holds, else `kept`: in place, and at no cost.

    As a choice between branches by number, the first of which does nothing. As a conditional on a truth value XLA
    would copy `kept` whenever nothing is written: on a GPU as `lax.cond(condition, write, nothing)`, on a CPU (jaxlib
    0.10: 3.4 times the step time at 11 M weights) as `lax.cond(~condition, nothing, write)`.
    """
    return lax.switch(condition.astype(jnp.int32), [lambda kept, *_: kept, write], kept, *operands)


def _all_finite(displacements: Arrays, params: Arrays, dtypes: list[Any]) -> jax.Array:
    # Of the weights that the jump leads to: where a forecast is too large for its dtype, its displacement need not be,
    # since XLA may round `2 * w - w` but once.
    weights = [
        (w.astype(dtype) + d.astype(dtype)).astype(w.dtype)
        for d, w, dtype in zip(displacements, params, dtypes, strict=True)
    ]
    # By the largest magnitude, which is a number only if all are: XLA would first write down which ones are finite.
    parts = [part for array in weights for part in _real_parts(array)]
    return jnp.all(jnp.array([True, *(jnp.isfinite(jnp.max(jnp.abs(part), initial=0)) for part in parts)]))


def _real_parts(array: jax.Array) -> Arrays:
    return [array.real, array.imag] if jnp.iscomplexobj(array) else [array]


def _check_same_tree(params: optax.Params, snapshot: optax.Params, snapshot_dtype: Any) -> None:
    """Raises a ValueError if the parameters are not those that the state was made for."""

    def describe(tree: optax.Params) -> dict[str, tuple[int, ...]]:
        return {jax.tree_util.keystr(path): jnp.shape(leaf) for path, leaf in jax.tree.leaves_with_path(tree)}

    given, expected = describe(params), describe(snapshot)
    for name in sorted(given.keys() | expected.keys()):
        if given.get(name) != expected.get(name):
            raise ValueError(
                f"params differ from those that introspect was initialised with: leaf {name or 'at the root'} has "
                f"shape {given.get(name, 'none (missing)')}, at init it had {expected.get(name, 'none (missing)')}"
            )
    # In a dtype of other weights, a snapshot would be taken for a difference to `w_0`, or the other way round.
    for (path, weight), kept in zip(jax.tree.leaves_with_path(params), jax.tree.leaves(snapshot), strict=True):
        name, dtype = jax.tree_util.keystr(path), dtype_of_snapshot(jnp.result_type(weight), snapshot_dtype)
        if kept.dtype != dtype:
            raise ValueError(
                f"params differ from those that introspect was initialised with: snapshots of leaf "
                f"{name or 'at the root'} would be {jnp.dtype(dtype)}, in the state they are {kept.dtype}"
            )
