"""The gradient transformation that moves weights to their forecast at jump steps."""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from ._inplace import write_if
from ._plan import Plan, plan
from ._snapshots import (
    check_host_memory,
    checked_memory_kind,
    checked_snapshot_dtype,
    compute_dtype,
    decode,
    dtype_of_snapshot,
    empty_snapshot,
    encode,
    holds_differences,
    to_device,
    to_host,
)
from .forecasters._base import Forecaster, checked_forecaster
from .predictors._checkpoint import pretrained

Arrays = list[jax.Array]


class _Fields(NamedTuple):
    introspect_step: jax.Array
    snapshots: tuple[optax.Params, ...]
    snapshot_steps: jax.Array
    jumps_taken: jax.Array
    jumps_refused: jax.Array


class IntrospectState(_Fields):
    """State of :func:`introspect`, a NamedTuple.

    Attributes:
      introspect_step: int32, number of updates made.
      snapshots: One tree of the structure of the parameters for each slot, `Plan.num_slots` of them. Leaves that are not
        forecast are `optax.MaskedNode()`.
      snapshot_steps: int32 [num_slots], the step of the snapshot that each slot holds; -1 where there is none.
      jumps_taken: int32, number of jumps made.
      jumps_refused: int32, number of jumps not made, since a forecast was not finite or a snapshot was missing.
    """

    # `init` leaves here what made the state, for `reschedule`. It is not part of the tree: what JAX returns lacks it.
    made_by: "Introspection | None" = None


@dataclasses.dataclass(frozen=True, eq=False)  # told apart by identity, as a static argument of jit
class Introspection:
    """Everything about an :func:`introspect` that is known before training.

    Attributes:
      plan: The plan.
      forecaster: The forecaster.
      snapshot_dtype: The dtype of snapshots of real weights; None for that of the weights.
      slots_on_host: The slots in the memory of the host.
    """

    plan: Plan
    forecaster: Forecaster
    snapshot_dtype: Any
    slots_on_host: range

    def slot_dtype(self, slot: int, weight: Any) -> Any:
        """Returns the dtype in which a slot keeps an array of weights; None if the array is not forecast."""
        dtype = None if slot == self.plan.first_slot else self.snapshot_dtype
        return dtype_of_snapshot(jnp.result_type(weight), dtype)


