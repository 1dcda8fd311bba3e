"""The report: from runs to numbers, from numbers to verdicts, and from both to pages."""

import inspect
import json
import math
import re
import shutil
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from experiments import __main__ as command_line
from experiments import figures, runs
from experiments.report import advice, charts, claims, page, report, verdicts, wording
from experiments.report.results import read
from experiments.report.sections import cifar10, drops, rows
from experiments.report.sections.batch_norm import Both, Effect, batch_norm, effect, to_use
from experiments.report.sections.budgets import equal_budget, missing, told
from experiments.report.sections.comparison import comparison
from experiments.report.sections.jumps import jumps
from experiments.report.sections.logits import _conclusion, logits
from experiments.report.sections.movement import movement
from experiments.report.sections.predictors import predictors
from experiments.report.sections.rates import all_tried, edge, tuned
from experiments.report.sections.schedules import Place, _best_level, _cells, schedules
from experiments.report.statistics import Curve, Paired
from experiments.table import EXPERIMENTS

from .synthetic import line, write, write_run

FEW = 4000  # steps between two evaluations
PNG = b"\x89PNG\r\n\x1a\n"


def arm_of(experiment, name):
    return next(arm for arm in EXPERIMENTS[experiment].arms if arm.name == name)


def put(folder, experiment, name, seed, accuracies, end="complete", recalibrated=None, **changes):
    """Writes a run with these accuracies by step, and those with recalibrated statistics; it branches where it must."""
    record, arm = EXPERIMENTS[experiment], arm_of(experiment, name)
    branch = {"arm": record.trunk_of(arm).name, "step": arm.jump_steps[0]} if arm.jump_steps else None
    lines = [line(step, accuracy) for step, accuracy in accuracies.items()]
    for made in lines:
        if made["step"] in (recalibrated or {}):
            again = line(made["step"], recalibrated[made["step"]])
            made |= {f"recalibrated_{measure}": again[measure] for measure in ("test_accuracy", "test_loss")}
    return write_run(folder, record, arm, seed, lines, {"branch": branch} | changes, end)


@pytest.fixture
def undrawn(monkeypatch):
    """Figures are drawn, but not rendered, which takes most of the time."""
    monkeypatch.setattr(figures, "png", lambda drawn, dpi: PNG)
    monkeypatch.setattr(figures, "svg", lambda drawn, name: f'<svg id="{name}-svg"/>')


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    folder = tmp_path_factory.mktemp("complete")
    write(folder, every=FEW)
    return folder


SURE, UNSURE = (0.0, 0.001, -0.001), (0.0, 1.0, -1.0)  # three seeds around a mean


def around(mean, spread=SURE):
    return Paired(tuple(mean + x for x in spread))


# What is computed from runs.


def test_paired_differences_have_students_interval():
    d = Paired((1.0, 2.0, 3.0))
    half = 4.302652729911275 * 1 / math.sqrt(3)  # t of 2 degrees of freedom, standard deviation 1
    assert (d.n, d.mean) == (3, 2.0)
    assert d.low == pytest.approx(2 - half)
    assert d.high == pytest.approx(2 + half)
    assert Paired((1.0, 2.0)).half_width == pytest.approx(12.706204736432095 * math.sqrt(0.5) / math.sqrt(2))


def test_one_seed_has_no_interval():
    assert Paired((1.0,)).half_width == math.inf
    assert wording.interval(Paired((1.0,))) == "+1.00"
    assert wording.interval(Paired(())) == wording.NONE


def test_a_curve_tells_its_best_and_when_it_gets_somewhere():
    curve = Curve(tuple(line(step, a) for step, a in {0: 0.99, 10: 0.5, 20: 0.8, 30: 0.8, 40: 0.7}.items()), True)
    assert curve.best()["step"] == 20  # the first, and not what the start scores
    assert curve.reaches(0.6)["step"] == 20
    assert curve.reaches(0.81) is None
    assert curve.final("test_accuracy") == 0.7
    assert curve.until(20).final("test_accuracy") == 0.8
    assert math.isnan(curve.at(11, "test_accuracy"))
    assert curve.unsteadiness(20) == pytest.approx(100 * (0 + 0.1) / 2)


def test_arms_are_compared_with_the_plain_run_of_their_seed(tmp_path):
    for seed, best in enumerate((0.90, 0.92)):
        put(tmp_path, "mnist_4", "plain", seed, {0: 0.1, 2000: 0.8, 5000: best, 7000: best - 0.01})
    put(tmp_path, "mnist_4", "introspection", 0, {2001: 0.7, 3000: 0.91, 7000: 0.93})
    put(tmp_path, "mnist_4", "introspection", 1, {2001: 0.7, 3000: 0.85, 7000: 0.90})
    c = read(tmp_path).compare("mnist_4", "introspection")
    assert c.gain.differences == pytest.approx((4.0, -1.0))
    assert c.shares() == pytest.approx([3000 / 5000, math.inf])
    assert [reached and reached["seconds"] for reached in c.reached] == [6.0, None]
    assert (c.n, c.foreseen, c.not_finite, c.until) == (2, 3, 0, 7000)


def test_averages_of_weights_are_compared_with_plain_training(tmp_path):
    put(tmp_path, "mnist_3-sgd", "plain", 0, {0: 0.1, 15_000: 0.93})
    put(tmp_path, "mnist_3-sgd", "ema", 0, {0: 0.1, 15_000: 0.95})
    assert read(tmp_path).compare("mnist_3-sgd", "ema").gain.differences == pytest.approx((2.0,))


def test_arms_of_fewer_steps_are_compared_where_they_end(tmp_path):
    put(tmp_path, "mnist_1-sgd", "plain", 0, {3000: 0.9, 8000: 0.95, 20_000: 0.99})
    put(tmp_path, "mnist_1-sgd", "two-point-1.3", 0, {3001: 0.8, 8000: 0.96})
    c = read(tmp_path).compare("mnist_1-sgd", "two-point-1.3")
    assert c.gain.differences == pytest.approx((1.0,))
    assert c.shares() == [1.0]


def test_plain_and_network_stand_beside_shorter_arms_as_they_are_at_their_end(tmp_path, undrawn):
    for seed in range(2):
        put(tmp_path, "mnist_1-sgd", "plain", seed, {3000: 0.9, 7000: 0.96, 8000: 0.95, 20_000: 0.99})
        put(tmp_path, "mnist_1-sgd", "introspection", seed, {3001: 0.8, 8000: 0.94, 20_000: 0.98})
        put(tmp_path, "mnist_1-sgd", "two-point-1.3", seed, {3001: 0.8, 7000: 0.97, 8000: 0.96})
    results = read(tmp_path)
    rows = comparison(results, "mnist_1-sgd").blocks[1].rows
    wanted = ["plain", "network", "plain, at step 8\u202f000", "network, at step 8\u202f000", "two points, 1.3"]
    assert [row[0] for row in rows][:5] == wanted
    # Steps, final and best accuracy: each up to the same step.
    assert [[*row[2:4], row[5]] for row in rows[2:5]] == [
        ["8\u202f000", "95.00", "96.00"], ["8\u202f000", "94.00", "94.00"], ["8\u202f000", "96.00", "97.00"]
    ]  # fmt: skip
    assert "in MNIST_1 with SGD at step 8\u202f000 (+2.00 [" in advice.advice(results)
    assert "(MNIST_1 with SGD, two points, 1.3: at step 8\u202f000)" in logits(results).blocks[1].caption


def test_the_best_jump_ratio_is_said_to_be_picked(complete):
    words = advice.advice(read(complete))
    assert re.search(r"The best jump ratios, picked as the best on the same seeds, .* are \S+ in MNIST_3 with", words)


