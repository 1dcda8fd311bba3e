"""Runs that are cut anywhere, written with Orbax, and go on: as they were, elsewhere, or with other jumps."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx

from optax_introspect import introspect, plan, polynomial, reschedule
from tests.optax_introspect.test_transform import assert_same, prescribed

LINEAR = polynomial(1, 1.5, points=(1.0, 0.5, 0.0))
WITHOUT_FIRST = polynomial(1, 1.5, points=(1.0, 0.5))
PARAMS = {"b": jnp.ones(3, jnp.bfloat16), "n": jnp.arange(3), "w": jnp.linspace(-1, 1, 6).reshape(2, 3)}
FLOATING = {"b": True, "n": False, "w": True}
END = 12
gradient = prescribed(PARAMS)

KINDS = {
    "bfloat16": introspect((3, 6, 9), LINEAR, snapshot_dtype="bfloat16"),
    "on the host": introspect((4, 8), LINEAR, memory_kind="pinned_host"),
    "scratch slot, every capture at a jump": introspect((2, 4, 8), WITHOUT_FIRST),
}


def optimizer(last):
    return optax.MultiSteps(optax.chain(optax.masked(optax.adam(0.05), FLOATING), last), every_k_schedule=1)


def donating_step(tx):
    # Donated in the order of the results: JAX 0.10 to 0.12 hands donated memory on in that order, even that of the host
    # to an array that is to be on the device.
    def step(params, state, gradients):
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    return jax.jit(step, donate_argnums=(0, 1))


def shapes_of(tree):
    return jax.tree.map(ocp.utils.to_shape_dtype_struct, tree)


def copied(tree):
    return jax.tree.map(np.array, tree)


class TestCutAtEveryStep:
    """While training goes on, and its buffers are donated."""

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("asynchronous", [True, False], ids=["async", "sync"])
    def test_goes_on_with_the_same_bits(self, tmp_path, kind, asynchronous):
        tx = optimizer(KINDS[kind])
        step = donating_step(tx)
        run = jax.tree.map(jnp.copy, PARAMS), tx.init(PARAMS)
        expected = []
        options = ocp.CheckpointManagerOptions(enable_async_checkpointing=asynchronous)
        with ocp.CheckpointManager(tmp_path, options=options) as manager:
            shapes = shapes_of(run)
            for n in range(END):
                expected.append(copied(run))
                manager.save(n, args=ocp.args.StandardSave(run))
                run = step(*run, gradient(n, None))
            manager.wait_until_finished()
            last = copied(run)
            for cut in range(END):
                run = manager.restore(cut, args=ocp.args.StandardRestore(shapes))
                assert_same(copied(run), expected[cut])
                for one, other in zip(jax.tree.leaves(run), jax.tree.leaves(shapes), strict=True):
                    assert one.sharding == other.sharding  # also the memory that it is in
                for n in range(cut, END):
                    run = step(*run, gradient(n, None))
                assert_same(copied(run), last)
        assert last[1].inner_opt_state[1].jumps_taken >= 2
        assert last[1].inner_opt_state[1].jumps_refused == 0


class TestRestoredIntoAnotherOptimizer:
    def trained(self, tx, steps):
        history, states = [PARAMS], [tx.init(PARAMS)]
        update = jax.jit(tx.update)
        for n in range(steps):
            updates, state = update(gradient(n, None), states[-1], history[-1])
            history.append(optax.apply_updates(history[-1], updates))
            states.append(state)
        return history, states

    def written(self, path, tree):
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(path, tree)

    def read(self, path, shapes=None):
        with ocp.StandardCheckpointer() as checkpointer:
            return checkpointer.restore(path, shapes)

    def test_other_jumps(self, tmp_path):
        old, new = (optimizer(introspect(steps, LINEAR)) for steps in ((4, 8), (4, 8, 10)))
        history, states = self.trained(old, 5)
        expected, _ = self.trained(new, END)
        self.written(tmp_path / "5", states[5])
        state = self.read(tmp_path / "5", jax.eval_shape(old.init, PARAMS))
        state = reschedule(state, history[5], old=old, new=new)
        params, update = history[5], jax.jit(new.update)
        for n in range(5, END):
            updates, state = update(gradient(n, None), state, params)
            params = optax.apply_updates(params, updates)
            assert_same(params, expected[n + 1])

    def test_the_shapes_of_another_number_of_slots_are_refused(self, tmp_path):
        old, new = introspect((4, 8), LINEAR), introspect((4, 8, 10), LINEAR)
        assert plan((4, 8), LINEAR.points).num_buffers != plan((4, 8, 10), LINEAR.points).num_buffers
        self.written(tmp_path / "0", old.init(PARAMS))
        with pytest.raises(ValueError, match="snapshots"):
            self.read(tmp_path / "0", jax.eval_shape(new.init, PARAMS))

    def test_orbax_casts_but_reschedule_converts(self, tmp_path):
        """Read as bfloat16, the snapshots are rounded weights, but a narrow snapshot is a difference to `w_0`."""
        old, new = introspect((8,), LINEAR), introspect((8,), LINEAR, snapshot_dtype="bfloat16")
        history, states = self.trained(old, 6)
        _, expected = self.trained(new, 6)
        (slot,) = [capture.slot for capture in plan((8,), LINEAR.points).captures if capture.step == 4]
        self.written(tmp_path / "6", states[6])
        cast = self.read(tmp_path / "6", jax.eval_shape(new.init, PARAMS))
        assert_same(cast.snapshots[slot]["w"], history[4]["w"].astype(jnp.bfloat16))
        state = self.read(tmp_path / "6", jax.eval_shape(old.init, PARAMS))
        state = reschedule(state, history[6], old=old, new=new)
        assert_same(state.snapshots[slot], expected[6].snapshots[slot])
        assert_same(state.snapshots[slot]["w"], (history[4]["w"] - rounded(history[0]["w"])).astype(jnp.bfloat16))

    def test_jumps_for_a_run_that_had_none(self, tmp_path):
        """With weights that are read as they are asked for, from the checkpoints of the run."""
        plain = optax.masked(optax.adam(0.05), FLOATING)
        new = optax.chain(plain, introspect((8,), LINEAR))
        history, states = self.trained(plain, 6)
        for n, run in enumerate(zip(history, states, strict=True)):
            self.written(tmp_path / str(n), run)
        shapes = jax.eval_shape(lambda: (PARAMS, plain.init(PARAMS)))
        params, state = self.read(tmp_path / "6", shapes)
        needed = plan((8,), LINEAR.points).needed(6)
        weights = {step: self.read(tmp_path / str(step), shapes)[0] for step in needed}
        state = reschedule(state, params, old=plain, new=new, weights=weights, step=6)
        expected, _ = self.trained(new, END)
        update = jax.jit(new.update)
        for n in range(6, END):
            updates, state = update(gradient(n, None), state, params)
            params = optax.apply_updates(params, updates)
            assert_same(params, expected[n + 1])

    def test_a_model_and_optimizer_of_nnx(self, tmp_path):
        x = jnp.linspace(-1, 1, 12).reshape(4, 3)
        tx = optax.chain(optax.adam(0.05), introspect((4, 8), LINEAR))

        @nnx.jit
        def step(model, optimizer):
            optimizer.update(model, nnx.grad(lambda model: jnp.mean((model(x) - 1) ** 2))(model))

        def made():
            model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
            return model, nnx.Optimizer(model, tx, wrt=nnx.Param)

        run = made()
        for _ in range(6):
            step(*run)
        self.written(tmp_path / "6", nnx.state(run))
        resumed = made()
        nnx.update(resumed, self.read(tmp_path / "6", nnx.state(resumed)))
        for _ in range(6):
            step(*run)
            step(*resumed)
        assert_same(nnx.state(resumed), nnx.state(run))
        assert int(resumed[1].opt_state[1].jumps_taken[...]) == 2


def rounded(array):
    return array.astype(jnp.bfloat16).astype(jnp.float32)


ELSEWHERE = r"""
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from optax_introspect import introspect, plan, polynomial, reschedule

