"""Other jumps for a run under way."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from . import _arguments
from ._plan import LAST_STEP
from ._snapshots import HOST_MEMORY, decode, encode, holds_differences, to_device
from ._step import Introspection
from ._transform import IntrospectState

Leaves = dict[str, Any]


def reschedule(
    opt_state: Any,
    params: Any,
    tx: optax.GradientTransformation,
    weights: Mapping[int, Any] | None = None,
    *,
    step: int | None = None,
) -> Any:
    """Returns an optimizer state for other jumps.

    `tx` may have other jump steps, another forecaster, snapshot dtype or memory kind than the optimizer that made the
    state, or an `introspect` where that one had none. All else in it must be the same. Training goes on as if it had
    had these jumps from the start, without those in the past.

    Args:
      opt_state: The optimizer state, with one `introspect` in it at most.
      params: The parameters now.
      tx: The optimizer to go on with, with one `introspect` in it.
      weights: Parameters of earlier steps, as from checkpoints, by number of updates: for snapshots that the new jumps
        need and `opt_state` does not hold.
      step: Number of updates made; needed only if there is no `introspect` in `opt_state`.

    Returns:
      The state for `tx`, a tree of arrays. Arrays that are the same are not copied. With Flax NNX, write it into a new
      optimizer: `nnx.update(optimizer.opt_state, nnx.state(state))`.

    Raises:
      ValueError: The new jumps need weights that are neither in `opt_state` nor in `weights`; `opt_state` is that of
        another optimizer; `tx` has no `introspect`, several, one whose state a wrapper changes, or one that keeps other
        arrays than `params`; `step` is missing, or not what the state has counted; or `weights` are not like `params`.

    Examples:
      A run without jumps gets some after a hundred updates, from its first weights:

      >>> import jax.numpy as jnp, optax, optax_introspect
      >>> def chain(*jump_steps):
      ...     two_point = optax_introspect.polynomial(1, 1.3, points=(1.0, 0.4, 0.0))
      ...     return optax.chain(optax.adam(1e-3), optax_introspect.introspect(jump_steps, two_point))
      >>> first = params = {"w": jnp.ones(3)}
      >>> state = optax.adam(1e-3).init(params)  # and a hundred updates
      >>> state = reschedule(state, params, chain(250, 400), {0: first}, step=100)
      >>> state[1].snapshot_steps
      Array([ 0, -1, -1], dtype=int32)

      A jump that comes too soon is an error:

      >>> reschedule(state, params, chain(200, 400))  # doctest: +NORMALIZE_WHITESPACE
      Traceback (most recent call last):
      ValueError: after 100 updates the jumps at [200] need the weights of the steps [80], which opt_state does not
      hold: give them as weights={step: params}, or leave these jumps out
    """
    opt_state, params = nnx.as_pure(opt_state), nnx.as_pure(params)
    shapes, this = _initial(tx, params)
    target = next(node for node in _nodes(shapes) if isinstance(node, IntrospectState))
    _check_same_rest(opt_state, shapes)
    old = _one([node for node in _nodes(opt_state) if isinstance(node, IntrospectState)], "opt_state", at_least=0)
    if old is None and step is None:
        raise ValueError("step must be given: there is no introspect in opt_state that has counted the updates")
    n = int(old.introspect_step) if old is not None else _arguments.integer("step", step, 0, LAST_STEP)
    if step is not None and step != n:
        raise ValueError(f"step is {step}, but opt_state has counted {n} updates")

    needed = this.plan.needed(n)
    known = _known(old, params)
    for at, tree in (weights or {}).items():
        if _arguments.integer("every step of weights", at, 0, LAST_STEP) in needed:
            known[at] = _copied(at, tree, params)
    names = _by_name(target.snapshots[-1]).keys()
    missing = sorted(at for at in needed if at not in known or names - known[at].keys())
    if missing:
        jumps = [j.step for j in this.plan.jumps if j.step >= n and not set(missing).isdisjoint(j.sources)]
        raise ValueError(
            f"after {n} updates the jumps at {jumps} need the weights of the steps {missing}, which opt_state does not "
            "hold: give them as weights={step: params}, or leave these jumps out"
        )

    step_of_slot = {slot: at for at, slot in needed.items()}
    new = IntrospectState(
        introspect_step=jnp.asarray(n, jnp.int32),
        snapshots=tuple(
            _filled(this, slot, tree, known.get(step_of_slot.get(slot, -1), {}), known.get(0, {}), _by_name(params))
            for slot, tree in enumerate(target.snapshots)
        ),
        snapshot_steps=jnp.array([step_of_slot.get(slot, -1) for slot in range(this.plan.num_slots)], jnp.int32),
        jumps_taken=jnp.zeros([], jnp.int32) if old is None else old.jumps_taken,
        jumps_refused=jnp.zeros([], jnp.int32) if old is None else old.jumps_refused,
    )
    rest = iter(node for node in _nodes(opt_state) if not isinstance(node, IntrospectState))
    return jax.tree.map(
        lambda node: new if isinstance(node, IntrospectState) else next(rest),
        shapes,
        is_leaf=lambda node: isinstance(node, IntrospectState),
    )


def _initial(tx: optax.GradientTransformation, params: Any) -> tuple[Any, Introspection]:
    """Returns the shapes of a new state, and the `introspect` that made its part of it."""
    made: list[Introspection | None] = []

    def init(params: Any) -> Any:
        state = tx.init(params)
        made.extend(node.made_by for node in _nodes(state) if isinstance(node, IntrospectState))
        return state

    shapes = jax.eval_shape(init, params)
    this = _one(made, "tx", at_least=1)
    if this is None:
        raise ValueError("a wrapper in tx changes the state of introspect, so that reschedule can't read its jumps")
    return shapes, this


def _one(found: list[Any], where: str, at_least: int) -> Any:
    if not at_least <= len(found) <= 1:
        raise ValueError(f"{where} must have one introspect in it; got {len(found)}")
    return found[0] if found else None


def _known(old: IntrospectState | None, params: Any) -> dict[int, Leaves]:
    """Returns the weights that a state holds, by step and name."""
    if old is None:
        return {}
    own = _by_name(params)
    held = {int(at): _by_name(tree) for at, tree in zip(old.snapshot_steps, old.snapshots, strict=True) if at >= 0}
    firsts = held.get(0, {})
    known: dict[int, Leaves] = {}
    for at, leaves in held.items():
        known[at] = {}
        for name, leaf in leaves.items():
            if name not in own or own[name].shape != leaf.shape:
                continue
            dtype = own[name].dtype
            first = firsts[name] if at and name in firsts and firsts[name].dtype == dtype else None
            leaf = to_device(leaf)
            if first is not None and holds_differences(dtype, leaf.dtype):
                leaf = decode(leaf, dtype, to_device(first))
            known[at][name] = leaf
    return known


def _filled(
    this: Introspection, slot: int, shapes: Any, weights: Leaves, firsts: Leaves, params: Leaves
) -> optax.Params:
    """Returns a slot with weights in it, or with zeros if there are none."""

    def fill(path: Any, shape: Any) -> Any:
        name = jax.tree_util.keystr(path)
        if name not in params or params[name].shape != shape.shape:
            raise ValueError(f"introspect in tx keeps {name or 'an array'} of {shape.shape}, which params do not have")
        param = params[name]
        if name in weights:
            differs = this.plan.first_slot not in (None, slot) and holds_differences(param.dtype, shape.dtype)
            array = encode(jnp.asarray(weights[name]), shape.dtype, jnp.asarray(firsts[name]) if differs else None)
        else:
            array = jnp.zeros(shape.shape, shape.dtype)
        sharding = param.sharding if isinstance(param, jax.Array) else array.sharding
        if slot in this.slots_on_host:
            sharding = sharding.with_memory_kind(HOST_MEMORY)
        return jax.device_put(array, sharding)

    return jax.tree.map_with_path(fill, shapes)


def _check_same_rest(opt_state: Any, shapes: Any) -> None:
    have, need = (
        [f"{leaf.dtype}{list(leaf.shape)}" for leaf in _nodes(tree) if not isinstance(leaf, IntrospectState)]
        for tree in (opt_state, shapes)
    )
    if have != need:
        differ = [i for i, (a, b) in enumerate(zip(have, need, strict=False)) if a != b]
        i = differ[0] if differ else min(len(have), len(need))
        raise ValueError(
            f"opt_state must be that of tx but for introspect; it has {len(have)} other arrays and tx {len(need)}, "
            f"which differ from array {i + 1} on: {have[i : i + 1] or 'none'} and {need[i : i + 1] or 'none'}"
        )


def _copied(at: int, tree: Any, params: Any) -> Leaves:
    """Returns copies of given weights by name: the next update may donate the state, but not what was given."""
    given, expected = _by_name(nnx.as_pure(tree)), _by_name(params)
    for name in expected | given:
        have, want = (
            f"{leaves[name].dtype}{list(leaves[name].shape)}" if name in leaves else "nothing"
            for leaves in (given, expected)
        )
        if have != want:
            raise ValueError(f"weights[{at}] must be like params: at {name or 'the root'} it has {have}, not {want}")
    return {name: jnp.array(leaf) for name, leaf in given.items()}


def _nodes(tree: Any) -> list[Any]:
    return jax.tree.leaves(tree, is_leaf=lambda node: isinstance(node, IntrospectState))


def _by_name(tree: Any) -> Leaves:
    # Parameters may be plain numbers.
    named = jax.tree.leaves_with_path(tree)
    return {jax.tree_util.keystr(path): leaf if hasattr(leaf, "dtype") else jnp.asarray(leaf) for path, leaf in named}
