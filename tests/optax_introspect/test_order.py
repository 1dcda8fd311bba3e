import jax
import jax.numpy as jnp
import optax
import optax.contrib
import pytest

from optax_introspect import check_order, introspect, polynomial

PARAMS = {"b": jnp.ones(3), "w": jnp.ones((2, 2), jnp.bfloat16)}


def jumps():
    return introspect((5, 10), polynomial(1, 1.3))


def labels(params):
    return {name: "early" if name == "b" else "late" for name in params}


LAST = {
    "chain": optax.chain(optax.adam(0.1), jumps()),
    "alone": jumps(),
    "MultiSteps": optax.MultiSteps(optax.chain(optax.sgd(0.1), jumps()), 3).gradient_transformation(),
    "after MultiSteps": optax.chain(optax.MultiSteps(optax.sgd(0.1), 3).gradient_transformation(), jumps()),
    "apply_if_finite": optax.apply_if_finite(optax.chain(optax.sgd(0.1), jumps()), 3),
    "masked": optax.chain(optax.sgd(0.1), optax.masked(jumps(), {"b": False, "w": True})),
    "partition": optax.partition(
        {"early": optax.chain(optax.sgd(0.1), jumps()), "late": optax.chain(optax.adam(0.1), jumps())}, labels
    ),
    "flatten": optax.flatten(optax.chain(optax.sgd(0.1), jumps())),
    "positive": optax.chain(optax.sgd(0.1), jumps(), optax.keep_params_nonnegative()),
    "two in a chain": optax.chain(optax.sgd(0.1), jumps(), jumps()),
    "compiled": optax.GradientTransformation(*map(jax.jit, optax.chain(optax.sgd(0.1), jumps()))),
}

CHANGED = {
    "scale": (optax.chain(jumps(), optax.scale(-0.1)), "2 of the 2"),
    "clip": (optax.chain(optax.sgd(0.1), jumps(), optax.clip_by_global_norm(1.0)), "2 of the 2"),
    "ema": (optax.chain(optax.sgd(0.1), jumps(), optax.ema(0.5)), "2 of the 2"),
    "decay": (optax.chain(optax.sgd(0.1), jumps(), optax.add_decayed_weights(0.01)), "1 of the 2"),
    "schedule_free": (optax.contrib.schedule_free(optax.chain(optax.sgd(0.1), jumps()), 0.1), "2 of the 2"),
    "one of two": (
        optax.partition(
            {"early": optax.chain(optax.sgd(0.1), jumps()), "late": optax.chain(jumps(), optax.scale(0.5))}, labels
        ),
        "1 of the 2",
    ),
    "compiled": (
        optax.GradientTransformation(*map(jax.jit, optax.chain(jumps(), optax.scale(0.5)))),
        "2 of the 2",
    ),
    "part": (optax.chain(jumps(), optax.masked(optax.scale(0.5), {"b": True, "w": False})), "1 of the 2"),
}


class TestCheckOrder:
    @pytest.mark.parametrize("name", LAST)
    def test_last(self, name):
        check_order(LAST[name], PARAMS)

    def test_lookahead(self):
        tx = optax.lookahead(optax.chain(optax.sgd(0.1), jumps()), 5, 0.5)
        check_order(tx, optax.LookaheadParams.init_synced(jnp.ones(3)))

    @pytest.mark.parametrize("name", CHANGED)
    def test_changed(self, name):
        tx, message = CHANGED[name]
        with pytest.raises(ValueError, match=f"introspect does not stand last: what comes after it changes {message}"):
            check_order(tx, PARAMS)

    def test_shapes_and_extra_arguments(self):
        shapes = jax.eval_shape(lambda: PARAMS)
        check_order(optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau(), jumps()), shapes, value=1.0)

    def test_more_arrays_than_marks(self):
        flags = [False] * 64 + [True]
        tx = optax.chain(jumps(), optax.masked(optax.scale(0.5), flags))
        with pytest.raises(ValueError, match="changes 1 of the 65"):
            check_order(tx, [jnp.ones(2)] * 65)

    def test_numbers_and_empty_arrays(self):
        check_order(optax.chain(optax.sgd(0.1), jumps()), {"number": 1.0, "none": jnp.ones((0, 3))})

    def test_sharded(self):
        sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0], memory_kind=None)
        check_order(optax.chain(optax.sgd(0.1), jumps()), jax.ShapeDtypeStruct((3,), jnp.float32, sharding=sharding))

    @pytest.mark.parametrize("tx", [optax.adam(0.1), introspect((5,), polynomial(1, 1.3), mask=False)])
    def test_none(self, tx):
        with pytest.raises(ValueError, match="there is no introspect in tx that forecasts any of these params"):
            check_order(tx, PARAMS)

    @pytest.mark.parametrize(
        ("tx", "zeros"),
        [
            (optax.chain(jumps(), optax.set_to_zero()), 64),
            (optax.MultiSteps(optax.chain(jumps(), optax.sgd(0.1)), 65).gradient_transformation(), 64),
            (optax.MultiSteps(optax.chain(optax.sgd(0.1), jumps()), 40).gradient_transformation(), 63),
        ],
    )
    def test_nothing_is_given_out(self, tx, zeros):
        with pytest.raises(
            ValueError,
            match=f"the order cannot be checked, since tx gives out nothing but zeros in {zeros} of 64 updates; "
            "check the optimizer that is wrapped in it",
        ):
            check_order(tx, PARAMS)

    def test_what_is_compiled_forgets_it(self):
        tx = optax.GradientTransformation(*map(jax.jit, optax.chain(optax.sgd(0.5), jumps())))
        check_order(tx, PARAMS)
        updates, _ = tx.update(PARAMS, tx.init(PARAMS), PARAMS)
        assert jnp.all(updates["b"] == -0.5)

    def test_nothing_is_leaked(self):
        with jax.checking_leaks():
            check_order(optax.chain(optax.sgd(0.1), jumps()), PARAMS)
