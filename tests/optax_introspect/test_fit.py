"""The trainer of the introspection network."""

import json
import re
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import optax_introspect
from optax_introspect.fit import Fit, fit, l1
from optax_introspect.forecast import forecaster, polynomial
from optax_introspect.plan import PAPER_POINTS
from optax_introspect.sampling import Examples

fit_module = sys.modules["optax_introspect.fit"]  # the package's attribute of that name is the function


def make_examples(trajectory, count=3000, num_weights=1000, points=PAPER_POINTS, jump_ratio=2.0, seed=0):
    """Examples of weights that evolve as `trajectory(random, steps)` says, which maps `[count, points + 1]` steps."""
    random = np.random.default_rng(seed)
    weights = random.integers(num_weights, size=count)
    t = random.integers(100, 1000, size=count)
    values = trajectory(random, t[:, None] * np.array([*points, jump_ratio])).astype(np.float32)
    return Examples(values[:, :-1], values[:, -1], weights, t, points, jump_ratio)


def linear(random, steps):
    start, speed = random.normal(0, 1e-2, (2, len(steps), 1))
    return start + speed * steps / 1000


def saturating(random, steps):
    """Noisy curves that flatten, as those of real weights do."""
    start, distance = random.normal(0, 1e-2, (2, len(steps), 1))
    return start + distance * (1 - np.exp(-steps / 400)) + random.normal(0, 3e-4, steps.shape)


LINEAR = make_examples(linear)
QUICK = {"num_steps": 20, "progress": False}


def weights_of(fitted):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(fitted.forecaster.network))]


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(weights_of(a), weights_of(b), strict=True))


def numpy_l1(forecasts, examples):
    return np.mean(np.abs(np.float64(forecasts) - np.float64(examples.targets)))


@pytest.mark.parametrize("activation", ["relu", "identity"])
def test_a_linear_evolution_is_learned(activation):
    fitted = fit(LINEAR, activation=activation, num_steps=6000, learning_rate=2e-3, decay_every=2000, progress=False)
    assert isinstance(fitted, Fit)
    staying = l1(None, fitted.validation)
    assert l1(polynomial(1, 2.0), fitted.validation) < 1e-5 * staying  # it is linear indeed
    assert l1(fitted.forecaster, fitted.validation) < 0.05 * staying
    assert l1(fitted.forecaster, fitted.train) < 0.05 * staying


def test_an_evolution_that_is_not_linear_is_learned_better_than_it_is_extrapolated():
    fitted = fit(make_examples(saturating), num_steps=6000, learning_rate=2e-3, decay_every=2000, progress=False)
    error = l1(fitted.forecaster, fitted.validation)
    assert error < 0.6 * l1(None, fitted.validation)
    assert error < 0.6 * l1(polynomial(1, 2.0), fitted.validation)


@pytest.mark.parametrize("activation", ["relu", "identity"])
def test_without_biases_and_on_differences_a_linear_evolution_is_learned_wherever_it_is(activation):
    options = {"num_steps": 3000, "learning_rate": 2e-3, "decay_every": 1000, "progress": False}
    fitted = fit(LINEAR, activation=activation, use_bias=False, relative=True, **options)
    assert (fitted.forecaster.network.use_bias, fitted.forecaster.network.relative) == (False, True)
    assert l1(fitted.forecaster, fitted.validation) < 0.05 * l1(None, fitted.validation)
    # Where no weight of the examples has been, and a hundred times as fast.
    elsewhere = make_examples(lambda random, steps: 2 + 100 * linear(random, steps), seed=1)
    assert l1(fitted.forecaster, elsewhere) < 0.05 * l1(None, elsewhere)


