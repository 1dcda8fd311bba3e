import itertools
import math
import re
from types import SimpleNamespace

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from hypothesis import strategies as st

from optax_introspect import (
    IntrospectionNetwork,
    forecast,
    forecaster,
    gaussian_noise,
    introspection,
    polynomial,
)
from optax_introspect.forecast import checked_forecaster, forecast_array
from optax_introspect.network import _ELEMENTWISE, ACTIVATIONS
from optax_introspect.plan import PAPER_POINTS

KEY = jax.random.key(0)
HIGHEST = jax.lax.Precision.HIGHEST
MANY = 1 << 22
MIB = 1 << 20

# Activations with a Lipschitz constant and their magnitude at 0, both rounded up.
LIPSCHITZ = {
    "identity": (ACTIVATIONS["identity"], 1, 0),
    "relu": (nnx.relu, 1, 0),
    "tanh": (nnx.tanh, 1, 0),
    "gelu": (nnx.gelu, 1.2, 0),
    "silu": (nnx.silu, 1.1, 0),
    "elu": (nnx.elu, 1, 0),
    "selu": (nnx.selu, 1.8, 0),
    "softplus": (nnx.softplus, 1, 0.7),
    "sigmoid": (nnx.sigmoid, 0.25, 0.5),
    "leaky_relu": (nnx.leaky_relu, 1, 0),
    "sin": (jnp.sin, 1, 0),
    "abs": (jnp.abs, 1, 0),
}

# The two fused forms, and the size from which the first is used that forces each.
FORMS = {"written out": 0, "broadcast": 1 << 62}


def arrays(shape, num_points=4, dtype=np.float32, magnitude=1.0, seed=0):
    rng = np.random.default_rng(seed)
    parts = [1, 1j] if jnp.issubdtype(dtype, jnp.complexfloating) else [1]
    draws = [sum(magnitude * rng.normal(size=shape) * part for part in parts) for _ in range(num_points)]
    return [jnp.asarray(draw, dtype) for draw in draws]