@pytest.mark.parametrize(
    ("raw", "calibrated", "accuracy", "words"),
    [
        (around(-1), around(-1), around(1), "No: the loss falls, with and without"),
        (
            around(-1, UNSURE),
            around(-1),
            around(1),
            "No: the calibrated loss falls, while the raw loss isn't clearly changed.",
        ),
        (around(1), around(-1), around(1), "No: the calibrated loss falls while the raw loss rises"),
        (around(1, UNSURE), around(1, UNSURE), around(1), "Open: "),
        (Paired((10.0, 20.0)), Paired((12.0, 18.0)), around(1), "Open: "),  # both of two seeds, which is not clear
        (around(1), around(1), around(1), "It is overfitting: "),
        (around(1), around(1), around(-1), "It is harm: "),
    ],
)
def test_what_to_make_of_the_losses(raw, calibrated, accuracy, words):
    assert _conclusion(raw, calibrated, accuracy).startswith(words)


def test_the_largest_loss_is_after_a_jump_and_at_the_same_step(tmp_path):
    put(tmp_path, "mnist_1-sgd", "plain", 0, {2500: 0.5, 3000: 0.9, 3001: 0.9, 8000: 0.95, 20_000: 0.99})
    put(tmp_path, "mnist_1-sgd", "quadratic-1.3", 0, {3001: 0.7, 3500: 0.1, 8000: 0.94})
    assert read(tmp_path).compare("mnist_1-sgd", "quadratic-1.3").largest_loss == pytest.approx(20)


def test_a_branch_begins_with_the_lines_of_its_trunk(tmp_path):
    put(tmp_path, "mnist_4", "plain", 0, {0: 0.1, 2000: 0.8, 3000: 0.85, 7000: 0.9})
    put(tmp_path, "mnist_4", "introspection", 0, {2001: 0.7, 7000: 0.93})
    (curve,) = read(tmp_path).curves("mnist_4", "introspection").values()
    assert curve["step"].tolist() == [0, 2000, 2001, 7000]
    assert curve["test_accuracy"].tolist() == [0.1, 0.8, 0.7, 0.93]


def on_clock(path, ahead):
    """Gives a run CPU seconds too, on clocks that are both so much ahead."""
    lines = [json.loads(text) for text in path.read_text().splitlines()]
    for made in lines:
        if "step" in made:
            made["seconds"] += ahead
            made["cpu_seconds"] = made["seconds"]
    path.write_text("".join(json.dumps(made) + "\n" for made in lines))


def test_a_branch_goes_on_by_the_clock_of_its_trunk(tmp_path):
    # The trunk that is in the results took 4 seconds to the branch; the branch comes from a slower one, which took 40.
    trunk = put(tmp_path, "mnist_4", "plain", 0, {0: 0.1, 2000: 0.8, 3000: 0.85, 7000: 0.9})
    branch = put(tmp_path, "mnist_4", "introspection", 0, {2001: 0.7, 3001: 0.9, 7000: 0.93})
    on_clock(trunk, 0)
    on_clock(branch, 36)
    (curve,) = read(tmp_path).curves("mnist_4", "introspection").values()
    assert curve["seconds"].tolist() == pytest.approx([0, 4, 4.002, 6.002, 14])
    assert curve.clock == "CPU"


def test_the_clock_is_one_that_trunk_and_branch_have(tmp_path):
    put(tmp_path, "mnist_4", "plain", 0, {0: 0.1, 2000: 0.8, 3000: 0.85, 7000: 0.9})
    on_clock(put(tmp_path, "mnist_4", "introspection", 0, {2001: 0.7, 7000: 0.93}), 36)
    (curve,) = read(tmp_path).curves("mnist_4", "introspection").values()
    assert (curve["seconds"].tolist(), curve.clock) == (pytest.approx([0, 4, 4.002, 14]), "wall-clock")


def test_the_time_of_a_step_is_that_of_idle_ones_on_the_machine_of_plain(tmp_path, undrawn):
    for seed, (slower, machine) in enumerate([(1.5, "one"), (1.25, "one"), (9.0, "another")]):
        put(tmp_path, "mnist_4", "plain", seed, {0: 0.1, 2000: 0.8, 6000: 0.85, 7000: 0.9}, machine="one")
        branch = put(
            tmp_path, "mnist_4", "introspection", seed, {2001: 0.7, 5000: 0.9, 6000: 0.9, 7000: 0.9}, machine=machine
        )
        lines = [json.loads(text) for text in branch.read_text().splitlines()]
        for made in lines:
            if made.get("step", 0) > 6000:
                made["seconds"] += 2.0 * (slower - 1)  # of 1000 steps, 2 ms each
        branch.write_text("".join(json.dumps(made) + "\n" for made in lines))
    results = read(tmp_path)
    assert results.compare("mnist_4", "introspection").step_times == pytest.approx([1.5, 1.25])
    assert results.compare("mnist_4", "plain").step_times == pytest.approx([1, 1, 1])
    plain, network, *papers = (row[-1] for row in comparison(results, "mnist_4").blocks[1].rows)
    assert network == "1.38 [1.25, 1.50]"
    assert {plain, *papers} == {wording.NONE}


def test_what_is_far_below_plain_leaves_the_axes_with_a_mark():
    def curve(*accuracies):
        return Curve(tuple(line(step, accuracy) for step, accuracy in enumerate(accuracies, 1)), True)

    since = {"plain": 1, "introspection": 1, "quadratic-1.3": 1}
    arms = {"plain": [curve(0.9, 0.94, 0.95)], "introspection": [curve(0.85, 0.95, 0.96)]}
    with figures.drawing(1) as (_, (ax,)):
        charts.accuracy_curves(ax, arms, since)
        assert max(ax.get_ylim()) >= 15  # in percent of errors
        assert {shown.get_marker() for shown in ax.lines} >= {"o", "s"}  # two solid lines, told apart
    with figures.drawing(1) as (_, (ax,)):
        charts.accuracy_curves(ax, arms | {"quadratic-1.3": [curve(0.1, 0.94, 0.95)]}, since)
        assert max(ax.get_ylim()) == pytest.approx(20)
        assert (ax.lines[-1].get_marker(), ax.lines[-1].get_xdata().tolist()) == ("v", [1])


def test_a_branch_without_its_trunk_is_left_out_and_named(tmp_path, undrawn):
    put(tmp_path / "in", "mnist_4", "introspection", 1, {2001: 0.7, 7000: 0.93})
    results = read(tmp_path / "in")
    assert (results.runs, results.orphans) == ({}, (("mnist_4", "introspection", 1),))
    put(tmp_path / "in", "mnist_4", "plain", 0, {2000: 0.7, 7000: 0.93})
    report(tmp_path / "in", tmp_path)
    assert "mnist_4/introspection/1" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize(
    ("value", "budget"),
    [
        (0.9, 1000.0),
        (0.91, math.sqrt(1000 * 4000)),  # half of the way on the log scale
        (0.92, 4000.0),
        (0.89, None),  # before the curve begins
        (0.93, None),  # never reached
    ],
)
def test_an_equal_budget_is_read_off_the_plain_curve(value, budget):
    found = equal_budget({1000: 0.9, 4000: 0.92}, value, falls=False)
    assert found == (None if budget is None else pytest.approx(budget))


def test_losses_are_read_off_their_log():
    assert equal_budget({100: 1.0, 400: 0.01}, 0.1, falls=True) == pytest.approx(200)
    assert equal_budget({}, 0.1, falls=True) is None


