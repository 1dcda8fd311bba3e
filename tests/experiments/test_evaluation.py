"""Losses, accuracies and temperatures against brute force."""

import itertools

import numpy as np
import pytest

from experiments.evaluation import Metrics, accuracy, cross_entropy, metrics, temperature


def make_logits(n=400, classes=10, scale=3.0, seed=0):
    """Logits, and labels that are drawn from their own probabilities: the right temperature is near 1."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, scale, (n, classes))
    labels = np.argmax(logits + random.gumbel(size=logits.shape), axis=1)
    return logits.astype(np.float32), labels.astype(np.uint8)


def losses_by_hand(logits, labels):
    """From the definition, one example after the other."""
    result = []
    for row, label in zip(logits.astype(np.float64), labels, strict=True):
        exponentials = np.exp(row - row.max())
        result.append(-np.log(exponentials[label] / exponentials.sum()))
    return np.array(result)


def temperature_by_hand(logits, labels):
    """The best of a fine grid."""
    grid = np.exp(np.linspace(np.log(0.02), np.log(50), 3000))
    return grid[np.argmin([cross_entropy(logits.astype(np.float64) / t, labels).mean() for t in grid])]


def test_cross_entropy():
    logits, labels = make_logits()
    found = cross_entropy(logits, labels)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, losses_by_hand(logits, labels), rtol=1e-6)


def test_cross_entropy_of_large_logits():
    logits = np.array([[1e4, 0, -1e4], [0, 1e30, 0]], np.float32)
    np.testing.assert_allclose(cross_entropy(logits, np.array([2, 0], np.uint8)), [2e4, 1e30], rtol=1e-6)
    np.testing.assert_array_equal(cross_entropy(logits, np.array([0, 1], np.uint8)), [0, 0])


def test_accuracy():
    logits = np.array([[1, 2, 0], [5, 2, 0], [0, 0, 1], [-1, -2, -3]], np.float32)
    for labels, expected in (([1, 0, 2, 0], 1.0), ([1, 0, 2, 1], 0.75), ([0, 1, 0, 2], 0.0)):
        assert accuracy(logits, np.array(labels, np.uint8)) == expected


@pytest.mark.parametrize("scale", [0.5, 3.0, 10.0])
@pytest.mark.parametrize("seed", range(2))
def test_temperature(scale, seed):
    logits, labels = make_logits(scale=scale, seed=seed)
    assert temperature(logits, labels) == pytest.approx(temperature_by_hand(logits, labels), rel=5e-3)


def test_a_network_that_knows_how_sure_it_can_be_has_temperature_one():
    logits, labels = make_logits(20_000)
    assert temperature(logits, labels) == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("factor", [0.05, 0.5, 3, 40])
def test_logits_times_c_have_a_temperature_c_times_as_large(factor):
    logits, labels = make_logits()
    expected = factor * temperature(logits, labels)
    assert temperature((factor * logits).astype(np.float32), labels) == pytest.approx(expected, rel=5e-3)


def test_adding_to_all_logits_of_an_example_changes_nothing():
    logits, labels = make_logits()
    shifted = logits + np.arange(len(logits), dtype=np.float32)[:, None]
    assert temperature(shifted, labels) == pytest.approx(temperature(logits, labels), rel=1e-3)
    np.testing.assert_allclose(cross_entropy(shifted, labels), cross_entropy(logits, labels), rtol=1e-3, atol=1e-4)


def test_the_temperature_ends_at_its_bounds():
    logits, _ = make_logits()
    assert temperature(logits, np.argmax(logits, axis=1)) < 0.01  # all right: the lower, the better
    assert temperature(logits, np.argmin(logits, axis=1)) > 900  # worse than chance: the higher, the better
    sure = 1e4 * np.eye(10, dtype=np.float32)
    assert 1e-3 <= temperature(sure, np.arange(10)) < 1e3
    assert 900 < temperature(sure, (np.arange(10) + 1) % 10) <= 1e3


def test_a_label_whose_logit_is_infinite_like_another():
    logits = np.array([[np.inf, np.inf, -np.inf], [0.0, np.inf, 0.0]], np.float32)
    losses = cross_entropy(logits, np.array([0, 0], np.uint8))
    assert not np.any(np.isfinite(losses))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_gives_nan(value):
    logits, labels = make_logits()
    logits[6, 3] = value
    assert np.isnan(temperature(logits, labels))
    train_logits, train_labels = make_logits(seed=1)
    found = metrics(train_logits, train_labels, logits, labels)
    assert np.isnan(found.temperature)
    assert np.isnan(found.calibrated_loss)
    assert 0 < found.train_loss < 10
    assert 0 <= found.test_accuracy <= 1


@pytest.mark.parametrize("size", [1e30, 1e36])
def test_huge_logits_warn_of_nothing(size):
    logits, labels = make_logits(seed=4)
    train = make_logits(seed=5)
    found = metrics(*train, (logits / abs(logits).max() * size).astype(np.float32), labels)
    assert found.train_loss < 10
    assert found.test_loss > 1e28 or np.isnan(found.test_loss)


def test_metrics():
    train_logits, train_labels = make_logits(90, seed=1)
    test_logits, test_labels = make_logits(301, scale=6.0, seed=2)
    found = metrics(train_logits, train_labels, test_logits, test_labels)
    halves = [(test_logits[i::2], test_labels[i::2]) for i in range(2)]
    temperatures = [temperature_by_hand(*half) for half in halves]
    # Each half with the temperature of the other one.
    calibrated = [
        losses_by_hand(logits / t, labels) for (logits, labels), t in zip(halves, temperatures[::-1], strict=True)
    ]
    expected = Metrics(
        train_loss=losses_by_hand(train_logits, train_labels).mean(),
        train_accuracy=np.mean(train_logits.argmax(axis=1) == train_labels),
        test_loss=losses_by_hand(test_logits, test_labels).mean(),
        test_accuracy=np.mean(test_logits.argmax(axis=1) == test_labels),
        calibrated_loss=np.concatenate(calibrated).mean(),
        temperature=np.sqrt(temperatures[0] * temperatures[1]),
    )
    assert found == pytest.approx(expected, rel=5e-3)
    assert all(type(value) is float for value in found)
    own = [losses_by_hand(logits / t, labels) for (logits, labels), t in zip(halves, temperatures, strict=True)]
    assert found.calibrated_loss > np.concatenate(own).mean()  # with temperatures of their own they would do better


def test_the_temperature_of_one_half_is_no_matter_of_its_own_labels():
    """With the labels of one half all right, its temperature falls, and the loss of the other half explodes."""
    train, (logits, labels) = make_logits(seed=1), make_logits(seed=2)
    before = metrics(*train, logits, labels)
    for half, other in itertools.permutations((slice(0, None, 2), slice(1, None, 2))):
        right = labels.copy()
        right[half] = logits[half].argmax(axis=1)
        after = metrics(*train, logits, right)
        assert after.test_loss < before.test_loss
        assert after.calibrated_loss > 10 * before.calibrated_loss
        assert after.temperature < before.temperature / 5
        # Most of it is the loss of the other half, with that temperature.
        sharpest = temperature(logits[half], right[half])
        assert after.calibrated_loss == pytest.approx(
            cross_entropy(logits[other] / sharpest, labels[other]).mean() / 2, rel=0.01
        )