@pytest.mark.parametrize("use_bias", [False, True])
@pytest.mark.parametrize("relative", [False, True])
def test_the_fit_is_of_the_network_of_the_arguments(use_bias, relative, tmp_path):
    fitted = fit(LINEAR, use_bias=use_bias, relative=relative, workdir=tmp_path, **QUICK)
    network = fitted.forecaster.network
    assert (network.use_bias, network.relative) == (use_bias, relative)
    shapes = [leaf.shape for leaf in weights_of(fitted)]
    assert shapes == ([(40,), (4 - relative, 40), (1,), (40, 1)] if use_bias else [(4 - relative, 40), (40, 1)])
    assert same(fitted, fit(LINEAR, use_bias=use_bias, relative=relative, workdir=tmp_path, **QUICK))


def test_the_identity_makes_the_forecast_affine():
    fitted = fit(LINEAR, activation="identity", num_steps=200, progress=False)
    x, y = 0.01 * np.random.default_rng(0).normal(size=(2, 4, 50)).astype(np.float32)

    def forecast(points):
        return np.asarray(fitted.forecaster(*map(jnp.asarray, points), key=jax.random.key(0)))

    np.testing.assert_allclose(forecast(x + y), forecast(x) + forecast(y) - forecast(0 * x), atol=1e-7)


