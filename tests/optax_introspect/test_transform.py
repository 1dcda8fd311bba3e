import collections
import dataclasses
import functools
import itertools
import re
from types import SimpleNamespace
from typing import Any

import flax.linen as nn
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from flax.training import train_state
from hypothesis import strategies as st

import optax_introspect
from optax_introspect import IntrospectState, gaussian_noise, introspect, introspection, plan, polynomial
from optax_introspect import forecast as forecast_module
from tests import oracle

TWO_POINT = polynomial(1, 1.3, points=(1.0, 0.4))
LINEAR = polynomial(1, 1.5)
DOUBLED = optax_introspect.forecaster(lambda now: 2 * now, (1.0,))
SHAPES = {"bf16": (3, 2), "c64": (2,), "f16": (), "f32": (4,)}
DTYPES = {"bf16": jnp.bfloat16, "c64": np.complex64, "f16": np.float16, "f32": np.float32}


def random_tree(rng):
    tree = {}
    for name, shape in SHAPES.items():
        values = rng.normal(size=shape)
        if name == "c64":
            values = values + 1j * rng.normal(size=shape)
        tree[name] = jnp.asarray(values, DTYPES[name])
    return tree


def copied(tree):
    """The leaves as NumPy arrays that outlive a donation."""
    return {name: np.array(leaf) for name, leaf in tree.items()}


def make_step(tx):
    def step(gradients, state, params):
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    return step


def train(tx, params, gradient, steps, wrap=jax.jit):
    """Returns `[w_0, ..., w_steps]` and the last state; `gradient` maps step and parameters to gradients."""
    step = wrap(make_step(tx))
    state, history = tx.init(params), [params]
    for n in range(steps):
        params, state = step(gradient(n, params), state, params)
        history.append(params)
    return history, state


def prescribed(shapes_of, seed=0):
    """Gradients that don't depend on the weights, another one at every step."""

    def gradient(n, params):
        del params
        rng = np.random.default_rng((seed, n))
        return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) + 0.5, leaf.dtype), shapes_of)

    return gradient


def bowl(n, params):
    """The gradient of a quadratic bowl with another curvature in every direction."""
    del n
    return jax.tree.map(lambda w: w * jnp.linspace(0.2, 2.0, w.size, dtype=w.dtype).reshape(w.shape), params)


def small_params():
    rng = np.random.default_rng(5)
    return {"b": jnp.asarray(rng.normal(size=3), jnp.float32), "w": jnp.asarray(rng.normal(size=(3, 2)), jnp.float32)}


def assert_same(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for (path, a), b in zip(jax.tree.leaves_with_path(actual), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype, jax.tree_util.keystr(path)
        np.testing.assert_array_equal(a, b, err_msg=jax.tree_util.keystr(path))


def assert_close(actual, expected, rtol=1e-6, atol=1e-6):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for (path, a), b in zip(jax.tree.leaves_with_path(actual), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype, jax.tree_util.keystr(path)
        np.testing.assert_allclose(oracle.widened(a), oracle.widened(b), rtol, atol, err_msg=jax.tree_util.keystr(path))


def introspect_state(state) -> IntrospectState:
    """The one in a state of nested transformations."""
    found = [
        leaf
        for leaf in jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, IntrospectState))
        if isinstance(leaf, IntrospectState)
    ]
    (only,) = found
    return only


def random_network(rng, num_points, hidden):
    """A network with random weights and biases, and the oracle's copy of them."""
    network = optax_introspect.IntrospectionNetwork(num_points, hidden, rngs=nnx.Rngs(0))
    kernels, biases = [], []
    for layer in network.layers[::2]:
        kernels.append(rng.normal(size=layer.kernel.shape).astype(np.float32) / 2)
        biases.append(rng.normal(size=layer.bias.shape).astype(np.float32) / 2)
        layer.kernel[...] = jnp.asarray(kernels[-1])
        layer.bias[...] = jnp.asarray(biases[-1])
    return network, tuple(kernels), tuple(biases)


PHASES = (hypothesis.Phase.generate, hypothesis.Phase.shrink)
BASES = {"sgd": optax.sgd(0.05), "momentum": optax.sgd(0.02, momentum=0.9), "adam": optax.adam(0.03)}
BASE_UPDATES = {name: jax.jit(base.update) for name, base in BASES.items()}


@st.composite
def forecasters(draw):
    """Draws a forecaster and what the oracle takes it for."""
    tenths = draw(st.sets(st.sampled_from((0, 10, 20, 25, 30, 40, 50, 60, 70, 75, 80)), max_size=4))
    if draw(st.booleans()):
        tenths |= {draw(st.integers(15, 85))}
    points = (1.0, *(hundredths / 100 for hundredths in sorted(tenths, reverse=True)))
    if draw(st.integers(0, 3)):
        degree = draw(st.integers(0, min(2, len(points) - 1)))
        ratio = draw(st.floats(1, 2))
        return polynomial(degree, ratio, points=points), oracle.Polynomial(degree, ratio, points)
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    network, kernels, biases = random_network(rng, len(points), draw(st.sampled_from([(3,), (2, 3)])))
    scale = draw(st.sampled_from([1.0, 1000.0]))
    return introspection(network, points=points, scale=scale), oracle.Network(kernels, biases, points, scale)


@st.composite
def schedules(draw, points):
    """Draws 1 to 7 jumps, often such that trajectory points of later ones are earlier ones."""
    possible = [t for t in range(1, 41) if len({oracle.nearest_step(point, t) for point in points}) == len(points)]
    jumps = draw(st.sets(st.sampled_from(possible), min_size=1, max_size=5))
    for _ in range(draw(st.integers(0, 2))):
        if len(points) > 1:
            later = draw(st.sampled_from(sorted(jumps)))
            jumps |= {oracle.nearest_step(draw(st.sampled_from(points[1:])), later)} & set(possible)
    return tuple(sorted(jumps))


class TestOracle:
    def test_every_weight_follows_from_the_whole_history(self):
        """Each next weight is computed anew from the recorded history, so that no difference builds up."""
        seen = collections.Counter()

        @hypothesis.settings(max_examples=300, deadline=None, derandomize=True, phases=PHASES)
        @hypothesis.given(st.data())
        def check(data):
            forecaster, expected_forecaster = data.draw(forecasters())
            jump_steps = data.draw(schedules(forecaster.points))
            name = data.draw(st.sampled_from(sorted(BASES)))
            snapshot_dtype = data.draw(st.sampled_from([None, None, jnp.bfloat16, np.float16, np.float32]))
            rng = np.random.default_rng(data.draw(st.integers(0, 10**6)))
            # A float16 weight that swings so far that forecasts of it overflow.
            swings = data.draw(st.booleans())
            period = data.draw(st.floats(10, 60))

            params = random_tree(rng)
            drift = random_tree(rng)
            base_state = BASES[name].init(params)
            tx = introspect(jump_steps, forecaster, snapshot_dtype=snapshot_dtype)
            state = tx.init(params)
            # Less effort on machine code halves the time; what XLA makes of the program stays the same.
            step = jax.jit(make_step(tx), donate_argnums=(1, 2), compiler_options={"xla_backend_optimization_level": 0})
            history, outcomes = [copied(params)], collections.Counter()
            for n in range(jump_steps[-1] + 3):
                noise = random_tree(rng)
                gradients = jax.tree.map(lambda d, e: np.asarray(d + e / 4), drift, noise)
                updates, base_state = BASE_UPDATES[name](gradients, base_state, params)
                if swings:
                    way = 4e4 * np.sin(2 * np.pi * n / period) - float(params["f16"])
                    updates["f16"] = jnp.asarray(np.clip(way, -6e4, 6e4), np.float16)
                expected = oracle.next_weights(
                    history, copied(updates), jump_steps, expected_forecaster, snapshot_dtype
                )
                hypothesis.assume(expected.outcome != "unclear")
                params, state = step(updates, state, params)
                history.append(copied(params))
                expected.check(history[-1])
                outcomes[expected.outcome] += 1
            assert int(state.jumps_taken) == outcomes["taken"]
            assert int(state.jumps_refused) == outcomes["refused"]
            assert outcomes["taken"] + outcomes["refused"] == len(jump_steps)
            assert int(state.introspect_step) == len(history) - 1

            read_by = {t: {oracle.nearest_step(point, t) for point in forecaster.points[1:]} for t in jump_steps}
            facts = {
                "examples": True,
                "a point is an earlier jump": any(set(jump_steps) & at for at in read_by.values()),
                "jumps overlap": any(min(read_by[t], default=t) < s < t for t in jump_steps for s in jump_steps),
                "a point is shared": sum(map(len, read_by.values())) > len(set().union(*read_by.values())),
                "scratch slot": plan(jump_steps, forecaster.points).scratch,
                "a jump is refused": outcomes["refused"] > 0,
                "five jumps or more": len(jump_steps) >= 5,
                f"base {name}": True,
                f"forecaster {type(forecaster).__name__}": True,
                f"snapshots {np.dtype(snapshot_dtype).name if snapshot_dtype else 'as they are'}": True,
            }
            for fact, holds in facts.items():
                seen[fact] += holds

        check()
        assert seen["examples"] >= 300
        assert seen["a point is an earlier jump"] >= 75
        assert seen["jumps overlap"] >= 75
        assert min(seen.values()) >= 10, seen

    @pytest.mark.parametrize(
        ("jump_steps", "points"),
        [
            ((10, 14, 20), (1.0, 0.7, 0.4, 0.0)),
            ((5, 7, 10), (1.0, 0.7, 0.4, 0.0)),
            ((10, 20, 40), (1.0, 0.5)),  # with a scratch slot
            ((5, 10, 20, 40), (1.0, 0.5, 0.25)),
            (tuple(range(8, 40, 3)), (1.0, 0.9, 0.5, 0.2)),
        ],
    )
    @pytest.mark.parametrize("name", ["momentum", "adam"])
    def test_in_a_chain_with_donated_arrays(self, name, jump_steps, points):
        """What the sharp test above checks, but compiled together with the base optimizer."""
        rng = np.random.default_rng(1)
        params = random_tree(rng)
        gradient = prescribed(params)
        base_state = BASES[name].init(params)
        tx = optax.chain(BASES[name], introspect(jump_steps, polynomial(1, 1.4, points=points)))
        state = tx.init(params)
        step = jax.jit(make_step(tx), donate_argnums=(1, 2))
        history, jumps = [copied(params)], 0
        for n in range(jump_steps[-1] + 2):
            gradients = gradient(n, params)
            updates, base_state = BASE_UPDATES[name](gradients, base_state, params)
            expected = oracle.next_weights(history, copied(updates), jump_steps, oracle.Polynomial(1, 1.4, points))
            params, state = step(gradients, state, params)
            history.append(copied(params))
            expected.check(history[-1])
            jumps += expected.outcome == "taken"
        assert jumps == len(jump_steps)
        assert int(state[1].jumps_taken) == jumps

    @pytest.mark.parametrize("kind", ["linear", "quadratic", "network"])
    def test_a_whole_run(self, kind):
        """Gradient descent that follows its own weights; nothing is restarted, so that differences may build up."""
        params = small_params()
        if kind == "network":
            network, kernels, biases = random_network(np.random.default_rng(2), 4, (5,))
            forecaster = introspection(network)
            expected_forecaster = oracle.Network(kernels, biases, forecaster.points, 1000.0)
        else:
            degree = {"linear": 1, "quadratic": 2}[kind]
            forecaster = polynomial(degree, 1.3)
            expected_forecaster = oracle.Polynomial(degree, 1.3, forecaster.points)
        curvature = {name: np.linspace(0.2, 2.0, w.size).reshape(w.shape) for name, w in params.items()}
        expected = oracle.descend(
            copied(params),
            lambda weights: {name: curvature[name] * w for name, w in weights.items()},
            0.05,
            30,
            (10, 14, 20),
            expected_forecaster,
        )
        tx = optax.chain(optax.sgd(0.05), introspect((10, 14, 20), forecaster))
        history, state = train(tx, params, bowl, 30)
        assert int(introspect_state(state).jumps_taken) == 3
        plain, _ = train(optax.sgd(0.05), params, bowl, 30)
        assert not np.allclose(plain[-1]["w"], history[-1]["w"], rtol=1e-2)
        for n, (actual, wanted) in enumerate(zip(history, expected, strict=True)):
            for name in params:
                np.testing.assert_allclose(actual[name], wanted[name], rtol=2e-4, atol=2e-6, err_msg=f"step {n}")


class TestState:
    def test_initial(self):
        params = small_params() | {"n": jnp.arange(3), "c": jnp.ones(2, jnp.complex64), "none": None}
        state = introspect((10, 20), LINEAR).init(params)
        assert state._fields == ("introspect_step", "snapshots", "jumps_taken", "jumps_refused")
        for counter in (state.introspect_step, state.jumps_taken, state.jumps_refused):
            assert isinstance(counter, jax.Array)
            assert counter.dtype == jnp.int32
            assert counter.shape == ()
            assert int(counter) == 0
        assert isinstance(state.snapshots, tuple)
        assert len(state.snapshots) == plan((10, 20), LINEAR.points).num_buffers == 4
        for snapshot in state.snapshots:
            assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), snapshot) == {
                "b": ((3,), jnp.float32),
                "w": ((3, 2), jnp.float32),
                "n": optax.MaskedNode(),
                "c": ((2,), jnp.complex64),
                "none": None,
            }
        pointers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves((params, state))]
        assert len(set(pointers)) == len(pointers)

    def test_step_counter_saturates(self):
        last = 2**31 - 2
        tx = introspect((last,), DOUBLED)
        params = {"w": jnp.array([1.0, -3.0])}
        state = tx.init(params)._replace(introspect_step=jnp.int32(last - 1))
        steps, found = [], []
        for _ in range(4):
            updates, state = tx.update({"w": jnp.ones(2)}, state, params)
            steps.append(int(state.introspect_step))
            found.append(np.asarray(updates["w"]).tolist())
        assert steps == [last, last + 1, last + 1, last + 1]
        assert found == [[1, 1], [1, -3], [1, 1], [1, 1]]
        assert int(state.jumps_taken) == 1

    def test_init_of_shapes(self):
        params = small_params()
        tx = introspect((10,), LINEAR)
        shapes = jax.eval_shape(tx.init, params)
        assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, tx.init(params))

    def test_one_transformation_for_several_trees(self):
        tx = introspect((3,), TWO_POINT)
        for params in (small_params(), {"z": jnp.ones(4)}):
            history, state = train(tx, params, prescribed(params), 5, wrap=lambda step: step)
            w_3, w_1, name = history[3], history[1], min(params)
            assert int(state.jumps_taken) == 1
            np.testing.assert_allclose(history[4][name], 1.5 * w_3[name] - 0.5 * w_1[name], rtol=1e-5, atol=1e-6)


