"""`introspect` in every documented wrapper of Optax: all weights, some steps beyond the jumps too, against NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optax_introspect import custom_forecaster, introspect, lookahead, nesterov, pretrained
from tests.optax_introspect.by_hand import (
    START,
    STEPS,
    add,
    assert_same_history,
    by_hand,
    descent,
    displacement,
    each,
    introspect_states,
    jumps,
    jumps_taken,
    momentum,
    noisy_slope,
    norm,
    plain,
    scaled,
    slope,
    start,
    train,
)

CASES = {}


def case(*variants):
    """Registers a function that returns an optimizer, its weights by hand, and arguments of `train`."""

    def register(function):
        for variant in variants or ((),):
            arguments = variant if isinstance(variant, tuple) else (variant,)
            name = "-".join([function.__name__, *(getattr(a, "__name__", str(a)) for a in arguments)])
            CASES[name] = functools.partial(function, *arguments)
        return function

    return register


@pytest.mark.parametrize("name", CASES)
def test_weights(name):
    tx, expected, *rest = CASES[name]()
    options = rest[0] if rest else {}
    taken = options.pop("taken", [2])
    history, state = train(tx, len(expected) - 1, **options)
    assert_same_history(history, expected)
    assert jumps_taken(state) == taken
    assert sum(int(found.jumps_refused) for found in introspect_states(state)) == 0


# What stands before `introspect` sees every gradient, and a jump comes on top of its update.


@case()
def chain():
    return optax.chain(optax.sgd(0.1, momentum=0.9), jumps()), by_hand(momentum())


@case()
def named_chain():
    tx = optax.named_chain(("optimizer", optax.sgd(0.1, momentum=0.9)), ("jumps", jumps()))
    return tx, by_hand(momentum())


@case()
def clipping_and_weight_decay():
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.add_decayed_weights(0.05), optax.sgd(0.1), jumps())

    def step(weights, n):
        gradient = slope(weights)
        shrunk = scaled(gradient, min(1.0, 1.0 / norm(gradient)))
        return descent(weights, each(lambda g, w: g + 0.05 * w, shrunk, weights))

    return tx, by_hand(step)


@case()
def clipped_updates():
    tx = optax.chain(optax.sgd(0.1), optax.clip(0.02), jumps())
    return tx, by_hand(lambda w, n: each(lambda w, g: w - np.clip(0.1 * g, -0.02, 0.02), w, slope(w)))


def averaging(rate=1.0, decay=0.8):
    """Returns `ema` by hand, from updates and a step to updates."""
    total = scaled(START, 0)

    def average(updates, n):
        nonlocal total
        total = each(lambda u, m: decay * m + (1 - decay) * u, updates, total)
        return scaled(total, rate / (1 - decay ** (n + 1)))

    return average


@case()
def ema_of_updates():
    average = averaging(0.1)
    return optax.chain(optax.sgd(0.1), optax.ema(0.8), jumps()), by_hand(
        lambda w, n: descent(w, average(slope(w), n), 1.0)
    )


@case("around", "before")
def flatten(where):
    base = optax.sgd(0.1, momentum=0.9)
    tx = optax.flatten(optax.chain(base, jumps())) if where == "around" else optax.chain(optax.flatten(base), jumps())
    return tx, by_hand(momentum())


def never_better(tx):
    """Tells the optimizer at every step that the loss is 1."""
    return optax.GradientTransformation(tx.init, lambda u, s, p: tx.update(u, s, p, value=jnp.float32(1.0)))


def halving():
    return optax.contrib.reduce_on_plateau(factor=0.5, patience=2)  # from the third step on, the fifth, ...


@case()
def reduce_on_plateau_before():
    tx = optax.chain(optax.sgd(0.1), halving(), jumps())
    return never_better(tx), by_hand(lambda w, n: descent(w, slope(w), 0.1 * 0.5 ** (n // 2))), {"jit": True}


# What stands after `introspect` changes the update and the displacement alike.


def changed(change):
    history = [START]
    for n in range(STEPS):
        updates = add(scaled(slope(history[n]), -0.1), displacement(history, n))
        history.append(add(history[n], change(updates, history[n], n)))
    return history


def after(*transformations):
    return optax.chain(optax.sgd(0.1), jumps(), *transformations)


@case()
def reduce_on_plateau_after():
    return never_better(after(halving())), changed(lambda u, w, n: scaled(u, 0.5 ** (n // 2))), {"jit": True}


@case()
def scale_after():
    return after(optax.scale(0.5)), changed(lambda u, w, n: scaled(u, 0.5))


@case()
def clipping_after():
    return after(optax.clip_by_global_norm(0.3)), changed(lambda u, w, n: scaled(u, min(1.0, 0.3 / norm(u))))


@case()
def weight_decay_after():
    return after(optax.add_decayed_weights(-0.05)), changed(lambda u, w, n: add(u, scaled(w, -0.05)))


@case()
def ema_after():
    average = averaging()
    return after(optax.ema(0.8)), changed(lambda u, w, n: average(u, n))


# Windows: one jump every 3 steps, by hand in the coefficients of the points `(steps back, coefficient)`.

WINDOWS = {
    nesterov: ((0, 0.8 * 1.5), (2, 1.5 - 0.8 * 1.5), (3, -0.4), (5, -0.5 + 0.4)),
    lookahead: ((0, 0.5), (2, 0.5)),
}


@functools.cache
def window(forecaster):
    arguments = {"learning_rate": 0.8, "momentum": 0.5} if forecaster is nesterov else {}
    return optax.chain(optax.sgd(0.1), introspect(range(2, 1000, 3), forecaster(3, **arguments)))


def window_displacement(forecaster):
    def jump(history, n, jump_from=None):
        if n % 3 != 2:
            return scaled(START, 0)
        terms = [scaled(history[max(n - back, 0)], c) for back, c in WINDOWS[forecaster]]
        return add(*terms, scaled(history[n], -1))

    return jump


@case(nesterov, lookahead)
def windows(forecaster):
    return window(forecaster), by_hand(plain, jump=window_displacement(forecaster)), {"taken": [4]}


# `MultiSteps` makes one update of several calls.


def multi_steps_by_hand(k, updates=STEPS, jump=displacement, is_bad=lambda n: False):
    """Returns the weights of every call: those of each update `k` times, and once more for every call skipped."""
    history, calls, n = [START], [START], 0
    while len(history) <= updates:
        gradients = []
        while len(gradients) < k:
            if not is_bad(n):
                gradients.append(noisy_slope(history[-1], n))
            calls.append(history[-1])
            n += 1
        step = descent(history[-1], scaled(add(*gradients), 1 / k))
        history.append(add(step, jump(history, len(history) - 1)))
        calls[-1] = history[-1]
    return calls


def multi_steps(tx, k, **options):
    return optax.MultiSteps(tx, k, **options).gradient_transformation()


@case()
def multi_steps_around():
    return multi_steps(after(), 3), multi_steps_by_hand(3), {"gradient": noisy_slope, "jit": True}


@case(nesterov, lookahead)
def multi_steps_around_windows(forecaster):
    expected = multi_steps_by_hand(2, jump=window_displacement(forecaster))
    return multi_steps(window(forecaster), 2), expected, {"gradient": noisy_slope, "taken": [4], "jit": True}


@case()
def multi_steps_around_with_calls_skipped():
    # Among them one in the middle of an update, a whole update, and all calls around the first jump.
    bad = {1, 6, 7, 8, *range(17, 24)}

    def gradient(weights, n):
        return each(lambda g: np.full_like(g, np.nan) if n in bad else g, noisy_slope(weights, n))

    tx = multi_steps(after(), 3, should_skip_update_fn=optax.skip_not_finite)
    return tx, multi_steps_by_hand(3, is_bad=lambda n: n in bad), {"gradient": gradient, "jit": True}


@case()
def multi_steps_before():
    history, gradients, jump_from = [START], [], {15: 6, 30: 12}
    for n in range(36):
        gradients.append(noisy_slope(history[n], n))
        rate = 0.1 / 3 if n % 3 == 2 else 0.0
        step = descent(history[n], add(*gradients[-3:]), rate)
        history.append(add(step, displacement(history, n, jump_from)))
    return (
        optax.chain(multi_steps(optax.sgd(0.1), 3), jumps(*jump_from)),
        history,
        {"gradient": noisy_slope, "jit": True},
    )


# `apply_if_finite` leaves calls out.


def not_finite(bad):
    return lambda w, n: each(lambda g: np.full_like(g, np.nan) if n in bad else g, slope(w))


def repeated(history, bad):
    """Puts in the weights of the calls that are left out."""
    rest = iter(history)
    expected = [next(rest)]
    for n in range(len(history) - 1 + len(bad)):
        expected.append(expected[-1] if n in bad else next(rest))
    return expected


@case()
def apply_if_finite_around():
    bad = (1, 6, 7, 13)  # the jumps are due at 6 and 13
    return optax.apply_if_finite(after(), 9), repeated(by_hand(plain), bad), {"gradient": not_finite(bad), "jit": True}


@case(nesterov, lookahead)
def apply_if_finite_around_windows(forecaster):
    bad = (1, 6, 7, 13)
    expected = repeated(by_hand(plain, jump=window_displacement(forecaster)), bad)
    return (
        optax.apply_if_finite(window(forecaster), 9),
        expected,
        {"gradient": not_finite(bad), "taken": [4], "jit": True},
    )


@case()
def apply_if_finite_before():
    bad = (1, 4, 5, 10)  # at 5 and 10 a jump is due, and is made
    tx = optax.chain(optax.apply_if_finite(optax.sgd(0.1), 9), jumps())
    return tx, by_hand(lambda w, n: w if n in bad else plain(w, n)), {"gradient": not_finite(bad), "jit": True}


def test_bfloat16_gradients_of_float32_weights():
    tx = optax.apply_if_finite(
        optax.chain(optax.sgd(0.1), introspect((2,), custom_forecaster(jnp.negative, (1.0,)))), 3
    )
    weights = jnp.array([1.0, -3.0])
    gradient = jnp.array([0.5, 0.25], jnp.bfloat16)
    state = tx.init(weights)
    update = jax.jit(tx.update)
    for n in range(4):
        updates, state = update(gradient, state, weights)
        assert updates.dtype == jnp.bfloat16
        expected = -0.1 * np.array([0.5, 0.25]) - (2 * np.asarray(weights) if n == 2 else 0)
        np.testing.assert_allclose(updates.astype(np.float32), expected, 1e-2)
        weights = optax.apply_updates(weights, updates)
        assert weights.dtype == np.float32
    assert jumps_taken(state) == [1]


# Groups of weights.


@case("tree", "function")
def masked(kind):
    mask = {"a": True, "b": False} if kind == "tree" else lambda params: {name: name == "a" for name in params}
    expected = zip(by_hand(plain), by_hand(plain, jump_from={}), strict=True)
    return optax.chain(optax.sgd(0.1), optax.masked(jumps(), mask)), [j | {"b": p["b"]} for j, p in expected]


@case()
def masked_with_the_optimizer():
    # Optax hands on the gradients of what the mask leaves out as they are.
    raw = by_hand(lambda w, n: add(w, slope(w)), jump_from={})
    expected = [j | {"b": p["b"]} for j, p in zip(by_hand(plain), raw, strict=True)]
    return optax.masked(after(), {"a": True, "b": False}), expected


@case()
def partition():
    early = optax.chain(optax.sgd(0.1, momentum=0.9), jumps(4, 8))
    tx = optax.partition({"early": early, "late": after()}, {"a": "early", "b": "late"})
    expected = zip(by_hand(momentum(), jump_from={4: 2, 8: 3}), by_hand(plain), strict=True)
    return tx, [late | {"a": early["a"]} for early, late in expected], {"taken": [2, 2]}


@case("partition", "freeze", "zeros")
def frozen(how):
    frozen_b = {"a": False, "b": True}
    tx = {
        "partition": optax.partition(
            {"trained": after(), "frozen": optax.set_to_zero()}, {"a": "trained", "b": "frozen"}
        ),
        "freeze": optax.chain(optax.sgd(0.1), optax.freeze(frozen_b), jumps()),
        "zeros": optax.chain(optax.sgd(0.1), optax.masked(optax.set_to_zero(), frozen_b), jumps()),
    }[how]
    return tx, [weights | {"b": START["b"]} for weights in by_hand(plain)]


@pytest.mark.parametrize("how", ["freeze", "zero gradients"])
def test_frozen_weights_stay_bit_equal_under_the_default_predictor(how):
    frozen, jump = {"rope": True, "w": False}, introspect((10, 20, 30))
    base = optax.adam(0.05)
    tx = {
        "freeze": optax.chain(base, optax.freeze(frozen), jump),
        "zero gradients": optax.chain(base, jump),
    }[how]
    params = {"rope": jnp.array([10.0, -0.3, 1e-8, 3e5]), "w": jnp.array([1.0, -2.0])}
    first, state = params, tx.init(params)

    @jax.jit
    def step(params, state):
        gradient = {"rope": jnp.zeros(4) if how == "zero gradients" else jnp.ones(4), "w": params["w"] - 4}
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    before = []
    for _ in range(35):
        before.append(params)
        params, state = step(params, state)
        np.testing.assert_array_equal(params["rope"], first["rope"])
    assert jumps_taken(state) == [3]
    points = jnp.stack([before[n]["w"] for n in (10, 7, 4, 0)], -1)
    forecast = pretrained().module(1000 * points)[:, 0] / 1000
    assert np.all(np.abs(forecast - before[10]["w"]) > 0.1)
    np.testing.assert_allclose(before[11]["w"] - forecast, before[10]["w"] - before[9]["w"], 0.1)


# Hyperparameters.


def falling(n):
    return 0.1 / (1 + n)


def with_rate(learning_rate):
    return optax.chain(optax.sgd(learning_rate), jumps())


@case("around", "before")
def inject_hyperparams_with_a_schedule(where):
    if where == "around":
        tx = optax.inject_hyperparams(with_rate)(learning_rate=falling)
    else:
        tx = optax.chain(optax.inject_hyperparams(optax.sgd)(learning_rate=falling), jumps())
    return tx, by_hand(lambda w, n: descent(w, slope(w), falling(n)))


@case()
def inject_hyperparams_with_a_rate_set_between_steps():
    tx = optax.inject_hyperparams(with_rate)(learning_rate=0.1)

    def update(updates, state, params):
        rate = jnp.where(optax.tree.get(state, "introspect_step") < 7, 0.1, 0.05)
        return tx.update(updates, optax.tree.set(state, learning_rate=rate), params)

    expected = by_hand(lambda w, n: descent(w, slope(w), 0.1 if n < 7 else 0.05))
    return optax.GradientTransformation(tx.init, update), expected


# Optimizers with weights of their own.


def lookahead_by_hand(jump_from, both):
    """Returns fast weights and slow ones, which meet after steps 3, 7 and 11."""
    fast, slow = [START], [START]
    for n in range(STEPS):
        next_fast, next_slow = plain(fast[n], n), slow[n]
        if not both:
            next_fast = add(next_fast, displacement(fast, n, jump_from))
        if n % 4 == 3:
            next_slow = next_fast = each(lambda s, f: s + 0.5 * (f - s), slow[n], next_fast)
        if both:
            next_fast = add(next_fast, displacement(fast, n, jump_from))
            next_slow = add(next_slow, displacement(slow, n, jump_from))
        fast.append(next_fast)
        slow.append(next_slow)
    return fast, slow


@pytest.mark.parametrize("jump_steps", [(5, 10), (5, 7)], ids=["between", "at a meeting"])
@pytest.mark.parametrize("both", [False, True], ids=["inside", "outside"])
def test_lookahead_of_optax(jump_steps, both):
    if both:
        tx = optax.chain(optax.lookahead(optax.sgd(0.1), 4, 0.5), jumps(*jump_steps))
    else:
        tx = optax.lookahead(optax.chain(optax.sgd(0.1), jumps(*jump_steps)), 4, 0.5)
    check_lookahead(tx, {5: 2, 10: 4, 7: 3}, both, jump_steps)


def test_lookahead_of_optax_that_resets_states_begins_to_count_anew():
    # 0.4 of 2 is nearest to 1: the jump of every round of four steps; the one at 9 never comes.
    tx = optax.lookahead(optax.chain(optax.sgd(0.1), jumps(2, 9)), 4, 0.5, reset_state=True)
    check_lookahead(tx, {2: 1, 6: 5, 10: 9}, both=False, jump_steps=(2, 6, 10))


def check_lookahead(tx, jump_from, both, jump_steps):
    history, _ = train(tx, params=optax.LookaheadParams.init_synced(start()), read=lambda params: params.fast)
    fast, slow = lookahead_by_hand({t: jump_from[t] for t in jump_steps}, both)
    assert_same_history([params.fast for params in history], fast)
    assert_same_history([params.slow for params in history], slow)


@case("inside", "outside")
def schedule_free(where):
    """Parameters `y` between the iterates `z` of the base optimizer and their average `x`."""
    y, z = [START], START
    for n in range(STEPS):
        jump = displacement(y, n)
        x = START if n == 0 else each(lambda y, z: (y - 0.1 * z) / 0.9, y[n], z)
        z = descent(z, slope(y[n]))
        z = add(z, jump) if where == "inside" else z
        x = each(lambda x, z, n=n: x + (z - x) / (n + 1), x, z)
        step = each(lambda x, z: 0.9 * x + 0.1 * z, x, z)
        y.append(add(step, jump) if where == "outside" else step)
    if where == "inside":
        return optax.contrib.schedule_free(after(), 0.1, b1=0.9), y
    return optax.chain(optax.contrib.schedule_free(optax.sgd(0.1), 0.1, b1=0.9), jumps()), y


@case()
def sam_around():
    """The weights, and those that the adversary moves them to in every other call."""
    history, calls = [START], [START]
    for n in range(STEPS):
        adversarial = add(history[n], scaled(slope(history[n]), 0.01))
        step = descent(history[n], slope(adversarial), 0.05)
        history.append(add(step, displacement(history, n, {5: 2})))
        calls += [adversarial, history[-1]]
    tx = optax.contrib.sam(optax.chain(optax.sgd(0.05), jumps(5)), optax.sgd(0.01))
    return tx, calls, {"taken": [1]}


def test_a_jump_after_sam_is_undone_by_the_next_call():
    base = optax.contrib.sam(optax.sgd(0.05), optax.sgd(0.01))
    without, _ = train(base)
    history, state = train(optax.chain(base, jumps(4)))  # in the call of the adversary
    assert jumps_taken(state) == [1]
    at, afterwards = (max(np.abs(history[n][name] - without[n][name]).max() for name in START) for n in (5, 6))
    assert at > 0.05
    assert afterwards < 0.1 * at  # the gradient alone was taken elsewhere: times the rate and the largest curvature


# Projections.


@case()
def projection_non_negative():
    expected = [START]
    for n in range(STEPS):
        expected.append(each(lambda w: np.maximum(w, 0.0), add(plain(expected[n], n), displacement(expected, n))))
    return after(), expected, {"project": optax.projections.projection_non_negative}


@case(False, True)
def keep_params_nonnegative(last):
    keep, positive = optax.keep_params_nonnegative(), each(np.abs, START)
    expected = [positive]
    for n in range(STEPS):
        step, jump = descent(expected[n], noisy_slope(expected[n], n), 0.6), displacement(expected, n)
        if last:
            expected.append(each(lambda w: np.maximum(w, 0.0), add(step, jump)))
        else:
            expected.append(add(each(lambda w: np.maximum(w, 0.0), step), jump))
    tx = optax.chain(optax.sgd(0.6), *((jumps(), keep) if last else (keep, jumps())))
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), positive)
    return tx, expected, {"gradient": noisy_slope, "params": params}


# How much of a jump is left 1, 5 and 20 steps later: all of it, but for optimizers that compute the weights anew.

T = 10
LEFT = {
    "adamw": (lambda: optax.adamw(1e-4), (1, 1, 1)),
    "muon": (lambda: optax.contrib.muon(1e-4), (1, 1, 1)),
    "cocob": (optax.contrib.cocob, ((0, 0.06), (0, 0.06), (0, 0.06))),  # from the initial weights
    "madgrad": (lambda: optax.contrib.madgrad(1e-4), (0.9, 0.9**5, 0.9**20)),  # an average with such weights
    "mechanize": (lambda: optax.contrib.mechanize(optax.sgd(1e-4)), (0.99, (0.3, 0.7), (0, 0.5))),  # times its scale
    # An average over all steps, if the jump comes after it.
    "schedule_free": (lambda: optax.contrib.schedule_free_sgd(1e-4), [(T + 1) / (T + 1 + k) for k in (1, 5, 20)]),
}


@pytest.mark.parametrize("name", LEFT)
def test_what_is_left_of_a_jump(name):
    make, expected = LEFT[name]
    tx = optax.chain(make(), introspect((T,), custom_forecaster(lambda now: now + 0.1, (1.0,))))

    @jax.jit
    def step(params, state, n):
        # The same gradients with the jump and without.
        gradients = jnp.sin(n + 7 * start()["b"]) + 0.5
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    def run(introspect_step):
        params = start()["b"]
        state = optax.tree.set(tx.init(params), introspect_step=jnp.int32(introspect_step))
        history = [params]
        for n in range(T + 21):
            params, state = step(params, state, jnp.float32(n))
            history.append(params)
        return history, jumps_taken(state)

    (jumped, [one]), (others, [none]) = run(0), run(1000)
    assert (one, none) == (1, 0)
    left = [float(jnp.mean(a - b)) / 0.1 for a, b in zip(jumped, others, strict=True)]
    assert left[T] == 0
    np.testing.assert_allclose(left[T + 1], 1, 1e-3)
    for k, bounds in zip((1, 5, 20), expected, strict=True):
        low, high = bounds if isinstance(bounds, tuple) else (bounds - 0.002, bounds + 0.002)
        assert low <= left[T + 1 + k] <= high, (k, left[T + 1 + k])
