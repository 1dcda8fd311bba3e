"""The transformation against the oracle, its state, and its errors."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optax_introspect import (
    custom_forecaster,
    gaussian_noise,
    heavy_ball,
    introspect,
    linear,
    lookahead,
    nesterov,
    polynomial,
    pretrained,
)
from tests.optax_introspect import oracle
from tests.optax_introspect.test_plan import schedules

TWO_POINT = polynomial(1, 1.3, points=(1.0, 0.4))


def weighted_sum(coefficients):
    """The oracle's form of `linear`."""
    c = np.array(coefficients)
    return lambda values: (np.tensordot(c, values, 1), np.tensordot(np.abs(c), np.abs(values), 1))


def network(module):
    """The oracle's form of an introspection network whose weights are scaled by 1000."""

    def forecast(values):
        x = 1000 * np.moveaxis(values, 0, -1)
        now = x[..., :1]
        x = x[..., 1:] - now if module.residual else x
        size = np.abs(x) + 0 * now
        *hidden, last = module.dense()
        for kernel, bias, _ in hidden:
            x, size = np.maximum(x @ kernel.astype(float) + bias, 0), size @ np.abs(kernel) + np.abs(bias)
        x, size = x @ last.kernel.astype(float) + last.bias, size @ np.abs(last.kernel) + np.abs(last.bias)
        x, size = (x + now if module.residual else x)[..., 0], (size + np.abs(now))[..., 0]
        return x / 1000, size / 1000

    return forecast


def run(tx, weights, updates):
    """Returns the updates that `tx` makes of given ones for given weights, and its last state."""
    state, update = tx.init(weights[0]), jax.jit(tx.update)
    new = []
    for w, u in zip(weights, updates, strict=True):
        result, state = update(u, state, w)
        new.append(result)
    return new, state


def check(jump_steps, forecaster, forecast, dtype, snapshot_dtype=None, seed=0, **kwargs):
    """Asserts that at jump steps the displacement is added to updates, and that else they stay as they are."""
    random = np.random.default_rng(seed)
    length = max(jump_steps) + 4
    walk = random.normal(size=2) + np.cumsum(0.1 * random.normal(size=(length, 2)), 0)
    if jnp.issubdtype(dtype, jnp.complexfloating):
        walk = walk + 1j * np.cumsum(random.normal(size=(length, 2)), 0)
    history = [np.asarray(w).astype(dtype) for w in walk]
    updates = [np.asarray(0.01 * random.normal(size=2)).astype(dtype) for _ in range(length)]
    tx = introspect(jump_steps, forecaster, snapshot_dtype=snapshot_dtype, **kwargs)
    new, state = run(tx, list(map(jnp.asarray, history)), list(map(jnp.asarray, updates)))
    for n in range(length):
        if n not in jump_steps:
            np.testing.assert_array_equal(new[n], updates[n])
            continue
        moved, tolerance = oracle.displacement(history[: n + 1], forecast, forecaster.points, snapshot_dtype)
        found = oracle.wide(new[n]) - oracle.wide(updates[n])
        assert new[n].dtype == dtype
        assert np.all(np.abs(found - moved) <= tolerance + oracle.eps(updates[n]) * np.abs(oracle.wide(new[n])))
    assert state.jumps_taken == len(jump_steps)
    assert state.jumps_refused == 0


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(
    schedules(),
    st.sampled_from([np.float32, np.float16, jnp.bfloat16, np.complex64]),
    st.sampled_from([None, jnp.bfloat16, np.float32]),
)
def test_any_schedule_against_the_oracle(drawn, dtype, snapshot_dtype):
    jump_steps, points = drawn
    coefficients = np.linspace(2, -1, len(points)) if len(points) > 1 else np.ones(1)
    coefficients = coefficients / coefficients.sum()
    check(jump_steps, linear(coefficients, points), weighted_sum(coefficients), dtype, snapshot_dtype)


@pytest.mark.parametrize("jump_steps", [(10,), (10, 14), (6, 7, 8), (10, 25, 40)])
@pytest.mark.parametrize("name", ["mnist-n0", "mnist-n0-equivariant", "mnist-n0-linear"])
def test_networks_against_the_oracle(name, jump_steps):
    forecaster = pretrained(name)
    if name == "mnist-n0-linear":
        layers = forecaster.module.dense()
        kernel = layers[0].kernel.astype(float) @ layers[1].kernel
        bias = layers[0].bias.astype(float) @ layers[1].kernel + layers[1].bias

        def forecast(values):
            flat = np.moveaxis(values, 0, -1)
            size = np.abs(flat) @ (np.abs(layers[0].kernel) @ np.abs(layers[1].kernel))
            return (flat @ kernel + bias / 1000)[..., 0], size[..., 0] + np.abs(bias) / 1000

    else:
        forecast = network(forecaster.module)
    check(jump_steps, forecaster, forecast, np.float32)


