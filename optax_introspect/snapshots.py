"""What a slot keeps: which leaves of the parameters, in which dtype, in which memory, and as what."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

HOST_MEMORY = "pinned_host"


def checked_snapshot_dtype(snapshot_dtype: Any) -> Any:
    """Returns the dtype that snapshots are to be kept in, as JAX has it; None stays None.

    Raises:
      ValueError: it is not a floating dtype.
    """
    if snapshot_dtype is None:
        return None
    try:
        floating = jnp.issubdtype(snapshot_dtype, jnp.floating)
    except TypeError:
        floating = False
    if not floating:
        raise ValueError(
            f"snapshot_dtype must be a floating dtype, such as jnp.bfloat16, or None; got {snapshot_dtype!r}"
        )
    return jax.dtypes.canonicalize_dtype(snapshot_dtype)


def dtype_of_snapshot(dtype: Any, snapshot_dtype: Any) -> Any:
    """Returns the dtype in which weights of `dtype` are kept; None for those that are never forecast."""
    if jnp.issubdtype(dtype, jnp.complexfloating):
        return dtype  # there are no narrow complex numbers
    if jnp.issubdtype(dtype, jnp.floating):
        return dtype if snapshot_dtype is None else snapshot_dtype
    return None


def promoted(*dtypes: Any) -> Any:
    """Returns the dtype that holds all of these, also where JAX is told not to promote by itself."""
    with jax.numpy_dtype_promotion("standard"):
        return functools.reduce(jnp.promote_types, dtypes)


def forecast_leaves(params: Any, mask: Any) -> list[bool]:
    """Returns for every leaf of the parameters whether it is forecast: if it is a number that the mask lets through.

    Args:
      params: the parameters.
      mask: a tree of booleans with the structure of `params` or a prefix of it, a function from `params` to such a
        tree, or None, which lets everything through.

    Raises:
      ValueError: a mask of another structure, or with other leaves.
    """
    leaves = jax.tree.leaves(params)
    # A module of booleans may be callable, too; as in Optax, a function is what has callable leaves only.
    functions = [callable(leaf) for leaf in jax.tree.leaves(mask)]
    chosen = True if mask is None else mask(params) if functions and all(functions) else mask
    allowed = "mask must be a tree of booleans with the structure of params, or with a boolean in place of a subtree"
    try:
        flags = jax.tree.leaves(jax.tree.broadcast(chosen, params))
    except ValueError as error:
        raise ValueError(f"{allowed}: {error}") from error
    for flag in flags:
        if not isinstance(flag, bool | np.bool_):
            raise ValueError(f"{allowed}; got the leaf {flag!r}")
    return [
        bool(flag) and dtype_of_snapshot(jnp.result_type(leaf), None) is not None
        for leaf, flag in zip(leaves, flags, strict=True)
    ]


def checked_memory_kind(memory_kind: str | None) -> str | None:
    """Returns a kind of memory that snapshots can be kept in.

    Raises:
      ValueError: it is another one.
    """
    if memory_kind not in (None, HOST_MEMORY):
        raise ValueError(f'memory_kind must be "{HOST_MEMORY}" or None; got {memory_kind!r}')
    return memory_kind


def check_host_memory(leaves: list[Any]) -> None:
    """Raises a ValueError if a device of this process that the leaves are on has no pinned memory of its host."""
    local: list[Any] = jax.local_devices()
    concrete = [leaf for leaf in leaves if isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer)]
    devices: set[Any] = {device for leaf in concrete for device in leaf.sharding.device_set}
    for device in devices or set(local[:1]):
        kinds = [memory.kind for memory in device.addressable_memories()] if device in local else [HOST_MEMORY]
        if HOST_MEMORY not in kinds:
            raise ValueError(
                f'memory_kind="{HOST_MEMORY}" cannot be had: {device} has the memories {kinds}; with memory_kind=None '
                "snapshots are kept beside the parameters"
            )


def to_host(array: jax.Array) -> jax.Array:
    """Moves an array to the memory of the host."""
    moved: jax.Array = jax.device_put(array, jax.memory.Space.Host)
    return moved


def to_device(array: jax.Array) -> jax.Array:
    """Moves an array to the memory of the device."""
    moved: jax.Array = jax.device_put(array, jax.memory.Space.Device)
    return moved


def is_difference(weight: jax.Array, dtype: Any) -> bool:
    """Returns whether a snapshot of this dtype is to be the difference to `w_0`, if `w_0` is there.

    At the same bytes the error of a forecast is about an eighth of that with the weight itself, rounded: in bfloat16,
    on MNIST_3, 1 % of what the jump changes instead of 8 % (`python -m experiments precision`).
    """
    return bool(jnp.dtype(dtype).itemsize < weight.dtype.itemsize)


def empty_snapshot(leaf: Any, dtype: Any) -> jax.Array:
    """Returns zeros for a slot of this dtype, sharded as the parameter is."""
    if isinstance(leaf, jax.core.Tracer):
        # Under `jit` with automatic axes the sharding is known only to XLA, which places zeros that depend on nothing
        # wherever it likes: these depend on the parameter, as far as it can see before everything is placed.
        return jnp.where(True, jnp.zeros((), dtype), leaf.astype(dtype))
    return jnp.zeros_like(leaf, dtype)


def as_snapshot(weight: jax.Array, dtype: Any, first: jax.Array | None) -> jax.Array:
    """Returns what a slot of this dtype keeps of an array of weights.

    Args:
      weight: the weights.
      dtype: of the slot.
      first: what is kept of `w_0`, for a difference to it.
    """
    if first is None:
        return weight.astype(dtype)
    wide = promoted(weight.dtype, jnp.float32)
    return (weight.astype(wide) - first.astype(wide)).astype(dtype)


def from_snapshot(snapshot: jax.Array, weight: jax.Array, first: jax.Array | None) -> jax.Array:
    """Returns the weights that a slot keeps, the inverse of `as_snapshot`; `weight` is any of their dtype."""
    if first is None:
        return snapshot
    wide = promoted(weight.dtype, jnp.float32)
    return snapshot.astype(wide) + first.astype(wide)
