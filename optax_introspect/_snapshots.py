"""Format of snapshots: their leaves, dtype, memory, and differences to the first weights."""

from typing import Any

import jax
import jax.numpy as jnp

HOST_MEMORY = "pinned_host"


def checked_snapshot_dtype(snapshot_dtype: Any) -> Any:
    """Returns the dtype of snapshots as JAX has it; None stays None.

    Raises:
      ValueError: It is not a floating dtype of at least 16 bits.
    """
    if snapshot_dtype is None:
        return None
    try:
        valid = _is_floating(jnp.dtype(snapshot_dtype))
    except TypeError:
        valid = False
    if not valid:
        raise ValueError(
            "snapshot_dtype must be None or a floating dtype of at least 16 bits, such as jnp.bfloat16; "
            f"got {snapshot_dtype!r}"
        )
    return jax.dtypes.canonicalize_dtype(snapshot_dtype)


def checked_memory_kind(memory_kind: str | None) -> str | None:
    """Returns a kind of memory for snapshots.

    Raises:
      ValueError: It is an unknown one.
    """
    if memory_kind not in (None, HOST_MEMORY):
        raise ValueError(f'memory_kind must be "{HOST_MEMORY}" or None; got {memory_kind!r}')
    return memory_kind


def check_host_memory(leaves: list[Any]) -> None:
    """Raises a ValueError if a device that the leaves are on can't use pinned memory of its host."""
    local: list[Any] = jax.local_devices()
    arrays = [leaf for leaf in leaves if isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer)]
    devices: set[Any] = {device for array in arrays for device in array.sharding.device_set if device in local}
    for device in devices or local[:1]:
        kinds = [memory.kind for memory in device.addressable_memories()]
        if HOST_MEMORY not in kinds:
            raise ValueError(
                f'memory_kind="{HOST_MEMORY}" is not available on {device}, which has {kinds}; use memory_kind=None'
            )


def dtype_of_snapshot(dtype: Any, snapshot_dtype: Any) -> Any:
    """Returns the dtype of the snapshots of weights of a dtype; None for weights that are not forecast."""
    if jnp.issubdtype(dtype, jnp.complexfloating):
        return dtype  # there are no narrow complex numbers
    if _is_floating(dtype):
        return dtype if snapshot_dtype is None else snapshot_dtype
    return None


def holds_differences(weight_dtype: Any, slot_dtype: Any) -> bool:
    """Returns whether a slot holds differences to the weights of step 0, where these are kept: if it is of other dtype.

    The weights of step 0 themselves are kept in their own dtype. So a weight that has not moved is not moved, and the
    state alone tells what its slots hold.
    """
    return bool(jnp.dtype(weight_dtype) != jnp.dtype(slot_dtype))


def empty_snapshot(weight: Any, dtype: Any) -> jax.Array:
    """Returns zeros for a slot, sharded as the weights are."""
    if isinstance(weight, jax.core.Tracer):
        # Under jit, XLA would place plain zeros anywhere; these depend on the weights, as far as it can see.
        return jnp.where(True, jnp.zeros((), dtype), weight.astype(dtype))
    return jnp.zeros_like(weight, dtype)


def encode(weight: jax.Array, dtype: Any, first: jax.Array | None) -> jax.Array:
    """Returns what a slot holds of an array of weights.

    Args:
      weight: The weights.
      dtype: The dtype of the slot.
      first: The slot of step 0, if this one holds the difference to it.
    """
    if first is None:
        return weight.astype(dtype)
    wide = compute_dtype(weight.dtype)
    return (weight.astype(wide) - first.astype(wide)).astype(dtype)


def decode(snapshot: jax.Array, weight_dtype: Any, first: jax.Array | None) -> jax.Array:
    """Returns the weights that a slot holds, in the dtype that forecasts are computed in; inverse of `encode`."""
    wide = compute_dtype(weight_dtype)
    return snapshot.astype(wide) if first is None else snapshot.astype(wide) + first.astype(wide)


def compute_dtype(dtype: Any) -> Any:
    """Returns the dtype that forecasts of weights of a dtype are computed in: float32, or float64 for float64."""
    with jax.numpy_dtype_promotion("standard"):  # also under strict promotion
        return jnp.promote_types(dtype, jnp.float32)


def to_host(array: jax.Array) -> jax.Array:
    """Returns an array in the memory of the host."""
    moved: jax.Array = jax.device_put(array, jax.memory.Space.Host)
    return moved


def to_device(array: jax.Array) -> jax.Array:
    """Returns an array in the memory of the device."""
    moved: jax.Array = jax.device_put(array, jax.memory.Space.Device)
    return moved


def _is_floating(dtype: Any) -> bool:
    # Types of 8 bits and less hold quantised weights, which are not moved by themselves.
    return bool(jnp.issubdtype(dtype, jnp.floating)) and jnp.dtype(dtype).itemsize >= 2
