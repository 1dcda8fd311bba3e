"""What a jump has to keep and to move."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_introspect import Plan, plan
from optax_introspect.plan import PAPER_POINTS

from .networks import Network, total

# The trajectory points of the forecasters: all of them that the costs depend on.
POINTS = {"predictor": PAPER_POINTS, "two-point 1.3": (1.0, 0.4)}

# An update of Adam reads gradient, weights and both moments, and writes all but the gradient.
ADAM_ARRAYS = 7


@dataclasses.dataclass(frozen=True)
class Chip:
    """An accelerator.

    Attributes:
      name: what it is called.
      bandwidth: of its memory in bytes a second, as published.
      source: where.
    """

    name: str
    bandwidth: float
    source: str


H100 = Chip("H100", 3.35e12, "https://www.nvidia.com/en-us/data-center/h100/")  # with SXM
TPU_V5E = Chip("TPU v5e", 819e9, "https://cloud.google.com/tpu/docs/v5e")
CHIPS = (H100, TPU_V5E)

# Of the predictor for one weight, each multiply-add counted twice; and of an H100 in a second, float32 without tensor
# cores, as published.
FLOPS_A_WEIGHT, FLOPS_OF_H100 = 400, 67e12

# PCI Express 5.0 with 16 lanes of 32 gigabits a second: bytes a second, in each direction.
HOST_LINK = 64e9


@dataclasses.dataclass(frozen=True)
class Costs:
    """The costs of one network with one forecaster; all bytes on one chip.

    Attributes:
      network: the network.
      forecaster: a key of `POINTS`.
      snapshot_dtype: of the snapshots; None is that of the weights.
    """

    network: Network
    forecaster: str
    snapshot_dtype: str | None = None

    @functools.cached_property
    def plan(self) -> Plan:
        """The plan of its jumps."""
        return plan(self.network.jump_steps, POINTS[self.forecaster])

    @property
    def kept_as(self) -> str:
        """The dtype of the snapshots."""
        return self.snapshot_dtype or self.network.dtype

    @property
    def case(self) -> str:
        """Its name among the cases of `accelerators`."""
        return self.network.dtype + (f", {self.snapshot_dtype} snapshots" if self.snapshot_dtype else "")

    @property
    def weights(self) -> int:
        """How many weights a chip has."""
        return total(self.network.arrays_on_a_chip)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights."""
        return self.weights * jnp.dtype(self.network.dtype).itemsize

    @property
    def adam_bytes(self) -> int:
        """Bytes of the state of Adam, whose moments Optax keeps in the dtype of the weights."""
        state: Any = jax.eval_shape(optax.adam(1e-3).init, self.network.arrays_on_a_chip)
        return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))

    @property
    def snapshot_bytes(self) -> int:
        """Bytes of all snapshots."""
        return self.plan.nbytes(self.network.arrays_on_a_chip, self.snapshot_dtype)

    @property
    def slot_bytes(self) -> int:
        """Bytes of one slot: what stays on the device with `memory_kind="pinned_host"`."""
        return self.snapshot_bytes // self.plan.num_buffers

    @property
    def capture_bytes(self) -> int:
        """Bytes read and written by a capture, at most: a difference to `w_0` needs that as well."""
        narrow = jnp.dtype(self.kept_as).itemsize < jnp.dtype(self.network.dtype).itemsize
        return self.weight_bytes + self.slot_bytes * (2 if narrow and self.plan.points[-1] == 0 else 1)

    @property
    def jump_bytes(self) -> int:
        """Bytes read and written by a jump.

        The weights and a snapshot for each other point, the forecast written, and read to see whether it is finite.
        """
        return self.weight_bytes + self.slot_bytes * (len(self.plan.points) + 1)

    @property
    def all_bytes(self) -> int:
        """Bytes read and written by all captures and jumps of the training."""
        return len(self.plan.captures) * self.capture_bytes + len(self.plan.jumps) * self.jump_bytes

    @property
    def host_bytes(self) -> int:
        """Bytes that a jump moves from the memory of the host: all slots there, from which it picks on the device."""
        return self.snapshot_bytes - self.slot_bytes

    def in_updates_of_adam(self, moved: int) -> float:
        """Returns by how many updates of Adam as many bytes are read and written."""
        return moved / (ADAM_ARRAYS * self.weight_bytes)
