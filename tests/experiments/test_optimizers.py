"""From records to optimizers: learning rates, masks and averages."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import optax_introspect
from experiments.networks import NETWORKS
from experiments.optimizers import DECAYS, LEAVES, average_of_weights, mask, optimizer
from experiments.training import Optimizer

from . import tiny


def rate_at(schedule, step):
    return float(schedule(step)) if callable(schedule) else schedule


def updates_of(how, steps):
    """What becomes of a gradient of 1 at every step, for a weight that starts at 0."""
    params = {"w": jnp.zeros([])}
    state, updates = how.tx.init(params), []
    update = jax.jit(how.tx.update)
    for _ in range(steps):
        change, state = update({"w": jnp.ones([])}, state, params)
        params = optax.apply_updates(params, change)
        updates.append(float(change["w"]))
    return np.array(updates)


@pytest.mark.parametrize("step", [0, 1, 2500, 3000, 10_000])
def test_inverse_decay_is_that_of_caffe(step):
    expected = 0.01 * (1 + 1e-4 * step) ** -0.75
    assert rate_at(DECAYS["inverse"](0.01, 10_000), step) == pytest.approx(expected, rel=1e-6)
    assert rate_at(DECAYS["inverse"](0.01, 10_000), jnp.int32(step)) == pytest.approx(expected, rel=1e-6)


def test_cosine_decay_is_half_a_period_to_zero_at_the_last_step():
    schedule = DECAYS["cosine"](0.3, 40)
    steps = np.arange(41)
    found = [rate_at(schedule, step) for step in steps]
    np.testing.assert_allclose(found, 0.3 * (1 + np.cos(np.pi * steps / 40)) / 2, atol=1e-7)
    assert found[0] == pytest.approx(0.3)
    assert found[40] == 0 < found[39]


@pytest.mark.parametrize(
    ("decay", "expected"),
    [
        ("none", lambda n: np.ones_like(n)),
        ("inverse", lambda n: (1 + 1e-4 * n) ** -0.75),
        ("cosine", lambda n: (1 + np.cos(np.pi * n / 20)) / 2),
    ],
)
def test_the_rate_of_each_step(decay, expected):
    experiment = tiny.training(
        tiny.arm("plain", decay=decay, rate=0.5, steps=20), optimizer="sgd", learning_rate=0.2, name="rates"
    )
    found = updates_of(optimizer(experiment, experiment.arms[0], None), 20)
    np.testing.assert_allclose(found, -0.5 * 0.2 * expected(np.arange(20.0)), rtol=1e-5)


def test_adam_is_that_of_optax():
    experiment = tiny.training(tiny.arm("plain", rate=2.0), optimizer="adam", learning_rate=0.01)
    found = updates_of(optimizer(experiment, experiment.arms[0], None), 5)
    np.testing.assert_array_equal(found, updates_of(Optimizer(optax.adam(0.02)), 5))
    np.testing.assert_allclose(found, -0.02, rtol=1e-4)  # of equal gradients it takes no notice of their size


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("momentum", 1.0),
        # Of gradients of 1 the average of squares stays at 1, and epsilon is 1: outside the root it would be 1 / 2.
        ("rmsprop", 1 / np.sqrt(2)),
    ],
)
def test_optimizers_with_momentum(name, first):
    experiment = tiny.training(tiny.arm("plain"), optimizer=name, learning_rate=0.01)
    found = updates_of(optimizer(experiment, experiment.arms[0], None), 4)
    np.testing.assert_allclose(found, -0.01 * first * np.array([1, 1.9, 2.71, 3.439]), rtol=1e-5)


def test_with_a_forecaster_it_is_a_chain_that_jumps():
    jumping = tiny.arm("jumping", "linear", (5, 8), steps=12)
    experiment = tiny.training(tiny.arm("plain"), jumping, optimizer="sgd", learning_rate=1.0)
    two_point = optax_introspect.polynomial(1, 2.0, points=(1.0, 0.4))
    how = optimizer(experiment, jumping, two_point)
    expected = -np.ones(12)
    expected[5] = -(5 - 2) / 0.6  # from -5 on the line through -2, where it was at step 2, to step 10
    expected[8] = -(12 - 3) / 0.6  # from -12 on the line through -3, where it was at step 3, by as much again
    np.testing.assert_allclose(updates_of(how, 12), expected, rtol=1e-5)
    state = how.tx.init({"w": jnp.zeros([])})
    assert len(state) == 2
    assert isinstance(state[1], optax_introspect.IntrospectState)


def test_the_average_of_weights_leaves_updates_alone():
    tx = optax.chain(optax.sgd(1.0), average_of_weights(0.75))
    params = jnp.array([1.0, 2.0])
    state = tx.init(params)
    np.testing.assert_array_equal(state[-1].average, [1, 2])
    average = np.array([1.0, 2.0])
    for gradient in ([1.0, 0.0], [-3.0, 1.0], [0.5, 0.5]):
        updates, state = tx.update(jnp.array(gradient), state, params)
        np.testing.assert_array_equal(updates, -np.array(gradient))
        params = optax.apply_updates(params, updates)
        average = 0.75 * average + 0.25 * np.asarray(params)
        np.testing.assert_allclose(state[-1].average, average, rtol=1e-6)


# The names of all weights of a network by the mask that lets them jump.
CONVOLUTIONAL = {
    "first-layer": {"conv1/bias", "conv1/kernel"},
    "later-layers": {f"{layer}/{part}" for layer in ("conv2", "dense1", "dense2") for part in ("bias", "kernel")},
    "convolutions": {"conv1/bias", "conv1/kernel", "conv2/bias", "conv2/kernel"},
    "dense": {"dense1/bias", "dense1/kernel", "dense2/bias", "dense2/kernel"},
    "kernels": {"conv1/kernel", "conv2/kernel", "dense1/kernel", "dense2/kernel"},
    "biases": {"conv1/bias", "conv2/bias", "dense1/bias", "dense2/bias"},
}
DENSE = {
    "first-layer": {"layers/0/bias", "layers/0/kernel"},
    "later-layers": {"layers/1/bias", "layers/1/kernel", "layers/2/bias", "layers/2/kernel"},
    "kernels": {"layers/0/kernel", "layers/1/kernel", "layers/2/kernel"},
    "biases": {"layers/0/bias", "layers/1/bias", "layers/2/bias"},
}


@pytest.mark.parametrize(
    ("network", "leaves", "expected"),
    [
        *(("MNIST_1", leaves, expected) for leaves, expected in CONVOLUTIONAL.items()),
        *(("MNIST_2", leaves, expected) for leaves, expected in CONVOLUTIONAL.items()),
        *(("MNIST_3", leaves, expected) for leaves, expected in DENSE.items()),
    ],
)
def test_masks(network, leaves, expected):
    params = nnx.eval_shape(lambda: nnx.state(NETWORKS[network](rngs=nnx.Rngs(0))))
    chosen = nnx.to_flat_state(mask(leaves)(params))
    assert {"/".join(map(str, path)) for path, here in chosen if here.get_value()} == expected
    assert len(chosen) == len(jax.tree.leaves(params))


def test_no_mask_is_needed_for_all():
    assert mask("all") is None
    assert all(LEAVES["all"](path) for path in ("conv1/kernel", "layers/0/bias"))