class TestJump:
    @pytest.mark.parametrize("base", [optax.adam(0.1), optax.sgd(0.1, momentum=0.9)])
    def test_takes_the_place_of_one_update(self, base):
        params = small_params()
        gradient = prescribed(params)
        tx = optax.chain(base, introspect((4, 6), TWO_POINT))
        history, state = train(tx, params, gradient, 9, wrap=lambda step: step)
        plain, plain_state = train(base, params, gradient, 9, wrap=lambda step: step)
        assert_same(state[0], plain_state)
        assert int(state[1].introspect_step) == 9
        for n in range(9):
            moved = jax.tree.map(jnp.subtract, history[n + 1], history[n])
            ordinary = jax.tree.map(jnp.subtract, plain[n + 1], plain[n])
            if n in (4, 6):
                at = {4: 2, 6: 2}[n]  # 1.6 and 2.4
                expected = jax.tree.map(lambda now, before: (now - before) / 2, history[n], history[at])
                assert not np.allclose(moved["w"], ordinary["w"], rtol=0.1)
            else:
                expected = ordinary
            assert_close(moved, expected, atol=2e-6)

    def test_forecast_is_from_the_weights_before_the_update(self):
        """Not from `params + updates`, and snapshots neither."""
        seen = optax_introspect.forecaster(lambda now, before: 1000 * now + before, (1.0, 0.5))
        tx = introspect((4,), seen)
        params = {"w": jnp.array([1.0])}
        history, _ = train(tx, params, lambda n, _: {"w": jnp.array([float(n + 1)])}, 5)
        assert [float(w["w"][0]) for w in history] == [1, 2, 4, 7, 11, 11_004]

    def test_history_is_not_cleared_by_a_jump(self):
        history, state = train(introspect((4, 6), TWO_POINT), small_params(), prescribed(small_params()), 8)
        assert int(state.jumps_taken) == 2
        expected = jax.tree.map(lambda now, before: 1.5 * now - 0.5 * before, history[6], history[2])
        assert_close(history[7], expected, atol=1e-5)

    def test_goes_last(self):
        """Whatever the transformations before it make of the gradient, a jump leads to the forecast."""
        params = small_params()
        tx = optax.chain(optax.clip(0.1), optax.add_decayed_weights(0.1), optax.scale(-7.0), introspect((2,), DOUBLED))
        history, _ = train(tx, params, prescribed(params), 3)
        assert_close(history[3], jax.tree.map(lambda w: 2 * w, history[2]))

    def test_int_leaf_before_others_gets_its_own_update(self):
        params = {"a": jnp.arange(3), "b": jnp.ones(2), "c": jnp.array([True]), "d": jnp.full(2, 3.0)}
        updates = {"a": jnp.arange(3) + 5, "b": jnp.full(2, 0.1), "c": jnp.array([True]), "d": jnp.full(2, 0.2)}
        tx = introspect((1,), DOUBLED)
        state = tx.init(params)
        _, state = tx.update(updates, state, params)
        found, state = tx.update(updates, state, params)
        assert_same(found, updates | {"b": jnp.ones(2), "d": jnp.full(2, 3.0)})


