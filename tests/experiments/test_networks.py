"""Parameter counts, shapes and layers of the networks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments.networks import NETWORKS, layers

# Number of weights, the shape of an image, the number of outputs in training, and the number of classes.
SIZES = {
    "N_0": (551_818, (28, 28), 1, 10),
    "MNIST_1": (3_274_634, (28, 28), 1, 10),
    "MNIST_2": (431_080, (28, 28), 1, 10),
    "MNIST_3": (784 * 256 + 256 + 256 * 256 + 256 + 2570, (28, 28), 1, 10),
    "MNIST_4": (4 * 128 * (28 + 128 + 1) + 1290, (28, 28), 1, 10),
    "MNIST_3, He": (784 * 256 + 256 + 256 * 256 + 256 + 2570, (28, 28), 1, 10),
    "CIFAR_1": (1_068_554, (24, 24, 3), 1, 10),
    "AlexNet": (60_965_224, (227, 227, 3), 1, 1000),
    "AlexNet, narrow": (891_626, (32, 32, 3), 1, 10),
    "Inception": (13_378_280, (224, 224, 3), 3, 1000),
    "Inception, narrow": (407_546, (32, 32, 3), 3, 10),
}


def weights(network):
    return sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(network, nnx.Param)))


@functools.cache
def made(name):
    return NETWORKS[name](rngs=nnx.Rngs(0))


@pytest.mark.parametrize("name", SIZES)
def test_weights_and_shapes(name):
    count, image, outputs, classes = SIZES[name]

    def shapes():
        network, images = NETWORKS[name](rngs=nnx.Rngs(0)), jnp.zeros((2, *image))
        return network, network(images), network(images, jax.random.key(0))

    network, evaluated, trained = nnx.eval_shape(shapes)
    assert sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(network, nnx.Param))) == count
    assert evaluated.shape == (2, classes)
    trained = trained if isinstance(trained, tuple) else (trained,)
    assert [x.shape for x in trained] == [(2, classes)] * outputs


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "layer", "std"),
    [
        ("MNIST_1", "conv2", 0.0088),  # 0.01 without the ends that are cut off
        ("MNIST_2", "dense1", (2 / 1300) ** 0.5),
        ("CIFAR_1", "conv2", 1e-4),
        ("CIFAR_1", "dense2", 0.04),
        ("CIFAR_1", "dense3", 1 / 192),
        ("N_0", "dense1", (1 / 512) ** 0.5),
    ],
)
def test_initial_weights(name, layer, std):
    assert float(jnp.std(getattr(made(name), layer).kernel[...])) == pytest.approx(std, rel=0.05)


@pytest.mark.parametrize(("name", "std"), [("MNIST_3", 1.0), ("MNIST_3, He", (2 / 784) ** 0.5)])
def test_initial_weights_of_the_dense_network(name, std):
    first = made(name).layers[0]
    assert float(jnp.std(first.kernel[...])) == pytest.approx(std, rel=0.02)
    assert float(jnp.std(first.bias[...])) == pytest.approx(1.0 if std == 1 else 0.0, abs=0.1)


def test_dropout_only_in_training():
    network, images = made("N_0"), jax.random.uniform(jax.random.key(1), (2, 28, 28))
    a, b = (network(images, jax.random.key(seed)) for seed in (0, 1))
    assert not np.allclose(a, b, rtol=1e-6, atol=0)
    np.testing.assert_array_equal(network(images), network(images))


def windowed(images, size, stride, padding):
    window, strides = (1, size, size, 1), (1, stride, stride, 1)
    return jax.lax.reduce_window(images, -jnp.inf, jax.lax.max, window, strides, padding)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pool", "size", "stride", "padding"),
    [
        (layers.max_pool, 2, 2, "SAME"),
        (layers.overlapping_max_pool, 3, 2, "SAME"),
        (lambda x: layers.overlapping_max_pool(x, 1), 3, 1, "SAME"),
        (lambda x: layers.overlapping_max_pool(x, 2, "VALID"), 3, 2, "VALID"),
    ],
)
@pytest.mark.parametrize("side", [7, 8])
def test_pools_are_those_of_a_windowed_reduction(pool, size, stride, padding, side):
    images = jax.random.normal(jax.random.key(0), (2, side, side, 3))

    @functools.partial(jax.jit, static_argnums=0)
    def forward_and_back(pool, images):
        found, pull = jax.vjp(pool, images)
        return found, pull(jax.random.normal(jax.random.key(1), found.shape))[0]

    found, gradient = forward_and_back(pool, images)
    expected, expected_gradient = forward_and_back(lambda x: windowed(x, size, stride, padding), images)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-5, atol=1e-6)


def test_local_response_norm():
    x = 30 * jax.random.normal(jax.random.key(0), (2, 3, 3, 7))

    def by_hand(x):
        squares = jnp.pad(x**2, ((0, 0), (0, 0), (0, 0), (2, 2)))
        sums = sum(squares[..., i : i + 7] for i in range(5))
        return x / (2 + 1e-4 * sums) ** 0.75

    found, pull = jax.vjp(layers.local_response_norm, x)
    expected, expected_pull = jax.vjp(by_hand, x)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(pull(found)[0], expected_pull(found)[0], rtol=1e-4, atol=1e-5)
