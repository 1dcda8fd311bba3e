import functools
import itertools
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from flax.training import train_state

from optax_introspect import introspect, plan, polynomial, reschedule
from optax_introspect.missing import check_nothing_missing
from tests.optax_introspect.test_plan import is_possible, nearest
from tests.optax_introspect.test_transform import assert_same, introspect_state, prescribed

LINEAR = polynomial(1, 1.5, points=(1.0, 0.5, 0.0))

REFUSAL = re.compile(
    r"after (?P<made>\d+) updates the jumps? at (?P<blocked>[\d, ]+) cannot be made: the weights of steps? "
    r"(?P<missing>[\d, ]+) are missing\. Give them as weights=\{step: params\}"
    r"(, or leave the jumps? out: possible is jump_steps=\((?P<possible>[\d, ]+)\))?"
    r"\. (?P<first>Once those of step 0 are given, any|Any) jump from step (?P<free>\d+) on is possible\."
)


def numbers(text):
    return {int(number) for number in re.findall(r"\d+", text or "")}


class Refusal(NamedTuple):
    """What the message of an error says."""

    made: int
    blocked: set[int]
    missing: set[int]
    possible: set[int]
    first_is_missing: bool
    free_from: int


def refusal(error):
    found = REFUSAL.fullmatch(str(error))
    assert found, str(error)
    return Refusal(
        int(found["made"]),
        numbers(found["blocked"]),
        numbers(found["missing"]),
        numbers(found["possible"]),
        found["first"].startswith("Once"),
        int(found["free"]),
    )


def kept(jumps, points, n):
    """The steps before `n` whose weights a jump from `n` on looks at."""
    return {nearest(point, t) for t in jumps if t >= n for point in points[1:]} & set(range(n))


def slot_of(jumps, points):
    return {capture.step: capture.slot for capture in plan(jumps, points).captures}


class TestEveryPairOfSmallPlans:
    """With the numbers of steps in place of weights: what is needed and what is refused is right at every step."""

    POINTS = ((1.0, 0.5, 0.0), (1.0, 0.7, 0.4, 0.0), (1.0, 0.6), (1.0,))

    def plans(self):
        for points in self.POINTS:
            possible = [t for t in range(1, 10) if is_possible([t], points)]
            for steps in (*itertools.combinations(possible, 1), *itertools.combinations(possible, 2)):
                yield plan(steps, points)

    def test_taken_over_or_refused(self):
        plans = list(self.plans())
        assert len(plans) > 120
        steps = range(12)
        # Plans that keep the same are not told apart.
        situations = {(n, frozenset(kept(old.jump_steps, old.points, n))) for old in plans for n in steps}
        refused = taken_over = 0
        for new, (n, held) in itertools.product(plans, situations):
            wanted = {jump.step: {s for s in jump.sources[1:] if s < n} for jump in new.jumps if jump.step >= n}
            assert set(new.needed(n)) == set().union(*wanted.values())
            missing = {s: ["w"] if s not in held else [] for s in new.needed(n)}
            try:
                check_nothing_missing(new, n, missing, num_leaves=1, place="")
            except ValueError as error:
                said = refusal(error)
                assert said.made == n
                assert said.missing == set().union(*wanted.values()) - held != set()
                assert said.blocked == {t for t, sources in wanted.items() if sources - held}
                assert said.possible == wanted.keys() - said.blocked
                assert said.first_is_missing == (0 in said.missing and new.points[-1] == 0)
                self.check_free(new.points, n, said.free_from)
                refused += 1
            else:
                assert all(sources <= held for sources in wanted.values())
                self.go_on(new, n)
                taken_over += 1
        assert min(refused, taken_over) > 2_000

    @staticmethod
    @functools.cache
    def check_free(points, n, free_from):
        assert free_from >= n
        for t in range(free_from, free_from + 12):
            assert set(plan((t,), points).needed(n)) <= {0}
        earlier = free_from - 1
        if earlier >= n and is_possible([earlier], points):
            # Named is the first of them, unless jumps are so early there that some are not possible at all.
            gaps = [a - b for a, b in itertools.pairwise(points)]
            assert set(plan((earlier,), points).needed(n)) - {0} or earlier * min(gaps, default=1) < 1

    @staticmethod
    @functools.cache
    def go_on(new, n):
        """Every jump from here on finds the right weights, if those that are needed are there to begin with."""
        buffers = [None] * new.num_buffers
        for capture in new.captures:
            if capture.step in new.needed(n):
                assert buffers[capture.slot] is None
                buffers[capture.slot] = capture.step
        for now in range(n, 12):
            assert set(new.needed(now)) <= set(buffers)  # so that it can be taken over once more
            for jump in new.jumps:
                if jump.step == now:
                    assert tuple(buffers[slot] for slot in jump.slots) == jump.sources[1:]
                    buffers[-1] = None
            for capture in new.captures:
                if capture.step == now:
                    buffers[capture.slot] = now