def growing(bad):
    """Adds the difference to the step before, but gives `bad` for weights of more than 100."""
    return optax_introspect.forecaster(
        lambda now, before: jnp.where(now > 100, bad, 2 * now - before), points=(1.0, 0.5)
    )


class TestRefusal:
    @pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
    @pytest.mark.parametrize("leaf", ["f32", "bf16", "f16", "real", "imag", "scalar"])
    def test_one_bad_number_refuses_the_whole_jump(self, leaf, bad):
        """Also the snapshot of that same step is taken: the second jump reads it."""
        params = {
            "f32": jnp.array([1.0, 2.0, 3.0]),
            "bf16": jnp.array([[1.0, 2.0]], jnp.bfloat16),
            "f16": jnp.array([4.0, 5.0], jnp.float16),
            "c64": jnp.array([1 + 2j, 3 + 4j], jnp.complex64),
            "scalar": jnp.float32(1),
        }
        name = "c64" if leaf in ("real", "imag") else leaf
        large = {"real": 128.0, "imag": 128j}.get(leaf, 128.0)
        params[name] = params[name].at[(0,) * params[name].ndim].set(large)
        tx = introspect((4, 8), growing(bad))
        assert [c.step for c in plan((4, 8), (1.0, 0.5)).captures] == [2, 4]

        def updates(n, current):
            result = jax.tree.map(lambda w: jnp.full_like(w, 1.0), current)
            if n == 5:  # back to where forecasts are finite
                result[name] = result[name].at[(0,) * result[name].ndim].add(-large)
            return result

        history, state = train(tx, params, updates, 9)
        assert_same(history[5], jax.tree.map(jnp.add, history[4], updates(4, params)))
        assert int(state.jumps_refused) == 1
        assert int(state.jumps_taken) == 1
        expected = jax.tree.map(lambda now, before: (2 * now - before).astype(now.dtype), history[8], history[4])
        assert_close(history[9], expected)
        assert not np.array_equal(history[9][name], history[8][name] + 1)

    def test_refused_jumps_are_counted_one_by_one(self):
        tx = introspect((2, 4, 6), growing(np.nan))
        params = {"w": jnp.array([1.0, 200.0])}
        step = jax.jit(make_step(tx))
        state, counts = tx.init(params), []
        for n in range(8):
            params, state = step({"w": jnp.array([1.0, -150.0 if n == 4 else 0.5])}, state, params)
            counts.append((int(state.jumps_taken), int(state.jumps_refused)))
        assert counts == [(0, 0), (0, 0), (0, 1), (0, 1), (0, 2), (0, 2), (1, 2), (1, 2)]
        assert int(state.introspect_step) == 8

    def test_refused_and_then_the_last_slot_is_used_again(self):
        """The slot that a refused forecast was written to is not read as a snapshot later."""
        for jump_steps in [(4, 5, 8, 10), (4, 8, 16), (3, 6, 9, 12)]:
            forecaster = growing(np.inf)
            tx = introspect(jump_steps, forecaster)
            params = {"w": jnp.array([300.0, 2.0])}
            first = jump_steps[0]

            def updates(n, current, first=first):
                del current
                return {"w": jnp.array([-299.0 if n == first else 0.25, 0.25 + n / 8])}

            history, state = train(tx, params, updates, jump_steps[-1] + 1)
            assert int(state.jumps_refused) == 1
            assert int(state.jumps_taken) == len(jump_steps) - 1
            for t in jump_steps[1:]:
                before = history[oracle.nearest_step(0.5, t)]["w"]
                np.testing.assert_allclose(history[t + 1]["w"], 2 * history[t]["w"] - before, rtol=1e-6)

    def test_overflow_of_float16(self):
        """The forecast is a number in float32, but not in the dtype of the weight."""
        params = {"half": jnp.array([1.0, 4e4], jnp.float16), "single": jnp.array([1e5])}
        updates = {n: jnp.array([0.5, -2e4 if n == 1 else 0], jnp.float16) for n in range(4)}
        tx = introspect((1, 3), DOUBLED)
        history, state = train(tx, params, lambda n, _: {"half": updates[n], "single": jnp.array([1.0])}, 4)
        assert_same(history[2], {"half": jnp.array([2.0, 2e4], jnp.float16), "single": jnp.array([100_002.0])})
        assert_same(history[4], {"half": jnp.array([5.0, 4e4], jnp.float16), "single": jnp.array([200_006.0])})
        assert int(state.jumps_taken) == 1
        assert int(state.jumps_refused) == 1

    @pytest.mark.parametrize("dtype", [jnp.float32, jnp.complex64])
    def test_overflow_of_float32_where_the_displacement_is_finite(self, dtype):
        params = jnp.full(8, 2e38, dtype)
        history, state = train(introspect((1,), DOUBLED), params, lambda n, p: jnp.zeros_like(p), 3)
        assert (int(state.jumps_taken), int(state.jumps_refused)) == (0, 1)
        assert_same(history[-1], params)

    @pytest.mark.parametrize("snapshot_dtype", [None, jnp.float16, jnp.bfloat16, jnp.float32])
    def test_update_that_overflows(self, snapshot_dtype):
        """A forecast within float16, but further from the weight than float16 reaches."""
        params = {"w": jnp.array([-4e4], jnp.float16)}
        tx = introspect((1,), optax_introspect.forecaster(lambda now: -now, (1.0,)), snapshot_dtype=snapshot_dtype)
        history, state = train(tx, params, lambda n, _: {"w": jnp.array([32.0], jnp.float16)}, 3)
        assert int(state.jumps_taken) + int(state.jumps_refused) == 1
        sign = -1 if int(state.jumps_taken) else 1
        assert_close(history[2], {"w": sign * history[1]["w"] + (sign > 0) * jnp.float16(32)}, rtol=1e-3)

    def test_updates_narrower_than_weights_that_overflow(self):
        params = {"w": jnp.array([1e5, 1.0])}
        tx = introspect((1,), optax_introspect.forecaster(lambda now: -now, (1.0,)))
        history, state = train(tx, params, lambda n, _: {"w": jnp.array([1.0, 1.0], jnp.float16)}, 3)
        assert int(state.jumps_taken) + int(state.jumps_refused) == 1
        expected = -history[1]["w"] if int(state.jumps_taken) else history[1]["w"] + 1
        assert_close(history[2], {"w": expected})

    @pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
    def test_updates_narrower_than_weights_lead_to_the_forecast(self, dtype):
        params = {"w": jnp.array([1 / 3, -0.7])}
        tx = introspect((1,), optax_introspect.forecaster(lambda now: -now, (1.0,)))
        history, _ = train(tx, params, lambda n, _: {"w": jnp.array([0.125, 0.25], dtype)}, 3)
        assert_close(history[2], {"w": -history[1]["w"]})
        assert_close(history[3], {"w": history[2]["w"] + jnp.array([0.125, 0.25])})


