"""The networks of the experiments on MNIST beside `N_0` and the dense one (see test_training), against NumPy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments.networks import NETWORKS, ConvNet, LeNet, Mlp, RowLstm, WideConvNet

IMAGES = np.random.default_rng(0).random((3, 28, 28))


def shapes_of(network):
    leaves = nnx.to_flat_state(nnx.state(network, nnx.Param))
    return {"/".join(map(str, path)): leaf.get_value().shape for path, leaf in leaves}


def in_float64(layer):
    return {name: np.float64(value) for name, value in nnx.to_pure_dict(nnx.state(layer, nnx.Param)).items()}


def dense(x, layer):
    weights = in_float64(layer)
    return x @ weights["kernel"] + weights["bias"]


def convolve_and_pool(x, layer, padding):
    """A 5x5 convolution and 2x2 maxima, pixel by pixel of the kernel."""
    kernel, bias = in_float64(layer)["kernel"], in_float64(layer)["bias"]
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    height, width = x.shape[1] - 4, x.shape[2] - 4
    y = bias + sum(x[:, i : i + height, j : j + width] @ kernel[i, j] for i in range(5) for j in range(5))
    return np.max([y[:, i::2, j::2] for i in (0, 1) for j in (0, 1)], axis=0)


def with_biases(network):
    """A copy with something in its biases, which are zero at first, so that they count."""
    network, random = nnx.clone(network), np.random.default_rng(1)
    for path, leaf in nnx.to_flat_state(nnx.state(network, nnx.Param)):
        if path[-1] == "bias":
            leaf[...] = jnp.asarray(random.normal(0, 0.3, leaf.get_value().shape), jnp.float32)
    return network


@pytest.fixture(scope="module", autouse=True)
def quick_random_numbers():
    """Of another generator, which takes half of the time to compile."""
    with jax.default_prng_impl("rbg"):
        yield


@pytest.fixture(scope="module")
def lenet():
    return LeNet(rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def lstm():
    return RowLstm(rngs=nnx.Rngs(0))


def test_the_lenet_is_that_of_caffe(lenet):
    shapes = shapes_of(lenet)
    assert shapes == {
        "conv1/kernel": (5, 5, 1, 20),
        "conv1/bias": (20,),
        "conv2/kernel": (5, 5, 20, 50),
        "conv2/bias": (50,),
        "dense1/kernel": (800, 500),
        "dense1/bias": (500,),
        "dense2/kernel": (500, 10),
        "dense2/bias": (10,),
    }
    assert sum(map(math.prod, shapes.values())) == 431_080


def test_the_lenet_against_numpy(lenet):
    network = with_biases(lenet)
    x = convolve_and_pool(IMAGES[..., None], network.conv1, 0)
    x = convolve_and_pool(x, network.conv2, 0)
    assert x.shape == (3, 4, 4, 50)
    expected = dense(np.maximum(dense(x.reshape(3, 800), network.dense1), 0), network.dense2)
    found = network(jnp.asarray(IMAGES, jnp.float32))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert np.std(expected) > 0.1


def test_the_weights_of_the_lenet_are_xavier_uniform(lenet):
    for layer, fans in (
        (lenet.conv1, (25, 500)),
        (lenet.conv2, (500, 1250)),
        (lenet.dense1, (800, 500)),
        (lenet.dense2, (500, 10)),
    ):
        kernel, bound = np.asarray(layer.kernel[...]), math.sqrt(6 / sum(fans))
        assert 0.97 * bound < abs(kernel).max() <= bound
        assert np.std(kernel) == pytest.approx(bound / math.sqrt(3), rel=0.05)
        assert not np.any(layer.bias[...])


def test_the_lstm_is_that_of_the_paper(lstm):
    shapes = shapes_of(lstm)
    # Of the input, of the recurrence with the biases, and of the logits.
    assert sum(map(math.prod, shapes.values())) == 4 * 28 * 128 + 4 * (128 * 128 + 128) + 128 * 10 + 10 == 81_674
    assert shapes["lstm/dense_i/kernel"] == (28, 512)
    assert shapes["lstm/dense_h/kernel"] == (128, 512)
    assert shapes["dense/kernel"] == (128, 10)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_the_lstm_against_numpy(lstm):
    network = with_biases(lstm)
    inputs, recurrence = in_float64(network.lstm.dense_i), in_float64(network.lstm.dense_h)
    cell = hidden = np.zeros((3, 128))
    for row in range(28):
        gates = IMAGES[:, row] @ inputs["kernel"] + hidden @ recurrence["kernel"] + recurrence["bias"]
        enter, forget, new, output = np.split(gates, 4, axis=1)
        cell = sigmoid(forget) * cell + sigmoid(enter) * np.tanh(new)
        hidden = sigmoid(output) * np.tanh(cell)
    found = network(jnp.asarray(IMAGES, jnp.float32))
    np.testing.assert_allclose(found, dense(hidden, network.dense), rtol=1e-4, atol=1e-5)
    assert np.std(np.asarray(found)) > 0.05
    by_columns = network(jnp.asarray(IMAGES.swapaxes(1, 2), jnp.float32))
    assert not np.allclose(found, by_columns, atol=0.01)


def test_the_weights_of_the_lstm_are_as_flax_has_them(lstm):
    kernel = np.asarray(lstm.lstm.dense_i.kernel[...])
    assert np.std(kernel) == pytest.approx(math.sqrt(1 / 28), rel=0.03)
    recurrence = np.float64(lstm.lstm.dense_h.kernel[...])
    np.testing.assert_allclose(recurrence @ recurrence.T, np.eye(128), atol=1e-5)
    assert not np.any(lstm.lstm.dense_h.bias[...])
    assert np.std(np.asarray(lstm.dense.kernel[...])) == pytest.approx(math.sqrt(1 / 128), rel=0.06)


def test_the_wide_conv_net_is_that_of_the_paper():
    network = WideConvNet(rngs=nnx.Rngs(0))
    shapes = shapes_of(network)
    assert sum(map(math.prod, shapes.values())) == 3_274_634
    assert (shapes["conv1/kernel"], shapes["conv2/kernel"]) == ((5, 5, 1, 32), (5, 5, 32, 64))
    assert (shapes["dense1/kernel"], shapes["dense2/kernel"]) == ((3136, 1024), (1024, 10))
    for layer in (network.conv1, network.conv2, network.dense1, network.dense2):
        assert_truncated_normal(layer, 0.01)
    for layer in (network.conv1, network.conv2, network.dense1, network.dense2):
        layer.kernel[...] *= 10  # else all logits would be almost zero
    network = with_biases(network)
    x = np.maximum(convolve_and_pool(IMAGES[..., None], network.conv1, 2), 0)
    x = np.maximum(convolve_and_pool(x, network.conv2, 2), 0)
    assert x.shape == (3, 7, 7, 64)
    expected = dense(np.maximum(dense(x.reshape(3, 3136), network.dense1), 0), network.dense2)
    np.testing.assert_allclose(network(jnp.asarray(IMAGES, jnp.float32)), expected, rtol=1e-3, atol=1e-3)


def assert_truncated_normal(layer, stddev):
    """As TensorFlow's: a normal distribution of this deviation, of which what is beyond two of them is drawn again."""
    kernel = np.asarray(layer.kernel[...])
    assert 1.8 * stddev < abs(kernel).max() <= 2 * stddev * (1 + 1e-6)
    spread = 4 / math.sqrt(kernel.size)  # four deviations of the mean, and more of the deviation
    assert abs(np.mean(kernel)) < spread * stddev
    assert np.std(kernel) == pytest.approx(0.8796 * stddev, rel=spread)
    assert not np.any(layer.bias[...])


