"""Optax's own tests, as installed with it, run on optimizers that end in `introspect` and jump while they are tested.

Optax's tests make their optimizers by calling factories such as `optax.adam`. Here these are replaced for the time of a
test. `python -m tests.composition` runs all of them, the suite a part.
"""

import contextlib
import functools
import inspect
import unittest
from collections.abc import Callable, Iterator
from types import ModuleType
from unittest import mock

import jax.numpy as jnp
import optax
from optax import contrib
from optax._src import alias
from optax.contrib import _common_test

from optax_introspect import introspect, polynomial

TWO_POINT = polynomial(1, 1.3, points=(1.0, 0.4))

# In the shortest of the tests of two updates and more, and in the longest while and after they converge.
JUMP_STEPS = (1, 2, 1000, 4000)


def exact_jump(t):
    """A jump that leads where the update would, if the weights move by as much at every step."""
    return introspect((t,), polynomial(1, 1 + 1 / t, points=(1.0, 0.0)))


def ending_in(factory: Callable, *jumps, first_step: int = 0) -> Callable:
    """Returns a factory of the same optimizers with `introspect` after them, which has already seen some steps."""

    @functools.wraps(factory)
    def make(*args, **kwargs):
        tx = optax.chain(factory(*args, **kwargs), *(jumps or (introspect(JUMP_STEPS, TWO_POINT),)))

        def init(params):
            state = tx.init(params)
            return optax.tree.set(state, introspect_step=jnp.full([], first_step, jnp.int32)) if first_step else state

        return optax.GradientTransformationExtraArgs(init, tx.update)

    return make


def optimizer_names() -> list[str]:
    """All factories of optimizers that are Optax's own, not contributed."""
    return [
        name
        for name, function in inspect.getmembers(alias)
        if getattr(optax, name, None) is function
        and (inspect.isfunction(function) or isinstance(function, functools.partial))
        and not name.startswith("_")
    ]


@contextlib.contextmanager
def optimizers_jump(*jumps, first_step: int = 0, module: ModuleType = alias) -> Iterator[None]:
    """Replaces Optax's own optimizers by ones that end in jumps."""
    factories = {name: ending_in(getattr(module, name), *jumps, first_step=first_step) for name in optimizer_names()}
    with mock.patch.multiple(module, **factories):
        yield


@contextlib.contextmanager
def contributed_optimizers_jump(first_step: int = 0) -> Iterator[None]:
    """Replaces the optimizers of `ContribTest` by ones that end in jumps."""
    original, evaluate = _common_test._get_opt_factory, contrib.schedule_free_eval_params

    def eval_params(state, params):
        return evaluate(state if hasattr(state, "b1") else state[0], params)

    with (
        mock.patch.object(
            _common_test, "_get_opt_factory", lambda name: ending_in(original(name), first_step=first_step)
        ),
        mock.patch.object(contrib, "schedule_free_eval_params", eval_params),
    ):
        yield


# What `ContribTest` tests, and from which step on: where it makes but one update, that one is a jump.
CONTRIBUTED = {
    "test_optimizers_accept_extra_args": 0,
    "test_optimizers": 0,
    "test_optimizers_can_be_wrapped_in_inject_hyperparams": 1,
    "test_preserve_dtype": 1,
    "test_gradient_accumulation": 1,
    "test_state_shape_dtype_shard_stability": 0,
    "test_optimizers_accept_learning_rate_schedule_if_type_annotated_as_such": 0,
}

# What Optax leaves out of them.
NOT_TESTED = (
    "Optimizer doesn't accept a learning schedule.",
    "reduce_on_plateau is not supported by inject_hyperparams.",
)


def cases(test_case: type[unittest.TestCase], test: str) -> list[str]:
    """The names that Optax's parameters give to one test."""
    names = unittest.defaultTestLoader.getTestCaseNames(test_case)
    return sorted((name for name in names if name.rstrip("0123456789") == test), key=lambda name: (len(name), name))


def run_contributed(test: str, name: str) -> str | None:
    """Runs one case of one test of `ContribTest`; raises what it raises, and returns why Optax leaves it out, if so."""
    try:
        with contributed_optimizers_jump(CONTRIBUTED[test]):
            _common_test.ContribTest(name).debug()
    except unittest.SkipTest as reason:
        return str(reason)
    return None