def in_form(form, function, *arguments):
    """Calls a function with one of the fused forms forced, whatever the size of the arrays."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forecast, "_WRITTEN_OUT_FROM", FORMS[form])
        return function(*arguments)


def by_definition(made, weights):
    """Evaluates the Flax module itself, by `jax.vmap` over all weights at once."""
    flat = [weight.astype(jnp.float32).ravel() * np.float32(made.scale) for weight in weights]
    return made.definition(flat).reshape(weights[0].shape) * np.float32(1 / made.scale)


def magnitude_of_terms(made, weights, lipschitz):
    """The forecast with every term taken by its magnitude, so that nothing cancels.

    A sum in float32 errs by a small multiple of its epsilon times the sum of the magnitudes of its terms, however
    much of that cancels; and so does a stack of sums, with the magnitudes handed on from layer to layer:
    `m' = L (|W|^T m + |b|) + |f(0)|` for an activation `f` of Lipschitz constant `L`. A difference is such a sum too.
    """
    units = np.abs(np.stack([np.asarray(weight).astype(np.float64) for weight in weights], -1)) * made.scale
    now = 0
    if made._stack.relative:
        now, units = units[..., 0], units[..., 1:] + units[..., :1]
    for (kernel, bias, _), functions in zip(made._stack.layers, lipschitz, strict=True):
        units = units @ np.abs(kernel.astype(np.float64)) + np.abs(bias)
        for constant, at_zero in functions:
            units = constant * units + at_zero
    return (now + units[..., 0]) / made.scale


@st.composite
def stacks(draw):
    """Draws what a stack of small dense layers is made of; `build` makes it."""
    num_points = draw(st.integers(1, 4))
    hidden = draw(st.lists(st.integers(1, 6), max_size=3))
    names = st.sampled_from(sorted(LIPSCHITZ))
    return SimpleNamespace(
        flax=draw(st.sampled_from(["nnx", "linen"])),
        widths=(num_points, *hidden, 1),
        activations=[draw(st.lists(names, max_size=2)) for _ in hidden] + [draw(st.lists(names, max_size=1))],
        use_bias=draw(st.booleans()),
        scale=draw(st.sampled_from([1000.0, 1.0, 0.37])),
        seed=draw(st.integers(0, 2**32 - 1)),
    )


def build(stack):
    """Makes the forecaster of a drawn stack, and the Lipschitz constants of its activations."""
    rng = np.random.default_rng(stack.seed)
    layers, params = [], {}
    for (inputs, outputs), names in zip(itertools.pairwise(stack.widths), stack.activations, strict=True):
        kernel = jnp.asarray(rng.normal(size=(inputs, outputs)) / math.sqrt(inputs), jnp.float32)
        bias = jnp.asarray(rng.normal(size=outputs), jnp.float32)
        given = {"use_bias": stack.use_bias, "precision": HIGHEST}
        if stack.flax == "nnx":
            given["kernel_init"] = lambda *_, kernel=kernel: kernel
            given["bias_init"] = lambda *_, bias=bias: bias
            layer = nnx.Linear(inputs, outputs, **given, rngs=nnx.Rngs(0))
        else:
            params[f"layers_{len(layers)}"] = {"kernel": kernel} | ({"bias": bias} if stack.use_bias else {})
            layer = nn.Dense(outputs, **given)
        layers += [layer, *(LIPSCHITZ[name][0] for name in names)]
    network = nnx.Sequential(*layers) if stack.flax == "nnx" else nn.Sequential(layers).bind({"params": params})
    made = introspection(network, points=PAPER_POINTS[: stack.widths[0]], scale=stack.scale)
    assert [layer.kernel.shape for layer in made._stack.layers] == list(itertools.pairwise(stack.widths))
    return made, [[LIPSCHITZ[name][1:] for name in names] for names in stack.activations]


class TestFusedForms:
    """What runs at a jump is a fused form of the network; the module under `jax.vmap` is its definition."""

    @hypothesis.settings(max_examples=120, derandomize=True, deadline=None, database=None)
    @hypothesis.given(
        stack=stacks(),
        dtype=st.sampled_from(["float32", "bfloat16", "float16", "float64", "complex64"]),
        shape=st.sampled_from([(), (0,), (1,), (7,), (33,), (3, 0), (5, 4), (2, 3, 4)]),
        magnitude=st.sampled_from([1e-3, 0.1, 1.0, 30.0]),
    )
    def test_equal_the_definition(self, stack, dtype, shape, magnitude):
        with jax.enable_x64(dtype == "float64"):
            made, lipschitz = build(stack)
            dtype = jnp.dtype(dtype)
            weights = arrays(shape, stack.widths[0], dtype, magnitude, stack.seed)
            parts = ["real", "imag"] if dtype.kind == "c" else ["real"]

            def part_of(part, weights):
                return [getattr(weight, part) for weight in weights]

            @jax.jit
            def evaluate(*weights):
                fused = [in_form(form, forecast_array, made, weights, KEY) for form in FORMS]
                return fused, [by_definition(made, part_of(part, weights)) for part in parts]

            fused, defined = evaluate(*weights)
            for form, found in zip(FORMS, fused, strict=True):
                assert (found.shape, found.dtype) == (shape, dtype), form
                for part, expected in zip(parts, defined, strict=True):
                    expected = np.asarray(expected, np.float64)
                    got = np.asarray(getattr(found, part)).astype(np.float64)
                    terms = magnitude_of_terms(made, part_of(part, weights), lipschitz)
                    tolerance = 1e-6 * terms
                    if dtype.itemsize == 2:  # the last place, since only one of them is rounded to it
                        limits = jnp.finfo(dtype)
                        tolerance += float(limits.eps) * np.abs(expected) + float(limits.smallest_subnormal)
                    assert got.shape == tolerance.shape == shape
                    assert np.isfinite(got).all(), (form, part)
                    assert (np.abs(got - expected) <= tolerance).all(), (form, part, got, expected, terms)

    @pytest.mark.parametrize("function", _ELEMENTWISE, ids=lambda f: f"{f.__module__}.{f.__name__}")
    def test_every_elementwise_function(self, function):
        first, last = (
            nnx.Linear(i, o, bias_init=nnx.initializers.normal(0.5), precision=HIGHEST, rngs=nnx.Rngs(i))
            for i, o in ((2, 3), (3, 1))
        )
        made = introspection(nnx.Sequential(first, function, last), points=(1, 0.5), scale=1.0)
        weights = arrays((17,), 2, magnitude=0.5)

        @jax.jit
        def evaluate(*weights):
            return [in_form(form, lambda: made(*weights, key=KEY)) for form in FORMS], by_definition(made, weights)

        # The units stay within 3, where none of the functions is steeper than exp.
        terms = magnitude_of_terms(made, weights, [[(math.exp(3), 1)], []])
        fused, defined = evaluate(*weights)
        for found in fused:
            np.testing.assert_array_less(np.abs(found - defined), 1e-6 * terms)

    @pytest.mark.parametrize("form", FORMS)
    def test_the_papers_network_by_hand(self, form):
        network = IntrospectionNetwork(rngs=nnx.Rngs(0))
        rng = np.random.default_rng(0)
        w1, b1, w2, b2 = (rng.normal(size=shape).astype(np.float32) for shape in ((4, 40), 40, (40, 1), 1))
        network.layers[0].kernel[...], network.layers[0].bias[...] = w1, b1
        network.layers[2].kernel[...], network.layers[2].bias[...] = w2, b2
        made = introspection(network)
        weights = arrays((5, 3))
        found = in_form(form, lambda: made(*weights, key=KEY))
        x = 1000 * np.stack([np.asarray(w, np.float64) for w in weights], -1)
        expected = (np.maximum(x @ w1 + b1, 0) @ w2 + b2)[..., 0] / 1000
        terms = magnitude_of_terms(made, weights, [[(1, 0)], []])
        np.testing.assert_array_less(np.abs(found - expected), 1e-6 * terms)

    @pytest.mark.parametrize(
        ("platform", "shape", "form"),
        [
            ("cpu", (), "broadcast"),
            ("cpu", (0,), "broadcast"),
            ("cpu", (65535,), "broadcast"),
            ("cpu", (65536,), "written out"),
            ("cpu", (256, 256), "written out"),
            ("tpu", (300, 300), "written out"),
            ("tpu", (7,), "broadcast"),
            ("cuda", (300, 300), "broadcast"),
            ("rocm", (65536,), "broadcast"),
        ],
        ids=str,
    )
    def test_the_size_of_the_array_and_the_platform_decide(self, platform, shape, form, monkeypatch):
        made = introspection(IntrospectionNetwork(1, (2,), rngs=nnx.Rngs(0)), points=(1,))
        monkeypatch.setattr(forecast, "_written_out", lambda _, w: w[0] * 3)
        monkeypatch.setattr(forecast, "_broadcast", lambda _, w: w[0] * 7)
        traced = jax.jit(lambda w: made(w, key=KEY)).trace(jax.ShapeDtypeStruct(shape, jnp.float32))
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert ("dense<3.0" in text, "dense<7.0" in text) == (form == "written out", form == "broadcast")

    def test_a_network_of_many_units_is_no_stack(self):
        largest = introspection(IntrospectionNetwork(hidden=(204,), rngs=nnx.Rngs(0)))
        larger = introspection(IntrospectionNetwork(hidden=(205,), rngs=nnx.Rngs(0)))
        assert largest._stack is not None  # 1020 multiplications
        assert larger._stack is None  # 1025

    @pytest.mark.parametrize(
        ("hidden", "relative"), [((40,), False), ((40,), True), ((8, 8), False), ((16, 16), False), ((), True)], ids=str
    )
    @pytest.mark.parametrize(("form", "size"), [("written out", MANY), ("broadcast", (1 << 16) - 1)], ids=str)
    def test_take_no_memory(self, form, size, hidden, relative):
        made = introspection(IntrospectionNetwork(hidden=hidden, relative=relative, rngs=nnx.Rngs(0)))
        memory = in_form(form, memory_of, made, size)
        assert memory.output_size_in_bytes == 4 * size
        assert memory.temp_size_in_bytes < min(MIB, 4 * size / 10)


@st.composite
def networks(draw, **given):
    """Draws the forecaster of an introspection network none of whose weights is zero."""
    relative = given.get("relative", draw(st.booleans()))
    num_points = draw(st.integers(1 + relative, 4))
    network = IntrospectionNetwork(
        num_points,
        draw(st.lists(st.integers(1, 6), max_size=3)),
        draw(st.sampled_from(sorted(ACTIVATIONS))),
        use_bias=given.get("use_bias", draw(st.booleans())),
        relative=relative,
        rngs=nnx.Rngs(0),
    )
    with_random_weights(network, draw(st.integers(0, 2**32 - 1)))
    scale = draw(st.sampled_from([1000.0, 1.0, 0.37]))
    return introspection(network, points=PAPER_POINTS[:num_points], scale=scale)


def with_random_weights(network, seed=0):
    rng = np.random.default_rng(seed)
    for variable in jax.tree.leaves(nnx.state(network), is_leaf=lambda x: isinstance(x, nnx.Variable)):
        variable[...] = jnp.asarray(rng.normal(size=variable.shape), jnp.float32)
    return network


def in_both_forms(made, weights):
    """Evaluates a forecaster in its fused forms, in one compiled function."""
    return jax.jit(lambda *weights: [in_form(form, lambda: made(*weights, key=KEY)) for form in FORMS])(*weights)


class TestVariants:
    """Introspection networks without biases, and on differences to the weight now."""

    @pytest.mark.parametrize("activation", ["relu", "identity"])
    @pytest.mark.parametrize("use_bias", [False, True])
    @pytest.mark.parametrize("relative", [False, True])
    def test_equal_the_definition_and_the_formula(self, relative, use_bias, activation):
        network = with_random_weights(
            IntrospectionNetwork(4, (40,), activation, use_bias=use_bias, relative=relative, rngs=nnx.Rngs(0))
        )
        made = introspection(network)
        assert made._stack.relative is relative
        weights = arrays((5, 7))
        first, last = network.layers[0], network.layers[2]
        w1, w2 = (np.asarray(layer.kernel[...], np.float64) for layer in (first, last))
        b1, b2 = (np.asarray(layer.bias[...], np.float64) if use_bias else 0 for layer in (first, last))
        x = 1000 * np.stack([np.asarray(w, np.float64) for w in weights], -1)
        z = (x[..., 1:] - x[..., :1] if relative else x) @ w1 + b1
        change = (np.maximum(z, 0) if activation == "relu" else z) @ w2 + b2
        expected = (x[..., :1] + change if relative else change)[..., 0] / 1000
        terms = magnitude_of_terms(made, weights, [[(1, 0)], []])
        for found in (*in_both_forms(made, weights), by_definition(made, weights)):
            assert (found.shape, found.dtype) == ((5, 7), jnp.float32)
            np.testing.assert_array_less(np.abs(found - expected), 1e-6 * terms)

    @hypothesis.settings(max_examples=25, derandomize=True, deadline=None, database=None)
    @hypothesis.given(made=networks(), shape=st.sampled_from([(), (0,), (7,), (3, 5)]), seed=st.integers(0, 2**32 - 1))
    def test_equal_the_definition(self, made, shape, seed):
        weights = arrays(shape, len(made.points), seed=seed)
        lipschitz = [[(1, 0)]] * len(made._stack.layers)
        tolerance = 1e-6 * magnitude_of_terms(made, weights, lipschitz)
        for found in in_both_forms(made, weights):
            assert found.shape == shape
            assert (np.abs(found - by_definition(made, weights)) <= tolerance).all()

    @hypothesis.settings(max_examples=25, derandomize=True, deadline=None, database=None)
    @hypothesis.given(made=networks(relative=True), shift=st.integers(-1000, 1000), seed=st.integers(0, 2**32 - 1))
    def test_relative_they_shift_with_the_weights(self, made, shift, seed):
        # Multiples of 1/64, of which sums and differences are exact: only the last addition is rounded.
        rng = np.random.default_rng(seed)
        weights = [rng.integers(-128, 128, 33).astype(np.float32) / 64 for _ in made.points]
        forecasts, shifted = (in_both_forms(made, ws) for ws in (weights, [w + shift for w in weights]))
        for before, after in zip(np.asarray(forecasts, np.float64), np.asarray(shifted, np.float64), strict=True):
            rounded = np.spacing(np.float32(np.abs(before) + abs(shift)))
            np.testing.assert_array_less(np.abs(after - (before + shift)), rounded)

    @hypothesis.settings(max_examples=25, derandomize=True, deadline=None, database=None)
    @hypothesis.given(made=networks(use_bias=False), power=st.integers(-20, 20), seed=st.integers(0, 2**32 - 1))
    def test_without_biases_they_scale_with_the_weights(self, made, power, seed):
        weights = arrays((33,), len(made.points), seed=seed)
        factor = np.float32(2.0**power)  # which changes no digit of any sum or product
        forecasts, scaled = (in_both_forms(made, ws) for ws in (weights, [factor * w for w in weights]))
        for one, other in zip(forecasts, scaled, strict=True):
            np.testing.assert_array_equal(other, factor * one)

    @hypothesis.settings(max_examples=25, derandomize=True, deadline=None, database=None)
    @hypothesis.given(
        made=networks(use_bias=False, relative=True),
        shift=st.floats(-100, 100, width=32),
        factor=st.floats(2**-7, 100, width=32),
        seed=st.integers(0, 2**32 - 1),
    )
    def test_with_both_they_shift_and_scale_by_any_numbers(self, made, shift, factor, seed):
        weights = arrays((33,), len(made.points), seed=seed)
        moved = [np.float32(factor) * w + np.float32(shift) for w in weights]
        # Moving the weights rounds them, which the network magnifies as it magnifies their errors.
        tolerance = 2e-6 * (
            factor * magnitude_of_terms(made, weights, [[(1, 0)]] * len(made._stack.layers))
            + magnitude_of_terms(made, moved, [[(1, 0)]] * len(made._stack.layers))
        )
        for one, other in zip(in_both_forms(made, weights), in_both_forms(made, moved), strict=True):
            expected = factor * np.asarray(one, np.float64) + shift
            assert (np.abs(np.asarray(other, np.float64) - expected) <= tolerance).all()

    @pytest.mark.parametrize("scale", [1000.0, 0.37])
    def test_weights_that_stayed_stay_exactly(self, scale):
        network = with_random_weights(IntrospectionNetwork(use_bias=False, relative=True, rngs=nnx.Rngs(0)))
        w = jnp.array([1e6 / 3, 1e-30, -7.1, 0.0])
        for found in in_both_forms(introspection(network, scale=scale), [w] * 4):
            np.testing.assert_array_equal(found, w)

    @pytest.mark.parametrize("use_bias", [False, True])
    def test_nothing_is_lost_of_the_small_changes_of_a_large_weight(self, use_bias):
        network = with_random_weights(IntrospectionNetwork(use_bias=use_bias, relative=True, rngs=nnx.Rngs(0)))
        made = introspection(network)
        # Changes by the last digits, and their forecast by a network in float64.
        steps = np.random.default_rng(0).integers(-64, 64, (4, 50))
        weights = list((100 + steps * 2.0**-17).astype(np.float32))
        exact = np.stack(weights, -1).astype(np.float64)
        units = 1000 * (exact[:, 1:] - exact[:, :1])
        for kernel, bias, activation in made._stack.layers:
            units = units @ kernel.astype(np.float64) + bias
            units = np.maximum(units, 0) if activation is nnx.relu else units
        expected = exact[:, 0] + units[:, 0] / 1000
        assert np.ptp(expected) > 100 * np.spacing(np.float32(100))
        for found in in_both_forms(made, weights):
            np.testing.assert_array_less(np.abs(found - expected), 0.51 * np.spacing(np.float32(100)))

    @pytest.mark.parametrize("use_bias", [False, True])
    def test_many_units_go_through_vmap(self, use_bias, monkeypatch):
        monkeypatch.setattr(forecast, "_CHUNK", 16)
        network = with_random_weights(
            IntrospectionNetwork(hidden=(300,), use_bias=use_bias, relative=True, rngs=nnx.Rngs(0))
        )
        made = introspection(network)
        assert made._stack is None
        weights = arrays((5, 7))
        expected = network(1000 * jnp.stack(weights, -1))[..., 0] / 1000
        np.testing.assert_allclose(made(*weights, key=KEY), expected, rtol=1e-5, atol=1e-4)

    def test_a_subclass_that_is_called_in_its_own_way_goes_through_vmap(self):
        class Negative(IntrospectionNetwork):
            def __call__(self, x):
                return -super().__call__(x)

        own, usual = (
            introspection(with_random_weights(make(relative=True, rngs=nnx.Rngs(0))))
            for make in (Negative, IntrospectionNetwork)
        )
        assert own._stack is None
        weights = arrays((5, 7))
        expected = -usual(*weights, key=KEY)
        np.testing.assert_allclose(own(*weights, key=KEY), expected, rtol=1e-5, atol=1e-4)
        assert np.any(expected)

    @pytest.mark.parametrize("num_points", [3, 5])
    def test_wrong_number_of_inputs(self, num_points):
        with pytest.raises(ValueError, match="must take 4 inputs, one for each of the points"):
            introspection(IntrospectionNetwork(num_points, relative=True, rngs=nnx.Rngs(0)))


def memory_of(made, size):
    weights = [jax.ShapeDtypeStruct((size,), jnp.float32)] * len(made.points)
    return jax.jit(lambda *w: made(*w, key=KEY)).lower(*weights).compile().memory_analysis()


class Weighted(nnx.Module):
    """Sums of whole numbers and halves, exact in any order."""

    weights = (2.0, -1.0, 0.5, 4.0)

    def __init__(self):
        self.unused = nnx.Param(jnp.ones(1))

    def __call__(self, x):
        return jnp.sum(x * jnp.array(self.weights))


class LinenWeighted(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(1, use_bias=False, precision=HIGHEST)(x) + 0 * jnp.sum(x)


class TwoLayers(nnx.Module):
    def __init__(self, hidden):
        self.hidden = nnx.Linear(4, hidden, precision=HIGHEST, rngs=nnx.Rngs(0))
        self.last = nnx.Linear(hidden, 1, precision=HIGHEST, rngs=nnx.Rngs(1))

    def __call__(self, x):
        return self.last(nnx.softmax(self.hidden(x)))


def linen_weighted():
    kernel = jnp.array(Weighted.weights)[:, None]
    return LinenWeighted().bind({"params": {"Dense_0": {"kernel": kernel}}})


class TestOtherModules:
    """Modules that are no stack of dense layers go through `jax.vmap`, a chunk of weights at a time."""

    @pytest.mark.parametrize("network", [Weighted, linen_weighted], ids=["nnx", "linen"])
    @pytest.mark.parametrize(
        "shape",
        [(), (0,), (3, 0), (1,), (7,), (8,), (9,), (15,), (16,), (17,), (24,), (30,), (2, 4), (3, 3), (2, 3, 5)],
        ids=str,
    )
    def test_every_weight_is_forecast_in_its_place(self, shape, network, monkeypatch):
        monkeypatch.setattr(forecast, "_CHUNK", 8)
        made = introspection(network(), scale=1.0)
        assert made._stack is None
        rng = np.random.default_rng(0)
        weights = [rng.integers(-50, 50, shape).astype(np.float32) for _ in range(4)]
        found = jax.jit(lambda *w: made(*w, key=KEY))(*weights)
        assert found.dtype == jnp.float32
        expected = sum(c * w for c, w in zip(Weighted.weights, weights, strict=True))
        np.testing.assert_array_equal(found, expected, strict=True)

    def test_no_chunk_is_larger_than_allowed(self, monkeypatch):
        monkeypatch.setattr(forecast, "_CHUNK", 8)
        sizes = []

        class Recording(nnx.Module):
            def __call__(self, x):
                return jnp.sum(x)

        made = introspection(Recording())
        definition = type(made).definition
        monkeypatch.setattr(type(made), "definition", lambda self, w: sizes.append(w[0].shape) or definition(self, w))
        for size in (5, 8, 9, 30):
            jax.eval_shape(lambda *w: made(*w, key=KEY), *[jax.ShapeDtypeStruct((size,), jnp.float32)] * 4)
        assert set(sizes) == {(5,), (8,)}

    @pytest.mark.parametrize(
        "network",
        [
            pytest.param(lambda: TwoLayers(8), id="softmax"),
            pytest.param(lambda: IntrospectionNetwork(hidden=(300,), rngs=nnx.Rngs(0)), id="wide"),
        ],
    )
    def test_chunks_equal_the_definition(self, network, monkeypatch):
        monkeypatch.setattr(forecast, "_CHUNK", 16)
        made = introspection(network(), scale=10.0)
        assert made._stack is None
        weights = arrays((5, 7))
        found = made(*weights, key=KEY)
        np.testing.assert_allclose(found, by_definition(made, weights), rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.complex64])
    def test_dtypes(self, dtype, monkeypatch):
        monkeypatch.setattr(forecast, "_CHUNK", 8)
        made = introspection(Weighted(), scale=1.0)
        weights = [w.round() for w in arrays((30,), dtype=dtype, magnitude=3)]
        found = forecast_array(made, weights, KEY)
        assert found.dtype == dtype
        expected = sum(c * w for c, w in zip(Weighted.weights, weights, strict=True))
        np.testing.assert_array_equal(found, expected)

    def test_memory_does_not_grow_with_weights_times_units(self):
        narrow, wide = (memory_of(introspection(TwoLayers(h)), MANY).temp_size_in_bytes for h in (8, 256))
        # The units of all weights would take 4 GiB; those of one chunk take 16 MiB.
        assert wide - narrow < 3 * forecast._CHUNK * 256 * 4 + MIB
        assert narrow < 2 * 4 * MANY + 8 * MIB  # the forecast, and a copy of it as the result

    def test_as_a_bound_linen_module_and_as_nnx(self):
        weights = arrays((40,))
        nnx_made, linen_made = introspection(Weighted()), introspection(linen_weighted())
        expected = nnx_made(*weights, key=KEY)
        np.testing.assert_allclose(linen_made(*weights, key=KEY), expected, rtol=1e-5, atol=1e-5)


class TestIntrospection:
    def test_defaults(self):
        network = IntrospectionNetwork(rngs=nnx.Rngs(0))
        made = introspection(network)
        assert (made.points, made.scale) == (PAPER_POINTS, 1000.0)
        assert checked_forecaster(made) is made

    def test_points_and_scale_become_floats(self):
        made = introspection(IntrospectionNetwork(2, rngs=nnx.Rngs(0)), points=[1, 0], scale=2)
        assert made.points == (1.0, 0.0)
        assert [type(number) for number in (*made.points, made.scale)] == [float] * 3

    @pytest.mark.parametrize("form", FORMS)
    @pytest.mark.parametrize("scale", [1000.0, 8.0, 0.25])
    def test_scale_is_applied_on_the_way_in_and_taken_off_on_the_way_out(self, scale, form):
        shift = nnx.initializers.constant(-1.0)
        layer = nnx.Linear(1, 1, kernel_init=nnx.initializers.ones, bias_init=shift, rngs=nnx.Rngs(0))
        network = nnx.Sequential(layer, nnx.relu)
        made = introspection(network, points=(1,), scale=scale)
        w = jnp.array([-1.0, 0.0, 0.5, 1.0, 4.0, 5.0])
        found = in_form(form, lambda: made(w, key=KEY))
        np.testing.assert_allclose(found, np.maximum(w - 1 / scale, 0), rtol=1e-6, atol=1e-6)

    def test_scale_without_biases_changes_nothing(self):
        network = IntrospectionNetwork(rngs=nnx.Rngs(0))  # its biases are zero
        weights = arrays((20,))
        one, eight = (introspection(network, scale=scale)(*weights, key=KEY) for scale in (1.0, 8.0))
        np.testing.assert_array_equal(one, eight)
        assert np.any(one)

    def test_scale_of_other_modules(self):
        class Shift(nnx.Module):
            def __call__(self, x):
                return x[0] + 3.0

        made = introspection(Shift(), points=(1, 0.5), scale=4.0)
        w = jnp.array([1.0, 2.0])
        np.testing.assert_array_equal(made(w, w, key=KEY), w + 0.75)

    def test_linen_and_nnx_of_equal_weights_forecast_alike(self):
        network = IntrospectionNetwork(rngs=nnx.Rngs(0))
        network.layers[0].bias[...] = jax.random.normal(KEY, (40,))
        params = {
            f"layers_{i}": {"kernel": network.layers[i].kernel[...], "bias": network.layers[i].bias[...]}
            for i in (0, 2)
        }
        linen = nn.Sequential([nn.Dense(40), nn.relu, nn.Dense(1)]).bind({"params": params})
        weights = arrays((30, 2))
        expected = introspection(network)(*weights, key=KEY)
        np.testing.assert_array_equal(introspection(linen)(*weights, key=KEY), expected)
        assert np.any(expected)

    def test_needs_no_key_of_its_own(self):
        made = introspection(IntrospectionNetwork(rngs=nnx.Rngs(0)))
        weights = arrays((10,))
        first, second = (made(*weights, key=jax.random.key(seed)) for seed in (0, 1))
        np.testing.assert_array_equal(first, second)

    @pytest.mark.parametrize("output", [lambda x: x, lambda x: x[0], lambda x: x[None]], ids=["[1]", "[]", "[1, 1]"])
    def test_output_of_one_number_in_any_shape(self, output):
        class Last(nnx.Module):
            def __call__(self, x):
                return output(x[-1:])

        weights = arrays((6,), 2)
        made = introspection(Last(), points=(1, 0), scale=1.0)
        np.testing.assert_array_equal(made(*weights, key=KEY), weights[1])

    @pytest.mark.parametrize("scale", [0, -1.0, math.nan, math.inf, -math.inf])
    def test_bad_scale(self, scale):
        message = f"scale must be a positive number; got {scale!r}"
        with pytest.raises(ValueError, match=re.escape(message)):
            introspection(IntrospectionNetwork(rngs=nnx.Rngs(0)), scale=scale)

    @pytest.mark.parametrize("points", [(), (0.7, 0.4), (1, 0.4, 0.7), (1, 1), (1, -0.1), "abcd"])
    def test_bad_points(self, points):
        with pytest.raises(ValueError, match="decreasing fractions of a jump step within") as error:
            introspection(IntrospectionNetwork(len(points) or 1, rngs=nnx.Rngs(0)), points=points)
        assert f"got {tuple(points)}" in str(error.value)

    @pytest.mark.parametrize("num_points", [1, 3, 5])
    @pytest.mark.parametrize("flax", ["nnx", "linen"])
    def test_wrong_number_of_inputs(self, num_points, flax):
        network = IntrospectionNetwork(num_points, rngs=nnx.Rngs(0))
        if flax == "linen":
            network = nn.Dense(1).bind(nn.Dense(1).init(KEY, jnp.ones(num_points)))
        with pytest.raises(
            ValueError, match=re.escape(f"must take 4 inputs, one for each of the points {PAPER_POINTS}")
        ):
            introspection(network)

    @pytest.mark.parametrize("flax", ["nnx", "linen"])
    def test_wrong_number_of_outputs(self, flax):
        network = nnx.Sequential(nnx.Linear(4, 2, rngs=nnx.Rngs(0)))
        if flax == "linen":
            network = nn.Dense(2).bind(nn.Dense(2).init(KEY, jnp.ones(4)))
        with pytest.raises(ValueError, match=re.escape("one forecast for 4 inputs; its output has shape (2,)")):
            introspection(network)

    def test_no_output(self):
        class Nothing(nnx.Module):
            def __call__(self, x):
                return x[:0]

        with pytest.raises(ValueError, match=re.escape("its output has shape (0,)")):
            introspection(Nothing())

    def test_no_call(self):
        with pytest.raises(ValueError, match="the network must take 4 inputs"):
            introspection(nnx.Dict(a=nnx.Param(jnp.ones(1))))

    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
    def test_weights_that_are_not_finite(self, bad, dtype):
        network = nnx.Sequential(
            nnx.Linear(4, 3, rngs=nnx.Rngs(0)), nnx.relu, nnx.Linear(3, 1, param_dtype=dtype, rngs=nnx.Rngs(0))
        )
        network.layers[2].kernel[...] = network.layers[2].kernel[...].at[1].set(bad)
        with pytest.raises(ValueError, match=r"must be finite; .*\[2\].*kernel.* is not"):
            introspection(network)

    def test_linen_weights_that_are_not_finite(self):
        variables = {"params": {"kernel": jnp.full((4, 1), math.nan), "bias": jnp.zeros(1)}}
        with pytest.raises(ValueError, match=r"must be finite; .*kernel.* is not"):
            introspection(nn.Dense(1).bind(variables))

    def test_variables_that_are_no_floats_are_let_be(self):
        class Counting(nnx.Module):
            def __init__(self):
                self.count = nnx.Variable(jnp.array(3))
                self.rngs = nnx.Rngs(0)

            def __call__(self, x):
                return x[0] * self.count[...]

        made = introspection(Counting())
        weights = arrays((4,))
        np.testing.assert_allclose(made(*weights, key=KEY), 3 * weights[0], rtol=1e-6)

    @pytest.mark.parametrize("network", [nn.Dense(1), nn.Sequential([nn.Dense(40), nn.relu, nn.Dense(1)])])
    def test_unbound_linen_module(self, network):
        with pytest.raises(TypeError, match=re.escape("introspection(module.bind(variables))")):
            introspection(network)

    @pytest.mark.parametrize(
        ("other", "name"),
        [(None, "NoneType"), (lambda x: x[:1], "function"), (np.ones((4, 1)), "ndarray"), ("mnist-n0", "str")],
        ids=["None", "function", "array", "name"],
    )
    def test_no_flax_module(self, other, name):
        with pytest.raises(TypeError, match=f"NNX module or a bound Linen module; got {name}"):
            introspection(other)


class TestForecastArray:
    def test_complex_numbers_are_two_reals(self):
        made = introspection(IntrospectionNetwork(rngs=nnx.Rngs(0)))
        weights = arrays((3, 5), dtype=jnp.complex64)
        found = forecast_array(made, weights, KEY)
        assert found.dtype == jnp.complex64
        np.testing.assert_array_equal(found.real, made(*(w.real for w in weights), key=KEY))
        np.testing.assert_array_equal(found.imag, made(*(w.imag for w in weights), key=KEY))
        assert np.any(found.imag)

    def test_complex_parts_get_keys_of_their_own(self):
        (w,) = arrays((5000,), 1, dtype=jnp.complex64)
        noise = forecast_array(gaussian_noise(1.0, 0), [w], KEY) - w
        np.testing.assert_allclose(np.corrcoef(noise.real, noise.imag), np.eye(2), atol=0.1)
        np.testing.assert_allclose([noise.real.std(), noise.imag.std()], 1, atol=0.05)

    def test_complex128(self):
        with jax.enable_x64(True):
            weights = arrays((5,), dtype=jnp.complex128)
            found = forecast_array(polynomial(1, 1.3), weights, KEY)
            assert found.dtype == jnp.complex128
            expected = polynomial(1, 1.3).coefficients @ np.stack(weights)
            np.testing.assert_allclose(found, expected, atol=1e-5)

    @pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16, jnp.float8_e4m3fn])
    def test_forecasts_in_float32_and_casts_to_the_dtype_of_the_weights(self, dtype):
        seen = []

        def mean(*weights):
            seen.extend(weight.dtype for weight in weights)
            return sum(weights) / 3

        weights = arrays((50,), 3, dtype=dtype)
        found = forecast_array(forecaster(mean, (1, 0.5, 0)), weights, KEY)
        assert set(seen) == {jnp.dtype("float32")}
        expected = (sum(w.astype(jnp.float32) for w in weights) / 3).astype(dtype)
        assert found.dtype == dtype
        np.testing.assert_array_equal(found.astype(jnp.float32), expected.astype(jnp.float32))

    def test_float64(self):
        with jax.enable_x64(True):
            weights = arrays((5,), 2, dtype=jnp.float64)
            found = forecast_array(polynomial(1, 1.3, points=(1, 0.4)), weights, KEY)
            assert found.dtype == jnp.float64
            np.testing.assert_allclose(found, 1.5 * weights[0] - 0.5 * weights[1], atol=1e-6)

    def test_snapshots_may_be_of_another_dtype(self):
        now, before = arrays((20,), 2)
        narrow = before.astype(jnp.bfloat16)
        found = forecast_array(polynomial(1, 1.3, points=(1, 0.4)), [now, narrow], KEY)
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, 1.5 * now - 0.5 * narrow.astype(jnp.float32), rtol=1e-5, atol=1e-6)


class TestPolynomial:
    @pytest.mark.parametrize("ratio", [0.3, 1.0, 1.075, 1.3, 2.0])
    @pytest.mark.parametrize("degree", [0, 1, 2, 3])
    def test_is_numpys_fit(self, degree, ratio):
        made = polynomial(degree, ratio)
        assert (made.degree, made.jump_ratio, made.points) == (degree, ratio, PAPER_POINTS)
        weights = arrays((30,))
        fits = np.polyfit(PAPER_POINTS, np.stack(weights).astype(np.float64), degree)
        expected = sum(fit * ratio ** (degree - power) for power, fit in enumerate(fits))
        np.testing.assert_allclose(made.coefficients @ np.stack(weights), expected, rtol=1e-9, atol=1e-9)
        size = np.abs(made.coefficients) @ np.abs(np.stack(weights))
        np.testing.assert_array_less(np.abs(made(*weights, key=KEY) - expected), 1e-6 * size)

    @pytest.mark.parametrize("ratio", [1.1, 2.0])
    def test_linear_fit_by_hand(self, ratio):
        # The slope is sum((f - m) w) / sum((f - m)^2) with m = 0.525 the mean of the points.
        spread = np.array([0.475, 0.175, -0.125, -0.525])
        expected = 1 / 4 + (ratio - 0.525) * spread / 0.5475
        np.testing.assert_allclose(polynomial(1, ratio).coefficients, expected, rtol=1e-12)

    def test_interpolation_by_hand(self):
        # Through the points 1, 1/2 and 0, at 2, by Lagrange: (2 - 1/2) 2 / (1/2), (2 - 1) 2 / (-1/4), and the rest.
        made = polynomial(2, 2.0, points=(1, 0.5, 0))
        np.testing.assert_allclose(made.coefficients, [6, -8, 3], rtol=1e-12)

    @hypothesis.settings(max_examples=100, derandomize=True, deadline=None, database=None)
    @hypothesis.given(
        points=st.sampled_from([PAPER_POINTS, (1.0, 0.4), (1.0, 0.9, 0.8, 0.5, 0.1), (1.0,)]),
        degree=st.integers(0, 4),
        ratio=st.floats(0.1, 2.5),
        data=st.data(),
    )
    def test_is_exact_on_polynomials_of_its_degree(self, points, degree, ratio, data):
        degree = min(degree, len(points) - 1)
        coefficients = data.draw(st.lists(st.integers(-8, 8), min_size=degree + 1, max_size=degree + 1), "coefficients")
        made = polynomial(degree, ratio, points=points)
        exact = np.polyval(coefficients, points)
        np.testing.assert_allclose(
            made.coefficients @ exact,
            np.polyval(coefficients, ratio),
            rtol=0,
            atol=1e-9 * np.abs(made.coefficients).max() * 40,
        )
        found = made(*(jnp.full(2, value, jnp.float32) for value in exact), key=KEY)
        size = np.abs(made.coefficients) @ np.abs(exact) + np.abs(made.coefficients[1:]).sum() * abs(exact[0])
        assert (np.abs(found - np.polyval(coefficients, ratio)) <= 1e-6 * size + 1e-12).all()

    @pytest.mark.parametrize("degree", [0, 1, 2, 3])
    def test_is_linear_in_the_weights(self, degree):
        made = polynomial(degree, 1.3)
        first, second = arrays((30,), seed=0), arrays((30,), seed=1)
        mixed = made(*(2 * a - 3 * b for a, b in zip(first, second, strict=True)), key=KEY)
        expected = 2 * made(*first, key=KEY) - 3 * made(*second, key=KEY)
        np.testing.assert_allclose(mixed, expected, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("degree", [0, 1, 2, 3])
    def test_shifts_with_the_weights(self, degree):
        made = polynomial(degree, 1.3)
        assert made.coefficients.sum() == pytest.approx(1, abs=1e-12)
        weights = arrays((30,))
        shifted = made(*(w + 5 for w in weights), key=KEY)
        np.testing.assert_allclose(shifted, made(*weights, key=KEY) + 5, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("degree", [0, 1, 2, 3])
    def test_weights_that_stay_stay_exactly(self, degree):
        w = jnp.array([1e6 / 3, 1e-30, -7.1, 0.0])
        np.testing.assert_array_equal(polynomial(degree, 2.0)(w, w, w, w, key=KEY), w)

    def test_two_points(self):
        made = polynomial(1, 1.3, points=(1, 0.4))
        assert made.points == (1.0, 0.4)
        now, before = arrays((30,), 2)
        expected = now + 0.5 * (now - before)
        np.testing.assert_allclose(made(now, before, key=KEY), expected, rtol=1e-6, atol=1e-6)

    @pytest.mark.parametrize("ratio", [0.5, 2.0])
    def test_degree_0_is_the_average(self, ratio):
        made = polynomial(0, ratio)
        np.testing.assert_allclose(made.coefficients, np.full(4, 0.25), rtol=1e-12)
        weights = arrays((30,))
        np.testing.assert_allclose(made(*weights, key=KEY), sum(weights) / 4, rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize(("ratio", "point"), [(1.0, 0), (0.7, 1), (0.4, 2)])
    def test_the_curve_through_all_points_meets_them(self, ratio, point):
        weights = arrays((30,))
        found = polynomial(3, ratio)(*weights, key=KEY)
        np.testing.assert_allclose(found, weights[point], rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("points", [(1,), (1, 0.4), PAPER_POINTS])
    def test_follows_the_protocol(self, points):
        made = polynomial(0, 1.3, points=points)
        assert checked_forecaster(made) is made

    @pytest.mark.parametrize("degree", [-1, 4, 1.0, "1", None, True])
    def test_bad_degree(self, degree):
        message = f"for 4 points, degree must be an integer from 0 to 3; got {degree!r}"
        with pytest.raises(ValueError, match=re.escape(message)):
            polynomial(degree, 1.3)

    def test_degree_of_fewer_points(self):
        with pytest.raises(ValueError, match=r"for 2 points, degree must be an integer from 0 to 1; got 2"):
            polynomial(2, 1.3, points=(1, 0.4))

    @pytest.mark.parametrize("ratio", [0, -1.3, math.nan, math.inf])
    def test_bad_jump_ratio(self, ratio):
        with pytest.raises(ValueError, match=f"jump_ratio must be a positive number; got {ratio!r}"):
            polynomial(1, ratio)

    def test_a_jump_ratio_that_overflows(self):
        message = r"jump_ratio must be one with which float32 can extrapolate by degree 3; got 1e\+30"
        with pytest.raises(ValueError, match=message):
            polynomial(3, 1e30)
        polynomial(1, 1e30)

    @pytest.mark.parametrize("points", [(), (0.7, 0.4), (1, 0.4, 0.7), (1, -0.1), "ab", (1, math.nan)])
    def test_bad_points(self, points):
        with pytest.raises(ValueError, match="decreasing fractions of a jump step") as error:
            polynomial(1, 1.3, points=points)
        assert f"got {tuple(points)}" in str(error.value)


class TestGaussianNoise:
    SIZE = 100_000

    def noise(self, stddev=1.0, seed=0, key=KEY, start=0.0):
        w = jnp.full(self.SIZE, start)
        return np.asarray(gaussian_noise(stddev, seed)(w, key=key) - w, np.float64)

    @pytest.mark.parametrize(("stddev", "start"), [(1.0, 0.0), (0.01, 0.0), (0.5, 2.0)])
    def test_is_gaussian(self, stddev, start):
        standard = self.noise(stddev, start=start) / stddev
        moments = [np.mean(standard**power) for power in (1, 2, 3, 4)]
        # Six standard errors: the variances of the moments are 1, 2, 15 and 96.
        errors = 6 * np.sqrt(np.array([1, 2, 15, 96]) / self.SIZE)
        np.testing.assert_array_less(np.abs(np.array(moments) - [0, 1, 0, 3]), errors)

    def test_neighbours_are_independent(self):
        noise = self.noise()
        assert abs(np.mean(noise[1:] * noise[:-1])) < 6 / math.sqrt(self.SIZE)

    def test_same_seed_and_key_same_noise(self):
        np.testing.assert_array_equal(self.noise(seed=7), self.noise(seed=7))

    @pytest.mark.parametrize("other", [{"seed": 1}, {"seed": 2**32 - 1}, {"key": jax.random.key(1)}], ids=str)
    def test_other_seed_or_key_other_noise(self, other):
        correlation = np.mean(self.noise() * self.noise(**other))
        assert abs(correlation) < 6 / math.sqrt(self.SIZE)

    def test_without_deviation_nothing_changes(self):
        w = jnp.array([1.5, -2.0, 1e-20])
        np.testing.assert_array_equal(gaussian_noise(0, 0)(w, key=KEY), w)

    def test_follows_the_protocol(self):
        made = gaussian_noise(0.1, 3)
        assert made.points == (1.0,)
        assert checked_forecaster(made) is made
        assert made(jnp.ones((2, 3)), key=KEY).shape == (2, 3)

    @pytest.mark.parametrize("stddev", [-0.1, math.nan, math.inf])
    def test_bad_stddev(self, stddev):
        with pytest.raises(ValueError, match=f"stddev must be a number of at least 0; got {stddev!r}"):
            gaussian_noise(stddev, 0)

    @pytest.mark.parametrize("seed", [-1, 2**32, 1.0, "1", None, True])
    def test_bad_seed(self, seed):
        with pytest.raises(ValueError, match=f"seed must be an integer from 0 to 4294967295; got {seed!r}"):
            gaussian_noise(0.1, seed)


class TestForecaster:
    def test_calls_the_function_with_the_points_in_order(self):
        made = forecaster(lambda now, before, first: now + 10 * before + 100 * first, points=[1, 0.5, 0])
        assert made.points == (1.0, 0.5, 0.0)
        w = jnp.ones((2, 2))
        np.testing.assert_array_equal(made(w, 2 * w, 3 * w, key=KEY), 321 * w)

    def test_takes_any_number_of_arrays(self):
        made = forecaster(lambda *weights: sum(weights), points=PAPER_POINTS)
        np.testing.assert_array_equal(made(*arrays((3,)), key=KEY), sum(arrays((3,))))

    @pytest.mark.parametrize(
        "function", [lambda: jnp.ones((3, 2)), lambda a: a, lambda a, b, c: a], ids=["none", "one", "three"]
    )
    def test_wrong_number_of_arguments(self, function):
        with pytest.raises(ValueError, match=re.escape("called with 2 arrays, its points (1.0, 0.5)")):
            forecaster(function, (1, 0.5))

    def test_no_function(self):
        with pytest.raises(ValueError, match=re.escape("called with 1 arrays, its points (1.0,)")):
            forecaster(3, (1,))

    @pytest.mark.parametrize(
        "function",
        [
            pytest.param(lambda w: w[0], id="a row"),
            pytest.param(lambda w: w.T, id="transposed"),
            pytest.param(jnp.mean, id="a number"),
            pytest.param(lambda w: w[None], id="one more axis"),
            pytest.param(lambda w: (w, w), id="a tuple"),
            pytest.param(lambda w: None, id="nothing"),
        ],
    )
    def test_wrong_shape(self, function):
        with pytest.raises(
            ValueError, match=re.escape("must have the shape of the weights; for (3, 2) the forecaster gave")
        ):
            forecaster(function, (1,))

    @pytest.mark.parametrize("points", [(), (0.7, 0.4), (1, 0.4, 0.7), (1, 1), (1, -0.1), "ab", (1, None)])
    def test_wrong_points(self, points):
        with pytest.raises(ValueError, match="decreasing fractions of a jump step") as error:
            forecaster(lambda *w: w[0], points)
        assert f"got {tuple(points)}" in str(error.value)


class Mine:
    """A user's own forecaster, by the protocol alone."""

    points = (1, 0.5)

    def __call__(self, now, before, *, key):
        return 2 * now - before + 0 * jax.random.normal(key, now.shape)


