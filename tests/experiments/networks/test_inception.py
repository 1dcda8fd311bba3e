"""GoogLeNet, against its paper and against plain layers in NumPy."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from experiments.networks import NETWORKS, Inception

from . import plain

LAYERS = {
    "conv1": (112, 112, 64),
    "pool of conv1": (56, 56, 64),
    "reduce2": (56, 56, 64),
    "conv2": (56, 56, 192),
    "pool of conv2": (28, 28, 192),
    "3a": (28, 28, 256),
    "3b": (28, 28, 480),
    "pool of 3b": (14, 14, 480),
    "4a": (14, 14, 512),
    "4b": (14, 14, 512),
    "4c": (14, 14, 512),
    "4d": (14, 14, 528),
    "4e": (14, 14, 832),
    "pool of 4e": (7, 7, 832),
    "5a": (7, 7, 832),
    "5b": (7, 7, 1024),
    "mean": (1024,),
    "logits": (1000,),
}
HEADS = {"logits of head 4a": (1000,), "logits of head 4d": (1000,)}


def key(seed=0):
    return jax.random.key(seed, impl="rbg")


def images(batch=2):
    return jnp.asarray(np.random.default_rng(0).normal(size=(batch, 32, 32, 3)), jnp.float32)


def filled(bias_deviation):
    """The narrow network with weights from NumPy, since to make its own takes longer than all that is tested here."""
    network, draw = plain.abstract(NETWORKS["Inception, narrow"]), np.random.default_rng(1)
    for path, leaf in nnx.to_flat_state(nnx.state(network)):
        shape = leaf.get_value().shape
        if path[-1] == "kernel":
            value = draw.normal(0, math.sqrt(shape[-1] / math.prod(shape)), shape)
        else:
            value = draw.normal(0.2, bias_deviation, shape)
        leaf.set_value(jnp.asarray(value, jnp.float32))
    return network


@pytest.fixture(scope="module")
def narrow():
    return filled(0.3)


@pytest.fixture(scope="module")
def activations(narrow):
    """All outputs without a key."""
    return jax.tree.map(np.asarray, nnx.jit(lambda network, x: dict(network.activations(x)))(narrow, images()))


@pytest.fixture(scope="module")
def step(narrow):
    """From weights and a seed to the loss, all logits, the gradients, and the next weights."""
    graphdef, _ = nnx.split(narrow)
    x, labels = images(), jnp.asarray([3, 8])

    @functools.partial(jax.jit, compiler_options=plain.QUICKLY)
    def step(params, seed):
        def loss(params):
            logits = nnx.merge(graphdef, params)(x, jax.random.fold_in(key(), seed))
            losses = [optax.softmax_cross_entropy_with_integer_labels(y, labels).mean() for y in logits]
            return losses[0] + 0.3 * (losses[1] + losses[2]), logits

        (value, logits), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        return value, logits, gradients, jax.tree.map(lambda w, g: w - 0.02 * g, params, gradients)

    return step


def module_in_numpy(module, x):
    three = plain.relu(plain.convolution(x, module.reduce3))
    five = plain.relu(plain.convolution(x, module.reduce5))
    branches = (
        plain.convolution(x, module.one),
        plain.convolution(three, module.three, padding=1),
        plain.convolution(five, module.five, padding=2),
        plain.convolution(plain.max_pool(x, stride=1), module.pool),
    )
    return plain.relu(np.concatenate(branches, axis=-1))


class TestFullSize:
    def test_has_the_published_number_of_weights(self):
        network = plain.abstract(Inception)
        heads = sum(plain.count(head) for head in network.heads.values())
        assert plain.count(network) == 13_378_280
        assert plain.count(network) - heads == 6_998_552
        assert plain.state_types(network) == {nnx.Param}

    @pytest.mark.parametrize("training", [False, True])
    def test_has_the_published_outputs(self, training):
        network = plain.abstract(NETWORKS["Inception"])
        shapes, dtypes = plain.shapes_of_activations(network, 224, training=training)
        assert shapes == LAYERS | (HEADS if training else {})
        assert set(dtypes.values()) == {jnp.dtype("float32")}
        head = plain.shapes_of(network.heads["4d"])
        assert (head["conv/kernel"], head["dense1/kernel"]) == ((1, 1, 528, 128), (4 * 4 * 128, 1024))

    def test_in_bfloat16_only_weights_and_logits_are_float32(self):
        network = plain.abstract(Inception, dtype=jnp.bfloat16)
        assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(network))} == {jnp.dtype("float32")}
        _, dtypes = plain.shapes_of_activations(network, 224, training=True)
        assert {name for name, dtype in dtypes.items() if dtype == jnp.float32} == {"logits", *HEADS}
        assert set(dtypes.values()) == {jnp.dtype("float32"), jnp.dtype("bfloat16")}

    def test_is_called_for_its_logits(self):
        network, x = plain.abstract(Inception, classes=7), jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)
        logits = nnx.eval_shape(lambda network, x: network(x), network, x)
        assert logits.shape == (2, 7)
        with_heads = nnx.eval_shape(lambda network, x: network(x, key()), network, x)
        assert [y.shape for y in with_heads] == [(2, 7)] * 3

    @pytest.mark.parametrize(("image_size", "side"), [(65, 1), (112, 1), (113, 2), (299, 5)])
    def test_heads_of_other_images(self, image_size, side):
        network = plain.abstract(Inception, image_size=image_size)
        assert plain.shapes_of(network.heads["4a"])["dense1/kernel"] == (side**2 * 128, 1024)
        shapes, _ = plain.shapes_of_activations(network, image_size, training=True)
        assert shapes["logits of head 4a"] == (1000,)


class TestNarrow:
    def test_is_as_described(self, narrow):
        heads = sum(plain.count(head) for head in narrow.heads.values())
        assert plain.count(narrow) == 407_546
        assert plain.count(narrow) - heads == 377_126
        shapes, _ = plain.shapes_of_activations(narrow, 32, training=True)
        assert shapes == {
            "conv1": (32, 32, 16),
            "pool of conv1": (16, 16, 16),
            "reduce2": (16, 16, 16),
            "conv2": (16, 16, 48),
            "pool of conv2": (8, 8, 48),
            "3a": (8, 8, 64),
            "3b": (8, 8, 120),
            "pool of 3b": (4, 4, 120),
            "4a": (4, 4, 128),
            "logits of head 4a": (10,),
            "4b": (4, 4, 128),
            "4c": (4, 4, 128),
            "4d": (4, 4, 132),
            "logits of head 4d": (10,),
            "4e": (4, 4, 208),
            "pool of 4e": (2, 2, 208),
            "5a": (2, 2, 208),
            "5b": (2, 2, 256),
            "mean": (256,),
            "logits": (10,),
        }

    def test_against_numpy(self, narrow, activations):
        x = plain.max_pool(plain.relu(plain.convolution(images(), narrow.conv1, padding=1)))
        x = plain.relu(plain.convolution(plain.local_response_norm(x), narrow.reduce2))
        x = plain.relu(plain.convolution(x, narrow.conv2, padding=1))
        x = plain.max_pool(plain.local_response_norm(x))
        for name in ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b"):
            x = module_in_numpy(narrow.inceptions[name], x)
            np.testing.assert_allclose(activations[name], x, rtol=1e-3, atol=1e-4 * x.max(), err_msg=name)
            assert np.std(x) > 0.01
            if name in ("3b", "4e"):
                x = plain.max_pool(x)
        logits = plain.dense(x.mean((1, 2)), narrow.dense)
        np.testing.assert_allclose(activations["logits"], logits, rtol=1e-3, atol=1e-4)
        assert np.std(logits) > 0.01

    @pytest.mark.parametrize("name", ["4a", "4d"])
    def test_heads_against_numpy(self, name, narrow, activations):
        head = narrow.heads[name]
        x = plain.relu(plain.convolution(activations[name].mean((1, 2), keepdims=True), head.conv))
        x = plain.relu(plain.dense(x.reshape(2, -1), head.dense1))
        expected = plain.dense(x, head.dense2)
        found = nnx.jit(lambda head, x: head(x, None))(head, activations[name])
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)

    def test_a_key_drops_units(self, narrow, activations, step):
        _, params = nnx.split(narrow)
        _, logits, gradients, _ = step(params, 0)
        _, same_logits, same_gradients, _ = step(params, 0)
        for a, b in zip(
            jax.tree.leaves((logits, gradients)), jax.tree.leaves((same_logits, same_gradients)), strict=True
        ):
            np.testing.assert_array_equal(a, b)
        _, other_logits, *_ = step(params, 1)
        for a, b in zip(logits, other_logits, strict=True):
            assert a.shape == (2, 10)
            assert not np.allclose(a, b, atol=1e-3)
        assert not np.allclose(logits[0], activations["logits"], atol=1e-3)

    def test_learns(self, step):
        """The loss falls on a batch that is seen over and over, and all weights have their part in it."""
        _, params = nnx.split(filled(0.0))
        losses = []
        for seed in range(20):
            value, _, gradients, params = step(params, seed)
            losses.append(float(value))
        assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])
        assert all(np.all(np.isfinite(leaf)) and np.any(np.asarray(leaf)) for leaf in jax.tree.leaves(gradients))

    def test_initial_weights(self, monkeypatch):
        monkeypatch.setattr(nnx.initializers, "lecun_uniform", lambda: lambda key, shape, *given: np.full(shape, 7.0))
        network = NETWORKS["Inception, narrow"](rngs=nnx.Rngs(0))
        for path, leaf in nnx.to_flat_state(nnx.state(network)):
            is_logits = path[-2] == "dense2" or path[:-1] == ("dense",)
            expected = 7.0 if path[-1] == "kernel" else 0.0 if is_logits else 0.2
            np.testing.assert_array_equal(leaf.get_value(), np.float32(expected))


class TestBadSettings:
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"image_size": 0}, "image_size must be positive, not 0"),
            ({"classes": 0}, "classes must be positive, not 0"),
        ],
    )
    def test_are_refused(self, settings, message):
        with pytest.raises(ValueError, match=message):
            Inception(rngs=nnx.Rngs(0), **settings)

    def test_images_of_another_size(self):
        network = plain.abstract(Inception)
        with pytest.raises(ValueError, match=r"images must be \[batch, 224, 224, 3\], not \[2, 299, 299, 3\]"):
            plain.shapes_of_activations(network, 299, training=True)