@pytest.mark.parametrize("loss", ["l1", "l2", "percentage"])
def test_the_updates_are_those_of_adam(loss):
    # All examples are in every batch: their order makes no difference.
    examples = make_examples(linear, count=60)._replace(weights=np.arange(60))
    options = {"loss": loss, "scale": 300.0, "learning_rate": 1e-2, "decay_every": 2, "decay_factor": 0.1, "seed": 5}
    fitted = fit(examples, num_steps=5, batch_size=48, validation_share=0.2, progress=False, **options)
    inputs, targets = 300 * fitted.train.inputs, 300 * fitted.train.targets
    assert len(targets) == 48

    def mean_loss(network):
        error = network(inputs)[:, 0] - targets
        return {
            "l1": jnp.mean(jnp.abs(error)),
            "l2": jnp.mean(error**2),
            "percentage": 100 * jnp.mean(jnp.abs(error / targets)),
        }[loss]

    network = optax_introspect.IntrospectionNetwork(rngs=nnx.Rngs(5))
    rates = jnp.array([1e-2, 1e-2, 1e-3, 1e-3, 1e-4])
    optimizer = nnx.Optimizer(network, optax.adam(lambda count: rates[count]), wrt=nnx.Param)
    update = nnx.jit(lambda network, optimizer: optimizer.update(network, nnx.grad(mean_loss)(network)))
    for _ in range(5):
        update(network, optimizer)
    for got, expected in zip(weights_of(fitted), jax.tree.leaves(nnx.state(network)), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_the_percentage_error_of_a_weight_at_zero_is_finite():
    loss = fit_module.LOSSES["percentage"](jnp.array([1e-3, -2.0]), jnp.array([0.0, -4.0]))
    np.testing.assert_allclose(loss, [100 * 1e-3 / 1e-7, 50], rtol=1e-6)


def test_the_losses_lead_to_different_networks():
    fits = [fit(LINEAR, loss=loss, **QUICK) for loss in ("l1", "l2", "percentage")]
    assert not same(fits[0], fits[1])
    assert not same(fits[0], fits[2])
    assert not same(fits[1], fits[2])


def test_the_learning_rate_falls():
    def at(num_steps, factor):
        return fit(LINEAR, num_steps=num_steps, decay_every=300, decay_factor=factor, progress=False)

    frozen, later = at(300, 1e-12), at(600, 1e-12)
    for before, after in zip(weights_of(frozen), weights_of(later), strict=True):
        np.testing.assert_allclose(after, before, rtol=0, atol=1e-9)
    assert not same(at(299, 1e-12), frozen)  # until then it has not fallen
    moved = [abs(a - b).max() for a, b in zip(weights_of(frozen), weights_of(at(600, 1.0)), strict=True)]
    assert min(moved) > 1e-3


def test_the_same_seed_gives_the_same_network_bit_for_bit():
    first, again, other = (fit(LINEAR, num_steps=700, seed=seed, progress=False) for seed in (1, 1, 2))
    assert same(first, again)
    assert not same(first, other)
    np.testing.assert_array_equal(first.validation.weights, again.validation.weights)
    assert set(first.validation.weights.tolist()) != set(other.validation.weights.tolist())


def test_the_seed_orders_the_examples_anew_in_every_epoch():
    batches = fit_module._batches(LINEAR, 1.0, 20, seed=0)
    epochs = [np.sort(batches(start, start + 150)[1].ravel()) for start in (0, 150)]
    for epoch in epochs:
        np.testing.assert_array_equal(epoch, np.sort(LINEAR.targets))
    assert not np.array_equal(batches(0, 150)[1], batches(150, 300)[1])
    assert not np.array_equal(batches(0, 150)[1], fit_module._batches(LINEAR, 1.0, 20, seed=1)(0, 150)[1])


def test_no_weight_is_in_both_parts():
    fitted = fit(LINEAR, validation_share=0.25, **QUICK)
    train, validation = set(fitted.train.weights.tolist()), set(fitted.validation.weights.tolist())
    assert not train & validation
    assert train | validation == set(LINEAR.weights.tolist())
    assert len(validation) == round(0.25 * len(train | validation))
    assert len(fitted.train.targets) + len(fitted.validation.targets) == len(LINEAR.targets)


def test_the_forecaster_is_that_of_the_arguments():
    examples = make_examples(linear, points=(1.0, 0.4))
    fitted = fit(examples, hidden=(6, 3), activation="identity", scale=50, **QUICK).forecaster
    assert (fitted.points, fitted.scale) == ((1.0, 0.4), 50)
    network = fitted.network
    assert (network.num_points, network.hidden, network.activation) == (2, (6, 3), "identity")


def test_a_fitted_forecaster_is_loaded_as_it_was_saved(tmp_path):
    fitted = fit(LINEAR, **QUICK)
    optax_introspect.save(fitted.forecaster, tmp_path / "predictor")
    loaded = optax_introspect.load(tmp_path / "predictor")
    assert (loaded.points, loaded.scale) == (fitted.forecaster.points, fitted.forecaster.scale)
    assert same(fitted, fitted._replace(forecaster=loaded))
    assert l1(loaded, fitted.validation) == l1(fitted.forecaster, fitted.validation)


@pytest.mark.parametrize("end", [5000, 2300])  # a multiple of the steps between checkpoints, and none
def test_a_fit_goes_on_where_it_ended(tmp_path, blocks, end):
    uncut = fit(LINEAR, num_steps=10_000, progress=False)
    fit(LINEAR, num_steps=end, workdir=tmp_path, progress=False)
    blocks.clear()
    resumed = fit(LINEAR, num_steps=10_000, workdir=tmp_path, progress=False)
    assert sum(blocks) == 10_000 - end
    assert same(uncut, resumed)


@pytest.fixture
def blocks(monkeypatch):
    """The numbers of steps of the blocks that were computed; after `crash_after` of them, the next one fails."""

    class Blocks(list):
        crash_after = None

    blocks = Blocks()
    block_function = fit_module._block_function

    def wrapped(*arguments):
        run_block = block_function(*arguments)

        def counted(state, inputs, targets):
            if len(blocks) == blocks.crash_after:
                raise KeyboardInterrupt
            blocks.append(len(targets))
            return run_block(state, inputs, targets)

        return counted

    monkeypatch.setattr(fit_module, "_block_function", wrapped)
    return blocks


def test_a_fit_that_is_interrupted_goes_on_at_its_last_checkpoint(tmp_path, monkeypatch, blocks):
    monkeypatch.setattr(fit_module, "_BLOCK", 100)
    monkeypatch.setattr(fit_module, "_CHECKPOINT_EVERY", 3)
    uncut = fit(LINEAR, num_steps=2000, progress=False)
    for crash_after in (5, 4):
        blocks.clear()
        blocks.crash_after = crash_after
        with pytest.raises(KeyboardInterrupt):
            fit(LINEAR, num_steps=2000, workdir=tmp_path, progress=False)
    blocks.clear()
    blocks.crash_after = None
    resumed = fit(LINEAR, num_steps=2000, workdir=tmp_path, progress=False)
    assert sum(blocks) == 2000 - 600  # the first got to 500, and so saved 300, from where the second got to 700
    assert same(uncut, resumed)


def test_a_finished_fit_is_not_made_again(tmp_path, blocks):
    first = fit(LINEAR, workdir=tmp_path, **QUICK)
    blocks.clear()
    again = fit(LINEAR, workdir=str(tmp_path), **QUICK)
    assert not blocks
    assert same(first, again)
    with pytest.raises(ValueError, match="num_steps must be at least the 20 steps that the fit has made; got 19"):
        fit(LINEAR, workdir=tmp_path, num_steps=19, progress=False)


def test_what_is_left_of_an_older_checkpoint_is_dropped(tmp_path):
    """As by a fit that was killed while it did so."""
    first = fit(LINEAR, workdir=tmp_path, **QUICK)
    shutil.copytree(tmp_path / "20", tmp_path / "10")
    (tmp_path / "10" / "default" / "manifest.ocdbt").unlink()
    assert same(first, fit(LINEAR, workdir=tmp_path, **QUICK))
    assert {path.name for path in tmp_path.iterdir()} == {"settings.json", "20"}


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
        ({"relative": True}, "relative was False and is True"),
        ({"loss": "l2"}, "loss was 'l1' and is 'l2'"),
        ({"scale": 999.0}, "scale was 1000.0 and is 999.0"),
        ({"batch_size": 21}, "batch_size was 20 and is 21"),
        ({"learning_rate": 1e-3}, "learning_rate was 0.0005 and is 0.001"),
        ({"decay_every": 8001}, "decay_every was 8000 and is 8001"),
        ({"decay_factor": 0.1}, "decay_factor was 0.5 and is 0.1"),
        ({"validation_share": 0.2}, "validation_share was 0.1 and is 0.2"),
        ({"seed": 1}, "seed was 0 and is 1"),
        ({"loss": "l2", "batch_size": 5}, "batch_size was 20 and is 5, loss was 'l1' and is 'l2'"),
    ],
)
def test_a_folder_of_other_settings_is_refused(finished, change, message):
    before = (finished / "settings.json").read_text()
    with pytest.raises(ValueError, match=re.escape(f"{finished} belongs to a fit with other settings: {message}")):
        fit(LINEAR, workdir=finished, **(QUICK | change))
    assert (finished / "settings.json").read_text() == before


