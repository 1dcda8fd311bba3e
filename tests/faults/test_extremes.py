"""Numbers and sizes at which training goes wrong by itself: a jump makes none of it worse, and tells of it.

More of this is in `tests/optax_introspect`: forecasts that are not finite, and overflow of float16 (`TestRefusal`),
leaves that are empty or have no dimension (`TestTrees`), the last step that can be counted (`TestState`), and jumps
after it (`test_plan.py`).
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_introspect
from optax_introspect import WeightHistory, gaussian_noise, introspect, plan, polynomial, pretrained

LINE = polynomial(1, 2.0, points=(1.0, 0.5))  # w_2t = w_t + 2 (w_t - w_t/2)
JUMPS = (4, 8)  # snapshots are taken at 2 and 4
PARAMS = {"a": jnp.array([1.0, -2.0, 3.0]), "b": jnp.array([[0.5, 0.25]])}


def train(tx, params, updates, steps=10):
    """Returns all weights, and the last state, of training with updates that are a function of the step."""

    @jax.jit
    def step(update, state, params):
        update, state = tx.update(update, state, params)
        return optax.apply_updates(params, update), state

    state, weights = tx.init(params), [params]
    for number in range(steps):
        params, state = step(updates(number), state, params)
        weights.append(params)
    return weights, state


def steady(number, step=None, name="a", value=None):
    """Returns updates of a quarter, but for one number at one step."""
    del number
    update = jax.tree.map(lambda w: jnp.full_like(w, 0.25), PARAMS)
    if step is not None:
        update[name] = update[name].at[(0,) * update[name].ndim].set(value)
    return update


def spoiled(at, value):
    return lambda number: steady(number, number if number in at else None, value=value)


def counts(state):
    return int(state.jumps_taken), int(state.jumps_refused)


BAD = pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])


class TestNotFinite:
    @BAD
    @pytest.mark.parametrize("at", [1, 2, 3])
    def test_an_update_before_a_jump(self, bad, at):
        """It is applied as ever, at idle steps (1, 3) and at captures (2); no jump carries it on, or hides it."""
        found, state = train(introspect(JUMPS, LINE), PARAMS, spoiled({at}, bad))
        alone, _ = train(optax.identity(), PARAMS, spoiled({at}, bad))
        for with_jumps, without in zip(found, alone, strict=True):
            for name in PARAMS:
                np.testing.assert_array_equal(with_jumps[name], without[name])
        assert counts(state) == (0, 2)

    @BAD
    def test_an_update_at_a_jump(self, bad):
        """The jump takes its place."""
        found, state = train(introspect(JUMPS, LINE), PARAMS, spoiled({4}, bad))
        without, _ = train(introspect(JUMPS, LINE), PARAMS, steady)
        for with_it, expected in zip(found, without, strict=True):
            for name in PARAMS:
                np.testing.assert_array_equal(with_it[name], expected[name])
        assert counts(state) == (2, 0)

    def test_a_gradient_at_a_jump_stays_in_the_moments(self):
        """The base optimizer has seen it, so the step after is what it would be after any such gradient."""
        tx = optax.chain(optax.adam(0.1), introspect((4,), LINE))
        found, state = train(tx, PARAMS, spoiled({4}, np.nan), 6)
        assert np.all(np.isfinite(found[5]["a"]))
        assert np.isnan(found[6]["a"][0])
        assert np.all(np.isfinite(found[6]["a"][1:]))
        assert counts(state[-1]) == (1, 0)

    @BAD
    def test_a_weight_when_it_is_captured(self, bad):
        """The weight is mended before the jump, which still is refused; the next one doesn't look at that snapshot."""
        params = jax.tree.map(jnp.zeros_like, PARAMS)
        tx, state = introspect(JUMPS, LINE), None
        state, taken = tx.init(params), []
        for number in range(10):
            now = params | ({"a": params["a"].at[0].set(bad)} if number == 2 else {})
            update, state = jax.jit(tx.update)(steady(number), state, now)
            params = optax.apply_updates(params, update)
            taken.append(counts(state))
        assert taken[3:6] == [(0, 0), (0, 1), (0, 1)]
        assert taken[-1] == (1, 1)
        np.testing.assert_array_equal(params["a"], np.full(3, 8 * 0.25 + 2 * 4 * 0.25 + 0.25))

    def test_a_weight_that_is_not_forecast(self):
        params = PARAMS | {"b": jnp.array([[jnp.nan, 1.0]])}
        found, state = train(introspect(JUMPS, LINE, mask={"a": True, "b": False}), params, steady)
        assert counts(state) == (2, 0)
        assert np.all(np.isfinite(found[-1]["a"]))

    @pytest.mark.parametrize("snapshot_dtype", [jnp.float16, jnp.bfloat16])
    def test_a_weight_that_its_snapshot_has_no_number_for(self, snapshot_dtype):
        params = {"a": jnp.array([1e30, 1.0])}
        found, state = train(
            introspect(JUMPS, LINE, snapshot_dtype=snapshot_dtype), params, lambda number: {"a": jnp.zeros(2)}
        )
        # bfloat16 reaches as far as float32, but is as coarse as a hundredth; float16 ends at 65504.
        assert counts(state) == ((0, 2) if snapshot_dtype == jnp.float16 else (2, 0))
        np.testing.assert_allclose(found[-1]["a"], [1e30, 1.0], rtol=0.02)


