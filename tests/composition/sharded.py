"""Training with jumps on 8 devices, of one process or of several; prints a line for everything that it has checked.

`python -m tests.composition.sharded 0 1` has all of them; `python -m tests.composition.sharded 2 4 localhost:1234` is
the third of four processes that have two each. How many a process has, XLA is told by the environment.
"""

import itertools
import re
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from optax_introspect import IntrospectionNetwork, forecaster, gaussian_noise, introspect, introspection, polynomial

PROCESS, PROCESSES = int(sys.argv[1]), int(sys.argv[2])

SPECS = {
    "replicated": PartitionSpec(),
    "by rows": PartitionSpec("data", None),
    "by columns": PartitionSpec(None, "model"),
    "by both": PartitionSpec("data", "model"),
}
SHAPES = {"replicated": (5, 3), "by rows": (4, 3), "by columns": (3, 6), "by both": (512, 128)}
KINDS = {"replicated": ["replicated"], "1-d": ["by rows", "by columns"], "2-d": ["by both"]}
MIXES = [mix for number in (1, 2, 3) for mix in itertools.combinations(KINDS, number)]

# The last jump looks back at the one before it, whose snapshot has to wait until that jump has read its slot.
JUMP_STEPS = (5, 7, 10)
STEPS = 12

rng = np.random.default_rng(0)
VALUES = {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}

# Made when they are needed: nothing may come before processes have found each other.
FORECASTERS = {
    "polynomial": lambda: polynomial(1, 1.3),
    "network": lambda: introspection(IntrospectionNetwork(hidden=(4,), rngs=nnx.Rngs(0))),
    "noise": lambda: gaussian_noise(0.1, 0),
    "doubled": lambda: forecaster(lambda now: 2 * now, (1.0,)),
}


def leaves_of(mix):
    return [name for kind in mix for name in KINDS[kind]]


def optimizer(kind, snapshot_dtype=None):
    return optax.chain(optax.sgd(0.1), introspect(JUMP_STEPS, FORECASTERS[kind](), snapshot_dtype=snapshot_dtype))


def compiled_step(tx, params, state):
    def step(params, state):
        updates, state = tx.update(params, state, params)  # downhill from a bowl
        return optax.apply_updates(params, updates), state

    return jax.jit(step, donate_argnums=(0, 1)).lower(params, state).compile()


def alone(values, tx):
    """Weights and counts of jumps on one device."""
    params = jax.device_put(values, jax.local_devices()[0])
    state = jax.device_put(tx.init(params), jax.local_devices()[0])
    step = compiled_step(tx, params, state)
    for _ in range(STEPS):
        params, state = step(params, state)
    return jax.device_get(params), counts(state)


def counts(state):
    return int(state[1].jumps_taken), int(state[1].jumps_refused)


def placed(values, shardings):
    """Arrays of all processes, of which each holds its part."""
    return {
        name: jax.make_array_from_callback(value.shape, shardings[name], lambda index, value=value: value[index])
        for name, value in values.items()
    }


def check_same_sharding(tree, shardings):
    assert tree.keys() == shardings.keys()
    for name, leaf in tree.items():
        assert leaf.sharding.is_equivalent_to(shardings[name], leaf.ndim), (name, leaf.sharding, shardings[name])


def check_no_array_is_sent(text, expected):
    """Devices tell each other nothing but single numbers, by which all know whether the forecast is finite."""
    assert ("all-reduce" in text) == expected
    for line in text.splitlines():
        found = re.search(r"= (\S+) (all-gather|all-to-all|collective-permute|reduce-scatter|all-reduce)", line)
        if found:
            assert found[2] == "all-reduce", line
            assert re.fullmatch(r"(pred|s32|f32)\[\]", found[1]), line


def check(axis_type, values, tx, expected, what, train_uncompiled=False):
    """Checks states made with and without `jit`, and the training from the former or from both."""
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(axis_type,) * 2)
    shardings = {name: NamedSharding(mesh, SPECS[name]) for name in values}
    with jax.set_mesh(mesh):
        for init in (tx.init, jax.jit(tx.init)):
            params = placed(values, shardings)
            state = init(params)
            for snapshot in state[1].snapshots:
                check_same_sharding(snapshot, shardings)
            if init is tx.init and not train_uncompiled:
                continue
            step = compiled_step(tx, params, state)
            for _ in range(STEPS):
                params, state = step(params, state)
            for tree in (params, *state[1].snapshots):
                check_same_sharding(tree, shardings)
            assert counts(state) == expected[1], counts(state)
            for name, leaf in params.items():
                for shard in leaf.addressable_shards:
                    np.testing.assert_allclose(shard.data, expected[0][name][shard.index], 2e-6, 2e-6)
            check_no_array_is_sent(step.as_text(), expected=values.keys() != {"replicated"})
    if PROCESS == 0:
        print(f"passed: {axis_type.name} {what}", flush=True)


def main():
    warnings.simplefilter("error")
    if PROCESSES > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(sys.argv[3], PROCESSES, PROCESS)
    assert jax.device_count() == 8

    axis_types = (AxisType.Auto, AxisType.Explicit)
    tx = optimizer("polynomial")
    expected, counted = alone(VALUES, tx)
    assert counted == (3, 0)
    for mix in MIXES if PROCESSES == 1 else MIXES[-1:]:
        values = {name: VALUES[name] for name in leaves_of(mix)}
        for axis_type in axis_types:
            both = axis_type is AxisType.Auto and mix == MIXES[-1]
            check(axis_type, values, tx, (expected, counted), f"polynomial: {', '.join(mix)}", both)

    if PROCESSES == 1:
        tx = optimizer("network", jnp.bfloat16)
        network = alone(VALUES, tx)
        for axis_type in axis_types:
            check(axis_type, VALUES, tx, network, "network")
        tx = optimizer("noise")
        check(AxisType.Auto, VALUES, tx, alone(VALUES, tx), "noise")

    # A forecast that overflows in the part of one device refuses the jump on all: the first and the last.
    large = {name: value.copy() for name, value in VALUES.items()}
    large["by both"][-1, -1] = 3.4e38
    tx = optimizer("doubled")
    expected, counted = alone(large, tx)
    assert counted == (1, 2), counted
    check(AxisType.Auto, large, tx, (expected, counted), "refused")


if __name__ == "__main__":
    main()