def test_a_folder_that_is_no_fits_is_refused(tmp_path):
    (tmp_path / "precious").write_text("as it was")
    message = f"{tmp_path} holds something, but no settings of a fit in settings.json"
    with pytest.raises(ValueError, match=re.escape(message)):
        fit(LINEAR, workdir=tmp_path, **QUICK)
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


@pytest.mark.parametrize("content", ["", "{", "[]", "1"])
def test_settings_that_cannot_be_read(tmp_path, content):
    (tmp_path / "settings.json").write_text(content)
    with pytest.raises(ValueError, match=rf"{tmp_path}/settings.json does not hold the settings of a fit: "):
        fit(LINEAR, workdir=tmp_path, **QUICK)


def test_a_fit_that_was_killed_when_it_began(tmp_path):
    (tmp_path / "settings.json.tmp").write_text('{"hidden"')
    assert same(fit(LINEAR, workdir=tmp_path, **QUICK), fit(LINEAR, **QUICK))


@pytest.mark.parametrize("field", ["inputs", "targets", "weights"])
def test_a_folder_of_other_examples_is_refused(finished, field):
    array = getattr(LINEAR, field).copy()
    array.flat[-1] += 1
    digest = json.loads((finished / "settings.json").read_text())["examples"]
    message = f"belongs to a fit with other settings: examples was '{digest}' and is '"
    with pytest.raises(ValueError, match=re.escape(message)):
        fit(LINEAR._replace(**{field: array}), workdir=finished, **QUICK)


