import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_introspect
from optax_introspect import cost, introspect, plan, polynomial

STEPS = (3000, 4000, 5000)
LINEAR = polynomial(1, 1.3)


def params():
    return {"w": jnp.ones((200, 300)), "b": jnp.ones(300), "n": jnp.arange(3)}


def test_bytes_are_those_of_the_plan_and_of_the_state():
    tx = optax.chain(optax.adam(1e-3), introspect(STEPS, LINEAR, snapshot_dtype=jnp.bfloat16))
    floating = {name: leaf for name, leaf in params().items() if name != "n"}
    found = cost(tx, floating)
    assert found.plans == (plan(STEPS),)
    assert found.params_bytes == 4 * (60_000 + 300)
    assert found.snapshot_bytes == 6 * 2 * (60_000 + 300)
    taken = sum(leaf.nbytes for leaf in jax.tree.leaves(tx.init(floating)[1].snapshots))
    assert found.snapshot_bytes == taken
    more = found.with_jumps.argument_bytes - found.without_jumps.argument_bytes
    # XLA drops arguments that a step neither reads nor hands on.
    assert 0 <= more < taken + 100
    assert found.with_jumps.seconds > 0
    assert found.without_jumps.seconds > 0


def test_every_introspect_is_found_however_deep():
    groups = {"slow": introspect((10,), LINEAR), "fast": introspect((20, 30), LINEAR, mask={"b": False, "w": True})}
    inner = optax.partition(groups, {"w": "fast", "b": "fast", "c": "slow"})
    tx = optax.MultiSteps(optax.chain(optax.sgd(0.1), inner), every_k_schedule=2)
    shapes = {name: jnp.ones(size) for name, size in {"w": 10, "b": 20, "c": 30}.items()}
    with pytest.raises(ValueError, match="mask must be a tree of booleans"):
        cost(tx, shapes)  # a group sees the whole tree, the leaves of other groups masked
    groups["fast"] = introspect((20, 30), LINEAR)
    tx = optax.MultiSteps(
        optax.chain(optax.sgd(0.1), optax.partition(groups, {"w": "fast", "b": "fast", "c": "slow"})), 2
    )
    found = cost(tx, shapes)
    assert sorted(p.jump_steps for p in found.plans) == [(10,), (20, 30)]
    assert found.snapshot_bytes == 4 * (3 * 30 + plan((20, 30)).num_buffers * 30)


def test_a_loss_makes_the_gradients_part_of_the_step():
    tx = optax.chain(optax.sgd(1e-3), introspect(STEPS, LINEAR))
    weights = {"w": jax.ShapeDtypeStruct((512, 512), jnp.float32)}
    given, made = cost(tx, weights), cost(tx, weights, lambda p: jnp.sum(jnp.tanh(p["w"] @ p["w"])))
    assert made.with_jumps.temporary_bytes >= 512 * 512 * 4 > given.with_jumps.temporary_bytes
    assert made.with_jumps.argument_bytes < given.with_jumps.argument_bytes


def test_nothing_is_allocated_and_nothing_stays_switched_off():
    tx = optax.chain(optax.sgd(1.0), introspect((2,), optax_introspect.forecaster(lambda now: 2 * now, (1.0,))))
    huge = jax.ShapeDtypeStruct((1 << 20, 1 << 20), jnp.bfloat16)  # 2 TB
    found = cost(tx, huge)
    assert found.params_bytes == 2**41
    weights = jnp.ones(3)
    state = tx.init(weights)
    for _ in range(3):
        updates, state = tx.update(jnp.zeros(3), state, weights)
        weights = optax.apply_updates(weights, updates)
    np.testing.assert_array_equal(weights, [2, 2, 2])


@pytest.mark.parametrize("wrapped", [False, True], ids=["chain", "masked"])
def test_snapshots_in_the_memory_of_the_host(wrapped):
    tx = optax.chain(optax.adam(1e-3), introspect(STEPS, LINEAR, memory_kind="pinned_host"))
    tx = optax.masked(tx, {"w": True, "b": True}) if wrapped else tx
    floating = {name: leaf for name, leaf in params().items() if name != "n"}
    found, beside = (cost(each, floating) for each in (tx, optax.chain(optax.adam(1e-3), introspect(STEPS, LINEAR))))
    assert found.snapshot_bytes == beside.snapshot_bytes
    assert found.with_jumps.temporary_bytes < found.params_bytes


def test_a_step_that_is_compiled_already():
    chain = optax.chain(optax.sgd(1.0), introspect((2,), optax_introspect.forecaster(lambda now: 2 * now, (1.0,))))
    tx = optax.GradientTransformation(jax.jit(chain.init), jax.jit(chain.update))
    weights = jnp.ones(3)
    assert cost(tx, weights).snapshot_bytes == cost(chain, weights).snapshot_bytes
    state = tx.init(weights)
    for _ in range(3):
        updates, state = tx.update(jnp.zeros(3), state, weights)
        weights = optax.apply_updates(weights, updates)
    np.testing.assert_array_equal(weights, [2, 2, 2])


def test_state_is_sharded_as_the_parameters_are():
    code = """if True:
        import jax, jax.numpy as jnp, optax
        from optax_introspect import cost, introspect, polynomial

        sharding = jax.sharding.NamedSharding(jax.make_mesh((4,), ("x",)), jax.sharding.PartitionSpec("x"))
        weights = {"w": jax.ShapeDtypeStruct((1024,), jnp.float32, sharding=sharding)}
        for memory in (None, "pinned_host"):
            jumps = introspect((10,), polynomial(1, 1.3), memory_kind=memory)
            found = cost(optax.masked(optax.chain(optax.adam(1e-3), jumps), {"w": True}), weights)
            assert 4 * 1024 <= found.without_jumps.argument_bytes < 8 * 1024, found
    """
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


def test_the_table():
    found = cost(optax.chain(optax.sgd(0.1), introspect((10,), LINEAR)), jnp.ones(1000))
    lines = str(found).splitlines()
    assert lines[0] == str(found.plans[0]).splitlines()[0]
    assert ["snapshots", "12,000", "bytes"] in [line.split() for line in lines]
    assert lines[-1].startswith("compilation without")


def test_no_introspect():
    with pytest.raises(ValueError, match="there is no introspect in tx"):
        cost(optax.adam(1e-3), jnp.ones(3))
