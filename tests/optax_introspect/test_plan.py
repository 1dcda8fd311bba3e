from collections.abc import Sequence
from decimal import ROUND_FLOOR, Context, Decimal
from fractions import Fraction

import hypothesis
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from hypothesis import strategies as st

import optax_introspect
from optax_introspect.plan import LAST_STEP, PAPER_POINTS, Plan, checked_points, plan

POINT_SETS = (
    PAPER_POINTS,
    (1.0,),
    (1.0, 0.0),
    (1.0, 0.4),
    (1.0, 0.5, 0.25),
    (1.0, 0.7, 0.4),
    (1.0, 0.9, 0.8, 0.7),
    (1.0, 2 / 3, 1 / 3, 0.0),
    (1.0, 0.75, 0.5, 0.25, 0.0),
)


def nearest(point: float, t: int) -> int:
    """The step nearest to `point * t`, ties upwards, in decimal arithmetic (the library's is rational)."""
    exact = Context(prec=400)
    return int(exact.add(exact.multiply(Decimal(repr(point)), t), Decimal("0.5")).to_integral_value(ROUND_FLOOR))


def is_possible(steps: Sequence[int], points: Sequence[float]) -> bool:
    return all(len({nearest(point, t) for point in points}) == len(points) for t in steps)


def lifetimes(steps: Sequence[int], points: Sequence[float]) -> dict[int, range]:
    """The steps at whose end each snapshot has to be somewhere: up to, and without, its last reader's."""
    needed = {nearest(point, t) for t in steps for point in points[1:]}
    last = {s: max(t for t in steps if s in {nearest(point, t) for point in points[1:]}) for s in needed}
    return {step: range(step, last[step]) for step in sorted(needed)}


def assignment_exists(alive: dict[int, range], num_slots: int, jumps: Sequence[int] | None = None) -> bool:
    """Whether the snapshots fit into the slots, by trying every way to lay them, but for the names of the slots.

    With `jumps`, every jump also writes into slot 0, in which therefore no snapshot may live on through a jump.
    """
    steps = list(alive)
    together = {(a, b) for a in steps for b in steps if set(alive[a]) & set(alive[b])}
    spared = {step for step in steps if set(alive[step]) & set(jumps or ())}
    slots: list[list[int]] = [[] for _ in range(num_slots)]

    def lay(i: int) -> bool:
        if i == len(steps):
            return True
        step, tried_empty = steps[i], False
        for number, held in enumerate(slots):
            special = jumps is not None and number == 0
            if any((step, other) in together for other in held) or (special and step in spared):
                continue
            if not held and not special:
                if tried_empty:
                    continue  # empty slots differ by name only
                tried_empty = True
            held.append(step)
            if lay(i + 1):
                return True
            held.pop()
        return False

    return lay(0)


def simulate(result: Plan) -> None:
    """Goes through the steps in the order of an update: the jump reads, writes its forecast, and captures follow."""
    buffers: list[object] = [None] * result.num_buffers
    captures = {capture.step: capture for capture in result.captures}
    assert len(captures) == len(result.captures)
    jumps = {jump.step: jump for jump in result.jumps}
    for n in range(max(jumps) + 1):
        if n in jumps:
            jump = jumps[n]
            assert jump.sources[0] == n
            assert tuple(buffers[slot] for slot in jump.slots) == jump.sources[1:]
            held = buffers[-1]
            assert held not in captures or captures[held].last_jump <= n
            buffers[-1] = "forecast"
            assert n not in captures or captures[n].slot != result.num_buffers - 1
        if n in captures:
            assert 0 <= captures[n].slot < result.num_slots
            buffers[captures[n].slot] = n


@st.composite
def schedules(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[float, ...]]:
    points = draw(st.sampled_from(POINT_SETS))
    early = next(t for t in range(1, 60) if all(is_possible([later], points) for later in range(t, 60)))
    steps = draw(st.sets(st.integers(early, 40), min_size=1, max_size=4))
    # Jumps whose points are other jumps are the difficult ones.
    if len(steps) < 4 and draw(st.booleans()):
        steps |= {s for t in sorted(steps)[-1:] for point in points[1:2] if (s := nearest(point, t)) >= early}
    return tuple(sorted(steps)), points


