"""A training whose weights are recorded goes on where it stopped, and gives the same history."""

import shutil
from types import SimpleNamespace

import numpy as np
import optax
import pytest

import optax_introspect
from experiments import recording
from experiments.recording import record
from experiments.training import Optimizer, Task, Trained
from optax_introspect import WeightHistory

from . import tiny

STEPS, EVERY = 16, 3
SETTINGS = {"images": "digits", "steps": STEPS}


@pytest.fixture(scope="module", autouse=True)
def a_checkpoint_every_four_steps():
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(recording, "CHECKPOINT_EVERY", 4)
        yield


@pytest.fixture(scope="module")
def training():
    """An optimizer with a state, its program, and the task, whose weights every step takes."""
    tx = optax.chain(
        optax.adam(0.01), optax_introspect.introspect((10,), optax_introspect.polynomial(1, 1.3, points=(1.0, 0.4)))
    )
    task = Task(tiny.SMALL_MLP, tiny.digits(), 50, 0)
    return SimpleNamespace(tx=tx, update=task.update_function(Optimizer(tx)))


class Interrupted(BaseException):
    """By the user, or so."""


@pytest.fixture
def made(training, monkeypatch):
    """The steps that were made; the one of number `fail_at` is not."""
    made = SimpleNamespace(steps=[], fail_at=None)

    def update(trained, step):
        if step == made.fail_at:
            raise Interrupted
        made.steps.append(step)
        return training.update(trained, step)

    monkeypatch.setattr(Task, "update_function", lambda self, tx: update)
    return made


def recorded(training, folder, steps=STEPS, every=EVERY, settings=SETTINGS):
    """The weights of every step that is recorded, in the order of the recording."""
    task = Task(tiny.SMALL_MLP, tiny.digits(), 50, 0)
    return [(step, tiny.leaves(weights)) for step, weights in record(task, training.tx, folder, settings, steps, every)]


def read(folder):
    history = WeightHistory.open(folder / "history")
    return {step: history.read(step) for step in history.steps.tolist()}


@pytest.fixture(scope="module")
def alone(training):
    """The weights of each step, from the loop that everybody would write."""
    task = Task(tiny.SMALL_MLP, tiny.digits(), 50, 0)
    trained = Trained(task.params, training.tx.init(task.params), task.statistics)
    weights = [tiny.leaves(trained.params)]
    for step in range(STEPS):
        trained = training.update(trained, step)
        weights.append(tiny.leaves(trained.params))
    return weights


def flat(weights):
    return np.concatenate([leaf.ravel() for leaf in weights])


def assert_all_is_recorded(folder, alone):
    history = read(folder)
    assert list(history) == [0, 3, 6, 9, 12, 15]
    for step, weights in history.items():
        np.testing.assert_array_equal(weights, flat(alone[step]))


def test_what_is_recorded_and_yielded(training, tmp_path, made, alone):
    found = recorded(training, tmp_path)
    assert [step for step, _ in found] == [0, 3, 6, 9, 12, 15, 16]
    for step, weights in found:
        tiny.assert_same(weights, alone[step])
    assert_all_is_recorded(tmp_path, alone)
    assert made.steps == list(range(STEPS))
    assert WeightHistory.open(tmp_path / "history").metadata == SETTINGS


@pytest.mark.parametrize("fail_at", [0, 3, 4, 7, 11, 15])
def test_an_interruption_at_any_step(training, tmp_path, made, alone, fail_at):
    made.fail_at = fail_at
    with pytest.raises(Interrupted):
        recorded(training, tmp_path)
    assert made.steps == list(range(fail_at))
    made.steps.clear()
    made.fail_at = None
    found = recorded(training, tmp_path)
    checkpoint = fail_at // 4 * 4
    assert made.steps == list(range(checkpoint, STEPS))
    assert [step for step, _ in found] == [checkpoint, *(s for s in (3, 6, 9, 12, 15, 16) if s > checkpoint)]
    for step, weights in found:
        tiny.assert_same(weights, alone[step])
    assert_all_is_recorded(tmp_path, alone)


def test_interrupted_again_and_again(training, tmp_path, made, alone):
    for made.fail_at in (1, 5, 6, 10, 14):
        with pytest.raises(Interrupted):
            recorded(training, tmp_path)
    made.fail_at = None
    recorded(training, tmp_path)
    assert_all_is_recorded(tmp_path, alone)


def test_who_listens_may_stop(training, tmp_path, made, alone):
    task = Task(tiny.SMALL_MLP, tiny.digits(), 50, 0)
    for step, _ in record(task, training.tx, tmp_path, SETTINGS, STEPS, EVERY):
        if step == 9:
            break
    recorded(training, tmp_path)
    assert_all_is_recorded(tmp_path, alone)


def test_a_complete_recording_makes_no_steps(training, tmp_path, made, alone):
    recorded(training, tmp_path)
    made.steps.clear()
    ((step, weights),) = recorded(training, tmp_path)
    assert step == STEPS
    tiny.assert_same(weights, alone[STEPS])
    assert made.steps == []
    assert_all_is_recorded(tmp_path, alone)


def test_other_settings_are_refused(training, tmp_path, made):
    recorded(training, tmp_path, steps=4)
    made.steps.clear()
    with pytest.raises(ValueError, match=r"metadata of .*'digits'.* not .*'other'"):
        recorded(training, tmp_path, settings=SETTINGS | {"images": "other"})
    assert made.steps == []


def test_a_checkpoint_without_its_history_is_refused(training, tmp_path, made):
    recorded(training, tmp_path, steps=8)
    shutil.rmtree(tmp_path / "history")
    made.steps.clear()
    with pytest.raises(ValueError, match=f"the history in {tmp_path} does not reach its checkpoint at step 8; start"):
        recorded(training, tmp_path)
    assert made.steps == []