class TestTrees:
    def test_no_params(self):
        tx = introspect((3,), TWO_POINT)
        state = tx.init(small_params())
        for call in (
            lambda: tx.update(small_params(), state),
            lambda: tx.update(small_params(), state, None),
            lambda: jax.jit(tx.update)(small_params(), state),
            lambda: optax.chain(optax.identity(), tx).update(small_params(), (optax.EmptyState(), state)),
        ):
            with pytest.raises(ValueError, match=r"needs them: call update\(updates, state, params\)"):
                call()

    @pytest.mark.parametrize(
        ("params", "message"),
        [
            ({"b": jnp.ones(3)}, r"leaf \['w'\] has shape none \(missing\), at init it had \(3, 2\)"),
            ({"b": jnp.ones(3), "w": None}, r"leaf \['w'\] has shape none \(missing\), at init it had \(3, 2\)"),
            ({"b": jnp.ones(4), "w": jnp.ones((3, 2))}, r"leaf \['b'\] has shape \(4,\), at init it had \(3,\)"),
            ({"b": jnp.ones(3), "w": jnp.ones((2, 3))}, r"leaf \['w'\] has shape \(2, 3\), at init it had \(3, 2\)"),
            ({"b": jnp.ones(()), "w": jnp.ones((3, 2))}, r"leaf \['b'\] has shape \(\), at init it had \(3,\)"),
            (
                {"b": jnp.ones(3), "w": jnp.ones((3, 2)), "z": jnp.ones(5)},
                r"leaf \['z'\] has shape \(5,\), at init it had none \(missing\)",
            ),
            (
                {"b": {"c": jnp.ones(3)}, "w": jnp.ones((3, 2))},
                r"leaf \['b'\] has shape none \(missing\), at init it had \(3,\)",
            ),
            ([jnp.ones(3), jnp.ones((3, 2))], r"leaf \['b'\] has shape none \(missing\), at init it had \(3,\)"),
            (jnp.ones(3), r"leaf at the root has shape \(3,\), at init it had none \(missing\)"),
        ],
    )
    def test_other_params_than_at_init(self, params, message):
        tx = introspect((3,), TWO_POINT)
        state = tx.init(small_params())
        for update in (tx.update, jax.jit(tx.update)):
            with pytest.raises(ValueError, match=f"differ from those that introspect was initialised with: {message}"):
                update(params, state, params)

    @pytest.mark.parametrize("snapshot_dtype", [None, jnp.float16])
    def test_params_of_another_dtype_than_at_init(self, snapshot_dtype):
        tx = introspect((3,), TWO_POINT, snapshot_dtype=snapshot_dtype)
        kept = {"w": jnp.ones(3, jnp.bfloat16)}
        state = optax.chain(introspect((3,), TWO_POINT)).init(kept)[0]
        params = {"w": jnp.ones(3)}
        would_be = "float16" if snapshot_dtype else "float32"
        message = rf"snapshots of leaf \['w'\] would be {would_be}, in the state they are bfloat16"
        with pytest.raises(ValueError, match=f"differ from those that introspect was initialised with: {message}"):
            tx.update(params, state, params)

    @pytest.mark.parametrize(
        "params",
        [
            {"n": jnp.arange(3), "flag": jnp.array(True), "key": jax.random.key(0)},
            {"n": np.arange(3)},
            {},
            {"none": None, "masked": optax.MaskedNode()},
        ],
    )
    def test_nothing_to_forecast(self, params):
        tx = introspect((3, 5), LINEAR)
        state = tx.init(params)
        assert jax.tree.leaves(state.snapshots) == []
        for _ in range(7):
            updates, state = jax.jit(tx.update)(params, state, params)
            assert_same_with_keys(updates, params)
        assert int(state.introspect_step) == 7
        assert int(state.jumps_refused) == 0

    def test_none_leaves(self):
        params = {"none": None, "w": jnp.ones(2), "list": [None, jnp.ones(3)]}
        history, state = train(introspect((2,), DOUBLED), params, lambda n, p: p, 3)
        assert_same(history[3], {"none": None, "w": jnp.full(2, 8.0), "list": [None, jnp.full(3, 8.0)]})
        assert int(state.jumps_taken) == 1

    @pytest.mark.parametrize("wrap", [jax.jit, lambda function: function])
    def test_updates_that_are_none(self, wrap):
        """As Equinox has them for weights that are not trained: those stay None, also at a jump."""
        params = {"frozen": jnp.ones(2), "w": jnp.full(3, 2.0)}
        tx = introspect((2,), DOUBLED)
        state, found = tx.init(params), []
        for _ in range(4):
            updates, state = wrap(tx.update)({"frozen": None, "w": jnp.ones(3)}, state, params)
            assert updates.keys() == {"frozen", "w"}
            assert updates["frozen"] is None
            found.append(float(updates["w"][0]))
        assert found == [1, 1, 2, 1]
        assert int(state.jumps_taken) == 1

    def test_masked(self):
        params = small_params()
        tx = optax.masked(introspect((2,), DOUBLED), {"b": True, "w": False})
        state = tx.init(params)
        assert state.inner_state.snapshots[0] == {"b": state.inner_state.snapshots[0]["b"], "w": optax.MaskedNode()}
        history, state = train(tx, params, lambda n, p: jax.tree.map(jnp.ones_like, p), 4)
        assert int(state.inner_state.jumps_taken) == 1
        assert_close(
            history[4],
            {"b": 2 * (params["b"] + 2) + 1, "w": params["w"] + 4},
        )

    @pytest.mark.parametrize("split", [optax.multi_transform, optax.partition])
    def test_a_transformation_for_each_group(self, split):
        params = {"fast": small_params(), "slow": small_params(), "other": small_params()}
        tx = split(
            {
                "fast": optax.chain(optax.sgd(0.1), introspect((2,), DOUBLED)),
                "slow": optax.chain(optax.sgd(0.01), introspect((3,), TWO_POINT)),
                "other": optax.sgd(0.05),
            },
            {"fast": "fast", "slow": "slow", "other": "other"},
        )
        history, _ = train(tx, params, bowl_of_bowls, 5)
        for name, base in (
            ("fast", optax.chain(optax.sgd(0.1), introspect((2,), DOUBLED))),
            ("slow", optax.chain(optax.sgd(0.01), introspect((3,), TWO_POINT))),
            ("other", optax.sgd(0.05)),
        ):
            alone, _ = train(base, params[name], bowl, 5)
            for together, expected in zip(history, alone, strict=True):
                assert_close(together[name], expected)

    def test_leaves_that_are_not_floating(self):
        """Integers, booleans and keys are left alone, and their updates handed on as they are, float0 too."""
        params = {
            "key": jax.random.key(3),
            "keys": jax.random.split(jax.random.key(1), 2),
            "n": jnp.arange(3),
            "byte": jnp.ones((2,), jnp.uint8),
            "flag": jnp.array([True, False]),
            "w": jnp.array([1.0, -2.0]),
        }
        tx = introspect((3,), DOUBLED)

        def loss(p):
            return jnp.sum(p["w"] ** 2) * p["n"][1] + jax.random.normal(p["key"]) + p["flag"][0] + p["byte"][0]

        @jax.jit
        def step(p, state):
            gradients = jax.grad(loss, allow_int=True)(p)
            assert {name for name, g in gradients.items() if g.dtype == jax.dtypes.float0} == p.keys() - {"w"}
            gradients["w"] *= -0.1
            updates, state = tx.update(gradients, state, p)
            for name in p.keys() - {"w"}:
                assert updates[name] is gradients[name]
            return p | {"w": p["w"] + updates["w"]}, state

        state = tx.init(params)
        for snapshot in state.snapshots:
            assert all(snapshot[name] == optax.MaskedNode() for name in params.keys() - {"w"})
            assert snapshot["w"].shape == (2,)
        w = params["w"]
        for n in range(5):
            params, state = step(params, state)
            w = 2 * w if n == 3 else 0.8 * w
            np.testing.assert_allclose(params["w"], w, rtol=1e-6)
        assert int(state.jumps_taken) == 1

    @pytest.mark.parametrize("kind", ["polynomial", "network", "noise"])
    def test_scalar_and_empty_leaves(self, kind):
        network, kernels, biases = random_network(np.random.default_rng(3), 4, (3,))
        forecaster = {"polynomial": LINEAR, "network": introspection(network), "noise": gaussian_noise(1.0, 0)}[kind]
        params = {
            "scalar": jnp.float32(2),
            "half": jnp.float16(2),
            "empty": jnp.zeros((0, 4)),
            "empty_complex": jnp.zeros((0,), jnp.complex64),
        }
        history, state = train(introspect((4,), forecaster), params, prescribed(params), 6)
        assert int(state.jumps_taken) == 1
        for weights in history:
            for name, leaf in params.items():
                assert weights[name].shape == leaf.shape
                assert weights[name].dtype == leaf.dtype
        for name, tolerance in (("scalar", 1e-5), ("half", 1e-2)):
            now = float(history[4][name])
            values = np.array([[float(history[n][name])] for n in (4, 3, 2, 0)])
            if kind == "noise":
                assert 1e-3 < abs(float(history[5][name]) - now) < 5
                continue
            if kind == "polynomial":
                (expected,) = oracle.Polynomial(1, 1.5, LINEAR.points)(values)[0]
            else:
                (expected,) = oracle.Network(kernels, biases, LINEAR.points, 1000.0)(values)[0]
            np.testing.assert_allclose(history[5][name], expected, rtol=tolerance, atol=tolerance)

    def test_complex_leaves_are_two_reals(self):
        bent = optax_introspect.forecaster(lambda now, before: jnp.maximum(now, 0) * 2 - before**2, (1.0, 0.0))
        parts = {"re": jnp.array([1.0, -2.0, 0.5]), "im": jnp.array([-0.5, 3.0, 0.25])}
        params = {"z": jax.lax.complex(parts["re"], parts["im"])}
        real, _ = train(introspect((3,), bent), parts, prescribed(parts), 6)

        def gradient(n, _):
            both = prescribed(parts)(n, parts)
            return {"z": jax.lax.complex(both["re"], both["im"])}

        history, state = train(introspect((3,), bent), params, gradient, 6)
        assert int(state.jumps_taken) == 1
        for found, expected in zip(history, real, strict=True):
            assert found["z"].dtype == jnp.complex64
            assert_close(found, {"z": jax.lax.complex(expected["re"], expected["im"])})

    def test_float64(self):
        """Weights of more precision than float32 keep it, but for their forecast."""
        with jax.enable_x64(True):
            params = {"w": jnp.array([1 / 3, -2 / 7]), "z": jnp.array([1 / 3 + 1j / 7])}
            assert params["w"].dtype == jnp.float64
            tx = introspect((2,), TWO_POINT)
            history, state = train(tx, params, lambda n, p: jax.tree.map(lambda w: w / 10, p), 4)
            assert int(state.jumps_taken) == 1
            assert state.introspect_step.dtype == jnp.int32
            assert_close(history[2], jax.tree.map(lambda w: w * 1.1**2, params), rtol=1e-14)
            expected = jax.tree.map(lambda now, before: 1.5 * now - 0.5 * before, history[2], history[1])
            assert_close(history[3], expected, rtol=3e-7)
            assert_close(history[4], jax.tree.map(lambda w: w * 1.1, history[3]), rtol=1e-14)

    def test_plain_numbers_and_numpy_arrays(self):
        params = {"w": np.array([1.0, 2.0], np.float32), "b": 0.5}
        tx = introspect((1,), DOUBLED)
        state = tx.init(params)
        updates = {"w": np.ones(2, np.float32), "b": jnp.float32(0.25)}
        _, state = tx.update(updates, state, params)
        updates, state = tx.update(updates, state, params)
        np.testing.assert_array_equal(updates["w"], [1, 2])
        assert float(updates["b"]) == 0.5


