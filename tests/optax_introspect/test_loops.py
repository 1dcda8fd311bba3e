"""The same training gives the same weights, however its loop is written and in every mode of JAX."""

import contextlib
import functools
import pickle

import cloudpickle
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from flax.training.train_state import TrainState

import optax_introspect
from optax_introspect import gaussian_noise, introspect, network_forecaster, polynomial, pretrained
from tests.optax_introspect.by_hand import CURVATURE, STEPS, TWO_POINT, by_hand, introspect_states, jumps, plain, start


def loss(params):
    return sum(jnp.sum(jnp.asarray(c, jnp.float32) * params[name] ** 2) for name, c in CURVATURE.items()) / 2


def update(tx, carry, gradient=lambda params: jax.grad(loss)(params)):
    params, state = carry
    updates, state = tx.update(gradient(params), state, params)
    return optax.apply_updates(params, updates), state


def repeated(step, carry):
    for _ in range(STEPS):
        carry = step(carry)
    return carry


LOOPS = {}


def loop(function):
    LOOPS[function.__name__] = function
    return function


@pytest.mark.parametrize("name", LOOPS)
def test_weights(name):
    params, state = LOOPS[name](optax.chain(optax.sgd(0.1), jumps()))
    expected = by_hand(plain)[-1]
    for leaf in expected:
        np.testing.assert_allclose(params[leaf], expected[leaf], 2e-5, err_msg=leaf)
    (found,) = introspect_states(state)
    assert (found.introspect_step, found.jumps_taken, found.jumps_refused) == (STEPS, 2, 0)


def begin(tx):
    params = start()
    return params, tx.init(params)


@loop
def eager(tx):
    return repeated(functools.partial(update, tx), begin(tx))


@loop
def jit_with_donation(tx):
    return repeated(jax.jit(functools.partial(update, tx), donate_argnums=0), begin(tx))


@loop
def init_under_jit(tx):
    params = start()
    return repeated(jax.jit(functools.partial(update, tx)), (params, jax.jit(tx.init)(params)))


@loop
def scan(tx):
    return jax.jit(lambda carry: jax.lax.scan(lambda c, _: (update(tx, c), None), carry, length=STEPS)[0])(begin(tx))


@loop
def fori_loop(tx):
    return jax.jit(lambda carry: jax.lax.fori_loop(0, STEPS, lambda _, c: update(tx, c), carry))(begin(tx))


@loop
def while_loop(tx):
    def unfinished(carry):
        return optax.tree.get(carry[1], "introspect_step") < STEPS

    return jax.jit(lambda carry: jax.lax.while_loop(unfinished, functools.partial(update, tx), carry))(begin(tx))


@loop
def remat(tx):
    return repeated(jax.jit(functools.partial(update, tx, gradient=jax.grad(jax.checkpoint(loss)))), begin(tx))


@loop
def accumulated_gradients(tx):
    def gradient(params):
        def add(total, part):
            return jax.tree.map(jnp.add, total, jax.grad(lambda p: part * loss(p))(params)), None

        return jax.lax.scan(add, jax.tree.map(jnp.zeros_like, params), jnp.array([0.25, 0.75]))[0]

    return repeated(jax.jit(functools.partial(update, tx, gradient=gradient)), begin(tx))


def ensemble_axes(tx):
    """All arrays have a member axis, but for what tells when to capture and to jump."""
    axes = jax.tree.map(lambda leaf: 0, jax.eval_shape(tx.init, start()))
    return optax.tree.set(axes, introspect_step=None, snapshot_steps=None)


def ensemble_step(tx, axes):
    return jax.jit(jax.vmap(lambda p, s: update(tx, (p, s)), in_axes=(0, axes), out_axes=(0, axes)))