class Config(NamedTuple):
    jumps: tuple[int, ...]
    points: tuple[float, ...] = (1.0, 0.5, 0.0)
    dtype: str | None = None

    def is_exact_from(self, old):
        """Whether nothing that is needed was lost to rounding: bfloat16 keeps weights, or their difference to `w_0`."""
        kinds = {(each.dtype, each.points[-1] == 0) for each in (old, self)}
        return old.dtype is None or len(kinds) == 1


@functools.cache
def optimizer(config):
    forecaster = polynomial(1, 1.5, points=config.points)
    return optax.chain(optax.sgd(0.05, momentum=0.9), introspect(config.jumps, forecaster, snapshot_dtype=config.dtype))


CONFIGS = (
    Config((4, 8, 9)),
    Config((2, 4, 8)),  # every trajectory point is a jump, or w_0
    Config((3, 6, 9), dtype="bfloat16"),
    Config((4, 8), dtype="bfloat16"),
    Config((6, 8), (1.0, 0.6, 0.3)),
    Config((2, 4, 8), (1.0, 0.5)),  # needs the scratch slot
    Config((5, 9), (1.0, 0.6, 0.3), dtype="bfloat16"),
    Config((3, 7, 9), (1.0, 0.75, 0.4, 0.0)),
)
END = 12
PARAMS = {
    "h": jnp.array([0.5, -2.0], jnp.float16),
    "w": jnp.linspace(-1, 1, 5),
    "z": jnp.array([1 + 1j], jnp.complex64),
}


def gradient(n, params):
    """Depends on the step, and on nothing else."""
    return _gradient(n, tuple((name, leaf.shape, leaf.dtype) for name, leaf in params.items()))


@functools.cache
def _gradient(n, shapes):
    return prescribed({name: jax.ShapeDtypeStruct(shape, dtype) for name, shape, dtype in shapes})(n, None)


@functools.cache
def stepper(tx):
    @jax.jit
    def step(gradients, state, params):
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    return step


@functools.cache
def run(config):
    """Returns weights and state at every step."""
    runs = [(PARAMS, optimizer(config).init(PARAMS))]
    for n in range(END):
        params, state = runs[-1]
        runs.append(stepper(optimizer(config))(gradient(n, params), state, params))
    assert int(runs[-1][1][1].jumps_taken) == len(config.jumps)
    return runs


def replayed(tx, history):
    """Returns the states of another optimizer that is shown these weights, whatever it makes of them."""
    states = [tx.init(history[0])]
    for n, params in enumerate(history[:-1]):
        states.append(stepper(tx)(gradient(n, params), states[-1], params)[1])
    return states


def go_on(config, n, state, params):
    history = []
    for now in range(n, END):
        params, state = stepper(optimizer(config))(gradient(now, params), state, params)
        history.append(params)
    return history


class TestEveryPairOfSmallRuns:
    @pytest.mark.parametrize("old", CONFIGS, ids=str)
    def test_at_every_step(self, old):
        history = [params for params, _ in run(old)]
        taken_over = refused = 0
        for new in CONFIGS:
            expected = replayed(optimizer(new), history)
            for n in range(END):
                params, state = run(old)[n]
                try:
                    found = reschedule(state, params, old=optimizer(old), new=optimizer(new))
                except ValueError as error:
                    refused += 1
                    self.check_refusal(refusal(error), n, old, new)
                    continue
                taken_over += 1
                self.check_state(found, expected[n], state, n, old, new)
                coming = go_on(new, n, expected[n], params)
                if self.agree_so_far(n, old, new):
                    for one, (other, _) in zip(coming, run(new)[n + 1 :], strict=True):
                        assert_same(one, other)
                for one, other in zip(go_on(new, n, found, params), coming, strict=True):
                    if new.is_exact_from(old):
                        assert_same(one, other)
                    else:
                        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=0.05), one, other)
        assert refused > 5
        assert taken_over > 40

    def agree_so_far(self, n, old, new):
        made = [[t for t in each.jumps if t < n] for each in (old, new)]
        return made[0] == made[1] and (not made[0] or old[1:] == new[1:])

    def check_state(self, found, expected, before, n, old, new):
        assert_same(found[0], expected[0])
        assert jax.tree.structure(found) == jax.tree.structure(expected)
        assert int(found[1].introspect_step) == n
        assert int(found[1].jumps_taken) == int(before[1].jumps_taken)
        schedule = plan(new.jumps, new.points)
        for capture in schedule.captures:
            if capture.step in schedule.needed(n) and new.is_exact_from(old):
                assert_same(found[1].snapshots[capture.slot], expected[1].snapshots[capture.slot])

    def check_refusal(self, said, n, old, new):
        assert said.missing == kept(new.jumps, new.points, n) - kept(old.jumps, old.points, n)
        params, state = run(old)[n]
        if said.possible:
            reduced = new._replace(jumps=tuple(sorted(said.possible)))
            reschedule(state, params, old=optimizer(old), new=optimizer(reduced))
        if not said.first_is_missing:
            free = new._replace(jumps=(said.free_from,))
            reschedule(state, params, old=optimizer(old), new=optimizer(free))
        # The missing ones are all that is missing.
        weights = {step: run(old)[step][0] for step in said.missing}
        reschedule(state, params, old=optimizer(old), new=optimizer(new), weights=weights)


