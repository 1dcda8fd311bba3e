"""One contract for all forecasters, and what each of them computes."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from optax_introspect import (
    IntrospectionNetwork,
    custom_forecaster,
    gaussian_noise,
    heavy_ball,
    introspect,
    linear,
    lookahead,
    nesterov,
    network_forecaster,
    plan,
    polynomial,
    pretrained,
)
from optax_introspect.forecasters import _evaluate

KEY = jax.random.key(0)


def average(now, before):
    return (now + before) / 2


def network(**kwargs):
    return IntrospectionNetwork(rngs=nnx.Rngs(0), **kwargs)


class OtherModule(nnx.Module):
    def __init__(self):
        self.norm = nnx.LayerNorm(4, rngs=nnx.Rngs(0))
        self.linear = nnx.Linear(4, 1, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return self.linear(self.norm(x))


MAKERS = {
    **{name: lambda name=name: pretrained(name) for name in ("mnist-n0", "mnist-n0-equivariant", "mnist-n0-linear")},
    "deep": lambda: network_forecaster(network(hidden=(8, 6))),
    "wide": lambda: network_forecaster(network(hidden=(300,), residual=True)),
    "no hidden layer": lambda: network_forecaster(network(hidden=(), use_bias=False), scale=3.0),
    "window": lambda: network_forecaster(network(num_points=3), points=(1.0, -5, -10)),
    "other module": lambda: network_forecaster(OtherModule()),
    "linear": lambda: linear((2.0, -0.5, -0.5), (1.0, -3, 0.5)),
    "polynomial": lambda: polynomial(2, 1.4),
    "lookahead": lambda: lookahead(5),
    "heavy ball": lambda: heavy_ball(5, 0.9, 0.5),
    "nesterov": lambda: nesterov(5),
    "noise": lambda: gaussian_noise(0.1, 0),
    "custom": lambda: custom_forecaster(average, (1.0, -2)),
}
KEEPS_STILL = {"mnist-n0-equivariant", "linear", "polynomial", "lookahead", "heavy ball", "nesterov", "custom"}


def points_of(forecaster, shape, dtype=np.float32, seed=0):
    random = np.random.default_rng(seed)
    return [jnp.asarray(random.normal(size=shape).astype(dtype)) for _ in forecaster.points]


@pytest.mark.parametrize("name", MAKERS)
class TestContract:
    @pytest.mark.parametrize("shape", [(), (0,), (5, 1, 2)])
    def test_forecasts_have_the_shape_and_dtype_of_the_weights(self, name, shape):
        forecaster = MAKERS[name]()
        points = points_of(forecaster, shape)
        forecast = jax.jit(lambda *w: forecaster(*w, key=KEY))(*points)
        assert (forecast.shape, forecast.dtype) == (shape, jnp.float32)
        assert np.all(np.isfinite(forecast))

    def test_each_weight_is_forecast_from_its_own_points(self, name):
        forecaster = MAKERS[name]()
        points = points_of(forecaster, (7,))
        whole = forecaster(*points, key=KEY)
        if name != "noise":  # whose draws depend on the shape
            parts = [forecaster(*(p[i : i + 1] for p in points), key=KEY)[0] for i in range(7)]
            np.testing.assert_allclose(whole, np.stack(parts), rtol=2e-5, atol=1e-6)
        assert np.unique(np.asarray(whole)).size == 7

    def test_a_weight_that_stays_is_forecast_to_stay(self, name):
        forecaster = MAKERS[name]()
        weight = jnp.array([10.0, -3e-5, 0.0])
        forecast = forecaster(*[weight] * len(forecaster.points), key=KEY)
        assert np.array_equal(forecast, weight) == (name in KEEPS_STILL)

    def test_it_can_be_planned_and_pickled(self, name):
        forecaster = MAKERS[name]()
        again = pickle.loads(pickle.dumps(forecaster))
        points = points_of(forecaster, (4,))
        np.testing.assert_array_equal(forecaster(*points, key=KEY), again(*points, key=KEY))
        jump_steps = range(4, 50, 5) if getattr(forecaster, "period", None) else (20, 40)
        assert plan(jump_steps, again.points).jumps
        introspect(jump_steps, again)

    def test_float64(self, name):
        forecaster = MAKERS[name]()
        with jax.enable_x64(True):
            points = points_of(forecaster, (4,), np.float64)
            forecast = forecaster(*points, key=KEY)
            assert forecast.dtype == jnp.float64
            assert np.all(np.isfinite(forecast))


@pytest.mark.parametrize("form", [_evaluate.broadcast, _evaluate.written_out])
@pytest.mark.parametrize("name", [name for name in MAKERS if name.startswith("mnist") or name in ("deep", "window")])
def test_fused_forms_equal_the_vmapped_module(name, form, monkeypatch):
    forecaster = MAKERS[name]()
    monkeypatch.setattr(_evaluate, "WRITTEN_OUT_ABOVE", 0 if form is _evaluate.written_out else 1 << 30)
    points = points_of(forecaster, (5, 10))
    expected = forecaster.definition(*points)
    scale = np.abs(np.stack(points)).max()
    np.testing.assert_allclose(forecaster(*points, key=KEY), expected, rtol=1e-5, atol=3e-6 * scale)


@pytest.mark.parametrize(
    ("shape", "sums"),
    [((), True), ((4096,), True), ((4097,), False), ((17, 241), True), ((4, 1024), True), ((8, 1025), False)],
)
def test_an_array_with_a_long_last_axis_is_written_out(shape, sums):
    forecaster = MAKERS["mnist-n0"]()
    points = [jax.ShapeDtypeStruct(shape, jnp.float32)] * 4
    program = jax.jit(lambda *w: forecaster(*w, key=KEY)).lower(*points).as_text()
    assert ("stablehlo.reduce" in program) == sums


def test_a_module_of_any_kind_is_vmapped_in_chunks(monkeypatch):
    monkeypatch.setattr(_evaluate, "CHUNK", 16)
    module = OtherModule()
    forecaster = network_forecaster(module, scale=2.0)
    points = points_of(forecaster, (7, 9))
    expected = module(2 * jnp.stack(points, -1))[..., 0] / 2
    np.testing.assert_allclose(forecaster(*points, key=KEY), expected, rtol=1e-5, atol=1e-6)


def test_later_changes_of_a_module_have_no_effect():
    module = network()
    forecaster = network_forecaster(module)
    points = points_of(forecaster, (5,))
    before = forecaster(*points, key=KEY)
    module.layers[0].kernel[...] += 1
    np.testing.assert_array_equal(forecaster(*points, key=KEY), before)


def test_a_linen_module_is_a_function():
    module = nn.Dense(1)
    variables = module.init(KEY, jnp.ones(2))
    forecaster = custom_forecaster(lambda *w: module.apply(variables, jnp.stack(w, -1))[..., 0], (1.0, 0.5))
    points = points_of(forecaster, (3, 2))
    expected = np.stack(points, -1) @ np.asarray(variables["params"]["kernel"])[:, 0]
    np.testing.assert_allclose(forecaster(*points, key=KEY), expected, rtol=1e-5)


@pytest.mark.parametrize(("use_bias", "residual"), [(True, False), (False, True), (False, False)])
def test_network_in_numpy(use_bias, residual):
    module = network(hidden=(5, 3), use_bias=use_bias, residual=residual)
    for layer in module.layers:
        if use_bias:
            layer.bias[...] = jnp.linspace(-1, 1, layer.out_features)
    x = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    h = x[:, 1:] - x[:, :1] if residual else x
    for layer in module.layers[:-1]:
        h = np.maximum(h @ np.asarray(layer.kernel[...]) + (np.asarray(layer.bias[...]) if use_bias else 0), 0)
    last = module.layers[-1]
    h = h @ np.asarray(last.kernel[...]) + (np.asarray(last.bias[...]) if use_bias else 0)
    np.testing.assert_allclose(module(jnp.asarray(x)), x[:, :1] + h if residual else h, rtol=1e-4, atol=1e-5)
    if not use_bias:
        np.testing.assert_allclose(module(4 * jnp.asarray(x)), 4 * module(jnp.asarray(x)), rtol=1e-4, atol=1e-5)
    if residual:
        np.testing.assert_allclose(module(jnp.asarray(x) + 1), module(jnp.asarray(x)) + 1, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("degree", "jump_ratio"), [(0, 1.3), (1, 1.1), (2, 1.4), (3, 2.0)])
def test_polynomials_are_least_squares_fits(degree, jump_ratio):
    forecaster = polynomial(degree, jump_ratio)
    values = np.random.default_rng(0).normal(size=(4, 3))
    fit = np.polynomial.polynomial.polyfit(forecaster.points, values, degree)
    expected = np.polynomial.polynomial.polyval(jump_ratio, fit)
    np.testing.assert_allclose(forecaster(*jnp.asarray(values, jnp.float32), key=KEY), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: linear((1.0,), (1.0, 0.5)), ValueError, "must be 2 finite numbers that add up to 1"),
        (lambda: linear((1.5, -0.4), (1.0, 0.5)), ValueError, "add up to 1"),
        (lambda: linear((np.nan, 1.0), (1.0, 0.5)), ValueError, "finite"),
        (lambda: linear(("a", "b"), (1.0, 0.5)), ValueError, r"coefficients must be 2 .* got \('a', 'b'\)"),
        (lambda: linear(None, (1.0, 0.5)), ValueError, "coefficients must be 2 .* got None"),
        (lambda: polynomial(1, 10**400), ValueError, "jump_ratio must be positive and within the range of float32"),
        (lambda: polynomial(4, 1.3), ValueError, "degree, with 4 points, must be an integer from 0 to 3; got 4"),
        (lambda: polynomial(1, -1.0), ValueError, "jump_ratio must be positive"),
        (lambda: polynomial(3, 1e12), ValueError, "too large"),
        (lambda: polynomial(1, 1.3, (1.0, -5)), ValueError, "must be fractions of the jump step"),
        (lambda: lookahead(1), ValueError, "period must be an integer of at least 2; got 1"),
        (lambda: lookahead(5, 1.5), ValueError, "alpha must be from 0 to 1; got 1.5"),
        (lambda: nesterov(5, 0.8, 1.0), ValueError, "momentum must be at least 0 and less than 1; got 1.0"),
        (lambda: nesterov(5, 0.0), ValueError, "learning_rate must be positive"),
        (lambda: heavy_ball(2.5, 1.0, 0.5), ValueError, "got 2.5"),
        (lambda: gaussian_noise(-1.0, 0), ValueError, "stddev must be at least 0"),
        (lambda: gaussian_noise(1.0, -1), ValueError, "seed must be an integer from 0"),
        (lambda: network(activation="gelu"), ValueError, "activation must be one of"),
        (lambda: network(hidden=40), ValueError, "hidden must be a sequence"),
        (lambda: network(hidden=(0,)), ValueError, "each of hidden must be an integer of at least 1; got 0"),
        (lambda: network(num_points=1, residual=True), ValueError, "num_points must be an integer of at least 2"),
        (lambda: network(use_bias=1), ValueError, "use_bias must be True or False; got 1"),
        (lambda: network_forecaster(nn.Dense(1)), TypeError, "must be a flax.nnx.Module; got Dense"),
        (lambda: network_forecaster(network(), points=(1.0, 0.5)), ValueError, "must take 2 inputs"),
        (lambda: network_forecaster(nnx.Linear(4, 2, rngs=nnx.Rngs(0))), ValueError, "must return one forecast"),
        (lambda: network_forecaster(network(), scale=0), ValueError, "scale must be positive"),
        (lambda: network_forecaster(Twice(nnx.Rngs(0)), (1.0, 0.5)), ValueError, "must return one forecast"),
    ],
)
def test_bad_arguments_are_named(make, error, message):
    with pytest.raises(error, match=message):
        make()


class Twice(nnx.Linear):
    def __init__(self, rngs):
        super().__init__(2, 1, rngs=rngs)

    def __call__(self, x):
        return super().__call__(x), x


def test_a_module_with_a_generator_of_random_numbers():
    rngs = nnx.Rngs(0)
    module = nnx.Sequential(
        nnx.Linear(2, 1, use_bias=False, rngs=rngs), nnx.Dropout(0.1, deterministic=True, rngs=rngs)
    )
    forecaster = network_forecaster(module, (1.0, 0.5), scale=1.0)
    found = forecaster(jnp.ones(3), jnp.full(3, 2.0), key=KEY)
    np.testing.assert_allclose(found, np.full(3, [1, 2] @ np.asarray(module.layers[0].kernel)), rtol=1e-6)


def test_weights_must_be_finite():
    module = network()
    module.layers[0].kernel[0, 0] = np.inf
    with pytest.raises(ValueError, match="weights of module must be finite"):
        network_forecaster(module)
