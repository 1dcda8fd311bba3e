"""The networks, and how every experiment trains and evaluates them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from experiments.data import Images
from experiments.networks import ConvNet, Mlp, max_pool
from experiments.training import Task


def make_images(train=20, test=30, seed=0):
    """Random images; the first two pixels of each training image tell its number."""
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (train + test, 28, 28), np.uint8)
    images[:train, 0, 0], images[:train, 0, 1] = np.divmod(np.arange(train), 256)
    labels = random.integers(0, 10, train + test, np.uint8)
    return Images("random", "a generator", images[:train], labels[:train], images[train:], labels[train:])


def numbers(images):
    return images[:, 0, 0].astype(int) * 256 + images[:, 0, 1]


def mlp_task(images, batch_size=5, seed=0, widths=(784, 4, 10)):
    return Task(functools.partial(Mlp, widths), images, batch_size, seed)


def copy(tree):
    return jax.tree.map(jnp.copy, tree)


def assert_same(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def differ(a, b):
    return any(not np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def numpy_logits(params, images):
    """The logits of an `Mlp` in float64."""
    x = images.reshape(len(images), -1) / 255
    layers = [params["layers"][i] for i in range(len(params["layers"]))]
    for i, layer in enumerate(layers):
        x = x @ np.float64(layer["kernel"][...]) + np.float64(layer["bias"][...])
        x = np.maximum(x, 0) if i < len(layers) - 1 else x
    return x


def numpy_losses(logits, labels):
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(labels)), labels]


@pytest.mark.parametrize(("train", "batch_size"), [(20, 5), (23, 5), (300, 7), (5, 5)])
def test_every_epoch_is_a_new_permutation(train, batch_size):
    images = make_images(train)
    task = mlp_task(images, batch_size)
    per_epoch = train // batch_size
    epochs = []
    for epoch in range(3):
        order = []
        for step in range(epoch * per_epoch, (epoch + 1) * per_epoch):
            pixels, labels = task.batch(step)
            assert pixels.shape == (batch_size, 28, 28)
            assert pixels.dtype == labels.dtype == np.uint8
            chosen = numbers(pixels)
            np.testing.assert_array_equal(pixels, images.train_images[chosen])
            np.testing.assert_array_equal(labels, images.train_labels[chosen])
            order += chosen.tolist()
        assert len(set(order)) == per_epoch * batch_size > train - batch_size
        epochs.append(order)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_a_batch_follows_from_the_seed_and_the_step():
    images = make_images(23)
    task = mlp_task(images, seed=3)
    forwards = [task.batch(step) for step in range(20)]
    again = mlp_task(images, seed=3)
    backwards = [again.batch(step) for step in reversed(range(20))][::-1]
    assert_same(forwards, backwards)
    assert differ(forwards, [mlp_task(images, seed=4).batch(step) for step in range(20)])


def test_the_start_follows_from_the_seed():
    images = make_images()
    assert_same(mlp_task(images, seed=1).params, mlp_task(images, seed=1).params)
    assert differ(mlp_task(images, seed=1).params, mlp_task(images, seed=2).params)


def test_an_update_is_that_of_the_gradient():
    images = make_images()
    task = mlp_task(images)
    before = copy(task.params)
    (first, second), (pixels, labels) = (before["layers"][i] for i in range(2)), task.batch(6)
    after, _ = task.step_function(optax.sgd(0.5))(task.params, optax.sgd(0.5).init(before), 6)

    # The chain rule by hand, in float64.
    x = pixels.reshape(5, -1) / 255
    hidden = np.maximum(x @ np.float64(first["kernel"][...]) + np.float64(first["bias"][...]), 0)
    logits = numpy_logits(before, pixels)
    share = np.exp(logits - logits.max(axis=1, keepdims=True))
    error = (share / share.sum(axis=1, keepdims=True) - np.eye(10)[labels]) / 5
    hidden_error = error @ np.float64(second["kernel"][...]).T * (hidden > 0)
    gradients = {
        (0, "kernel"): x.T @ hidden_error,
        (0, "bias"): hidden_error.sum(axis=0),
        (1, "kernel"): hidden.T @ error,
        (1, "bias"): error.sum(axis=0),
    }
    for (i, name), gradient in gradients.items():
        assert abs(gradient).max() > 0.01
        moved = np.float64(after["layers"][i][name][...]) - np.float64(before["layers"][i][name][...])
        np.testing.assert_allclose(moved, -0.5 * gradient, rtol=1e-3, atol=1e-5)


def test_a_step_is_deterministic_and_takes_the_buffers_of_its_arguments():
    task = mlp_task(make_images())
    tx = optax.adam(1e-2)
    step = task.step_function(tx)
    results = []
    for _ in range(2):
        params, opt_state = copy(task.params), tx.init(task.params)
        for i in range(4):
            given = jax.tree.leaves((params, opt_state))
            params, opt_state = step(params, opt_state, i)
            assert all(leaf.is_deleted() for leaf in given)
        results.append((params, opt_state))
    assert_same(*results)
    assert differ(results[0][0], task.params)


@pytest.fixture(scope="module")
def one_image():
    """A training set of one image over and over, so that all batches are the same."""
    images = make_images(40)
    train = np.repeat(images.train_images[:1], 40, axis=0), np.repeat(images.train_labels[:1], 40)
    return Images("one", "a generator", *train, images.test_images, images.test_labels)


@pytest.fixture(scope="module")
def conv_task(one_image):
    return Task(ConvNet, one_image, 8, seed=0)


def test_dropout_follows_from_the_seed_and_the_step(one_image, conv_task):
    tx = optax.sgd(0.1)
    step = conv_task.step_function(tx)
    start = copy(conv_task.params)
    first, again, later = (step(copy(start), tx.init(start), i)[0] for i in (0, 0, 1))
    assert_same(first, again)
    assert differ(first, later)
    seeded = Task(ConvNet, one_image, 8, seed=1).step_function(tx)
    assert differ(first, seeded(copy(start), tx.init(start), 0)[0])

    task = mlp_task(one_image)
    step = task.step_function(tx)
    assert_same(*(step(copy(task.params), tx.init(task.params), i)[0] for i in (0, 1)))


def test_the_evaluation_has_no_dropout(conv_task):
    network = nnx.merge(conv_task.graphdef, conv_task.params)
    images = conv_task.images
    logits = np.asarray(network(images.test_images.astype(np.float32) / 255), np.float64)
    loss, accuracy = conv_task.evaluate(conv_task.params)
    assert loss == pytest.approx(numpy_losses(logits, images.test_labels).mean(), rel=1e-5)
    assert accuracy == pytest.approx(np.mean(logits.argmax(axis=1) == images.test_labels), rel=1e-6)
    dropped = network(images.test_images.astype(np.float32) / 255, jax.random.key(0))
    assert not np.allclose(dropped, logits, atol=1e-2)


def test_half_of_the_units_are_dropped(conv_task):
    network = nnx.merge(conv_task.graphdef, conv_task.params)
    dropped = np.asarray(network.dropout(jnp.ones((50, 1024)), deterministic=False, rngs=jax.random.key(0)))
    assert set(np.unique(dropped)) == {0, 2}
    assert abs(np.mean(dropped == 0) - 0.5) < 0.02


def test_evaluate_the_mlp():
    images = make_images(test=57)
    task = mlp_task(images, widths=(784, 256, 256, 10))
    logits = numpy_logits(task.params, images.test_images)
    losses, hits = numpy_losses(logits, images.test_labels), logits.argmax(axis=1) == images.test_labels
    assert 0 < hits.sum() < 57
    loss, accuracy = task.evaluate(task.params)
    assert isinstance(loss, float)
    assert isinstance(accuracy, float)
    assert loss == pytest.approx(losses.mean(), rel=1e-5)
    assert accuracy == pytest.approx(hits.mean(), rel=1e-6)


def test_the_conv_net_is_that_of_the_paper(conv_task):
    shapes = {"/".join(map(str, path)): leaf.get_value().shape for path, leaf in nnx.to_flat_state(conv_task.params)}
    assert shapes == {
        "conv1/kernel": (5, 5, 1, 8),
        "conv1/bias": (8,),
        "conv2/kernel": (5, 5, 8, 16),
        "conv2/bias": (16,),
        "conv3/kernel": (5, 5, 16, 32),
        "conv3/bias": (32,),
        "dense1/kernel": (512, 1024),
        "dense1/bias": (1024,),
        "dense2/kernel": (1024, 10),
        "dense2/bias": (10,),
    }
    assert sum(leaf.size for leaf in jax.tree.leaves(conv_task.params)) == 551_818
    network = nnx.merge(conv_task.graphdef, conv_task.params)
    for batch in (1, 3):
        assert network(jnp.ones((batch, 28, 28))).shape == (batch, 10)
        assert network(jnp.ones((batch, 28, 28)), jax.random.key(0)).shape == (batch, 10)


def test_the_mlp_is_that_of_the_paper():
    network = Mlp(rngs=nnx.Rngs(0))
    shapes = [(layer.kernel.shape, layer.bias.shape) for layer in network.layers]
    assert shapes == [((784, 256), (256,)), ((256, 256), (256,)), ((256, 10), (10,))]
    assert network(jnp.ones((2, 28, 28))).shape == (2, 10)
    for layer in network.layers:
        for weights in (layer.kernel[...], layer.bias[...]):
            spread = 5 / np.sqrt(weights.size)  # five standard deviations of the mean, seven of the deviation
            assert abs(np.mean(weights)) < spread
            assert abs(np.std(weights) - 1) < spread


@pytest.mark.parametrize(("height", "width"), [(4, 4), (7, 7), (1, 1), (5, 2), (2, 5), (28, 14)])
def test_max_pool(height, width):
    random = np.random.default_rng(0)
    images = random.normal(-5, 1, (2, height, width, 3)).astype(np.float32)  # padding with zeros would be seen
    pooled = max_pool(jnp.asarray(images))
    corners = [[(y, x) for x in range(0, width, 2)] for y in range(0, height, 2)]
    expected = [[images[:, y : y + 2, x : x + 2].max(axis=(1, 2)) for y, x in row] for row in corners]
    np.testing.assert_array_equal(pooled, np.transpose(expected, (2, 0, 1, 3)))

    def windowed(x):
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "SAME")

    np.testing.assert_array_equal(pooled, windowed(images))
    weights = random.normal(size=pooled.shape).astype(np.float32)
    gradients = [jax.grad(lambda x, f=f: jnp.sum(weights * f(x)))(jnp.asarray(images)) for f in (max_pool, windowed)]
    np.testing.assert_array_equal(*gradients)
