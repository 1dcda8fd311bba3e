import itertools
import re
from itertools import pairwise

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from hypothesis import strategies as st

from optax_introspect import IntrospectionNetwork
from optax_introspect.network import _ELEMENTWISE, ACTIVATIONS, Dense, Stack, dense_stack


def linear(inputs, outputs, **arguments):
    return nnx.Linear(inputs, outputs, rngs=nnx.Rngs(inputs + 100 * outputs), **arguments)


def bound(*layers, num_points=4, seed=0):
    network = nn.Sequential(layers)
    return network.bind(network.init(jax.random.key(seed), jnp.zeros(num_points)))


def with_random_weights(network, seed=0):
    """Gives every weight of a network another value than 0, biases too."""
    rng = np.random.default_rng(seed)
    for variable in jax.tree.leaves(nnx.state(network), is_leaf=lambda x: isinstance(x, nnx.Variable)):
        variable[...] = jnp.asarray(rng.normal(size=variable.shape), jnp.float32)
    return network


def evaluate(stack, x):
    now = 0
    if stack.relative:
        now, x = x[..., :1], x[..., 1:] - x[..., :1]
    for kernel, bias, activation in stack.layers:
        x = np.asarray(activation(jnp.asarray(x @ kernel + bias)))
    return now + x


def assert_stack_is_the_network(network, shapes, num_points=4, relative=False):
    stack = dense_stack(network)
    assert type(stack) is Stack
    assert stack.relative is relative
    assert [layer.kernel.shape for layer in stack.layers] == shapes
    assert [layer.bias.shape for layer in stack.layers] == [(outputs,) for _, outputs in shapes]
    for layer in stack.layers:
        for array in layer[:2]:
            assert type(array) is np.ndarray
            assert array.dtype == np.float32
    x = np.random.default_rng(0).normal(size=(50, num_points)).astype(np.float32)
    np.testing.assert_allclose(evaluate(stack, x), network(jnp.asarray(x)), rtol=1e-5, atol=1e-5)