def test_the_initial_weights_of_n0_can_be_chosen():
    network = ConvNet(nnx.initializers.constant(0.25), rngs=nnx.Rngs(0))
    for path, leaf in nnx.to_flat_state(nnx.state(network, nnx.Param)):
        assert np.all(leaf.get_value() == (0.25 if path[-1] == "kernel" else 0))


def test_the_initial_weights_of_he():
    network = NETWORKS["MNIST_3, He"](rngs=nnx.Rngs(0))
    assert shapes_of(network) == shapes_of(nnx.eval_shape(lambda: Mlp(rngs=nnx.Rngs(0))))
    for layer, fan_in in zip(network.layers, (784, 256, 256), strict=True):
        assert np.std(np.asarray(layer.kernel[...])) == pytest.approx(math.sqrt(2 / fan_in), rel=0.05)
        assert not np.any(layer.bias[...])


@pytest.mark.parametrize("name", [name for name in NETWORKS if name == "N_0" or name.startswith("MNIST")])
def test_logits_have_their_shape(name):
    network = nnx.eval_shape(lambda: NETWORKS[name](rngs=nnx.Rngs(0)))
    for batch in (1, 4):
        images = jax.ShapeDtypeStruct((batch, 28, 28), jnp.float32)
        for arguments in ((images,), (images, jax.eval_shape(lambda: jax.random.key(0)))):
            logits = nnx.eval_shape(lambda network, *given: network(*given), network, *arguments)
            assert (logits.shape, logits.dtype) == ((batch, 10), jnp.float32)