@pytest.mark.parametrize("dtype", [np.float64, np.complex128])
def test_wide_weights_are_forecast_in_their_own_precision(dtype):
    with jax.enable_x64(True):
        check((10, 20), pretrained(), network(pretrained().module), dtype)
        steps = [jnp.asarray(np.array([1 + 1e-9 * n]).astype(dtype)) for n in range(12)]
        new, _ = run(introspect((10,)), steps, [jnp.zeros_like(steps[0])] * 12)
    assert 1e-9 < np.real(np.asarray(new[10])) < 3e-8  # in float32 it was forecast to go back


@pytest.mark.parametrize("snapshot_dtype", [None, jnp.bfloat16])
@pytest.mark.parametrize("forecaster", [pretrained(), TWO_POINT, nesterov(5)])
def test_memory_of_the_host_changes_nothing(forecaster, snapshot_dtype):
    jump_steps = range(4, 24, 5)
    coefficients = getattr(forecaster, "coefficients", None)
    forecast = network(forecaster.module) if coefficients is None else weighted_sum(coefficients)
    check(jump_steps, forecaster, forecast, np.float32, snapshot_dtype, memory_kind="pinned_host")
    state = introspect(jump_steps, forecaster, memory_kind="pinned_host").init(jnp.ones(2))
    assert [s.sharding.memory_kind for s in state.snapshots[:-1]] == ["pinned_host"] * (len(state.snapshots) - 1)


def recursion(name, period, steps, slope):
    """Lookahead and outer momentum as they are usually written, with the jump on top of the update."""
    w = s = s_before = np.array([3.0, -4.0, 1.0])
    buffer, eta, mu = np.zeros(3), 0.8, 0.75
    history = [w]
    for n in range(steps):
        u = -0.1 * slope(w)
        if n % period < period - 1:
            w = w + u
        else:
            if name == "lookahead":
                target = s + 0.5 * (w - s)
            elif name == "heavy_ball":
                target = s + eta * (w - s) + mu * (s - s_before)
            else:
                # What an update on top of each jump adds to `s` is no momentum.
                buffer = mu * buffer + (w - s)
                target = s + eta * (mu * buffer + w - s)
            w = target + u
            s_before, s = s, w
            if name == "nesterov":
                buffer = buffer + u / (eta * mu)
        history.append(w)
    return history


@pytest.mark.parametrize("name", ["lookahead", "heavy_ball", "nesterov"])
@pytest.mark.parametrize("period", [2, 5])
def test_windows_equal_their_recursions(name, period):
    forecaster = {"lookahead": lookahead, "heavy_ball": heavy_ball, "nesterov": nesterov}[name]
    arguments = (period, 0.5) if name == "lookahead" else (period, 0.8, 0.75)
    curvature = np.array([1.0, 0.5, 0.1])
    expected = recursion(name, period, 60, lambda w: curvature * w)
    with jax.enable_x64(True):
        tx = optax.chain(optax.sgd(0.1), introspect(range(period - 1, 60, period), forecaster(*arguments)))
        w = jnp.asarray(expected[0])
        state = tx.init(w)
        for n in range(60):
            updates, state = jax.jit(tx.update)(w * curvature, state, w)
            w = optax.apply_updates(w, updates)
            np.testing.assert_allclose(w, expected[n + 1], rtol=1e-13, atol=1e-15)
    assert state[-1].jumps_taken == 60 // period


def test_noise_is_new_for_every_jump_and_array():
    weights = {name: jnp.full(4000, 3.0) for name in "ab"}
    zeros = jax.tree.map(jnp.zeros_like, weights)
    new, _ = run(introspect((2, 4), gaussian_noise(0.1, 7)), [weights] * 6, [zeros] * 6)
    noise = np.stack([new[2]["a"], new[2]["b"], new[4]["a"], new[4]["b"]])
    np.testing.assert_allclose(noise.std(axis=1), 0.1, rtol=0.1)
    assert np.abs(np.corrcoef(noise) - np.eye(4)).max() < 0.1
    assert not np.any(new[5]["a"])