class TestIntrospectionNetwork:
    def test_the_papers_network_by_default(self):
        network = IntrospectionNetwork(rngs=nnx.Rngs(0))
        assert (network.num_points, network.hidden, network.activation) == (4, (40,), "relu")
        assert (network.use_bias, network.relative) == (True, False)
        shapes = jax.tree.map(jnp.shape, nnx.to_pure_dict(nnx.state(network)))
        assert shapes == {"layers": {0: {"kernel": (4, 40), "bias": (40,)}, 2: {"kernel": (40, 1), "bias": (1,)}}}

    def test_computes_the_papers_formula(self):
        network = IntrospectionNetwork(rngs=nnx.Rngs(0))
        rng = np.random.default_rng(0)
        w1, b1, w2, b2 = (rng.normal(size=shape).astype(np.float32) for shape in ((4, 40), 40, (40, 1), 1))
        network.layers[0].kernel[...], network.layers[0].bias[...] = w1, b1
        network.layers[2].kernel[...], network.layers[2].bias[...] = w2, b2
        x = rng.normal(size=(8, 4)).astype(np.float32)
        expected = np.maximum(x @ w1 + b1, 0) @ w2 + b2
        np.testing.assert_allclose(network(jnp.asarray(x)), expected, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize(
        ("num_points", "hidden"), [(1, ()), (1, (1,)), (2, (40,)), (4, (8, 8)), (3, (5, 3, 2)), (4, [7])]
    )
    def test_shapes(self, num_points, hidden):
        network = IntrospectionNetwork(num_points, hidden, rngs=nnx.Rngs(0))
        assert network.hidden == tuple(hidden)
        widths = (num_points, *hidden, 1)
        kernels = [layer.kernel.shape for layer in network.layers if isinstance(layer, nnx.Linear)]
        assert kernels == list(pairwise(widths))
        for batch in ((), (8,), (3, 2)):
            output = jax.eval_shape(network, jax.ShapeDtypeStruct((*batch, num_points), jnp.float32))
            assert output.shape == (*batch, 1)
            assert output.dtype == jnp.float32

    def test_no_activation_after_the_last_layer(self):
        network = IntrospectionNetwork(1, (), rngs=nnx.Rngs(0))
        network.layers[0].kernel[...] = jnp.ones((1, 1))
        np.testing.assert_array_equal(network(jnp.full(1, -3.0)), [-3.0])

    def test_numbers_of_numpy_become_those_of_python(self):
        network = IntrospectionNetwork(np.int64(4), (np.int64(8),), rngs=nnx.Rngs(0))
        assert [type(number) for number in (network.num_points, *network.hidden)] == [int, int]

    def test_identity_is_linear(self):
        network = IntrospectionNetwork(activation="identity", rngs=nnx.Rngs(0))
        x = jax.random.normal(jax.random.key(0), (16, 4))
        np.testing.assert_allclose(network(-2 * x), -2 * network(x), rtol=1e-5, atol=1e-5)
        relu = IntrospectionNetwork(rngs=nnx.Rngs(0))
        assert not np.allclose(relu(-2 * x), -2 * relu(x), rtol=1e-2, atol=1e-2)

    def test_rngs_decide_the_weights(self):
        first, again, other = (IntrospectionNetwork(rngs=nnx.Rngs(seed)) for seed in (0, 0, 1))
        np.testing.assert_array_equal(first.layers[0].kernel, again.layers[0].kernel)
        assert not np.array_equal(first.layers[0].kernel, other.layers[0].kernel)
        np.testing.assert_array_equal(first.layers[0].bias, np.zeros(40))

    def test_multiplies_in_full_precision(self):
        network = IntrospectionNetwork(hidden=(3, 2), rngs=nnx.Rngs(0))
        jaxpr = jax.make_jaxpr(lambda x: network(x))(jnp.ones(4))
        products = [e for e in jaxpr.eqns if e.primitive.name == "dot_general"]
        assert len(products) == 3
        for product in products:
            assert product.params["precision"] == (jax.lax.Precision.HIGHEST,) * 2

    def test_unknown_activation(self):
        with pytest.raises(ValueError, match=r"unknown activation 'gelu'; known are \['identity', 'relu'\]"):
            IntrospectionNetwork(activation="gelu", rngs=nnx.Rngs(0))

    @pytest.mark.parametrize("value", [0, 1, None, "True", np.True_, [True]], ids=repr)
    @pytest.mark.parametrize("name", ["use_bias", "relative"])
    def test_neither_true_nor_false(self, name, value):
        with pytest.raises(ValueError, match=re.escape(f"{name} must be True or False; got {value!r}")):
            IntrospectionNetwork(**{name: value}, rngs=nnx.Rngs(0))

    def test_relative_to_the_only_point(self):
        with pytest.raises(ValueError, match=r"^a relative network needs a second point .*; got num_points=1$"):
            IntrospectionNetwork(1, relative=True, rngs=nnx.Rngs(0))

    @pytest.mark.parametrize("relative", [False, True])
    @pytest.mark.parametrize("arguments", [{"num_points": 0}, {"hidden": (40, 0)}, {"hidden": (-1,)}])
    def test_layers_without_units(self, arguments, relative):
        name = "num_points" if "num_points" in arguments else "units of a hidden layer"
        with pytest.raises(ValueError, match=rf"^{name} must be a positive integer; got (0|-1)$"):
            IntrospectionNetwork(rngs=nnx.Rngs(0), relative=relative, **arguments)


class TestVariants:
    """Networks without biases, and on differences to the first point."""

    @pytest.mark.parametrize("use_bias", [False, True])
    @pytest.mark.parametrize("relative", [False, True])
    @pytest.mark.parametrize(("num_points", "hidden"), [(2, ()), (2, (1,)), (4, (40,)), (3, (5, 3))])
    def test_shapes(self, num_points, hidden, relative, use_bias):
        network = IntrospectionNetwork(num_points, hidden, use_bias=use_bias, relative=relative, rngs=nnx.Rngs(0))
        assert (network.num_points, network.use_bias, network.relative) == (num_points, use_bias, relative)
        widths = (num_points - relative, *hidden, 1)
        parameters = {
            (2 * i, name): shape
            for i, (inputs, outputs) in enumerate(pairwise(widths))
            for name, shape in {"kernel": (inputs, outputs), "bias": (outputs,)}.items()
            if use_bias or name != "bias"
        }
        found = {path[1:]: variable.shape for path, variable in nnx.to_flat_state(nnx.state(network))}
        assert found == parameters
        for batch in ((), (8,), (3, 2)):
            output = jax.eval_shape(network, jax.ShapeDtypeStruct((*batch, num_points), jnp.float32))
            assert output.shape == (*batch, 1)
            assert output.dtype == jnp.float32

    @pytest.mark.parametrize("activation", ["relu", "identity"])
    @pytest.mark.parametrize("use_bias", [False, True])
    @pytest.mark.parametrize("relative", [False, True])
    def test_computes_the_formula(self, relative, use_bias, activation):
        network = with_random_weights(
            IntrospectionNetwork(4, (40,), activation, use_bias=use_bias, relative=relative, rngs=nnx.Rngs(0))
        )
        first, last = network.layers[0], network.layers[2]
        w1, w2 = (np.asarray(layer.kernel[...], np.float64) for layer in (first, last))
        b1, b2 = (np.asarray(layer.bias[...], np.float64) if use_bias else 0 for layer in (first, last))
        x = np.random.default_rng(1).normal(size=(50, 4)).astype(np.float32)
        z = (x[:, 1:] - x[:, :1] if relative else x) @ w1 + b1
        change = (np.maximum(z, 0) if activation == "relu" else z) @ w2 + b2
        expected = x[:, :1] + change if relative else change
        np.testing.assert_allclose(network(jnp.asarray(x)), expected, rtol=1e-5, atol=1e-5)

    @hypothesis.settings(max_examples=60, derandomize=True, deadline=None, database=None)
    @hypothesis.given(
        hidden=st.lists(st.integers(1, 6), max_size=3),
        activation=st.sampled_from(["relu", "identity"]),
        use_bias=st.booleans(),
        shift=st.integers(-1000, 1000),
        seed=st.integers(0, 2**32 - 1),
    )
    def test_relative_it_shifts_with_the_weights(self, hidden, activation, use_bias, shift, seed):
        network = with_random_weights(
            IntrospectionNetwork(4, hidden, activation, use_bias=use_bias, relative=True, rngs=nnx.Rngs(0)), seed
        )
        # Multiples of 1/64, of which sums and differences are exact: only the last addition is rounded.
        x = np.random.default_rng(seed).integers(-128, 128, (20, 4)).astype(np.float32) / 64
        before, after = (np.asarray(network(jnp.asarray(points)), np.float64) for points in (x, x + shift))
        rounded = np.spacing(np.float32(np.abs(before) + abs(shift)))
        np.testing.assert_array_less(np.abs(after - (before + shift)), rounded)

    @hypothesis.settings(max_examples=60, derandomize=True, deadline=None, database=None)
    @hypothesis.given(
        hidden=st.lists(st.integers(1, 6), max_size=3),
        activation=st.sampled_from(["relu", "identity"]),
        relative=st.booleans(),
        power=st.integers(-20, 20),
        seed=st.integers(0, 2**32 - 1),
    )
    def test_without_biases_it_scales_with_the_weights(self, hidden, activation, relative, power, seed):
        network = with_random_weights(
            IntrospectionNetwork(4, hidden, activation, use_bias=False, relative=relative, rngs=nnx.Rngs(0)), seed
        )
        x = jnp.asarray(np.random.default_rng(seed).normal(size=(20, 4)), jnp.float32)
        np.testing.assert_array_equal(network(2.0**power * x), 2.0**power * network(x))

    def test_the_others_do_not(self):
        x = jnp.asarray(np.random.default_rng(0).normal(size=(20, 4)), jnp.float32)
        for use_bias, relative in itertools.product((False, True), repeat=2):
            network = with_random_weights(IntrospectionNetwork(use_bias=use_bias, relative=relative, rngs=nnx.Rngs(0)))
            shifts, scales = network(x + 3) - network(x) - 3, network(4 * x) - 4 * network(x)
            assert np.allclose(shifts, 0, atol=1e-3) == relative
            assert np.allclose(scales, 0, atol=1e-3) == (not use_bias)
            assert not np.allclose(network(-x), -network(x), atol=1e-1)  # ReLU is homogeneous for positive factors

    def test_a_weight_that_did_not_move_stays_exactly(self):
        network = IntrospectionNetwork(use_bias=False, relative=True, rngs=nnx.Rngs(0))
        w = np.array([1e6 / 3, 1e-30, -7.1, 0.0], np.float32)
        np.testing.assert_array_equal(network(jnp.asarray(np.stack([w] * 4, -1)))[:, 0], w)


def is_elementwise(function):
    """Says whether a function treats numbers alike in any order, shape and number."""
    x = np.random.default_rng(0).normal(size=32).astype(np.float32) * 3
    x[:3] = 0, -8, 8
    shuffle = np.random.default_rng(1).permutation(32)
    y = np.asarray(function(jnp.asarray(x)))
    assert y.shape == x.shape
    assert y.dtype == np.float32
    assert np.isfinite(y).all()
    others = [
        (function(jnp.asarray(x[shuffle])), y[shuffle]),
        (function(jnp.asarray(x.reshape(4, 8))), y.reshape(4, 8)),
        (function(jnp.asarray(x[:1])), y[:1]),
    ]
    # Not bit for bit: XLA may evaluate the head of an array with other instructions than its tail.
    return all(np.allclose(found, expected, rtol=2e-6, atol=1e-7) for found, expected in others)


class TestElementwise:
    """A function of the list may be applied to the units of a layer one after another."""

    @pytest.mark.parametrize("function", _ELEMENTWISE, ids=lambda f: f"{f.__module__}.{f.__name__}")
    def test_acts_on_every_number_by_itself(self, function):
        assert is_elementwise(function)

    @pytest.mark.parametrize("function", [nnx.softmax, nnx.log_softmax, nnx.standardize, jnp.cumsum, jnp.flip])
    def test_others_do_not(self, function):
        assert not is_elementwise(function)
        assert function not in _ELEMENTWISE

    def test_holds_the_activations_of_the_network(self):
        assert set(ACTIVATIONS.values()) <= set(_ELEMENTWISE)
        np.testing.assert_array_equal(ACTIVATIONS["relu"](jnp.array([-1.0, 2.0])), [0, 2])
        np.testing.assert_array_equal(ACTIVATIONS["identity"](jnp.array([-1.0, 2.0])), [-1, 2])


class TestDenseStack:
    @pytest.mark.parametrize("activation", ["relu", "identity"])
    @pytest.mark.parametrize("hidden", [(), (5,), (3, 4)])
    def test_introspection_network(self, hidden, activation):
        network = IntrospectionNetwork(3, hidden, activation, rngs=nnx.Rngs(0))
        for layer in network.layers:
            if isinstance(layer, nnx.Linear):
                layer.bias[...] = jnp.arange(1.0, layer.bias.size + 1)
        widths = (3, *hidden, 1)
        assert_stack_is_the_network(network, list(pairwise(widths)), num_points=3)

    @pytest.mark.parametrize("activation", ["relu", "identity"])
    @pytest.mark.parametrize("use_bias", [False, True])
    @pytest.mark.parametrize("relative", [False, True])
    def test_variants_of_the_introspection_network(self, relative, use_bias, activation):
        network = with_random_weights(
            IntrospectionNetwork(4, (5, 2), activation, use_bias=use_bias, relative=relative, rngs=nnx.Rngs(0))
        )
        assert_stack_is_the_network(network, [(4 - relative, 5), (5, 2), (2, 1)], relative=relative)

    def test_a_subclass_of_the_introspection_network(self):
        class Named(IntrospectionNetwork):
            name = "mine"

        network = with_random_weights(Named(3, (5,), relative=True, rngs=nnx.Rngs(0)))
        assert_stack_is_the_network(network, [(2, 5), (5, 1)], num_points=3, relative=True)

    def test_an_attribute_of_another_class_that_is_called_relative(self):
        class Relative(nnx.Sequential):
            relative = True

        assert_stack_is_the_network(Relative(linear(4, 3), nnx.relu, linear(3, 1)), [(4, 3), (3, 1)])

    def test_nnx_sequential(self):
        network = nnx.Sequential(linear(4, 5), nnx.tanh, linear(5, 2), nnx.gelu, linear(2, 1))
        assert_stack_is_the_network(network, [(4, 5), (5, 2), (2, 1)])

    def test_linen_sequential(self):
        network = bound(nn.Dense(5), nn.tanh, nn.Dense(2), nn.gelu, nn.Dense(1))
        assert_stack_is_the_network(network, [(4, 5), (5, 2), (2, 1)])

    def test_linen_sequential_of_named_layers(self):
        network = bound(nn.Dense(5, name="first"), nn.relu, nn.Dense(1, name="last"))
        assert_stack_is_the_network(network, [(4, 5), (5, 1)])

    @pytest.mark.parametrize(
        "network",
        [
            nnx.Sequential(linear(4, 5, use_bias=False), nnx.relu, linear(5, 1, use_bias=False)),
            bound(nn.Dense(5, use_bias=False), nn.relu, nn.Dense(1, use_bias=False)),
        ],
        ids=["nnx", "linen"],
    )
    def test_without_bias(self, network):
        assert_stack_is_the_network(network, [(4, 5), (5, 1)])
        for layer in dense_stack(network).layers:
            np.testing.assert_array_equal(layer.bias, np.zeros(layer.kernel.shape[1]))

    @pytest.mark.parametrize(
        "network",
        [
            nnx.Sequential(linear(4, 5), jnp.sin, nnx.softplus, jnp.square, linear(5, 1), jnp.tanh, jnp.exp),
            bound(nn.Dense(5), jnp.sin, nn.softplus, jnp.square, nn.Dense(1), jnp.tanh, jnp.exp),
        ],
        ids=["nnx", "linen"],
    )
    def test_activations_after_one_another_and_after_the_last_layer(self, network):
        assert_stack_is_the_network(network, [(4, 5), (5, 1)])

    def test_layers_without_activation_between(self):
        assert_stack_is_the_network(nnx.Sequential(linear(4, 5), linear(5, 1)), [(4, 5), (5, 1)])

    def test_a_layer_used_twice(self):
        twice = linear(4, 4)
        assert_stack_is_the_network(nnx.Sequential(twice, nnx.relu, twice, linear(4, 1)), [(4, 4), (4, 4), (4, 1)])

    @pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
    def test_narrow_weights_in_a_float32_layer(self, dtype):
        network = nnx.Sequential(linear(4, 5, param_dtype=dtype), nnx.relu, linear(5, 1, dtype=jnp.float32))
        assert network.layers[0].kernel.dtype == dtype
        assert_stack_is_the_network(network, [(4, 5), (5, 1)])

    def test_a_subclass_with_the_same_call(self):
        class Named(nnx.Sequential):
            def __init__(self):
                super().__init__(linear(4, 3), nnx.relu, linear(3, 1))
                self.name = "mine"

        assert_stack_is_the_network(Named(), [(4, 3), (3, 1)])

    def test_keeps_the_weights_of_the_moment(self):
        network = nnx.Sequential(linear(2, 1))
        (layer,) = dense_stack(network).layers
        before = layer.kernel.copy()
        network.layers[0].kernel[...] = jnp.zeros((2, 1))
        np.testing.assert_array_equal(layer.kernel, before)
        assert np.any(before)

    def test_is_made_of_dense(self):
        (layer,) = dense_stack(nnx.Sequential(linear(2, 1))).layers
        assert type(layer) is Dense
        assert Dense._fields == ("kernel", "bias", "activation")


def unknown(x):
    return x * jnp.mean(x, axis=-1, keepdims=True)


class OwnCall(nnx.Sequential):
    def __call__(self, x):
        return -super().__call__(x)


class OwnIntrospectionNetwork(IntrospectionNetwork):
    def __call__(self, x):
        return -super().__call__(x)


class OwnLinear(nnx.Linear):
    def __call__(self, x):
        return -super().__call__(x)


class OwnModule(nnx.Module):
    def __init__(self):
        self.layers = nnx.List([linear(4, 1)])

    def __call__(self, x):
        return self.layers[0](x) - x[..., :1]


class OwnLinenSequential(nn.Sequential):
    def __call__(self, x):
        return -super().__call__(x)


class OwnDense(nn.Dense):
    @nn.compact
    def __call__(self, x):
        return -super().__call__(x)


class OwnLinen(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(x) - x[..., :1]


def bound_one(network):
    return network.bind(network.init(jax.random.key(0), jnp.zeros(4)))


class TestNotAStack:
    @pytest.mark.parametrize(
        "network",
        [
            pytest.param(nnx.Sequential(linear(4, 5), nnx.softmax, linear(5, 1)), id="softmax"),
            pytest.param(nnx.Sequential(linear(4, 5), unknown, linear(5, 1)), id="unknown function"),
            pytest.param(nnx.Sequential(linear(4, 5), lambda x: nnx.relu(x), linear(5, 1)), id="lambda"),
            pytest.param(OwnCall(linear(4, 5), nnx.relu, linear(5, 1)), id="own call"),
            pytest.param(OwnIntrospectionNetwork(rngs=nnx.Rngs(0)), id="own introspection network"),
            pytest.param(OwnIntrospectionNetwork(relative=True, rngs=nnx.Rngs(0)), id="own relative network"),
            pytest.param(nnx.Sequential(linear(4, 5, dtype=jnp.bfloat16), linear(5, 1)), id="bfloat16"),
            pytest.param(nnx.Sequential(linear(4, 5), linear(5, 1, dtype=jnp.float16)), id="float16"),
            pytest.param(nnx.Sequential(nnx.relu, linear(4, 1)), id="activation first"),
            pytest.param(nnx.Sequential(nnx.relu), id="no layers"),
            pytest.param(nnx.Sequential(linear(4, 5), nnx.LayerNorm(5, rngs=nnx.Rngs(0)), linear(5, 1)), id="norm"),
            pytest.param(nnx.Sequential(OwnLinear(4, 1, rngs=nnx.Rngs(0))), id="own linear"),
            pytest.param(nnx.Sequential(nnx.LinearGeneral(4, 1, rngs=nnx.Rngs(0))), id="linear general"),
            pytest.param(nnx.Sequential(nnx.Sequential(linear(4, 1)), linear(1, 1)), id="nested"),
            pytest.param(OwnModule(), id="own module"),
            pytest.param(linear(4, 1), id="a layer alone"),
        ],
    )  # fmt: skip
    def test_nnx(self, network):
        assert dense_stack(network) is None
        assert network(jnp.ones(4)).size in (1, 4)  # but it is a network

    @pytest.mark.parametrize(
        "network",
        [
            pytest.param(bound(nn.Dense(5), nn.softmax, nn.Dense(1)), id="softmax"),
            pytest.param(bound(nn.Dense(5), unknown, nn.Dense(1)), id="unknown function"),
            pytest.param(bound(nn.Dense(5, dtype=jnp.bfloat16), nn.relu, nn.Dense(1)), id="bfloat16"),
            pytest.param(bound(nn.relu, nn.Dense(1)), id="activation first"),
            pytest.param(bound(nn.Dense(5), nn.LayerNorm(), nn.Dense(1)), id="norm"),
            pytest.param(bound(OwnDense(1)), id="own dense"),
            pytest.param(bound(nn.Dense(5), nn.PReLU(), nn.Dense(1)), id="learned activation"),
            pytest.param(bound(nn.Sequential([nn.Dense(2)]), nn.Dense(1)), id="nested"),
            pytest.param(bound_one(OwnLinenSequential([nn.Dense(5), nn.Dense(1)])), id="own call"),
            pytest.param(bound_one(OwnLinen()), id="own module"),
            pytest.param(bound_one(nn.Dense(1)), id="a layer alone"),
        ],
    )
    def test_linen(self, network):
        assert dense_stack(network) is None
        assert network(jnp.ones(4)).shape == (1,)

    @pytest.mark.parametrize("other", [None, 3, "relu", lambda x: x, np.ones((4, 1)), IntrospectionNetwork])
    def test_other_things(self, other):
        assert dense_stack(other) is None
