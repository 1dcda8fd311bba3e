"""How much weights change, and the unit that records it, at a small scale."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest

from experiments import movement as module
from experiments.movement import Movement, MovementUnit, Recorded, carrying_half, movement_units, summary
from experiments.networks import NETWORKS
from experiments.records import Paper
from experiments.runner import Context, StoppedError
from experiments.table import EXPERIMENTS
from optax_introspect import WeightHistory

from . import tiny


@pytest.mark.parametrize(
    ("change", "share"),
    [
        ([1, 1, 1, 1], 0.5),
        ([4, 0, 0, 0], 0.25),
        ([-4, 1, 1, 1], 0.25),
        ([3, -1, 1, 1, 0], 0.2),
        ([3, -1, 1, 1.5, 0], 0.4),
        ([1, -2, 3, -4, 5], 0.4),
        ([7], 1),
    ],
)
def test_carrying_half(change, share):
    assert carrying_half(np.array(change, np.float32)) == pytest.approx(share)


def write_history(folder, weights):
    """`weights[step]` is what all weights are then."""
    with WeightHistory.record(folder, {"w": np.zeros(len(weights[0]), np.float32)}) as history:
        for step, values in weights.items():
            history.append(step, {"w": np.asarray(values, np.float32)})
    return WeightHistory.open(folder)


def test_the_summary_of_a_toy(tmp_path):
    """Weight i of 101 ends i/8 from where it began, on a curve; with jumps, twice as far."""
    start, way = np.arange(101) / 8 - 4, np.arange(101) / 8
    plain = {step: start + way * (step / 40) ** 2 for step in (0, 20, 40)}
    jumps = {step: start + 2 * way * (step / 40) ** 2 for step in (0, 20, 40)}
    lines = summary(write_history(tmp_path / "plain", plain), write_history(tmp_path / "jumps", jumps))

    difference, deviation, *shares, first = lines[:5]
    assert (difference["histogram"], deviation["histogram"]) == ("difference", "deviation")
    assert (difference["low"], difference["high"]) == (0, 12.5)
    assert deviation["high"] == pytest.approx(12.5 * np.sqrt((0.25**2 + 1) / 3))
    for histogram in (difference, deviation):
        assert len(histogram["counts"]) == 100
        assert sum(histogram["counts"]) == 101
        assert max(histogram["counts"]) <= 2
    # Of all weights, the last 30 carry half; the same of both measures.
    assert sum(way[71:]) >= sum(way) / 2 > sum(way[72:])
    assert shares == [{"share_of": name, "share": 30 / 101, "weights": 101} for name in ("difference", "deviation")]

    *curves, last = lines[4:]
    assert first == curves[0]
    assert last == {"steps": [0, 20, 40]}
    numbers = [curve["weight"] for curve in curves]
    assert numbers == sorted(set(numbers))  # none of them twice
    # From each of 25 bins two, though every fourth weight lies on an edge.
    assert np.histogram(way[numbers], 25, (0, 12.5))[0].tolist() == [2] * 25
    for curve in curves:
        i = curve["weight"]
        assert curve["difference"] == pytest.approx(way[i], abs=1e-6)
        np.testing.assert_allclose(curve["plain"], [plain[step][i] for step in plain], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(curve["jumps"], [jumps[step][i] for step in jumps], rtol=1e-5, atol=1e-6)
        assert all(len(repr(value)) < 14 for value in curve["plain"])  # six digits are enough


# The unit.

RECORDING = Recorded("tiny-sgd", "Tiny", "tiny", "sgd", 0.1, 50, 20, 2, (10, 14))
EXPERIMENT = Movement("movement", "How?", 1, Paper("nothing"), "", (RECORDING,))


@pytest.fixture(scope="module", autouse=True)
def small():
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setitem(NETWORKS, "tiny", tiny.SMALL_MLP)
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir, told = tmp_path_factory.mktemp("movement"), []
    unit, context = MovementUnit(EXPERIMENT, RECORDING), tiny.context(workdir, advance=told.append)
    assert unit.steps(context) == 40
    unit.run(context)
    assert (sum(told), unit.steps(context)) == (40, 0)
    return workdir


def results(workdir):
    return workdir / "movement" / "tiny-sgd" / "seed-0.jsonl"


def test_what_is_written(finished):
    header, *lines, end = map(json.loads, results(finished).read_text().splitlines())
    header = header["header"]
    assert (header["experiment"], header["seed"], header["images"]) == ("movement", 0, "the digits of scikit-learn")
    assert header["arm"] == {
        "name": "tiny-sgd",
        "network": "tiny",
        "optimizer": "sgd",
        "learning_rate": 0.1,
        "batch_size": 50,
    }
    assert (header["steps"], header["jump_steps"]) == ([20, 2], [10, 14])
    assert end == {"end": "complete"}
    assert lines[0]["histogram"] == "difference"
    assert sum(lines[0]["counts"]) == 784 * 8 + 8 + 8 * 10 + 10
    assert lines[-1] == {"steps": list(range(0, 21, 2))}
    moved = 0
    for line in lines[4:-1]:
        plain, jumps = np.array(line["plain"]), np.array(line["jumps"])
        assert line["difference"] == pytest.approx(plain[-1] - plain[0], abs=1e-5)
        np.testing.assert_allclose(jumps[:6], plain[:6], rtol=0, atol=1e-5)  # up to the first jump, at step 10
        moved += abs(jumps[6] - plain[6]) > 1e-3
    assert moved > 5


def test_it_is_not_run_again(finished, monkeypatch):
    monkeypatch.setattr(module, "record", None)
    before = results(finished).stat().st_mtime_ns
    MovementUnit(EXPERIMENT, RECORDING).run(tiny.context(finished))
    assert results(finished).stat().st_mtime_ns == before


def test_other_settings_are_refused(finished):
    other = MovementUnit(EXPERIMENT, dataclasses.replace(RECORDING, jump_steps=(10, 15)))
    for check in (other.check, other.run):
        with pytest.raises(ValueError, match=r"jump_steps was \[10, 14\] and is \[10, 15\]"):
            check(tiny.context(finished))


def test_the_time_is_up(finished, tmp_path, monkeypatch):
    """While it trains without jumps, with jumps, and never."""
    state = SimpleNamespace(asked=0, stop=0)

    def check_time(self):
        state.asked += 1
        if state.asked == state.stop:
            raise StoppedError

    monkeypatch.setattr(Context, "check_time", check_time)
    for stop in (4, 11 + 5):
        state.asked, state.stop = 0, stop
        with pytest.raises(StoppedError):
            MovementUnit(EXPERIMENT, RECORDING).run(tiny.context(tmp_path))
        assert not results(tmp_path).exists()
    state.stop = None
    MovementUnit(EXPERIMENT, RECORDING).run(tiny.context(tmp_path))
    assert results(tmp_path).read_bytes() == results(finished).read_bytes()


def test_units():
    experiment = EXPERIMENTS["movement"]
    units = movement_units(experiment, experiment.recorded)
    assert [unit.name for unit in units] == ["movement, convolutional-sgd", "movement, dense-adam"]
    assert movement_units(experiment, experiment.recorded[1:]) == units[1:]
