"""The measures of weight change, against NumPy on the whole trajectory."""

import numpy as np
import pytest

from optax_introspect import WeightHistory, weight_change


def record(path, trajectory):
    with WeightHistory.record(path, {"w": trajectory[0]}) as history:
        for step, weights in enumerate(trajectory):
            history.append(10 * step, {"w": weights})
    return history


@pytest.mark.parametrize("num_steps", [2, 3, 50])
def test_both_measures(tmp_path, num_steps):
    trajectory = np.cumsum(np.random.default_rng(0).normal(1, 1e-3, (num_steps, 40)), axis=0).astype(np.float32)
    change = weight_change(record(tmp_path, trajectory))
    moved = np.float64(trajectory) - np.float64(trajectory[0])
    np.testing.assert_allclose(change.difference, moved[-1], rtol=1e-6)
    np.testing.assert_allclose(change.deviation, np.sqrt(np.mean(moved**2, axis=0)), rtol=1e-6)
    assert change.difference.dtype == change.deviation.dtype == np.float32


def test_small_movements_of_large_weights(tmp_path):
    trajectory = np.float32(1) + np.float32(2) ** -23 * np.arange(200, dtype=np.float32)[:, None]
    change = weight_change(record(tmp_path, trajectory))
    np.testing.assert_allclose(change.difference, [199 * 2.0**-23], rtol=1e-6)
    np.testing.assert_allclose(change.deviation, [np.sqrt(np.mean(np.arange(200.0) ** 2)) * 2.0**-23], rtol=1e-6)


@pytest.mark.parametrize("num_steps", [0, 1])
def test_a_change_needs_two_steps(tmp_path, num_steps):
    history = record(tmp_path, np.ones((2, 3), np.float32)[:1])
    with WeightHistory.record(tmp_path, {"w": np.ones(3, np.float32)}) as again:
        again.truncate(num_steps - 1)
    with pytest.raises(ValueError, match=f"history must have at least two steps; got {num_steps}"):
        weight_change(history)