class TestNearestStep:
    @pytest.mark.parametrize(
        ("point", "t", "expected"),
        [
            (0.7, 10, 7),
            (0.4, 10, 4),
            (0.7, 20000, 14000),
            (0.29, 100, 29),  # 0.29 * 100 is less than 29 in floating point
            (0.57, 100, 57),
            (0.7, 5, 4),  # 3.5
            (0.5, 7, 4),  # 3.5
            (0.7, 15, 11),  # 10.5
            (0.4, 6, 2),  # 2.4
            (0.4, 4, 2),  # 1.6
            (0.005, 100, 1),  # 0.5
            (0.0049, 100, 0),
            (0.0, 9, 0),
            (-0.0, 9, 0),
            (0.7, LAST_STEP, 1503238552),  # 1503238552.2
            (0.5, LAST_STEP, 2**30 - 1),
            (0.5, LAST_STEP - 1, 2**30 - 1),  # 2**30 - 1.5
            (0.3, 2_000_000_005, 600_000_002),  # 600000001.5
            (0.9999999999999999, 1_000_000, 1_000_000),
            (1e-300, 1_000_000, 0),
        ],
    )
    def test_known(self, point, t, expected):
        if expected == t:
            with pytest.raises(ValueError, match="both fall on step"):
                plan((t,), (1.0, point))
        else:
            assert plan((t,), (1.0, point)).jumps[0].sources == (t, expected)

    @pytest.mark.parametrize("hundredths", [0, 5, 7, 10, 25, 29, 35, 40, 45, 50, 57, 58, 70, 75, 85, 90])
    def test_hundredths(self, hundredths):
        for t in (*range(10, 400), 12_345, 999_999, 10**9 + 7, LAST_STEP - 1, LAST_STEP):
            sources = plan((t,), (1.0, hundredths / 100)).jumps[0].sources
            assert sources == (t, (2 * hundredths * t + 100) // 200)

    @hypothesis.given(st.integers(1, LAST_STEP), st.floats(0, 1, exclude_max=True, allow_subnormal=False))
    @hypothesis.settings(deadline=None, derandomize=True, max_examples=300)
    def test_every_float_is_its_shortest_decimal(self, t, point):
        expected = nearest(point, t)
        hypothesis.assume(expected != t)
        (jump,) = plan((t,), (1.0, point)).jumps
        assert jump.sources == (t, expected)

    @pytest.mark.parametrize("points", [np.array([1, 0.7]), [1, np.float64(0.7)], (1, 0.7), [1.0, 0.7]])
    def test_points_of_any_sequence(self, points):
        assert plan((15,), points) == plan((15,), (1.0, 0.7))
        assert all(type(point) is float for point in plan((15,), points).points)

    def test_points_that_can_be_gone_through_once(self):
        assert plan((15,), iter((1.0, 0.7))) == plan((15,), (1.0, 0.7))


class TestSlots:
    @hypothesis.given(schedules())
    @hypothesis.settings(deadline=None, derandomize=True, max_examples=1500)
    def test_brute_force(self, schedule):
        steps, points = schedule
        result = plan(steps, points)
        alive = lifetimes(steps, points)
        hypothesis.event(f"{len(steps)} jumps, scratch: {result.scratch}")
        hypothesis.event(f"points on jumps: {any(s in steps for s in alive)}")

        assert result.points == points
        assert result.jump_steps == steps
        assert {jump.step: jump.sources for jump in result.jumps} == {
            t: tuple(nearest(point, t) for point in points) for t in steps
        }
        assert [capture.step for capture in result.captures] == list(alive)
        assert [range(c.step, c.last_jump) for c in result.captures] == list(alive.values())
        simulate(result)

        assert assignment_exists(alive, result.num_slots)
        if result.num_slots:
            assert not assignment_exists(alive, result.num_slots - 1)
        fits = result.num_slots > 0 and assignment_exists(alive, result.num_slots, jumps=steps)
        assert result.scratch == (not fits)
        assert result.num_buffers == result.num_slots + int(not fits)

    def test_the_brute_force_sees_both_kinds(self):
        for steps, points, num_slots, scratch in [
            ((10,), PAPER_POINTS, 3, False),
            ((10,), (1.0,), 0, True),
            ((10, 20, 40), (1.0, 0.5), 1, True),
        ]:
            result = plan(steps, points)
            assert (result.num_slots, result.scratch, result.num_buffers) == (
                num_slots,
                scratch,
                num_slots + scratch,
            )
            simulate(result)

    @pytest.mark.parametrize(
        ("steps", "points"),
        [
            ((120_000, 130_000, 144_000, 160_000), PAPER_POINTS),
            ((14_000, 17_000, 20_000), PAPER_POINTS),
            (tuple(range(100, 1100, 30)), PAPER_POINTS),
            (tuple(range(100, 1100, 7)), (1.0, 0.85, 0.5, 0.3)),
        ],
    )
    def test_long_schedules(self, steps, points):
        result = plan(steps, points)
        simulate(result)
        alive = lifetimes(steps, points).values()
        assert result.num_slots == max(sum(n in life for life in alive) for n in {life.start for life in alive})

    def test_numpy_steps(self):
        expected = plan((10, 14, 20))
        for dtype in (np.int8, np.int32, np.uint16, np.int64):
            result = plan(np.array([10, 14, 20], dtype))
            assert result == expected
            assert all(type(jump.step) is int for jump in result.jumps)
        assert plan(jnp.array([10, 14, 20])) == expected
        assert plan([10, np.int64(14), 20]) == expected

    def test_str_of_the_papers_schedule(self):
        assert str(plan((3000, 4000, 5000))) == (
            "3 jumps, 7 snapshots in 6 slots\n"
            "  step  event    weights\n"
            "     0  capture  slot 0 until 5000\n"
            "  1200  capture  slot 5 until 3000\n"
            "  1600  capture  slot 1 until 4000\n"
            "  2000  capture  slot 2 until 5000\n"
            "  2100  capture  slot 3 until 3000\n"
            "  2800  capture  slot 4 until 4000\n"
            "  3000  jump     w_3000 w_2100 (slot 3) w_1200 (slot 5) w_0 (slot 0)\n"
            "  3500  capture  slot 3 until 5000\n"
            "  4000  jump     w_4000 w_2800 (slot 4) w_1600 (slot 1) w_0 (slot 0)\n"
            "  5000  jump     w_5000 w_3500 (slot 3) w_2000 (slot 2) w_0 (slot 0)"
        )

    def test_str_with_a_scratch_slot(self):
        assert str(plan((10, 20, 40), (1.0, 0.5))) == (
            "3 jumps, 3 snapshots in 1 slots and a scratch slot\n"
            "step  event    weights\n"
            "   5  capture  slot 0 until 10\n"
            "  10  jump     w_10 w_5 (slot 0)\n"
            "  10  capture  slot 0 until 20\n"
            "  20  jump     w_20 w_10 (slot 0)\n"
            "  20  capture  slot 0 until 40\n"
            "  40  jump     w_40 w_20 (slot 0)"
        )


def contents(result: Plan, updates_made: int) -> list[object]:
    """What is in every buffer after so many updates, going through them one by one."""
    buffers: list[object] = [None] * result.num_buffers
    for n in range(updates_made):
        if n in result.jump_steps:
            buffers[-1] = "forecast"
        for capture in result.captures:
            if capture.step == n:
                buffers[capture.slot] = n
    return buffers


class TestNeeded:
    @hypothesis.given(schedules())
    @hypothesis.settings(deadline=None, derandomize=True, max_examples=150)
    def test_at_every_step(self, schedule):
        steps, points = schedule
        result = plan(steps, points)
        for n in range(max(steps) + 4):
            past = {nearest(point, t) for t in steps if t >= n for point in points[1:]} & set(range(n))
            assert result.needed(n) == tuple(sorted(past))
            there = contents(result, n)
            for capture in result.captures:
                if capture.step in past:
                    assert there[capture.slot] == capture.step

    def test_what_is_due_is_not_missing(self):
        result = plan((10, 14), (1.0, 0.5, 0.0))
        assert [result.needed(n) for n in (0, 1, 5, 6, 7, 8)] == [(), (0,), (0,), (0, 5), (0, 5), (0, 5, 7)]
        assert [result.needed(n) for n in (10, 11, 14, 15)] == [(0, 5, 7), (0, 7), (0, 7), ()]

    def test_far_beyond(self):
        assert plan((LAST_STEP,)).needed(LAST_STEP) == (0, 858993458, 1503238552)
        assert plan((LAST_STEP,)).needed(LAST_STEP + 1) == ()


def mixed_tree():
    return {
        "f32": jnp.ones((3, 5)),
        "bf16": jnp.ones((7,), jnp.bfloat16),
        "f16": jnp.ones((2, 2), jnp.float16),
        "f8": jnp.ones((3,), jnp.float8_e4m3fn),
        "c64": jnp.ones((4,), jnp.complex64),
        "int": jnp.ones((11,), jnp.int32),
        "uint8": jnp.ones((11,), jnp.uint8),
        "bool": jnp.ones((13,), bool),
        "key": jax.random.split(jax.random.key(0), 3),
        "old_key": jax.random.PRNGKey(0),
        "scalar": jnp.float32(1),
        "empty": jnp.zeros((0, 3)),
        "none": None,
        "masked": optax.MaskedNode(),
    }


class TestNbytes:
    @pytest.mark.parametrize("snapshot_dtype", [None, jnp.bfloat16, jnp.float16, jnp.float32, "float16"])
    @pytest.mark.parametrize(
        ("steps", "points"), [((10, 14, 20), PAPER_POINTS), ((10,), (1.0,)), ((10, 20, 40), (1.0, 0.5))]
    )
    def test_is_what_the_state_takes(self, steps, points, snapshot_dtype):
        params = mixed_tree()
        result = plan(steps, points)
        forecaster = optax_introspect.polynomial(0, 1.3, points=points)
        tx = optax_introspect.introspect(steps, forecaster, snapshot_dtype=snapshot_dtype)
        snapshots = tx.init(params).snapshots
        assert len(snapshots) == result.num_buffers
        expected = sum(leaf.nbytes for leaf in jax.tree.leaves(snapshots))
        assert expected > 0
        assert result.nbytes(params, snapshot_dtype) == expected
        assert result.nbytes(jax.eval_shape(mixed_tree), snapshot_dtype) == expected
        assert isinstance(result.nbytes(params, snapshot_dtype), int)

    def test_by_hand(self):
        floating = 15 * 4 + 7 * 2 + 4 * 2 + 3 * 1 + 1 * 4
        assert plan((10,)).nbytes(mixed_tree()) == 3 * (floating + 4 * 8)
        assert plan((10,)).nbytes(mixed_tree(), jnp.bfloat16) == 3 * (2 * (15 + 7 + 4 + 3 + 1) + 4 * 8)

    def test_numpy_leaves(self):
        params = {"w": np.ones((3, 4), np.float32), "b": np.ones(5, ml_dtypes.bfloat16), "n": np.arange(6)}
        assert plan((10,)).nbytes(params) == 3 * (48 + 10)

    def test_larger_than_an_int32(self):
        params = {"w": jax.ShapeDtypeStruct((100_000, 100_000), jnp.float32)}
        assert plan((10,)).nbytes(params) == 3 * 4 * 10**10

    def test_nothing_to_forecast(self):
        assert plan((10,)).nbytes({"n": jnp.arange(3), "none": None}) == 0
        assert plan((10,)).nbytes({}) == 0

    @pytest.mark.parametrize("snapshot_dtype", [None, jnp.float16])
    def test_float64_leaves_of_a_jax_without_it(self, snapshot_dtype):
        params = {"w": np.ones(3)}
        tx = optax_introspect.introspect((10,), optax_introspect.polynomial(1, 1.3), snapshot_dtype=snapshot_dtype)
        taken = sum(leaf.nbytes for leaf in jax.tree.leaves(tx.init(params).snapshots))
        assert plan((10,)).nbytes(params, snapshot_dtype) == taken


class TestBadArguments:
    @pytest.mark.parametrize(
        ("steps", "value"),
        [
            ((), "none"),
            ([], "none"),
            (np.array([], np.int32), "none"),
            (3000, "3000"),
            (None, "None"),
            (3000.0, r"3000\.0"),
            ((0,), "0 in"),
            ((0, 10), "0 in"),
            ((-10,), "-10 in"),
            ((-10, 10), "-10 in"),
            ((10.0,), r"10\.0 in"),
            ((10.5,), r"10\.5 in"),
            ((10, 20.0), r"20\.0 in"),
            ((np.float32(10),), r"10\.0\) in"),
            ((float("nan"),), "nan in"),
            ((True,), "True in"),
            ((10, True), "True in"),
            ((np.True_,), "True_ in"),
            (("10",), "'10' in"),
            ("3000", "'3' in"),
            ((None,), "None in"),
            (((10, 20),), r"\(10, 20\) in"),
            (np.array([[10, 20]]), r"array\(\[10, 20\]\) in"),
            ((Fraction(10),), r"Fraction\(10, 1\) in"),
            ((10, 10), r"10 after 10 in \(10, 10\)"),
            ((10, 20, 20), "20 after 20 in"),
            ((20, 10), r"10 after 20 in \(20, 10\)"),
            ((10, 30, 20), "20 after 30 in"),
            ((2**31 - 1,), "2147483647 in"),
            ((10, 2**40), f"{2**40} in"),
        ],
    )
    def test_steps(self, steps, value):
        with pytest.raises(ValueError, match=f"increasing integers from 1 to 2147483646.*got.*{value}"):
            plan(steps)

    def test_last_step(self):
        assert plan((2**31 - 2,)).jump_steps == (LAST_STEP,)

    @pytest.mark.parametrize(
        ("steps", "points", "message"),
        [
            ((1,), PAPER_POINTS, r"jump step 1 .* 1\.0 and 0\.7 both fall on step 1"),
            ((2, 10), PAPER_POINTS, r"jump step 2 .* 0\.7 and 0\.4 both fall on step 1"),
            ((10, 11), (1.0, 0.99), r"jump step 10 .* 1\.0 and 0\.99 both fall on step 10"),
            ((3,), (1.0, 0.7, 0.1, 0.0), r"jump step 3 .* 0\.1 and 0\.0 both fall on step 0"),
        ],
    )
    def test_too_early(self, steps, points, message):
        with pytest.raises(ValueError, match=message + "; every point needs a step of its own"):
            plan(steps, points)

    def test_earliest(self):
        assert plan((3,)).jumps[0].sources == (3, 2, 1, 0)
        assert plan((1,), (1.0, 0.0)).jumps[0].sources == (1, 0)
        assert plan((1,), (1.0,)).jumps[0].sources == (1,)

    @pytest.mark.parametrize(
        "points",
        [
            (),
            (0.7, 0.4),
            (0.0,),
            (1.0, 1.0),
            (1.0, 0.4, 0.7),
            (1.0, 0.7, 0.7, 0.0),
            (1.0, 0.5, -0.1),
            (2.0, 1.0),
            (1.1, 1.0, 0.5),
            (1.0, 1.5),
            (float("nan"),),
            (float("nan"), 0.5),
            (1.0, float("nan")),
            (1.0, float("nan"), 0.0),
            (float("inf"), 1.0),
            (1.0, float("-inf")),
            (1.0, "half"),
            (1.0, None),
            (1.0, 0.5j),
            (1.0, (0.5,)),
        ],
    )
    def test_points(self, points):
        match = r"decreasing fractions of a jump step within \[0, 1\], the first of which is 1.*got "
        for function in (checked_points, lambda given: plan((100,), given)):
            with pytest.raises(ValueError, match=match) as raised:
                function(points)
            assert str(raised.value).endswith(repr(points))

    @pytest.mark.parametrize("points", [None, 1.0, 3])
    def test_points_that_are_no_sequence(self, points):
        with pytest.raises(ValueError, match=rf"decreasing fractions.*got {points}"):
            plan((100,), points)

    @pytest.mark.parametrize("points", [("1", "0.7"), "10", (1.0, "0.5")])
    def test_points_that_are_text(self, points):
        with pytest.raises(ValueError, match=r"decreasing fractions.*got "):
            plan((100,), points)
