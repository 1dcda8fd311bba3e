"""The first result, at a small scale on scikit-learn's digits, and the command line."""

import functools
import inspect
import itertools
import json
import statistics
import subprocess
import sys
from pathlib import Path

import absl.logging
import jax
import numpy as np
import optax
import pytest
from flax import nnx

import optax_introspect
from experiments import __main__ as command_line
from experiments import quickstart as module
from experiments.data import load_digits
from experiments.networks import Mlp
from experiments.quickstart import Comparison, Record, compare
from experiments.training import Task

STEPS, JUMPS, EVERY, SEED = 40, (10, 16, 20), 4, 5
EVALUATED = (0, 4, 8, 10, 11, 12, 16, 17, 20, 21, 24, 28, 32, 36, 40)  # every fourth, and around the jumps
OPTIMIZERS = {"sgd": optax.sgd(5e-3), "adam": optax.adam(1e-3)}  # the paper's
ROOT = Path(__file__).parents[2]


def untrained():
    network = optax_introspect.IntrospectionNetwork(rngs=nnx.Rngs(0))
    return optax_introspect.introspection(network)


@pytest.fixture(scope="module")
def small():
    """No download, and a forecaster that is not to be retrained."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(module, "load_mnist", lambda data_dir: load_digits())
        shipped = optax_introspect.pretrained
        monkeypatch.setattr(
            optax_introspect, "pretrained", lambda name: untrained() if name == "mnist-n0" else shipped(name)
        )
        yield


@pytest.fixture(scope="module")
def finished(small, tmp_path_factory):
    """The folder of a whole run, and the weights that it evaluated, in their order."""
    output, weights = tmp_path_factory.mktemp("quickstart") / "new" / "folder", []
    evaluate = Task.evaluate

    def noted(self, params):
        weights.append([np.array(leaf) for leaf in jax.tree.leaves(params)])
        return evaluate(self, params)

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(Task, "evaluate", noted)
        module.quickstart(seeds=(SEED,), steps=STEPS, jump_steps=JUMPS, every=EVERY, output=output)
    return output, weights


@pytest.fixture(scope="module")
def records(finished):
    lines = (finished[0] / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def weights(finished):
    """The weights by optimizer, arm and step. The steps before the first jump are evaluated once for both arms."""
    in_order = iter(finished[1])
    result = {}
    for optimizer in OPTIMIZERS:
        shared = {step: next(in_order) for step in EVALUATED if step <= JUMPS[0]}
        for arm in ("plain", "introspection"):
            own = {step: next(in_order) for step in EVALUATED if step > JUMPS[0]}
            result[optimizer, arm] = shared | own
    assert next(in_order, None) is None
    return result


def of(records, optimizer, arm):
    return [record for record in records if (record["optimizer"], record["arm"]) == (optimizer, arm)]


def test_every_evaluation_of_every_arm_has_a_line(records):
    fields = {"images", "optimizer", "arm", "seed", "step", "test_loss", "test_accuracy", "seconds"}
    for record in records:
        assert set(record) == fields
        assert (record["images"], record["seed"]) == ("digits", SEED)
        assert np.isfinite(record["test_loss"])
        assert 0 <= record["test_accuracy"] <= 1
    assert len(records) == 2 * 2 * len(EVALUATED)
    for optimizer in OPTIMIZERS:
        for arm in ("plain", "introspection"):
            lines = of(records, optimizer, arm)
            assert [line["step"] for line in lines] == list(EVALUATED)
            seconds = [line["seconds"] for line in lines]
            assert seconds[0] == 0
            assert all(later > earlier for earlier, later in itertools.pairwise(seconds))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_arms_are_one_up_to_the_first_jump(records, optimizer):
    pairs = list(zip(of(records, optimizer, "plain"), of(records, optimizer, "introspection"), strict=True))
    for plain, jumping in pairs:
        before = plain["step"] <= JUMPS[0]
        assert (plain["test_loss"] == jumping["test_loss"]) == before
        if before:
            assert {**plain, "arm": "introspection"} == jumping
    assert pairs[0][0]["test_loss"] != pairs[2][0]["test_loss"]  # they do learn


def run_alone(tx):
    """The weights of an arm that is trained on its own, at every evaluated step, and its last optimizer state."""
    task = Task(Mlp, load_digits(), 100, SEED)
    update = task.step_function(tx)
    params, opt_state = task.params, tx.init(task.params)
    weights = {}
    for step in range(STEPS + 1):
        if step in EVALUATED:
            weights[step] = [np.array(leaf) for leaf in jax.tree.leaves(params)], task.evaluate(params)
        params, opt_state = update(params, opt_state, step)
    return weights, opt_state


def assert_equal_to(weights, records, alone):
    assert set(weights) == set(alone)
    losses = {record["step"]: (record["test_loss"], record["test_accuracy"]) for record in records}
    for step, (expected, metrics) in alone.items():
        for leaf, expected_leaf in zip(weights[step], expected, strict=True):
            np.testing.assert_array_equal(leaf, expected_leaf)
        assert losses[step] == metrics


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_plain_arm_is_the_base_optimizer_alone(records, weights, optimizer):
    alone, _ = run_alone(OPTIMIZERS[optimizer])
    assert_equal_to(weights[optimizer, "plain"], of(records, optimizer, "plain"), alone)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_introspection_arm_is_the_chain_alone(records, weights, optimizer):
    alone, opt_state = run_alone(optax.chain(OPTIMIZERS[optimizer], optax_introspect.introspect(JUMPS, untrained())))
    assert_equal_to(weights[optimizer, "introspection"], of(records, optimizer, "introspection"), alone)
    assert isinstance(opt_state[1], optax_introspect.IntrospectState)
    assert (int(opt_state[1].jumps_taken), int(opt_state[1].jumps_refused)) == (len(JUMPS), 0)


def test_the_table_is_that_of_the_metrics(finished, records):
    card = (finished[0] / "README.md").read_text()
    for optimizer in OPTIMIZERS:
        plain, jumping = of(records, optimizer, "plain"), of(records, optimizer, "introspection")
        best = max(line["test_accuracy"] for line in plain)
        best_step = min(line["step"] for line in plain if line["test_accuracy"] == best)
        jumps_best = max(line["test_accuracy"] for line in jumping)
        reached = [line["step"] for line in jumping if line["test_accuracy"] >= best]
        cells = [
            optimizer,
            f"{SEED}",
            f"{best:.2%}",
            f"{jumps_best:.2%}",
            f"{best_step}",
            f"{reached[0]}" if reached else "never",
            f"{reached[0] / best_step:.2f}" if reached else "",
            f"{plain[-1]['seconds']:.0f}",
            f"{jumping[-1]['seconds']:.0f}",
        ]
        assert f"\n| {' | '.join(cells)} |\n" in card
        gain, ratio = 100 * (jumps_best - best), reached[0] / best_step if reached else float("inf")
        assert (
            f"- {optimizer}: best accuracy with jumps less plain, in percentage points: mean {gain:.2f}, "
            f"from {gain:.2f} to {gain:.2f}; share of the steps to the plain run's best: "
            f"median {ratio:.2f}, from {ratio:.2f} to {ratio:.2f} (1 seeds)."
        ) in card
        at = {line["step"]: line for line in jumping}
        losses = [at[t + 1]["test_loss"] / at[t]["test_loss"] for t in JUMPS]
        accuracies = [100 * (at[t + 1]["test_accuracy"] - at[t]["test_accuracy"]) for t in JUMPS]
        assert (
            f"- {optimizer}: from just before a jump to just after it, over all jumps: test loss times "
            f"{statistics.median(losses):.2f} (median, from {min(losses):.2f} to {max(losses):.2f}), test accuracy by "
            f"{statistics.median(accuracies):+.2f} percentage points (median, from {min(accuracies):+.2f} to "
            f"{max(accuracies):+.2f})."
        ) in card
    command = (
        "python -m experiments quickstart --seeds 5 --steps 40 --jump-steps 10 16 20 --predictor mnist-n0 --every 4"
    )
    assert f"`{command}`" in card
    assert "On digits (the digits of scikit-learn), 360 test images." in card
    assert str(finished[0].parent) not in card


def test_the_figure_is_written(finished):
    assert {path.name for path in finished[0].iterdir()} == {"metrics.jsonl", "README.md", "accuracy.png"}
    image = (finished[0] / "accuracy.png").read_bytes()
    assert image.startswith(b"\x89PNG\r\n")
    assert len(image) > 10_000
    assert "![Test accuracy against steps](accuracy.png)" in (finished[0] / "README.md").read_text()


def make_records(optimizer, seed, arm, accuracies, every=100):
    return [
        Record("digits", optimizer, arm, seed, i * every, 1.0, accuracy, 0.5 * i)
        for i, accuracy in enumerate(accuracies)
    ]


OTHERS = (
    make_records("adam", 0, "plain", [0.99])
    + make_records("sgd", 1, "plain", [0.99])
    + make_records("adam", 0, "introspection", [1.0])
    + make_records("sgd", 1, "introspection", [1.0])
)


@pytest.mark.parametrize(
    ("jumping", "best", "reach", "cells"),
    [
        ([0.1, 0.3, 0.5, 0.8, 0.9], 0.9, 300, ["300", "1.50"]),  # reached is also what is only equalled
        ([0.1, 0.85, 0.5, 0.2, 0.1], 0.85, 100, ["100", "0.50"]),  # at first, whatever comes later
        ([0.1, 0.3, 0.5, 0.6, 0.79], 0.79, None, ["never", ""]),
    ],
)
def test_compare(jumping, best, reach, cells):
    plain = make_records("sgd", 0, "plain", [0.1, 0.3, 0.8, 0.8, 0.7])
    arms = make_records("sgd", 0, "introspection", jumping) + plain
    for records in (arms, OTHERS + arms, arms + OTHERS):
        result = compare(records, "sgd", 0)
        # Of equally good steps of the plain arm, the first counts.
        assert result == Comparison("sgd", 0, 0.8, 200, best, reach, 2.0, 2.0)
        assert result.cells() == ["sgd", "0", "80.00%", f"{best:.2%}", "200", *cells, "2", "2"]
    assert len(result.cells()) == len(module.COLUMNS)


def test_the_report_sums_up_all_seeds():
    comparisons = [
        Comparison("sgd", 0, 0.80, 200, 0.85, 100, 1.0, 1.0),
        Comparison("sgd", 1, 0.80, 200, 0.81, 180, 1.0, 1.0),
        Comparison("sgd", 2, 0.80, 200, 0.78, None, 1.0, 1.0),
        Comparison("adam", 0, 0.90, 400, 0.91, 300, 1.0, 1.0),
    ]
    records = [
        Record("digits", optimizer, arm, seed, step, loss, accuracy, 0.0)
        for optimizer, arm, seed, before, after in (
            ("sgd", "introspection", 0, (2.0, 0.5), (4.0, 0.4)),
            ("sgd", "introspection", 1, (2.0, 0.5), (3.0, 0.6)),
            ("sgd", "introspection", 2, (2.0, 0.5), (1.0, 0.45)),
            ("sgd", "plain", 0, (2.0, 0.5), (200.0, 0.0)),
            ("adam", "introspection", 0, (2.0, 0.5), (2.5, 0.5)),
        )
        for step, (loss, accuracy) in ((99, (7.0, 0.0)), (100, before), (101, after), (102, (7.0, 0.0)))
    ]
    changes = module.right_after(records, "sgd", (50, 100))
    np.testing.assert_allclose(changes, [(2.0, -0.1), (1.5, 0.1), (0.5, -0.05)])
    text = module.report(comparisons, records, (50, 100), load_digits(), "the command")
    for part in (
        "- sgd: best accuracy with jumps less plain, in percentage points: mean 1.33, from -2.00 to 5.00",
        "share of the steps to the plain run's best: median 0.90, from 0.50 to inf (3 seeds).",
        "over all jumps: test loss times 1.50 (median, from 0.50 to 2.00), test accuracy by -5.00 percentage points "
        "(median, from -10.00 to +10.00).",
        "- adam: best accuracy with jumps less plain, in percentage points: mean 1.00, from 1.00 to 1.00",
        "test loss times 1.25 (median, from 1.25 to 1.25), test accuracy by +0.00 percentage points",
    ):
        assert part in text
    for comparison in comparisons:
        assert f"\n| {' | '.join(comparison.cells())} |\n" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seeds": ()}, "seeds must name at least one seed"),
        ({"every": 0}, "every must be at least 1; got 0"),
        ({"every": -5}, "every must be at least 1; got -5"),
        ({"steps": 20}, "steps must be more than the last jump step, 20; got 20"),
        ({"steps": 0}, "steps must be more than the last jump step, 20; got 0"),
        ({"jump_steps": ()}, "jump step"),
        ({"jump_steps": (10, 10)}, r"jump steps must be increasing integers .* \(10, 10\)"),
        ({"jump_steps": (1, 10)}, "jump step 1 "),
        ({"predictor": "oracle"}, "unknown predictor 'oracle'; shipped are .*'mnist-n0'"),
    ],
)
def test_bad_arguments(small, tmp_path, arguments, message):
    output = tmp_path / "output"
    with pytest.raises(ValueError, match=message):
        module.quickstart(**({"steps": STEPS, "jump_steps": JUMPS, "every": EVERY, "output": output} | arguments))
    assert not output.exists()


def main(monkeypatch, *arguments):
    """Runs the command line in this process; returns what it exits with."""
    monkeypatch.setattr(sys, "argv", ["experiments", *arguments])
    monkeypatch.setattr(absl.logging, "set_verbosity", lambda level: None)  # it would outlive the test
    with pytest.raises(SystemExit) as exited:
        command_line.main()
    return exited.value.code


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("quickstart", "--every", "0"), "error: every must be at least 1; got 0"),
        (("quickstart", "--seeds"), "error: seeds must name at least one seed"),
        (("quickstart", "--predictor", "oracle"), "error: unknown predictor 'oracle'; shipped are"),
        (("predictor", "--data-dir", "no/where"), "error: data_dir is not an existing folder: no/where"),
    ],
)
def test_bad_input_ends_with_a_message(monkeypatch, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    code = main(monkeypatch, *arguments)
    assert code.startswith(message)
    assert "\n" not in code
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments", [(), ("oracle",), ("quickstart", "--steps", "many"), ("predictor", "--no-such-option", "1")]
)
def test_bad_usage_ends_with_a_message(monkeypatch, capsys, arguments):
    assert main(monkeypatch, *arguments) == 2
    captured = capsys.readouterr()
    message = captured.out + captured.err
    assert "Traceback" not in message
    assert "--help" in message


def test_the_command_line_passes_its_arguments_on(monkeypatch):
    given = []

    @functools.wraps(module.quickstart)
    def quickstart(**arguments):
        given.append(arguments)
        raise ValueError("enough")

    monkeypatch.setitem(command_line.COMMANDS, "quickstart", quickstart)
    numbers = ["--seeds", "1", "2", "--steps", "9", "--jump-steps", "3", "4", "5"]
    names = ["--predictor", "mnist-n0-linear", "--output", "there"]
    assert main(monkeypatch, "quickstart", *numbers, *names) == "error: enough"
    assert given == [
        {
            "seeds": (1, 2),
            "steps": 9,
            "jump_steps": (3, 4, 5),
            "predictor": "mnist-n0-linear",
            "every": 250,
            "output": Path("there"),
            "data_dir": None,
        }
    ]


def python_m_experiments(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "experiments", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300
    )


def test_an_error_in_another_process():
    run = python_m_experiments("quickstart", "--every", "0")
    assert run.returncode == 1
    assert run.stdout == ""
    assert run.stderr == "error: every must be at least 1; got 0\n"


@pytest.mark.parametrize("command", command_line.COMMANDS)
def test_help_says_what_every_argument_is(command):
    run = python_m_experiments(command, "--help")
    assert run.returncode == 0
    assert run.stderr == ""
    assert f"usage: python -m experiments {command} " in run.stdout
    shown = {("run", "names"): "the experiments, or `all`", ("run", "imagenet"): "--data "}
    for name in inspect.signature(command_line.COMMANDS[command]).parameters:
        assert shown.get((command, name), f"--{name.replace('_', '-')} ") in run.stdout


def test_help_names_the_commands(monkeypatch, capsys):
    assert main(monkeypatch, "--help") == 0
    text = capsys.readouterr().out
    for command in ("quickstart", "predictor", "list", "run", "report"):
        assert command in command_line.COMMANDS
        assert command in text
