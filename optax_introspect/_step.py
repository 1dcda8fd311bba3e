"""One step of `introspect`, on the leaves that are forecast."""

import dataclasses
from collections.abc import Sequence
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ._inplace import write_if
from ._plan import Plan
from ._snapshots import compute_dtype, decode, dtype_of_snapshot, encode, holds_differences, to_device, to_host
from .forecasters._base import Forecaster

Arrays = list[jax.Array]

# Weights of an array up to which arrays of one shape are checked together, on one device: XLA compiles each check by
# itself. On several devices it would shard those arrays alike, whatever their shardings are.
SMALL = 1 << 12


@dataclasses.dataclass(frozen=True, eq=False)  # told apart by identity, as a static argument of jit
class Introspection:
    """Settings of an `introspect`, fixed before training.

    Attributes:
      plan: The plan.
      forecaster: The forecaster.
      snapshot_dtype: Dtype of snapshots of real weights; None for that of the weights.
      slots_on_host: The slots in the memory of the host.
    """

    plan: Plan
    forecaster: Forecaster
    snapshot_dtype: Any
    slots_on_host: range

    @cached_property
    def jump_steps(self) -> np.ndarray:
        """int32 [jumps], the steps of the jumps."""
        return np.array(self.plan.jump_steps, np.int32)

    @cached_property
    def jump_sources(self) -> np.ndarray:
        """int32 [jumps, points - 1], the step of each point but the first."""
        return np.array([jump.sources[1:] for jump in self.plan.jumps], np.int32)

    @cached_property
    def jump_slots(self) -> np.ndarray:
        """int32 [jumps, points - 1], the slot of each point but the first."""
        return np.array([jump.slots for jump in self.plan.jumps], np.int32)

    def capture_steps(self, slot: int) -> np.ndarray:
        """Returns int32 [captures], the steps whose weights are kept in a slot."""
        return np.array([c.step for c in self.plan.captures if c.slot == slot], np.int32)

    def slot_dtype(self, slot: int, weight: Any) -> Any:
        """Returns the dtype in which a slot keeps an array of weights; None if the array is not forecast."""
        dtype = None if slot == self.plan.first_slot else self.snapshot_dtype
        return dtype_of_snapshot(jnp.result_type(weight), dtype)

    def placed(self, slot: int, array: jax.Array) -> jax.Array:
        """Returns an array in the memory of a slot."""
        return to_host(array) if slot in self.slots_on_host else array

    def on_device(self, slot: int, array: jax.Array) -> jax.Array:
        """Returns an array of a slot in the memory of the device."""
        return to_device(array) if slot in self.slots_on_host else array

    def first_of(self, slot: int, weight: jax.Array, kept: list[jax.Array]) -> jax.Array | None:
        """Returns the weights of step 0, if a slot holds differences to them.

        Args:
          slot: The slot.
          weight: An array of weights.
          kept: What each slot holds of it.
        """
        first = self.plan.first_slot
        if first in (None, slot) or not holds_differences(weight.dtype, kept[slot].dtype):
            return None
        return self.on_device(first, kept[first])


@partial(jax.jit, static_argnums=0)  # compiled once also where `update` is called outside of jit
def advance(
    this: Introspection,
    updates: list[jax.Array | None],
    weights: Arrays,
    slots: list[Arrays],
    slot_steps: jax.Array,
    n: jax.Array,
) -> tuple[list[jax.Array | None], list[Arrays], jax.Array, jax.Array, jax.Array]:
    """Makes step `n`.

    Nearly all steps are idle: nothing is captured, and there is no jump. All that happens in the others stands in one
    conditional. It leaves the displacement of a jump in the last slot, so that adding it to the updates is fused into
    what follows. A second conditional tells whether it can be added.

    Args:
      this: What is known before training.
      updates: The updates of the transformations before; None for weights that are kept, but not moved.
      weights: The weights, `w_n`.
      slots: What each slot holds of each array.
      slot_steps: int32 [num_slots], the step of what each slot holds.
      n: int32, number of updates made.

    Returns:
      The updates, the slots, the steps of what they hold, and whether a jump was taken, and refused, as int32.
    """
    events = np.union1d(this.jump_steps, [capture.step for capture in this.plan.captures]).astype(np.int32)
    is_event, is_jump = jnp.any(n == events), jnp.any(n == this.jump_steps)
    # A state that was restored may have its snapshots in another memory than `init` put them.
    slots = [[this.placed(slot, array) for array in arrays] for slot, arrays in enumerate(slots)]

    def event(
        carry: tuple[list[Arrays], jax.Array, jax.Array], weights: Arrays, n: jax.Array
    ) -> tuple[list[Arrays], jax.Array, jax.Array]:
        slots, slot_steps, _ = carry
        slots, slot_steps = _capture(this, slots, slot_steps, weights, n)
        jump = jnp.argmax(n == this.jump_steps)
        found = slot_steps[jnp.asarray(this.jump_slots)[jump]] == jnp.asarray(this.jump_sources)[jump]
        ready = jnp.any(n == this.jump_steps) & jnp.all(found)
        slots[-1] = write_if(ready, partial(_displacements, this, trained), slots[-1], slots[:-1], weights, n)
        return slots, _with_step(slot_steps, ready, lost, -1), ready

    trained = [i for i, update in enumerate(updates) if update is not None]
    # A jump overwrites the last slot. If that is the one of step 0, the differences to it have lost their meaning.
    last = len(slots) - 1
    lost = range(last + 1) if this.plan.first_slot == last and this.snapshot_dtype is not None else [last]
    slots, slot_steps, ready = write_if(is_event, event, (slots, slot_steps, jnp.zeros([], bool)), weights, n)
    dtypes = [update.dtype for update in updates if update is not None]
    both = [[leaves[i] for i in trained] for leaves in (slots[-1], weights)]
    taken = write_if(ready, lambda _, d, w: _all_finite(d, w, dtypes), jnp.zeros([], bool), *both)
    moved = [
        None if u is None else jnp.where(taken, u + d.astype(u.dtype), u)
        for u, d in zip(updates, slots[-1], strict=True)
    ]
    return moved, slots, slot_steps, taken.astype(jnp.int32), (is_jump & ~taken).astype(jnp.int32)