def introspect(
    jump_steps: Sequence[int],
    forecaster: Forecaster | None = None,
    *,
    snapshot_dtype: Any = None,
    memory_kind: str | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Adds the displacement to the forecast at jump steps; goes last in a chain.

    With :math:`w_n` the weights after :math:`n` updates, :math:`u_n` the updates of the transformations before this one
    and :math:`F` the forecaster,

    .. math::
      w_{n+1} = \begin{cases}
        w_n + u_n + (F(w_t, w_{0.7t}, w_{0.4t}, w_0) - w_n) & \text{if } n = t \text{ is a jump step} \\
        w_n + u_n & \text{otherwise}
      \end{cases}

    A jump is refused, and counted, if a forecast is not finite or if a snapshot that it needs is missing, as after
    resuming with other jump steps; see :func:`optax_introspect.reschedule`.

    Forecasts are computed in float32, or in float64 for float64 weights; complex weights are forecast as two reals.
    Leaves of other dtypes, and leaves whose update is None or float0, are left alone. Leave out more of them with
    `optax.masked(introspect(...), mask)`.

    Args:
      jump_steps: Increasing positive integers; may be a `range`.
      forecaster: The forecaster; None is :func:`optax_introspect.pretrained`.
      snapshot_dtype: Floating dtype of the snapshots of real weights; None is that of the weights. If 0 is one of the
        points, the weights of step 0 are kept in their own dtype and the others as differences to them, which loses
        little: in bfloat16 less than 1 % of the displacement. Otherwise the weights themselves are rounded.
      memory_kind: `"pinned_host"` keeps all slots but one in the memory of the host. None keeps them on the device.

    Returns:
      The transformation. Its `update` needs `params`, and never changes the dtype of an update.

    Raises:
      ValueError: An argument is not valid (see :func:`optax_introspect.plan`), or `jump_steps` are not those that the
        forecaster is made for. From `init`: the devices have no such memory. From `update`: `params` are missing or are
        not those of `init`.
      TypeError: `forecaster` is not a forecaster.

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
      10 [0.46 0.46]
      11 [0.9 0.9]

    References:
      Sinha et al., "Introspection: Accelerating Neural Network Training by Learning Weight Evolution", ICLR 2017.
    """
    forecaster = pretrained() if forecaster is None else checked_forecaster(forecaster)
    schedule = plan(jump_steps, forecaster.points)
    _check_period(schedule, getattr(forecaster, "period", None))
    # The last slot stays on the device: every update reads it.
    on_host = range(0 if checked_memory_kind(memory_kind) is None else schedule.num_slots - 1)
    this = Introspection(schedule, forecaster, checked_snapshot_dtype(snapshot_dtype), on_host)

    def init_fn(params: optax.Params) -> IntrospectState:
        _check_arrays(params)
        if on_host:
            check_host_memory(jax.tree.leaves(params))
        state = IntrospectState(
            introspect_step=jnp.zeros([], jnp.int32),
            snapshots=tuple(_empty_slot(this, params, slot) for slot in range(schedule.num_slots)),
            snapshot_steps=jnp.full([schedule.num_slots], -1, jnp.int32),
            jumps_taken=jnp.zeros([], jnp.int32),
            jumps_refused=jnp.zeros([], jnp.int32),
        )
        state.made_by = this
        return state

    def update_fn(
        updates: optax.Updates, state: IntrospectState, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Updates, IntrospectState]:
        del extra_args
        if params is None:
            raise ValueError("introspect needs params: call update(updates, state, params)")
        _check_arrays(params)
        _check_state(this, params, state)
        treedef: Any
        weights, treedef = jax.tree.flatten(params)
        all_updates, *all_slots = (treedef.flatten_up_to(tree) for tree in (updates, *state.snapshots))
        moved = [i for i, u in enumerate(all_updates) if _is_forecast(weights[i]) and _is_trained(u)]

        def pick(leaves: list[Any]) -> Arrays:
            return [leaves[i] for i in moved]

        slots, slot_steps, new_updates, taken, refused = _advance(
            this,
            pick(all_updates),
            pick(weights),
            [pick(slot) for slot in all_slots],
            state.snapshot_steps,
            state.introspect_step,
        )
        for k, i in enumerate(moved):
            all_updates[i] = new_updates[k]
            for slot, arrays in zip(all_slots, slots, strict=True):
                slot[i] = arrays[k]
        return treedef.unflatten(all_updates), IntrospectState(
            introspect_step=optax.safe_increment(state.introspect_step),
            snapshots=tuple(map(treedef.unflatten, all_slots)),
            snapshot_steps=slot_steps,
            jumps_taken=state.jumps_taken + taken,
            jumps_refused=state.jumps_refused + refused,
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


@partial(jax.jit, static_argnums=0)  # compiled once also where `update` is called outside of jit
def _advance(
    this: Introspection, updates: Arrays, weights: Arrays, slots: list[Arrays], slot_steps: jax.Array, n: jax.Array
) -> tuple[list[Arrays], jax.Array, Arrays, jax.Array, jax.Array]:
    """Makes step `n`, on the leaves that are forecast.

    Nearly all steps are idle: nothing is captured, and there is no jump. All that happens in the others stands in one
    conditional. It leaves the displacement in the last slot, so that the choice of the update is fused into what
    follows; a second conditional tells whether the displacement can be used.
    """
    jump_steps = np.array(this.plan.jump_steps, np.int32)
    events = np.union1d(jump_steps, np.array([c.step for c in this.plan.captures], np.int32))
    # A state that was restored, or moved, may have its snapshots in another memory than `init` put them.
    slots = [_placed(this, slot, arrays) for slot, arrays in enumerate(slots)]

    def event(
        carry: tuple[list[Arrays], jax.Array, jax.Array], weights: Arrays, n: jax.Array
    ) -> tuple[list[Arrays], jax.Array, jax.Array]:
        slots, slot_steps, _ = carry
        slots, slot_steps = _capture(this, slots, slot_steps, weights, n)
        ready = jnp.any(n == jump_steps) & _has_sources(this, slot_steps, n)
        displacement = write_if(ready, partial(_displacement, this), slots[-1], slots[:-1], weights, n)
        slot_steps = slot_steps.at[-1].set(jnp.where(ready, -1, slot_steps[-1]))
        return [*slots[:-1], displacement], slot_steps, ready

    is_event, is_jump = jnp.any(n == events), jnp.any(n == jump_steps)
    slots, slot_steps, ready = write_if(is_event, event, (slots, slot_steps, jnp.zeros([], bool)), weights, n)
    dtypes = [u.dtype for u in updates]
    taken = write_if(ready, lambda _, d, w: _all_finite(d, w, dtypes), jnp.zeros([], bool), slots[-1], weights)
    updates = [jnp.where(taken, u + d.astype(u.dtype), u) for u, d in zip(updates, slots[-1], strict=True)]
    return slots, slot_steps, updates, taken.astype(jnp.int32), (is_jump & ~taken).astype(jnp.int32)


def _capture(
    this: Introspection, slots: list[Arrays], slot_steps: jax.Array, weights: Arrays, n: jax.Array
) -> tuple[list[Arrays], jax.Array]:
    """Keeps the weights of step `n`, if it is a step to capture, in its slot."""
    slots = list(slots)
    for slot in range(this.plan.num_slots):
        steps = np.array([c.step for c in this.plan.captures if c.slot == slot], np.int32)
        if not steps.size:
            continue
        is_now = jnp.any(n == steps)

        def write(old: Arrays, weights: Arrays, firsts: list[Any], slot: int = slot) -> Arrays:
            new = [encode(w, o.dtype, first) for w, o, first in zip(weights, old, firsts, strict=True)]
            return _placed(this, slot, new)

        firsts = [_first(this, slots[slot][i], slots, i, w) for i, w in enumerate(weights)]
        slots[slot] = write_if(is_now, write, slots[slot], weights, firsts)
        slot_steps = slot_steps.at[slot].set(jnp.where(is_now, n, slot_steps[slot]))
    return slots, slot_steps


def _has_sources(this: Introspection, slot_steps: jax.Array, n: jax.Array) -> jax.Array:
    """Returns whether the slots hold the steps that the jump at step `n` looks at."""
    jump = jnp.argmax(n == np.array(this.plan.jump_steps, np.int32))
    expected = jnp.asarray(np.array([j.sources[1:] for j in this.plan.jumps], np.int32))[jump]
    return jnp.all(slot_steps[jnp.asarray(_jump_slots(this))[jump]] == expected)


def _displacement(
    this: Introspection, old: Arrays, other_slots: list[Arrays], weights: Arrays, n: jax.Array
) -> Arrays:
    """Returns the forecast less the weight, for the jump at step `n`; `old` is the last slot."""
    jump_slots = _jump_slots(this)
    slot_of_point = jnp.asarray(jump_slots)[jnp.argmax(n == np.array(this.plan.jump_steps, np.int32))]
    key = jax.random.fold_in(jax.random.key(0), n)

    # Traced once for all arrays of one shape and dtype.
    @jax.jit
    def displacement(old: jax.Array, others: Arrays, weight: jax.Array, slots: jax.Array, key: jax.Array) -> jax.Array:
        kept = [*map(to_device, others), old] if this.slots_on_host else [*others, old]
        first_slot = this.plan.first_slot

        def weights_in(slot: int) -> jax.Array:
            differs = first_slot not in (None, slot) and holds_differences(weight.dtype, kept[slot].dtype)
            return decode(kept[slot], weight.dtype, kept[first_slot] if differs else None)

        points = [weight.astype(compute_dtype(weight.dtype))]
        for j in range(len(this.plan.points) - 1):
            # One program serves all jumps: it picks the slot by number, among those that this point is ever in.
            candidates = np.unique(jump_slots[:, j]).tolist()
            point = weights_in(candidates[0])
            for slot in candidates[1:]:
                point = jnp.where(slots[j] == slot, weights_in(slot), point)
            points.append(point)
        forecast = _forecast(this.forecaster, points, key).astype(weight.dtype)
        return (forecast.astype(points[0].dtype) - points[0]).astype(old.dtype)

    # Each in a branch of its own, always taken: arrays of one shape would otherwise share the constants of a network,
    # and XLA would write these down for every weight.
    return [
        write_if(n >= 0, displacement, o, [slot[i] for slot in other_slots], w, slot_of_point, jax.random.fold_in(key, i))
        for i, (o, w) in enumerate(zip(old, weights, strict=True))
    ]


def _forecast(forecaster: Forecaster, points: Arrays, key: jax.Array) -> jax.Array:
    """Forecasts one array, a complex one as two reals."""
    if not jnp.iscomplexobj(points[0]):
        return forecaster(*points, key=key)
    real, imag = jax.random.split(key)
    return lax.complex(
        forecaster(*(p.real for p in points), key=real), forecaster(*(p.imag for p in points), key=imag)
    )


def _all_finite(displacements: Arrays, weights: Arrays, dtypes: list[Any]) -> jax.Array:
    """Returns whether the weights that a jump leads to are finite everywhere."""
    # An update that is not finite, in its own dtype, makes the weight so, too.
    arrays = [
        (w.astype(wide) + d.astype(dtype).astype(wide)).astype(w.dtype)
        for d, w, dtype in zip(displacements, weights, dtypes, strict=True)
        for wide in [compute_dtype(w.dtype)]
    ]
    parts = [part for a in arrays for part in ((a.real, a.imag) if jnp.iscomplexobj(a) else (a,))]
    # The largest magnitude is finite only if all are: a number for each array, where `isfinite` would write a mask.
    return jnp.all(jnp.array([True, *(jnp.isfinite(jnp.max(jnp.abs(part), initial=0)) for part in parts)]))


def _jump_slots(this: Introspection) -> np.ndarray:
    return np.array([jump.slots for jump in this.plan.jumps], np.int32)


def _first(this: Introspection, own: jax.Array, slots: list[Arrays], i: int, weight: jax.Array) -> jax.Array | None:
    """Returns the weights of step 0 of an array, if its slot holds differences to them."""
    if this.plan.first_slot is None or not holds_differences(weight.dtype, own.dtype):
        return None
    first = slots[this.plan.first_slot][i]
    return to_device(first) if this.slots_on_host else first


def _placed(this: Introspection, slot: int, arrays: Arrays) -> Arrays:
    return [to_host(array) for array in arrays] if slot in this.slots_on_host else arrays


def _empty_slot(this: Introspection, params: optax.Params, slot: int) -> optax.Params:
    def empty(weight: Any) -> Any:
        dtype = this.slot_dtype(slot, weight)
        return optax.MaskedNode() if dtype is None else _placed(this, slot, [empty_snapshot(weight, dtype)])[0]

    return jax.tree.map(empty, params)


def _is_forecast(weight: Any) -> bool:
    return dtype_of_snapshot(jnp.result_type(weight), None) is not None


def _is_trained(update: Any) -> bool:
    return update is not None and getattr(update, "dtype", None) != jax.dtypes.float0


def _check_period(schedule: Plan, period: int | None) -> None:
    steps = schedule.jump_steps
    if period is not None and steps != tuple(range(period - 1, steps[-1] + 1, period)):
        raise ValueError(
            f"with period={period} the forecaster needs jump_steps=range({period - 1}, total, {period}); "
            f"got {steps if len(steps) < 5 else f'{str(steps[:4])[:-1]}, ...)'}"
        )


def _check_arrays(params: optax.Params) -> None:
    for path, leaf in jax.tree.leaves_with_path(params):
        if not hasattr(leaf, "dtype") and not isinstance(leaf, int | float | complex):
            raise ValueError(
                f"params must be a tree of arrays; leaf {_name(path)} is {leaf!r}. With Equinox, pass "
                "eqx.filter(model, eqx.is_inexact_array), to `update` as well"
            )


def _check_state(this: Introspection, params: optax.Params, state: Any) -> None:
    """Raises a ValueError if a state is not one for these parameters and this schedule."""
    if not isinstance(state, IntrospectState):
        raise ValueError(
            f"state must be an IntrospectState; got {type(state).__name__}. A checkpoint restored without a target "
            "gives dicts and lists: restore it into the state of `init`"
        )
    if len(state.snapshots) != this.plan.num_slots:
        raise ValueError(
            f"the state has {len(state.snapshots)} slots, and the jumps need {this.plan.num_slots}: it was made for "
            "other jumps; see optax_introspect.reschedule"
        )
    for slot, snapshot in enumerate(state.snapshots):
        expected = {
            _name(path): f"{jnp.dtype(dtype)}{list(jnp.shape(leaf))}"
            for path, leaf in jax.tree.leaves_with_path(params)
            if (dtype := this.slot_dtype(slot, leaf)) is not None
        }
        given = {_name(path): f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in jax.tree.leaves_with_path(snapshot)}
        for name in expected | given:
            if expected.get(name) != given.get(name):
                raise ValueError(
                    f"params are not those that the state was made for: at {name} the snapshots hold "
                    f"{given.get(name, 'nothing')}, and these params need {expected.get(name, 'nothing')}"
                )


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/") or "the root"
