"""Examples sampled from a history, against a brute-force computation of what they must be."""

import itertools
import re
from decimal import Decimal

import numpy as np
import pytest

from optax_introspect import Examples, WeightHistory, sample_examples
from optax_introspect._plan import PAPER_POINTS
from optax_introspect.predictors._sampling import split_by_weight

BASE = 4096  # more than any step here, so that a weight's value tells which weight it is, and at which step
IRREGULAR = (0, 1, 3, 4, 7, 8, 10, 13, 14, 16, 20, 26, 28, 30, 40, 41, 56, 60, 80, 88)
EVERY_10 = range(0, 201, 10)
ONE_T = (0, 4, 7, 10, 20)  # only t = 10 has its points and 2t recorded


class InMemory:
    """The least that is sampled from. The weights are their index and the step in one number."""

    def __init__(self, steps, num_weights=30, weight=lambda step, index: BASE * index + step):
        self.steps, self.num_weights, self.weight = list(steps), num_weights, weight
        self.reads = []

    def read(self, step):
        assert type(step) is int
        self.reads.append(step)
        return self.weight(step, np.arange(self.num_weights)).astype(np.float32)


def moving(count=1000):
    """Weights of which the i-th moves by i a step, every other one downwards."""
    return InMemory(ONE_T, count, lambda step, index: np.where(index % 2, -1, 1) * index * step + 0.5)


def nearest(recorded, wanted):
    """Returns the recorded step nearest to a step, ties upwards, by looking at all of them."""
    return max(recorded, key=lambda step: (-abs(step - wanted), step))


def wanted_step(point, t):
    if isinstance(point, int):
        return max(t + point, 0)
    return int((Decimal(repr(point)) * t + Decimal("0.5")).to_integral_value(rounding="ROUND_FLOOR"))


def expected_steps(recorded, points, target, tolerance):
    """Returns the recorded steps to be looked at, for every possible `t`."""
    found = {}
    for t in recorded:
        wanted = [wanted_step(point, t) for point in (*points, target)]
        at = [nearest(recorded, step) for step in wanted]
        clamped = [isinstance(point, int) and t + point < 0 for point in (*points, target)]
        later_first = all(
            a > b or (a == b and (clamped[i] or clamped[i + 1]))
            for i, (a, b) in enumerate(itertools.pairwise(wanted[:-1]))
        )
        close = all(
            abs(a - b) <= Decimal(repr(tolerance)) * (t if isinstance(point, float) else abs(t - b))
            for a, b, point in zip(at, wanted, (*points, target), strict=True)
        )
        if t > 0 and later_first and close and len(set(at)) == len(set(wanted)):
            found[t] = at
    return found


@pytest.mark.parametrize("tolerance", [0.0, 0.02, 0.1, 0.25, 0.49])
@pytest.mark.parametrize(
    ("points", "target"),
    [
        (PAPER_POINTS, 2.0),
        (PAPER_POINTS, 2.2),
        (PAPER_POINTS, 1.3),
        ((1.0,), 2.0),
        ((1.0, 0.75, 0.5, 0.25, 0.0), 2.0),
        ((1.0, -3, -6), 10),
        ((1.0, -10, -12, -20), 20),
        ((1.0, 0.5, -13), 13),
        ((1.0, -4, 0.0), 1.5),
    ],
)
def test_inputs_and_targets_are_the_weights_at_the_nearest_steps(points, target, tolerance):
    expected = expected_steps(IRREGULAR, points, target, tolerance)
    history = InMemory(IRREGULAR)
    if not expected:
        with pytest.raises(ValueError, match="history must have a step t of which"):
            sample_examples(history, 700, points=points, target=target, tolerance=tolerance)
        return
    examples = sample_examples(history, 700, points=points, target=target, tolerance=tolerance)
    assert (examples.points, examples.target) == (points, target)
    assert examples.inputs.shape == (700, len(points))
    assert examples.inputs.dtype == examples.targets.dtype == np.float32
    assert examples.targets.shape == examples.weights.shape == examples.steps.shape == (700,)
    assert examples.weights.dtype == examples.steps.dtype == np.int64
    # With this many examples, every step that can be `t` and every weight occurs.
    assert set(examples.steps.tolist()) == set(expected)
    assert set(examples.weights.tolist()) == set(range(30))
    looked_at = np.array([expected[t] for t in examples.steps.tolist()])
    found = np.column_stack([examples.inputs, examples.targets])
    np.testing.assert_array_equal(found, BASE * examples.weights[:, None] + looked_at)
    assert len(history.reads) == len(set(history.reads))  # no step is read twice


def test_points_before_the_start_are_the_first_step():
    examples = sample_examples(InMemory(EVERY_10), 300, points=(1.0, -20, -50), target=30)
    at_10 = examples.steps == 10
    assert at_10.any()
    np.testing.assert_array_equal(examples.inputs[at_10] % BASE, [[10, 0, 0]] * at_10.sum())
    np.testing.assert_array_equal(examples.targets % BASE, examples.steps + 30)


