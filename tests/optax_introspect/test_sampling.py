"""Examples sampled from a weight history, against a brute-force computation of what they must be."""

import re
from decimal import Decimal

import numpy as np
import pytest

from optax_introspect.history import WeightHistory
from optax_introspect.plan import PAPER_POINTS
from optax_introspect.sampling import Examples, sample_examples, split_by_weight

BASE = 4096  # more than any step here, so that a weight's value tells which weight it is, and at which step
IRREGULAR = (0, 1, 3, 4, 7, 8, 10, 13, 14, 16, 20, 26, 28, 30, 40, 41, 56, 60, 80, 88)
EVERY_10 = tuple(range(0, 201, 10))
ONE_T = (0, 4, 7, 10, 20)  # only t = 10 has its points and 2 t recorded


def coded(step):
    """The 30 weights at one step, each its index and the step in one number."""
    values = np.float32(BASE) * np.arange(30, dtype=np.float32) + np.float32(step)
    return {"a": values[:10].reshape(5, 2), "b": values[10:]}


def proportional(step, count=1000):
    """Weights of which the i-th has moved by i times the step, every other one downwards."""
    index = np.arange(count)
    return {"w": (np.where(index % 2, -1, 1) * index * step + 0.5).astype(np.float32)}


def record(path, steps, weights=coded):
    with WeightHistory.record(path, weights(0)) as history:
        for step in steps:
            history.append(step, weights(step))
    return WeightHistory.open(path)


@pytest.fixture(scope="module")
def irregular(tmp_path_factory):
    return record(tmp_path_factory.mktemp("irregular"), IRREGULAR)


@pytest.fixture(scope="module")
def known_moves(tmp_path_factory):
    return record(tmp_path_factory.mktemp("known-moves"), ONE_T, proportional)


def nearest(recorded, wanted):
    """The recorded step nearest to a number, ties upwards, by looking at all of them."""
    distances = [abs(step - wanted) for step in recorded]
    return max(step for step, distance in zip(recorded, distances, strict=True) if distance == min(distances))


def expected_pairings(recorded, fractions, tolerance):
    """From every `t` that is possible to the recorded steps of its fractions, in decimal arithmetic."""
    pairings = {}
    for t in recorded:
        wanted = [Decimal(repr(fraction)) * t for fraction in fractions]
        found = [nearest(recorded, step) for step in wanted]
        close = all(
            abs(step - exact) <= Decimal(repr(tolerance)) * t for step, exact in zip(found, wanted, strict=True)
        )
        if t > 0 and close and len(set(found)) == len(found):
            pairings[t] = found
    return pairings


@pytest.mark.parametrize("tolerance", [0.0, 0.02, 0.05, 0.1, 0.25, 0.49])
@pytest.mark.parametrize(
    ("points", "jump_ratio"),
    [
        (PAPER_POINTS, 2.0),
        (PAPER_POINTS, 2.2),
        (PAPER_POINTS, 1.3),
        (PAPER_POINTS, 0.5),
        ((1.0, 0.4), 2.0),
        ((1.0, 0.5, 0.25), 2.2),
        ((1.0, 0.75, 0.5, 0.25, 0.0), 2.0),
        ((1.0,), 2.0),
    ],
)
def test_every_input_and_target_is_the_weight_at_the_nearest_step(irregular, points, jump_ratio, tolerance):
    pairings = expected_pairings(IRREGULAR, (*points, jump_ratio), tolerance)
    examples = sample_examples(irregular, 700, points=points, jump_ratio=jump_ratio, tolerance=tolerance)
    assert examples.points == points
    assert examples.jump_ratio == jump_ratio
    assert examples.inputs.shape == (700, len(points))
    assert examples.inputs.dtype == examples.targets.dtype == np.float32
    assert examples.targets.shape == examples.weights.shape == examples.steps.shape == (700,)
    assert examples.weights.dtype == examples.steps.dtype == np.int64
    # With this many examples, every step that can be `t` and every weight occurs.
    assert set(examples.steps.tolist()) == set(pairings)
    assert set(examples.weights.tolist()) == set(range(30))
    looked_at = np.array([pairings[t] for t in examples.steps.tolist()])
    found = np.column_stack([examples.inputs, examples.targets])
    np.testing.assert_array_equal(found, BASE * examples.weights[:, None] + looked_at)