def bowl_of_bowls(n, params):
    return {name: bowl(n, tree) for name, tree in params.items()}


def assert_same_with_keys(actual, expected):
    """Like `assert_same`, for trees with PRNG keys."""

    def data(leaf):
        return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf

    assert_same(jax.tree.map(data, actual), jax.tree.map(data, jax.tree.map(jnp.asarray, expected)))


class TestSnapshotDtype:
    def test_differences_to_the_first_weights(self):
        """In a narrower dtype, far from 0, the weights themselves would not tell one step from the next."""
        params = {"wide": jnp.array([100.0, -300.0]), "narrow": jnp.array([1.0, 2.0], jnp.bfloat16)}
        tx = introspect((10,), polynomial(1, 2.0), snapshot_dtype=jnp.bfloat16)

        def drift(n, params):
            return jax.tree.map(lambda w: jnp.full_like(w, 0.01), params)

        history, state = train(tx, params, drift, 8)
        (first_slot,) = (c.slot for c in plan((10,)).captures if c.step == 0)
        for capture in plan((10,)).captures:
            kept = state.snapshots[capture.slot]
            expected = (
                params if capture.slot == first_slot else {"wide": history[capture.step]["wide"] - params["wide"]}
            )
            np.testing.assert_allclose(kept["wide"].astype(np.float32), expected["wide"], rtol=2**-8)
            np.testing.assert_array_equal(kept["narrow"], history[capture.step]["narrow"])
        history, _ = train(tx, params, drift, 12)
        # A straight line goes on as it was: ten steps more at once.
        np.testing.assert_allclose(history[11]["wide"] - history[10]["wide"], 0.1, rtol=0.03)

    def test_without_the_first_weights_they_are_kept_as_they_are(self):
        params = {"w": jnp.array([100.0, -300.0])}
        tx = introspect((10,), TWO_POINT, snapshot_dtype=jnp.bfloat16)
        history, state = train(tx, params, prescribed(params), 8)
        (capture,) = plan((10,), TWO_POINT.points).captures
        np.testing.assert_array_equal(
            state.snapshots[capture.slot]["w"], history[capture.step]["w"].astype(jnp.bfloat16)
        )

    @pytest.mark.parametrize("snapshot_dtype", [jnp.bfloat16, "bfloat16", np.float16, np.dtype("float16")])
    def test_dtype_and_result(self, snapshot_dtype):
        params = random_tree(np.random.default_rng(0))
        gradient = prescribed(params)
        tx = introspect((6, 10), TWO_POINT, snapshot_dtype=snapshot_dtype)
        for snapshot in tx.init(params).snapshots:
            found = {name: leaf.dtype for name, leaf in snapshot.items()}
            assert found == dict.fromkeys(params, snapshot_dtype) | {"c64": jnp.complex64}
        history, state = train(tx, params, gradient, 12)
        exact, _ = train(introspect((6, 10), TWO_POINT), params, gradient, 12)
        assert int(state.jumps_taken) == 2
        assert {name: leaf.dtype for name, leaf in state.snapshots[0].items()} == found
        for one, other in zip(history, exact, strict=True):
            assert_close(one, other, rtol=0.05, atol=0.2)
        assert_same(history[6], exact[6])
        moved, exactly = history[7]["f32"] - history[6]["f32"], exact[7]["f32"] - exact[6]["f32"]
        np.testing.assert_allclose(moved, exactly, rtol=0.02, atol=0.02)
        assert not np.array_equal(moved, exactly)

    def test_float32_snapshots_of_narrow_weights(self):
        params = {"w": jnp.ones(3, jnp.bfloat16)}
        tx = introspect((4,), LINEAR, snapshot_dtype=jnp.float32)
        assert tx.init(params).snapshots[0]["w"].dtype == jnp.float32
        history, _ = train(tx, params, prescribed(params), 6)
        narrow, _ = train(introspect((4,), LINEAR), params, prescribed(params), 6)
        assert history[-1]["w"].dtype == jnp.bfloat16
        assert_close(history[-1], narrow[-1], rtol=0.02)

    @pytest.mark.parametrize("snapshot_dtype", [jnp.int32, "int8", bool, jnp.complex64, np.uint8])
    def test_not_floating(self, snapshot_dtype):
        with pytest.raises(ValueError, match=r"snapshot_dtype must be a floating dtype, such as .*, or None; got "):
            introspect((10,), LINEAR, snapshot_dtype=snapshot_dtype)

    @pytest.mark.parametrize("snapshot_dtype", ["float33", 3, object()])
    def test_no_dtype_at_all(self, snapshot_dtype):
        with pytest.raises(ValueError, match=r"snapshot_dtype must be a floating dtype, such as .*, or None; got "):
            introspect((10,), LINEAR, snapshot_dtype=snapshot_dtype)


class TestArguments:
    @pytest.mark.parametrize("jump_steps", [(), (0,), (1.5,), (5, 5), "5", 5])
    def test_jump_steps(self, jump_steps):
        with pytest.raises(ValueError, match="jump steps must be increasing integers from 1 to"):
            introspect(jump_steps, LINEAR)

    def test_jump_too_early_for_the_points_of_the_forecaster(self):
        with pytest.raises(ValueError, match=r"jump step 2 is too early: its trajectory points 0\.7 and 0\.4 both"):
            introspect((2,), LINEAR)
        introspect((2,), TWO_POINT)

    @pytest.mark.parametrize("forecaster", [3, "mnist-n0", jnp.maximum, (1.0, 0.7), object()])
    def test_no_forecaster(self, forecaster):
        with pytest.raises(TypeError, match=r"a forecaster is a callable with trajectory points, such as .*; got "):
            introspect((10,), forecaster)

    @pytest.mark.parametrize(
        ("function", "points"),
        [
            (lambda now: now, (1.0, 0.5)),
            (lambda now, a, b: now, (1.0, 0.5)),
            (lambda: 1.0, (1.0,)),
        ],
    )
    def test_another_number_of_arguments(self, function, points):
        for make in (optax_introspect.forecaster, Own):
            with pytest.raises(ValueError, match=f"cannot be called with {len(points)} arrays, its points .1.0"):
                introspect((10,), make(function, points))

    @pytest.mark.parametrize(
        ("function", "given"),
        [
            (lambda now, a: jnp.sum(now), r"\(\)"),
            (lambda now, a: now.T, r"\(2, 3\)"),
            (lambda now, a: now.reshape(-1), r"\(6,\)"),
            (lambda now, a: now[:1], r"\(1, 2\)"),
            (lambda now, a: jnp.stack([now, a]), r"\(2, 3, 2\)"),
            (lambda now, a: (now, a), r"\("),
            (lambda now, a: None, "None"),
            (lambda now, a: 1.0, "float32"),
        ],
    )
    def test_another_shape(self, function, given):
        message = rf"a forecast must have the shape of the weights; for \(3, 2\) the forecaster gave .*{given}"
        for make in (optax_introspect.forecaster, Own):
            with pytest.raises(ValueError, match=message):
                introspect((10,), make(function, (1.0, 0.5)))

    @pytest.mark.parametrize("points", [(), (0.5,), (1.0, 1.0), (1.0, -0.5), (1.0, float("nan"))])
    def test_bad_points(self, points):
        for make in (optax_introspect.forecaster, Own):
            with pytest.raises(ValueError, match="trajectory points must be decreasing fractions"):
                introspect((10,), make(lambda *weights: weights[0], points))

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    @pytest.mark.parametrize("name", ["kernel", "bias"])
    def test_network_that_is_not_finite(self, name, bad):
        network = optax_introspect.IntrospectionNetwork(rngs=nnx.Rngs(0))
        parameter = getattr(network.layers[0], name)
        parameter[...] = parameter[...].at[..., 1].set(bad)
        with pytest.raises(ValueError, match=rf"weights of the network must be finite; .*'{name}'.* is not"):
            introspect((10,), introspection(network))

    def test_own_forecaster(self):
        """Any callable with points will do, and it gets float32 and a key."""
        seen = []

        def function(now, before):
            seen.append((now.dtype, now.shape, before.dtype, before.shape))
            return 2 * now - before

        params = random_tree(np.random.default_rng(0))
        history, state = train(introspect((4,), Own(function, (1.0, 0.5))), params, prescribed(params), 6)
        assert int(state.jumps_taken) == 1
        expected = jax.tree.map(lambda now, before: 2 * now - before, history[4], history[2])
        assert_close(history[5], expected, rtol=0.02, atol=0.02)
        assert {dtype for call in seen for dtype in call[::2]} == {jnp.dtype("float32")}
        assert {call[1] for call in seen} >= set(SHAPES.values())

    def test_extra_arguments(self):
        params = small_params()
        plain = introspect((1,), DOUBLED)
        chained = optax.chain(optax.sgd(0.1), plain, optax.identity())
        assert isinstance(plain, optax.GradientTransformationExtraArgs)
        for tx in (plain, chained):
            state = tx.init(params)
            extra, _ = tx.update(params, state, params, value=1.0, grad=params, anything="else")
            assert_same(extra, tx.update(params, state, params)[0])