def descend(tx, steps, params, state=None, start=0):
    """Returns `[w_start, ..., w_(start + steps)]` and the states."""
    state = tx.init(params) if state is None else state
    history, states = [params], [state]
    for n in range(start, start + steps):
        params, state = stepper(tx)(gradient(n, params), state, params)
        history.append(params)
        states.append(state)
    return history, states


def partitioned(inner, other):
    # Not in the order of the names, which is that of the state.
    return optax.partition({"fast": other, "also": inner}, {"h": "also", "w": "fast"})


def two_in_a_chain(inner_h, inner_w):
    return optax.chain(optax.adam(0.05), optax.masked(inner_h, {"h": True, "w": False}), optax.masked(inner_w, NOT_H))


REAL = {"h": PARAMS["h"], "w": PARAMS["w"]}
NOT_H = {"h": False, "w": True}
WRAPPERS = {
    "chain of chains": lambda inner, other: optax.chain(
        optax.scale(1.0), optax.chain(optax.adam(0.05), optax.chain(inner)), optax.identity()
    ),
    "named chain": lambda inner, other: optax.named_chain(("adam", optax.adam(0.05)), ("jumps", inner)),
    "masked": lambda inner, other: optax.chain(optax.adam(0.05), optax.masked(inner, NOT_H)),
    "apply_if_finite": lambda inner, other: optax.apply_if_finite(optax.chain(optax.adam(0.05), inner), 3),
    "inject_hyperparams": lambda inner, other: optax.chain(optax.inject_hyperparams(optax.sgd)(0.05), inner),
    "partition": lambda inner, other: optax.chain(optax.sgd(0.05), partitioned(inner, other)),
    "two in a chain": two_in_a_chain,
}


class TestNested:
    """Jumps (6, 16) become (6, 16, 17), and (6, 12) become (6, 18), in any wrapper."""

    def optimizers(self, wrap):
        for steps, others in (((6, 16), (6, 12)), ((6, 16, 17), (6, 18))):
            yield wrap(introspect(steps, LINEAR), introspect(others, LINEAR))

    @pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS.keys())
    def test_as_if_from_the_start(self, wrap):
        old, new = self.optimizers(wrap)
        history, states = descend(old, 9, REAL)
        expected, last = descend(new, 20, REAL)
        found = reschedule(states[-1], history[-1], old=old, new=new)
        coming, end = descend(new, 11, history[-1], found, start=9)
        for one, other in zip(coming, expected[9:], strict=True):
            assert_same(one, other)
        assert jax.tree.structure(end[-1]) == jax.tree.structure(last[-1])
        counters = [
            [leaf for leaf in jax.tree.leaves(state) if leaf.dtype == jnp.int32] for state in (end[-1], last[-1])
        ]
        assert counters[0] == counters[1]

    def test_multi_steps_counts_its_own_updates(self):
        old, new = (
            optax.MultiSteps(tx, 2).gradient_transformation() for tx in self.optimizers(WRAPPERS["chain of chains"])
        )
        history, states = descend(old, 19, REAL)  # amid an accumulation
        expected, _ = descend(new, 40, REAL)
        found = reschedule(states[-1], history[-1], old=old, new=new)
        assert int(introspect_state(found).introspect_step) == 9
        for one, other in zip(descend(new, 21, history[-1], found, start=19)[0], expected[19:], strict=True):
            assert_same(one, other)

    def test_flatten_shows_introspect_one_vector(self):
        params = {"b": jnp.ones(2), "w": jnp.arange(6.0).reshape(2, 3)}
        old, new = (optax.flatten(tx) for tx in self.optimizers(WRAPPERS["chain of chains"]))
        history, states = descend(old, 9, params)
        expected, _ = descend(new, 20, params)
        plain = optax.flatten(optax.adam(0.05))
        without, plain_states = descend(plain, 5, params)
        for state, at, before, weights in (
            (states[-1], 9, old, None),
            (plain_states[-1], 5, plain, dict(enumerate(without))),
        ):
            found = reschedule(state, history[at], old=before, new=new, weights=weights, step=at)
            coming, _ = descend(new, 20 - at, history[at], found, start=at)
            for one, other in zip(coming, expected[at:], strict=True):
                assert_same(one, other)

    def test_moved_into_another_place(self):
        """One that is alone may move; where there are several, each is found by its place."""
        old = optax.chain(optax.adam(0.05), introspect((6, 16), LINEAR))
        new = optax.chain(optax.adam(0.05), optax.masked(introspect((6, 16, 17), LINEAR), NOT_H))
        history, states = descend(old, 9, REAL)
        found = reschedule(states[-1], history[-1], old=old, new=new)
        (moved,) = [leaf for leaf in found if isinstance(leaf, optax.MaskedState)]
        assert_same(moved.inner_state.snapshots[slot_of((6, 16, 17), LINEAR.points)[8]]["w"], history[8]["w"])

    def test_state_that_a_wrapper_copies(self):
        inner = introspect((6,), LINEAR)
        copying = optax.GradientTransformation(
            lambda p: jax.tree.map(lambda leaf: leaf + 0, inner.init(p)), inner.update
        )
        with pytest.raises(ValueError, match="the init of a transformation around introspect is compiled or changes"):
            reschedule(copying.init(REAL), REAL, old=copying, new=inner)