def test_a_weight_that_has_not_moved_is_not_moved():
    weights = {"w": jnp.array([10.0, -3e-5, 0.0, 1e30]), "h": jnp.array([0.1], jnp.bfloat16)}
    zeros = jax.tree.map(jnp.zeros_like, weights)
    for kwargs in ({}, {"snapshot_dtype": jnp.bfloat16}, {"forecaster": nesterov(5)}, {"forecaster": TWO_POINT}):
        new, state = run(introspect((4, 9, 14), **kwargs), [weights] * 20, [zeros] * 20)
        assert all(not np.any(leaf) for leaf in jax.tree.leaves(new))
        assert state.jumps_taken == 3


@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38])
def test_a_forecast_that_is_not_finite_refuses_the_whole_jump(value):
    steps = [{"a": jnp.full(2, float(n)), "b": jnp.array([1.0, value if n == 10 else 0.0])} for n in range(25)]
    ones = jax.tree.map(jnp.ones_like, steps[0])
    new, state = run(introspect((10, 20), polynomial(1, 2.0, points=(1.0, 0.7))), steps, [ones] * 25)
    jax.tree.map(np.testing.assert_array_equal, new[10], ones)
    np.testing.assert_allclose(new[20]["a"], 1 + 20 * np.ones(2), rtol=1e-5)
    assert (state.jumps_taken, state.jumps_refused) == (1, 1)


@pytest.mark.parametrize(
    ("leaf", "update"),
    [
        (np.array([1, 2], np.int32), np.zeros(2, jax.dtypes.float0)),
        (np.array([True]), np.zeros(1, jax.dtypes.float0)),
        (np.array([-np.inf], np.float32), None),
        (np.array([-np.inf], np.float32), np.zeros(1, jax.dtypes.float0)),
        (np.ones(2, jnp.float8_e4m3fn), np.zeros(2, jnp.float8_e4m3fn)),
        (np.ones(2, jnp.float4_e2m1fn), np.zeros(2, jnp.float4_e2m1fn)),
        (np.zeros((0, 3), np.float32), np.zeros((0, 3), np.float32)),
    ],
)
def test_other_leaves_are_left_alone(leaf, update):
    tx = introspect((10,), TWO_POINT)
    state = tx.init({"w": jnp.zeros(2), "other": jnp.asarray(leaf)})
    for n in range(12):
        new, state = tx.update({"w": jnp.ones(2), "other": update}, state, {"w": jnp.full(2, float(n)), "other": leaf})
        np.testing.assert_allclose(new["w"], 1.0 if n != 10 else 4.0, rtol=1e-6)
        assert new["other"] is update or (leaf.size == 0) or np.array_equal(new["other"], update)
    assert (state.jumps_taken, state.jumps_refused) == (1, 0)


def test_weights_that_are_trained_later_are_kept_from_the_start():
    tx = introspect((10,), TWO_POINT)
    params = {"w": jnp.zeros(2), "late": jnp.full(2, 5.0)}
    state = tx.init(params)
    for n in range(12):
        updates = {"w": jnp.ones(2), "late": None if n < 6 else jnp.full(2, 0.01)}
        updates, state = tx.update(updates, state, params)
        params = jax.tree.map(lambda w, u: w if u is None else w + u, params, updates, is_leaf=lambda x: x is None)
    # 0.04 from step 4 to step 10, of which a jump adds half.
    np.testing.assert_allclose(params["late"], 5 + 0.06 + 0.02, rtol=1e-6)
    assert state.jumps_taken == 1


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_updates_keep_their_dtype(dtype):
    tx = optax.apply_if_finite(optax.chain(optax.sgd(0.1), introspect((10,), TWO_POINT)), 3)
    params, state = jnp.ones(2), tx.init(jnp.ones(2))
    for _ in range(12):
        updates, state = jax.jit(tx.update)(jnp.ones(2, dtype), state, params)
        assert updates.dtype == dtype
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(params, 1 - 1.2 - 0.3, rtol=0.01)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [("jax_numpy_rank_promotion", "raise"), ("jax_numpy_dtype_promotion", "strict"), ("jax_debug_nans", True)],
)
@pytest.mark.parametrize("forecaster", [pretrained("mnist-n0"), pretrained(), nesterov(5), gaussian_noise(0.1, 0)])
def test_strict_modes_of_jax(options, forecaster):
    name, value = options
    before = getattr(jax.config, name)
    jax.config.update(name, value)
    try:
        tx = introspect(range(4, 12, 5), forecaster, snapshot_dtype=jnp.bfloat16)
        params = {"w": jnp.ones((3, 2)), "h": jnp.ones(2, jnp.bfloat16), "c": jnp.ones((), jnp.complex64)}
        state = tx.init(params)
        for _ in range(11):
            _, state = jax.jit(tx.update)(params, state, params)
        assert state.jumps_taken == 2
    finally:
        jax.config.update(name, before)


