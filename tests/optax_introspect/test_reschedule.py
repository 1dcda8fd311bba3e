"""A run that goes on with other jumps equals one that had them from the start."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from optax_introspect import introspect, nesterov, polynomial, reschedule

FIT = polynomial(1, 1.3, points=(1.0, 0.4, 0.0))
# Not weakly typed, which would compile everything twice.
START = {"b": jnp.float32(2.0), "w": jnp.array([[3.0, -4.0, 1.0]])}


def chain(jump_steps, forecaster=FIT, wrap=lambda tx: tx, **kwargs):
    return optax.chain(optax.adam(0.05), wrap(introspect(jump_steps, forecaster, **kwargs)))


def train(tx, steps, params=START, state=None, start=0):
    """Returns `[w_start, ..., w_steps]` and the last state."""
    state = tx.init(params) if state is None else state
    update, history = jax.jit(tx.update), [params]
    for n in range(start, steps):
        gradient = jax.tree.map(lambda w, n=n: w + float(np.sin(n)), params)
        updates, state = update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        history.append(params)
    return history, state


def counts(state):
    own = state[-1]
    own = own if hasattr(own, "jumps_taken") else own.inner_state
    return int(own.jumps_taken), int(own.jumps_refused)


def masked(tx):
    return optax.masked(tx, {"b": False, "w": True})


KINDS = {
    "same": {},
    "bfloat16": {"snapshot_dtype": jnp.bfloat16},
    "host": {"memory_kind": "pinned_host"},
    "masked": {"wrap": masked},
}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("same", "bfloat16"),
        *(
            pytest.param(*both, marks=pytest.mark.slow)
            for both in (("same", "host"), ("host", "same"), ("masked", "masked"), ("host", "host"))
        ),
    ],
)
def test_other_jumps_equal_those_from_the_start(old, new):
    before, after = chain((30, 40), **KINDS[old]), chain((20, 30, 40), **KINDS[new])
    expected, last = train(after, 50)
    # 8 is 0.4 * 20, which the old jumps have no snapshot of.
    history, state = train(before, 18)
    state = reschedule(state, history[-1], after, {8: history[8]})
    found, state = train(after, 50, history[-1], state, 18)
    jax.tree.map(np.testing.assert_array_equal, found[-1], expected[-1])
    assert counts(state) == counts(last) == (3, 0)


@pytest.mark.parametrize("at", [0, 7, 30, 31])
def test_at_every_moment(at):
    after = chain((30, 34, 45))
    expected, _ = train(after, 50)
    history, state = train(chain((30,)), at)
    given = {n: history[n] for n in range(at)}
    state = reschedule(state, history[-1], after, given)
    found, state = train(after, 50, history[-1], state, at)
    jax.tree.map(np.testing.assert_array_equal, found[-1], expected[-1])
    assert counts(state) == (3, 0)


def test_jumps_are_added_to_a_run_without():
    plain, after = optax.adam(0.05), chain((20, 30))
    history, state = train(plain, 10)
    state = reschedule(state, history[-1], after, dict(enumerate(history[:-1])), step=10)
    found, state = train(after, 40, history[-1], state, 10)
    jax.tree.map(np.testing.assert_array_equal, found[-1], train(after, 40)[0][-1])
    assert counts(state) == (2, 0)


def test_a_window_takes_over():
    after = chain(range(4, 60, 5), nesterov(5))
    history, state = train(chain((12,)), 20)
    state = reschedule(state, history[-1], after, dict(enumerate(history[:-1])))
    _, state = train(after, 60, history[-1], state, 20)
    assert counts(state) == (1 + 8, 0)


def test_jumps_of_a_period_may_begin_later():
    # What the state does not hold can be left out, as the error says.
    history, state = train(chain(range(4, 40, 5), nesterov(5)), 12)
    with pytest.raises(ValueError, match=r"at \[17\] need .* steps \[6, 11\], .* or leave these jumps out"):
        reschedule(state, history[-1], chain(range(17, 40, 6), nesterov(6)))
    later = chain(range(23, 40, 6), nesterov(6))
    _, state = train(later, 40, history[-1], reschedule(state, history[-1], later), start=12)
    assert counts(state) == (2 + 3, 0)


@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
def test_differences_to_weights_that_are_gone_are_not_weights(dtype):
    """The only jump overwrites the first weights, which narrow snapshots are differences to."""
    four = polynomial(1, 1.3, points=(1.0, 0.7, 0.4, 0.0))
    history, state = train(chain((10,), four, snapshot_dtype=dtype), 12)
    later = chain((17,), four, snapshot_dtype=dtype)
    if dtype is not None:
        with pytest.raises(ValueError, match=r"need the weights of the steps \[7\]"):
            reschedule(state, history[-1], later, {0: START})
    state = reschedule(state, history[-1], later, {0: START, 7: history[7]})
    kept = dict(zip(state[-1].snapshot_steps.tolist(), state[-1].snapshots, strict=True))
    first = START["w"] if dtype is not None else 0
    np.testing.assert_allclose(kept[7]["w"] + first, history[7]["w"], rtol=1e-2)


def test_numbers_as_parameters_and_keys_in_the_state():
    def with_noise(*jump_steps):
        noise = optax.add_noise(0.1, 0.5, jax.random.key(0))
        return optax.chain(noise, optax.sgd(0.1), introspect(jump_steps, FIT))

    params = {"w": 2.0}
    state = with_noise(20).init(params)
    for _ in range(5):
        _, state = with_noise(20).update({"w": jnp.float32(1.0)}, state, params)
    state = reschedule(state, params, with_noise(20, 30), {0: {"w": 3.0}})
    assert float(state[-1].snapshots[state[-1].snapshot_steps.tolist().index(0)]["w"]) == 3.0
    with pytest.raises(ValueError, match="which differ from array 2 on"):
        reschedule(state, params, optax.chain(optax.adam(0.1), introspect((20,), FIT)))


def test_nothing_that_was_given_is_donated():
    history, state = train(chain((30,)), 10)
    first, now = history[0], history[-1]
    state = reschedule(state, now, chain((20,)), {0: first, 8: history[8]})
    tx = chain((20,))
    jax.jit(tx.update, donate_argnums=1)(now, state, now)
    jax.block_until_ready(jax.tree.map(lambda w: w + 1, (first, history[8])))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((first, history[8])))


def test_sharding_is_that_of_the_parameters():
    sharding = jax.sharding.NamedSharding(jax.make_mesh((1,), ("x",)), jax.sharding.PartitionSpec("x"))
    params = {"b": jnp.float32(2.0), "w": jax.device_put(jnp.ones((1, 3)), sharding)}
    state = reschedule(chain((30,)).init(params), params, chain((30, 40)))
    assert all(tree["w"].sharding == sharding for tree in state[-1].snapshots)


def test_nnx_optimizers():
    @nnx.jit
    def step(model, optimizer):
        optimizer.update(model, nnx.grad(lambda model: (model(jnp.ones((1, 3))) ** 2).mean())(model))

    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    old = nnx.Optimizer(model, chain((20, 30)), wrt=nnx.Param)
    for _ in range(10):
        step(model, old)
    tx = chain((20, 30, 40))
    state = reschedule(old.opt_state, nnx.state(model, nnx.Param), tx)
    new = nnx.Optimizer(model, tx, wrt=nnx.Param)
    nnx.update(new.opt_state, nnx.state(state))
    for _ in range(35):
        step(model, new)
    assert new.opt_state[-1].introspect_step[...] == 45
    assert new.opt_state[-1].jumps_taken[...] == 3


def case(*, old=None, new=None, weights=None, params=START, step=None, state=None):
    old = chain((30,)) if old is None else old
    new = chain((30, 40)) if new is None else new
    state = old.init(START) if state is None else state
    return lambda: reschedule(state, params, new, weights, step=step)


def at_step(n):
    return optax.tree.set(chain((30,)).init(START), introspect_step=jnp.int32(n))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            case(state=at_step(18)),
            r"after 18 updates the jumps at \[30, 40\] need the weights of the steps \[0, 12, 16\]",
        ),
        (case(state=at_step(35)), r"the jumps at \[40\] need the weights of the steps \[0, 16\]"),
        (case(new=optax.adam(0.05)), "tx must have one introspect in it; got 0"),
        (case(new=optax.chain(chain((30,)), introspect((40,)))), "tx must have one introspect in it; got 2"),
        (case(old=optax.adam(0.05)), "step must be given"),
        (case(old=optax.adam(0.05), step=-1), "step must be an integer from 0"),
        (case(step=3), "step is 3, but opt_state has counted 0 updates"),
        (case(old=optax.chain(optax.sgd(0.1), introspect((30,), FIT))), "it has 0 other arrays and tx 5"),
        (case(weights={2.5: START}), "every step of weights must be an integer"),
        (
            case(state=at_step(18), weights={0: {"w": jnp.ones((1, 3))}}),
            r"weights\[0\] must be like params: at \['b'\]",
        ),
        (
            case(state=at_step(18), weights={0: jax.tree.map(lambda w: w.astype(jnp.bfloat16), START)}),
            r"at \['b'\] it has bfloat16\[\], not float32\[\]",
        ),
    ],
)
def test_what_cannot_be_done_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
