"""JAX's strict and debugging modes object to nothing at captures, idle steps and jumps, and change no weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optax_introspect import forecaster, gaussian_noise, introspect, polynomial, pretrained
from tests.composition.by_hand import jumps_taken

MODES = {
    "jax_enable_x64": lambda: jax.enable_x64(True),
    "jax_debug_nans": lambda: jax.debug_nans(True),
    "jax_numpy_dtype_promotion": lambda: jax.numpy_dtype_promotion("strict"),
    "jax_transfer_guard": lambda: jax.transfer_guard("disallow"),
    "jax_check_tracer_leaks": jax.checking_leaks,
}

OPTIMIZERS = {
    "network": lambda: optax.chain(optax.sgd(0.05), introspect((5, 7), pretrained(), snapshot_dtype=jnp.bfloat16)),
    "others": lambda: optax.chain(
        optax.sgd(0.05), introspect((5, 7), polynomial(1, 1.3)), introspect((6, 8), gaussian_noise(0.01, 0))
    ),
}


def parameters():
    return {
        "bf16": jnp.arange(1, 5, dtype=jnp.bfloat16) / 4,
        "c64": jnp.array([1 + 2j, 0.5j], jnp.complex64),
        "f32": jnp.linspace(0.5, 2, 6).reshape(2, 3),
    }


def train(tx, weights, gradients, compiled):
    """Returns the weights after some steps and all the jumps, and the state of the optimizer."""

    def step(weights, state):
        updates, state = tx.update(gradients, state, weights)
        return optax.apply_updates(weights, updates), state

    step = jax.jit(step) if compiled else step
    state = jax.jit(tx.init)(weights) if compiled else tx.init(weights)
    for _ in range(10):
        weights, state = step(weights, state)
    return jax.block_until_ready(weights), state


@functools.cache
def expected(kind):
    weights = parameters()
    return train(OPTIMIZERS[kind](), weights, jax.tree.map(jnp.ones_like, weights), compiled=True)


@pytest.mark.parametrize(
    ("mode", "kind", "compiled"),
    [(mode, kind, True) for mode in MODES for kind in OPTIMIZERS]
    # Uncompiled, Optax transfers constants to the device.
    + [(mode, "network", False) for mode in MODES if mode != "jax_transfer_guard"],
)
def test_mode(mode, kind, compiled):
    wanted, _ = expected(kind)
    weights = parameters()
    gradients = jax.tree.map(jnp.ones_like, weights)
    with MODES[mode]():
        found, state = train(OPTIMIZERS[kind](), weights, gradients, compiled)
    assert jumps_taken(state) == ([2] if kind == "network" else [2, 2])
    for name in wanted:
        assert found[name].dtype == wanted[name].dtype
        # Uncompiled operations round one by one.
        tolerance = 1e-2 if name == "bf16" and not compiled else 1e-5
        np.testing.assert_allclose(
            np.asarray(found[name], np.complex128), np.asarray(wanted[name], np.complex128), tolerance, err_msg=name
        )


def test_double_precision():
    """Weights of 64 bits have snapshots of 64 bits, and are forecast in 32."""
    with jax.enable_x64(True):
        weights = {"w": jnp.linspace(1, 2, 5)}
        tx = optax.chain(optax.sgd(0.1), introspect((5, 10), polynomial(1, 1.3, points=(1.0, 0.4))))
        found, state = train(tx, weights, jax.tree.map(jnp.ones_like, weights), compiled=True)
    assert found["w"].dtype == state[1].snapshots[0]["w"].dtype == np.float64
    # 0.3 further at the first jump instead of 0.1 by an update: a slope of 0.1, seen over 3 steps, halved.
    assert jumps_taken(state) == [1]
    np.testing.assert_allclose(found["w"], np.linspace(1, 2, 5) - 9 * 0.1 - 0.15, 1e-6)


def test_debug_nans_stops_at_a_forecast_that_would_be_refused():
    tx = introspect((1,), forecaster(lambda now: now * jnp.nan, (1.0,)))
    weights = jnp.ones(3)
    state = tx.init(weights)
    _, state = tx.update(weights, state, weights)
    assert int(tx.update(weights, state, weights)[1].jumps_refused) == 1
    with jax.debug_nans(True), pytest.raises(FloatingPointError, match="invalid value"):
        tx.update(weights, state, weights)
