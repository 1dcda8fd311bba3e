"""Pooling and local response normalisation against plain forms of them, and so their gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.test_util import check_grads

from experiments.networks.layers import check_images, local_response_norm, overlapping_max_pool

from . import plain


def random(*shape, scale=1.0, seed=0):
    return jnp.asarray(scale * np.random.default_rng(seed).normal(size=shape), jnp.float32)


def there_and_back(layer, x):
    """What a layer returns, and what becomes of it when it comes back as a gradient."""
    found, transpose = jax.vjp(layer, x)
    return found, *transpose(found)


class TestOverlappingMaxPool:
    @staticmethod
    def windowed(x, stride, padding):
        return lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, stride, stride, 1), padding)

    @pytest.mark.parametrize("padding", ["SAME", "VALID"])
    @pytest.mark.parametrize("stride", [1, 2])
    def test_is_a_windowed_reduction(self, stride, padding):
        # Few different numbers, so that maxima are often equal; below zero, where a padding of zeros would show.
        draw = np.random.default_rng(0)
        batches = [jnp.asarray(draw.integers(-4, 0, shape), jnp.float32) for shape in ((2, 3, 8, 3), (1, 7, 4, 2))]
        pooled = [plain.max_pool(x, stride, padding) for x in batches]
        gradients = [jnp.asarray(draw.normal(size=y.shape), jnp.float32) for y in pooled]

        def both_ways(pool):
            found = [jax.vjp(lambda x: pool(x, stride, padding), x) for x in batches]
            return [(y, transpose(g)[0]) for (y, transpose), g in zip(found, gradients, strict=True)]

        results, expected = jax.jit(lambda: (both_ways(overlapping_max_pool), both_ways(self.windowed)))()
        for (y, gradient), (also_y, expected_gradient), by_hand in zip(results, expected, pooled, strict=True):
            np.testing.assert_array_equal(y, also_y)
            np.testing.assert_array_equal(y, by_hand)
            np.testing.assert_allclose(gradient, expected_gradient, atol=1e-6)
            assert np.any(np.asarray(gradient))

    def test_keeps_the_dtype(self):
        x = random(1, 5, 5, 2).astype(jnp.bfloat16)
        found, gradient = jax.jit(there_and_back, static_argnums=0)(overlapping_max_pool, x)
        assert found.dtype == gradient.dtype == jnp.bfloat16
        np.testing.assert_array_equal(found.astype(jnp.float32), plain.max_pool(x))

    def test_by_default_halves_with_padding(self):
        x = random(1, 7, 6, 2)
        np.testing.assert_array_equal(jax.jit(overlapping_max_pool)(x), plain.max_pool(x, 2, "SAME"))


class TestLocalResponseNorm:
    @pytest.mark.parametrize(
        "settings",
        [{}, {"size": 3}, {"size": 7, "alpha": 0.1}, {"beta": 0.5, "k": 1.0, "alpha": 0.01}, {"size": 1, "alpha": 1.0}],
    )
    def test_against_numpy(self, settings):
        x = random(2, 3, 2, 6, scale=100.0)
        found = jax.jit(lambda x: local_response_norm(x, **settings))(x)
        expected = plain.local_response_norm(x, **settings)
        np.testing.assert_allclose(found, expected, rtol=1e-5)
        assert not np.allclose(expected, np.asarray(x), rtol=0.1)

    @pytest.mark.parametrize("settings", [{"alpha": 0.3}, {"size": 3, "alpha": 0.5, "beta": 0.6, "k": 1.0}])
    def test_gradient_against_finite_differences(self, settings):
        check_grads(
            jax.jit(lambda x: local_response_norm(x, **settings)),
            (random(2, 1, 2, 6),),
            1,
            ["rev"],
            eps=1e-2,
            rtol=1e-3,
        )

    def test_gradient_is_that_of_the_formula(self):
        def formula(x):
            reach = abs(jnp.arange(7)[:, None] - jnp.arange(7)) <= 2
            return x / (2 + 1e-4 * (x**2 @ reach.astype(jnp.float32))) ** 0.75

        @jax.jit
        def both(x, gradient):
            return tuple(jax.vjp(norm, x)[1](gradient)[0] for norm in (local_response_norm, formula))

        found, expected = both(random(3, 2, 2, 7, scale=100.0), random(3, 2, 2, 7, seed=1))
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)

    def test_in_bfloat16_is_computed_in_float32(self):
        x = random(2, 2, 2, 6, scale=100.0).astype(jnp.bfloat16)
        found, gradient = jax.jit(there_and_back, static_argnums=0)(local_response_norm, x)
        assert found.dtype == gradient.dtype == jnp.bfloat16
        expected = jax.jit(local_response_norm)(x.astype(jnp.float32)).astype(jnp.bfloat16)
        np.testing.assert_array_equal(found.astype(jnp.float32), expected.astype(jnp.float32))


class TestCheckImages:
    @pytest.mark.parametrize("shape", [(2, 8, 8), (2, 8, 4, 3), (2, 4, 8, 3)])
    def test_others_are_refused(self, shape):
        message = rf"images must be \[batch, 8, 8, 3\], not \[{', '.join(map(str, shape))}\]"
        with pytest.raises(ValueError, match=message):
            check_images(jnp.zeros(shape), 8, lambda side: side // 4)

    def test_those_that_make_no_difference_are_not(self):
        check_images(jnp.zeros((2, 9, 11, 3)), 8, lambda side: side // 4)
