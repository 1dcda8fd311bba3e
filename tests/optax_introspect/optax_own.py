"""Replaces the optimizers in Optax's own tests, as installed with it, by ones that end in `introspect`."""

import contextlib
import functools
import inspect
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


def standing_jump(t):
    """A jump to the weights now, for tests that compare weights with a formula."""
    return introspect((t,), polynomial(1, 1.0, points=(1.0, 0.0)))


def ending_in(factory, *jumps, first_step=0):
    """Returns a factory of the same optimizers with `introspect` after them, which has counted some steps already."""

    @functools.wraps(factory)
    def make(*args, **kwargs):
        tx = optax.chain(factory(*args, **kwargs), *(jumps or (introspect(JUMP_STEPS, TWO_POINT),)))

        def init(params):
            state = tx.init(params)
            if not first_step:
                return state
            # With the snapshot of step 0, which the jump at step 1 needs.
            last = state[-1]
            last = last._replace(
                introspect_step=jnp.full([], first_step, jnp.int32),
                snapshot_steps=jnp.zeros_like(last.snapshot_steps),
            )
            return (*state[:-1], last)

        return optax.GradientTransformationExtraArgs(init, tx.update)

    return make


@contextlib.contextmanager
def optimizers_jump(*jumps, first_step=0, module=alias):
    """Replaces Optax's own optimizers."""
    names = [
        name
        for name, function in inspect.getmembers(alias)
        if getattr(optax, name, None) is function
        and (inspect.isfunction(function) or isinstance(function, functools.partial))
    ]
    factories = {name: ending_in(getattr(module, name), *jumps, first_step=first_step) for name in names}
    with mock.patch.multiple(module, **factories):
        yield


@contextlib.contextmanager
def contributed_optimizers_jump(first_step=0):
    """Replaces the optimizers of `ContribTest`."""
    original, evaluate = _common_test._get_opt_factory, contrib.schedule_free_eval_params

    def eval_params(state, params):
        return evaluate(state if hasattr(state, "b1") else state[0], params)

    def factory(name):
        return ending_in(original(name), first_step=first_step)

    with (
        mock.patch.object(_common_test, "_get_opt_factory", factory),
        mock.patch.object(contrib, "schedule_free_eval_params", eval_params),
    ):
        yield