class TestCheckedForecaster:
    def test_lets_a_forecaster_by_protocol_pass(self):
        mine = Mine()
        assert checked_forecaster(mine) is mine

    def test_without_key(self):
        class Keyless(Mine):
            def __call__(self, now, before):
                return now

        message = r"cannot be called with 2 arrays, its points \(1\.0, 0\.\d+\): .* unexpected keyword argument 'key'"
        with pytest.raises(ValueError, match=message):
            checked_forecaster(Keyless())

    def test_bad_points(self):
        class Rising(Mine):
            points = (0.5, 1)

        with pytest.raises(ValueError, match=re.escape("decreasing fractions of a jump step within [0, 1]")):
            checked_forecaster(Rising())

    def test_wrong_shape(self):
        class Short(Mine):
            def __call__(self, now, before, *, key):
                return now[:-1]

        with pytest.raises(ValueError, match="must have the shape of the weights"):
            checked_forecaster(Short())

    @pytest.mark.parametrize(
        "other",
        [None, 3, "linear", lambda *w, key: w[0], Mine.points, type("Points", (), {"points": (1.0,)})()],
        ids=["None", "number", "str", "no points", "points", "no call"],
    )
    def test_no_forecaster(self, other):
        with pytest.raises(TypeError, match="a forecaster is a callable with trajectory points") as error:
            checked_forecaster(other)
        assert repr(other) in str(error.value)
