import json

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from experiments import benchmark as module
from experiments.benchmark import Row, benchmark, interleaved, row, table
from experiments.benchmark_networks import ConvNet, Mlp, Training, Transformer, images_and_labels, loss_of
from optax_introspect import introspect, polynomial


class Tiny(nnx.Module):
    def __init__(self, rngs):
        self.layer = nnx.Linear(784, 10, use_bias=False, rngs=rngs)

    def __call__(self, images):
        return self.layer(images.reshape(len(images), -1))


TINY = (Tiny, 2)


@pytest.fixture
def quickly_compiled(monkeypatch):
    def with_two_points(jump_steps, forecaster=None, **options):
        return introspect(jump_steps, forecaster or polynomial(1, 1.3, points=(1.0, 0.4)), **options)

    monkeypatch.setattr(module, "introspect", with_two_points)
    monkeypatch.setattr(module, "base", lambda: optax.sgd(0.1))
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def test_a_row_has_the_quartiles():
    assert row("a step", "s", [5, 1, 4, 2, 3]) == Row("a step", "s", 2.0, 3.0, 4.0)


@pytest.mark.parametrize(
    ("others", "expected"),
    [
        ({}, "|  |  |"),
        ({"at_most": 3.0}, "| ≤ 3 x, met |  |"),
        ({"at_most": 2.9}, "| ≤ 2.9 x, **not met** |  |"),
        ({"at_most": 2.9, "judged": False}, "| ≤ 2.9 x, not judged |  |"),
    ],
)
def test_a_bound_is_met_or_not(others, expected):
    assert module._line(row("a step", "x", [1, 3, 5], **others)).endswith(expected)


def test_functions_are_called_in_turn_in_all_orders():
    calls = []
    functions = {name: lambda name=name: calls.append(name) for name in "abc"}
    seconds = interleaved(functions, repetitions=5)
    turns = ["".join(calls[i : i + 3]) for i in range(0, 18, 3)]
    assert sorted(turns) == ["abc", "acb", "bac", "bca", "cab", "cba"]
    assert {name: taken.shape for name, taken in seconds.items()} == dict.fromkeys("abc", (5,))


@pytest.mark.parametrize(("make", "arrays"), [(Mlp, 8), (ConvNet, 10), (Transformer, 167)])
def test_networks_have_about_as_many_weights_as_asked(make, arrays):
    params = jax.tree.leaves(jax.eval_shape(lambda: nnx.state(make(1e6, rngs=nnx.Rngs(0)), nnx.Param)))
    assert len(params) == arrays
    assert 0.8e6 < sum(param.size for param in params) < 1.2e6
    images, labels = images_and_labels(2)
    assert jax.eval_shape(lambda: loss_of(make(1e4, rngs=nnx.Rngs(0)), images, labels)).shape == ()


def test_several_steps_in_one_call_are_those_steps():
    training = Training(*TINY)
    once, twice = (training.run(module.base(), training.jit(module.base(), steps)) for steps in (1, 2))
    # Each has made one call to warm up.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), once(3), twice(1))


def test_idle_steps_have_two_conditionals_and_no_temporaries():
    times, programs = module.idle(2, [TINY]).values()
    assert [r.what.split(": ")[1:] for r in times] == [[], ["the base optimizer against itself"]]
    assert all(0 < r.low <= r.median <= r.high for r in times)
    temporaries, conditionals = programs
    assert temporaries.median <= temporaries.at_most == 1
    assert conditionals.median == conditionals.at_most == 2


def test_a_jump_is_measured_beside_other_ways():
    (rows,) = module.jump(2, [20_000]).values()
    found = {r.what.removesuffix(", 0.02 M weights"): r.median for r in rows}
    assert all(value for name, value in found.items() if name != "PyTorch")
    assert set(found) >= {
        "jump, arrays of at most 50 000 weights",
        "NumPy",
        "PyTorch",
        "reading four arrays and writing one",
    }


def test_the_other_ways_forecast_the_same():
    vmapped, *others = (
        np.asarray(way()) for name, way in module._other_ways(1000).items() if way and "four" not in name
    )
    assert others
    for other in others:
        np.testing.assert_allclose(other, vmapped, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("measure", "rows"),
    [
        (lambda: module.compilation(1, TINY), 3),
        (lambda: module.host(1, Tiny, calls=2), 4),
        (lambda: module.outer(1, [TINY]), 7),
    ],
)
def test_the_rest_is_measured(quickly_compiled, measure, rows):
    found = [row for table in measure().values() for row in table]
    assert len(found) == rows
    assert all(np.isfinite(r.median) for r in found)


def test_tables_are_written_as_they_come_and_others_stay(tmp_path, monkeypatch):
    def fails(repetitions):
        raise RuntimeError("no more")

    idle = {"Idle step": [row("MLP", "x", [1.0, 1.01], at_most=1.01), row("MLP: itself", "x", [1.0, 1.0])]}
    jump = {
        "A jump": [row("jump", "ns a weight", 5.0), Row("PyTorch", "ns a weight", None, None, None, note="missing")]
    }
    monkeypatch.setattr(module, "SECTIONS", {"idle": (lambda _: idle, 1), "jump": (fails, 1)})
    with pytest.raises(RuntimeError, match="no more"):
        benchmark(output=tmp_path, repetitions=7)
    monkeypatch.setattr(module, "SECTIONS", {"idle": (fails, 1), "jump": (lambda _: jump, 0.5)})
    benchmark(output=tmp_path, repetitions=7, only=("jump",))
    measured = json.loads((tmp_path / "benchmark.json").read_text())
    assert {name: section["repetitions"] for name, section in measured.items()} == {"idle": 7, "jump": 4}
    page = (tmp_path / "benchmark.md").read_text()
    assert table(measured) in page
    assert "| MLP | 1 x | 1 to 1.01 | ≤ 1.01 x, met |  |" in page
    assert "| PyTorch | | | | missing |" in page
    assert (tmp_path / "benchmark.png").stat().st_size > 1000
    (tmp_path / "benchmark.md").write_text("nothing marked")
    with pytest.raises(ValueError, match=r"benchmark.md must have <!-- table: benchmark -->"):
        benchmark(output=tmp_path, only=("jump",))


def test_bad_input(tmp_path):
    with pytest.raises(ValueError, match="only must be of idle, jump, compilation, host, outer; got speed"):
        benchmark(output=tmp_path, only=("speed",))
    with pytest.raises(ValueError, match="repetitions must be a positive integer; got 0"):
        benchmark(output=tmp_path, repetitions=0)
    assert not list(tmp_path.iterdir())