def test_the_best_learning_rate_is_chosen_among_finite_arms_with_all_seeds(tmp_path):
    name = "mnist_3-rates-sgd"
    for seed in range(2):
        put(tmp_path, name, "plain-x1", seed, {6000: 0.8, 15_000: 0.90})
        put(tmp_path, name, "plain-x2", seed, {6000: 0.8, 15_000: 0.92})
        put(tmp_path, name, "plain-x4", seed, {6000: 0.99}, end="complete" if seed else "not finite")
    put(tmp_path, name, "plain-x8", 0, {6000: 0.8, 15_000: 0.99})
    best = tuned(read(tmp_path), name, "plain")
    assert (best.arm.name, best.accuracy) == ("plain-x2", pytest.approx(0.92))
    assert (best.tried, best.foreseen) == (3, 10)
    assert best.words == "x 2, constant"  # x 4 was tried as well, though a run of it became non-finite
    assert tuned(read(tmp_path), name, "introspection") is None
    assert not all_tried(read(tmp_path), "SGD")


@pytest.mark.parametrize(
    ("rate", "tried", "words"),
    [(2, {1, 2, 4}, ""), (4, {1, 2, 4}, ", the largest tried"), (1, {1, 2, 4}, ", the smallest tried"),
     (1, {1}, ", the only one tried")],
)  # fmt: skip
def test_a_best_rate_at_the_edge_of_those_tried_is_said_to_be_so(rate, tried, words):
    assert edge(rate, tried) == words


def put_budgets(folder, rates, budgets=(1875, 3750)):
    """Plain training, and jumps that halve the training loss and take 0.1 points of test accuracy."""
    for arm in EXPERIMENTS["he-budgets"].arms:
        if arm.rate in rates and arm.steps in budgets:
            for seed in range(3):
                level = 0.02 / arm.steps * 1875 / arm.rate**0.1 * (1 + 0.1 * seed)
                first = min(arm.jump_steps, default=0)
                end = line(arm.steps, 1 - level - 0.001 * bool(first), loss=2 * level * (0.5 if first else 1))
                branch = {"arm": f"plain-{arm.steps}-x{arm.rate:g}", "step": first} if first else None
                write_run(folder, EXPERIMENTS["he-budgets"], arm, seed, [end], {"branch": branch})


def test_equal_budgets_have_intervals_and_say_what_is_missing(tmp_path):
    put_budgets(tmp_path, (0.5, 1.0, 2.0))
    results = read(tmp_path)
    loss, accuracy = (told(results, "he-budgets", measure) for measure in ("train_loss", "test_accuracy"))
    assert loss.startswith("Not all runs are complete yet, at learning rates x 0.5, x 1, x 2, x 4 and x 8. So far: ")
    assert "clearly lower training loss at 2 of 2 budgets: 0.5 [0.5, 0.5] at 1\u202f875 and 0.5 [" in loss
    assert "To an equal value they take, times the steps of plain training, 1.00 at 1\u202f875." not in loss
    assert "cannot be read off" not in loss  # it may be, once all runs are there
    lower = f"{wording.MINUS}0.10"
    assert f"clearly lower test accuracy at 2 of 2 budgets: {lower} [{lower}, {lower}] at 1\u202f875 and" in accuracy
    assert "times the steps" not in accuracy
    edges = (
        "for plain at 1\u202f875 and 3\u202f750 and network at 1\u202f875 and 3\u202f750: a better one may lie beyond."
    )
    assert accuracy.endswith(edges)


def test_equal_budgets_are_advice_once_all_runs_are_there(tmp_path):
    record = EXPERIMENTS["he-budgets"]
    budgets = {arm.steps for arm in record.arms}
    rates = sorted({arm.rate for arm in record.arms})
    put_budgets(tmp_path, rates[:-1], budgets)
    assert missing(read(tmp_path), "he-budgets") == [rates[-1]]
    assert advice._budgets(read(tmp_path)) == []
    put_budgets(tmp_path, rates, budgets)
    assert advice._budgets(read(tmp_path)) == [
        "With a learning rate that falls to zero at the budget, jumps end with clearly lower training loss at 5 of 5 "
        "budgets and clearly lower test accuracy at 5 of 5 budgets on MNIST_3 with He's initial weights."
    ]
    words = told(read(tmp_path), "he-budgets", "train_loss")
    assert words.startswith("With the same budget they end with ")
    assert "With a budget of 30\u202f000 that cannot be read off, since no budget of the plain runs" in words


def put_layers(folder, seeds, right_after):
    """Jumps at 6000, 8000 and 10 000, after each of which the loss is so many times what it was, and then half."""
    name = "mnist_3-layers"
    for seed in range(seeds):
        steps = [jump + step for jump in (6000, 8000, 10_000) for step in (0, 1, 500)]
        put(folder, name, "plain", seed, dict.fromkeys((*steps, 15_000), 0.9))
        jumping = {}
        for jump, times in zip((6000, 8000, 10_000), right_after, strict=True):
            jumping |= {jump: 0.9, jump + 1: 1 - 0.1 * times[seed], jump + 500: 0.95}
        for leaves, gain in (("all", 0.02), ("kernels", 0.02 - 0.01 * seed), ("biases", 0.001)):
            put(folder, name, leaves, seed, {s: a for s, a in jumping.items() if s > 6000} | {15_000: 0.9 + gain})


def test_each_jump_is_told_by_itself(tmp_path):
    put_layers(tmp_path, 2, [(0.8, 0.9), (1.1, 1.3), (0.9, 1.1)])
    loss, _, layers = jumps(read(tmp_path)).claims
    assert loss.words.replace("\u202f", " ").startswith(
        "Right after it is lower at 6 000, higher at 8 000 and lower in some seeds and higher in others at 10 000; 500 "
        "steps later lower at 6 000, 8 000 and 10 000. Times what it was just before: 0.85 right after the jump at "
        "6 000 and 0.50 500 steps later (plain 1.00), 1.20 right after the jump at 8 000"
    )
    assert layers.words.startswith(
        "Kernels by the mean, but not clearly more than each other. Test accuracy at step 15"
    )
    around_jumps = jumps(read(tmp_path)).blocks[1]
    (row,) = [row for row in around_jumps.rows if row[0] == "8\u202f000, all weights"]
    assert row[1:4] == ["0.3", "0.36", "0.15"]
    assert row[7:] == ["90.00", "88.00", "95.00"]


def test_one_seed_does_not_tell_which_weights_gain_most(tmp_path):
    put_layers(tmp_path, 1, [(0.8,), (1.1,), (0.9,)])
    layers = jumps(read(tmp_path)).claims[-1]
    assert layers.words.startswith(
        "One seed doesn't tell which gain most. Test accuracy at step 15\u202f000 against plain: "
    )


def test_schedules_are_judged_when_all_are_there_and_by_what_all_levels_have(tmp_path):
    name = "mnist_3-schedules"
    put(tmp_path, name, "plain", 0, {1000: 0.5, 15_000: 0.9})
    put(tmp_path, name, "1000-by-500-x1", 0, {1001: 0.5, 15_000: 0.91})
    made = schedules(read(tmp_path))
    assert made.claims[0].words == "Not decided yet: 2 of 150 runs are complete."
    assert made.blocks[1].caption == "The best 1 of 1 schedules."
    write(tmp_path, [name], every=FEW)
    made = schedules(read(tmp_path))
    words = r"Best of 74: jumps at .*, with \S+ \[.*\] percentage points .* Worst are jumps at .*, with \S+ \[.*\]\.$"
    assert re.match(words, made.claims[0].words)
    assert made.blocks[1].caption == "The best 8 of 74 schedules, the paper's and the worst."


