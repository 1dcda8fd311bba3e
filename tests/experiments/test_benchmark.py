import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import benchmark as module
from experiments.benchmark import benchmark, jump, layers, steps
from experiments.benchmark.networks import FAMILIES, Family, mlp, transformer
from experiments.benchmark.page import page
from experiments.benchmark.rows import Row, interleaved, row


def test_a_row_has_the_quartiles():
    assert row("steps", "a step", "s", [5, 1, 4, 2, 3], note="quick") == Row(
        "steps", "a step", "s", 2.0, 3.0, 4.0, note="quick"
    )
    assert row("state", "bytes", "B", 7).median == 7


@pytest.mark.parametrize(
    ("bounds", "met"),
    [
        ({}, None),
        ({"at_most": 3.0}, True),
        ({"at_most": 2.9}, False),
        ({"at_least": 3}, True),
        ({"at_least": 4}, False),
    ],
)
def test_the_median_keeps_its_bound_or_not(bounds, met):
    assert row("steps", "a step", "s", [1, 3, 5], **bounds).met is met


def test_functions_are_timed_in_turn_and_the_first_round_is_left_out():
    calls = []
    seconds = interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repetitions=3)
    assert calls == ["a", "b"] * 4
    assert {name: taken.shape for name, taken in seconds.items()} == {"a": (3,), "b": (3,)}
    assert all(np.all(taken >= 0) for taken in seconds.values())


def test_an_array_is_replaced_in_its_own_buffer():
    ones = jnp.ones(3)
    run = jump._in_place(lambda now, before: now + before, jnp.zeros(3), [ones])
    run()
    np.testing.assert_array_equal(run(), [2, 2, 2])


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_networks_have_about_as_many_weights_as_asked(family):
    for weights in (1e6, 10e6):
        task = family.task(weights)
        size = sum(leaf.size for leaf in jax.tree.leaves(task.params))
        assert 0.8 * weights < size < 1.2 * weights
        loss, accuracy = task._losses(task.params, *task.batch(0))
        assert loss.shape == accuracy.shape == (family.batches[weights],)


def test_the_transformer_has_16_arrays_a_block():
    counts = [
        len(jax.tree.leaves(Family("", lambda w, b=b: transformer(w, b), {1e5: 1}).task(1e5).params)) for b in (1, 3)
    ]
    assert counts == [16 + 7, 48 + 7]


def test_idle_steps_are_measured_with_their_temporaries():
    time, memory, *controls = steps.idle_step(Family("MLP", mlp, {1e4: 4}), 1e4, "Adam", repetitions=2)
    assert [(r.section, r.unit) for r in controls] == [(steps.CONTROLS, "x")] * 3
    assert (time.unit, time.at_most, memory.unit, memory.at_most) == ("x", 1.01, "MB", 1.0)
    assert 0 < time.low <= time.median <= time.high
    assert time.place["arrays"] == 8


def test_several_idle_steps_are_measured_in_one_call():
    found = steps.scanned_step(Family("MLP", mlp, {1e4: 4}), 1e4, "Adam", repetitions=2)
    assert found.what == "Adam, MLP, 0.0 M weights in 8 arrays"
    assert found.note.startswith("10 steps a call, ")
    assert 0 < found.low <= found.median <= found.high


def test_a_call_makes_several_steps():
    task, tx = Family("MLP", mlp, {1e4: 4}).task(1e4), optax.sgd(1e-3)
    call = steps._scan(task, tx)
    first = [call(), call()][-1]
    params, state = jax.tree.map(jnp.copy, task.params), tx.init(task.params)
    for _ in range(2 * steps.STEPS_A_CALL):
        params, state = task.step_function(tx)(params, state, 0)
    np.testing.assert_allclose(first, jax.tree.leaves(params)[0], rtol=1e-5)


def test_a_jump_is_measured_against_all_others():
    found = {r.what: r for r in jump.jump(70_000, repetitions=2)}
    for name in (jump.JUMP, jump.VMAP, jump.NUMPY, jump.STREAM, jump.MULTIPLY_ADD):
        assert found[f"{name}, 0.07 M weights"].median > 0
    assert found["jump, 0.07 M weights"].at_most == 6
    assert found[f"{jump.VMAP} against jump, 0.07 M weights"].at_least == 15


