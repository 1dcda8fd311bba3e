import math

import numpy as np
import pytest
from scipy import stats

from experiments import results, statistics
from experiments._config import Claim
from experiments.statistics import Difference


def made(curves, jump_steps=(10,)):
    """Returns results of arms: for each seed the accuracies at steps 0, 10, 20, ..."""
    table = [
        (arm, seed, 10.0 * i, a)
        for arm, runs in curves.items()
        for seed, run in enumerate(runs)
        for i, a in enumerate(run)
    ]
    columns = {
        name: np.array(column)
        for name, column in zip(("arm", "seed", "step", "test_accuracy"), zip(*table, strict=True), strict=True)
    }
    return results.Results(
        "made", {"version": "0.2.0", "arms": {arm: {"jump_steps": jump_steps} for arm in curves}}, columns
    )


def test_interval_is_that_of_a_paired_t_test():
    a, b = np.random.default_rng(0).normal(size=(2, 6))
    expected = stats.ttest_rel(a, b).confidence_interval(0.95)
    assert Difference(tuple(a - b)).interval == pytest.approx((expected.low, expected.high))


def test_few_seeds_have_no_interval():
    assert Difference((1.0,)).interval == (-math.inf, math.inf)
    assert Difference((1.0,)).mean == 1.0
    assert math.isnan(Difference(()).mean)


def test_arms_are_compared_at_their_last_common_step_for_common_seeds():
    found = made(
        {"jumps": [[0.0, 0.5, 0.7], [0.0, 0.4, 0.6]], "plain": [[0.0, 0.4, 0.5, 0.9], [0.0, 0.4, 0.4, 0.9], [0.9] * 4]}
    )
    assert statistics.difference(found, "jumps", "plain").values == pytest.approx((20, 20))
    assert statistics.final(found, "plain", "jumps") == pytest.approx(45)
    assert statistics.final(found, "plain") == pytest.approx(90)
    assert statistics.relative(found, "jumps", "plain", "test_accuracy").values == pytest.approx((40, 50))


@pytest.mark.parametrize(
    ("jumps", "share"),
    [
        ([0.9, 0.8, 0.8, 0.8], 1 / 3),
        ([0.9, 0.1, 0.7, 0.8], 2 / 3),
        ([0.9, 0.1, 0.1, 0.1], math.inf),
    ],
)
def test_share_of_steps_leaves_the_start_out(jumps, share):
    assert (
        statistics.share_of_steps(made({"jumps": [jumps], "plain": [[0.9, 0.2, 0.3, 0.7]]}), "jumps", "plain") == share
    )


def test_steadiness_and_deepest_fall_count_from_the_first_jump():
    found = made({"jumps": [[0.0, 0.5, 0.1, 0.5]], "plain": [[0.9, 0.5, 0.5, 0.6]]})
    assert statistics.steadiness(found, "jumps", "plain").values == pytest.approx((5 - 40,))
    assert statistics.deepest_fall(found, "jumps", "plain") == pytest.approx(40)


GAIN, NONE = [0.6, 0.61, 0.6], [0.501, 0.5, 0.499]


@pytest.mark.parametrize(
    ("ends", "claim", "verdict"),
    [
        (GAIN, Claim("", "jumps", points=5), "reproduced"),
        (GAIN, Claim("", "jumps", points=5, share=0.45), "reproduced"),
        (GAIN, Claim("", "jumps", points=5, share=0.35), "partly"),
        (NONE, Claim("", "jumps", points=5), "not"),
        ([0.4, 0.41, 0.4], Claim("", "jumps", points=5), "not"),
        ([0.6, 0.4, 0.6], Claim("", "jumps", points=5), "open"),
        (GAIN[:1], Claim("", "jumps", points=5), "open"),
        (NONE, Claim("", "jumps", expects="no gain", points=5), "reproduced"),
        (GAIN, Claim("", "jumps", expects="no gain", points=5), "not"),
        ([0.6, 0.4, 0.6], Claim("", "jumps", expects="no gain", points=5), "open"),
        ([0.29, 0.5, 0.5], Claim("", "jumps", expects="collapse"), "reproduced"),
        (NONE, Claim("", "jumps", expects="collapse"), "open"),
        (NONE, Claim("", "jumps", measure="steadiness"), "reproduced"),
        (GAIN, Claim("", "jumps", measure="steadiness"), "open"),
    ],
)
def test_verdicts(ends, claim, verdict):
    found = made({"jumps": [[0.0, 0.5, end] for end in ends], "plain": [[0.0, 0.4, 0.5] for _ in ends]})
    assert statistics.verdict(found, claim) == verdict


@pytest.mark.parametrize("share", [0.5, 0.8, 1.0, 1.5, 4.0])
def test_share_of_a_budget_is_read_off_the_budgets_of_plain(share):
    plain = {n: 1 + 1000 / n for n in (1500, 3000, 6000)}
    assert statistics.share_of_budget(plain, 1 + 1000 * share / 3000, 3000) == pytest.approx(share)