class TestInTrainingLoops:
    def test_nnx_optimizer(self):
        x = jnp.linspace(-1, 1, 12).reshape(4, 3)
        old, new = (optax.chain(optax.adam(0.05), introspect(steps, LINEAR)) for steps in ((6, 16), (6, 16, 17)))

        @nnx.jit
        def step(model, optimizer):
            optimizer.update(model, nnx.grad(lambda model: jnp.mean((model(x) - 1) ** 2))(model))

        def trained(tx, steps):
            model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
            optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
            for _ in range(steps):
                step(model, optimizer)
            return model, optimizer

        model, optimizer = trained(old, 9)
        params, opt_state = nnx.as_pure((nnx.state(model, nnx.Param), optimizer.opt_state))
        opt_state = reschedule(opt_state, params, old=old, new=new)
        resumed = nnx.Optimizer(model, new, wrt=nnx.Param)
        nnx.update(resumed, nnx.state({"opt_state": opt_state, "step": optimizer.step}))
        for _ in range(11):
            step(model, resumed)
        expected_model, expected = trained(new, 20)
        assert_same(nnx.state(model), nnx.state(expected_model))
        assert int(resumed.opt_state[1].jumps_taken[...]) == int(expected.opt_state[1].jumps_taken[...]) == 3
        assert int(resumed.step[...]) == 20

    def test_train_state(self):
        x = jnp.linspace(-1, 1, 12).reshape(4, 3)
        module = nn.Dense(2)
        params = module.init(jax.random.key(0), x)["params"]
        old, new = (optax.chain(optax.adam(0.05), introspect(steps, LINEAR)) for steps in ((6, 16), (6, 16, 17)))

        @jax.jit
        def step(state):
            slope = jax.grad(lambda p: jnp.mean((module.apply({"params": p}, x) - 1) ** 2))(state.params)
            return state.apply_gradients(grads=slope)

        def trained(state, steps):
            for _ in range(steps):
                state = step(state)
            return state

        state = trained(train_state.TrainState.create(apply_fn=module.apply, params=params, tx=old), 9)
        opt_state = reschedule(state.opt_state, state.params, old=old, new=new)
        state = trained(state.replace(tx=new, opt_state=opt_state), 11)
        expected = trained(train_state.TrainState.create(apply_fn=module.apply, params=params, tx=new), 20)
        assert_same((state.params, state.step), (expected.params, expected.step))
        assert int(state.opt_state[1].jumps_taken) == 3


class Noting(dict):
    """Notes which of its values were asked for."""

    def __init__(self, *args):
        super().__init__(*args)
        self.asked = []

    def __getitem__(self, step):
        self.asked.append(step)
        return super().__getitem__(step)


