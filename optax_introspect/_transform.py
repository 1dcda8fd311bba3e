"""The gradient transformation that moves weights to their forecast at jump steps."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ._checks import check_arrays, check_memory, check_period, check_snapshots
from ._plan import plan
from ._snapshots import (
    check_host_memory,
    checked_memory_kind,
    checked_snapshot_dtype,
    dtype_of_snapshot,
    empty_snapshot,
)
from ._step import Introspection, advance
from .forecasters._base import Forecaster, checked_forecaster
from .predictors._checkpoint import pretrained


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
      snapshots: A tree of the structure of the parameters for each slot, `Plan.num_slots` of them. Leaves that are not
        forecast are `optax.MaskedNode()`.
      snapshot_steps: int32 [num_slots], the step of the snapshot that each slot holds; -1 where there is none.
      jumps_taken: int32, number of jumps made.
      jumps_refused: int32, number of jumps not made, since a forecast was not finite or a snapshot was missing.
    """

    # `init` leaves here what made the state, for `reschedule`. It is not part of the tree: what JAX returns lacks it.
    made_by: Introspection | None = None

    def __getstate__(self) -> None:
        # Nor of a copy or a pickle: a forecaster may hold functions that can't be pickled.
        return None


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
      snapshot_dtype: Floating dtype of the snapshots of real weights, of at least 16 bits; None is that of the weights.
        If 0 is one of the points, the weights of step 0 are kept in their own dtype and the others as differences to
        them, which loses little: in bfloat16 less than 1 % of the displacement, in norm. Otherwise each jump rounds the
        weights themselves: with jumps every few steps, weights that move slowly stand still.
      memory_kind: `"pinned_host"` keeps all slots but one in the memory of the host. None keeps them on the device.
        Restore such a state into the shardings of that of `init`.

    Returns:
      The transformation. Its `update` needs `params`, and never changes the dtype of an update.

    Raises:
      ValueError: An argument is not valid (see :func:`optax_introspect.plan`), or `jump_steps` are not those that the
        forecaster is made for. From `init`: the devices have no such memory. From `update`: `params` are missing or not
        those of `init`; `state` is not an `IntrospectState`, or was made for other jumps; or snapshots are on the
        device that are to be in the memory of the host.
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
      ...     print(step, f"{params[0] / before[0]:.2f}") if step >= 9 else None
      9 0.90
      10 0.46
      11 0.90

    References:
      Sinha et al., "Introspection: Accelerating Neural Network Training by Learning Weight Evolution", ICLR 2017.
    """
    forecaster = pretrained() if forecaster is None else checked_forecaster(forecaster)
    schedule = plan(jump_steps, forecaster.points)
    check_period(schedule, getattr(forecaster, "period", None))
    # The last slot stays on the device: every update reads it.
    on_host = range(0 if checked_memory_kind(memory_kind) is None else schedule.num_slots - 1)
    this = Introspection(schedule, forecaster, checked_snapshot_dtype(snapshot_dtype), on_host)

    def empty_slot(slot: int, params: optax.Params) -> optax.Params:
        def empty(weight: Any) -> Any:
            dtype = this.slot_dtype(slot, weight)
            return optax.MaskedNode() if dtype is None else this.placed(slot, empty_snapshot(weight, dtype))

        return jax.tree.map(empty, params)

    def init_fn(params: optax.Params) -> IntrospectState:
        check_arrays(params)
        if on_host:
            check_host_memory(jax.tree.leaves(params))
        state = IntrospectState(
            introspect_step=jnp.zeros([], jnp.int32),
            snapshots=tuple(empty_slot(slot, params) for slot in range(schedule.num_slots)),
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
        if not isinstance(state, IntrospectState):
            raise ValueError(
                f"state must be an IntrospectState; got {type(state).__name__}. A checkpoint restored without a target "
                "gives dicts and lists: restore it into the state of `init`"
            )
        check_arrays(params)
        check_snapshots(this, params, state.snapshots)
        check_memory(this, state.snapshots)
        treedef: Any
        weights, treedef = jax.tree.flatten(params)
        all_updates, *all_slots = (treedef.flatten_up_to(tree) for tree in (updates, *state.snapshots))
        kept = [i for i, w in enumerate(weights) if dtype_of_snapshot(jnp.result_type(w), None) is not None]

        own_updates = [all_updates[i] if _is_trained(all_updates[i]) else None for i in kept]
        own_slots = [[leaves[i] for i in kept] for leaves in all_slots]
        own_updates, own_slots, slot_steps, taken, refused = advance(
            this, own_updates, [weights[i] for i in kept], own_slots, state.snapshot_steps, state.introspect_step
        )
        for leaves, own in zip((all_updates, *all_slots), (own_updates, *own_slots), strict=True):
            for i, leaf in zip(kept, own, strict=True):
                leaves[i] = leaves[i] if leaf is None else leaf
        return treedef.unflatten(all_updates), IntrospectState(
            introspect_step=optax.safe_increment(state.introspect_step),
            snapshots=tuple(treedef.unflatten(slot) for slot in all_slots),
            snapshot_steps=slot_steps,
            jumps_taken=state.jumps_taken + taken,
            jumps_refused=state.jumps_refused + refused,
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _is_trained(update: Any) -> bool:
    """Returns whether an array is trained in this step; else a jump leaves it alone."""
    return update is not None and getattr(update, "dtype", None) != jax.dtypes.float0
