import collections
import os
import subprocess
import sys
import textwrap

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
    """Draws 1 to 6 jumps, often such that trajectory points of later ones are earlier ones."""
    possible = [t for t in range(1, 41) if len({oracle.nearest_step(point, t) for point in points}) == len(points)]
    jumps = draw(st.sets(st.sampled_from(possible), min_size=1, max_size=4))
    for _ in range(draw(st.integers(0, 2))):
        if len(points) > 1:
            later = draw(st.sampled_from(sorted(jumps)))
            jumps |= {oracle.nearest_step(draw(st.sampled_from(points[1:])), later)} & set(possible)
    return tuple(sorted(jumps))


class TestOracle:
    def test_every_weight_follows_from_the_whole_history(self):
        """Each next weight is computed anew from the recorded history, so that no difference builds up."""
        seen = collections.Counter()

        @hypothesis.settings(max_examples=60, deadline=None, derandomize=True)
        @hypothesis.given(st.data())
        def check(data):
            forecaster, expected_forecaster = data.draw(forecasters())
            jump_steps = data.draw(schedules(forecaster.points))
            name = data.draw(st.sampled_from(sorted(BASES)))
            snapshot_dtype = data.draw(st.sampled_from([None, None, jnp.bfloat16, np.float16, np.float32]))
            rng = np.random.default_rng(data.draw(st.integers(0, 10**6)))
            # A float16 weight that swings so far that forecasts of it overflow. (Wide snapshots of float16 weights have
            # a test of their own.)
            swings = snapshot_dtype != np.float32 and data.draw(st.integers(0, 3)) == 0
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
                "five or six jumps": len(jump_steps) >= 5,
                f"base {name}": True,
                f"forecaster {type(forecaster).__name__}": True,
                f"snapshots {np.dtype(snapshot_dtype).name if snapshot_dtype else 'as they are'}": True,
            }
            for fact, holds in facts.items():
                seen[fact] += holds

        check()
        print(dict(seen))
        assert seen["examples"] >= 300
        assert seen["a point is an earlier jump"] >= 75
        assert seen["jumps overlap"] >= 75
        assert min(seen.values()) >= 15, seen