def test_levels_are_averaged_over_what_all_of_them_have():
    # A first jump at 2 is worse wherever both were run; where only it was run, it has much.
    cells = {Place(1, 5, 2): 1.0, Place(2, 5, 2): 0.9, Place(2, 5, 3): 9.0, Place(1, 0, 1): 0.3, Place(2, 0, 1): 0.2}
    assert _best_level(_cells(cells), 0) == 1
    assert _best_level(_cells(cells), 2) == 3


@pytest.mark.parametrize(("rule", "words"), [(4.0004, "doesn't change it"), (4.002, "better"), (3.998, "worse")])
def test_what_is_not_linear_is_told_of_each_predictor(tmp_path, rule, words):
    write(tmp_path, ["predictors"])
    for path in (tmp_path / "predictors").glob("*/seed-0.jsonl"):
        text = re.sub(r'"rule_l1": [\d.]+', f'"rule_l1": {rule}', path.read_text())
        path.write_text(re.sub(r'"validation_l1": [\d.]+', '"validation_l1": 4.0', text))
    told_of = predictors(read(tmp_path)).claims[-1].words
    assert f"its L1 is {rule:.3f} and the network's 4.000: what is not linear" in told_of
    assert told_of.count(words) == 2


# Verdicts, at the boundaries of their rules.


@pytest.mark.parametrize(
    ("d", "sign"),
    [
        (around(0.5), 1),
        (around(-0.5), -1),
        (around(0.5, UNSURE), 0),
        (Paired((0.1, 5.0)), 0),  # both of one sign happens half of the time by chance
        (Paired((5.0, 5.1)), 1),
        (Paired((-5.1, -5.0)), -1),
        (Paired((0.0, 5.0)), 0),
        (Paired((5.0,)), 0),
        (Paired(()), 0),
    ],
)
def test_a_sign_is_clear_or_not(d, sign):
    assert verdicts.sign(d) == sign


@pytest.mark.parametrize(
    ("d", "paper", "verdict"),
    [
        (around(0.5), 1.0, "reproduced"),
        (around(0.49), 1.0, "partly"),
        (around(0.5, UNSURE), 1.0, "open"),
        (around(-0.5, UNSURE), 1.0, "open"),  # half of the paper's gain is in the interval
        (around(0.0), 1.0, "contradicted"),
        (around(0.0, UNSURE), 100.0, "contradicted"),
        (Paired((0.5, 0.6)), 1.0, "open"),
        (Paired((-0.15, -0.13)), 1.0, "contradicted"),  # two seeds, but so close that their interval tells
        (Paired((-0.1, -2.0)), 1.0, "open"),
        (Paired((-9.0,)), 1.0, "open"),
    ],
)
def test_gain_and_no_gain_are_opposites(d, paper, verdict):
    assert verdicts.gain(d, paper) == verdict
    opposite = {"reproduced": "contradicted", "contradicted": "reproduced"}
    assert verdicts.no_gain(d, paper) == opposite.get(verdict, verdict)


@pytest.mark.parametrize(
    ("shares", "verdict"),
    [
        ([0.2, 0.65, 0.9], "reproduced"),
        ([0.66, 0.7, 0.2], "partly"),
        ([0.2, 0.2], "partly"),  # two runs are never more
        ([0.2, 0.2, 1.0], "open"),
        ([math.inf, 1.0, 1.5], "contradicted"),
        ([math.inf, math.inf], "open"),
    ],
)
def test_speed(shares, verdict):
    assert verdicts.speed(shares, 0.5) == verdict


def test_speed_is_below_one_whatever_the_paper_has():
    assert verdicts.speed([1.0] * 3, 0.95) == "contradicted"


@pytest.mark.parametrize(
    ("keywords", "verdict"),
    [
        (["reproduced"], "reproduced"),
        (["reproduced", "reproduced"], "reproduced"),
        (["reproduced", "contradicted"], "partly"),
        (["contradicted", "contradicted"], "contradicted"),
        (["reproduced", "open"], "open"),
    ],
)
def test_several_claims_in_one(keywords, verdict):
    assert verdicts.both(keywords) == verdict


@pytest.mark.parametrize(
    ("linear", "apart", "verdict"),
    [
        (around(0.5), around(-0.5), "reproduced"),
        (around(0.5), around(-0.5, UNSURE), "partly"),
        (around(0.5, UNSURE), around(-0.5), "partly"),
        (around(-0.1, UNSURE), around(0.1, UNSURE), "open"),
        (around(-0.1), around(-1.0), "contradicted"),
        (around(1.1), around(0.1), "contradicted"),
    ],
)
def test_in_between(linear, apart, verdict):
    assert verdicts.in_between(linear, apart) == verdict


@pytest.mark.parametrize(
    ("loss", "gains", "not_finite", "verdict"),
    [
        (10.0, [around(1)], 0, "reproduced"),
        (0.0, [around(1)], 1, "reproduced"),
        (9.9, [around(1)], 0, "partly"),
        (0.9, [around(1), around(-0.1)], 0, "partly"),
        (0.9, [around(1), around(0.1)], 0, "contradicted"),
        (1.0, [around(1)], 0, "partly"),
        (0.0, [Paired((1.0,))], 0, "open"),
        (10.0, [Paired((1.0,))], 0, "reproduced"),  # one run that is destroyed is enough
    ],
)
def test_harm(loss, gains, not_finite, verdict):
    assert verdicts.harm(loss, gains, not_finite) == verdict


def test_steadier_best_and_few_weights():
    cases = [(around(0.5), "reproduced"), (around(-0.5, UNSURE), "open"), (around(-0.5), "contradicted")]
    assert [verdicts.steadier(d) for d, _ in cases] == [verdict for _, verdict in cases]
    assert verdicts.best([around(1), around(2)]) == "reproduced"
    assert verdicts.best([around(1), around(2, UNSURE)]) == "partly"
    assert verdicts.best([around(-1, UNSURE), around(2, UNSURE)]) == "open"
    assert verdicts.best([around(1), around(-2)]) == "contradicted"
    assert [verdicts.few_weights(s) for s in ([0.1, 0.05], [0.235, 0.1], [0.235], [0.239, 0.5])] == [
        "reproduced", "partly", "partly", "contradicted"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("n", "foreseen", "enough"), [(0, 1, False), (1, 1, True), (1, 2, False), (2, 5, True), (0, 5, False)]
)
def test_how_many_seeds_a_verdict_needs(n, foreseen, enough):
    assert verdicts.enough(n, foreseen) is enough