def test_trees_of_other_shapes_are_measured_as_well():
    found = {r.what: r for r in jump.other_trees(200_000, repetitions=2)}
    assert len(found) == 3 * len(jump.OTHER_TREES)
    assert found["jump, 0.2 M weights, 100 columns"].median > 0
    assert all(r.median >= 0 and r.at_most for r in found.values())


def test_the_other_forms_compute_the_same():
    forms = jump._other_forms(1000)
    jump._points.cache_clear()
    results = [np.asarray(form()) for form in forms.values()]
    assert len(results) >= 2
    for result in results[1:]:
        np.testing.assert_allclose(result, results[0], atol=1e-6)


def test_states_are_as_planned():
    found = steps.states(1)
    assert len(found) == len(steps.SCHEDULES)
    assert all(r.median < 1 for r in found)
    assert found[0].what.startswith("MNIST_1, jumps at 3000, 4000, 5000")
    assert found[0].median == 6 / 12


def test_an_update_is_lowered_without_arrays():
    params = [jax.ShapeDtypeStruct((1 << 20, 1 << 15), jnp.bfloat16)]
    state = jax.eval_shape(optax.sgd(0.1).init, params)
    assert "1048576x32768xbf16" in steps.lower_update(optax.sgd(0.1), params, state).as_text()


@pytest.mark.parametrize("case", layers.CASES, ids=lambda case: case.name)
def test_both_forms_of_a_layer_compute_the_same(case):
    small = tuple((2, *shape[1:]) if i == 0 else shape for i, shape in enumerate(case.shapes))
    random = np.random.default_rng(0)
    operands = [np.float32(random.normal(size=shape)) for shape in small]
    found, expected = (jax.tree.leaves(layers.there_and_back(form)(*operands)) for form in (case.ours, case.other))
    assert len(found) == 1 + len(small)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(b).max())
    measured = layers.measured(case._replace(shapes=small), 2)
    assert 0 < measured.low <= measured.median <= measured.high


def test_batch_norms_are_measured_against_a_network_without(monkeypatch):
    monkeypatch.setattr(layers, "_BATCH", 4)
    measured = layers.batch_norms(2)
    assert measured.median > 0
    assert measured.note.endswith(" ms")


def test_results_are_written_as_they_come(tmp_path, monkeypatch):
    def one(repetitions):
        place = {"family": "MLP", "optimizer": "Adam", "weights": 10, "arrays": 2}
        return [Row("idle step", "Adam", "x", 0.99, 1.0, 1.01, at_most=1.01, note=f"{repetitions} times", place=place)]

    def fails(repetitions):
        raise RuntimeError("no more")

    monkeypatch.setattr(module, "SECTIONS", {"idle-steps": one, "jumps": fails})
    with pytest.raises(RuntimeError, match="no more"):
        benchmark(output=tmp_path, repetitions=7, sections=("idle-steps", "jumps"))
    monkeypatch.setattr(module, "SECTIONS", {"idle-steps": fails, "jumps": lambda _: [row("state", "bytes", "B", 3)]})
    benchmark(output=tmp_path, repetitions=7, sections=("jumps",))
    written = json.loads((tmp_path / "benchmark" / "benchmark.json").read_text())
    assert Row(**written["idle-steps"][0]) == one(7)[0]
    text = (tmp_path / "benchmark.md").read_text()
    assert "`python -m experiments benchmark --repetitions 7" in text
    assert "| Adam | 1 x | 0.99 to 1.01 | ≤ 1.01 x, met | 7 times |" in text
    assert "| bytes | 3 B |  |  |  |" in text
    assert (tmp_path / "benchmark" / "idle-step.png").stat().st_size > 1000


def test_a_bound_that_is_not_met_is_said_so(tmp_path):
    assert "≥ 15 x, **not met**" in page([row("state", "slow", "x", 3, at_least=15.0)], tmp_path, "benchmark")


def test_bad_input(tmp_path):
    with pytest.raises(ValueError, match=r"unknown sections \['speed'\]; known are \['idle-steps'"):
        benchmark(output=tmp_path, sections=("speed",))
    with pytest.raises(ValueError, match="repetitions must be a positive integer; got 0"):
        benchmark(output=tmp_path, repetitions=0)
    assert not list(tmp_path.iterdir())
