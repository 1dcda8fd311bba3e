"""The network of the experiments on CIFAR-10, against one of plain layers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax import lax

from experiments.networks import NETWORKS, CifarNet

from . import plain

IMAGES = jnp.asarray(np.random.default_rng(0).normal(size=(4, 24, 24, 3)), jnp.float32)
LABELS = jnp.asarray([3, 1, 0, 9])
KEY = jax.random.key(0, impl="rbg")


def pool(x):
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "SAME")


def convolution(x, layer):
    y = lax.conv_general_dilated(x, layer.kernel[...], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return y + layer.bias[...]


def norm(x, layer, training):
    """Batch norm as its paper has it, but for the update of the variance, which Flax doesn't make unbiased."""
    mean, var = layer.mean[...], layer.var[...]
    if training:
        mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
        layer.mean[...] = 0.99 * layer.mean[...] + 0.01 * mean
        layer.var[...] = 0.99 * layer.var[...] + 0.01 * var
    return layer.scale[...] * (x - mean) / jnp.sqrt(var + 1e-5) + layer.bias[...]


def plainly(network, images, training):
    x = norm(pool(jax.nn.relu(convolution(images, network.conv1))), network.norm1, training)
    x = pool(norm(jax.nn.relu(convolution(x, network.conv2)), network.norm2, training))
    x = x.reshape(len(images), -1)
    for layer in (network.dense1, network.dense2):
        x = jax.nn.relu(x @ layer.kernel[...] + layer.bias[...])
    return x @ network.dense3.kernel[...] + network.dense3.bias[...]


def as_it_is(network, images, training):
    return network(images, KEY if training else None)


@pytest.fixture(scope="module")
def network():
    with jax.default_prng_impl("rbg"):
        return CifarNet(rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def lively(network):
    """With larger kernels, and something in biases and statistics, so that all of it counts."""
    network, random = nnx.clone(network), np.random.default_rng(1)
    for layer in (network.conv1, network.conv2):
        layer.kernel[...] *= 300
    for path, leaf in nnx.to_flat_state(nnx.state(network)):
        if path[-1] != "kernel":
            leaf[...] += jnp.asarray(random.uniform(0, 0.3, leaf.get_value().shape), jnp.float32)
    return network


@pytest.fixture(scope="module")
def steps(lively):
    """Of both networks: logits without and with a key, statistics after the latter, gradients of the loss."""
    results = {}
    for forward in (as_it_is, plainly):
        graphdef, params, rest = nnx.split(lively, nnx.Param, ...)

        @functools.partial(jax.jit, compiler_options=plain.QUICKLY)
        def step(params, rest, forward=forward, graphdef=graphdef):
            def loss(params):
                network = nnx.merge(graphdef, params, rest, copy=True)
                logits = forward(network, IMAGES, True)
                losses = optax.softmax_cross_entropy_with_integer_labels(logits, LABELS)
                return losses.mean(), (logits, nnx.state(network, nnx.BatchStat))

            (_, (logits, statistics)), gradients = jax.value_and_grad(loss, has_aux=True)(params)
            evaluated = forward(nnx.merge(graphdef, params, rest, copy=True), IMAGES, False)
            return {"logits": logits, "evaluated": evaluated, "statistics": statistics, "gradients": gradients}

        results[forward] = step(params, rest)
    return results[as_it_is], results[plainly]


class TestCifarNet:
    def test_is_that_of_the_paper(self, network):
        assert plain.shapes_of(network) == {
            "conv1/kernel": (5, 5, 3, 64),
            "conv1/bias": (64,),
            "norm1/scale": (64,),
            "norm1/bias": (64,),
            "conv2/kernel": (5, 5, 64, 64),
            "conv2/bias": (64,),
            "norm2/scale": (64,),
            "norm2/bias": (64,),
            "dense1/kernel": (2304, 384),
            "dense1/bias": (384,),
            "dense2/kernel": (384, 192),
            "dense2/bias": (192,),
            "dense3/kernel": (192, 10),
            "dense3/bias": (10,),
        }
        assert plain.count(network) == 1_068_554
        assert plain.state_types(network) == {nnx.Param, nnx.BatchStat}
        assert NETWORKS["CIFAR_1"] is CifarNet

    def test_initial_weights(self, network):
        deviations = {"conv1": 1e-4, "conv2": 1e-4, "dense1": 0.04, "dense2": 0.04, "dense3": 1 / 192}
        for name, deviation in deviations.items():
            layer = getattr(network, name)
            kernel = np.asarray(layer.kernel[...])
            assert np.std(kernel) == pytest.approx(deviation, rel=4 / np.sqrt(kernel.size))
            assert abs(kernel).max() > 2.5 * deviation  # not cut off at two deviations
            assert not np.any(layer.bias[...])

    @pytest.mark.parametrize("what", ["logits", "evaluated", "statistics", "gradients"])
    def test_against_plain_layers(self, steps, what):
        found, expected = (step[what] for step in steps)
        for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6 + 1e-5 * float(abs(y).max()))
            assert abs(y).max() > 1e-4

    def test_statistics_are_updated_with_a_key_only(self, network):
        network = nnx.clone(network)
        before = jax.tree.map(np.array, nnx.state(network, nnx.BatchStat))
        evaluate = nnx.jit(lambda network, images: network(images))
        evaluate(network, IMAGES)
        for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(nnx.state(network, nnx.BatchStat)), strict=True):
            np.testing.assert_array_equal(a, b)
        nnx.jit(lambda network, images, key: network(images, key))(network, IMAGES, KEY)
        assert not np.array_equal(network.norm1.mean[...], np.zeros(64))
        assert not np.array_equal(network.norm2.var[...], np.ones(64))

    def test_logits_without_a_key_are_of_the_image_alone(self, steps, lively):
        evaluated = nnx.jit(lambda network, images: network(images))(lively, IMAGES[1:2])
        np.testing.assert_allclose(evaluated, steps[0]["evaluated"][1:2], rtol=1e-3, atol=1e-4)
        assert not np.allclose(steps[0]["logits"], steps[0]["evaluated"], rtol=0.05)
