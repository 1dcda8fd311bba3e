"""Training with jumps on 8 devices, of one process or of several; prints a line for everything that it has checked.

`python -m tests.optax_introspect.sharded 0 1` checks all; with `1 2 localhost:1234` it is the second of two processes
that have four devices each. The number of devices is told to XLA by the environment.
"""

import re
import sys
import unittest
import warnings
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import AxisType, NamedSharding

from optax_introspect import custom_forecaster, introspect, polynomial, pretrained

# Pytest imports this file to look for doctests.
PROCESS, PROCESSES = map(int, sys.argv[1:3]) if __name__ == "__main__" else (0, 1)

SPECS = {
    "replicated": jax.P(),
    "rows": jax.P("data", None),
    "columns": jax.P(None, "model"),  # of the shape of the rows: small arrays of one shape are checked together
    "both": jax.P("data", "model"),
}
SHAPES = {"replicated": (5, 3), "rows": (4, 6), "columns": (4, 6), "both": (16, 8)}
STEPS = 12

rng = np.random.default_rng(0)
VALUES = {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}

# Made when they are needed: nothing may come before the processes have found each other. With the counts of jumps.
JUMPS = {
    "fractions": (lambda: introspect((5, 7, 10), polynomial(1, 1.3)), (3, 0)),
    "network": (lambda: introspect((5, 10), pretrained(), snapshot_dtype=jnp.bfloat16), (2, 0)),
    # The jump overflows in the part of one device, and all devices refuse it.
    "refused": (lambda: introspect((5, 7), custom_forecaster(lambda now: now * 1e38, (1.0,))), (0, 2)),
}


def compiled_step(tx, params, state):
    def step(params, state):
        updates, state = tx.update(params, state, params)  # downhill in a bowl
        return optax.apply_updates(params, updates), state

    return jax.jit(step, donate_argnums=(0, 1)).lower(params, state).compile()


def counts(state):
    return int(state[1].jumps_taken), int(state[1].jumps_refused)


def alone(values, tx):
    """Returns the weights of training on one device, and the counts of jumps."""
    device = jax.local_devices()[0]
    params = jax.device_put(values, device)
    state = jax.device_put(tx.init(params), device)
    step = compiled_step(tx, params, state)
    for _ in range(STEPS):
        params, state = step(params, state)
    return jax.device_get(params), counts(state)


def check_sharded_alike(tree, shardings):
    assert tree.keys() == shardings.keys()
    for name, leaf in tree.items():
        assert leaf.sharding.is_equivalent_to(shardings[name], leaf.ndim), (name, leaf.sharding, shardings[name])


def check_no_array_is_sent(text):
    """Devices tell each other only single numbers: whether the forecast is finite everywhere."""
    operations = "all-gather|all-to-all|collective-permute|reduce-scatter|all-reduce"
    sent = re.findall(rf"= (.*) ({operations})(?:-start)?\(", text)
    assert sent
    for shapes, operation in sent:
        assert operation == "all-reduce", (shapes, operation)
        assert set(re.findall(r"\[(.*?)\]", shapes)) == {""}, (shapes, operation)


def check(kind, axis_type):
    make, expected_counts = JUMPS[kind]
    tx = optax.chain(optax.sgd(0.1), make())
    values = {name: value.copy() for name, value in VALUES.items()}
    if kind == "refused":
        values = {name: value * 1e-3 for name, value in values.items()}
        values["both"][-1, -1] = 1e3
    expected, counted = alone(values, tx)
    assert counted == expected_counts, counted

    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(axis_type,) * 2)
    shardings = {name: NamedSharding(mesh, SPECS[name]) for name in values}
    with jax.set_mesh(mesh):
        for init in (tx.init, jax.jit(tx.init)):
            params = {
                name: jax.make_array_from_callback(
                    value.shape, shardings[name], lambda index, value=value: value[index]
                )
                for name, value in values.items()
            }
            state = init(params)
            for snapshot in state[1].snapshots:
                check_sharded_alike(snapshot, shardings)
        step = compiled_step(tx, params, state)
        for _ in range(STEPS):
            params, state = step(params, state)
        for tree in (params, *state[1].snapshots):
            check_sharded_alike(tree, shardings)
    assert counts(state) == expected_counts, counts(state)
    for name, leaf in params.items():
        for shard in leaf.addressable_shards:
            np.testing.assert_allclose(shard.data, expected[name][shard.index], 2e-6, 2e-6)
    check_no_array_is_sent(step.as_text())
    if PROCESS == 0:
        print(f"passed: {kind} {axis_type.name}", flush=True)


def check_nnx():
    """A model made on one device and one made in shards, as Flax documents it, end with the same weights."""
    tx = optax.chain(optax.adam(0.1), introspect((3, 5), polynomial(1, 1.3)))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    ends = []
    for names in ((None, None), ("data", None)):
        kernel = nnx.with_partitioning(nnx.initializers.lecun_normal(), names)

        @nnx.jit
        def create(kernel=kernel):
            model = nnx.Linear(16, 4, kernel_init=kernel, rngs=nnx.Rngs(0))
            return model, nnx.Optimizer(model, tx, wrt=nnx.Param)

        @nnx.jit
        def step(model, optimizer):
            optimizer.update(model, nnx.grad(lambda model: jnp.mean((model(jnp.ones((2, 16))) - 1) ** 2))(model))

        with jax.set_mesh(mesh):
            model, optimizer = create()
            for _ in range(8):
                step(model, optimizer)
        opt_state = nnx.as_pure(optimizer.opt_state)
        assert int(opt_state[1].jumps_taken) == 2
        ends.append(np.asarray(model.kernel[...]))
        for snapshot in opt_state[1].snapshots:
            assert snapshot["kernel"].sharding.is_equivalent_to(NamedSharding(mesh, jax.P(*names)), 2)
    np.testing.assert_allclose(*ends, 1e-5, 1e-6)
    print("passed: nnx")


def check_optax():
    """Optax's own test of sharded optimizers, a part of it, at a jump."""
    from tests.optax_introspect import optax_own

    warnings.filterwarnings("ignore", "Specifying a key will be required")
    with optax_own.optimizers_jump(first_step=1, module=optax):
        from optax._src import sharding_test  # makes its optimizers while it is imported

    names = [
        name
        for name in unittest.defaultTestLoader.getTestCaseNames(sharding_test.ShardingTest)
        # The former has no optimizer; L-BFGS fails by itself with JAX 0.10.
        if not name.startswith("test_microbatch") and "lbfgs" not in name
    ]
    # The test asks for JAX 0.7.2 by comparing strings, and would be skipped for 0.10 and later.
    with mock.patch.object(jax, "__version__", "0.9.0"):
        for name in names[::25]:
            sharding_test.ShardingTest(name).debug()
    print(f"passed: {len(names[::25])} of Optax")


def main():
    warnings.simplefilter("error")
    if PROCESSES > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(sys.argv[3], PROCESSES, PROCESS)
        check("fractions", AxisType.Auto)
        check("refused", AxisType.Auto)
    else:
        assert jax.device_count() == 8
        for kind in JUMPS:
            check(kind, AxisType.Auto)
        check("fractions", AxisType.Explicit)
        check_nnx()
        check_optax()


if __name__ == "__main__":
    main()
