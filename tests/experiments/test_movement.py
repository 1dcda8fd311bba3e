"""How much weights change, and the unit that records it, at a small scale."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest

from experiments import movement as module
from experiments.movement import Movement, MovementUnit, Recorded, carrying_half, curves, movement_units, summary
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


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """Weight i of 101 ends i/8 from where it began, on a curve; with jumps, twice as far."""
    start, way = np.arange(101) / 8 - 4, np.arange(101) / 8
    folder = tmp_path_factory.mktemp("toy")
    steps = (0, 10, 20, 30, 40)
    plain = {step: start + way * (step / 40) ** 2 for step in steps}
    jumps = {step: start + 2 * way * (step / 40) ** 2 for step in steps}
    histories = write_history(folder / "plain", plain), write_history(folder / "jumps", jumps)
    return SimpleNamespace(way=way, plain=plain, jumps=jumps, histories=histories)


def test_the_summary_of_a_toy(toy):
    difference, deviation, *shares, unmoved = summary(toy.histories[0])
    assert (difference["histogram"], deviation["histogram"]) == ("difference", "deviation")
    assert (difference["low"], difference["high"]) == (0, 12.5)
    assert deviation["high"] == pytest.approx(12.5 * np.sqrt(np.mean(np.array([0, 0.25, 0.5, 0.75, 1]) ** 4)))
    for histogram in (difference, deviation):
        assert len(histogram["counts"]) == 100
        assert sum(histogram["counts"]) == 101
        assert max(histogram["counts"]) <= 2
    # Of all weights, the last 30 carry half; the same of both measures.
    assert sum(toy.way[71:]) >= sum(toy.way) / 2 > sum(toy.way[72:])
    assert shares == [{"share_of": name, "share": 30 / 101, "weights": 101} for name in ("difference", "deviation")]
    assert unmoved == {"unmoved": 1 / 101}


def test_the_curves_of_a_toy(toy):
    *found, last = curves(*toy.histories)
    assert last == {"steps": [0, 20, 40]}
    for measure, highest in (("difference", 12.5), ("deviation", 6.5737)):
        of_measure = [curve for curve in found if curve["bins_of"] == measure]
        values = np.array([curve[measure] for curve in of_measure])
        # From each of 100 bins one, though all weights lie on edges.
        assert np.minimum(values / highest * 100 + 0.01, 99).astype(int).tolist() == list(range(100))
    assert len(found) == 200
    for curve in found:
        i = curve["weight"]
        assert curve["difference"] == pytest.approx(toy.way[i], abs=1e-6)
        for name, weights in (("plain", toy.plain), ("jumps", toy.jumps)):
            np.testing.assert_allclose(curve[name], [weights[step][i] for step in (0, 20, 40)], rtol=1e-4, atol=1e-6)
        assert all(len(repr(value)) < 13 for value in curve["plain"])  # five digits are enough


# The unit.

RECORDING = Recorded("tiny-sgd", "Tiny", "tiny", "sgd", 0.1, 50, 20, 2, (10, 14))
EXPERIMENT = Movement("movement", "How?", 1, Paper("nothing"), "", (RECORDING,), 2)


@pytest.fixture(scope="module", autouse=True)
def small():
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setitem(NETWORKS, "tiny", tiny.SMALL_MLP)
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir, told = tmp_path_factory.mktemp("movement"), []
    unit, context = MovementUnit(EXPERIMENT, RECORDING, 0), tiny.context(workdir, advance=told.append)
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
    assert lines[4]["unmoved"] > 0  # the pixels that are always dark
    assert lines[-1] == {"steps": list(range(0, 21, 4))}
    moved = 0
    for line in lines[5:-1]:
        plain, jumps = np.array(line["plain"]), np.array(line["jumps"])
        assert line["difference"] == pytest.approx(plain[-1] - plain[0], abs=1e-5)
        np.testing.assert_allclose(jumps[:3], plain[:3], rtol=0, atol=1e-5)  # up to the first jump, at step 10
        moved += abs(jumps[3] - plain[3]) > 1e-3
    assert moved > 5


def test_it_is_not_run_again(finished, monkeypatch):
    monkeypatch.setattr(module, "record", None)
    before = results(finished).stat().st_mtime_ns
    MovementUnit(EXPERIMENT, RECORDING, 0).run(tiny.context(finished))
    assert results(finished).stat().st_mtime_ns == before


def test_other_settings_are_refused(finished):
    other = MovementUnit(EXPERIMENT, dataclasses.replace(RECORDING, jump_steps=(10, 15)), 0)
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
            MovementUnit(EXPERIMENT, RECORDING, 0).run(tiny.context(tmp_path))
        assert not results(tmp_path).exists()
    state.stop = None
    MovementUnit(EXPERIMENT, RECORDING, 0).run(tiny.context(tmp_path))
    assert results(tmp_path).read_bytes() == results(finished).read_bytes()


def test_another_seed_has_no_curves(tmp_path):
    MovementUnit(EXPERIMENT, RECORDING, 1).run(tiny.context(tmp_path))
    _, *lines, _ = map(json.loads, (tmp_path / "movement" / "tiny-sgd" / "seed-1.jsonl").read_text().splitlines())
    assert [next(iter(line)) for line in lines] == ["histogram", "histogram", "share_of", "share_of", "unmoved"]


def test_units():
    experiment = EXPERIMENTS["movement"]
    units = movement_units(experiment, experiment.recorded, (0, 2))
    assert [unit.name for unit in units] == [
        f"movement, {name}, seed {seed}" for seed in (0, 2) for name in ("convolutional-sgd", "dense-adam")
    ]
    assert movement_units(experiment, experiment.recorded[1:], (0,)) == units[1:2]
