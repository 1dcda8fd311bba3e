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
    "never": optax.chain(jumps(), optax.set_to_zero()),
}

CHANGED = {
    "scale": (optax.chain(jumps(), optax.scale(-0.1)), "2 of the 2"),
    "clip": (optax.chain(optax.sgd(0.1), jumps(), optax.clip_by_global_norm(1.0)), "2 of the 2"),
    "ema": (optax.chain(optax.sgd(0.1), jumps(), optax.ema(0.5)), "2 of the 2"),
    "decay": (optax.chain(optax.sgd(0.1), jumps(), optax.add_decayed_weights(0.01)), "1 of the 2"),
    "schedule_free": (optax.contrib.schedule_free(optax.chain(optax.sgd(0.1), jumps()), 0.1), "2 of the 2"),
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

    def test_none(self):
        with pytest.raises(ValueError, match="there is no introspect in tx"):
            check_order(optax.adam(0.1), PARAMS)