class TestAddedLater:
    PLAIN = optax.adam(0.05)
    STEPS = (4, 7, 10)

    def with_jumps(self, **options):
        return optax.chain(self.PLAIN, introspect(self.STEPS, LINEAR, **options))

    @pytest.mark.parametrize("dtype", [None, "bfloat16"])
    def test_at_every_step(self, dtype):
        """As if the jumps had been there, but for those that lie in the past."""
        new = self.with_jumps(snapshot_dtype=dtype)
        history, states = descend(self.PLAIN, 12, PARAMS)
        shown = replayed(new, history)
        for n in range(12):
            weights = Noting(enumerate(history))
            found = reschedule(states[n], history[n], old=self.PLAIN, new=new, weights=weights, step=n)
            needed = plan(self.STEPS, LINEAR.points).needed(n)
            assert tuple(weights.asked) == needed
            for capture in plan(self.STEPS, LINEAR.points).captures:
                if capture.step in needed:
                    assert_same(found[1].snapshots[capture.slot], shown[n][1].snapshots[capture.slot])
            coming, end = descend(new, 12 - n, history[n], found, start=n)
            expected, _ = descend(new, 12 - n, history[n], shown[n], start=n)
            for one, other in zip(coming, expected, strict=True):
                assert_same(one, other)
            assert int(end[-1][1].jumps_taken) == sum(t >= n for t in self.STEPS)

    def test_what_is_missing_is_said(self):
        history, states = descend(self.PLAIN, 6, PARAMS)
        with pytest.raises(ValueError, match="after 5 updates") as raised:
            reschedule(states[5], history[5], old=self.PLAIN, new=self.with_jumps(), step=5)
        assert refusal(raised.value) == Refusal(5, {7, 10}, {0, 4}, set(), True, 9)
        weights = {0: history[0], 3: history[3]}
        with pytest.raises(ValueError, match="after 5 updates") as raised:
            reschedule(states[5], history[5], old=self.PLAIN, new=self.with_jumps(), weights=weights, step=5)
        assert refusal(raised.value) == Refusal(5, {7}, {4}, {10}, False, 9)

    def test_before_the_first_update_nothing_is_needed(self):
        new = self.with_jumps()
        found = reschedule(self.PLAIN.init(PARAMS), PARAMS, old=self.PLAIN, new=new, step=0)
        assert_same(found, new.init(PARAMS))

    def test_the_result_can_be_donated_with_the_parameters(self):
        """Weights that are given are copied, though they may be the very parameters: nothing was trained yet."""
        params = {"w": jnp.ones(3)}
        new = optax.chain(optax.sgd(0.1), introspect((4,), LINEAR))
        found = reschedule(
            optax.sgd(0.1).init(params), params, old=optax.sgd(0.1), new=new, weights={0: params}, step=1
        )

        @functools.partial(jax.jit, donate_argnums=(0, 1))
        def step(params, state):
            updates, state = new.update(jax.tree.map(jnp.ones_like, params), state, params)
            return optax.apply_updates(params, updates), state

        params, found = step(params, found)
        assert int(found[1].introspect_step) == 2

    def test_the_number_of_updates_is_asked_for(self):
        with pytest.raises(ValueError, match=r"opt_state does not tell how many updates were made .*: give step"):
            reschedule(self.PLAIN.init(PARAMS), PARAMS, old=self.PLAIN, new=self.with_jumps())

    @pytest.mark.parametrize("step", [-1, 1.0, True, "7", 2**31, jnp.ones(2)])
    def test_bad_number_of_updates(self, step):
        with pytest.raises(ValueError, match=r"step must be an integer from 0 to 2147483647; got "):
            reschedule(self.PLAIN.init(PARAMS), PARAMS, old=self.PLAIN, new=self.with_jumps(), step=step)

    def test_number_of_updates_that_the_state_contradicts(self):
        new = self.with_jumps()
        with pytest.raises(ValueError, match="step is 3, but introspect in opt_state has counted 0 updates"):
            reschedule(new.init(PARAMS), PARAMS, old=new, new=new, step=3)
        reschedule(new.init(PARAMS), PARAMS, old=new, new=new, step=0)

    def test_a_group_gets_them_as_well(self):
        """The number of updates is known from the other group."""
        old = partitioned(introspect((6,), LINEAR), optax.sgd(0.1))
        new = partitioned(introspect((6,), LINEAR), introspect((8,), LINEAR))
        history, states = descend(old, 5, REAL)
        with pytest.raises(
            ValueError, match=r"at 8 cannot be made by the introspect at inner_states.fast.inner_state: "
        ):
            reschedule(states[5], history[5], old=old, new=new)
        found = reschedule(states[5], history[5], old=old, new=new, weights=dict(enumerate(history)))
        fast = found.inner_states["fast"].inner_state
        assert int(fast.introspect_step) == 5
        for step in (0, 4):
            assert_same(fast.snapshots[slot_of((8,), LINEAR.points)[step]]["w"], history[step]["w"])

    def test_all_jumps_left_out(self):
        history, states = descend(self.with_jumps(), 6, PARAMS)
        found = reschedule(states[-1], history[-1], old=self.with_jumps(), new=self.PLAIN)
        assert_same(found, states[-1][0])


class TestWeights:
    def call(self, weights):
        new = optax.chain(optax.sgd(0.1), introspect((6,), LINEAR))
        return reschedule(optax.sgd(0.1).init(PARAMS), PARAMS, old=optax.sgd(0.1), new=new, weights=weights, step=2)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"w": jnp.ones(4)}, r"at \['w'\] it has float32\[4\], not float32\[5\]"),
            ({"w": jnp.ones(5, jnp.bfloat16)}, r"at \['w'\] it has bfloat16\[5\], not float32\[5\]"),
            ({"w": np.ones(5)}, r"at \['w'\] it has float64\[5\], not float32\[5\]"),
            ({"w": None}, r"at \['w'\] it has nothing, not float32\[5\]"),
            ({"w": [jnp.ones(5)]}, r"at \['w'\] it has nothing, not float32\[5\]"),
            ({"x": jnp.ones(2)}, r"at \['x'\] it has float32\[2\], not nothing"),
        ],
    )
    def test_unlike_the_parameters(self, changes, message):
        with pytest.raises(ValueError, match=rf"weights\[0\] must be like params: {message}"):
            self.call({0: PARAMS | changes})

    @pytest.mark.parametrize("key", ["0", 0.5, None, True, -1, 2**31])
    def test_keys_that_are_no_steps(self, key):
        with pytest.raises(
            ValueError, match=f"every step of weights must be an integer from 0 to 2147483647; got {key!r}"
        ):
            self.call({key: PARAMS})

    def test_arrays_of_numpy_and_those_that_nobody_needs(self):
        given = {np.int64(0): jax.tree.map(np.asarray, PARAMS), 1: "not looked at", 7: None}
        found = self.call(given)
        assert_same(found[1].snapshots[slot_of((6,), LINEAR.points)[0]], PARAMS)

    def test_they_come_before_what_the_state_holds(self):
        new = optax.chain(optax.sgd(0.1), introspect((6,), LINEAR))
        history, states = descend(new, 4, PARAMS)
        doubled = jax.tree.map(lambda w: w * 2, history[0])
        found = reschedule(states[-1], history[-1], old=new, new=new, weights={0: doubled})
        slots = slot_of((6,), LINEAR.points)
        assert_same(found[1].snapshots[slots[0]], doubled)
        assert_same(found[1].snapshots[slots[3]], history[3])


