"""Runs that are cut anywhere go on as they were; what can't go on is noticed."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx, serialization

from optax_introspect import custom_forecaster, introspect, nesterov, polynomial

HALF = polynomial(1, 1.5, points=(1.0, 0.5, 0.0))
END = 12
PARAMS = {"w": jnp.linspace(-1, 1, 6).reshape(2, 3)}

OPTIMIZERS = {
    "fractions": optax.chain(optax.adam(0.05), introspect((3, 6, 9), HALF)),
    "window": optax.MultiSteps(
        optax.chain(optax.sgd(0.05), introspect(range(1, 100, 2), nesterov(2))), 2
    ).gradient_transformation(),
    "bfloat16": optax.chain(optax.adam(0.05), introspect((2, 4, 8), HALF, snapshot_dtype="bfloat16")),
    "host": optax.chain(optax.adam(0.05), introspect((3, 6, 9), HALF, memory_kind="pinned_host")),
}


def begin():
    params = {name: jax.tree.map(jnp.copy, PARAMS) for name in OPTIMIZERS}
    return params, {name: tx.init(params[name]) for name, tx in OPTIMIZERS.items()}


def advance(params, states, n):
    """One step of all of them, from the gradient of another bowl at every step."""
    new_params, new_states = {}, {}
    for name, tx in OPTIMIZERS.items():
        gradient = jax.tree.map(lambda w: w - jnp.sin(n).astype(w.dtype), params[name])
        updates, new_states[name] = tx.update(gradient, states[name], params[name])
        new_params[name] = optax.apply_updates(params[name], updates)
    return new_params, new_states


donating = jax.jit(advance, donate_argnums=(0, 1))


def ended(run, first):
    for n in range(first, END):
        run = donating(*run, jnp.float32(n))
    return run


def on_host(tree):
    return jax.tree.map(np.array, tree)


def assert_same_bits(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(on_host(one)), jax.tree.leaves(on_host(other)), strict=True):
        assert a.dtype == b.dtype
        assert a.tobytes() == b.tobytes()


@pytest.fixture(scope="module")
def runs():
    """`[(w_0, state_0), ...]` of a run that was not cut, the first `END` of them on the host."""
    run, history = begin(), []
    for n in range(END):
        history.append(on_host(run))
        run = donating(*run, jnp.float32(n))
    taken = {name: int(optax.tree.get(state, "jumps_taken")) for name, state in run[1].items()}
    assert taken == {"fractions": 3, "window": 3, "bfloat16": 3, "host": 3}
    return [*history, on_host(run)]


def with_flax(run):
    return serialization.from_bytes(begin(), serialization.to_bytes(run))


def with_pickle(run):
    return pickle.loads(pickle.dumps(run))


def onto_plain_devices(run):
    return jax.device_put(run, jax.devices()[0])


@pytest.mark.parametrize("carried", [with_flax, with_pickle, onto_plain_devices])
def test_cut_at_every_step(runs, carried):
    shardings = jax.tree.map(lambda leaf: leaf.sharding, begin())
    for cut in range(END):
        run = carried(runs[cut])
        assert_same_bits(run, runs[cut])
        assert_same_bits(ended(jax.device_put(run, shardings), cut), runs[END])


def test_a_new_state_is_pickled_without_its_forecaster():
    state = introspect((4,), custom_forecaster(lambda now: now, (1.0,))).init(jnp.ones(3))
    assert state.made_by is not None
    assert_same_bits(with_pickle(state), state)


@pytest.mark.parametrize("carried", [with_pickle, onto_plain_devices])
def test_snapshots_that_are_not_on_the_host_are_refused(runs, carried):
    with pytest.raises(ValueError, match=r"must be in the memory of the host.* jax\.device_put\(state, "):
        donating(*carried(runs[5]), jnp.float32(5))


@pytest.mark.slow
def test_cut_at_every_step_with_orbax(runs, tmp_path):
    shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, begin())
    with ocp.CheckpointManager(tmp_path) as manager:
        run = begin()
        for n in range(END):
            manager.save(n, args=ocp.args.StandardSave(run))  # in the background, while its buffers are donated
            run = donating(*run, jnp.float32(n))
        manager.wait_until_finished()
        for cut in range(END):
            run = manager.restore(cut, args=ocp.args.StandardRestore(shapes))
            assert_same_bits(run, runs[cut])
            for leaf, shape in zip(jax.tree.leaves(run), jax.tree.leaves(shapes), strict=True):
                assert leaf.sharding == shape.sharding  # with the kind of memory
            assert_same_bits(ended(run, cut), runs[END])


def test_cut_of_a_model_and_optimizer_of_nnx(tmp_path):
    tx = optax.chain(optax.adam(0.05), introspect((4, 8), HALF))

    @nnx.jit
    def step(model, optimizer):
        optimizer.update(model, nnx.grad(lambda model: jnp.mean((model(jnp.eye(3)) - 1) ** 2))(model))

    def made():
        model = nnx.Linear(3, 2, use_bias=False, rngs=nnx.Rngs(0))
        return model, nnx.Optimizer(model, tx, wrt=nnx.Param)

    run, resumed = made(), made()
    for _ in range(6):
        step(*run)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "6", nnx.state(run))
        checkpointer.wait_until_finished()
        nnx.update(resumed, checkpointer.restore(tmp_path / "6", nnx.state(resumed)))
    for _ in range(6):
        step(*run)
        step(*resumed)
    assert_same_bits(nnx.state(resumed), nnx.state(run))
    assert resumed[1].opt_state[1].jumps_taken[...] == 2


def test_a_state_restored_without_a_target_is_refused(tmp_path):
    params = {"w": jnp.ones(3)}
    for name, tx in {
        "alone": introspect((4,), HALF),
        "chain": optax.chain(optax.sgd(0.1), introspect((4,), HALF)),
    }.items():
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(tmp_path / name, tx.init(params))
            checkpointer.wait_until_finished()
            state = checkpointer.restore(tmp_path / name)
        with pytest.raises(
            ValueError, match=r"must be an IntrospectState; got dict\. A checkpoint restored without a target"
        ):
            tx.update(params, state, params)


def trained(tx, steps, params=PARAMS["w"], state=None, first=0):
    """Returns `[w_first, ...]` and the last state; every update is 0.5."""
    state, history = tx.init(params) if state is None else state, [params]
    update = jax.jit(tx.update)
    for _ in range(first, steps):
        updates, state = update(jnp.full_like(params, 0.5), state, history[-1])
        history.append(optax.apply_updates(history[-1], updates))
    return history, state


def test_another_schedule_of_as_many_slots():
    """The jump at 6 needs step 3, which was not kept. That at 12 needs steps 6 and 0, and is made."""
    old, new = introspect((4, 8), HALF), introspect((6, 12), HALF)
    history, state = trained(old, 5)
    assert len(state.snapshots) == len(new.init(PARAMS["w"]).snapshots)
    rest, state = trained(new, 14, history[-1], state, first=5)
    history += rest[1:]
    assert (state.introspect_step, state.jumps_taken, state.jumps_refused) == (14, 2, 1)
    np.testing.assert_allclose(history[7] - history[6], 0.5, 1e-5)
    points = np.stack([np.ravel(history[n]) for n in (12, 6, 0)])
    forecast = np.polyval(np.polyfit((1.0, 0.5, 0.0), points, 1), 1.5).reshape(2, 3)
    np.testing.assert_allclose(history[13], forecast + 0.5, 1e-5)


def test_another_number_of_slots_is_refused():
    params = PARAMS["w"]
    with pytest.raises(ValueError, match=r"made for other jumps; see optax_introspect\.reschedule"):
        introspect((4, 6, 7), HALF).update(params, introspect((4,), HALF).init(params), params)


@pytest.mark.parametrize(
    ("snapshot_dtype", "dtype"),
    [(None, "bfloat16"), ("bfloat16", "bfloat16"), ("float32", "float16"), (None, "float64")],
)
def test_weights_of_another_dtype_are_refused(snapshot_dtype, dtype):
    with jax.enable_x64(dtype == "float64"):
        tx = introspect((4,), HALF, snapshot_dtype=snapshot_dtype)
        state = tx.init({"w": jnp.ones(3, jnp.float32)})
        params = {"w": jnp.ones(3, dtype)}
        with pytest.raises(ValueError, match=f"params are not those .* at w the snapshots hold .*, and .* {dtype}"):
            tx.update(params, state, params)


def test_another_snapshot_dtype_is_refused():
    params = {"w": jnp.ones(3)}
    state = introspect((4,), HALF).init(params)
    with pytest.raises(ValueError, match=r"at w the snapshots hold float32\[3\], and these params need bfloat16\[3\]"):
        introspect((4,), HALF, snapshot_dtype="bfloat16").update(params, state, params)
