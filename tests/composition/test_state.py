"""The state among those of other transformations: found by name, mapped as parameters are, read for a log."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

from optax_introspect import IntrospectState, forecaster, introspect
from tests.composition.by_hand import introspect_states, jumps, jumps_taken, start, train


def with_adam(*jump_steps):
    return optax.chain(optax.adam(0.1), jumps(*jump_steps))


# All wrappers around a chain that ends in jumps, or beside it.
WRAPPED = {
    "alone": with_adam(),
    "named": optax.named_chain(("optimizer", optax.adam(0.1)), ("jumps", jumps())),
    "MultiSteps": optax.MultiSteps(with_adam(), 2).gradient_transformation(),
    "apply_if_finite": optax.apply_if_finite(with_adam(), 3),
    "masked": optax.chain(optax.adam(0.1), optax.masked(jumps(), {"a": True, "b": False})),
    "inject_hyperparams": optax.inject_hyperparams(lambda rate: optax.chain(optax.adam(rate), jumps()))(rate=0.1),
    "schedule_free": optax.chain(optax.contrib.schedule_free(optax.sgd(0.1), 0.1), jumps()),
    "reduce_on_plateau": optax.chain(optax.adam(0.1), optax.contrib.reduce_on_plateau(), jumps()),
}


def optax_state_fields():
    """The names in the states of all of Optax's transformations."""
    states = [
        state
        for module in (optax, optax.contrib, optax.transforms, optax.schedules)
        for name, state in inspect.getmembers(module, inspect.isclass)
        if name.endswith("State") and hasattr(state, "_fields")
    ]
    return {field for state in states for field in state._fields}


class TestNames:
    def test_none_is_that_of_another_state(self):
        fields = optax_state_fields()
        assert {"count", "mu", "nu", "trace", "hyperparams", "inner_state"} <= fields
        assert not fields & set(IntrospectState._fields)

    @pytest.mark.parametrize("name", WRAPPED)
    def test_found_however_deep(self, name):
        state = WRAPPED[name].init(start())
        for field in ("introspect_step", "jumps_taken", "jumps_refused"):
            assert optax.tree.get(state, field) == 0
        (ours,) = introspect_states(state)
        assert optax.tree.get(state, "snapshots") is ours.snapshots
        assert optax.tree.get(state, "IntrospectState") is ours
        # The others' are found as they are without jumps.
        if name not in ("schedule_free", "inject_hyperparams", "reduce_on_plateau"):
            assert optax.tree.get(state, "count") == 0
            assert optax.tree.get(state, "mu").keys() == {"a", "b"}

    def test_two_of_them_are_told_apart_by_their_path(self):
        tx = optax.partition({"early": with_adam(4, 8), "late": with_adam()}, {"a": "early", "b": "late"})
        _, state = train(tx, 7)
        with pytest.raises(KeyError, match="Found multiple values for 'jumps_taken'"):
            optax.tree.get(state, "jumps_taken")
        found = optax.tree.get_all_with_path(state, "jumps_taken")
        assert ["early" in jax.tree_util.keystr(path) for path, _ in found] == [True, False]
        assert [int(value) for _, value in found] == [1, 1]
        (only,) = optax.tree.get_all_with_path(
            state, "introspect_step", filtering=lambda path, _: "late" in jax.tree_util.keystr(path)
        )
        assert only[1] == 7


class TestSet:
    def test_the_step_counter_moves_the_schedule(self):
        params = start()
        tx = with_adam()
        state = optax.tree.set(tx.init(params), introspect_step=jnp.int32(4))
        for expected in (0, 1):
            _, state = tx.update(params, state, params)
            assert jumps_taken(state) == [expected]

    def test_snapshots(self):
        params = start()
        tx = with_adam()
        state = tx.init(params)
        ones = jax.tree.map(jnp.ones_like, optax.tree.get(state, "snapshots"))
        state = optax.tree.set(state, introspect_step=jnp.int32(5), snapshots=ones)
        updates, state = tx.update(params, state, params)
        assert jumps_taken(state) == [1]
        jax.tree.map(lambda u, w: np.testing.assert_allclose(u, (w - 1) / 2, 1e-6), updates, params)


class TestMapParams:
    @pytest.mark.parametrize("name", WRAPPED)
    def test_snapshots_are_parameters_and_counters_are_not(self, name):
        tx = WRAPPED[name]
        state = tx.init(start())
        mapped = optax.tree.map_params(tx, lambda leaf: leaf + 1, state)
        assert jax.tree.structure(mapped) == jax.tree.structure(state)
        (ours,), (before,) = introspect_states(mapped), introspect_states(state)
        for found, old in zip(jax.tree.leaves(ours.snapshots), jax.tree.leaves(before.snapshots), strict=True):
            np.testing.assert_array_equal(found, old + 1)
        assert ours[0] == ours[2] == ours[3] == 0

    def test_with_a_tree_beside_the_parameters(self):
        """As for shardings: what belongs to each parameter, in the place of each snapshot of it."""
        tx = with_adam()
        names = {"a": "of a", "b": "of b"}
        mapped = optax.tree.map_params(
            tx, lambda leaf, name: name, tx.init(start()), names, transform_non_params=lambda leaf: None
        )
        (ours,) = introspect_states(mapped)
        assert ours == IntrospectState(None, (names,) * len(ours.snapshots), None, None)


class TestLog:
    def test_the_step_of_the_last_jump(self):
        """The last of the jump steps that have passed; a jump that was refused shows in its own counter."""
        jump_steps = (2, 5, 6)

        def last_jump(state):
            step = int(optax.tree.get(state, "introspect_step"))
            return max((t for t in jump_steps if t < step), default=None)

        # As each update does, a forecast adds one; but at step 5 it is no number.
        rule = forecaster(lambda now: jnp.where((now > 5) & (now < 6), jnp.nan, now + 1), (1.0,))
        tx = introspect(jump_steps, rule)
        params = jnp.array([0.5])
        state, log = tx.init(params), []
        for _ in range(8):
            taken, refused = int(state.jumps_taken), int(state.jumps_refused)
            updates, state = tx.update(jnp.ones(1), state, params)
            params = optax.apply_updates(params, updates)
            log.append((last_jump(state), int(state.jumps_taken) - taken, int(state.jumps_refused) - refused))
        assert log == [(None, 0, 0), (None, 0, 0), (2, 1, 0), (2, 0, 0), (2, 0, 0), (5, 0, 1), (6, 1, 0), (6, 0, 0)]
        assert params == 8.5
