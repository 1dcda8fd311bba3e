"""The loops of `examples/`, each run: the same training gives the same weights, however its loop is written."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from examples import plain
from examples.problem import initial_params, loss
from optax_introspect import gaussian_noise, introspect
from tests.composition.by_hand import jumps, jumps_taken

EXAMPLES = Path(__file__).parents[2] / "examples"
NAMES = sorted(path.stem for path in EXAMPLES.glob("*.py") if path.stem not in ("__init__", "problem"))
SHORT = {"steps": 40, "jump_steps": (10, 20, 30)}

# Those that train the parameters of `plain` on its batches. Computing in bfloat16 is another training.
SAME = ["accumulation", "ensemble", "rematerialized", "scan"]
SAME_ON_DEVICES = ["data_parallel", "shard_mapped"]


@pytest.fixture(scope="module")
def plain_run():
    return plain.main(**SHORT)


def run(name):
    shorter = {"steps_a_call": 8} if name == "scan" else {}
    return importlib.import_module(f"examples.{name}").main(**SHORT, **shorter)


def assert_same_run(found, wanted):
    assert found.jumps == wanted.jumps
    np.testing.assert_allclose(found.losses, wanted.losses, 1e-4)
    for name in wanted.params:
        np.testing.assert_allclose(found.params[name], wanted.params[name], 1e-3, 1e-4)


@pytest.mark.parametrize("name", sorted(set(NAMES) - set(SAME_ON_DEVICES)))
def test_example(name, plain_run, capsys):
    found = plain_run if name == "plain" else run(name)
    assert found.jumps == 3
    assert len(found.losses) == 40
    assert np.mean(found.losses[-5:]) < (0.7 if name == "adapters" else 0.4) * found.losses[0]
    if name in SAME:
        assert_same_run(found, plain_run)
    if name == "mixed_precision":
        np.testing.assert_allclose(found.losses, plain_run.losses, 0.1)
    if name != "plain":
        assert capsys.readouterr().out.endswith(f"-> {found.losses[-1]:.5f} in 40 steps, 3 jumps\n")


def test_plain_tells_of_every_jump(capsys):
    found = plain.main(steps=8, jump_steps=(5, 7))
    first, second, _ = capsys.readouterr().out.splitlines()
    assert first == f"jumped at step 5, from a loss of {found.losses[4]:.5f}"
    assert second == f"jumped at step 7, from a loss of {found.losses[6]:.5f}"


def test_adapters_leave_the_other_weights_alone_and_keep_no_snapshots_of_them(capsys):
    found = run("adapters")
    for name, leaf in initial_params().items():
        np.testing.assert_array_equal(found.params["base"][name], leaf)
    assert "snapshots: 2176 bytes; of all weights: 15552\n" in capsys.readouterr().out


def test_examples_fit_on_a_page_and_say_what_they_are():
    assert len(NAMES) == 12
    for name in NAMES:
        text = (EXAMPLES / f"{name}.py").read_text()
        assert len(text.splitlines()) <= 60
        assert text.startswith('"""')
        assert text.endswith('\n\nif __name__ == "__main__":\n    main()\n')


def test_on_eight_devices(plain_run):
    program = (
        f"import jax; from examples import {', '.join(SAME_ON_DEVICES)}\n"
        "assert jax.device_count() == 8\n"
        f"for example in ({', '.join(SAME_ON_DEVICES)}):\n"
        f"    run = example.main(**{SHORT})\n"
        "    assert run.jumps == 3\n"
        "    print(*run.losses)\n"
    )
    finished = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=EXAMPLES.parent,
        env=os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    _, first, _, second = finished.stdout.splitlines()
    for losses in (first, second):
        np.testing.assert_allclose([float(value) for value in losses.split()], plain_run.losses, 1e-4)


class TestEnsemble:
    def lowered(self, axes):
        """The compiled text of a step of an ensemble, without running it."""
        tx = optax.chain(optax.adam(1e-3), jumps())
        member = jax.eval_shape(initial_params)
        params = jax.eval_shape(lambda: jax.vmap(lambda _: initial_params())(np.arange(3)))
        state_axes = jax.tree.map(lambda leaf: 0, jax.eval_shape(tx.init, member))
        state_axes = optax.tree.set(state_axes, introspect_step=axes)

        def step(params, state, x, y):
            updates, state = tx.update(jax.grad(loss)(params, x, y), state, params)
            return optax.apply_updates(params, updates), state

        mapped = jax.vmap(step, in_axes=(0, state_axes, None, None), out_axes=(0, state_axes))
        state = jax.eval_shape(jax.vmap(tx.init, out_axes=state_axes), params)
        x, y = jax.ShapeDtypeStruct((64, 8), np.float32), jax.ShapeDtypeStruct((64, 4), np.float32)
        return jax.jit(mapped, donate_argnums=(0, 1)).lower(params, state, x, y).as_text()

    def test_only_with_a_shared_counter_do_conditionals_remain(self):
        assert "stablehlo.case" in self.lowered(None)
        assert "stablehlo.case" not in self.lowered(0)

    def test_noise_is_the_same_for_all_members_only_under_vmap(self):
        tx = introspect((1,), gaussian_noise(1.0, 0))
        params = jnp.ones((3, 5))

        def two_updates(params):
            state = tx.init(params)
            for _ in range(2):
                updates, state = tx.update(jnp.zeros_like(params), state, params)
            return updates

        mapped, stacked = jax.vmap(two_updates)(params), two_updates(params)
        assert np.ptp(mapped, axis=0).max() == 0
        assert np.ptp(stacked, axis=0).min() > 0.01


class TestShardMap:
    def two_jumps(self, spec):
        """Trains inside `shard_map` with the parameters placed so."""
        mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
        params = jnp.arange(4.0)
        tx = optax.chain(optax.sgd(0.1), jumps())
        state = tx.init(params)
        specs = jax.tree.map(lambda leaf: spec if leaf.ndim else jax.P(), state)

        def step(params, state):
            updates, state = tx.update(params, state, params)
            return optax.apply_updates(params, updates), state

        step = jax.jit(jax.shard_map(step, mesh=mesh, in_specs=(spec, specs), out_specs=(spec, specs)))
        for _ in range(12):
            params, state = step(params, state)
        return jumps_taken(state)

    def test_inside_with_replicated_parameters(self):
        assert self.two_jumps(jax.P()) == [2]

    def test_inside_with_parts_of_parameters(self):
        with pytest.raises(TypeError, match="manual axis types do not match"):
            self.two_jumps(jax.P("data"))
