"""AlexNet, against its paper and against plain layers in NumPy."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from experiments.networks import NETWORKS, AlexNet

from . import plain

LAYERS = {
    "conv1": (55, 55, 96),
    "norm of conv1": (55, 55, 96),
    "pool of conv1": (27, 27, 96),
    "conv2": (27, 27, 256),
    "norm of conv2": (27, 27, 256),
    "pool of conv2": (13, 13, 256),
    "conv3": (13, 13, 384),
    "conv4": (13, 13, 384),
    "conv5": (13, 13, 256),
    "pool of conv5": (6, 6, 256),
    "dense1": (4096,),
    "dense2": (4096,),
    "logits": (1000,),
}
TINY = functools.partial(AlexNet, 5, width=1 / 32)


def images(side, batch=2, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(batch, side, side, 3)), jnp.float32)


def key(seed=0):
    return jax.random.key(seed, impl="rbg")


@pytest.fixture(scope="module", autouse=True)
def quick_random_numbers():
    """Of another generator, which takes half of the time to compile."""
    with jax.default_prng_impl("rbg"):
        yield


@pytest.fixture(scope="module")
def narrow():
    return NETWORKS["AlexNet, narrow"](rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def activations():
    return nnx.jit(lambda network, *given: dict(network.activations(*given)))


def in_numpy(network, x, groups):
    """The logits without dropout."""
    x = 57 * np.float64(x)
    if network.small:
        x = plain.convolution(x, network.conv1, padding=2)
    else:
        missing = -(x.shape[1] - 11) % 4
        edges = (missing // 2, missing - missing // 2)
        x = plain.convolution(np.pad(x, ((0, 0), edges, edges, (0, 0))), network.conv1, stride=4)
    x = plain.max_pool(plain.local_response_norm(plain.relu(x)), padding="VALID")
    x = plain.relu(plain.convolution(x, network.conv2, padding=2, groups=groups))
    x = plain.max_pool(plain.local_response_norm(x), padding="VALID")
    x = plain.relu(plain.convolution(x, network.conv3, padding=1))
    x = plain.relu(plain.convolution(x, network.conv4, padding=1, groups=groups))
    x = plain.relu(plain.convolution(x, network.conv5, padding=1, groups=groups))
    x = plain.max_pool(x, padding="VALID").reshape(len(x), -1)
    for layer in (network.dense1, network.dense2):
        x = plain.relu(plain.dense(x, layer))
    return plain.dense(x, network.dense3)


class TestFullSize:
    @pytest.mark.parametrize(("groups", "count"), [(2, 60_965_224), (1, 62_378_344)])
    def test_has_the_published_number_of_weights(self, groups, count):
        network = plain.abstract(AlexNet, groups=groups)
        assert plain.count(network) == count
        assert plain.state_types(network) == {nnx.Param}
        shapes = plain.shapes_of(network)
        assert shapes["conv1/kernel"] == (11, 11, 3, 96)
        assert shapes["conv2/kernel"] == (5, 5, 96 // groups, 256)
        assert shapes["conv3/kernel"] == (3, 3, 256, 384)
        assert shapes["conv4/kernel"] == (3, 3, 384 // groups, 384)
        assert shapes["conv5/kernel"] == (3, 3, 384 // groups, 256)
        assert shapes["dense1/kernel"] == (9216, 4096)

    @pytest.mark.parametrize("image_size", [224, 227])
    @pytest.mark.parametrize("training", [False, True])
    def test_has_the_published_outputs(self, image_size, training):
        for network in (plain.abstract(NETWORKS["AlexNet"]), plain.abstract(AlexNet, image_size=image_size)):
            shapes, dtypes = plain.shapes_of_activations(network, image_size, training=training)
            assert shapes == LAYERS
            assert set(dtypes.values()) == {jnp.dtype("float32")}

    def test_in_bfloat16_only_weights_and_logits_are_float32(self):
        network = plain.abstract(AlexNet, dtype=jnp.bfloat16)
        assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(network))} == {jnp.dtype("float32")}
        shapes, dtypes = plain.shapes_of_activations(network, 224, training=True)
        assert shapes == LAYERS
        assert dtypes.pop("logits") == jnp.float32
        assert set(dtypes.values()) == {jnp.dtype("bfloat16")}

    def test_has_the_published_initial_weights(self, monkeypatch):
        deviations, normal = [], nnx.initializers.normal
        monkeypatch.setattr(nnx.initializers, "normal", lambda given: deviations.append(given) or normal(given))
        for groups in (1, 2):
            plain.abstract(AlexNet, groups=groups)
        np.testing.assert_allclose(deviations, [0.01] * 16, rtol=1e-12)

    def test_as_many_logits_as_classes(self):
        network = plain.abstract(AlexNet, classes=7)
        shapes, _ = plain.shapes_of_activations(network, 224, training=False)
        assert shapes == LAYERS | {"logits": (7,)}

    def test_a_smaller_image_needs_fewer_weights(self):
        network = plain.abstract(AlexNet, image_size=64)
        assert plain.shapes_of(network)["dense1/kernel"] == (256, 4096)
        shapes, _ = plain.shapes_of_activations(network, 64, training=False)
        assert (shapes["conv1"], shapes["pool of conv5"]) == ((15, 15, 96), (1, 1, 256))


class TestNarrow:
    def test_is_as_described(self, narrow):
        assert plain.count(narrow) == 891_626
        shapes, _ = plain.shapes_of_activations(narrow, 32, training=True)
        assert shapes == {
            "conv1": (32, 32, 16),
            "norm of conv1": (32, 32, 16),
            "pool of conv1": (15, 15, 16),
            "conv2": (15, 15, 48),
            "norm of conv2": (15, 15, 48),
            "pool of conv2": (7, 7, 48),
            "conv3": (7, 7, 64),
            "conv4": (7, 7, 64),
            "conv5": (7, 7, 48),
            "pool of conv5": (3, 3, 48),
            "dense1": (688,),
            "dense2": (688,),
            "logits": (10,),
        }

    def test_sums_have_the_deviation_that_they_have_at_full_size(self, narrow):
        fan_ins = {"conv1": 363, "conv2": 2400, "conv3": 2304, "conv4": 3456, "conv5": 3456}
        fan_ins |= {"dense1": 9216, "dense2": 4096, "dense3": 4096}
        for name, fan_in in fan_ins.items():
            layer = getattr(narrow, name)
            kernel = np.asarray(layer.kernel[...])
            own_fan_in = kernel.size / kernel.shape[-1]
            expected = 0.01 * math.sqrt(fan_in / own_fan_in)
            assert np.std(kernel) == pytest.approx(expected, rel=4 / math.sqrt(kernel.size))
            one = name in ("conv2", "conv4", "conv5", "dense1", "dense2")
            np.testing.assert_array_equal(layer.bias[...], one)

    def test_learns(self, narrow):
        """The loss falls on a batch that is seen over and over, and all weights have their part in it."""
        graphdef, params = nnx.split(narrow)
        x, labels = images(32, 4), jnp.arange(4)

        @functools.partial(jax.jit, compiler_options=plain.QUICKLY)
        def step(params, seed):
            def loss(params):
                logits = nnx.merge(graphdef, params)(x, jax.random.fold_in(key(), seed))
                return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

            value, gradients = jax.value_and_grad(loss)(params)
            return value, gradients, jax.tree.map(lambda w, g: w - 0.002 * g, params, gradients)

        losses = []
        for seed in range(30):
            value, gradients, params = step(params, seed)
            losses.append(float(value))
        assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])
        assert all(np.all(np.isfinite(leaf)) and np.any(np.asarray(leaf)) for leaf in jax.tree.leaves(gradients))


class TestAlexNet:
    @pytest.mark.parametrize(
        ("settings", "image_size"),
        [
            ({"small": True, "groups": 1}, 32),
            ({"small": True, "groups": 2}, 32),
            ({"groups": 2, "image_size": 67}, 67),
            ({"groups": 1, "image_size": 64}, 64),
        ],
    )
    def test_against_numpy(self, settings, image_size, activations):
        network = TINY(rngs=nnx.Rngs(0), **settings)
        draw = np.random.default_rng(1)
        for path, leaf in nnx.to_flat_state(nnx.state(network)):
            if path[-1] == "bias":
                leaf[...] = jnp.asarray(draw.normal(0, 0.3, leaf.get_value().shape), jnp.float32)
        x = images(image_size)
        found = activations(network, x)["logits"]
        expected = in_numpy(network, x, settings["groups"])
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3 * abs(expected).max())
        assert np.std(expected) > 0.01
        assert found.dtype == jnp.float32

    def test_a_key_drops_half_of_the_hidden_units(self, activations):
        network, x = TINY(small=True, rngs=nnx.Rngs(0)), images(32, 16)
        for layer in (network.dense1, network.dense2):
            layer.kernel[...] *= 0  # what remains is the bias, one
        every, some, same, others = (activations(network, x, *given) for given in ((), (key(),), (key(),), (key(1),)))
        for a, b in zip(jax.tree.leaves(some), jax.tree.leaves(same), strict=True):
            np.testing.assert_array_equal(a, b)
        for name in ("dense1", "dense2"):
            assert np.all(np.asarray(every[name]) == 1)
            assert set(np.unique(some[name])) == {0, 2}
            assert np.mean(some[name]) == pytest.approx(1, abs=0.1)
            assert not np.array_equal(some[name], others[name])
        assert not np.array_equal(some["dense1"], some["dense2"])
        np.testing.assert_array_equal(some["conv5"], every["conv5"])

    def test_is_called_for_its_logits(self, activations):
        network, x = TINY(small=True, rngs=nnx.Rngs(0)), images(32, 16)
        call = nnx.jit(lambda network, *given: network(*given))
        for given in ((), (key(),)):
            np.testing.assert_allclose(call(network, x, *given), activations(network, x, *given)["logits"], rtol=1e-5)

    def test_bfloat16_is_about_the_same(self, activations):
        x = images(32)
        logits, rounded = (
            activations(TINY(small=True, dtype=dtype, rngs=nnx.Rngs(0)), x)["logits"] for dtype in (None, jnp.bfloat16)
        )
        assert not np.array_equal(logits, rounded)
        np.testing.assert_allclose(logits, rounded, atol=0.05 * float(abs(logits).max()))

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"image_size": 63}, "image_size must be at least 64, not 63"),
            ({"small": True, "image_size": 14}, "image_size must be at least 15, not 14"),
            ({"classes": 0}, "classes must be positive, not 0"),
            ({"groups": 0}, "groups must be positive, not 0"),
            (
                {"width": 1 / 6, "groups": 3},
                r"width 0.16\d* gives convolutions of \[16, 48, 64, 64, 48\] channels, not divisible by groups=3",
            ),
        ],
    )
    def test_impossible_settings(self, settings, message):
        with pytest.raises(ValueError, match=message):
            AlexNet(rngs=nnx.Rngs(0), **settings)

    @pytest.mark.parametrize("settings", [{"small": True, "image_size": 15}, {"image_size": 64}])
    def test_the_least_image_that_is_possible(self, settings):
        network = plain.abstract(TINY, **settings)
        shapes, _ = plain.shapes_of_activations(network, settings["image_size"], training=False)
        assert shapes["pool of conv5"] == (1, 1, 16)

    def test_images_of_another_size(self):
        network = plain.abstract(TINY)
        with pytest.raises(ValueError, match=r"images must be \[batch, 224, 224, 3\], not \[2, 256, 256, 3\]"):
            plain.shapes_of_activations(network, 256, training=False)
