"""The gradient transformation that replaces the weights by their forecast at jump steps."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from .checkpoint import pretrained
from .forecast import Forecaster, checked_forecaster, forecast_array
from .plan import Plan, checked_snapshot_dtype, dtype_of_snapshot, plan

Arrays = list[jax.Array]


class IntrospectState(NamedTuple):
    """State of :func:`introspect`.

    Attributes:
      introspect_step: int32, updates made so far.
      snapshots: `Plan.num_buffers` trees of the structure of the parameters, one for each slot. In place of leaves that
        are not forecast stands `optax.MaskedNode()`.
      jumps_taken: int32, jumps made so far.
      jumps_refused: int32, jumps not made because a forecast was not finite.
    """

    introspect_step: jax.Array
    snapshots: tuple[optax.Params, ...]
    jumps_taken: jax.Array
    jumps_refused: jax.Array


def introspect(
    jump_steps: Sequence[int], forecaster: Forecaster | None = None, *, snapshot_dtype: Any = None
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
    beforehand of :func:`optax_introspect.plan`; between jumps it costs no time.

    Floating leaves are forecast in float32 and complex ones as two reals; all others are left alone.

    Args:
      jump_steps: increasing positive integers.
      forecaster: what forecasts; `None` is :func:`optax_introspect.pretrained`.
      snapshot_dtype: floating dtype in which snapshots of real weights are kept; `None` is each weight's own.

    Returns:
      The transformation. Its `update` needs `params`.

    Raises:
      ValueError: jump steps, points or a forecaster that cannot be used (see :func:`optax_introspect.plan`), a
        `snapshot_dtype` that is not floating; from `update`: no `params`, or `params` of another structure or
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
    advance = jax.jit(_advance_function(schedule, forecast_with))

    def init_fn(params: optax.Params) -> IntrospectState:
        def slot(leaf: Any) -> Any:
            dtype = dtype_of_snapshot(jnp.result_type(leaf), snapshot_dtype)
            return optax.MaskedNode() if dtype is None else jnp.zeros_like(leaf, dtype)

        return IntrospectState(
            introspect_step=jnp.zeros([], jnp.int32),
            snapshots=tuple(jax.tree.map(slot, params) for _ in range(schedule.num_buffers)),
            jumps_taken=jnp.zeros([], jnp.int32),
            jumps_refused=jnp.zeros([], jnp.int32),
        )

    def update_fn(
        updates: optax.Updates, state: IntrospectState, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Updates, IntrospectState]:
        del extra_args
        if params is None:
            raise ValueError("introspect forecasts the weights, and so needs them: call update(updates, state, params)")
        treedef: Any
        kept_treedef: Any
        leaves, treedef = jax.tree.flatten(params)
        forecast_here = [dtype_of_snapshot(jnp.result_type(leaf), None) is not None for leaf in leaves]
        masked = [leaf if here else optax.MaskedNode() for leaf, here in zip(leaves, forecast_here, strict=True)]
        kept, kept_treedef = jax.tree.flatten(treedef.unflatten(masked))
        _check_same_tree(treedef.unflatten(masked), state.snapshots[-1])
        # An update may be None, or of dtype float0, where its parameter is not trained.
        all_updates = treedef.flatten_up_to(updates)
        own_updates = [u for u, here in zip(all_updates, forecast_here, strict=True) if here]

        buffers = [jax.tree.leaves(tree) for tree in state.snapshots]
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


def _advance_function(schedule: Plan, forecaster: Forecaster) -> Any:
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

    late_slots = {
        capture.slot
        for capture in schedule.captures
        for jump in schedule.jumps
        if jump.step == capture.step and capture.slot in jump.slots
    }

    def displacements(buffers: list[Arrays], params: Arrays, step: jax.Array) -> Arrays:
        slots = jnp.asarray(jump_slots)[jnp.argmax(step == jump_steps)]
        key = jax.random.fold_in(jax.random.key(0), step)
        result = []
        for i, weight in enumerate(params):
            points = [weight]
            for j in range(len(schedule.points) - 1):
                # One kernel serves all jumps: it picks the slot by number, from those that this point is ever in.
                candidates = np.unique(jump_slots[:, j])
                point = buffers[candidates[0]][i]
                for slot in candidates[1:]:
                    point = jnp.where(slots[j] == slot, buffers[slot][i], point)
                points.append(point)
            forecast = forecast_array(forecaster, points, jax.random.fold_in(key, i))
            wide = jnp.promote_types(weight.dtype, jnp.float32)
            result.append((forecast.astype(wide) - weight.astype(wide)).astype(buffers[-1][i].dtype))
        return result

    def capture(slot: int, buffer: Arrays, params: Arrays, step: jax.Array, outcome: Any, order: jax.Array) -> Any:
        if not capture_steps[slot].size:
            return buffer, order
        return lax.cond(
            jnp.any(step == capture_steps[slot]) & (outcome <= _REFUSED),  # the latter is always true
            lambda b, p, o: ([w.astype(old.dtype) for old, w in zip(b, p, strict=True)], o + 1),
            lambda b, p, o: (b, o),
            *(buffer, params, order),
        )

    def advance(
        updates: Arrays, buffers: list[Arrays], params: Arrays, step: jax.Array
    ) -> tuple[Arrays, list[Arrays], jax.Array]:
        buffers, order = list(buffers), step
        for slot in range(schedule.num_buffers):
            if slot not in late_slots:
                buffers[slot], _ = capture(slot, buffers[slot], params, step, _NO_JUMP, order)
        is_jump = jnp.any(step == jump_steps)
        buffers[-1] = lax.cond(is_jump, displacements, lambda b, p, n: b[-1], buffers, params, step)
        # Updates narrower than their weights would miss the forecast.
        dtypes = [
            w.dtype if u is None else jnp.promote_types(u.dtype, w.dtype) for u, w in zip(updates, params, strict=True)
        ]
        # A conditional of its own, lest XLA compute the forecasts once more for the check.
        outcome = lax.cond(
            is_jump,
            lambda b: jnp.where(_all_finite(b, dtypes), _TAKEN, _REFUSED),
            lambda b: jnp.asarray(_NO_JUMP),
            buffers[-1],
        )
        for slot in late_slots:
            buffers[slot], order = capture(slot, buffers[slot], params, step, outcome, order)
        jumps = (outcome == _TAKEN) & (order >= 0)  # the latter is always true
        chosen = [
            None if u is None else jnp.where(jumps, d.astype(dtype), u.astype(dtype))
            for u, d, dtype in zip(updates, buffers[-1], dtypes, strict=True)
        ]
        return chosen, buffers, outcome

    return advance


def _all_finite(arrays: Arrays, dtypes: list[Any]) -> jax.Array:
    finite = [jnp.all(jnp.isfinite(array.astype(dtype))) for array, dtype in zip(arrays, dtypes, strict=True)]
    return jnp.all(jnp.array([True, *finite]))


def _check_same_tree(params: optax.Params, snapshot: optax.Params) -> None:
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