class TestSnapshotDtype:
    STEPS = (8, 14)  # needed after 8 updates: 0, 4, 7

    def optimizer(self, dtype, points=LINEAR.points, **options):
        return introspect(self.STEPS, polynomial(1, 1.5, points=points), snapshot_dtype=dtype, **options)

    def snapshot(self, state, step, points=LINEAR.points):
        return state.snapshots[slot_of(self.STEPS, points)[step]]

    def converted(self, one, other, weights=None, points=LINEAR.points, old_points=LINEAR.points):
        old, new = self.optimizer(one, old_points), self.optimizer(other, points)
        history, states = descend(old, 8, PARAMS)
        given = {step: history[step] for step in weights or ()}
        found = reschedule(states[-1], history[-1], old=old, new=new, weights=given)
        _, expected = descend(new, 8, PARAMS)
        return found, expected[-1], history

    @pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float8_e4m3fn"])
    @pytest.mark.parametrize("points", [LINEAR.points, (1.0, 0.5)])
    def test_narrowed_as_if_from_the_start(self, dtype, points):
        found, expected, _ = self.converted(None, dtype, points=points)
        for step in plan(self.STEPS, points).needed(8):
            assert_same(self.snapshot(found, step, points), self.snapshot(expected, step, points))

    def test_widened_snapshots_are_what_the_narrow_ones_were(self):
        found, _, history = self.converted("bfloat16", None)
        rounded = history[0]["w"].astype(jnp.bfloat16).astype(jnp.float32)
        assert_same(self.snapshot(found, 0)["w"], rounded)
        for step in (4, 7):
            difference = (history[step]["w"] - rounded).astype(jnp.bfloat16).astype(jnp.float32)
            snapshot = self.snapshot(found, step)
            assert_same(snapshot["w"], rounded + difference)
            assert np.any(snapshot["w"] != history[step]["w"])
            # No wider than their weights, these are no differences.
            assert_same(snapshot["h"], history[step]["h"].astype(jnp.bfloat16).astype(jnp.float16))
            assert_same(snapshot["z"], history[step]["z"])

    def test_with_the_weights_nothing_is_lost(self):
        found, expected, _ = self.converted("bfloat16", None, weights=(0, 4, 7))
        for step in (0, 4, 7):
            assert_same(self.snapshot(found, step), self.snapshot(expected, step))

    def test_differences_to_other_first_weights(self):
        """Differences that are kept are to the `w_0` that is kept with them, and told anew where that is given."""
        old = self.optimizer("bfloat16")
        history, states = descend(old, 8, PARAMS)
        moved = jax.tree.map(lambda w: w + 1, history[0])
        found = reschedule(states[-1], history[-1], old=old, new=old, weights={0: moved})
        for step in (4, 7):
            there = self.snapshot(found, step)["w"].astype(jnp.float32) + self.snapshot(found, 0)["w"]
            np.testing.assert_allclose(there, history[step]["w"], atol=0.02)

    def test_between_differences_and_weights(self):
        found, _, history = self.converted("bfloat16", "bfloat16", points=(1.0, 0.5))
        for step in (4, 7):
            snapshot = self.snapshot(found, step, (1.0, 0.5))["w"]
            assert snapshot.dtype == jnp.bfloat16
            np.testing.assert_allclose(snapshot.astype(jnp.float32), history[step]["w"], rtol=2**-8, atol=0.01)
        found, _, history = self.converted("bfloat16", "bfloat16", old_points=(1.0, 0.5), weights=(0,))
        for step in (4, 7):
            there = self.snapshot(found, step)["w"].astype(jnp.float32) + self.snapshot(found, 0)["w"]
            np.testing.assert_allclose(there, history[step]["w"], atol=0.02)

    def test_from_one_narrow_dtype_to_another(self):
        found, expected, _ = self.converted("float16", "bfloat16")
        for step in (0, 4, 7):
            one, other = (self.snapshot(state, step)["w"] for state in (found, expected))
            assert one.dtype == other.dtype
            np.testing.assert_allclose(one.astype(jnp.float32), other.astype(jnp.float32), rtol=2**-6, atol=2**-9)