def _capture(
    this: Introspection, slots: list[Arrays], slot_steps: jax.Array, weights: Arrays, n: jax.Array
) -> tuple[list[Arrays], jax.Array]:
    """Keeps the weights in the slot of step `n`, if it is a step to keep."""
    slots = list(slots)
    for slot in range(this.plan.num_slots):
        is_now = jnp.any(n == this.capture_steps(slot))

        def write(old: Arrays, weights: Arrays, firsts: list[Any], slot: int = slot) -> Arrays:
            triples = zip(old, weights, firsts, strict=True)
            return [this.placed(slot, encode(weight, o.dtype, first)) for o, weight, first in triples]

        firsts = [this.first_of(slot, w, [arrays[i] for arrays in slots]) for i, w in enumerate(weights)]
        if this.capture_steps(slot).size:
            slots[slot] = write_if(is_now, write, slots[slot], weights, firsts)
        slot_steps = _with_step(slot_steps, is_now, [slot], n)
    return slots, slot_steps


def _with_step(slot_steps: jax.Array, condition: jax.Array, slots: Sequence[int], step: Any) -> jax.Array:
    """Returns `slot_steps` with the step of some slots, if a condition holds."""
    # As an update of a slice, it would keep the conditional out of the CUDA graph.
    return jnp.where(condition & np.isin(np.arange(slot_steps.size), slots), step, slot_steps)


def _displacements(
    this: Introspection, trained: list[int], last: Arrays, others: list[Arrays], weights: Arrays, n: jax.Array
) -> Arrays:
    """Returns the forecasts less the weights, for the jump at step `n`, in place of what the last slot holds."""
    slot_of_point = jnp.asarray(this.jump_slots)[jnp.argmax(n == this.jump_steps)]
    key = jax.random.fold_in(jax.random.key(0), n)

    def displacement(
        last: jax.Array, others: list[jax.Array], weight: jax.Array, slot_of_point: jax.Array, key: jax.Array
    ) -> jax.Array:
        kept = [*others, last]

        def weights_in(slot: int) -> jax.Array:
            return decode(this.on_device(slot, kept[slot]), weight.dtype, this.first_of(slot, weight, kept))

        points = [weight.astype(compute_dtype(weight.dtype))]
        for j in range(len(this.plan.points) - 1):
            # One program serves all jumps: it picks the slot by number, among those that this point is ever in.
            first, *rest = np.unique(this.jump_slots[:, j]).tolist()
            point = weights_in(first)
            for slot in rest:
                point = jnp.where(slot_of_point[j] == slot, weights_in(slot), point)
            points.append(point)
        forecast = _forecast(this.forecaster, points, key).astype(weight.dtype)
        return (forecast.astype(points[0].dtype) - points[0]).astype(last.dtype)

    # Each in a branch of its own, always taken: arrays of one shape would otherwise share the constants of a network,
    # and XLA would write these down for every weight. Traced once for all arrays of one shape and dtype.
    in_own_branch = jax.jit(partial(write_if, n >= 0, displacement))
    return [
        in_own_branch(last[i], [slot[i] for slot in others], weight, slot_of_point, jax.random.fold_in(key, i))
        if i in trained
        else last[i]
        for i, weight in enumerate(weights)
    ]


def _forecast(forecaster: Forecaster, points: Arrays, key: jax.Array) -> jax.Array:
    """Forecasts one array, a complex one as two reals."""
    if not jnp.iscomplexobj(points[0]):
        return forecaster(*points, key=key)
    real, imag = jax.random.split(key)
    parts = forecaster(*(p.real for p in points), key=real), forecaster(*(p.imag for p in points), key=imag)
    return lax.complex(*parts)


def _all_finite(displacements: Arrays, weights: Arrays, dtypes: list[Any]) -> jax.Array:
    """Returns whether the weights that a jump leads to are finite everywhere.

    Args:
      displacements: The displacements.
      weights: The weights.
      dtypes: Dtypes of the updates, which the displacements are added to: one that is not finite there makes the weight
        so, too.
    """
    together: dict[Any, list[int]] = {}
    small = SMALL if jax.device_count() == 1 else 0
    for i, (w, dtype) in enumerate(zip(weights, dtypes, strict=True)):
        together.setdefault((jax.typeof(w), dtype) if w.size <= small else i, []).append(i)
    finite: list[Any] = [True]
    for numbers in together.values():
        d, w = (jnp.stack([arrays[i] for i in numbers]) for arrays in (displacements, weights))
        dtype, wide = dtypes[numbers[0]], compute_dtype(w.dtype)
        moved = (w.astype(wide) + d.astype(dtype).astype(wide)).astype(w.dtype)
        # The largest magnitude is finite only if all are: one number, where `isfinite` would write a mask.
        parts = (moved.real, moved.imag) if jnp.iscomplexobj(moved) else (moved,)
        finite += [jnp.isfinite(jnp.max(jnp.abs(part), initial=0)) for part in parts]
    return jnp.all(jnp.array(finite))