def test_state():
    tx = introspect((10,), polynomial(1, 1.3, points=(1.0, 0.4)))
    state = tx.init({"w": jnp.ones(2, jnp.bfloat16), "n": jnp.array(3)})
    assert state.snapshots[0]["w"].dtype == jnp.bfloat16
    assert state.snapshots[0]["n"] == optax.MaskedNode()
    held = []
    for n in range(12):
        held.append(int(state.snapshot_steps[-1]))
        _, state = tx.update({"w": jnp.ones(2), "n": None}, state, {"w": jnp.full(2, n, jnp.bfloat16), "n": n})
    assert held == [-1] * 5 + [4] * 6 + [-1]
    assert state.introspect_step == 12
    assert jax.tree.structure(state) == jax.tree.structure(tx.init({"w": jnp.ones(2), "n": jnp.array(3)}))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: introspect((10,), snapshot_dtype=jnp.int32), ValueError, "snapshot_dtype must be None or a floating"),
        (lambda: introspect((10,), snapshot_dtype="float7"), ValueError, "got 'float7'"),
        (lambda: introspect((10,), snapshot_dtype=jnp.float8_e4m3fn), ValueError, "at least 16 bits"),
        (lambda: introspect((10,), memory_kind="disk"), ValueError, "must be \"pinned_host\" or None; got 'disk'"),
        (lambda: introspect((10,), "mnist-n0"), TypeError, "forecaster must be callable"),
        (lambda: introspect((10,), lambda w: w), TypeError, "and have points"),
        (
            lambda: introspect((19, 39, 60), nesterov(20)),
            ValueError,
            r"jump_steps=range\(19, total, 20\), or a later part; got \(19, 39",
        ),
        (lambda: introspect(range(20, 100, 20), lookahead(20)), ValueError, r"range\(19, total, 20\)"),
        (lambda: introspect(range(29, 100, 20), heavy_ball(20, 1, 0.5)), ValueError, r"range\(19, total, 20\)"),
        (lambda: introspect(range(0, 100, 20), nesterov(20)), ValueError, "got 0"),
        (lambda: custom_forecaster(lambda a: a, (1.0, 0.5)), ValueError, "can't be called with 2 arrays"),
        (lambda: custom_forecaster(lambda a: a[0], (1.0,)), ValueError, "of the shape of the weights"),
    ],
)
def test_bad_arguments_are_named(make, error, message):
    with pytest.raises(error, match=message):
        make()


class Model:
    def __repr__(self):
        return "<a model>"


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (None, "introspect needs params"),
        (
            {"w": jnp.ones(3), "b": jnp.ones(2)},
            r"at w the snapshots hold float32\[2\], and these params need float32\[3\]",
        ),
        ({"w": jnp.ones(2, jnp.bfloat16), "b": jnp.ones(2)}, r"at w the snapshots hold float32\[2\]"),
        ({"w": jnp.ones(2)}, r"at b the snapshots hold float32\[2\], and these params need nothing"),
        ({"w": jnp.ones(2), "b": Model()}, "leaf b is <a model>. With Equinox, pass eqx.filter"),
    ],
)
def test_other_params_than_at_init_are_named(params, message):
    tx = introspect((10, 20))
    state = tx.init({"w": jnp.ones(2), "b": jnp.ones(2)})
    updates = {"w": jnp.ones(2), "b": jnp.ones(2)} if params is None else jax.tree.map(lambda _: jnp.ones(2), params)
    with pytest.raises(ValueError, match=message):
        tx.update(updates, state, params)


def test_other_states_are_named():
    tx, params = introspect((10, 20)), jnp.ones(2)
    with pytest.raises(ValueError, match=r"state must be an IntrospectState; got dict\. A checkpoint restored without"):
        tx.update(params, dict(tx.init(params)._asdict()), params)
    with pytest.raises(ValueError, match="the state has 3 slots, and the jumps need 4: it was made for other jumps"):
        tx.update(params, introspect((10,)).init(params), params)