class Own:
    """A forecaster made without the library, and that cannot be hashed."""

    __hash__ = None

    def __init__(self, function, points):
        self.function = function
        self.points = points

    def __call__(self, *weights, key):
        assert jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
        return self.function(*weights)


def member(tree, i):
    return jax.tree.map(lambda leaf: leaf[i], tree)


class TestWithOptaxAndJax:
    @pytest.mark.parametrize("map_params", [optax.tree_utils.tree_map_params, optax.tree.map_params])
    def test_map_params(self, map_params):
        """The snapshots are found to be parameters, each of the shape of its own."""
        params = small_params()
        tx = optax.chain(optax.adam(0.1), introspect((10, 14), LINEAR))
        state = tx.init(params)
        buffers = plan((10, 14), LINEAR.points).num_buffers
        mapped = map_params(tx, lambda leaf: leaf + 1, state)
        assert jax.tree.structure(mapped) == jax.tree.structure(state)
        assert_same(mapped[1].snapshots, (jax.tree.map(jnp.ones_like, params),) * buffers)
        assert int(mapped[1].introspect_step) == 0
        assert int(mapped[1].jumps_taken) == 0
        assert int(mapped[1].jumps_refused) == 0

        names = map_params(
            tx, lambda _, name: name, state, {"b": "B", "w": "W"}, transform_non_params=lambda leaf: "no"
        )
        assert names[1] == IntrospectState("no", ({"b": "B", "w": "W"},) * buffers, "no", "no")

    def test_map_params_with_leaves_that_are_not_forecast(self):
        params = small_params() | {"n": jnp.arange(3)}
        tx = introspect((10,), LINEAR)
        names = optax.tree.map_params(
            tx,
            lambda _, name: name,
            tx.init(params),
            {"b": "B", "n": "N", "w": "W"},
            is_leaf=lambda node: isinstance(node, optax.MaskedNode),
        )
        assert names.snapshots[0] in ({"b": "B", "n": optax.MaskedNode(), "w": "W"}, {"b": "B", "n": "N", "w": "W"})
        mapped = optax.tree.map_params(tx, lambda leaf: leaf + 1, tx.init(params))
        assert_same(mapped.snapshots[0]["w"], jnp.ones((3, 2)))

    def test_tree_get(self):
        """No name of the state collides with those of other states."""
        tx = optax.chain(optax.adam(0.1), optax.scale_by_schedule(lambda n: 1.0), introspect((1,), DOUBLED))
        _, state = train(tx, small_params(), bowl, 3)
        assert int(optax.tree_utils.tree_get(state, "introspect_step")) == 3
        assert int(optax.tree_utils.tree_get(state, "jumps_taken")) == 1
        assert optax.tree_utils.tree_get(state, "mu") is state[0][0].mu

    @pytest.mark.parametrize("kind", ["polynomial", "network", "noise"])
    def test_eager_equals_jitted(self, kind):
        network, _, _ = random_network(np.random.default_rng(3), 4, (5,))
        forecaster = {"polynomial": LINEAR, "network": introspection(network), "noise": gaussian_noise(0.1, 0)}[kind]
        params = small_params()
        tx = optax.chain(optax.adam(0.05), introspect((5, 7, 10), forecaster))
        eager, eager_state = train(tx, params, bowl, 12, wrap=lambda step: step)
        jitted, jitted_state = train(tx, params, bowl, 12)
        assert_close(eager, jitted, rtol=1e-5, atol=1e-6)
        assert_close(eager_state, jitted_state, rtol=1e-5, atol=1e-6)
        assert int(eager_state[1].jumps_taken) == 3

    def test_scan(self):
        params = small_params()
        tx = optax.chain(optax.adam(0.05), introspect((5, 7, 10), LINEAR))
        step = make_step(tx)

        def body(carry, n):
            weights, state = step(bowl(n, carry[0]), carry[1], carry[0])
            return (weights, state), weights

        (_, state), history = jax.lax.scan(body, (params, tx.init(params)), jnp.arange(14))
        expected, expected_state = train(tx, params, bowl, 14)
        for n in range(14):
            assert_close(member(history, n), expected[n + 1], rtol=1e-5)
        assert_close(state, expected_state, rtol=1e-5)
        assert int(state[1].jumps_taken) == 3

    def test_vmap_over_an_ensemble(self):
        """One member's jump may be refused and the others' taken."""
        rng = np.random.default_rng(0)
        ensemble = {"w": jnp.asarray(rng.normal(size=(3, 4)), jnp.float32), "n": jnp.arange(3)}
        ensemble["w"] = ensemble["w"].at[1, 0].set(300.0)
        tx = introspect((4, 6), growing(np.nan))
        step = jax.jit(jax.vmap(make_step(tx)))
        gradients = {"w": jnp.full((3, 4), 0.25), "n": jnp.zeros(3, jnp.int32)}
        params, state = ensemble, jax.vmap(tx.init)(ensemble)
        for _ in range(8):
            params, state = step(gradients, state, params)
        assert state.jumps_taken.tolist() == [2, 0, 2]
        assert state.jumps_refused.tolist() == [0, 2, 0]
        assert state.introspect_step.tolist() == [8, 8, 8]
        for i in range(3):
            alone, alone_state = train(tx, member(ensemble, i), lambda n, p: member(gradients, 0), 8)
            assert_close(member(params, i), alone[-1])
            assert_close(member(state, i), alone_state)

    def test_donation(self):
        """Everything that is donated is used; a warning, here an error, would say otherwise."""
        params = jax.tree.map(jnp.copy, small_params()) | {"n": jnp.arange(3), "z": jnp.ones(2, jnp.complex64)}
        tx = introspect((5, 7, 10), LINEAR)
        step = jax.jit(make_step(tx), donate_argnums=(1, 2))
        gradients = jax.tree.map(lambda leaf: jnp.ones_like(leaf) * 2, params)
        state = tx.init(params)
        kept, _ = train(tx, params, lambda n, p: gradients, 12)
        for n in range(12):
            old = jax.tree.leaves((params, state))
            params, state = step(gradients, state, params)
            assert all(leaf.is_deleted() for leaf in old)
            assert_close(params, kept[n + 1])
        assert int(state.jumps_taken) == 3

    def test_gradient_accumulation(self):
        """With `optax.MultiSteps` the steps are those of the weights, not those of the gradients."""
        params = small_params()
        tx = optax.chain(optax.adam(0.05), introspect((3,), TWO_POINT))
        history, _ = train(optax.MultiSteps(tx, 2).gradient_transformation(), params, bowl, 12)
        expected, _ = train(tx, params, bowl, 6)
        for n, weights in enumerate(history):
            assert_close(weights, expected[n // 2], rtol=1e-5)

    def test_no_compilation_at_a_jump(self):
        tx = optax.chain(optax.adam(0.05), introspect((5, 7, 10), LINEAR))
        params = small_params()
        step, state = jax.jit(make_step(tx)), tx.init(params)
        for n in range(12):
            params, state = step(bowl(n, params), state, params)
        assert step._cache_size() == 1


class TestWithFlax:
    def test_nnx_optimizer(self):
        class Model(nnx.Module):
            def __init__(self):
                self.first = nnx.Linear(3, 8, rngs=nnx.Rngs(0))
                self.second = nnx.Linear(8, 2, rngs=nnx.Rngs(1))

            def __call__(self, x):
                return self.second(nnx.tanh(self.first(x)))

        x = jax.random.normal(jax.random.key(0), (16, 3))
        y = jnp.sin(x[:, :2])
        tx = optax.chain(optax.adam(0.05), introspect((5, 7, 10), TWO_POINT))
        model = Model()
        optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
        graph, initial = nnx.split(model)

        @nnx.jit
        def nnx_step(model, optimizer):
            gradients = nnx.grad(lambda m: jnp.mean((m(x) - y) ** 2))(model)
            optimizer.update(model, gradients)

        def gradient(n, params):
            return jax.grad(lambda p: jnp.mean((nnx.merge(graph, p)(x) - y) ** 2))(params)

        history, state = train(tx, nnx.to_pure_dict(initial), lambda n, p: pure(gradient(n, unpure(initial, p))), 12)
        for n in range(12):
            nnx_step(model, optimizer)
            assert_close(nnx.to_pure_dict(nnx.state(model, nnx.Param)), history[n + 1], rtol=1e-4, atol=1e-5)
        assert int(optimizer.opt_state[1].jumps_taken[...]) == 3
        assert int(optimizer.opt_state[1].introspect_step[...]) == 12
        assert_close(nnx.to_pure_dict(optimizer.opt_state[1].snapshots[0]), state[1].snapshots[0], rtol=1e-4, atol=1e-5)

    def test_linen_train_state(self):
        model = nn.Sequential([nn.Dense(8), nn.tanh, nn.Dense(2)])
        x = jax.random.normal(jax.random.key(0), (16, 3))
        y = jnp.sin(x[:, :2])
        variables = model.init(jax.random.key(1), x)
        tx = optax.chain(optax.adam(0.05), introspect((5, 7, 10), TWO_POINT))
        state = train_state.TrainState.create(apply_fn=model.apply, params=variables["params"], tx=tx)

        def gradient(n, params):
            return jax.grad(lambda p: jnp.mean((model.apply({"params": p}, x) - y) ** 2))(params)

        @jax.jit
        def step(state):
            return state.apply_gradients(grads=gradient(0, state.params))

        history, plain_state = train(tx, variables["params"], gradient, 12)
        for n in range(12):
            state = step(state)
            assert_close(state.params, history[n + 1], rtol=1e-4, atol=1e-5)
        assert int(state.opt_state[1].jumps_taken) == 3
        assert_close(state.opt_state[1], plain_state[1], rtol=1e-4, atol=1e-5)


def pure(state):
    return nnx.to_pure_dict(state)


def unpure(state, values):
    result = jax.tree.map(lambda leaf: leaf, state)
    nnx.replace_by_pure_dict(result, values)
    return result


WIDTHS = (784, 2048, 2048, 2048, 10)  # 10 M weights


def mlp_loss(params, x, y):
    for layer in params[:-1]:
        x = jax.nn.relu(x @ layer["w"] + layer["b"])
    logits = x @ params[-1]["w"] + params[-1]["b"]
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, y))


