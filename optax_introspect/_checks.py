"""Checks of what `init` and `update` are called with."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ._plan import Plan
from ._step import Introspection


def check_period(schedule: Plan, period: int | None) -> None:
    """Raises a ValueError if a forecaster for jumps at even intervals gets other ones."""
    steps = schedule.jump_steps
    if period is None:
        return
    if (steps[0] + 1) % period or steps != tuple(range(steps[0], steps[-1] + 1, period)):
        raise ValueError(
            f"with period={period} the forecaster needs jump_steps=range({period - 1}, total, {period}), or a later "
            f"part; got {steps if len(steps) < 5 else f'{str(steps[:4])[:-1]}, ...)'}"
        )


def check_arrays(params: optax.Params) -> None:
    """Raises a ValueError if parameters are not arrays or numbers."""
    for path, leaf in jax.tree.leaves_with_path(params):
        if not hasattr(leaf, "dtype") and not isinstance(leaf, int | float | complex):
            raise ValueError(
                f"params must be a tree of arrays; leaf {_name(path)} is {leaf!r}. With Equinox, pass "
                "eqx.filter(model, eqx.is_inexact_array), to `update` as well"
            )


def check_snapshots(this: Introspection, params: optax.Params, snapshots: Sequence[optax.Params]) -> None:
    """Raises a ValueError if snapshots are not those of these parameters and this schedule."""
    if len(snapshots) != this.plan.num_slots:
        raise ValueError(
            f"the state has {len(snapshots)} slots, and the jumps need {this.plan.num_slots}: it was made for "
            "other jumps; see optax_introspect.reschedule"
        )
    for slot, snapshot in enumerate(snapshots):
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


def check_memory(this: Introspection, snapshots: Sequence[optax.Params]) -> None:
    """Raises a ValueError if snapshots that are to be in the memory of the host are traced in that of the device.

    JAX ends the process if it is to donate one to the other.
    """
    for slot in this.slots_on_host:
        for leaf in jax.tree.leaves(snapshots[slot]):
            if isinstance(leaf, jax.core.Tracer) and jax.typeof(leaf).memory_space != jax.memory.Space.Host:
                raise ValueError(
                    f"snapshots must be in the memory of the host; slot {slot} is in that of the device. Place a state "
                    "that was restored by jax.device_put(state, jax.tree.map(lambda x: x.sharding, tx.init(params)))"
                )


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/") or "the root"
