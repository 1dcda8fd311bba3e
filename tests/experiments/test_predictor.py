"""Predictors from recorded weights, and how weights move."""

import dataclasses

import numpy as np
import pytest

import optax_introspect as oi
from experiments import predictor, studies
from experiments.predictor import PREDICTORS
from experiments.runs import read_json
from experiments.studies import Fit, FitRun, Movement, MovementRun, Predictors, Recorded
from experiments.training import StoppedError
from optax_introspect import Examples, WeightHistory

from . import tiny

SIZES = {"steps": 40, "record_every": 1, "num_examples": 2000, "fit_steps": 100}


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.slow
def test_run_twice_it_gives_the_same_bits(tmp_path, monkeypatch):
    monkeypatch.setattr(predictor, "load", lambda name, data_dir: tiny.digits())
    monkeypatch.setattr(studies, "BATCH_SIZE", 10)
    monkeypatch.setattr(predictor, "PREDICTORS", dict(list(PREDICTORS.items())[3:]))
    for name in ("first", "second"):
        predictor.predictor(tmp_path / name, tmp_path / f"work-{name}", **SIZES)
    first, second = (files(tmp_path / name) for name in ("first", "second"))
    weights = [path for path in first if "weights" in path.parts and not path.name.startswith(("_", "."))]
    assert len(weights) >= 2
    for path in weights:
        assert first[path] == second[path]
    assert first == second  # the model card and the figure, too
    card = (tmp_path / "first" / "mnist-n0-equivariant" / "README.md").read_text()
    assert card.startswith("# mnist-n0-equivariant\n")
    assert "| no change |" in card
    assert "`python -m experiments predictor --seed 0 --steps 40 --record-every 1" in card
    assert (tmp_path / "first" / "mnist-n0-equivariant" / "forecasts.png").exists()
    loaded = oi.load(tmp_path / "first" / "mnist-n0-equivariant")
    still = [np.full(3, 10.0, np.float32)] * 4
    np.testing.assert_array_equal(loaded(*still, key=None), still[0])
    # With a history that is there, and predictors to be replaced.
    predictor.predictor(tmp_path / "first", tmp_path / "work-first", **SIZES)
    assert {path: files(tmp_path / "first")[path] for path in weights} == {path: first[path] for path in weights}


def test_bad_input(tmp_path):
    with pytest.raises(ValueError, match="fit_steps must be a positive integer; got 0"):
        predictor.predictor(tmp_path, tmp_path, fit_steps=0)
    (tmp_path / "mnist-n0").mkdir()
    (tmp_path / "mnist-n0" / "mine.txt").touch()
    with pytest.raises(ValueError, match="does not hold a whole predictor"):
        predictor.predictor(tmp_path, tmp_path / "work")
    assert (tmp_path / "mnist-n0" / "mine.txt").exists()


@pytest.mark.slow
def test_predictors_of_one_history(tmp_path):
    fits = tuple(
        Fit(name, loss=name, steps=40, record_every=2, examples=2000, fit_steps=100) for name in ("l1", "percentage")
    )
    study = Predictors(name="predictors", title="", question="", minutes=1, arms=fits)
    made = []
    for fit in fits:
        FitRun(study, fit, 0).complete(tiny.context(tmp_path, advance=made.append))
    assert sum(made) == 40  # the network is trained once
    for fit in fits:
        tables = read_json(tmp_path / "predictors" / fit.name / "seed-0" / "result.json")["tables"]
        (row,) = tables[""]
        assert row["staying_l1"] > 0
        assert 0 <= row["explained"] <= 1
        assert {"coefficient_0.7", "coefficient_0.4", "coefficient_0", "train_l1", "rule_l1"} <= row.keys()
        assert oi.load(tiny.context(tmp_path).predictors / fit.name).points == (1.0, 0.7, 0.4, 0.0)


def test_the_linear_rule_of_a_linear_forecaster():
    random = np.random.default_rng(0)
    inputs = random.normal(size=(500, 4)).astype(np.float32)
    points = (1.0, 0.7, 0.4, 0.0)
    examples = Examples(
        inputs, inputs @ np.array([2, 0, -1, 0], np.float32), np.arange(500), np.arange(500), points, 2.0
    )
    found = studies.linear_rule(oi.linear((1.5, 0.2, -0.7, 0.0), points), examples)
    assert found["coefficient_0.7"] == pytest.approx(0.2, abs=1e-5)
    assert found["coefficient_0.4"] == pytest.approx(-0.7, abs=1e-5)
    assert found["explained"] == pytest.approx(1)
    assert found["constant_x1000"] == pytest.approx(0, abs=1e-3)


@pytest.fixture(scope="module")
def moved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("movement")
    recorded = Recorded("dense", "dense", "sgd", 0.1, 50, 40, 8, (20, 30))
    study = Movement(name="movement", title="", question="", minutes=1, data="digits", arms=(recorded,), seeds=2)
    run = MovementRun(study, recorded, 0)
    run.complete(tiny.context(folder))
    return folder / "movement" / "dense" / "seed-0"


@pytest.mark.slow
def test_how_weights_move(moved):
    tables = read_json(moved / "result.json")["tables"]
    change = oi.weight_change(WeightHistory.open(moved / "plain" / "history"))
    of = {(row["measure"], row["quantity"]): row["value"] for row in tables[""] if row["bin"] is None}
    assert of["difference", "weights"] == 784 * 8 + 8 + 90
    assert of["", "unmoved"] == pytest.approx(np.mean(change.deviation == 0))
    for measure in ("difference", "deviation"):
        counts = [row["value"] for row in tables[""] if (row["measure"], row["quantity"]) == (measure, "count")]
        assert sum(counts) == of[measure, "weights"]
        values = np.sort(np.abs(getattr(change, measure).astype(float)))[::-1]
        count = round(of[measure, "share"] * len(values))
        assert values[: count - 1].sum() < values.sum() / 2 <= values[:count].sum()


def test_curves_without_and_with_jumps(moved):
    curves = read_json(moved / "result.json")["tables"]["curves"]
    before = [row for row in curves if row["step"] <= 16]
    after = [row for row in curves if row["step"] > 30]
    assert {row["step"] for row in curves} == {0, 16, 32}
    assert all(row["plain"] == pytest.approx(row["jumps"], abs=1e-4) for row in before)
    assert any(abs(row["plain"] - row["jumps"]) > 1e-3 for row in after)
    plain = WeightHistory.open(moved / "plain" / "history")
    row = after[0]
    assert row["plain"] == pytest.approx(plain.read(row["step"])[row["weight"]], rel=1e-4)


@pytest.mark.slow
def test_an_interrupted_recording_goes_on_with_the_same_bits(tmp_path, monkeypatch, moved):
    recorded = Recorded("dense", "dense", "sgd", 0.1, 50, 40, 8, (20, 30))
    study = Movement(name="movement", title="", question="", minutes=1, data="digits", arms=(recorded,), seeds=1)
    run = MovementRun(study, recorded, 0)
    stops = 0
    for _ in range(40):
        try:
            run.complete(dataclasses.replace(tiny.context(tmp_path), deadline=0.0))
            break
        except StoppedError:
            stops += 1
    assert stops > 4
    again = read_json(tmp_path / "movement" / "dense" / "seed-0" / "result.json")["tables"]
    assert again == read_json(moved / "result.json")["tables"]