def test_ties_go_to_the_later_step(tmp_path):
    history = record(tmp_path, (0, 4, 6, 8, 10, 20))
    examples = sample_examples(history, 5, tolerance=0.1)
    assert set(examples.steps.tolist()) == {10}
    np.testing.assert_array_equal(examples.inputs % BASE, [[10, 8, 4, 0]] * 5)
    np.testing.assert_array_equal(examples.targets % BASE, [20] * 5)


@pytest.mark.parametrize(("tolerance", "possible"), [(0.1, True), (0.0999, False), (0.0, False)])
def test_the_tolerance_is_inclusive(tmp_path, tolerance, possible):
    history = record(tmp_path, (0, 4, 6, 8, 10, 20))  # 7 is one step, a tenth of t, from the nearest
    if possible:
        assert set(sample_examples(history, 3, tolerance=tolerance).steps.tolist()) == {10}
    else:
        with pytest.raises(ValueError, match=re.escape(f"within {tolerance:g} t")):
            sample_examples(history, 3, tolerance=tolerance)


@pytest.mark.parametrize(("tolerance", "possible"), [(0.1, True), (0.0999, False)])
def test_the_tolerance_holds_for_the_target_too(tmp_path, tolerance, possible):
    history = record(tmp_path, (0, 4, 7, 10, 21))
    if possible:
        np.testing.assert_array_equal(sample_examples(history, 3, tolerance=tolerance).targets % BASE, [21] * 3)
    else:
        with pytest.raises(ValueError, match="no recorded step can be t"):
            sample_examples(history, 3, tolerance=tolerance)


def test_a_step_of_which_two_points_are_the_same_record_is_no_t(tmp_path):
    history = record(tmp_path, (0, 10, 20, 40, 50, 70, 100, 200))
    pairings = expected_pairings((0, 10, 20, 40, 50, 70, 100, 200), (*PAPER_POINTS, 2.0), 0.4)
    assert 10 not in pairings  # 0.7 of it is nearest to itself
    assert set(sample_examples(history, 300, tolerance=0.4).steps.tolist()) == set(pairings)


def test_a_history_may_begin_after_the_first_step(tmp_path):
    history = record(tmp_path, (1, 20, 35, 50, 100))
    examples = sample_examples(history, 10)  # 0 is a fiftieth of t = 50 away from the first record
    np.testing.assert_array_equal(examples.inputs % BASE, [[50, 35, 20, 1]] * 10)


def test_steps_are_uniform_without_a_density(tmp_path):
    history = record(tmp_path, EVERY_10)
    examples = sample_examples(history, 6000, points=(1.0, 0.0), tolerance=0)
    steps, counts = np.unique(examples.steps, return_counts=True)
    assert steps.tolist() == list(range(10, 101, 10))
    assert abs(counts - 600).max() < 120  # five standard deviations


def test_steps_follow_their_density(tmp_path):
    history = record(tmp_path, EVERY_10)
    given = []

    def density(t):
        given.append(t.copy())
        return np.where(t == 10, 0, 7.0 / t)

    examples = sample_examples(history, 6000, points=(1.0, 0.0), tolerance=0, t_density=density)
    np.testing.assert_array_equal(given, [range(10, 101, 10)])
    steps, counts = np.unique(examples.steps, return_counts=True)
    assert steps.tolist() == list(range(20, 101, 10))
    expected = 6000 * (1 / steps) / (1 / steps).sum()
    assert np.all(abs(counts - expected) < 5 * np.sqrt(expected))


def rank(examples):
    """Where an example's weight stands among all 1000, from 0 for that which moved most to 1."""
    assert set(examples.steps.tolist()) == {10}
    return 1 - (examples.weights + 0.5) / 1000


def test_the_paper_draws_from_all_candidates_alike(known_moves):
    examples = sample_examples(known_moves, 20_000, seed=1)
    counts, _ = np.histogram(rank(examples), bins=10, range=(0, 1))
    assert abs(counts - 2000).max() < 5 * np.sqrt(2000)


