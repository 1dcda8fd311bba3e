import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optax_introspect import heavy_ball, introspect, lookahead, nesterov, plan, polynomial
from optax_introspect._plan import step_of
from tests.optax_introspect import oracle

PAPER = (1.0, 0.7, 0.4, 0.0)

# Every schedule of the paper, and those whose snapshots meet jumps.
SCHEDULES = [
    ((3000, 4000, 5000), PAPER, 6),
    ((6000, 8000, 10_000), PAPER, 6),
    ((12_000, 17_000), PAPER, 5),
    ((12_000, 15_000, 19_000), PAPER, 6),
    ((14_000, 17_000, 20_000), PAPER, 7),
    ((120_000, 130_000, 144_000, 160_000), PAPER, 9),
    ((10, 20, 40), (1.0, 0.5, 0.25), 4),
    ((3000, 4000, 5000), (1.0, 0.4), 3),
    ((5,), (1.0,), 1),
    (range(49, 200_000, 50), nesterov(50).points, 5),
    (range(49, 2000, 50), heavy_ball(50, 1.0, 0.5).points, 3),
    (range(4, 2000, 5), lookahead(5).points, 1),
    ((8, 20), (1.0, -3, 0.5, 0.0), 3),
]


@st.composite
def schedules(draw):
    """Jump steps and points, fractions and steps back mixed, with each point later than the next in every jump."""
    fractions = draw(st.lists(st.integers(0, 9), unique=True, max_size=3))
    back = draw(st.lists(st.integers(1, 30), unique=True, max_size=3))
    jumps = sorted(draw(st.lists(st.integers(1, 60), unique=True, min_size=1, max_size=6)))
    points = [*(f / 10 for f in fractions), *(-k for k in back)]
    points = (1.0, *sorted(points, key=lambda p: -oracle.step_of(p, jumps[-1])))
    try:
        plan(jumps, points)
    except ValueError:
        return draw(schedules())
    return tuple(jumps), points


def replayed(schedule):
    """Asserts that all jumps find their snapshots, by taking these and writing displacements as the transformation."""
    slots = [None] * schedule.num_slots
    captures, jumps = ({event.step: event for event in events} for events in (schedule.captures, schedule.jumps))
    for step in sorted(captures.keys() | jumps.keys()):
        if step in captures:
            slots[captures[step].slot] = step
        if step in jumps:
            assert tuple(slots[slot] for slot in jumps[step].slots) == jumps[step].sources[1:]
            slots[-1] = "displacement"


@pytest.mark.parametrize(("jump_steps", "points", "num_slots"), SCHEDULES)
def test_schedules_of_the_paper_and_of_today(jump_steps, points, num_slots):
    schedule = plan(jump_steps, points)
    assert schedule.num_slots == num_slots
    assert schedule.jump_steps == tuple(jump_steps)
    replayed(schedule)


@settings(max_examples=150, deadline=None)
@given(schedules())
def test_jumps_find_their_snapshots_in_few_slots(drawn):
    jump_steps, points = drawn
    schedule = plan(jump_steps, points)
    replayed(schedule)
    for jump in schedule.jumps:
        assert jump.sources == tuple(oracle.step_of(point, jump.step) for point in points)
    alive = [sum(c.step <= step <= c.last_jump for c in schedule.captures) for step in range(jump_steps[-1] + 1)]
    assert max(alive) <= schedule.num_slots <= max(alive) + 1


def test_thousands_of_jumps_are_planned_in_under_a_second():
    began = time.process_time()
    schedule = plan(range(19, 200_000, 20), nesterov(20).points)
    assert len(schedule.jumps) == 10_000
    assert time.process_time() - began < 1
    assert len(str(schedule).splitlines()) < 40


def test_steps_are_exact():
    assert step_of(0.7, 10) == 7  # 0.7 * 10 < 7 in floating point
    assert step_of(0.5, 5) == 3  # ties upwards
    assert step_of(2.0, 7) == 14
    assert step_of(-3, 2) == 0
    assert all(step_of(0.1, t) == oracle.step_of(0.1, t) for t in range(1000))


def test_needed():
    schedule = plan((3000, 4000))
    assert schedule.needed(0) == {}
    assert set(schedule.needed(3000)) == {0, 1200, 1600, 2100, 2800}
    assert set(schedule.needed(3001)) == {0, 1600, 2800}
    assert schedule.needed(4001) == {}
    assert all({c.step: c.slot for c in schedule.captures}[s] == slot for s, slot in schedule.needed(2500).items())


@pytest.mark.parametrize("snapshot_dtype", [None, jnp.bfloat16])
@pytest.mark.parametrize("forecaster", [None, polynomial(1, 1.3, points=(1.0, 0.4))])
def test_nbytes_are_those_of_the_state(forecaster, snapshot_dtype):
    params = {"w": jnp.zeros((3, 5)), "c": jnp.zeros(2, jnp.complex64), "i": jnp.zeros(2, jnp.int32)}
    state = introspect((30, 40, 50), forecaster, snapshot_dtype=snapshot_dtype).init(params)
    points = PAPER if forecaster is None else forecaster.points
    nbytes = sum(leaf.nbytes for leaf in jax.tree.leaves(state.snapshots))
    assert plan((30, 40, 50), points).nbytes(params, snapshot_dtype) == nbytes
    assert plan((30, 40, 50), points).nbytes(jax.eval_shape(lambda: params), snapshot_dtype) == nbytes


def test_numpy_integers_are_steps():
    assert plan(np.array([30, 40])) == plan((30, 40))


@pytest.mark.parametrize(
    ("jump_steps", "points", "message"),
    [
        ((), PAPER, "got none"),
        (3000, PAPER, "got 3000"),
        ((0, 10), PAPER, "got 0"),
        ((-5,), PAPER, "got -5"),
        ((10, 10), PAPER, "got 10 after 10"),
        ((20, 10), PAPER, "got 10 after 20"),
        ((10.5,), PAPER, "got 10.5"),
        ((True,), PAPER, "got True"),
        ((2**31 - 1,), PAPER, "got 2147483647"),
        ((10,), (), "points must begin with 1.0"),
        ((10,), (0.5, 0.2), "points must begin with 1.0"),
        ((10,), (1.0, 0.2, 0.5), "from the latest to the earliest"),
        ((10,), (1.0, 1.0), "from the latest to the earliest"),
        ((10,), (1.0, -5, -2), "from the latest to the earliest"),
        ((10,), (1.0, -2.0), "a negative integer"),
        ((10,), (1.0, 1.5), "from 0 to 1"),
        ((10,), (1.0, float("nan")), "from 0 to 1"),
        ((10,), "1.0", "got '1.0'"),
        ((1,), PAPER, "the points 1.0 and 0.7 of the jump at 1 are the steps 1 and 1"),
        ((20,), (1.0, 0.0, -10), "the points 0.0 and -10 of the jump at 20 are the steps 0 and 10"),
        ((20,), (1.0, -10, 0.5), "the points -10 and 0.5 of the jump at 20 are the steps 10 and 10"),
    ],
)
def test_bad_schedules_are_named(jump_steps, points, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(").replace("+", r"\+")):
        plan(jump_steps, points)