class TestMemoryKind:
    def test_to_the_host_and_back(self):
        here = introspect((6, 10, 14), LINEAR)
        there = introspect((6, 10, 14), LINEAR, memory_kind="pinned_host")
        more = introspect((6, 10, 14, 15), LINEAR, memory_kind="pinned_host", snapshot_dtype="bfloat16")
        expected, _ = descend(here, 16, PARAMS)
        expected_more, _ = descend(more, 20, PARAMS)
        history, states = descend(here, 6, PARAMS)
        moved = reschedule(states[-1], history[-1], old=here, new=there)
        self.check_places(moved, there)
        back = reschedule(moved, history[-1], old=there, new=here)
        self.check_places(back, here)
        narrow = reschedule(moved, history[-1], old=there, new=more)
        self.check_places(narrow, more)
        for tx, state, weights in ((there, moved, expected), (here, back, expected), (more, narrow, expected_more)):
            coming, _ = descend(tx, len(weights) - 7, history[-1], state, start=6)
            for one, other in zip(coming, weights[6:], strict=True):
                assert_same(one, other)

    def check_places(self, state, tx):
        for found, expected in zip(state.snapshots, tx.init(PARAMS).snapshots, strict=True):
            for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
                assert one.sharding == other.sharding
                assert one.sharding.memory_kind == other.sharding.memory_kind


class TestMask:
    def test_fewer_leaves(self):
        old, new = introspect((6, 12), LINEAR), introspect((6, 12), LINEAR, mask={"h": False, "w": True, "z": False})
        history, states = descend(old, 5, PARAMS)
        found = reschedule(states[-1], history[-1], old=old, new=new)
        expected, _ = descend(new, 14, PARAMS)
        for one, other in zip(descend(new, 9, history[-1], found, start=5)[0], expected[5:], strict=True):
            assert_same(one, other)

    def test_more_leaves(self):
        old, new = introspect((6, 12), LINEAR, mask=NOT_H | {"z": True}), introspect((6, 12), LINEAR)
        history, states = descend(old, 5, PARAMS)
        with pytest.raises(ValueError, match=r"weights of steps 0 \(of \['h'\]\), 3 \(of \['h'\]\) are missing"):
            reschedule(states[-1], history[-1], old=old, new=new)
        found = reschedule(states[-1], history[-1], old=old, new=new, weights=dict(enumerate(history)))
        expected, _ = descend(new, 14, PARAMS)
        for one, other in zip(descend(new, 9, history[-1], found, start=5)[0], expected[5:], strict=True):
            assert_same(one, other)

    def test_many_names_are_cut_short(self):
        params = {str(i): jnp.ones(1) for i in range(6)}
        old = introspect((6,), LINEAR, mask={name: name == "0" for name in params})
        state = old.init(params)._replace(introspect_step=jnp.int32(2))
        with pytest.raises(ValueError, match=r"step 0 \(of \['1'\], \['2'\], \['3'\], \.\.\.\) are missing"):
            reschedule(state, params, old=old, new=introspect((6,), LINEAR))

    def test_leaves_that_are_never_forecast(self):
        params = {"n": jnp.arange(3), "w": jnp.ones(2), "key": jax.random.key(0), "none": None}
        old, new = introspect((6,), LINEAR), introspect((8,), LINEAR)
        state = old.init(params)._replace(introspect_step=jnp.int32(3))
        found = reschedule(state, params, old=old, new=new)
        assert jax.tree.structure(found) == jax.tree.structure(new.init(params))