@loop
def vmap_over_an_ensemble(tx):
    axes, factors = ensemble_axes(tx), jnp.array([1.0, -2.0])
    params = jax.tree.map(lambda leaf: jnp.multiply.outer(factors, leaf), start())
    state = jax.vmap(tx.init, out_axes=axes)(params)
    step = ensemble_step(tx, axes)
    params, state = repeated(lambda carry: step(*carry), (params, state))
    first, second = (jax.tree.map(lambda leaf, i=i: leaf[i] / factors[i], params) for i in (0, 1))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-5), first, second)
    np.testing.assert_array_equal(state[1].jumps_taken, [2, 2])
    return first, jax.tree.map(lambda leaf, axis: leaf if axis is None else leaf[0], state, axes)


def test_only_with_a_shared_counter_an_ensemble_keeps_its_conditionals():
    tx = optax.chain(optax.sgd(0.1), jumps())
    params = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), start())
    cases = []
    for axes in (ensemble_axes(tx), jax.tree.map(lambda leaf: 0, jax.eval_shape(tx.init, start()))):
        state = jax.eval_shape(jax.vmap(tx.init, out_axes=axes), params)
        cases.append("stablehlo.case" in ensemble_step(tx, axes).lower(params, state).as_text())
    assert cases == [True, False]


@loop
def shard_map(tx):
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    step = jax.shard_map(functools.partial(update, tx), mesh=mesh, in_specs=(jax.P(),), out_specs=jax.P())
    return repeated(jax.jit(step), begin(tx))


@loop
def linen_train_state(tx):
    class Model(nn.Module):
        @nn.compact
        def __call__(self):
            return loss({name: self.param(name, lambda key, name=name: start()[name]) for name in CURVATURE})

    model = Model()
    params = model.init(jax.random.key(0))["params"]

    @jax.jit
    def step(state):
        return state.apply_gradients(grads=jax.grad(lambda params: model.apply({"params": params}))(state.params))

    state = repeated(step, TrainState.create(apply_fn=model.apply, params=params, tx=tx))
    return state.params, state.opt_state


class Model(nnx.Module):
    def __init__(self):
        self.a, self.b = (nnx.Param(start()[name]) for name in ("a", "b"))
        self.steps = nnx.Variable(jnp.zeros([], jnp.int32))

    def __call__(self):
        return loss({"a": self.a[...], "b": self.b[...]})


@loop
def nnx_optimizer(tx):
    model = Model()
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        optimizer.update(model, nnx.grad(lambda model: model())(model))

    for _ in range(STEPS):
        step(model, optimizer)
    return {"a": model.a[...], "b": model.b[...]}, nnx.as_pure(optimizer.opt_state)


class EquinoxModel(eqx.Module):
    a: jax.Array
    b: jax.Array
    activation: object = jax.nn.relu

    def __call__(self):
        return loss({"a": self.a, "b": self.b})


@loop
def equinox(tx):
    model = EquinoxModel(**start())
    state = tx.init(eqx.filter(model, eqx.is_inexact_array))

    @eqx.filter_jit
    def step(carry):
        model, state = carry
        gradient = eqx.filter_grad(lambda model: model())(model)
        updates, state = tx.update(gradient, state, eqx.filter(model, eqx.is_inexact_array))
        return eqx.apply_updates(model, updates), state

    model, state = repeated(step, (model, state))
    return {"a": model.a, "b": model.b}, state


def test_a_whole_model_of_equinox_is_refused_and_told_how():
    model = EquinoxModel(**start())
    tx = introspect((5,), TWO_POINT)
    with pytest.raises(ValueError, match=r"activation.*pass eqx.filter\(model, eqx.is_inexact_array\)"):
        tx.init(model)
    arrays = eqx.filter(model, eqx.is_inexact_array)
    with pytest.raises(ValueError, match=r"activation.*pass eqx.filter\(model, eqx.is_inexact_array\)"):
        tx.update(arrays, tx.init(arrays), model)