assert jax.device_count() == 8
linear = polynomial(1, 1.5, points=(1.0, 0.5, 0.0))
tx = optax.chain(optax.adam(0.01), introspect((4, 8), linear))
more = optax.chain(optax.adam(0.01), introspect((4, 8, 9), linear, snapshot_dtype="bfloat16"))
rng = np.random.default_rng(0)
values = {name: rng.normal(size=shape).astype(np.float32) for name, shape in {"m": (8, 4), "v": (8,), "s": ()}.items()}
spec = PartitionSpec


def layout(rows, columns, **specs):
    mesh = jax.make_mesh((rows, columns), ("x", "y"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    return {name: NamedSharding(mesh, specs[name]) for name in values}


layouts = {
    "4x2": layout(4, 2, m=spec("x", "y"), v=spec("x"), s=spec()),
    "2x4": layout(2, 4, m=spec("y", None), v=spec(), s=spec()),
    "one": dict.fromkeys(values, SingleDeviceSharding(jax.devices()[3])),
}


def start(shardings):
    params = jax.device_put(values, shardings)
    return params, tx.init(params)


def shapes_in(shardings):
    # The shapes and shardings of a run that starts there, with counters on all devices.
    def shape_of(leaf):
        everywhere = shardings["s"]
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding if leaf.ndim else everywhere)

    return jax.tree.map(shape_of, start(shardings))


@jax.jit
def step(params, state):
    updates, state = tx.update(jax.tree.map(lambda w: w + 1, params), state, params)
    return optax.apply_updates(params, updates), state


def check_shardings(params, introspect_state, shardings):
    for tree in (params, *introspect_state.snapshots):
        for name, leaf in tree.items():
            assert leaf.sharding.is_equivalent_to(shardings[name], leaf.ndim), (name, leaf.sharding)


def check_same(one, other, exactly):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        np.testing.assert_array_equal(a, b) if exactly else np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


manager = ocp.CheckpointManager(sys.argv[1])
runs = {name: [start(shardings)] for name, shardings in layouts.items()}
for name in ("4x2", "one"):
    for n in range(12):
        if name == "4x2":
            manager.save(n, args=ocp.args.StandardSave(runs[name][-1]))
        runs[name].append(step(*runs[name][-1]))
assert int(runs["one"][-1][1][1].jumps_taken) == 2
check_same(runs["4x2"][-1][0], runs["one"][-1][0], exactly=False)
manager.wait_until_finished()

seen_by_more = [more.init(runs["4x2"][0][0])[1]]
for params, _ in runs["4x2"][:-1]:
    seen_by_more.append(jax.jit(more.update)(params, (runs["4x2"][0][1][0], seen_by_more[-1]), params)[1][1])


def snapshots(state, cut):
    schedule = plan((4, 8, 9), linear.points)
    return [state.snapshots[capture.slot] for capture in schedule.captures if capture.step in schedule.needed(cut)]


for name, shardings in layouts.items():
    for cut in range(0, 12):
        run = manager.restore(cut, args=ocp.args.StandardRestore(shapes_in(shardings)))
        check_same(run, runs["4x2"][cut], exactly=True)
        check_shardings(run[0], run[1][1], shardings)
        for n in range(cut, 12):
            run = step(*run)
            check_shardings(run[0], run[1][1], shardings)
        check_same(run[0], runs["4x2"][-1][0], exactly=name == "4x2")

        if cut % 2:
            continue
        # More jumps, and snapshots in bfloat16: from the snapshots, or from weights that lie elsewhere.
        params, state = manager.restore(cut, args=ocp.args.StandardRestore(shapes_in(shardings)))
        weights = {n: params for n, (params, _) in enumerate(runs["4x2"][:cut])}
        found = reschedule(state, params, old=tx, new=more, weights=weights)
        check_shardings(params, found[1], shardings)
        check_same(snapshots(found[1], cut), snapshots(seen_by_more[cut], cut), exactly=True)
        if cut <= 5:  # the jump at 9 needs weights of step 5, which the other plan does not keep
            check_same(reschedule(state, params, old=tx, new=more), found, exactly=True)
print("passed")
"""


def test_on_other_devices_and_in_other_shards(tmp_path):
    finished = subprocess.run(
        [sys.executable, "-W", "error", "-c", ELSEWHERE, str(tmp_path)],
        env=os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert finished.stdout == "passed\n"
