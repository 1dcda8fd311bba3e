"""How far weights moved, against NumPy."""

import re

import jax.numpy as jnp
import numpy as np
import pytest

from optax_introspect.history import WeightHistory
from optax_introspect.statistics import WeightChange, weight_change


def record(path, trees):
    with WeightHistory.record(path, next(iter(trees.values()))) as history:
        for step, tree in trees.items():
            history.append(step, tree)
    return WeightHistory.open(path)


def test_both_measures(tmp_path):
    random = np.random.default_rng(0)
    # Uneven steps: the mean is over the records, not over time.
    trees = {
        step: {
            "complex": (random.normal(size=3) + 1j * random.normal(size=3)).astype(np.complex64),
            "half": jnp.asarray(random.normal(size=(2, 3)), jnp.bfloat16),
            "single": random.normal(size=5).astype(np.float32),
            "step": np.int32(step),
        }
        for step in (3, 4, 10, 200)
    }
    values = np.array(
        [
            np.concatenate(
                [tree["complex"].real, tree["complex"].imag, np.float64(tree["half"]).ravel(), tree["single"]]
            )
            for tree in trees.values()
        ],
        np.float64,
    )
    change = weight_change(record(tmp_path, trees))
    assert isinstance(change, WeightChange)
    assert change.difference.dtype == change.deviation.dtype == np.float32
    assert change.difference.shape == change.deviation.shape == (3 + 3 + 6 + 5,)
    np.testing.assert_allclose(change.difference, values[-1] - values[0], rtol=1e-6)
    np.testing.assert_allclose(change.deviation, np.sqrt(np.mean((values - values[0]) ** 2, axis=0)), rtol=1e-6)


def test_a_weight_that_stays_has_not_moved(tmp_path):
    change = weight_change(record(tmp_path, {step: {"w": np.array([7, step], np.float32)} for step in (0, 1)}))
    np.testing.assert_array_equal(change.difference, [0, 1])
    np.testing.assert_array_equal(change.deviation, np.array([0, np.sqrt(0.5)], np.float32))


def test_small_moves_after_a_large_one_are_not_lost(tmp_path):
    # In float32 the sum of these squares, 2**24 and 39 ones, would stay at 2**24.
    trees = {step: {"w": np.array([0 if step == 0 else 4096 if step == 1 else 1], np.float32)} for step in range(41)}
    change = weight_change(record(tmp_path, trees))
    expected = np.float32(np.sqrt((2**24 + 39) / 41))
    assert expected != np.float32(np.sqrt(2**24 / 41))
    assert change.deviation[0] == expected


@pytest.mark.parametrize("steps", [(), (9,)])
def test_a_change_takes_two_steps(tmp_path, steps):
    with WeightHistory.record(tmp_path, {"w": np.zeros(2)}) as history:
        for step in steps:
            history.append(step, {"w": np.zeros(2)})
    message = f"a history needs at least two steps for a change; this one has {len(steps)}"
    with pytest.raises(ValueError, match=re.escape(message)):
        weight_change(WeightHistory.open(tmp_path))