@pytest.mark.parametrize("how", [nnx.eval_shape, lambda create: nnx.jit(create)()], ids=["eval_shape", "jit"])
def test_first_use_under_a_trace(how):
    def create():
        model = Model()
        tx = optax.chain(optax.adam(0.01), introspect((3000,)))
        return model, nnx.Optimizer(model, tx, wrt=nnx.Param)

    pretrained.cache_clear()
    model, optimizer = how(create)
    assert optimizer.opt_state[1].introspect_step.shape == ()
    # The predictor is whole after the trace.
    assert pretrained()(*map(jnp.float32, (4.0, 3.0, 2.0, 1.0)), key=None) > 4
    if how is not nnx.eval_shape:
        optimizer.update(model, nnx.grad(lambda model: model())(model))
        assert optimizer.opt_state[1].introspect_step[...] == 1


def updated(params, updates, forecaster=TWO_POINT):
    """Makes five updates, the last of them with a jump."""
    tx = introspect((4,), forecaster)
    state = tx.init(params)
    for _ in range(5):
        found, state = tx.update(updates, state, params)
        params = optax.apply_updates(params, found)
    return params, found, state


class TestLeavesThatAreLeftAlone:
    WEIGHTS = jnp.array([1.0, 2.0])
    # 5 updates of 0.5, and half of what the last two before the jump moved.
    EXPECTED = WEIGHTS + 5 * 0.5 + 0.5

    @pytest.mark.parametrize(
        ("leaf", "update"),
        [
            (jnp.array([0.0, -jnp.inf]), None),
            (jnp.arange(2), np.zeros(2, jax.dtypes.float0)),
            (jnp.arange(2), jnp.zeros(2, jnp.int32)),
            (jnp.array([True, False]), None),
            (jnp.ones(2, jnp.float8_e4m3fn), jnp.ones(2, jnp.float8_e4m3fn)),
            (jnp.ones(2, jnp.float4_e2m1fn), jnp.ones(2, jnp.float4_e2m1fn)),
        ],
        ids=["constant", "float0", "int32", "bool", "float8", "float4"],
    )
    def test_beside_weights(self, leaf, update):
        tx = introspect((4,), TWO_POINT)
        params, state = {"w": self.WEIGHTS, "x": leaf}, tx.init({"w": self.WEIGHTS, "x": leaf})
        for _ in range(5):
            updates, state = tx.update({"w": jnp.full(2, 0.5), "x": update}, state, params)
            params = {"w": params["w"] + updates["w"], "x": leaf}
            if update is None:
                assert updates["x"] is None
            else:
                assert updates["x"].dtype == update.dtype
                np.testing.assert_array_equal(updates["x"], update)
        np.testing.assert_allclose(params["w"], self.EXPECTED)
        assert (state.jumps_taken, state.jumps_refused) == (1, 0)


@pytest.mark.parametrize("forecaster", [TWO_POINT, None], ids=["two-point", "default"])
def test_float64_weights_that_hardly_move(forecaster):
    with jax.enable_x64(True):
        jump = introspect((10,), forecaster)
        params, state = jnp.ones(3, jnp.float64), jump.init(jnp.ones(3, jnp.float64))
        for _ in range(11):
            updates, state = jump.update(jnp.full(3, 1e-9), state, params)
            params = params + updates
        assert params.dtype == state.snapshots[0].dtype == np.float64
        assert state.jumps_taken == 1
    # The default predictor is equivariant: it may as well be asked for steps of 1 from 0.
    points = [jnp.float32(n) for n in ((10, 4) if forecaster else (10, 7, 4, 0))]
    forecast = (forecaster or pretrained())(*points, key=None)
    assert forecast > 11
    np.testing.assert_allclose((np.asarray(params) - 1) / 1e-9, float(forecast) + 1, 1e-5)