def compiled_step(tx):
    """A training step of a network of 10 M weights with everything donated, compiled and never run."""
    params = [
        {"w": jax.ShapeDtypeStruct((i, o), jnp.float32), "b": jax.ShapeDtypeStruct((o,), jnp.float32)}
        for i, o in itertools.pairwise(WIDTHS)
    ]

    def step(params, state, x, y):
        gradients = jax.grad(mlp_loss)(params, x, y)
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    x = jax.ShapeDtypeStruct((32, WIDTHS[0]), jnp.float32)
    y = jax.ShapeDtypeStruct((32,), jnp.int32)
    state = jax.eval_shape(tx.init, params)
    return params, jax.jit(step, donate_argnums=(0, 1)).lower(params, state, x, y).compile()


BASES_FOR_MEMORY = {"sgd": optax.sgd(1e-3), "adam": optax.adam(1e-3)}


@pytest.fixture(scope="module")
def memory_alone():
    return {name: compiled_step(base)[1].memory_analysis() for name, base in BASES_FOR_MEMORY.items()}


class TestMemory:
    @pytest.mark.parametrize("base", BASES_FOR_MEMORY)
    @pytest.mark.parametrize(
        ("jump_steps", "points"),
        [((3000, 4000, 5000), (1.0, 0.7, 0.4, 0.0)), ((10, 20, 40), (1.0, 0.5))],
    )
    @pytest.mark.parametrize("kind", ["polynomial", "network"])
    def test_no_more_than_the_snapshots(self, memory_alone, base, kind, jump_steps, points):
        if kind == "polynomial":
            forecaster = polynomial(1, 1.3, points=points)
        else:
            network = optax_introspect.IntrospectionNetwork(len(points), rngs=nnx.Rngs(0))
            forecaster = introspection(network, points=points)
        params, compiled = compiled_step(optax.chain(BASES_FOR_MEMORY[base], introspect(jump_steps, forecaster)))
        analysis, alone = compiled.memory_analysis(), memory_alone[base]
        assert sum(leaf.size for leaf in jax.tree.leaves(params)) > 10_000_000
        # XLA schedules the step of plain SGD less tightly; another gradient may be alive for a while.
        assert analysis.temp_size_in_bytes < alone.temp_size_in_bytes + (2e6 if base == "sgd" else 1e5)
        snapshots = plan(jump_steps, points).nbytes(params)
        assert snapshots > 40e6
        assert abs(analysis.argument_size_in_bytes - alone.argument_size_in_bytes - snapshots) < 1e4
        # All of the old state is written over by the new.
        assert analysis.output_size_in_bytes - analysis.alias_size_in_bytes < 1e4

    @pytest.mark.parametrize("snapshot_dtype", [None, jnp.bfloat16])
    @pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
    def test_a_jump_needs_none_however_many_weights(self, dtype, snapshot_dtype):
        """Without a backward pass, whose gradients would hide what a jump needs."""

        def update(gradients, params, state):
            updates, state = tx.update(gradients, state, params)
            return optax.apply_updates(params, updates), state

        tx = introspect((10, 20, 30), snapshot_dtype=snapshot_dtype)
        # Arrays of one shape must not share constants, which XLA would then write down as large as the arrays.
        shapes = [(2000, 2000)] * 2 + [(88, 352)] * 6 + [(2000,)]
        params = [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]
        lowered = jax.jit(update, donate_argnums=(1, 2)).lower(params, params, jax.eval_shape(tx.init, params))
        assert lowered.compile().memory_analysis().temp_size_in_bytes < 1e6


class TestManyArrays:
    @pytest.mark.parametrize(("most", "worth_it"), [(2, 100), (0, 8), (1, 7), (2, 8)])
    def test_only_the_largest_are_written_out(self, most, worth_it, monkeypatch):
        """A tree of so many arrays that some are evaluated in the compact form, and large ones among them."""
        monkeypatch.setattr(forecast_module, "_WRITTEN_OUT_FROM", 6)
        monkeypatch.setattr(forecast_module, "_MOST_WRITTEN_OUT", most)
        monkeypatch.setattr(forecast_module, "_WORTH_IT_FROM", worth_it)
        rng = np.random.default_rng(0)
        params = {f"w{size}": jnp.asarray(rng.normal(size=size), jnp.float32) for size in (3, 9, 7, 8, 5, 6)}
        network, kernels, biases = random_network(rng, 4, (5,))
        tx = introspect((10, 14), introspection(network))
        given = introspection(network)
        forms = forecast_module.forecaster_of_arrays(given, list(params.values()))
        assert [form is given for form in forms] == [False, True, worth_it == 7, True, False, False]
        gradient = prescribed(params)
        history, state = train(tx, params, gradient, 16)
        assert int(state.jumps_taken) == 2
        expected_forecaster = oracle.Network(kernels, biases, (1.0, 0.7, 0.4, 0.0), 1000.0)
        for n in (10, 14):
            expected = oracle.next_weights(
                [copied(weights) for weights in history[: n + 1]],
                copied(gradient(n, history[n])),
                (10, 14),
                expected_forecaster,
            )
            assert expected.outcome == "taken"
            expected.check(history[n + 1])


MASKS = {
    "tree": {"embedding": {"w": False, "b": False}, "rest": [True, False]},
    "prefix": {"embedding": False, "rest": [True, False]},
    "numpy": {"embedding": np.False_, "rest": [np.True_, np.False_]},
    "function": lambda params: {"embedding": False, "rest": [leaf.ndim > 1 for leaf in params["rest"]]},
}