def test_a_run_that_is_not_finite_is_in_no_average_but_told_and_spoils_the_gain(tmp_path, undrawn):
    for seed in range(3):
        put(tmp_path / "in", "mnist_4", "plain", seed, {2000: 0.8, 7000: 0.97})
        accuracies = {2001: 0.7, 2500: 0.98, 7000: 0.99} if seed else {2001: 0.1}
        put(tmp_path / "in", "mnist_4", "introspection", seed, accuracies, "complete" if seed else "not finite")
    results = read(tmp_path / "in")
    c = results.compare("mnist_4", "introspection")
    assert (c.n, c.not_finite) == (2, 1)
    assert c.gain.mean == pytest.approx(2)
    claim = claims.network(results, "mnist_4")
    assert claim.keyword == "partly"
    assert claim.words.endswith("1 run became non-finite.")
    report(tmp_path / "in", tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert "of which 1 became non-finite" in text
    assert re.search(r"\| network \| 2 of 3, 1 not finite \| 7.000 \| 99\.00 \|", text)


def test_a_gain_is_told_with_the_levels_here_and_in_the_paper(tmp_path):
    for seed in range(5):
        put(tmp_path, "mnist_3-sgd", "plain", seed, {6000: 0.8, 14_000: 0.93, 15_000: 0.92})
        put(tmp_path, "mnist_3-sgd", "introspection", seed, {6001: 0.7, 7000: 0.93, 15_000: 0.95})
    claim = claims.network(read(tmp_path), "mnist_3-sgd")
    assert claim.keyword == "reproduced"
    levels = "From 92.00 to 95.00 % here, from 95.71 to 96.89 % in the paper: here jumps end below the paper's plain."
    assert levels in claim.words


def test_what_the_seeds_do_not_tell_is_not_decided_with_the_difference_that_decides(tmp_path):
    for seed in range(2):
        put(tmp_path, "mnist_1-sgd", "plain", seed, {3000: 0.9, 8000: 0.95, 20_000: 0.98})
        put(tmp_path, "mnist_1-sgd", "introspection", seed, {3001: 0.8, 8000: 0.95, 20_000: 0.98 - 0.01 * seed})
        put(tmp_path, "mnist_1-sgd", "introspection-linear", seed, {3001: 0.8, 8000: 0.94 + 0.02 * seed})
    results = read(tmp_path)
    gain, linear = claims.network(results, "mnist_1-sgd"), claims.linear_network(results, "mnist_1-sgd")
    assert (gain.keyword, linear.keyword) == ("open", "open")
    assert gain.words.startswith("Not decided by 2 seeds. Final test accuracy ")
    apart = wording.interval(results.compare("mnist_1-sgd", "introspection-linear", "introspection").gain)
    assert linear.words.endswith(f"percentage points from plain and {apart} from the network.")


def test_what_the_paper_claims_of_mnist_1_is_asked_of_mnist_3_as_well(complete):
    made = page.make(read(complete), "a command")
    for title in ("MNIST_3 with SGD", "MNIST_3 with Adam"):
        asked = {claim.claim for section, claim in made.verdicts if section.title == title}
        assert "linear fit: no gain (claimed of MNIST_1)" in asked
        assert len(asked) == 5
    asked = {claim.claim for section, claim in made.verdicts if section.title == "MNIST_1 with SGD"}
    assert "linear fit: no gain" in asked


def test_weights_that_never_move_are_told_with_their_range(tmp_path):
    write(tmp_path, ["movement"])
    path = tmp_path / "movement/dense-adam/seed-1.jsonl"
    path.write_text(path.read_text().replace('"unmoved": 0.125', '"unmoved": 0.25'))
    made = movement(read(tmp_path), "movement", "How weights move")
    told = "Weights that never move: 12.5 % (N_0 with SGD) and 16.7 (12.5 to 25.0) % (MNIST_3 with Adam)."
    assert made.claims[0].words.endswith(told)
    assert [row[-2:] for row in made.blocks[-1].rows] == [["12.5", "3"], ["16.7 (12.5 to 25.0)", "3"]]


def test_an_arm_of_which_most_runs_are_not_finite_is_no_gain(tmp_path):
    for seed in range(2):
        put(tmp_path, "mnist_4", "plain", seed, {2000: 0.8, 7000: 0.97})
        put(tmp_path, "mnist_4", "introspection", seed, {2001: 0.1}, "not finite")
    claim = claims.network(read(tmp_path), "mnist_4")
    assert (claim.keyword, claim.words) == ("contradicted", "Most runs failed. 2 runs became non-finite.")


@pytest.mark.parametrize(
    ("gains", "conclusion"),
    [
        ((0.5, 0.5), "tune the learning rate first; then jumps still pay with SGD and Adam."),
        ((0.5, -0.5), "then jumps still pay with SGD, and there is no clear gain with Adam."),
        ((-0.5, -0.5), "cannot be tuned; where it can, tune it"),
        ((), "for now, only where the learning rate is given"),
    ],
)
def test_the_advice_follows_from_the_numbers(gains, conclusion):
    by_optimizer = dict(zip(("SGD", "Adam"), map(around, gains), strict=False))
    assert conclusion in advice._conclusion({"MNIST_1": around(1)}, by_optimizer)
    assert "no case for jumps" in advice._conclusion({"MNIST_1": around(-1)}, by_optimizer)
    others = {"MNIST_2": around(-1), "MNIST_3": around(0, UNSURE), "MNIST_4": around(0, UNSURE)}
    told = advice._conclusion({"MNIST_1": around(1)} | others, {"SGD": around(0)})
    warning = (
        "Even then compare with a run without them: no clear gain in MNIST_3 and MNIST_4, and a clear loss in MNIST_2."
    )
    assert warning in told


# CIFAR-10.


@pytest.mark.parametrize(
    ("d", "words"),
    [
        (around(0.5), "yes, clearly"),
        (Paired((0.1, 5.0)), "yes by the mean, but not clearly"),
        (around(0.5, UNSURE), "yes by the mean, but not clearly"),
        (around(-0.5, UNSURE), "no gain by the mean, though not clearly"),
        (around(-0.5), "no: they lose, clearly"),
        (Paired((0.5,)), "yes in one seed, which is not enough"),
        (Paired((0.0,)), "no in one seed, which is not enough"),
    ],
)
def test_whether_jumps_help_in_words(d, words):
    assert claims.helps(d) == words


@pytest.mark.parametrize(
    ("name", "plain", "jumps", "title", "words"),
    [
        ("cifar_1-tenth", {1200: 0.5, 4000: 0.8}, {1201: 0.4, 2400: 0.8, 4000: 0.81}, "(here: one tenth of the steps)",
         "In 4\u202f000 steps, one tenth of the paper's: 80.00 % at best without jumps, 81.00 % with those of set 3."),
        ("cifar_1", {12_000: 0.5, 40_000: 0.85}, {12_001: 0.4, 24_000: 0.85, 40_000: 0.86}, "the network's jumps",
         "In 40\u202f000 steps, all of the paper's: 85.00 % at best without jumps, 86.00 % with those of set 3."),
    ],
)  # fmt: skip
def test_the_papers_claim_on_cifar_10_and_how_long_training_is_here(tmp_path, name, plain, jumps, title, words):
    for seed in range(3):
        put(tmp_path, name, "plain", seed, plain)
    claim = cifar10.speed(read(tmp_path), name)
    assert (claim.keyword, claim.words) == ("open", "Not enough runs.")
    for seed in range(3):
        put(tmp_path, name, cifar10.MAIN, seed, jumps)
    claim = cifar10.speed(read(tmp_path), name)
    assert claim.claim.startswith("85.7 % after 28\u202f000 instead of 40\u202f000 steps with the network's jumps")
    assert claim.claim.endswith(title)
    assert claim.keyword == "reproduced"
    assert claim.words.startswith(words)
    assert "Final test accuracy +1.00 [+1.00, +1.00] percentage points against plain." in claim.words
    assert claim.words.endswith("reached in 0.60 of its steps (median); in the paper 0.70.")


def test_sets_of_jump_steps_are_compared_by_the_seeds_that_all_have(tmp_path):
    name = "cifar_1-tenth"
    for seed in range(3):
        put(tmp_path, name, "plain", seed, {1200: 0.5, 1400: 0.6, 4000: 0.80})
        put(tmp_path, name, "introspection-set-3", seed, {1201: 0.5, 4000: 0.82 if seed else 0.83})
    assert cifar10.jump_sets(read(tmp_path), name) is None
    put(tmp_path, name, "introspection-set-4", 0, {1401: 0.5, 4000: 0.81})
    claim = cifar10.jump_sets(read(tmp_path), name)
    assert claim.words.startswith("Set 3 in the one seed that all have, which doesn't tell gain from luck. ")
    assert "set 3 (jumps at 1\u202f200, 1\u202f500 and 1\u202f900) +3.00 and set 4 (jumps at " in claim.words
    assert claim.words.endswith("2\u202f000) +1.00. Of the 4 sets 2 have runs.")
    assert claim.seeds == "one seed"


@pytest.mark.parametrize(
    ("best", "conclusion"),
    [
        ((0.85, 0.86, 0.87), "Set 2 is clearly better than each other one. "),
        ((0.81, 0.87, 0.90), "Set 2 by the mean, but it is not clearly better than each other one. "),
    ],
)
def test_the_best_set_of_jump_steps_is_clearly_so_or_not(tmp_path, best, conclusion):
    for seed in range(3):
        put(tmp_path, "cifar_1", "plain", seed, {12_000: 0.5, 15_000: 0.6, 40_000: 0.8 + 0.01 * seed})
        for number in (1, 2, 3, 4):
            final = best[seed] if number == 2 else 0.81 + 0.01 * seed
            put(tmp_path, "cifar_1", f"introspection-set-{number}", seed, {20_001: 0.5, 40_000: final})
    claim = cifar10.jump_sets(read(tmp_path), "cifar_1")
    assert claim.words.startswith(conclusion)
    assert "sets" not in claim.words
    assert claim.seeds == "3 seeds"


def test_other_forecasters_are_compared_with_the_network(tmp_path):
    name = "cifar_1-tenth"
    for seed in range(2):
        put(tmp_path, name, "plain", seed, {1200: 0.5, 4000: 0.80})
        put(tmp_path, name, cifar10.MAIN, seed, {1201: 0.5, 4000: 0.82})
    assert cifar10.forecasts(read(tmp_path), name) is None
    for seed in range(2):
        put(tmp_path, name, cifar10.TWO_POINT, seed, {1201: 0.5, 4000: 0.83 - 0.02 * seed})
    assert cifar10.forecasts(read(tmp_path), name).words.startswith("No other forecaster is clearly better or worse. ")
    for seed in range(2):
        put(tmp_path, name, "introspection-equivariant-set-3", seed, {1201: 0.5, 4000: 0.85})
    put(tmp_path, name, "quadratic-1.25-set-3", 0, {1201: 0.1, 4000: 0.1})
    words = cifar10.forecasts(read(tmp_path), name).words
    assert words.startswith("It does: equivariant network, set 3 is clearly better. ")
    assert "quadratic fit, 1.25, set 3 \N{MINUS SIGN}72.00 (one seed)" in words


def test_who_gains_tells_runs_that_failed_and_those_that_never_get_there(tmp_path):
    name = "inception-cifar10"
    put(tmp_path, name, "plain", 0, {600: 0.5, 900: 0.6, 4500: 0.8})
    assert cifar10.who_gains(read(tmp_path), name) is None
    put(tmp_path, name, "introspection-early", 0, {601: 0.5, 4500: 0.7})
    put(tmp_path, name, "introspection-late", 0, {901: 0.1}, end="not finite")
    assert cifar10.who_gains(read(tmp_path), name).words == (
        "Network, early jumps: no in one seed, which is not enough (\N{MINUS SIGN}10.00 percentage points of final "
        "test accuracy); the plain run's best is not reached. Network, late jumps: no run got to its end; 1 run became "
        "non-finite."
    )


def test_jumps_before_a_drop_of_the_learning_rate_are_judged_before_and_after_it(tmp_path):
    name = "alexnet-cifar10"
    assert drops.steps(name) == (2000, 4000)
    for seed in range(2):
        put(tmp_path, name, "plain", seed, {2400: 0.5, 4000: 0.60, 4250: 0.7, 6000: 0.75})
    assert drops.answer(read(tmp_path), name) is None
    for seed in range(2):
        put(tmp_path, name, "introspection", seed, {2401: 0.4, 4000: 0.65 + 0.001 * seed, 6000: 0.76 - 0.02 * seed})
    words = drops.answer(read(tmp_path), name).words
    assert words.startswith("Network: at the end no gain by the mean, though not clearly (0.00 [")
    assert "just before the drop, at step 4\u202f000, yes, clearly (+5.05 [" in words


# Batch norm.


def both(running, recalibrated):
    return Both(tuple(running), tuple(recalibrated))


LEVEL = both([0.5] * 3, [0.5] * 3)


@pytest.mark.parametrize(
    ("accuracy", "loss", "better"),
    [
        (both([0.5] * 3, [0.6] * 3), LEVEL, "recalibrated"),
        (both([0.6] * 3, [0.5] * 3), LEVEL, "running"),
        (both([0.5] * 3, [0.5009] * 3), LEVEL, "either"),  # clear, but of no use
        (both([0.5] * 3, [0.4, 0.7, 0.5]), LEVEL, "either"),  # of use, but not clear
        (LEVEL, both([1.0] * 3, [0.9] * 3), "recalibrated"),
        (LEVEL, both([1.0] * 3, [1.1] * 3), "running"),
        (LEVEL, both([1.0] * 3, [0.995] * 3), "either"),
        (both([0.5] * 3, [0.6] * 3), both([1.0] * 3, [0.9] * 3), "recalibrated"),
        (both([0.5] * 3, [0.6] * 3), both([1.0] * 3, [1.1] * 3), "contradictory"),
        (both([0.5], [0.6]), both([1.0], [0.9]), "one seed"),
        (both([], []), both([], []), wording.NONE),
    ],
)
def test_which_statistics_are_better(accuracy, loss, better):
    assert Effect(accuracy, loss).better == better


BETTER = {
    "recalibrated": Effect(both([0.5] * 3, [0.6] * 3), LEVEL),
    "running": Effect(both([0.6] * 3, [0.5] * 3), LEVEL),
    "either": Effect(LEVEL, LEVEL),
    "one seed": Effect(both([0.5], [0.6]), both([1.0], [0.9])),
}


@pytest.mark.parametrize(
    ("better", "words"),
    [
        (["recalibrated"] * 4, "Recalibrate before every evaluation."),
        (["recalibrated", "either", "either", "either"],
         "Recalibrate for an evaluation up to 1 step after a jump. Otherwise the running statistics do."),
        (["recalibrated", "recalibrated", "either", "running"],
         "Recalibrate for an evaluation up to 20 steps after a jump. Otherwise the running statistics do; at the end "
         "they are better."),
        (["either", "recalibrated", "either", "recalibrated"],
         "Recalibrate for an evaluation 20 steps after and at the end. Otherwise the running statistics do."),
        (["either"] * 4, "Use the running statistics: recalibrated ones are nowhere clearly better."),
        (["running", "either", "either", "either"],
         "Use the running statistics: recalibrated ones are nowhere clearly better; 1 step after they are better."),
        (["recalibrated", "one seed", "one seed", "one seed"], "Open: one seed is not enough."),
    ],
)  # fmt: skip
def test_which_statistics_to_use(better, words):
    effects = {after: BETTER[word] for after, word in zip((1, 20, 100, -1), better, strict=True)}
    assert to_use(effects) == words


def test_how_soon_arms_are_on_the_way(tmp_path, undrawn):
    for seed in range(2):
        put(tmp_path, "mnist_4", "plain", seed, {1750: 0.5, 3500: 0.7, 4000: 0.8, 5250: 0.75, 7000: 0.9})
        late = {6650: 0.89 if seed else 0.9, 7000: 0.85}
        put(tmp_path, "mnist_4", "introspection", seed, {2001: 0.4, 2800: 0.7, 4000: 0.8} | late)
    *_, table, _ = comparison(read(tmp_path), "mnist_4").blocks  # the last says what is missing
    assert table.columns == ("arm", *(f"up to step {wording.spaced(step)}" for step in (1750, 3500, 5250, 7000)))
    # Before the first jump there is nothing to compare; up to 5250, plain is best at 4000; one seed never gets to 0.9.
    assert table.rows == [["network", wording.NONE, "0.80", "1.00", f"{wording.NONE} (1 of 2)"]]


def put_with_statistics(folder, seeds):
    """Plain training for which the statistics make no difference, and jumps for which they do."""
    after = [jump + step for jump in (1200, 1500, 1900) for step in (1, 20, 100, 300)]
    for seed in seeds:
        plain = dict.fromkeys((1200, *after, 4000), 0.5)
        put(folder, "cifar_1-tenth", "plain", seed, plain, recalibrated=plain)
        jumping = dict.fromkeys(after, 0.4) | {4000: 0.6}
        recalibrated = jumping | {1201: 0.45, 1501: 0.5, 1901: 0.55}
        put(folder, "cifar_1-tenth", cifar10.MAIN, seed, jumping, recalibrated=recalibrated)


def test_both_statistics_are_compared_as_means_over_the_jumps_of_each_seed(tmp_path):
    put_with_statistics(tmp_path, range(2))
    arm = arm_of("cifar_1-tenth", cifar10.MAIN)
    right_after = effect(read(tmp_path), "cifar_1-tenth", arm, 1)
    assert right_after.accuracy.difference.differences == pytest.approx([10.0, 10.0])
    assert right_after.loss.change.differences == pytest.approx([100 * (1.5 / 1.8 - 1)] * 2)
    later = effect(read(tmp_path), "cifar_1-tenth", arm, 20)
    assert later.accuracy.difference.differences == (0.0, 0.0)
    made = batch_norm(read(tmp_path))
    which, gain = made.claims
    assert which.words.startswith("Recalibrate for an evaluation up to 1 step after a jump. ")
    assert "1 step after +10.00 [+10.00, +10.00] points and" in which.words
    assert "Plain training at the same steps: 0.00, 0.00, 0.00, 0.00 and 0.00 points." in which.words
    assert gain.words.startswith("No: final test accuracy of network, set 3 against plain is +10.00 [")


@pytest.mark.parametrize(
    ("recalibrated", "words"),
    [
        ([0.6], "Open, with one seed: "),
        ([0.6, 0.6], "No: "),
        ([0.4, 0.4], "Yes: "),
        ([0.5, 0.5], "Yes: "),
        ([0.5, 0.59], "Not decided: "),
    ],
)
def test_whether_the_gain_depends_on_the_statistics(tmp_path, recalibrated, words):
    for seed, accuracy in enumerate(recalibrated):
        plain = {1200: 0.5, 4000: 0.5}
        put(tmp_path, "cifar_1-tenth", "plain", seed, plain, recalibrated=plain)
        at = {1201: 0.4, 1220: 0.4, 1300: 0.4, 1500: 0.4, 4000: 0.6}
        put(tmp_path, "cifar_1-tenth", cifar10.MAIN, seed, at, recalibrated=at | {4000: accuracy})
    assert batch_norm(read(tmp_path)).claims[1].words.startswith(words)


def test_what_was_not_measured_with_both_statistics_is_in_no_comparison(tmp_path):
    arm = arm_of("cifar_1-tenth", cifar10.MAIN)
    put(tmp_path, "cifar_1-tenth", "plain", 0, {1200: 0.5, 4000: 0.5})
    put(tmp_path, "cifar_1-tenth", cifar10.MAIN, 0, {1201: 0.4, 4000: 0.5})
    assert effect(read(tmp_path), "cifar_1-tenth", arm, -1).accuracy.difference.n == 0
    made = batch_norm(read(tmp_path))
    assert (made.claims, [type(block).__name__ for block in made.blocks]) == ([], ["Text", "Text"])
    path = put(tmp_path, "cifar_1-tenth", cifar10.MAIN, 0, {1201: 0.4, 4000: 0.5}, recalibrated={4000: 0.6})
    assert effect(read(tmp_path), "cifar_1-tenth", arm, -1).accuracy.difference.n == 1
    # What is not finite is null in a file.
    path.write_text(re.sub(r'"recalibrated_(\w+)": [\d.]+', r'"recalibrated_\1": null', path.read_text()))
    assert effect(read(tmp_path), "cifar_1-tenth", arm, -1).accuracy.difference.n == 0


def test_calibration_is_of_cifar_10_only_where_it_has_runs(tmp_path):
    def commands():
        return [command.split()[4] for command in logits(read(tmp_path)).commands]

    put(tmp_path, "mnist_4", "plain", 0, {2000: 0.8, 7000: 0.9})
    assert commands() == list(rows.MNIST)
    put(tmp_path, "cifar_1", "plain", 0, {12_000: 0.8, 40_000: 0.9})
    assert commands() == [*rows.MNIST, "cifar_1"]


# What is refused.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"versions": {"jax": "0.9"}}, r"mixed versions .*0\.9.*seed-1"),
        ({"images": "TFDS"}, "mixed images .*TFDS in .*seed-1"),
        ({"batch_size": 7}, r"seed-1\.jsonl .*batch_size is 7, and 128 in the record"),
        ({"branch": {"arm": "plain", "step": 7}}, r"seed-1\.jsonl .*branch is .*, and None in the record"),
        ({"network": "another"}, r"seed-1\.jsonl .*network is another, and MNIST_4 in the record"),
    ],
)
def test_results_that_do_not_belong_together_are_refused_and_nothing_is_overwritten(tmp_path, changes, message):
    put(tmp_path / "in", "mnist_4", "plain", 0, {2000: 0.8, 7000: 0.9})
    put(tmp_path / "in", "mnist_4", "plain", 1, {2000: 0.8, 7000: 0.9}, **changes)
    (tmp_path / "README.md").write_text("as it was")
    with pytest.raises(ValueError, match=message):
        report(tmp_path / "in", tmp_path)
    assert (tmp_path / "README.md").read_text() == "as it was"
    assert not (tmp_path / "figures").exists()
    assert not (tmp_path / "report.html").exists()