@pytest.mark.parametrize("points", [PAPER_POINTS, (1.0, 0.4)])
@pytest.mark.parametrize(
    ("bands", "shares"),
    [
        ((0.5, 0.25, 0.25), (1, 0, 0)),
        ((0.5, 0.25, 0.25), (0, 1, 0)),
        ((0.5, 0.25, 0.25), (0, 0, 1)),
        ((0.1, 0.2, 0.3, 0.4), (0.4, 0.3, 0.2, 0.1)),
        ((0.25, 0.75), (0.75, 0.25)),
        ((1.0,), (1.0,)),
    ],
)
def test_every_band_gives_its_share(known_moves, bands, shares, points):
    # The candidates are random, so that the edges between bands are known to about a hundredth.
    examples = sample_examples(known_moves, 4000, bands=bands, shares=shares, points=points)
    place = rank(examples)
    edges = np.cumsum([0, *bands])
    for start, end, share in zip(edges[:-1], edges[1:], shares, strict=True):
        count = np.sum((place >= start) & (place < end))
        assert abs(count - share * 4000) < 160
        if share == 0:
            assert not np.any((place > start + 0.04) & (place < end - 0.04))
        else:
            counts, _ = np.histogram(place, bins=5, range=(start, end))
            assert counts.min() > 0.7 * share * 4000 / 5  # from all over the band


def test_examples_of_the_bands_are_mixed(known_moves):
    place = rank(sample_examples(known_moves, 2000))
    first, second = np.sum(place[:1000] < 0.5), np.sum(place[1000:] < 0.5)
    assert 400 < first < 600
    assert 400 < second < 600


@pytest.mark.parametrize("count", [1, 2, 3, 7, 100, 101])
def test_exactly_as_many_as_asked_for(known_moves, count):
    assert len(sample_examples(known_moves, count, bands=(0.3, 0.3, 0.4), shares=(0.1, 0.2, 0.7)).targets) == count


def test_no_candidate_is_drawn_twice(tmp_path):
    # Among so many weights hardly any is a candidate twice, and nearly all candidates are drawn.
    history = record(tmp_path, ONE_T, lambda step: proportional(step, 1_000_000))
    examples = sample_examples(history, 300)
    assert len(np.unique(examples.weights)) == 300


