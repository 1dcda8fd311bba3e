"""Optax's own tests pass for optimizers that end in `introspect`, with jumps in what is tested."""

import subprocess
import sys
import types
import unittest
from unittest import mock

import jax.numpy as jnp
import optax
import pytest
from optax._src import linesearch_test, lookahead_test
from optax.contrib import _common_test, _schedule_free_test
from optax.transforms import _accumulation_test, _conditionality_test, _masking_test

from optax_introspect import introspect
from tests.composition import optax_own
from tests.composition.by_hand import jumps_taken
from tests.composition.optax_own import TWO_POINT, cases, ending_in, exact_jump, optimizers_jump

# How many cases of each test the suite runs; `python -m tests.composition` runs all.
SUITE = {
    "test_optimizers_accept_extra_args": 5,
    "test_optimizers": 5,
    "test_optimizers_can_be_wrapped_in_inject_hyperparams": 3,
    "test_preserve_dtype": 4,
    "test_gradient_accumulation": 4,
    "test_state_shape_dtype_shard_stability": 4,
    "test_optimizers_accept_learning_rate_schedule_if_type_annotated_as_such": 2,
}


def spread(names, number):
    """As many of the names, evenly spread."""
    return [names[i * len(names) // number] for i in range(number)]


CASES = [
    (test, name) for test, number in SUITE.items() for name in spread(cases(_common_test.ContribTest, test), number)
]


@pytest.mark.parametrize(("test", "name"), CASES, ids=[name for _, name in CASES])
def test_contributed_optimizers(test, name):
    assert optax_own.run_contributed(test, name) in (None, *optax_own.NOT_TESTED)


def test_suite_has_a_part_of_every_test():
    assert SUITE.keys() == optax_own.CONTRIBUTED.keys()
    tests = unittest.defaultTestLoader.getTestCaseNames(_common_test.ContribTest)
    assert {name.rstrip("0123456789") for name in tests} == SUITE.keys()


@pytest.mark.parametrize("first_step", [0, 1])
def test_the_optimizers_jump_in_their_first_updates(first_step):
    tx = ending_in(optax.adam, first_step=first_step)(0.1)
    params = jnp.ones(3)
    state = tx.init(params)
    for _ in range(2):
        updates, state = tx.update(params, state, params)
        params = optax.apply_updates(params, updates)
    assert jumps_taken(state) == [1 + first_step]


def chains_end_in(*jumps):
    """What stands for Optax's module of `chain` in one of its tests."""
    return types.SimpleNamespace(chain=lambda *transformations: optax.chain(*transformations, *jumps))


class TestWrappers:
    @pytest.mark.parametrize(
        "name", ["test_apply_if_finite_sgd", "test_apply_if_finite_stateful_sgd", "test_apply_if_finite_sgd_extra_args"]
    )
    def test_apply_if_finite(self, name):
        with optimizers_jump(exact_jump(1)):
            _conditionality_test.ConditionalityTest(name).debug()

    def test_apply_if_finite_under_pmap(self):
        with optimizers_jump(exact_jump(1)):
            _conditionality_test.ConditionalityTest("test_apply_if_finite_pmap").debug()

    @pytest.mark.parametrize(
        "name",
        [
            "test_multi_steps_scan_dtype_stability",
            "test_multi_steps_skip_not_finite",
            "test_multi_steps_zero_nans",
        ],
    )
    def test_multi_steps(self, name):
        with optimizers_jump(exact_jump(1)):
            _accumulation_test.AccumulationTest(name).debug()

    def test_multi_steps_of_a_chain(self):
        with mock.patch.object(_accumulation_test, "combine", chains_end_in(introspect((1, 3), TWO_POINT))):
            _accumulation_test.AccumulationTest("test_multi_steps").debug()

    @pytest.mark.parametrize("name", ["test_nested_mask_sgd", "test_nested_mask_stateful_sgd"])
    def test_nested_masks(self, name):
        with optimizers_jump(exact_jump(1)):
            _masking_test.MaskedTest(name).debug()

    @pytest.mark.parametrize(
        "name",
        [
            "test_lookahead",
            # The first of the edge cases meets the slow weights half way at every step.
            *cases(lookahead_test.LookaheadTest, "test_lookahead_edge_cases")[1:],
            *cases(lookahead_test.LookaheadTest, "test_lookahead_state_reset"),
        ],
    )
    def test_lookahead(self, name):
        optimizer = ending_in(lookahead_test._test_optimizer, exact_jump(1), exact_jump(2))
        with mock.patch.object(lookahead_test, "_test_optimizer", optimizer):
            lookahead_test.LookaheadTest(name).debug()

    @pytest.mark.parametrize("name", ["test_learning_rate_zero", "test_scalar_preservance"])
    def test_schedule_free(self, name):
        with optimizers_jump(introspect((1, 2), TWO_POINT)):
            _schedule_free_test.ScheduleFreeTest(name).debug()

    # Not test_armijo_sgd: of ten updates, too few are left to converge after two jumps.
    @pytest.mark.parametrize("name", ["test_gradient_descent_with_linesearch", "test_recycling_value_and_grad"])
    def test_linesearch(self, name):
        with mock.patch.object(linesearch_test, "combine", chains_end_in(introspect((2, 4), TWO_POINT))):
            linesearch_test.BacktrackingLinesearchTest(name).debug()


def test_sharded_optimizers():
    finished = subprocess.run(
        [sys.executable, "-m", "tests.composition.optax_sharding", "8"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "Ran 10 tests" in finished.stderr  # an eighth of three tests of each of 25 optimizers
    assert finished.stderr.rstrip().endswith("OK")