def test_a_history_on_disk_gives_the_same(tmp_path):
    memory = InMemory(EVERY_10)
    with WeightHistory.record(tmp_path, {"w": memory.read(0)}) as history:
        for step in EVERY_10:
            history.append(step, {"w": memory.read(step)})
    for a, b in zip(sample_examples(history, 100), sample_examples(memory, 100), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("steps", "points", "target", "tolerance", "message"),
    [
        ((0, 4, 6, 8, 10, 20), PAPER_POINTS, 2.0, 0.0999, "1 t, 0.7 t, 0.4 t, 0 t, 2 t are recorded too, within the"),
        ((0, 4, 7, 10, 21), PAPER_POINTS, 2.0, 0.0999, "it has 5 steps from 0 to 21"),
        ((0, 89, 100, 200), (1.0, -10), 100, 0.0999, "1 t, t - 10, t + 100 are recorded"),
        ((0, 90, 100, 189), (1.0, -10), 100, 0.1, "tolerance 0.1"),
        (EVERY_10, PAPER_POINTS, 2, 0.02, "0 t, t + 2 are recorded"),
        ((), PAPER_POINTS, 2.0, 0.02, "history must have at least two steps; got 0"),
        ((5,), PAPER_POINTS, 2.0, 0.02, "history must have at least two steps; got 1"),
    ],
)
def test_a_history_without_a_step_that_can_be_t(steps, points, target, tolerance, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        sample_examples(InMemory(steps), 3, points=points, target=target, tolerance=tolerance)


@pytest.mark.parametrize(
    ("steps", "points", "target", "expected"),
    [
        ((0, 4, 6, 8, 10, 20), PAPER_POINTS, 2.0, [10, 8, 4, 0, 20]),  # ties go to the later step
        ((0, 4, 7, 10, 21), PAPER_POINTS, 2.0, [10, 7, 4, 0, 21]),
        ((0, 89, 100, 200), (1.0, -10), 100, [100, 89, 200]),
        ((0, 90, 100, 190), (1.0, -10), 100, [100, 90, 190]),
        ((0, 4, 10, 11), (1.0, 0.0), 1.1, [10, 0, 11]),  # 1.1 t of step 4 is step 4
    ],
)
def test_the_tolerance_is_inclusive(steps, points, target, expected):
    examples = sample_examples(InMemory(steps), 5, points=points, target=target, tolerance=0.1)
    np.testing.assert_array_equal(np.column_stack([examples.inputs, examples.targets]) % BASE, [expected] * 5)


def test_steps_follow_their_density():
    given = []

    def density(t):
        given.append(t.copy())
        return np.where(t == 10, 0, 7.0 / t)

    history, options = InMemory(EVERY_10), {"points": (1.0, 0.0), "tolerance": 0}
    uniform = sample_examples(history, 6000, **options)
    steps, counts = np.unique(uniform.steps, return_counts=True)
    assert steps.tolist() == list(range(10, 101, 10))
    assert abs(counts - 600).max() < 120  # five standard deviations
    examples = sample_examples(history, 6000, t_density=density, **options)
    np.testing.assert_array_equal(given, [range(10, 101, 10)])
    steps, counts = np.unique(examples.steps, return_counts=True)
    assert steps.tolist() == list(range(20, 101, 10))
    expected = 6000 * (1 / steps) / (1 / steps).sum()
    assert np.all(abs(counts - expected) < 5 * np.sqrt(expected))


@pytest.mark.parametrize("points", [PAPER_POINTS, (1.0, 0.4)])
@pytest.mark.parametrize(
    ("bands", "shares"),
    [
        ((0.5, 0.25, 0.25), (0.5, 0.25, 0.25)),
        ((0.5, 0.25, 0.25), (0, 1, 0)),
        ((0.1, 0.2, 0.3, 0.4), (0.4, 0.3, 0.2, 0.1)),
        ((0.25, 0.75), (0.75, 0.25)),
        ((1.0,), (1.0,)),
    ],
)
def test_every_band_gives_its_share(bands, shares, points):
    # The candidates are random, so that the edges between bands are known to about a hundredth.
    examples = sample_examples(moving(), 4000, bands=bands, shares=shares, points=points)
    place = 1 - (examples.weights + 0.5) / 1000  # from 0 for the weight that moved most to 1
    edges = np.cumsum([0, *bands])
    for start, end, share in zip(edges[:-1], edges[1:], shares, strict=True):
        count = np.sum((place >= start) & (place < end))
        assert abs(count - share * 4000) < 160
        if share == 0:
            assert not np.any((place > start + 0.04) & (place < end - 0.04))
        else:
            counts, _ = np.histogram(place, bins=5, range=(start, end))
            assert counts.min() > 0.7 * share * 4000 / 5  # from all over the band
    if shares == (0.5, 0.25, 0.25):
        assert 400 < np.sum(place[:1000] < 0.5) < 600  # in random order


@pytest.mark.parametrize("count", [1, 2, 3, 7, 100, 101])
def test_exactly_as_many_as_asked_for_and_none_twice(count):
    # Among so many weights hardly any is a candidate twice, and nearly all candidates are drawn.
    examples = sample_examples(moving(1_000_000), count, bands=(0.3, 0.3, 0.4), shares=(0.1, 0.2, 0.7))
    assert len(examples.targets) == len(np.unique(examples.weights)) == count


def test_the_same_seed_gives_the_same_examples():
    options = {"points": (1.0, 0.5), "tolerance": 0.1, "t_density": np.sqrt}
    first, again, other = (sample_examples(InMemory(IRREGULAR), 200, seed=seed, **options) for seed in (3, 3, 4))
    for name in ("inputs", "targets", "weights", "steps"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
        assert not np.array_equal(getattr(first, name), getattr(other, name))


TARGET = (
    "target must be a float above 1, a multiple of t such as 2.0, or a positive integer, a number of steps ahead such"
)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        *(
            ({"num_examples": value}, f"num_examples must be an integer of at least 1; got {value}")
            for value in (0, 10.0)
        ),
        *(({"target": value}, f"{TARGET} as 1000; got {value!r}") for value in (0, -5, 1.0, 0.5, True, "2", None)),
        *(({"target": value}, f"{TARGET} as 1000; got {value!r}") for value in (float("nan"), float("inf"))),
        *(
            ({"tolerance": value}, "tolerance must be from 0 to less than 0.5; got")
            for value in (-0.1, 0.5, float("nan"), "a")
        ),
        ({"seed": -1}, "seed must be an integer of at least 0; got -1"),
        ({"bands": ("a", 0.5, 0.5)}, "bands must be numbers; got ('a', 0.5, 0.5)"),
        ({"bands": (0.5, 0.5)}, "bands and shares must be of one length; got 2 bands and 3 shares"),
        ({"bands": (), "shares": ()}, "bands and shares must be of one length; got 0 bands and 0 shares"),
        ({"bands": (0.5, 0.3, 0.3)}, "bands must be positive and add up to 1; got (0.5, 0.3, 0.3)"),
        ({"bands": (1.5, -0.25, -0.25)}, "bands must be positive and add up to 1; got (1.5, -0.25, -0.25)"),
        ({"bands": (0.5, 0.5, float("nan"))}, "bands must be positive and add up to 1; got (0.5, 0.5, nan)"),
        ({"shares": (1, 0, 0.5)}, "shares must be at least 0 and add up to 1; got (1, 0, 0.5)"),
        ({"shares": (1.5, -0.5, 0)}, "shares must be at least 0 and add up to 1; got (1.5, -0.5, 0)"),
        ({"points": (0.7, 0.4)}, "points must begin with 1.0"),
        ({"points": ()}, "points must begin with 1.0"),
        ({"t_density": lambda t: 0 * t}, "t_density must not be 0 for every step that can be t, from 10 to 10"),
        ({"t_density": lambda t: -1.0 * t}, "t_density must return 1 finite numbers of at least 0; got"),
        ({"t_density": lambda t: t * np.nan}, "t_density must return 1 finite numbers of at least 0; got"),
        ({"t_density": lambda t: 1.0}, "t_density must return 1 finite numbers of at least 0; got 1.0"),
        ({"t_density": lambda t: np.ones(2)}, "t_density must return 1 finite numbers of at least 0; got [1. 1.]"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        sample_examples(moving(), **({"num_examples": 10} | arguments))


@pytest.mark.parametrize(("share", "count"), [(0.1, 3), (0.5, 15), (0.9, 27), (1 / 30, 1)])
def test_split_by_weight(share, count):
    examples = sample_examples(InMemory(IRREGULAR), 500, points=(1.0, 0.5), tolerance=0.1)
    first, second = split_by_weight(examples, share, seed=0)
    assert len(set(second.weights.tolist())) == count
    assert set(first.weights.tolist()) == set(range(30)) - set(second.weights.tolist())
    # Every example is in one of the parts, with all that belongs to it, in the order that it was in.
    for part in (first, second):
        assert isinstance(part, Examples)
        assert (part.points, part.target) == (examples.points, examples.target)
        here = np.isin(examples.weights, part.weights)
        for name in ("inputs", "targets", "weights", "steps"):
            np.testing.assert_array_equal(getattr(part, name), getattr(examples, name)[here])
    _, again = split_by_weight(examples, share, seed=0)
    _, other = split_by_weight(examples, share, seed=1)
    np.testing.assert_array_equal(second.weights, again.weights)
    assert set(second.weights.tolist()) != set(other.weights.tolist())


@pytest.mark.parametrize("share", [0, 1, -0.1, 0.001, 0.999, float("nan")])
def test_a_split_leaves_no_part_empty(share):
    examples = sample_examples(InMemory(IRREGULAR), 500, points=(1.0, 0.5), tolerance=0.1)
    message = f"validation_share must be between 0 and 1 and leave both parts some of the 30 weights; got {share!r}"
    with pytest.raises(ValueError, match=re.escape(message)):
        split_by_weight(examples, share, seed=0)
