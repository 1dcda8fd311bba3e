"""Where the arrays of a run lie: one mesh of all devices, the batch and, if wanted, the weights in shares."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXIS = "data"

# Smaller arrays are on every device: gathering them would take longer than they are worth.
SMALLEST_SHARED = 2**14


def device_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """Returns a mesh of all devices, or of some; those of one process are neighbours, in the order of the processes."""
    chosen = jax.devices() if devices is None else list(devices)
    in_order = sorted(chosen, key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(in_order), (AXIS,), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of what is on every device."""
    return NamedSharding(mesh, PartitionSpec())


def in_shares(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of batches: every device has its share of the examples."""
    return NamedSharding(mesh, PartitionSpec(AXIS))


def spec(shape: tuple[int, ...], devices: int) -> PartitionSpec:
    """Returns how weights are shared among devices: along the largest dimension that can be, the last of equal ones.

    Args:
      shape: of an array.
      devices: the size of the mesh.
    """
    able = [i for i, size in enumerate(shape) if size % devices == 0]
    if devices == 1 or not able or np.prod(shape) < SMALLEST_SHARED:
        return PartitionSpec()
    chosen = max(able, key=lambda i: (shape[i], i))
    return PartitionSpec(*(AXIS if i == chosen else None for i in range(chosen + 1)))


def shardings(tree: Any, mesh: Mesh, fsdp: bool) -> Any:
    """Returns the sharding of every array of a training state.

    It follows from the shape alone; so what an optimizer keeps of an array, and its snapshots, lie where it lies.

    Args:
      tree: arrays or their shapes.
      mesh: all devices.
      fsdp: whether weights are shared among the devices ("fully sharded data parallel"); otherwise all have them.
    """
    return jax.tree.map(
        lambda leaf: NamedSharding(mesh, spec(leaf.shape, mesh.size)) if fsdp else replicated(mesh), tree
    )


def check_batch_size(batch_size: int, mesh: Mesh) -> None:
    """Raises a ValueError if a batch can't be dealt out evenly."""
    if batch_size < 1 or batch_size % mesh.size:
        raise ValueError(
            f"batch_size must be a multiple of the number of devices, {mesh.size}, so that each has as many examples; "
            f"got {batch_size}"
        )
