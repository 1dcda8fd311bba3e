"""The training loop: arms are paired, and runs that are killed go on with the same bits."""

import dataclasses
import multiprocessing
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import training
from experiments._config import Arm
from experiments.optimizers import FORECASTERS, LEAVES, Optimizer, ema_of_weights, mask, optimizer
from experiments.runs import TrainingRun
from experiments.training import StoppedError, Task, stops_of, train

from . import tiny

NETWORKS = ("dense", "conv")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What uninterrupted runs measure, by network."""
    folder = tmp_path_factory.mktemp("alone")
    for network in NETWORKS:
        tiny.work(network, folder)
    return {network: tiny.measured(folder, tiny.experiment(network)) for network in NETWORKS}


def task_of(network="dense", seed=0):
    return Task(tiny.networks.NETWORKS[network], tiny.digits(), 50, seed)


def trained(task, how, folder, stops=(24,), **settings):
    (*_, last) = train(task, how, stops, folder, **settings)
    return last.trained


# Going on.

MOMENTS = {
    "before the first checkpoint": "plain/seed-0/settings.json",
    "with a checkpoint": "plain/seed-0/checkpoints/12",
    "between two runs": "plain/seed-0/result.json",
    "after a jump": "introspection/seed-0/checkpoints/11",
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "moment"), [*(("dense", moment) for moment in MOMENTS), ("conv", "with a checkpoint")]
)
def test_a_killed_run_goes_on_with_the_same_bits(network, moment, tmp_path, alone):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.experiments.tiny"])
    process = context.Process(target=tiny.work, args=(network, tmp_path, 0.0))
    process.start()
    folder = tmp_path / tiny.experiment(network).name
    deadline = time.monotonic() + 120
    while not (folder / MOMENTS[moment]).exists():
        assert process.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.kill()
    process.join()
    tiny.work(network, tmp_path)
    assert tiny.measured(tmp_path, tiny.experiment(network)) == alone[network]
    assert not list(tmp_path.rglob("checkpoints"))


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
def test_weights_after_stops_at_the_deadline_are_the_same(network, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "FEW", 5)
    monkeypatch.setattr(training, "BLOCK", 5)
    how = optimizer(tiny.experiment(network), tiny.ARMS[1], tmp_path)
    whole = trained(task_of(network), how, tmp_path / "whole")
    stopped, made = 0, []
    for _ in range(6):
        try:
            again = trained(task_of(network), how, tmp_path / "parts", deadline=0.0, advance=made.append)
            break
        except StoppedError:
            stopped += 1
    assert stopped == 4
    tiny.assert_same(whole, again)
    assert made[-2:] == [20, 4]


def test_complete_runs_are_left_alone(tmp_path):
    run = tiny.runs_of(tiny.experiment())[0]
    run.complete(tiny.context(tmp_path))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")}
    run.complete(tiny.context(tmp_path))
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")} == before


# Pairing.


@pytest.mark.parametrize("network", NETWORKS)
def test_arms_are_one_up_to_the_first_jump(network, alone):
    plain, jumps = alone[network]["plain"], alone[network]["introspection"]
    before = [row["step"] for row in plain if row["step"] <= 10]
    assert before == [0, 4, 8, 10]
    for a, b in zip(plain, jumps, strict=True):
        assert a["step"] == b["step"]
        if a["step"] <= 10:
            for name, value in a.items():
                # The temperature is that of a search.
                assert b[name] == pytest.approx(value, rel=1e-5 if "loss" in name or "accuracy" in name else 1e-2)
        else:
            assert a["test_loss"] != pytest.approx(b["test_loss"], rel=1e-4)
    assert [row["jumps_taken"] for row in jumps][-1] == 2


def test_seeds_differ_in_start_batches_and_dropout():
    a, b = task_of(seed=0), task_of(seed=1)
    assert not np.array_equal(a.params["dense1"]["kernel"].get_value(), b.params["dense1"]["kernel"].get_value())
    assert not np.array_equal(a.batches.order(0), b.batches.order(0))
    step = Optimizer(optax.sgd(1.0))
    # With the weights and the batches of the other, the dropout is what is left.
    b.params, b.batches = a.params, a.batches
    first, second = (task.stepper(step)(task.start(step).trained, 0, 1).params for task in (a, b))
    assert not np.array_equal(first["dense2"]["kernel"].get_value(), second["dense2"]["kernel"].get_value())


def test_steps_in_blocks_are_those_one_by_one():
    how = Optimizer(optax.chain(optax.adam(0.01), ema_of_weights(0.9)))
    task = task_of()
    assert task.in_blocks
    assert not task_of("conv").in_blocks
    blocks = task.stepper(how)(task.start(how).trained, 0, 300)
    task.in_blocks = False
    one_by_one = task.stepper(how)(task.start(how).trained, 0, 300)
    for a, b in zip(jax.tree.leaves(blocks), jax.tree.leaves(one_by_one), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4)


# What is measured.


def test_a_batch_norm_network_learns_and_is_recalibrated_around_jumps(alone):
    plain = alone["conv"]["plain"]
    assert plain[-1]["train_loss"] < 0.7 * plain[0]["train_loss"]
    assert [row["step"] for row in plain if "recalibrated_test_loss" in row] == [10, 11, 20, 21, 24]
    assert all(row["recalibrated_train_loss"] < row["train_loss"] for row in plain if row["step"] == 10)
    assert not any("recalibrated_test_loss" in row for row in alone["dense"]["plain"])


def test_steps_of_evaluation():
    stops, around = stops_of(tiny.experiment(after_jump=(1, 3)), tiny.ARMS[1])
    assert stops == {0, 4, 8, 10, 11, 12, 13, 16, 20, 21, 23, 24}
    assert around == {10, 11, 13, 20, 21, 23, 24}
    # Jumps at even intervals are too many.
    nesterov = Arm("nesterov", "Nesterov", "nesterov-20", range(1, 24, 2), steps=24, seeds=1)
    assert stops_of(tiny.experiment(around=()), nesterov) == ({0, 4, 8, 12, 16, 20, 24}, {24})


def test_an_arm_that_diverges_is_recorded_as_not_finite(tmp_path):
    experiment = tiny.experiment(optimizer="sgd", learning_rate=1e30)
    advanced = []
    TrainingRun(experiment, tiny.ARMS[0], 0).complete(tiny.context(tmp_path, advance=advanced.append))
    rows = tiny.measured(tmp_path, dataclasses.replace(experiment, arms=tiny.ARMS[:1]))["plain"]
    assert [row["step"] for row in rows] == [0, 4]
    assert rows[-1]["test_loss"] is None
    assert sum(advanced) == 24


def logits_and_labels(n=400, scale=3.0):
    """Logits, and labels drawn from their own probabilities: the right temperature is near 1."""
    random = np.random.default_rng(0)
    logits = random.normal(0, scale, (n, 10))
    return logits.astype(np.float32), np.argmax(logits + random.gumbel(size=logits.shape), axis=1)


@pytest.mark.parametrize("factor", [0.1, 1.0, 20.0])
def test_the_temperature_is_the_best_of_a_grid(factor):
    logits, labels = logits_and_labels()
    logits *= factor
    grid = np.exp(np.linspace(np.log(0.02), np.log(60), 2000))
    best = grid[np.argmin([training.cross_entropy(logits / t, labels).mean() for t in grid])]
    assert training.temperature(logits, labels) == pytest.approx(best, rel=1e-2)


def test_metrics_by_hand():
    logits, labels = logits_and_labels()
    found = training.metrics(logits, labels, 7 * logits, labels)
    probabilities = np.exp(logits.astype(float)) / np.exp(logits.astype(float)).sum(1, keepdims=True)
    assert found["train_loss"] == pytest.approx(-np.log(probabilities[np.arange(400), labels]).mean())
    assert found["train_accuracy"] == np.mean(logits.argmax(1) == labels)
    assert found["temperature"] == pytest.approx(7, rel=0.2)
    assert found["calibrated_loss"] == pytest.approx(found["train_loss"], rel=0.05)
    assert np.isnan(training.metrics(logits, labels, logits * np.nan, labels)["calibrated_loss"])


# How it is trained.


def test_the_average_of_weights_is_what_is_evaluated(tmp_path):
    arm = Arm("ema", "EMA", steps=24, seeds=1, averaging="ema")
    how = optimizer(tiny.experiment(optimizer="sgd", learning_rate=1.0), arm, tmp_path)
    params = {"w": jnp.ones(2)}
    state = how.tx.init(params)
    expected = np.ones(2)
    for _ in range(3):
        updates, state = how.tx.update({"w": jnp.full(2, 0.5)}, state, params)
        params = optax.apply_updates(params, updates)
        expected = 0.999 * expected + 0.001 * np.asarray(params["w"])
    np.testing.assert_allclose(how.evaluated(params, state)["w"], expected, rtol=1e-6)


def test_which_leaves_are_masked():
    params = task_of("conv").params
    chosen = {leaves: [bool(x) for x in jax.tree.leaves(mask(leaves)(params))] for leaves in LEAVES}
    # In the order of conv1.kernel, dense1.bias, dense1.kernel, norm.bias, norm.scale.
    assert chosen == {
        "all": [True] * 5,
        "first-layer": [True, False, False, False, False],
        "later-layers": [False, True, True, True, True],
        "convolutions": [True, False, False, False, False],
        "dense": [False, True, True, True, True],
        "kernels": [True, False, True, False, False],
        "biases": [False, True, False, True, False],
    }


def test_only_the_chosen_leaves_jump(tmp_path):
    arm = dataclasses.replace(tiny.ARMS[1], forecaster="noise-0.1", jump_steps=(2,), leaves="biases")
    task, still = task_of(), {"optimizer": "sgd", "learning_rate": 0.0}
    how = optimizer(tiny.experiment(**still), arm, tmp_path)
    after = trained(task, how, tmp_path / "run", (4,)).params
    moved = jax.tree.map(lambda a, b: bool(np.any(np.asarray(a) != np.asarray(b))), after, task.params)
    assert jax.tree.leaves(moved) == [True, False, True, False]


def test_every_forecaster_can_be_made():
    assert {"mnist-n0", "mnist-n0-equivariant", "nesterov-50", "lookahead-5", "two-point-2"} <= FORECASTERS.keys()
    for make in FORECASTERS.values():
        assert make().points[0] == 1.0
