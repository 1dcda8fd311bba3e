"""The trainer of the introspection network."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from optax_introspect import (
    Examples,
    Fit,
    IntrospectionNetwork,
    custom_forecaster,
    fit,
    mean_absolute_error,
    polynomial,
)
from optax_introspect._plan import PAPER_POINTS
from optax_introspect.predictors import _fit


def make_examples(trajectory, count=3000, num_weights=1000, points=PAPER_POINTS, target=2.0, seed=0):
    """Makes examples of weights whose values at steps `[count, points + 1]` are `trajectory(random, steps)`."""
    random = np.random.default_rng(seed)
    weights = random.integers(num_weights, size=count)
    t = random.integers(100, 1000, size=count)
    values = trajectory(random, t[:, None] * np.array([*points, target])).astype(np.float32)
    return Examples(values[:, :-1], values[:, -1], weights, t, points, target)


def linear(random, steps):
    start, speed = random.normal(0, 1e-2, (2, len(steps), 1))
    return start + speed * steps / 1000


def saturating(random, steps):
    """Noisy curves that flatten, as those of real weights do."""
    start, distance = random.normal(0, 1e-2, (2, len(steps), 1))
    return start + distance * (1 - np.exp(-steps / 400)) + random.normal(0, 3e-4, steps.shape)


LINEAR = make_examples(linear)
QUICK = {"num_steps": 20, "progress": False}
FAST = {"num_steps": 3000, "learning_rate": 2e-3, "decay_every": 1000, "progress": False}


def weights_of(fitted):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(fitted.forecaster.module))]


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(weights_of(a), weights_of(b), strict=True))


@pytest.mark.parametrize(
    "options",
    [{}, {"activation": "identity"}, {"use_bias": False, "residual": True}, {"loss": "l2"}, {"loss": "percentage"}],
)
def test_a_linear_evolution_is_learned(options):
    fitted = fit(LINEAR, **FAST, **options)
    assert isinstance(fitted, Fit)
    no_change = mean_absolute_error(None, fitted.validation)
    assert mean_absolute_error(polynomial(1, 2.0), fitted.validation) < 1e-5 * no_change  # it is linear indeed
    assert mean_absolute_error(fitted.forecaster, fitted.validation) < 0.1 * no_change
    assert mean_absolute_error(fitted.forecaster, fitted.train) < 0.1 * no_change
    if options.get("residual"):  # also where no weight of the examples has been, and a hundred times as fast
        elsewhere = make_examples(lambda random, steps: 2 + 100 * linear(random, steps), seed=1)
        assert mean_absolute_error(fitted.forecaster, elsewhere) < 0.1 * mean_absolute_error(None, elsewhere)


def test_an_evolution_that_is_not_linear_is_learned_better_than_it_is_extrapolated():
    fitted = fit(make_examples(saturating), **FAST)
    error = mean_absolute_error(fitted.forecaster, fitted.validation)
    assert error < 0.7 * mean_absolute_error(None, fitted.validation)
    assert error < 0.7 * mean_absolute_error(polynomial(1, 2.0), fitted.validation)


def test_a_window_is_learned():
    def window(random, steps):
        t = steps[:, :1]
        return linear(random, np.concatenate([t, t - 40, t - 80, t + 100], axis=1) - 1000)

    fitted = fit(make_examples(window, points=(1.0, -40, -80), target=100), residual=True, use_bias=False, **FAST)
    assert fitted.forecaster.points == (1.0, -40, -80)
    assert mean_absolute_error(fitted.forecaster, fitted.validation) < 0.1 * mean_absolute_error(
        None, fitted.validation
    )


@pytest.mark.parametrize("loss", ["l1", "l2", "percentage"])
def test_the_updates_are_those_of_adam(loss):
    # All examples are in every batch: their order makes no difference.
    examples = make_examples(linear, count=60)._replace(weights=np.arange(60))
    options = {"loss": loss, "scale": 300.0, "learning_rate": 1e-2, "decay_every": 2, "decay_factor": 0.1, "seed": 5}
    fitted = fit(examples, num_steps=5, batch_size=48, validation_share=0.2, progress=False, **options)
    inputs, targets = 300 * fitted.train.inputs, 300 * fitted.train.targets

    def mean_loss(network):
        error = network(inputs)[:, 0] - targets
        percentage = 100 * jnp.mean(jnp.abs(error / targets))
        return {"l1": jnp.mean(jnp.abs(error)), "l2": jnp.mean(error**2), "percentage": percentage}[loss]

    network = IntrospectionNetwork(rngs=nnx.Rngs(5))
    rates = jnp.array([1e-2, 1e-2, 1e-3, 1e-3, 1e-4])
    optimizer = nnx.Optimizer(network, optax.adam(lambda count: rates[count]), wrt=nnx.Param)
    update = nnx.jit(lambda network, optimizer: optimizer.update(network, nnx.grad(mean_loss)(network)))
    for _ in range(5):
        update(network, optimizer)
    for got, expected in zip(weights_of(fitted), jax.tree.leaves(nnx.state(network)), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
        assert got.dtype == np.float32


def test_the_percentage_error_of_a_weight_at_zero_is_finite():
    loss = _fit.LOSSES["percentage"](jnp.array([1e-3, -2.0]), jnp.array([0.0, -4.0]))
    np.testing.assert_allclose(loss, [100 * 1e-3 / 1e-7, 50], rtol=1e-6)


def test_every_epoch_has_its_own_order():
    batches = _fit._batches(LINEAR, 1.0, 20, seed=0)
    epochs = [batches(start, start + 150)[1] for start in (0, 150)]
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch.ravel()), np.sort(LINEAR.targets))
    assert not np.array_equal(*epochs)
    assert not np.array_equal(epochs[0], _fit._batches(LINEAR, 1.0, 20, seed=1)(0, 150)[1])
    np.testing.assert_array_equal(np.concatenate(epochs)[140:160], batches(140, 160)[1])


def test_the_fit_follows_from_the_seed_and_no_weight_is_in_both_parts():
    first, again, other = (fit(LINEAR, seed=seed, validation_share=0.25, **QUICK) for seed in (1, 1, 2))
    assert same(first, again)
    assert not same(first, other)
    np.testing.assert_array_equal(first.validation.weights, again.validation.weights)
    parts = [[set(part.weights.tolist()) for part in (fitted.train, fitted.validation)] for fitted in (first, other)]
    for train, validation in parts:
        assert not train & validation
        assert train | validation == set(LINEAR.weights.tolist())
        assert len(validation) == round(0.25 * len(train | validation))
    assert parts[0] != parts[1]


def test_the_forecaster_is_that_of_the_arguments(tmp_path):
    examples = make_examples(linear, points=(1.0, 0.4))
    options = {"hidden": (6, 3), "activation": "identity", "use_bias": False, "residual": True}
    for _ in range(2):  # the second is restored
        forecaster = fit(examples, scale=50, workdir=tmp_path, **options, **QUICK).forecaster
        assert (forecaster.points, forecaster.scale) == ((1.0, 0.4), 50)
        assert {name: getattr(forecaster.module, name) for name in options} == options
        assert forecaster.module.num_points == 2


@pytest.fixture
def blocks(monkeypatch):
    """The numbers of steps of the blocks that were computed; before block `crash_at`, the fit is interrupted."""

    class Blocks(list):
        crash_at = None

    blocks = Blocks()
    block_function = _fit._block_function

    def wrapped(*arguments):
        run_block = block_function(*arguments)

        def counted(state, inputs, targets):
            if len(blocks) == blocks.crash_at:
                raise KeyboardInterrupt
            blocks.append(len(targets))
            return run_block(state, inputs, targets)

        return counted

    monkeypatch.setattr(_fit, "_block_function", wrapped)
    monkeypatch.setattr(_fit, "_BLOCK", 100)
    monkeypatch.setattr(_fit, "_CHECKPOINT_EVERY", 3)
    return blocks


def test_a_fit_goes_on_where_it_ended_or_at_its_last_checkpoint(tmp_path, blocks):
    options = {"num_steps": 1250, "progress": False}
    uncut = fit(LINEAR, **options)
    for crash_at in (5, 4):
        blocks.clear()
        blocks.crash_at = crash_at
        with pytest.raises(KeyboardInterrupt):
            fit(LINEAR, workdir=tmp_path, **options)
    blocks.crash_at = None
    for num_steps, computed in ((950, 350), (1250, 300), (1250, 0)):  # the first got to 500, the second to 700
        blocks.clear()
        resumed = fit(LINEAR, workdir=str(tmp_path), **(options | {"num_steps": num_steps}))
        assert sum(blocks) == computed
    assert same(uncut, resumed)
    assert [path.name for path in tmp_path.iterdir()] == ["1250"]
    with pytest.raises(ValueError, match=re.escape(f"num_steps must be at least the 1250 made in {tmp_path}; got 19")):
        fit(LINEAR, workdir=tmp_path, num_steps=19, progress=False)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    fit(LINEAR, workdir=folder, **QUICK)
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": (41,)}, "hidden was [40] and is [41]"),
        ({"activation": "identity"}, "activation was 'relu' and is 'identity'"),
        ({"use_bias": False}, "use_bias was True and is False"),
        ({"residual": True}, "residual was False and is True"),
        ({"scale": 999.0}, "scale was 1000.0 and is 999.0"),
        ({"learning_rate": 1e-3}, "learning_rate was 0.0005 and is 0.001"),
        ({"decay_every": 8001}, "decay_every was 8000 and is 8001"),
        ({"decay_factor": 0.1}, "decay_factor was 0.5 and is 0.1"),
        ({"validation_share": 0.2}, "validation_share was 0.1 and is 0.2"),
        ({"seed": 1}, "seed was 0 and is 1"),
        ({"loss": "l2", "batch_size": 5}, "loss was 'l1' and is 'l2', batch_size was 20 and is 5"),
    ],
)
def test_a_folder_of_other_settings_is_refused(finished, change, message):
    with pytest.raises(ValueError, match=re.escape(f"workdir must be that of the same fit; in {finished} {message}")):
        fit(LINEAR, workdir=finished, **(QUICK | change))


@pytest.mark.parametrize("field", ["inputs", "targets", "weights"])
def test_a_folder_of_other_examples_is_refused(finished, field):
    array = getattr(LINEAR, field).copy()
    array.flat[-1] += 1
    digest = json.loads((finished / "20" / "settings" / "metadata").read_text())["examples"]
    with pytest.raises(ValueError, match=f"same fit; in {finished} examples was '{digest}' and is '"):
        fit(LINEAR._replace(**{field: array}), workdir=finished, **QUICK)


@pytest.mark.parametrize("field", ["inputs", "targets"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_examples_must_be_finite(field, value):
    array = getattr(LINEAR, field).copy()
    array.flat[7] = value
    with pytest.raises(ValueError, match="examples must be finite; some of their weights are infinite or NaN"):
        fit(LINEAR._replace(**{field: array}), **QUICK)


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("loss", "l3", "loss must be one of ['l1', 'l2', 'percentage']; got 'l3'"),
        ("activation", "tanh", "activation must be one of ['identity', 'relu']; got 'tanh'"),
        ("hidden", (40, 0), "got 0"),
        ("use_bias", 0, "use_bias must be True or False; got 0"),
        ("residual", "yes", "residual must be True or False; got 'yes'"),
        ("validation_share", 1.0, "validation_share must be between 0 and 1 and leave both parts some of the "),
        ("validation_share", "a", "validation_share must be between 0 and 1"),
        ("seed", -1, "seed must be an integer of at least 0; got -1"),
        ("batch_size", 3000, "batch_size must be an integer from 1 to 2715; got 3000"),
        ("workdir", "gs://bucket/fit", "workdir must be a local folder; got 'gs://bucket/fit'"),
        *(("num_steps", value, f"num_steps must be an integer of at least 1; got {value}") for value in (0, 1.5, True)),
        *((name, -1, f"{name} must be an integer of at least 1; got -1") for name in ("batch_size", "decay_every")),
        *((name, 0, f"{name} must be positive") for name in ("scale", "learning_rate", "decay_factor")),
    ],
)
def test_bad_arguments(tmp_path, argument, value, message):
    workdir = tmp_path / "workdir"
    with pytest.raises(ValueError, match=re.escape(message)):
        fit(LINEAR, **(QUICK | {"workdir": workdir, argument: value}))
    assert not workdir.exists()


def test_a_fit_that_diverges_is_an_error(tmp_path):
    with pytest.raises(FloatingPointError, match=r"the fit diverged between steps 0 and 20: its loss is (inf|nan)"):
        fit(LINEAR, loss="l2", learning_rate=1e30, workdir=tmp_path, **QUICK)
    assert not list(tmp_path.iterdir())  # nothing of it is kept


def test_progress_is_a_line_each_tenth(capsys):
    fit(LINEAR, num_steps=20, progress=False)
    assert capsys.readouterr().out == ""
    fit(LINEAR, num_steps=1200)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["step 500 of 1200", "step 1000 of 1200", "step 1200 of 1200"]
    assert re.fullmatch(r"step 500 of 1200: l1 loss \d+(\.\d+)?", lines[0])


def test_mean_absolute_error():
    now, at_07, at_04, start = np.float64(LINEAR.inputs.T)

    def error(forecasts):
        return pytest.approx(np.mean(np.abs(forecasts - np.float64(LINEAR.targets))), rel=1e-4)

    for forecaster, forecasts in (
        (None, now),
        (custom_forecaster(lambda *weights: sum(weights) / 4, PAPER_POINTS), (now + at_07 + at_04 + start) / 4),
        (custom_forecaster(lambda now: -now, (1.0,)), -now),  # each gets the points that it needs
        (custom_forecaster(lambda now, early: now + 3 * early, (1.0, 0.4)), now + 3 * at_04),
        (polynomial(1, 1.3, points=(1.0, 0.4)), 1.5 * now - 0.5 * at_04),
    ):
        assert mean_absolute_error(forecaster, LINEAR) == error(forecasts)
    message = "examples must have the points of the forecaster, (1.0, 0.9, -5); [0.9, -5] are missing"
    with pytest.raises(ValueError, match=re.escape(message)):
        mean_absolute_error(custom_forecaster(lambda *weights: weights[0], (1.0, 0.9, -5)), LINEAR)
