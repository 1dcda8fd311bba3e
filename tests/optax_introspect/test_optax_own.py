"""Part of Optax's own tests, of optimizers that end in `introspect` and jump while they are tested."""

import types
import unittest
from unittest import mock

import jax.numpy as jnp
import optax
import pytest
from optax._src import lookahead_test
from optax.contrib import _common_test, _schedule_free_test
from optax.transforms import _accumulation_test, _conditionality_test, _masking_test

from optax_introspect import introspect
from tests.optax_introspect.by_hand import jumps_taken
from tests.optax_introspect.optax_own import (
    TWO_POINT,
    contributed_optimizers_jump,
    ending_in,
    optimizers_jump,
    standing_jump,
)

# The tests of `ContribTest`: the step that the first update counts as, so that one is a jump where there is but one,
# and how many of the cases are run.
CONTRIBUTED = {
    "test_optimizers_accept_extra_args": (0, 2),
    "test_optimizers": (0, 2),
    "test_optimizers_can_be_wrapped_in_inject_hyperparams": (1, 2),
    "test_preserve_dtype": (1, 2),
    "test_gradient_accumulation": (1, 2),
    "test_state_shape_dtype_shard_stability": (0, 2),
    "test_optimizers_accept_learning_rate_schedule_if_type_annotated_as_such": (0, 1),
}
NOT_TESTED_BY_OPTAX = (
    "Optimizer doesn't accept a learning schedule.",
    "reduce_on_plateau is not supported by inject_hyperparams.",
)


def cases(test):
    """The names that Optax's parameters give to one test, by number."""
    names = unittest.defaultTestLoader.getTestCaseNames(_common_test.ContribTest)
    return sorted((name for name in names if name.rstrip("0123456789") == test), key=lambda name: (len(name), name))


def spread(names, number):
    return [names[(2 * i + 1) * len(names) // (2 * number)] for i in range(number)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "first_step"),
    [(name, first) for test, (first, number) in CONTRIBUTED.items() for name in spread(cases(test), number)],
)
def test_contributed_optimizers(name, first_step):
    try:
        with contributed_optimizers_jump(first_step):
            _common_test.ContribTest(name).debug()
    except unittest.SkipTest as reason:
        if str(reason) not in NOT_TESTED_BY_OPTAX:
            raise AssertionError from reason


def test_no_test_of_contributed_optimizers_is_forgotten():
    names = unittest.defaultTestLoader.getTestCaseNames(_common_test.ContribTest)
    assert {name.rstrip("0123456789") for name in names} == CONTRIBUTED.keys()


@pytest.mark.parametrize("first_step", [0, 1])
def test_the_optimizers_jump_in_their_first_updates(first_step):
    tx = ending_in(optax.adam, first_step=first_step)(0.1)
    params = jnp.ones(3)
    state = tx.init(params)
    for _ in range(2):
        updates, state = tx.update(params, state, params)
        params = optax.apply_updates(params, updates)
    assert jumps_taken(state) == [1 + first_step]


@pytest.mark.parametrize(
    "test",
    [
        _conditionality_test.ConditionalityTest("test_apply_if_finite_sgd"),
        _accumulation_test.AccumulationTest("test_multi_steps_scan_dtype_stability"),
        _accumulation_test.AccumulationTest("test_multi_steps_skip_not_finite"),
        _masking_test.MaskedTest("test_nested_mask_sgd"),
        _schedule_free_test.ScheduleFreeTest("test_learning_rate_zero"),
    ],
    ids=lambda test: test._testMethodName,
)
def test_wrappers(test):
    with optimizers_jump(standing_jump(1)):
        test.debug()


def test_multi_steps_of_a_chain():
    chain = types.SimpleNamespace(chain=lambda *parts: optax.chain(*parts, introspect((1, 3), TWO_POINT)))
    with mock.patch.object(_accumulation_test, "combine", chain):
        _accumulation_test.AccumulationTest("test_multi_steps").debug()


def test_lookahead():
    optimizer = ending_in(lookahead_test._test_optimizer, standing_jump(1), standing_jump(2))
    with mock.patch.object(lookahead_test, "_test_optimizer", optimizer):
        lookahead_test.LookaheadTest("test_lookahead").debug()
