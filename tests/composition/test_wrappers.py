"""The weights to expect from `introspect` with each of Optax's wrappers, derived by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optax_introspect import introspect
from tests.composition.by_hand import (
    CURVATURE,
    JUMPS,
    START,
    STEPS,
    TWO_POINT,
    assert_same_histories,
    by_hand,
    descent,
    forecast,
    jumps,
    jumps_taken,
    map_leaves,
    noisy_slope,
    slope,
    start,
    train,
)


def norm(tree):
    return np.sqrt(sum(np.sum(leaf**2) for leaf in tree.values()))


def with_momentum(rate=0.1, decay=0.9):
    """Gradient descent with momentum, for `by_hand`."""
    trace = map_leaves(np.zeros_like, START)

    def step(weights, n):
        nonlocal trace
        trace = map_leaves(lambda g, m: g + decay * m, slope(weights, n), trace)
        return descent(weights, trace, rate)

    return step


class TestBefore:
    """What stands before `introspect` sees every gradient and changes every update but those of jumps."""

    def test_a_state_of_its_own(self):
        history, state = train(optax.chain(optax.sgd(0.1, momentum=0.9), jumps()))
        assert_same_histories(history, by_hand(with_momentum()))
        assert jumps_taken(state) == [2]

    def test_clipping_and_weight_decay(self):
        tx = optax.chain(optax.clip_by_global_norm(1.0), optax.add_decayed_weights(0.05), optax.sgd(0.1), jumps())

        def step(weights, n):
            gradient = slope(weights, n)
            shrunk = map_leaves(lambda g: g * min(1.0, 1.0 / norm(gradient)), gradient)
            return descent(weights, map_leaves(lambda g, w: g + 0.05 * w, shrunk, weights))

        history, state = train(tx)
        assert_same_histories(history, by_hand(step))
        assert jumps_taken(state) == [2]

    def test_clipping_of_updates(self):
        tx = optax.chain(optax.sgd(0.1), optax.clip(0.02), jumps())

        def step(weights, n):
            return map_leaves(lambda w, g: w - np.clip(0.1 * g, -0.02, 0.02), weights, slope(weights, n))

        history, _ = train(tx)
        assert_same_histories(history, by_hand(step))

    def test_average_of_updates(self):
        total = map_leaves(np.zeros_like, START)

        def step(weights, n):
            nonlocal total
            total = map_leaves(lambda g, m: 0.8 * m + 0.2 * 0.1 * g, slope(weights, n), total)
            return map_leaves(lambda w, m: w - m / (1 - 0.8 ** (n + 1)), weights, total)

        history, state = train(optax.chain(optax.sgd(0.1), optax.ema(0.8), jumps()))
        assert_same_histories(history, by_hand(step))
        assert jumps_taken(state) == [2]

    def test_flat_parameters(self):
        expected = by_hand(with_momentum())
        for tx in (
            optax.flatten(optax.chain(optax.sgd(0.1, momentum=0.9), jumps())),
            optax.chain(optax.flatten(optax.sgd(0.1, momentum=0.9)), jumps()),
        ):
            history, state = train(tx)
            assert_same_histories(history, expected)
            assert jumps_taken(state) == [2]

    def test_a_rate_that_falls_on_a_plateau(self):
        tx = optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau(factor=0.5, patience=2), jumps())
        # With a loss that never gets better, half the rate from the third step on, a quarter from the fifth, ...
        history, state = train_with_value(tx)
        assert_same_histories(history, by_hand(lambda w, n: descent(w, slope(w, n), 0.1 * 0.5 ** (n // 2))))
        assert jumps_taken(state) == [2]


def train_with_value(tx):
    """As `train`, telling the optimizer at every step that the loss is 1."""
    told = optax.GradientTransformation(
        tx.init, lambda updates, state, params: tx.update(updates, state, params, value=jnp.float32(1.0))
    )
    return train(told)


class TestAfter:
    """What stands after `introspect` changes the forecast like any update, and the jump leads elsewhere."""

    def jump_changed(self, change):
        """The weights when each jump's displacement is changed; other steps are plain descent, changed as well."""
        history = [START]
        for n in range(STEPS):
            now = history[n]
            if n in JUMPS:
                updates = map_leaves(lambda f, w: f - w, forecast(history, n, JUMPS[n]), now)
            else:
                updates = map_leaves(lambda g: -0.1 * g, slope(now, n))
            history.append(map_leaves(lambda w, u: w + u, now, change(updates, now, n)))
        return history

    def test_scaling(self):
        history, _ = train(optax.chain(optax.scale(-0.1), jumps(), optax.scale(0.5)))
        assert_same_histories(history, self.jump_changed(lambda u, w, n: map_leaves(lambda u: 0.5 * u, u)))

    def test_clipping(self):
        history, _ = train(optax.chain(optax.sgd(0.1), jumps(), optax.clip_by_global_norm(0.3)))
        assert_same_histories(
            history, self.jump_changed(lambda u, w, n: map_leaves(lambda leaf: leaf * min(1.0, 0.3 / norm(u)), u))
        )

    def test_weight_decay(self):
        history, _ = train(optax.chain(optax.sgd(0.1), jumps(), optax.add_decayed_weights(-0.05)))
        assert_same_histories(history, self.jump_changed(lambda u, w, n: map_leaves(lambda u, w: u - 0.05 * w, u, w)))

    def test_average_of_updates(self):
        total = map_leaves(np.zeros_like, START)

        def averaged(updates, weights, n):
            nonlocal total
            total = map_leaves(lambda u, m: 0.8 * m + 0.2 * u, updates, total)
            return map_leaves(lambda m: m / (1 - 0.8 ** (n + 1)), total)

        history, _ = train(optax.chain(optax.sgd(0.1), jumps(), optax.ema(0.8)))
        assert_same_histories(history, self.jump_changed(averaged))

    def test_a_rate_that_falls_on_a_plateau(self):
        tx = optax.chain(optax.sgd(0.1), jumps(), optax.contrib.reduce_on_plateau(factor=0.5, patience=2))
        history, _ = train_with_value(tx)
        assert_same_histories(history, self.jump_changed(lambda u, w, n: map_leaves(lambda u: u * 0.5 ** (n // 2), u)))


class TestMultiSteps:
    """`optax.MultiSteps` sums the gradients of three calls for every update."""

    def expected_inside(self, is_bad=lambda n: False):
        """Each update's weights three times, and once more for every call that is skipped."""
        history, calls, n = [START], [START], 0
        while len(history) <= STEPS:
            update, gradients = len(history) - 1, []
            while len(gradients) < 3:
                if not is_bad(n):
                    gradients.append(noisy_slope(history[-1], n))
                calls.append(history[-1])
                n += 1
            after_update = descent(history[-1], map_leaves(lambda *g: sum(g) / 3, *gradients))
            history.append(forecast(history, update, JUMPS[update]) if update in JUMPS else after_update)
            calls[-1] = history[-1]
        return calls

    def test_inside_it_counts_updates(self):
        tx = optax.MultiSteps(optax.chain(optax.sgd(0.1), jumps()), every_k_schedule=3).gradient_transformation()
        expected = self.expected_inside()
        history, state = train(tx, len(expected) - 1, noisy_slope)
        assert_same_histories(history, expected)
        assert jumps_taken(state) == [2]

    def test_calls_that_are_skipped(self):
        # Among them one in the middle of an update, a whole update, and all calls around the first jump.
        bad = {1, 6, 7, 8, *range(17, 24)}

        def gradient(weights, n):
            return map_leaves(lambda g: np.full_like(g, np.nan) if n in bad else g, noisy_slope(weights, n))

        tx = optax.MultiSteps(
            optax.chain(optax.sgd(0.1), jumps()), 3, should_skip_update_fn=optax.skip_not_finite
        ).gradient_transformation()
        expected = self.expected_inside(lambda n: n in bad)
        history, state = train(tx, len(expected) - 1, gradient)
        assert_same_histories(history, expected)
        assert jumps_taken(state) == [2]

    def test_outside_it_counts_calls(self):
        # A jump at the first of three calls, where nothing is added to the weights, takes no update away.
        tx = optax.chain(optax.MultiSteps(optax.sgd(0.1), every_k_schedule=3).gradient_transformation(), jumps(15, 30))
        history, gradients = [START], []
        for n in range(3 * STEPS):
            gradients.append(noisy_slope(history[n], n))
            after_update = history[n]
            if n % 3 == 2:
                after_update = descent(history[n], map_leaves(lambda *g: sum(g) / 3, *gradients[-3:]))
            jump_from = {15: 6, 30: 12}
            history.append(forecast(history, n, jump_from[n]) if n in jump_from else after_update)

        found, state = train(tx, 3 * STEPS, noisy_slope)
        assert_same_histories(found, history)
        assert jumps_taken(state) == [2]


class TestApplyIfFinite:
    def rejecting(self, inner):
        return optax.apply_if_finite(inner, max_consecutive_errors=3)

    def gradient_without(self, bad):
        def gradient(weights, n):
            return map_leaves(lambda g: np.full_like(g, np.inf) if n in bad else g, slope(weights, n))

        return gradient

    def test_inside_calls_that_are_rejected_do_not_count(self):
        bad = (1, 6, 7, 13)  # at 6 and 13 a jump would have been due
        good = iter(by_hand(lambda w, n: descent(w, slope(w, n))))
        expected = [next(good)]
        for n in range(STEPS + len(bad)):
            expected.append(expected[-1] if n in bad else next(good))

        tx = self.rejecting(optax.chain(optax.sgd(0.1), jumps()))
        history, state = train(tx, STEPS + len(bad), self.gradient_without(bad))
        assert_same_histories(history, expected)
        assert jumps_taken(state) == [2]
        assert int(state.total_notfinite) == len(bad)

    def test_outside_every_call_counts(self):
        bad = (1, 4, 5, 10)  # at 5 and 10 a jump is due, and is made
        tx = optax.chain(self.rejecting(optax.sgd(0.1)), jumps())
        history, state = train(tx, gradient=self.gradient_without(bad))
        assert_same_histories(history, by_hand(lambda w, n: w if n in bad else descent(w, slope(w, n))))
        assert jumps_taken(state) == [2]


class TestGroups:
    def plain(self):
        return by_hand(lambda w, n: descent(w, slope(w, n)), jump_from={})

    def jumping(self):
        return by_hand(lambda w, n: descent(w, slope(w, n)))

    @pytest.mark.parametrize("mask", [{"a": True, "b": False}, lambda params: {name: name == "a" for name in params}])
    def test_only_the_jumps_masked(self, mask):
        expected = [jumping | {"b": plain["b"]} for jumping, plain in zip(self.jumping(), self.plain(), strict=True)]
        for jumps_of_some in (optax.masked(jumps(), mask), introspect(tuple(JUMPS), TWO_POINT, mask=mask)):
            history, state = train(optax.chain(optax.sgd(0.1), jumps_of_some))
            assert_same_histories(history, expected)
            assert jumps_taken(state) == [2]

    def test_optimizer_and_jumps_masked(self):
        # Optax hands on the gradients of what the mask leaves out, as they are.
        history, _ = train(optax.masked(optax.chain(optax.sgd(0.1), jumps()), {"a": True, "b": False}))
        raw = by_hand(lambda w, n: map_leaves(lambda w, g: w + g, w, slope(w, n)), jump_from={})
        assert_same_histories(
            history, [jumping | {"b": raw["b"]} for jumping, raw in zip(self.jumping(), raw, strict=True)]
        )

    def test_a_plan_for_each_group(self):
        tx = optax.partition(
            {
                "early": optax.chain(optax.sgd(0.1, momentum=0.9), jumps(4, 8)),
                "late": optax.chain(optax.sgd(0.1), jumps()),
            },
            {"a": "early", "b": "late"},
        )
        early = by_hand(with_momentum(), jump_from={4: 2, 8: 3})
        history, state = train(tx)
        assert_same_histories(
            history, [late | {"a": early["a"]} for early, late in zip(early, self.jumping(), strict=True)]
        )
        assert jumps_taken(state) == [2, 2]

    def test_a_group_that_is_not_trained(self):
        tx = optax.partition(
            {"trained": optax.chain(optax.sgd(0.1), jumps()), "frozen": optax.set_to_zero()},
            {"a": "trained", "b": "frozen"},
        )
        history, state = train(tx)
        assert_same_histories(history, [jumping | {"b": START["b"]} for jumping in self.jumping()])
        assert jumps_taken(state) == [2]


class TestInjectHyperparams:
    def rate(self, n):
        return 0.1 / (1 + n)

    @pytest.mark.parametrize("inside", [True, False])
    def test_a_schedule(self, inside):
        if inside:
            tx = optax.inject_hyperparams(lambda learning_rate: optax.chain(optax.sgd(learning_rate), jumps()))(
                learning_rate=self.rate
            )
        else:
            tx = optax.chain(optax.inject_hyperparams(optax.sgd)(learning_rate=self.rate), jumps())
        history, state = train(tx)
        assert_same_histories(history, by_hand(lambda w, n: descent(w, slope(w, n), self.rate(n))))
        assert jumps_taken(state) == [2]

    def test_a_rate_set_between_steps(self):
        tx = optax.inject_hyperparams(lambda learning_rate: optax.chain(optax.sgd(learning_rate), jumps()))(
            learning_rate=0.1
        )

        def update(updates, state, params):
            rate = jnp.where(optax.tree.get(state, "introspect_step") < 7, 0.1, 0.05)
            return tx.update(updates, optax.tree.set(state, learning_rate=rate), params)

        history, _ = train(optax.GradientTransformation(tx.init, update))
        assert_same_histories(history, by_hand(lambda w, n: descent(w, slope(w, n), 0.1 if n < 7 else 0.05)))

    def test_introspect_itself(self):
        tx = optax.inject_hyperparams(introspect, static_args=("forecaster",))(tuple(JUMPS), TWO_POINT)
        history, state = train(optax.chain(optax.sgd(0.1), tx))
        assert_same_histories(history, by_hand(lambda w, n: descent(w, slope(w, n))))
        assert jumps_taken(state) == [2]


class TestLookahead:
    """Fast weights and slow ones, which meet after steps 3, 7 and 11."""

    def expected(self, jump_from, both):
        fast, slow = [START], [START]
        for n in range(STEPS):
            next_fast, next_slow = descent(fast[n], slope(fast[n], n)), slow[n]
            if n in jump_from and not both:
                next_fast = forecast(fast, n, jump_from[n])
            if n % 4 == 3:
                next_slow = next_fast = map_leaves(lambda s, f: s + 0.5 * (f - s), slow[n], next_fast)
            if n in jump_from and both:
                next_fast, next_slow = forecast(fast, n, jump_from[n]), forecast(slow, n, jump_from[n])
            fast.append(next_fast)
            slow.append(next_slow)
        return fast, slow

    @pytest.mark.parametrize("jump_from", [JUMPS, {5: 2, 7: 3}], ids=["between", "at a meeting"])
    @pytest.mark.parametrize("both", [False, True], ids=["fast", "both"])
    def test_inside_the_fast_weights_jump_and_outside_both(self, jump_from, both):
        if both:
            tx = optax.chain(optax.lookahead(optax.sgd(0.1), 4, 0.5), jumps(*jump_from))
        else:
            tx = optax.lookahead(optax.chain(optax.sgd(0.1), jumps(*jump_from)), 4, 0.5)
        history, state = train(tx, params=optax.LookaheadParams.init_synced(start()), read=lambda params: params.fast)
        fast, slow = self.expected(jump_from, both)
        assert_same_histories([params.fast for params in history], fast)
        assert_same_histories([params.slow for params in history], slow)
        assert jumps_taken(state) == [2]

    def test_a_state_that_is_reset_begins_to_count_anew(self):
        tx = optax.lookahead(optax.chain(optax.sgd(0.1), jumps(2, 9)), 4, 0.5, reset_state=True)
        history, _ = train(tx, params=optax.LookaheadParams.init_synced(start()), read=lambda params: params.fast)
        # 0.4 of 2 is nearest to 1: the jump of every round of four steps, and the one at 9 never comes.
        fast, slow = self.expected({2: 1, 6: 5, 10: 9}, both=False)
        assert_same_histories([params.fast for params in history], fast)
        assert_same_histories([params.slow for params in history], slow)


class TestScheduleFree:
    """Parameters `y` between the iterates `z` of the base optimizer and their average `x`."""

    def expected(self, inside):
        y, z, x = [START], START, [START]
        for n in range(STEPS):
            here, average = y[n], x[n]
            updates = map_leaves(lambda g: -0.1 * g, slope(here, n))
            if n in JUMPS:
                displacement = map_leaves(lambda f, w: f - w, forecast(y, n, JUMPS[n]), here)
                updates = displacement if inside else updates
            z = map_leaves(lambda z, u: z + u, z, updates)
            average = map_leaves(lambda x, z, n=n: x + (z - x) / (n + 1), average, z)
            after_update = map_leaves(lambda x, z: 0.9 * x + 0.1 * z, average, z)
            if n in JUMPS and not inside:
                after_update = forecast(y, n, JUMPS[n])
                average = map_leaves(lambda y, z: (y - 0.1 * z) / 0.9, after_update, z)
            y.append(after_update)
            x.append(average)
        return y, x

    @pytest.mark.parametrize("inside", [False, True])
    def test_outside_the_parameters_jump_and_inside_the_iterates_move_as_far(self, inside):
        if inside:
            tx = optax.contrib.schedule_free(optax.chain(optax.sgd(0.1), jumps()), 0.1, b1=0.9)
        else:
            tx = optax.chain(optax.contrib.schedule_free(optax.sgd(0.1), 0.1, b1=0.9), jumps())
        history, state = train(tx)
        y, x = self.expected(inside)
        assert_same_histories(history, y)
        assert jumps_taken(state) == [2]
        evaluated = optax.contrib.schedule_free_eval_params(state if inside else state[0], history[-1])
        assert_same_histories([evaluated], [x[-1]])


class TestProjections:
    def test_projected_weights_are_what_is_forecast_from_and_forecasts_are_projected(self):
        history, state = train(optax.chain(optax.sgd(0.1), jumps()), project=optax.projections.projection_non_negative)
        expected = [START]
        for n in range(STEPS):
            step = descent(expected[n], slope(expected[n], n))
            step = forecast(expected, n, JUMPS[n]) if n in JUMPS else step
            expected.append(map_leaves(lambda w: np.maximum(w, 0.0), step))
        assert_same_histories(history, expected)
        assert jumps_taken(state) == [2]

    def test_in_a_ball_all_leaves_count(self):
        def project(params):
            return optax.projections.projection_l2_ball(params, 2.0)

        history, state = train(optax.chain(optax.sgd(0.1), jumps()), gradient=noisy_slope, project=project)
        expected = [START]
        for n in range(STEPS):
            step = descent(expected[n], noisy_slope(expected[n], n))
            step = forecast(expected, n, JUMPS[n]) if n in JUMPS else step
            expected.append(map_leaves(lambda w, step=step: w * min(1.0, 2.0 / norm(step)), step))
        assert_same_histories(history, expected)
        assert jumps_taken(state) == [2]

    @pytest.mark.parametrize("last", [False, True])
    def test_weights_kept_non_negative_by_their_updates(self, last):
        keep = optax.keep_params_nonnegative()
        tx = optax.chain(optax.sgd(0.6), *((jumps(), keep) if last else (keep, jumps())))
        positive = map_leaves(np.abs, START)
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), positive)
        history, state = train(tx, gradient=noisy_slope, params=params)
        expected = [positive]
        for n in range(STEPS):
            step = map_leaves(lambda w: np.maximum(w, 0.0), descent(expected[n], noisy_slope(expected[n], n), 0.6))
            if n in JUMPS:
                step = forecast(expected, n, JUMPS[n])
                step = map_leaves(lambda w: np.maximum(w, 0.0), step) if last else step
            expected.append(step)
        assert_same_histories(history, expected)
        assert jumps_taken(state) == [2]
        # Before introspect it keeps only updates from leading below zero.
        assert (min(np.min(w) for weights in expected for w in weights.values()) < 0) == (not last)


def line_search():
    tx = optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(max_backtracking_steps=5), jumps())

    def value(params):
        return sum(jnp.sum(curvature * params[name] ** 2) for name, curvature in CURVATURE.items()) / 2

    return optax.GradientTransformation(
        tx.init, lambda g, state, params: tx.update(g, state, params, value=value(params), grad=g, value_fn=value)
    )


OTHERS = {
    "line search": line_search,
    "mechanize": lambda: optax.chain(optax.contrib.mechanize(optax.sgd(0.1)), jumps()),
    "sam": lambda: optax.chain(optax.contrib.sam(optax.sgd(0.1), optax.sgd(0.05), sync_period=2), jumps()),
}


@pytest.mark.parametrize("name", OTHERS)
def test_after_others_a_jump_leads_to_the_forecast(name):
    history, state = train(OTHERS[name]())
    assert_same_histories([history[t + 1] for t in JUMPS], [forecast(history, t, s) for t, s in JUMPS.items()])
    assert jumps_taken(state) == [2]