class TestMask:
    def test_a_module_of_booleans_that_can_be_called(self):
        @jax.tree_util.register_dataclass
        @dataclasses.dataclass
        class Model:
            w: Any
            b: Any

            def __call__(self, x):
                return x @ self.w + self.b

        params = Model(jnp.ones((2, 2)), jnp.ones(2))
        assert plan((10,)).nbytes(params, mask=Model(False, True)) == 3 * 2 * 4

    @pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
    def test_others_are_trained_as_ever_and_no_snapshots_are_kept(self, mask):
        params = {
            "embedding": {"w": jnp.ones((3, 2)), "b": jnp.ones(2)},
            "rest": [jnp.full((2, 5), 2.0), jnp.arange(4.0)],
        }
        tx = introspect((6, 10), LINEAR, mask=mask)
        state = tx.init(params)
        assert [leaf.shape for leaf in jax.tree.leaves(state.snapshots[0])] == [(2, 5)]
        nbytes = plan((6, 10)).nbytes(params, mask=mask)
        assert nbytes == sum(leaf.nbytes for leaf in jax.tree.leaves(state.snapshots)) > 0
        gradient = prescribed(params)
        history, state = train(tx, params, gradient, 12)
        everything, _ = train(introspect((6, 10), LINEAR), params, gradient, 12)
        plain, _ = train(optax.identity(), params, gradient, 12)
        assert int(state.jumps_taken) == 2
        for found, all_jump, none in zip(history, everything, plain, strict=True):
            assert_same(found["rest"][:1], all_jump["rest"][:1])
            assert_same(found["embedding"], none["embedding"])
            assert_same(found["rest"][1:], none["rest"][1:])
        assert not np.array_equal(history[-1]["rest"][0], plain[-1]["rest"][0])

    @pytest.mark.parametrize(
        ("mask", "message"),
        [
            ({"a": True}, "structure of params"),
            ({"a": True, "b": True, "c": True}, "structure of params"),
            ({"a": [True, False], "b": True}, "structure of params"),
            ({"a": 1, "b": True}, "got the leaf 1"),
            ({"a": jnp.array(True), "b": True}, "got the leaf"),
            (lambda params: {"a": "yes", "b": True}, "got the leaf 'yes'"),
            ("all", "got the leaf 'all'"),
        ],
    )
    def test_masks_that_do_not_fit(self, mask, message):
        params = {"a": jnp.ones(3), "b": jnp.ones(2)}
        with pytest.raises(ValueError, match=rf"mask must be a tree of booleans.*{message}"):
            introspect((10,), LINEAR, mask=mask).init(params)
        with pytest.raises(ValueError, match=rf"mask must be a tree of booleans.*{message}"):
            plan((10,)).nbytes(params, mask=mask)


class TestMemoryKind:
    @pytest.mark.parametrize("snapshot_dtype", [None, jnp.bfloat16])
    @pytest.mark.parametrize("forecaster", [LINEAR, TWO_POINT, None], ids=["linear", "two-point", "network"])
    def test_the_same_weights_from_the_memory_of_the_host(self, forecaster, snapshot_dtype):
        params = {"w": jnp.linspace(-1, 1, 12).reshape(3, 4), "b": jnp.ones(3, jnp.bfloat16), "n": jnp.arange(3)}
        tx = introspect((6, 10, 14), forecaster, snapshot_dtype=snapshot_dtype, memory_kind="pinned_host")
        here = introspect((6, 10, 14), forecaster, snapshot_dtype=snapshot_dtype)
        *others, last = jax.jit(tx.init)(params).snapshots
        assert len(others) >= 2
        assert {leaf.sharding.memory_kind for leaf in jax.tree.leaves(others)} == {"pinned_host"}
        assert {leaf.sharding.memory_kind for leaf in jax.tree.leaves(last)} == {"device"}
        gradient = prescribed(params)
        history, state = train(tx, params, gradient, 16)
        expected, _ = train(here, params, gradient, 16)
        assert int(state.jumps_taken) == 3
        for one, other in zip(history, expected, strict=True):
            assert_same(one, other)
        assert {leaf.sharding.memory_kind for leaf in jax.tree.leaves(state.snapshots[:-1])} == {"pinned_host"}

    def test_an_idle_step_moves_nothing(self):
        """All that leaves or enters the memory of the host does so in a branch that an idle step doesn't take."""

        def update(gradients, params, state):
            updates, state = tx.update(gradients, state, params)
            return optax.apply_updates(params, updates), state

        tx = introspect((10, 20, 30), memory_kind="pinned_host")
        params = {"w": jnp.ones((300, 300))}
        state = jax.jit(tx.init)(params)
        compiled = jax.jit(update, donate_argnums=(1, 2)).lower(params, params, state).compile()
        text = compiled.as_text()
        entry = text[text.index("ENTRY") :]
        assert "f32[300,300]" in entry
        assert not re.findall(r"= f32\[300,300\]\S* (?:copy|custom-call)", entry)
        idle = re.findall(r"branch_computations=\{%([\w.]+), ", text)
        assert len(idle) >= 6
        for name in idle:
            (body,) = re.findall(rf"^%{re.escape(name)} \(.*?^}}", text, re.MULTILINE | re.DOTALL)
            assert not re.findall(r"= f32\[300,300\]\S* (?:copy|custom-call)", body)
        memory = compiled.memory_analysis()
        assert memory.output_size_in_bytes - memory.alias_size_in_bytes < 1e4

    @pytest.mark.parametrize("memory_kind", ["host", "device", "unpinned_host", "", 3])
    def test_unknown(self, memory_kind):
        with pytest.raises(ValueError, match=r'memory_kind must be "pinned_host" or None; got '):
            introspect((10,), LINEAR, memory_kind=memory_kind)

    def test_devices_without_it(self, monkeypatch):
        class Device:
            def addressable_memories(self):
                return [SimpleNamespace(kind="device")]

        monkeypatch.setattr(jax, "local_devices", lambda: [Device()])
        with pytest.raises(ValueError, match=r'memory_kind="pinned_host" cannot be had: .*\[\'device\'\]'):
            introspect((10,), LINEAR, memory_kind="pinned_host").init({"w": np.ones(3)})


class TestResume:
    def test_cut_at_every_step(self, tmp_path):
        """A run that is saved and restored with Orbax goes on bit for bit, whenever it was cut."""
        params = random_tree(np.random.default_rng(0)) | {"n": jnp.arange(3)}
        gradient = prescribed(params)
        tx = optax.chain(
            optax.masked(optax.adam(0.05), {name: name != "n" for name in params}), introspect((5, 7, 10), LINEAR)
        )
        step = jax.jit(make_step(tx))
        runs = [(params, tx.init(params))]
        for n in range(14):
            runs.append(step(gradient(n, runs[-1][0]), runs[-1][1], runs[-1][0]))
        assert int(runs[-1][1][1].jumps_taken) == 3

        shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, runs[0])
        with ocp.StandardCheckpointer() as checkpointer:
            for cut, run in enumerate(runs):
                checkpointer.save(tmp_path / str(cut), run)
            checkpointer.wait_until_finished()
            for cut, run in enumerate(runs):
                weights, state = checkpointer.restore(tmp_path / str(cut), shapes)
                assert_same((weights, state), run)
                for n in range(cut, 14):
                    weights, state = step(gradient(n, weights), state, weights)
                    assert_same(weights, runs[n + 1][0])
                assert_same(state, runs[-1][1])


@functools.cache
def noises(seed, stddev=0.5, jump_steps=(2, 4), repetition=0):
    """What was added to every leaf at every jump."""
    del repetition
    shape = (100, 200)
    params = {
        "a": jnp.zeros(shape),
        "b": jnp.zeros(shape),
        "c": jnp.full(shape, 3j, jnp.complex64),
    }
    tx = introspect(jump_steps, gaussian_noise(stddev, seed))
    history, state = train(tx, params, lambda n, p: jax.tree.map(jnp.ones_like, p), 6)
    assert int(state.jumps_taken) == len(jump_steps)
    result = {}
    for t in jump_steps:
        moved = {name: np.asarray(history[t + 1][name] - history[t][name]) for name in params}
        result |= {(t, "a"): moved["a"], (t, "b"): moved["b"], (t, "re"): moved["c"].real, (t, "im"): moved["c"].imag}
    return result


class TestGaussianNoise:
    def test_standard_deviation(self):
        for stddev in (0.5, 0.01):
            for noise in noises(0, stddev).values():
                error = stddev / np.sqrt(noise.size)
                assert abs(noise.mean()) < 5 * error
                assert abs(noise.std() - stddev) < 5 * error / np.sqrt(2)
                assert stddev * 3.5 < np.abs(noise).max() < stddev * 6

    def test_every_leaf_and_every_jump_has_its_own(self):
        flat = np.stack([noise.ravel() for seed in (0, 7) for noise in noises(seed).values()])
        assert len(flat) == 16
        correlations = np.corrcoef(flat) - np.eye(len(flat))
        assert np.abs(correlations).max() < 5 / np.sqrt(flat.shape[1])

    def test_reproducible(self):
        for (key, one), other in zip(noises(7).items(), noises(7, repetition=1).values(), strict=True):
            np.testing.assert_array_equal(one, other, err_msg=str(key))

    def test_does_not_depend_on_other_jumps(self):
        np.testing.assert_allclose(noises(7, jump_steps=(4,))[4, "a"], noises(7)[4, "a"], atol=1e-5)

    def test_no_noise(self):
        params = small_params()
        history, state = train(introspect((1,), gaussian_noise(0.0, 0)), params, bowl, 2, wrap=lambda step: step)
        assert int(state.jumps_taken) == 1
        assert_same(history[2], history[1])

    @pytest.mark.parametrize("stddev", [-1.0, float("nan"), float("inf")])
    def test_bad_stddev(self, stddev):
        with pytest.raises(ValueError, match=f"stddev must be a number of at least 0; got {stddev}"):
            gaussian_noise(stddev, 0)

    @pytest.mark.parametrize("seed", [-1, 2**32, 0.5, True, "0", None])
    def test_bad_seed(self, seed):
        with pytest.raises(ValueError, match=f"seed must be an integer from 0 to 4294967295; got {seed!r}"):
            gaussian_noise(0.1, seed)