@contextlib.contextmanager
def strict():
    with (
        jax.debug_nans(True),
        jax.numpy_dtype_promotion("strict"),
        jax.numpy_rank_promotion("raise"),
        jax.checking_leaks(),
        jax.transfer_guard("disallow"),
    ):
        yield


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["network", "others"])
def test_modes_of_jax_change_nothing(kind):
    def run(context):
        if kind == "network":
            tx = introspect((5,), snapshot_dtype=jnp.bfloat16)
            params = {"bf16": jnp.arange(1, 5, dtype=jnp.bfloat16) / 4, "f32": jnp.linspace(0.5, 2, 6).reshape(2, 3)}
        else:
            tx = optax.chain(introspect((5,), polynomial(1, 1.3)), introspect((7,), gaussian_noise(0.01, 0)))
            params = {"c64": jnp.array([[1 + 2j, 0.5j]], jnp.complex64)}
        updates = jax.tree.map(lambda leaf: leaf / leaf * 0.25, params)
        with context():
            step = jax.jit(lambda carry: update(tx, carry, gradient=lambda params: updates))
            carry = params, jax.jit(tx.init)(params)
            for _ in range(9):
                carry = step(carry)
        assert sum(int(found.jumps_taken) for found in introspect_states(carry[1])) == (1 if kind == "network" else 2)
        return jax.tree.map(lambda leaf: (leaf.dtype, np.asarray(leaf, np.complex64)), carry[0])

    expected = run(contextlib.nullcontext)
    for context in (strict, lambda: jax.enable_x64(True)):
        found = run(context)
        for name, (dtype, values) in expected.items():
            assert found[name][0] == dtype
            np.testing.assert_allclose(found[name][1], values, 1e-5)


def test_debug_nans_stops_at_a_forecast_that_would_be_refused():
    tx = introspect((1,), optax_introspect.custom_forecaster(lambda now: now * jnp.nan, (1.0,)))
    weights = jnp.ones(3)
    _, state = tx.update(weights, tx.init(weights), weights)
    assert tx.update(weights, state, weights)[1].jumps_refused == 1
    with jax.debug_nans(True), pytest.raises(FloatingPointError, match="invalid value"):
        tx.update(weights, state, weights)


def doubled(now):
    return 2 * now


PICKLED = {
    "linear": optax_introspect.linear((1.5, -0.5), (1.0, 0.4)),
    "polynomial": polynomial(2, 1.3),
    "lookahead": optax_introspect.lookahead(5),
    "heavy_ball": optax_introspect.heavy_ball(5, 1.0, 0.5),
    "nesterov": optax_introspect.nesterov(5),
    "gaussian_noise": gaussian_noise(0.1, 0),
    "custom_forecaster": optax_introspect.custom_forecaster(doubled, (1.0,)),
    "pretrained": pretrained(),
    "network_forecaster": network_forecaster(nnx.Linear(2, 1, rngs=nnx.Rngs(0)), points=(1.0, 0.4)),
}


@pytest.mark.parametrize("name", PICKLED)
def test_pickle_of_forecasters(name):
    forecaster = PICKLED[name]
    copy = pickle.loads(pickle.dumps(forecaster))
    points = [jnp.array([1.0, -2.0]) * (k + 1) for k in range(len(forecaster.points))]
    key = jax.random.key(0)
    assert copy.points == forecaster.points
    np.testing.assert_array_equal(copy(*points, key=key), forecaster(*points, key=key))


def test_cloudpickle_of_the_transformation():
    weights = jnp.array([1.0, -2.0])
    for forecaster in (None, TWO_POINT):
        tx = introspect((4,), forecaster, snapshot_dtype=jnp.bfloat16)
        copy = cloudpickle.loads(cloudpickle.dumps(tx))
        states, params = [tx.init(weights), copy.init(weights)], [weights, weights]
        for _ in range(5):
            for i, transformation in enumerate((tx, copy)):
                updates, states[i] = transformation.update(jnp.full(2, 0.5), states[i], params[i])
                params[i] = params[i] + updates
        np.testing.assert_array_equal(*params)
        assert states[0].jumps_taken == states[1].jumps_taken == 1