def test_an_accelerator_comes_with_versions_of_its_own(tmp_path):
    put(tmp_path, "mnist_4", "plain", 0, {2000: 0.8, 7000: 0.9})
    plugin = {"jax": "0.9", "optax-introspect": "0.1.0", "jax-cuda13-plugin": "0.9"}
    put(tmp_path, "mnist_1-sgd", "plain", 0, {20_000: 0.9}, versions=plugin, machine="H100, 1 of them")
    put(tmp_path, "mnist_2", "plain", 0, {10_000: 0.9})
    told = page.make(read(tmp_path), "a command").introduction[-1]
    gpu = "mnist_1-sgd on H100, 1 of them (jax 0.9, optax-introspect 0.1.0, jax-cuda13-plugin 0.9)"
    assert f"{gpu}; all others on a machine, 1 core a run (jax 0.10.2, optax-introspect 0.1.0);" in told
    # Others on accelerators are of the same versions as the first, and others on the CPU likewise.
    for versions in (plugin | {"jax": "0.8"}, {"jax": "0.9", "optax-introspect": "0.1.0"}):
        path = put(tmp_path, "mnist_1-adam", "plain", 0, {10_000: 0.9}, versions=versions)
        with pytest.raises(ValueError, match=r"mixed versions .*mnist_1-adam"):
            read(tmp_path)
        path.unlink()