class TestSizesOfNumbers:
    @pytest.mark.parametrize("forecaster", [LINE, pretrained(), polynomial(2, 1.25)], ids=["line", "network", "bent"])
    def test_a_weight_of_1e30(self, forecaster):
        """It is forecast like others, and they as if it were not there."""
        steps = np.linspace(0, 1, 11)[:, None]
        others = {"a": jnp.asarray((0.01 * np.arange(1, 30)), jnp.float32)}
        large = {"a": others["a"].at[17].set(1e30)}
        jumps = (10,)

        def growing(params):
            return lambda number: jax.tree.map(lambda w: 0.1 * w, params)

        with_it, state = train(introspect(jumps, forecaster), large, growing(large), 11)
        without, _ = train(introspect(jumps, forecaster), others, growing(others), 11)
        assert counts(state) == (1, 0)
        rest = np.arange(29) != 17
        np.testing.assert_allclose(with_it[-1]["a"][rest], without[-1]["a"][rest], rtol=1e-6)
        points = [1e30 * (1 + steps[round(10 * point)]) for point in forecaster.points]
        expected = forecaster(*(jnp.asarray(point, jnp.float32) for point in points), key=jax.random.key(0))
        np.testing.assert_allclose(with_it[-1]["a"][17], expected[0], rtol=1e-3)
        assert with_it[-1]["a"][17] != with_it[-2]["a"][17]

    def test_a_weight_that_the_network_has_no_number_for(self):
        """It sees the weights times 1000."""
        params = {"a": jnp.array([3e38, 1.0])}
        found, state = train(introspect((10,)), params, lambda number: {"a": jnp.full(2, 0.5)}, 12)
        assert counts(state) == (0, 1)
        np.testing.assert_array_equal(found[-1]["a"], np.float32([3e38, 7.0]))

    @pytest.mark.parametrize("forecaster", [LINE, pretrained()], ids=["line", "network"])
    def test_denormals(self, forecaster):
        """Snapshots keep them; in a forecast they may be zeros, but nothing more."""
        tiny = float(jnp.finfo(jnp.float32).tiny)
        values = np.array([1e-45, -1e-40, 0.9 * tiny, tiny, -0.0, 0.0], np.float32)
        params, tx = {"a": jnp.asarray(values)}, introspect((10,), forecaster)
        state = tx.init(params)
        for number in range(11):
            update, state = jax.jit(tx.update)({"a": jnp.zeros(6)}, state, params)
            if number == 9:
                kept = [np.asarray(snapshot["a"]) for snapshot in state.snapshots]
        assert counts(state) == (1, 0)
        taken = plan((10,), forecaster.points).captures
        assert sum(np.array_equal(array.view(np.int32), values.view(np.int32)) for array in kept) >= len(taken)
        nothing = jnp.zeros((len(forecaster.points), 1))
        moved = np.asarray(update["a"]) - np.asarray(forecaster(*nothing, key=jax.random.key(0)))
        assert np.all(np.abs(moved) <= 8 * tiny * 1000)


class TestSizesOfLeaves:
    @pytest.mark.parametrize("shape", [(2**31 + 7,), (50_000, 50_000), (2, 2**31)])
    @pytest.mark.parametrize("forecaster", [None, LINE, gaussian_noise(0.1, 0)], ids=["network", "polynomial", "noise"])
    @pytest.mark.parametrize("snapshot_dtype", [None, jnp.bfloat16])
    def test_more_elements_than_an_int32_counts(self, shape, forecaster, snapshot_dtype):
        """Nothing is computed: no array of a machine that runs tests has so many."""
        params = {"large": jax.ShapeDtypeStruct(shape, jnp.float32), "small": jax.ShapeDtypeStruct((), jnp.float32)}
        tx = introspect((10, 20), forecaster, snapshot_dtype=snapshot_dtype)
        state = jax.eval_shape(tx.init, params)
        updates, after = jax.eval_shape(tx.update, params, state, params)
        assert updates == params
        assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), after) == jax.tree.map(
            lambda leaf: (leaf.shape, leaf.dtype), state
        )
        number = int(np.prod([int(size) for size in shape], dtype=object)) + 1
        points = optax_introspect.pretrained().points if forecaster is None else forecaster.points
        schedule = plan((10, 20), points)
        bytes_of_a_weight = 4 if snapshot_dtype is None else 2
        assert schedule.nbytes(params, snapshot_dtype) == schedule.num_buffers * number * bytes_of_a_weight
        jax.jit(tx.update).lower(params, state, params)

    def test_a_history_of_more_weights_than_an_int32_counts(self, tmp_path):
        params = {"large": jax.ShapeDtypeStruct((2**31 + 7,), jnp.bfloat16), "small": jnp.zeros(3)}
        with WeightHistory.record(tmp_path, params):
            pass
        history = WeightHistory.open(tmp_path)
        assert history.num_weights == 2**31 + 10
        assert history.shapes == ((2**31 + 7,), (3,))
        assert history.steps.tolist() == []


class TestSteps:
    @pytest.mark.parametrize("step", [2**31 - 1, 2**31, 2**40])
    def test_jumps_that_can_never_be_counted_to(self, step):
        with pytest.raises(ValueError, match=str(step)):
            introspect((10, step), LINE)

    def test_after_the_last_step_nothing_is_captured_or_taken(self):
        """The counter stays where it is for ever; that step must not be made again and again."""
        last = 2**31 - 2
        params = {"w": jnp.array([1.0, 2.0])}
        tx = introspect((last // 2, last), LINE)
        state = tx.init(params)._replace(introspect_step=jnp.int32(2**31 - 1))
        before = state
        for _ in range(3):
            updates, state = jax.jit(tx.update)({"w": jnp.full(2, 0.5)}, state, params)
            np.testing.assert_array_equal(updates["w"], [0.5, 0.5])
        for now, then in zip(jax.tree.leaves(state), jax.tree.leaves(before), strict=True):
            np.testing.assert_array_equal(now, then)
