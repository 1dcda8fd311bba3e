from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from optax_introspect import IntrospectionNetwork
from optax_introspect.network import _ELEMENTWISE, ACTIVATIONS, Dense, dense_stack


def linear(inputs, outputs, **arguments):
    return nnx.Linear(inputs, outputs, rngs=nnx.Rngs(inputs + 100 * outputs), **arguments)


def bound(*layers, num_points=4, seed=0):
    network = nn.Sequential(layers)
    return network.bind(network.init(jax.random.key(seed), jnp.zeros(num_points)))


def evaluate(stack, x):
    for kernel, bias, activation in stack:
        x = np.asarray(activation(jnp.asarray(x @ kernel + bias)))
    return x


def assert_stack_is_the_network(network, shapes, num_points=4):
    stack = dense_stack(network)
    assert stack is not None
    assert [layer.kernel.shape for layer in stack] == shapes
    assert [layer.bias.shape for layer in stack] == [(outputs,) for _, outputs in shapes]
    for layer in stack:
        for array in layer[:2]:
            assert type(array) is np.ndarray
            assert array.dtype == np.float32
    x = np.random.default_rng(0).normal(size=(50, num_points)).astype(np.float32)
    np.testing.assert_allclose(evaluate(stack, x), network(jnp.asarray(x)), rtol=1e-5, atol=1e-5)


class TestIntrospectionNetwork:
    def test_the_papers_network_by_default(self):
        network = IntrospectionNetwork(rngs=nnx.Rngs(0))
        assert (network.num_points, network.hidden, network.activation) == (4, (40,), "relu")
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

    @pytest.mark.parametrize("arguments", [{"num_points": 0}, {"hidden": (40, 0)}, {"hidden": (-1,)}])
    def test_layers_without_units(self, arguments):
        name = "num_points" if "num_points" in arguments else "units of a hidden layer"
        with pytest.raises(ValueError, match=rf"^{name} must be a positive integer; got (0|-1)$"):
            IntrospectionNetwork(rngs=nnx.Rngs(0), **arguments)


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
        for layer in dense_stack(network):
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
        (layer,) = dense_stack(network)
        before = layer.kernel.copy()
        network.layers[0].kernel[...] = jnp.zeros((2, 1))
        np.testing.assert_array_equal(layer.kernel, before)
        assert np.any(before)

    def test_is_made_of_dense(self):
        (layer,) = dense_stack(nnx.Sequential(linear(2, 1)))
        assert type(layer) is Dense
        assert Dense._fields == ("kernel", "bias", "activation")


def unknown(x):
    return x * jnp.mean(x, axis=-1, keepdims=True)


class OwnCall(nnx.Sequential):
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