def test_a_forecaster_with_other_weights_is_refused(tmp_path):
    for seed in range(2):
        put(tmp_path, "mnist_4", "plain", seed, {2000: 0.8, 7000: 0.9})
        put(tmp_path, "mnist_4", "introspection", seed, {2001: 0.8, 7000: 0.9}, forecaster=f"digest {seed}")
    with pytest.raises(ValueError, match=r"mixed weights of the forecaster introspection .*digest 0.*digest 1"):
        read(tmp_path)


def test_runs_of_nothing_known_and_cut_files_are_refused(tmp_path):
    path = put(tmp_path, "mnist_4", "plain", 0, {2000: 0.8})
    for other in ("mnist_4/plain/seed-9.jsonl", "mnist_4/unheard/seed-0.jsonl", "mnist_9/plain/seed-0.jsonl"):
        (tmp_path / other).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, tmp_path / other)
        with pytest.raises(ValueError, match=f"{other} is a run of no experiment"):
            read(tmp_path)
        (tmp_path / other).unlink()
    path.write_text(path.read_text()[:-20])
    with pytest.raises(ValueError, match="not the whole of a run"):
        read(tmp_path)


def test_runs_on_imagenet_are_passed_over(tmp_path):
    put(tmp_path, "mnist_4", "plain", 0, {2000: 0.8})
    path = runs.path_of(tmp_path, "alexnet_1", "plain", 0)
    path.parent.mkdir(parents=True)
    path.write_text('{"header":{"experiment":"alexnet_1","versions":{"jax":"0.9"}}}\n{"end":"complete"}\n')
    assert list(read(tmp_path).runs) == [("mnist_4", "plain", 0)]