def test_the_same_seed_gives_the_same_examples(irregular):
    options = {"points": (1.0, 0.5), "tolerance": 0.1, "t_density": np.sqrt}
    first, again, other = (sample_examples(irregular, 200, seed=seed, **options) for seed in (3, 3, 4))
    for name in ("inputs", "targets", "weights", "steps"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
        assert not np.array_equal(getattr(first, name), getattr(other, name))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_examples": 0}, "num_examples must be a positive integer; got 0"),
        ({"num_examples": -3}, "num_examples must be a positive integer; got -3"),
        ({"num_examples": 10.0}, "num_examples must be a positive integer; got 10.0"),
        ({"num_examples": True}, "num_examples must be a positive integer; got True"),
        ({"bands": (0.5, 0.5)}, "every band needs one share; got 2 bands and 3 shares"),
        ({"shares": (1.0,)}, "every band needs one share; got 3 bands and 1 shares"),
        ({"bands": (), "shares": ()}, "every band needs one share; got 0 bands and 0 shares"),
        ({"bands": (0.5, 0.3, 0.3)}, "bands must be positive and add up to 1; got (0.5, 0.3, 0.3), which add up to"),
        ({"bands": (1.0, 0.0, 0.0)}, "bands must be positive and add up to 1; got (1.0, 0.0, 0.0)"),
        ({"bands": (1.5, -0.25, -0.25)}, "bands must be positive and add up to 1; got (1.5, -0.25, -0.25)"),
        ({"bands": (0.5, 0.5, float("nan"))}, "bands must be positive and add up to 1; got (0.5, 0.5, nan)"),
        ({"shares": (1, 0, 0.5)}, "shares must be at least 0 and add up to 1; got (1, 0, 0.5), which add up to 1.5"),
        ({"shares": (0, 0, 0)}, "shares must be at least 0 and add up to 1; got (0, 0, 0), which add up to 0"),
        ({"shares": (1.5, -0.5, 0)}, "shares must be at least 0 and add up to 1; got (1.5, -0.5, 0)"),
        ({"tolerance": -0.01}, "tolerance must be a fraction of t from 0 to less than 0.5; got -0.01"),
        ({"tolerance": 0.5}, "tolerance must be a fraction of t from 0 to less than 0.5; got 0.5"),
        ({"tolerance": float("nan")}, "tolerance must be a fraction of t from 0 to less than 0.5; got nan"),
        ({"jump_ratio": 0}, "jump_ratio must be a positive number; got 0"),
        ({"jump_ratio": -2.0}, "jump_ratio must be a positive number; got -2.0"),
        ({"jump_ratio": float("nan")}, "jump_ratio must be a positive number; got nan"),
        ({"jump_ratio": float("inf")}, "jump_ratio must be a positive number; got inf"),
        ({"jump_ratio": 0.7}, "jump_ratio must be none of the trajectory points (1.0, 0.7, 0.4, 0.0); got 0.7"),
        ({"jump_ratio": 1}, "jump_ratio must be none of the trajectory points (1.0, 0.7, 0.4, 0.0); got 1"),
        ({"points": (0.7, 0.4)}, "trajectory points must be decreasing fractions"),
        ({"points": ()}, "trajectory points must be decreasing fractions"),
        ({"t_density": lambda t: 0 * t}, "t_density is 0 for every step that can be t, from 10 to 10"),
        ({"t_density": lambda t: -1.0 * t}, "t_density must give a finite number of at least 0 for each of"),
        ({"t_density": lambda t: t * np.nan}, "t_density must give a finite number of at least 0 for each of"),
        ({"t_density": lambda t: t * np.inf}, "t_density must give a finite number of at least 0 for each of"),
        ({"t_density": lambda t: 1.0}, "t_density must give a finite number of at least 0 for each of"),
        ({"t_density": lambda t: np.ones(len(t) + 1)}, "t_density must give a finite number of at least 0 for each of"),
    ],
)  # fmt: skip
def test_bad_arguments(known_moves, arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        sample_examples(known_moves, **({"num_examples": 10} | arguments))


@pytest.mark.parametrize(("steps", "count"), [((), 0), ((5,), 1)])
def test_a_history_needs_two_steps(tmp_path, steps, count):
    history = record(tmp_path, steps)
    with pytest.raises(ValueError, match=f"at least two steps to learn from; this one has {count}"):
        sample_examples(history, 10)


def test_a_history_without_a_step_that_can_be_t(tmp_path):
    history = record(tmp_path, (0, 40, 70, 100, 150))
    message = (
        "none of them are 1 t, 0.7 t, 0.4 t, 0 t, 2 t recorded to within 0.02 t; the history has 5 steps from 0 to 150"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        sample_examples(history, 10)
    assert set(sample_examples(history, 10, jump_ratio=1.5).steps.tolist()) == {100}


@pytest.mark.parametrize(("share", "count"), [(0.1, 3), (0.5, 15), (0.9, 27), (1 / 30, 1)])
def test_split_by_weight(irregular, share, count):
    examples = sample_examples(irregular, 500, points=(1.0, 0.5), tolerance=0.1)
    first, second = split_by_weight(examples, share, seed=0)
    assert len(set(second.weights.tolist())) == count
    assert set(first.weights.tolist()) == set(range(30)) - set(second.weights.tolist())
    # Every example is in one of the parts, with all that belongs to it, in the order that it was in.
    for part in (first, second):
        assert isinstance(part, Examples)
        assert (part.points, part.jump_ratio) == (examples.points, examples.jump_ratio)
        here = np.isin(examples.weights, part.weights)
        for name in ("inputs", "targets", "weights", "steps"):
            np.testing.assert_array_equal(getattr(part, name), getattr(examples, name)[here])


def test_the_split_follows_from_the_seed(irregular):
    examples = sample_examples(irregular, 500, points=(1.0, 0.5), tolerance=0.1)
    first, again, other = (set(split_by_weight(examples, 0.3, seed)[1].weights.tolist()) for seed in (1, 1, 2))
    assert first == again != other


@pytest.mark.parametrize("share", [0, 1, -0.1, 1.5, 0.01, 0.99, float("nan")])
def test_a_split_that_leaves_nothing(irregular, share):
    examples = sample_examples(irregular, 500, points=(1.0, 0.5), tolerance=0.1)
    message = f"must be between 0 and 1 and leave both parts some; got {share!r} of 30"
    with pytest.raises(ValueError, match=re.escape(message)):
        split_by_weight(examples, share, seed=0)