@pytest.mark.parametrize("field", ["inputs", "targets"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_examples_must_be_finite(field, value):
    array = getattr(LINEAR, field).copy()
    array.flat[7] = value
    with pytest.raises(ValueError, match="the examples must be finite; some of their weights are infinite or NaN"):
        fit(LINEAR._replace(**{field: array}), **QUICK)


def test_there_must_be_examples_for_a_batch():
    examples = make_examples(linear, count=20, num_weights=1000)
    with pytest.raises(ValueError, match="batch_size must be at most the number of training examples, 18"):
        fit(examples, **QUICK)
    assert len(fit(examples, batch_size=18, **QUICK).train.targets) == 18


def test_there_must_be_a_point_to_differ_from_the_first():
    examples = make_examples(linear, points=(1.0,))
    with pytest.raises(ValueError, match="a relative network needs a second point"):
        fit(examples, relative=True, **QUICK)


def test_there_must_be_weights_for_both_parts():
    with pytest.raises(ValueError, match=re.escape("leave both parts some; got 0.1 of 3")):
        fit(make_examples(linear, num_weights=3), **QUICK)


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("loss", "l3", "unknown loss 'l3'; known are ['l1', 'l2', 'percentage']"),
        ("activation", "tanh", "unknown activation 'tanh'; known are ['identity', 'relu']"),
        ("hidden", (40, 0), "units of a hidden layer must be a positive integer; got 0"),
        ("use_bias", 0, "use_bias must be True or False; got 0"),
        ("relative", "yes", "relative must be True or False; got 'yes'"),
        ("validation_share", 0, "between 0 and 1 and leave both parts some; got 0 of"),
        ("validation_share", 1.0, "between 0 and 1 and leave both parts some; got 1.0 of"),
        *(
            (name, value, f"{name} must be a positive integer; got {value!r}")
            for name in ("num_steps", "batch_size", "decay_every")
            for value in (0, -1, 1.5, True)
        ),
        *(
            (name, value, f"{name} must be a positive number; got {value!r}")
            for name in ("scale", "learning_rate", "decay_factor")
            for value in (0, -1.0, float("nan"), float("inf"))
        ),
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
    assert not (tmp_path / "20").exists()  # nothing of it is kept


def test_progress_is_shown_if_wanted(capsys):
    fit(LINEAR, num_steps=20, progress=False)
    assert capsys.readouterr().out == ""
    fit(LINEAR, num_steps=20)
    assert "fitting the introspection network" in capsys.readouterr().out


def test_l1():
    now, at_07, at_04, start = LINEAR.inputs.T
    assert l1(None, LINEAR) == pytest.approx(numpy_l1(now, LINEAR), rel=1e-6)
    average = forecaster(lambda *weights: sum(weights) / 4, points=PAPER_POINTS)
    assert l1(average, LINEAR) == pytest.approx(numpy_l1((now + at_07 + at_04 + start) / 4, LINEAR), rel=1e-5)
    # Of those that need fewer points, each gets its own.
    assert l1(forecaster(lambda now: -now, points=(1.0,)), LINEAR) == pytest.approx(numpy_l1(-now, LINEAR), rel=1e-5)
    weighted = forecaster(lambda now, early: now + 3 * early, points=(1.0, 0.4))
    assert l1(weighted, LINEAR) == pytest.approx(numpy_l1(now + 3 * at_04, LINEAR), rel=1e-5)
    two_point = polynomial(1, 1.3, points=(1.0, 0.4))
    assert l1(two_point, LINEAR) == pytest.approx(numpy_l1(1.5 * now - 0.5 * at_04, LINEAR), rel=1e-4)


def test_l1_says_which_points_are_missing():
    examples = make_examples(linear, count=10, points=(1.0, 0.4))
    message = re.escape("the examples have the points (1.0, 0.4); the forecaster also needs [0.0, 0.7]")
    with pytest.raises(ValueError, match=message):
        l1(polynomial(1, 2.0), examples)
    assert l1(polynomial(1, 2.0, points=(1.0, 0.4)), examples) < 1e-6
