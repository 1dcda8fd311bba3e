"""Predictors of several kinds: what is said of them, and the units that fit them, at a small scale."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import optax_introspect
from experiments import fits as module
from experiments import recording
from experiments.fits import FITS, HISTORIES, Fit, Fits, FitUnit, displacements, errors, fit_units, linear_rule
from experiments.forecasters import fingerprint, forecaster
from experiments.runner import Context, StoppedError
from experiments.training import Task
from optax_introspect import Examples, WeightHistory
from optax_introspect.sampling import split_by_weight

from . import tiny

POINTS = (1.0, 0.7, 0.4, 0.0)


def make_examples(n=500, points=POINTS, seed=0):
    random = np.random.default_rng(seed)
    inputs = random.normal(0, 0.05, (n, 1)) + random.normal(0, 0.01, (n, len(points))).cumsum(axis=1)
    targets = inputs[:, 0] + random.normal(0, 0.01, n)
    return Examples(
        inputs.astype(np.float32), targets.astype(np.float32), np.arange(n), np.full(n, 100), points, jump_ratio=2.0
    )


@pytest.mark.parametrize(("degree", "jump_ratio"), [(1, 1.3), (2, 1.25), (3, 2.0), (0, 1.0)])
def test_the_linear_rule_of_a_polynomial_is_the_polynomial(degree, jump_ratio):
    examples, polynomial = make_examples(), optax_introspect.polynomial(degree, jump_ratio)
    found = linear_rule(polynomial, examples)
    assert found["points"] == [0.7, 0.4, 0.0]
    np.testing.assert_allclose(found["coefficients"], polynomial.coefficients[1:], rtol=1e-4, atol=1e-5)
    assert found["constant_x1000"] == pytest.approx(0, abs=1e-5)
    assert found["explained"] == pytest.approx(1, abs=1e-6)
    forecasts = examples.inputs.astype(np.float64) @ polynomial.coefficients
    assert found["rule_l1"] == pytest.approx(1000 * np.mean(np.abs(forecasts - examples.targets)), rel=1e-4)
    assert found["displacement_x1000"] == pytest.approx(
        1000 * np.mean(np.abs(forecasts - examples.inputs[:, 0])), rel=1e-4
    )


def test_the_linear_rule_of_what_is_not_linear():
    """0.003 to the right, half of the way from w_0.4t, and something that no linear rule can give."""
    examples = make_examples(20_000)
    odd = optax_introspect.forecaster(
        lambda now, *before: now + 0.003 + 0.5 * (now - before[1]) + 0.002 * jnp.sign(jnp.sin(1e4 * now)), POINTS
    )
    found = linear_rule(odd, examples)
    np.testing.assert_allclose(found["coefficients"], [0, -0.5, 0], atol=0.01)
    assert found["constant_x1000"] == pytest.approx(3, abs=0.1)
    way = np.var(0.5 * (examples.inputs[:, 0] - examples.inputs[:, 2]))
    assert found["explained"] == pytest.approx(way / (way + 0.002**2), abs=0.01)
    assert found["displacement_x1000"] > 3


def test_a_rule_knows_the_points_of_its_examples():
    points = (1.0, 0.4)
    two_point = optax_introspect.polynomial(1, 1.3, points=points)
    found = linear_rule(two_point, make_examples(points=points))
    assert found["points"] == [0.4]
    np.testing.assert_allclose(found["coefficients"], [-0.5], rtol=1e-4)
    # A forecaster of fewer points than the examples have counts 0 for the others.
    np.testing.assert_allclose(linear_rule(two_point, make_examples())["coefficients"], [0, -0.5, 0], atol=1e-4)


def test_errors():
    train, validation = make_examples(seed=1), make_examples(seed=2)
    quadratic = optax_introspect.polynomial(2, 1.3)

    def by_hand(examples, coefficients):
        return 1000 * np.mean(np.abs(examples.inputs.astype(np.float64) @ coefficients - examples.targets))

    found = errors(quadratic, train, validation)
    expected = {
        "train_l1": by_hand(train, quadratic.coefficients),
        "validation_l1": by_hand(validation, quadratic.coefficients),
        "staying_l1": by_hand(validation, [1, 0, 0, 0]),
        "two_point_l1": by_hand(validation, [1.5, 0, -0.5, 0]),
    }
    assert found == pytest.approx(expected, rel=1e-5)
    assert found["train_l1"] == 1000 * optax_introspect.l1(quadratic, train)


def test_displacements():
    """Two clusters of weights, some that are too few, and some that are farther than the bins reach."""
    came = np.concatenate([np.full(400, -2e-3), np.full(15, 0.0), np.full(575, 2e-3), np.full(10, 5e-3)])
    truth = np.concatenate([np.linspace(0, 4e-3, 400), np.zeros(15), np.linspace(-8e-3, 8e-3, 575), np.zeros(10)])
    inputs = np.column_stack([np.full(1000, 0.01), np.zeros(1000), 0.01 - came, np.zeros(1000)])
    order = np.random.default_rng(0).permutation(1000)
    examples = Examples(
        inputs[order].astype(np.float32),
        (0.01 + truth)[order].astype(np.float32),
        np.arange(1000),
        np.full(1000, 10),
        POINTS,
        2.0,
    )
    two_point = optax_introspect.polynomial(1, 1.3, points=(1.0, 0.4))
    left, right = displacements(two_point, examples, bins=5)
    assert (left["came"], left["weights"]) == (pytest.approx(-2, abs=1e-3), 400)
    assert (right["came"], right["weights"]) == (pytest.approx(2, abs=1e-3), 575)
    np.testing.assert_allclose([left["moved"], right["moved"]], [[-1] * 3, [1] * 3], atol=1e-3)
    np.testing.assert_allclose([left["truth"], right["truth"]], [[1, 2, 3], [-4, 0, 4]], atol=1e-3)
    bins = displacements(two_point, make_examples(5000))
    assert 15 < len(bins) <= 41
    assert min(line["weights"] for line in bins) >= 20
    assert 4000 < sum(line["weights"] for line in bins) <= 0.995 * 5000


# The units.

SMALL = {"STEPS": 60, "RECORD_EVERY": 2, "NUM_EXAMPLES": 2000, "FIT_STEPS": 200}
CHOSEN = (FITS[0], Fit("equivariant", equivariant=True))


@pytest.fixture(scope="module", autouse=True)
def small():
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name, value in SMALL.items():
            monkeypatch.setattr(module, name, value)
        monkeypatch.setattr(module, "ConvNet", tiny.SMALL_MLP)
        monkeypatch.setattr(recording, "CHECKPOINT_EVERY", 20)
        yield


@pytest.fixture
def made(monkeypatch):
    """The steps of `N_0` that were made."""
    steps, update_function = [], Task.update_function

    def noting(self, optimizer):
        update = update_function(self, optimizer)

        def noted(trained, step):
            steps.append(step)
            return update(trained, step)

        return noted

    monkeypatch.setattr(Task, "update_function", noting)
    return steps


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir, told = tmp_path_factory.mktemp("fits"), []
    unit = FitUnit(Fits(), "lecun", CHOSEN)
    context = tiny.context(workdir, advance=told.append)
    assert unit.steps(context) == 60
    unit.run(context)
    assert sum(told) == 60
    assert unit.steps(context) == 0
    return workdir


def lines_of(workdir, name):
    return [json.loads(line) for line in (workdir / "predictors" / name / "seed-0.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("fit", CHOSEN, ids=lambda fit: fit.name)
def test_what_is_written_of_a_predictor(finished, fit):
    header, found_errors, rule, *bins, end = lines_of(finished, fit.name)
    header = header["header"]
    assert header["arm"] == dataclasses.asdict(fit)
    assert (header["experiment"], header["steps"]) == ("predictors", list(SMALL.values()))
    assert (header["images"], header["seed"]) == ("the digits of scikit-learn", 0)

    history = WeightHistory.open(finished / ".working" / "predictors" / "lecun" / "seed-0" / "history")
    assert history.steps.tolist() == list(range(0, 61, 2))
    start = jax.tree.leaves(nnx.state(tiny.SMALL_MLP(rngs=nnx.Rngs(0)), nnx.Param))
    np.testing.assert_array_equal(history.read(0), np.concatenate([np.ravel(leaf) for leaf in start]))
    examples = optax_introspect.sample_examples(history, 2000, jump_ratio=fit.jump_ratio, seed=0)
    train, validation = split_by_weight(examples, 0.1, 0)
    predictor = forecaster(f"fitted-{fit.name}", tiny.context(finished).predictors)
    assert found_errors == pytest.approx(errors(predictor, train, validation), rel=1e-5)
    assert found_errors["staying_l1"] == pytest.approx(
        1000 * np.mean(np.abs(validation.inputs[:, 0].astype(float) - validation.targets)), rel=1e-5
    )
    assert rule["points"] == [0.7, 0.4, 0.0]
    assert rule["coefficients"] == pytest.approx(linear_rule(predictor, validation)["coefficients"], rel=1e-5)
    assert [line["weights"] for line in bins] == [line["weights"] for line in displacements(predictor, validation)]
    assert bins
    assert end == {"end": "complete"}
    network = predictor.network
    assert (network.relative, network.use_bias) == (fit.equivariant, not fit.equivariant)
    assert network.activation == fit.activation


def copied(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "copy")
    return tmp_path / "copy"


def contents(workdir):
    return {path.parent.name: path.read_bytes() for path in sorted(workdir.glob("predictors/*/seed-0.jsonl"))}


def test_what_is_complete_is_not_run_again(finished, made):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file() and path.name != "lock"}
    FitUnit(Fits(), "lecun", CHOSEN).run(tiny.context(finished))
    assert made == []
    after = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file() and path.name != "lock"}
    assert after == before


def test_results_are_all_that_others_need(finished, tmp_path, made):
    workdir = copied(finished, tmp_path)
    shutil.rmtree(workdir / ".working")
    assert FitUnit(Fits(), "lecun", CHOSEN).unfinished(tiny.context(workdir)) == []
    again, before = (forecaster("fitted-l1", tiny.context(folder).predictors) for folder in (workdir, finished))
    assert fingerprint(again) == fingerprint(before)


def test_predictors_are_made_anew_where_only_results_are(finished, tmp_path, made):
    workdir = copied(finished, tmp_path)
    for folder in (workdir / ".working", *workdir.glob("predictors/*/predictor")):
        shutil.rmtree(folder)
    context = tiny.context(workdir)
    unit = FitUnit(Fits(), "lecun", CHOSEN[:1])
    assert unit.unfinished(context) == list(CHOSEN[:1])
    unit.run(context)
    assert made == list(range(60))
    assert contents(workdir) == contents(finished)
    again, before = (forecaster("fitted-l1", tiny.context(folder).predictors) for folder in (workdir, finished))
    assert fingerprint(again) == fingerprint(before)
    assert [path.parent.name for path in workdir.glob("predictors/*/predictor")] == ["l1"]


def test_results_are_made_anew_where_only_predictors_are(finished, tmp_path, made):
    workdir = copied(finished, tmp_path)
    (workdir / "predictors" / "l1" / "seed-0.jsonl").unlink()
    made.clear()
    FitUnit(Fits(), "lecun", CHOSEN).run(tiny.context(workdir))
    assert made == []  # of the history nothing is missing
    assert contents(workdir) == contents(finished)


def test_the_time_is_up(tmp_path, made, monkeypatch):
    """In the middle of the training, after the first fit, and never."""
    fitted, asked = [], []
    monkeypatch.setattr(FitUnit, "_fit", lambda self, context, fit, history: fitted.append(fit.name))

    def check_time(self):
        asked.append(1)
        if len(asked) == at:
            raise StoppedError

    monkeypatch.setattr(Context, "check_time", check_time)
    for at, steps, fits in (
        (1 + 15, range(30), []),
        (1 + 20 + 1, range(20, 60), ["l1"]),  # from the last checkpoint
        (1000, [], ["l1", "equivariant"]),  # nothing is written by this `_fit`
    ):
        if at < 1000:
            with pytest.raises(StoppedError):
                FitUnit(Fits(), "lecun", CHOSEN).run(tiny.context(tmp_path))
        else:
            FitUnit(Fits(), "lecun", CHOSEN).run(tiny.context(tmp_path))
        assert (made, fitted) == (list(steps), fits)
        for noted in (made, fitted, asked):
            noted.clear()


@pytest.mark.parametrize("name", ["FIT_STEPS", "NUM_EXAMPLES"])
def test_other_settings_are_refused(finished, monkeypatch, made, name):
    monkeypatch.setattr(module, name, 7)
    unit = FitUnit(Fits(), "lecun", CHOSEN)
    for check in (unit.check, unit.run):
        with pytest.raises(ValueError, match=r"steps was \[60, 2, 2000, 200\] and is \[60, 2, .*7"):
            check(tiny.context(finished))
    assert made == []


def test_units():
    assert {unit.history: [fit.name for fit in unit.fits] for unit in fit_units(Fits(), FITS)} == {
        "lecun": [fit.name for fit in FITS if fit.history == "lecun"],
        "lecun-1": ["l1-seed-1", "equivariant-seed-1"],
        "wide": ["l1-wide", "equivariant-wide"],
    }
    assert [unit.name for unit in fit_units(Fits(), (FITS[0],))] == ["predictors, N_0 lecun"]
    assert fit_units(Fits(), ()) == []


def test_histories_differ_in_their_start():
    wide, seed = HISTORIES["wide"]
    kernel = np.asarray(wide(jax.random.key(0), (200, 200)))
    assert np.std(kernel) == pytest.approx(0.088, rel=0.02)
    assert (HISTORIES["lecun"], HISTORIES["lecun-1"], seed) == ((None, 0), (None, 1), 0)
    assert {fit.history for fit in FITS} == set(HISTORIES)
