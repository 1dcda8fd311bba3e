import json

import numpy as np

from experiments import benchmark as module
from experiments.benchmark import Row, benchmark, interleaved, row


def test_a_row_has_the_quartiles():
    assert row("a step", "s", [5, 1, 4, 2, 3], "quick") == Row("a step", "s", 2.0, 3.0, 4.0, "quick")


def test_functions_are_timed_in_turn_and_the_first_round_is_left_out():
    calls = []
    seconds = interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repetitions=3)
    assert calls == ["a", "b"] * 4
    assert {name: taken.shape for name, taken in seconds.items()} == {"a": (3,), "b": (3,)}
    assert all(np.all(taken >= 0) for taken in seconds.values())


def test_an_array_is_replaced_in_its_own_buffer():
    compiled = module.jax.jit(lambda now, before: now + before, donate_argnums=0)
    ones = module.jnp.ones(3)
    run = module._in_place(compiled, module.jnp.zeros(3), [ones])
    run()
    np.testing.assert_array_equal(run(), [2, 2, 2])


def test_results_are_written_and_say_how_they_were_made(tmp_path, monkeypatch):
    def idle_steps(repetitions):
        return [Row("idle step", "x", 0.99, 1.0, 1.01, f"{repetitions} times")]

    monkeypatch.setattr(module, "idle_steps", idle_steps)

    def nothing(repetitions):
        return []

    for name in ("jumps", "recording", "fitting"):
        monkeypatch.setattr(module, name, nothing)
    benchmark(output=tmp_path / "results", repetitions=7)
    (written,) = json.loads((tmp_path / "results" / "benchmark.json").read_text())
    assert Row(**written) == Row("idle step", "x", 0.99, 1.0, 1.01, "7 times")
    text = (tmp_path / "results" / "README.md").read_text()
    assert "`python -m experiments benchmark --repetitions 7`" in text
    assert "| idle step | 1 x | 0.99 to 1.01 | 7 times |" in text
