"""The slots of one plan, filled with what the slots of another one hold, or with weights that are given."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .layout import Introspect, by_name
from .snapshots import HOST_MEMORY, as_snapshot, check_host_memory, from_snapshot, is_difference, to_device
from .transform import IntrospectState


class Snapshot(NamedTuple):
    """What a state holds of an array at one step: weights or, if there is a `first`, their difference to it."""

    array: jax.Array
    first: jax.Array | None


def held_by(introspect: Introspect, state: IntrospectState, updates_made: int) -> dict[tuple[int, str], Snapshot]:
    """Returns the snapshots that a state keeps for jumps to come, by step and name."""
    # Others may still be in their slots, but not in those of a state that was itself taken over from another plan.
    needed = introspect.plan.needed(updates_made)
    arrays = {
        (capture.step, name): array
        for capture in introspect.plan.captures
        if capture.step in needed
        for name, array in by_name(state.snapshots[capture.slot]).items()
    }
    return {
        (taken, name): Snapshot(
            array, arrays[0, name] if _is_kept_as_difference(introspect, taken, name, array.dtype) else None
        )
        for (taken, name), array in arrays.items()
    }


def _is_kept_as_difference(introspect: Introspect, taken: int, name: str, dtype: Any) -> bool:
    has_first = introspect.plan.points[-1] == 0
    return has_first and taken > 0 and is_difference(introspect.params[name], dtype)


class Slots:
    """The slots of an `introspect`, to be filled: each array in its dtype and its memory, and sharded as its weight."""

    def __init__(self, target: Introspect, params: dict[str, jax.Array], held: dict[tuple[int, str], Snapshot]) -> None:
        self._target, self._params, self._held = target, params, held
        self._slot_of = {capture.step: capture.slot for capture in target.plan.captures}
        self._dtypes = {name: leaf.dtype for name, leaf in by_name(target.shapes.snapshots[-1]).items()}
        self._filled: dict[int, list[jax.Array]] = {}
        self._firsts: dict[str, jax.Array] = {}
        self._first_is_given = False
        if target.slots_on_host:
            check_host_memory([params[name] for name in self._dtypes])

    def fill(self, taken: int, given: dict[str, jax.Array] | None) -> None:
        """Fills in the weights of a step: those that are given, or those that are held. Step 0 comes first."""
        if given is None:
            arrays = {name: self._held_as(taken, name, dtype) for name, dtype in self._dtypes.items()}
        else:
            arrays = {name: self._given_as(given[name], taken, name, dtype) for name, dtype in self._dtypes.items()}
        if taken == 0:
            self._firsts = {name: to_device(array) for name, array in arrays.items()}
            self._first_is_given = given is not None
        slot = self._slot_of[taken]
        self._filled[slot] = [self._placed(slot, name, array) for name, array in arrays.items()]

    def snapshots(self) -> tuple[Any, ...]:
        """Returns the snapshots, with zeros in slots that were not filled."""
        treedef = jax.tree.structure(self._target.shapes.snapshots[-1])
        return tuple(
            jax.tree.unflatten(treedef, self._filled[slot] if slot in self._filled else self._empty(slot))
            for slot in range(self._target.plan.num_buffers)
        )

    def _empty(self, slot: int) -> list[jax.Array]:
        zeros = {name: jnp.zeros_like(self._params[name], dtype) for name, dtype in self._dtypes.items()}
        return [self._placed(slot, name, array) for name, array in zeros.items()]

    def _first(self, taken: int, name: str, dtype: Any) -> jax.Array | None:
        return self._firsts[name] if _is_kept_as_difference(self._target, taken, name, dtype) else None

    def _given_as(self, weight: jax.Array, taken: int, name: str, dtype: Any) -> jax.Array:
        first = self._first(taken, name, dtype)
        if first is None and weight.dtype == dtype:
            return jnp.copy(weight)  # lest it be the very buffer of a parameter, which the next step may donate
        return as_snapshot(weight, dtype, first)

    def _held_as(self, taken: int, name: str, dtype: Any) -> jax.Array:
        array, first_then = self._held[taken, name]
        first = self._first(taken, name, dtype)
        same_kind = (first is None) == (first_then is None)
        if array.dtype == dtype and same_kind and not (self._first_is_given and first is not None):
            return array
        weight = from_snapshot(
            to_device(array), self._params[name], None if first_then is None else to_device(first_then)
        )
        return as_snapshot(weight, dtype, first)

    def _placed(self, slot: int, name: str, array: jax.Array) -> jax.Array:
        sharding: Any = self._params[name].sharding
        if slot in self._target.slots_on_host:
            sharding = sharding.with_memory_kind(HOST_MEMORY)
        placed: jax.Array = jax.device_put(array, sharding)
        return placed
