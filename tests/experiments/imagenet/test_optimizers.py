import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_introspect
from experiments.imagenet.optimizers import optimizer
from experiments.imagenet.records import ALEXNET_1, INCEPTION_V1, Rate, RmsProp, Sgd
from optax_introspect import IntrospectState


def trained(tx, steps):
    """Returns the weights after each step, and the gradients."""
    rng = np.random.default_rng(0)
    gradients = rng.normal(size=(steps, 3)).astype(np.float32)
    params = jnp.array([1.0, -2.0, 3.0])
    state, history = tx.init(params), [np.asarray(params)]
    update = jax.jit(tx.update)
    for gradient in gradients:
        updates, state = update(jnp.asarray(gradient), state, params)
        params = optax.apply_updates(params, updates)
        history.append(np.asarray(params))
    return np.array(history), gradients, state


class TestSgd:
    @pytest.mark.parametrize("weight_decay", [0.0, 0.1])
    def test_momentum_and_steps_of_the_rate(self, weight_decay):
        found, gradients, _ = trained(optimizer(Sgd(Rate(0.1, 0.5, 3, "steps"), 0.9, weight_decay), 3), 8)
        weights, velocity = found[0].astype(np.float64), np.zeros(3)
        for step, gradient in enumerate(gradients):
            velocity = 0.9 * velocity + gradient + weight_decay * weights
            weights = weights - 0.1 * 0.5 ** (step // 3) * velocity
            np.testing.assert_allclose(found[step + 1], weights, rtol=1e-5)

    def test_alexnet(self):
        assert ALEXNET_1.optimizer == Sgd(Rate(0.01, 0.1, 100_000, "steps"), momentum=0.9, weight_decay=0.0)


class TestRmsProp:
    def test_it_is_tensorflows(self):
        settings = RmsProp(Rate(0.1, 0.94, 3, "steps"), decay=0.9, momentum=0.9, epsilon=1.0)
        found, gradients, _ = trained(optimizer(settings, 3), 8)
        # As in the documentation of TensorFlow's training operation ApplyRMSProp, whose `ms` begins at 1:
        # ms = decay ms + (1 - decay) g^2; mom = momentum mom + rate g / sqrt(ms + epsilon); w = w - mom
        weights, squares, mom = found[0].astype(np.float64), np.ones(3), np.zeros(3)
        for step, gradient in enumerate(gradients):
            squares = 0.9 * squares + 0.1 * gradient.astype(np.float64) ** 2
            mom = 0.9 * mom + 0.1 * 0.94 ** (step // 3) * gradient / np.sqrt(squares + 1)
            weights = weights - mom
            np.testing.assert_allclose(found[step + 1], weights, rtol=1e-5)

    def test_inception(self):
        settings = RmsProp(Rate(0.01, 0.94, 2, "epochs"), decay=0.9, momentum=0.9, epsilon=1.0)
        assert INCEPTION_V1.optimizer == settings


class TestJumps:
    def test_introspect_is_last(self):
        forecaster = optax_introspect.polynomial(1, 1.3, points=(1.0, 0.4))
        tx = optimizer(ALEXNET_1.optimizer, 100, (5,), forecaster)
        found, _, state = trained(tx, 7)
        assert isinstance(state[-1], IntrospectState)
        assert int(state[-1].jumps_taken) == 1
        np.testing.assert_allclose(found[6], found[5] + 0.5 * (found[5] - found[2]), rtol=1e-5)

    def test_none_without_jump_steps(self):
        _, _, state = trained(optimizer(ALEXNET_1.optimizer, 100), 1)
        assert not isinstance(state[-1], IntrospectState)