class TestOptimizersThatDontFit:
    def test_no_introspect(self):
        with pytest.raises(ValueError, match="no introspect in old nor in new, so that there is nothing to reschedule"):
            reschedule(optax.sgd(0.1).init(PARAMS), PARAMS, old=optax.sgd(0.1), new=optax.adam(0.1))

    @pytest.mark.parametrize(
        ("base", "message"),
        [
            (optax.sgd(0.1), r"where old keeps count: int32\[\], new keeps nothing"),
            (optax.sgd(0.1, momentum=0.9), r"where old keeps count: int32\[\], new keeps trace\.h: float16\[2\]"),
            (
                optax.adam(0.1, mu_dtype=jnp.bfloat16),
                r"where old keeps mu\.h: float16\[2\], new keeps mu\.h: bfloat16\[2\]",
            ),
            (
                optax.chain(optax.adam(0.1), optax.ema(0.9)),
                r"where old keeps nothing, new keeps count: int32\[\]",
            ),
        ],
    )
    def test_another_rest(self, base, message):
        old, new = optax.chain(optax.adam(0.1), introspect((6,), LINEAR)), optax.chain(base, introspect((6,), LINEAR))
        with pytest.raises(ValueError, match=f"old and new may differ in introspect only, but {message}"):
            reschedule(old.init(PARAMS), PARAMS, old=old, new=new)

    def test_the_state_of_another_optimizer(self):
        old = optax.chain(optax.adam(0.1), introspect((6,), LINEAR))
        other = optax.chain(optax.adam(0.1), introspect((6, 8), LINEAR))
        with pytest.raises(
            ValueError,
            match=r"opt_state is not what old makes of these params: at \[1\]\.snapshots\[2\]\['h'\] it has nothing, "
            r"where a state of old has float16\[2\]",
        ):
            reschedule(old.init(PARAMS), PARAMS, old=other, new=other)
        with pytest.raises(ValueError, match=r"\[2\]\['h'\] it has float16\[2\], where a state of old has nothing"):
            reschedule(other.init(PARAMS), PARAMS, old=old, new=other)
        narrow = optax.chain(optax.adam(0.1), introspect((6,), LINEAR, snapshot_dtype="float16"))
        with pytest.raises(ValueError, match=r"\['w'\] it has float16\[5\], where a state of old has float32\[5\]"):
            reschedule(narrow.init(PARAMS), PARAMS, old=old, new=other)

    def test_the_state_of_other_parameters(self):
        old = introspect((6,), LINEAR)
        with pytest.raises(ValueError, match=r"at \.snapshots\[0\]\['w'\] it has float32\[5\], where .* float32\[6\]"):
            reschedule(old.init(PARAMS), PARAMS | {"w": jnp.ones(6)}, old=old, new=old)
        with pytest.raises(
            ValueError, match=r"at \.snapshots\[0\] it has nothing, where a state of old has float32\[6\]"
        ):
            reschedule(old.init(PARAMS), jnp.ones(6), old=old, new=old)

    def test_a_state_that_was_restored_without_its_types(self):
        """As from Orbax, where nothing tells it what to restore."""
        old = optax.chain(optax.adam(0.1), introspect((6,), LINEAR))
        state = old.init(PARAMS)
        as_dicts = [state[0], state[1]._asdict()]
        with pytest.raises(ValueError, match=r"at \[1\]\.introspect_step it has nothing"):
            reschedule(as_dicts, PARAMS, old=old, new=old)

    def test_an_ensemble_under_vmap(self):
        old = introspect((6,), LINEAR)
        params = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), PARAMS)
        with pytest.raises(
            ValueError, match=r"at \.introspect_step it has int32\[2\], where a state of old has int32\[\]"
        ):
            reschedule(jax.vmap(old.init)(params), params, old=old, new=old)


class TestFarBeyond:
    @pytest.mark.parametrize("made", [2**31 - 2, 2**31 - 1])
    def test_the_last_steps_that_are_counted(self, made):
        old, new = introspect((6,), LINEAR), introspect((8, 2**31 - 2), LINEAR)
        state = old.init(PARAMS)._replace(introspect_step=jnp.int32(made))
        if made > 2**31 - 2:
            assert int(reschedule(state, PARAMS, old=old, new=new).introspect_step) == made
        else:
            with pytest.raises(ValueError, match="the jump at 2147483646 cannot be made") as raised:
                reschedule(state, PARAMS, old=old, new=new)
            assert str(raised.value).endswith("Give them as weights={step: params}.")  # no later jump is possible

    def test_once_and_again(self):
        """What a plan needs no more is not there, even if its slot was not used for anything else."""
        first, second, third = (introspect(steps, LINEAR) for steps in ((10,), (3, 10), (3, 8, 10)))
        history, states = descend(first, 7, PARAMS)
        state = reschedule(states[4], history[4], old=first, new=second)
        _, states = descend(second, 3, history[4], state, start=4)
        given = {4: history[4]}
        with pytest.raises(ValueError, match="the jump at 8 cannot be made: the weights of step 4 are missing"):
            reschedule(states[-1], history[-1], old=second, new=third)
        state = reschedule(states[-1], history[-1], old=second, new=third, weights=given)
        expected = replayed(third, history)[-1]
        for one, other in zip(
            descend(third, 5, history[-1], state, start=7)[0],
            descend(third, 5, history[-1], expected, start=7)[0],
            strict=True,
        ):
            assert_same(one, other)

    def test_after_the_last_jump_nothing_is_kept(self):
        old, new = introspect((3, 5), LINEAR), introspect((3, 5, 14), LINEAR)
        history, states = descend(old, 6, PARAMS)
        with pytest.raises(ValueError, match="the weights of step 0 are missing") as raised:
            reschedule(states[-1], history[-1], old=old, new=new)
        assert refusal(raised.value) == Refusal(6, {14}, {0}, set(), True, 11)
        reschedule(states[-1], history[-1], old=old, new=new, weights={0: PARAMS})

    def test_all_jumps_in_the_past(self):
        old, new = introspect((6,), LINEAR), introspect((3, 5), LINEAR)
        history, states = descend(old, 6, PARAMS)
        found = reschedule(states[-1], history[-1], old=old, new=new)
        coming, end = descend(new, 3, history[-1], found, start=6)
        assert int(end[-1].jumps_taken) == 0
        expected = history[-1]
        for n, params in enumerate(coming[1:], start=6):
            expected = optax.apply_updates(expected, gradient(n, params))
            assert_same(params, expected)


def test_nothing_is_leaked_from_the_look_at_the_optimizers():
    old, new = (optax.chain(optax.adam(0.1), introspect(steps, LINEAR)) for steps in ((6,), (8,)))
    with jax.checking_leaks():
        reschedule(old.init(PARAMS), PARAMS, old=old, new=new)