def test_what_a_run_needs_to_go_on_is_no_result(tmp_path):
    (tmp_path / ".working/mnist_4/plain").mkdir(parents=True)
    (tmp_path / ".working/mnist_4/plain/seed-0.jsonl").write_text("half a li")
    assert read(tmp_path).runs == {}
    with pytest.raises(FileNotFoundError, match="it is not a folder"):
        read(tmp_path / "nowhere")


# The pages.


def check_pages(output):
    """The HTML is well-formed and needs nothing from elsewhere, and all links lead somewhere; returns the Markdown."""
    html, text = (output / "report.html").read_text(), (output / "README.md").read_text()
    assert html.startswith("<!DOCTYPE html>")
    tree = ElementTree.fromstring(html)
    ids = [element.get("id") for element in tree.iter() if element.get("id")]
    assert len(set(ids)) == len(ids)
    for element in tree.iter():
        assert element.tag.rpartition("}")[2] not in ("script", "link", "img", "image", "iframe", "object", "base")
        for name, value in element.attrib.items():
            if name.rpartition("}")[2] in ("href", "src"):
                assert value.removeprefix("#") in ids, value
            assert all(place.startswith("#") for place in re.findall(r"url\(([^)]*)\)", value))
    for figure in tree.iter("{*}figure"):
        assert figure.find("{*}div").attrib.keys() == {"role", "aria-label"}
    assert not re.search(r"@import|url\((?!#)", html)
    headings = {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in re.findall(r"^## (.*)$", text, re.M)}
    assert set(re.findall(r"\]\(#([^)]*)\)", text)) <= headings
    for link in re.findall(r"\]\((?!#)([^)]*)\)", text):
        assert (output / link).read_bytes().startswith(PNG)
    assert not re.search(r"\b(nan|inf|None)\b", re.sub(r"<[^>]*>", "", text + html))
    return text


def test_a_complete_report(complete, tmp_path, undrawn):
    report(complete, tmp_path)
    text = check_pages(tmp_path)
    assert "No run of" not in text
    assert "Not enough runs" not in text
    made = page.make(read(complete), "a command")
    assert all(section.blocks and section.claims for section in made.sections)
    # Text and tables are the same on both pages.
    html = "".join(ElementTree.fromstring((tmp_path / "report.html").read_text()).itertext())
    for section in made.sections:
        for claim in section.claims:
            assert claim.words in text
            assert claim.words in html


def test_each_section_of_a_partial_report_says_what_is_missing(complete, tmp_path, undrawn):
    # Any experiment alone, with one seed of it.
    for name in EXPERIMENTS:
        folder = tmp_path / name
        write(folder / "in", [name], seeds=[0], every=FEW)
        report(folder / "in", folder)
        text = check_pages(folder)
        done = len(list((folder / "in").rglob("*.jsonl")))
        assert f"{name} {done} of " in text
        others = [other for other in EXPERIMENTS if other != name]
        for other in others:
            assert f"No run of `{other}` is complete yet: `python -m experiments run {other} " in text
        assert f"No run of `{name}` is" not in text


def test_a_report_of_nothing(tmp_path):
    (tmp_path / "in").mkdir()
    report(tmp_path / "in", tmp_path)
    text = check_pages(tmp_path)
    assert text.count("No run of `") >= len(EXPERIMENTS)
    assert "Not known yet: no two seeds" in text
    assert list((tmp_path / "figures").iterdir()) == []


def test_the_same_results_give_the_same_bytes_and_a_page_that_stands_alone(tmp_path):
    names = ["mnist_4", "mnist_3-schedules"]
    write(tmp_path / "in", names, every=FEW)
    for output in ("once", "again"):
        report(tmp_path / "in", tmp_path / output)
    check_pages(tmp_path / "once")
    files = [path.relative_to(tmp_path / "once") for path in (tmp_path / "once").rglob("*") if path.is_file()]
    assert len(files) == 2 + 3
    command = re.compile(rb"--output \S*?/(once|again)")
    for path in files:
        once, again = ((tmp_path / output / path).read_bytes() for output in ("once", "again"))
        assert command.sub(b"", once) == command.sub(b"", again)


def test_machines_may_differ_and_are_all_named(tmp_path, undrawn):
    put(tmp_path / "in", "mnist_4", "plain", 0, {2000: 0.8, 7000: 0.9})
    put(tmp_path / "in", "mnist_4", "plain", 1, {2000: 0.8, 7000: 0.9}, machine="NVIDIA H100, 1 of them")
    report(tmp_path / "in", tmp_path)
    assert "NVIDIA H100, 1 of them and a machine, 1 core a run" in (tmp_path / "README.md").read_text()


def test_marks_become_elements_and_the_rest_is_escaped():
    assert page._rich("`a<b` **c** *d* & e") == ("<code>a&lt;b</code> <strong>c</strong> <em>d</em> &amp; e")


def test_names_of_arms():
    assert wording.name_of("introspection-set-3") == "network, set 3"
    assert wording.name_of("two-point-1.3-set-3") == "two points, 1.3, set 3"
    assert wording.name_of("introspection-late") == "network, late jumps"
    assert wording.name_of("introspection-k2.2") == "network, k = 2.2"


def test_numbers_in_words():
    assert wording.signed(-0.001) == "0.00"
    assert wording.signed(-1.5, 1) == f"{wording.MINUS}1.5"
    assert wording.number(math.nan) == wording.NONE
    assert wording.listed(["a", "b", "c"]) == "a, b and c"
    assert wording.seeds(1, 1) == "one seed"
    assert wording.seeds(1, 3) == "1 of 3 seeds"
    assert wording.complete(2, 3, 1) == "2 of 3, 1 not finite"


def test_results_are_read_where_they_are_kept():
    assert inspect.signature(report).parameters["results"].default == Path("results/runs")


def test_the_command_line_refuses_with_a_message(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["experiments", "report", "--results", str(tmp_path / "nowhere")])
    with pytest.raises(SystemExit, match="error: there are no results in "):
        command_line.main()
