"""The command that makes the shipped predictors, at a small scale, on scikit-learn's digits."""

import re
import shutil
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import optax_introspect
from experiments import predictor as module
from experiments import recording
from experiments.data import load_digits
from experiments.networks import ConvNet
from experiments.training import Task
from optax_introspect.sampling import split_by_weight

NAMES = {
    "mnist-n0": ("relu", 2.0),
    "mnist-n0-linear": ("identity", 2.0),
    "mnist-n0-k2.2": ("relu", 2.2),
    "mnist-n0-equivariant": ("relu", 2.0),
}
SETTINGS = {"seed": 3, "steps": 60, "record_every": 2, "num_examples": 2000, "fit_steps": 200}


@pytest.fixture(scope="module", autouse=True)
def digits():
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(module, "load_mnist", lambda data_dir, fallback: load_digits())
        yield


def run(folder, **changes):
    module.predictor(**({"output": folder / "checkpoints", "workdir": folder / "work"} | SETTINGS | changes))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a whole run."""
    folder = tmp_path_factory.mktemp("predictor")
    run(folder)
    return folder


@pytest.fixture
def steps_made(monkeypatch):
    """The steps of N_0 that were made, and how often; at step `fail_at` the run ends."""

    class Steps(Counter):
        fail_at = None

    steps = Steps()
    update_function = Task.update_function

    def wrapped(self, tx):
        update = update_function(self, tx)

        def counted(trained, step):
            if step == steps.fail_at:
                raise KeyboardInterrupt
            steps[step] += 1
            return update(trained, step)

        return counted

    monkeypatch.setattr(Task, "update_function", wrapped)
    return steps


def load(folder, name):
    return optax_introspect.load(folder / "checkpoints" / name)


def weights_of(forecaster):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(forecaster.network))]


def assert_same_results(a, b, names=tuple(NAMES)):
    for name in names:
        for x, y in zip(weights_of(load(a, name)), weights_of(load(b, name)), strict=True):
            np.testing.assert_array_equal(x, y)
        for file in ("README.md", "forecasts.png"):
            assert (a / "checkpoints" / name / file).read_bytes() == (b / "checkpoints" / name / file).read_bytes()
    histories = [optax_introspect.WeightHistory.open(folder / "work" / "history") for folder in (a, b)]
    np.testing.assert_array_equal(histories[0].steps, histories[1].steps)
    for step in histories[0].steps:
        np.testing.assert_array_equal(histories[0].read(step), histories[1].read(step))


def test_the_history_is_that_of_n0(finished):
    history = optax_introspect.WeightHistory.open(finished / "work" / "history")
    assert history.steps.tolist() == list(range(0, 61, 2))
    assert history.num_weights == 551_818
    start = jax.tree.leaves(nnx.state(ConvNet(rngs=nnx.Rngs(3)), nnx.Param))
    np.testing.assert_array_equal(history.read(0), np.concatenate([np.ravel(leaf) for leaf in start]))
    moves = [abs(history.read(step) - history.read(step - 2)).max() for step in (2, 30, 60)]
    assert all(0 < move < 1e-3 for move in moves)  # Adam moves no weight by much more than its rate, 1e-4


def test_four_predictors_are_written(finished):
    assert {path.name for path in (finished / "checkpoints").iterdir()} == set(NAMES)
    assert set(NAMES) == set(module.PREDICTORS)
    networks = []
    for name, (activation, _) in NAMES.items():
        forecaster = load(finished, name)
        assert forecaster.network.activation == activation
        assert forecaster.network.hidden == (40,)
        assert forecaster.network.relative is not forecaster.network.use_bias is (name != "mnist-n0-equivariant")
        assert (forecaster.points, forecaster.scale) == ((1.0, 0.7, 0.4, 0.0), 1000.0)
        networks.append(np.concatenate([np.ravel(leaf) for leaf in weights_of(forecaster)]))
        image = (finished / "checkpoints" / name / "forecasts.png").read_bytes()
        assert image.startswith(b"\x89PNG\r\n")
        assert len(image) > 5000
    assert not np.array_equal(networks[0], networks[1])
    assert not np.array_equal(networks[0], networks[2])


def forecast(name, loaded, inputs):
    """The forecast of a network with 40 hidden units in float64."""
    layers = [loaded.network.layers[layer] for layer in (0, 2)]
    hidden_kernel, kernel = (np.float64(layer.kernel[...]) for layer in layers)
    if name == "mnist-n0-equivariant":
        now, before = np.float64(inputs[:, :1]), np.float64(inputs[:, 1:])
        return (now + np.maximum((before - now) @ hidden_kernel, 0) @ kernel)[:, 0]
    hidden_bias, bias = (np.float64(layer.bias[...]) for layer in layers)
    hidden = 1000 * np.float64(inputs) @ hidden_kernel + hidden_bias
    hidden = np.maximum(hidden, 0) if NAMES[name][0] == "relu" else hidden
    return (hidden @ kernel + bias)[:, 0] / 1000


@pytest.mark.parametrize("name", NAMES)
def test_the_card_has_the_numbers(finished, name):
    history = optax_introspect.WeightHistory.open(finished / "work" / "history")
    _, jump_ratio = NAMES[name]
    examples = optax_introspect.sample_examples(history, 2000, jump_ratio=jump_ratio, seed=3)
    rows = {}
    for part in split_by_weight(examples, 0.1, 3):
        now, at_07, at_04, start = np.float64(part.inputs.T)
        x = np.array([1, 0.7, 0.4, 0])
        slope = ((x - x.mean()) @ np.stack([now, at_07, at_04, start])) / ((x - x.mean()) @ (x - x.mean()))
        mean = (now + at_07 + at_04 + start) / 4
        forecasts = {
            "this predictor": forecast(name, load(finished, name), part.inputs),
            "staying": now,
            "linear extrapolation, fitted to the 4 points": mean + slope * (jump_ratio - x.mean()),
            "linear extrapolation through the points 1 and 0.4": now + (now - at_04) / 0.6 * (jump_ratio - 1),
            "the same with jump ratio 1.3": now + 0.5 * (now - at_04),
        }
        for what, values in forecasts.items():
            rows.setdefault(what, []).append(1000 * np.mean(np.abs(values - part.targets)))

    card = (finished / "checkpoints" / name / "README.md").read_text()
    cells = re.findall(r"\| ([^|]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|", card)
    table = {what: np.array(numbers, float) for what, *numbers in cells}
    assert set(table) == set(rows)
    for what, (train, validation) in rows.items():
        expected = [train, validation, validation / rows["staying"][1]]
        assert np.all(abs(table[what] - expected) < [0.0051, 0.0051, 0.00051])  # it is rounded

    images = load_digits()
    network = ConvNet(rngs=nnx.Rngs(0))
    leaves = history.tree(60)
    for path, variable in nnx.to_flat_state(nnx.state(network, nnx.Param)):
        variable[...] = jnp.asarray(leaves["/".join(path)])
    logits = nnx.jit(lambda network, images: network(images))(network, images.test_images.astype(np.float32) / 255)
    accuracy = np.mean(np.argmax(logits, axis=1) == images.test_labels)
    for part in (
        f"# {name}\n",
        f'optax_introspect.pretrained("{name}")',
        f"to {accuracy:.2%} on the test set",
        "`python -m experiments predictor --seed 3 --steps 60 --record-every 2 --num-examples 2000 --fit-steps 200`",
        "2000 examples were sampled",
        "batches of 50, for 60 steps",
        f"{jump_ratio:g}t are recorded",
        f"fitted to {sum(len(part.targets) for part in split_by_weight(examples, 0.1, 3)[:1])} of them",
        "Seed 3 for everything random",
    ):
        assert part in card


def test_nothing_written_says_where_it_was_made(finished):
    files = [path for path in (finished / "checkpoints").rglob("*") if path.is_file()]
    assert len(files) > 4 * 6
    for path in files:
        content = path.read_bytes()
        assert str(finished.parent).encode() not in content
        if path.suffix == ".md":
            assert not re.search(r"(?<![\w.)])/\w", content.decode())


def test_the_same_seed_gives_the_same_bits(finished, tmp_path):
    run(tmp_path)
    assert_same_results(finished, tmp_path)


def test_an_interrupted_run_goes_on(finished, tmp_path, monkeypatch, steps_made):
    monkeypatch.setattr(module, "PREDICTORS", {"mnist-n0-k2.2": module.PREDICTORS["mnist-n0-k2.2"]})  # to save time
    monkeypatch.setattr(recording, "CHECKPOINT_EVERY", 20)
    steps_made.fail_at = 37
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    assert not (tmp_path / "checkpoints").exists()
    assert optax_introspect.WeightHistory.open(tmp_path / "work" / "history").steps[-1] == 36
    steps_made.fail_at = None
    run(tmp_path)
    assert steps_made == {step: 2 if 20 <= step < 37 else 1 for step in range(60)}
    assert_same_results(finished, tmp_path, ["mnist-n0-k2.2"])


def test_a_finished_run_does_not_train_again_and_replaces_its_predictors(finished, tmp_path, steps_made):
    shutil.copytree(finished / "checkpoints", tmp_path / "checkpoints")
    run(tmp_path, workdir=finished / "work", num_examples=500, fit_steps=20)
    assert not steps_made
    for name in NAMES:
        assert not np.array_equal(weights_of(load(finished, name))[0], weights_of(load(tmp_path, name))[0])
        assert "--fit-steps 20`" in (tmp_path / "checkpoints" / name / "README.md").read_text()


@pytest.mark.parametrize("change", [{"seed": 4}, {"steps": 80}, {"record_every": 4}])
def test_a_folder_of_other_settings_is_refused(finished, change, steps_made):
    ((name, value),) = change.items()
    with pytest.raises(ValueError, match=rf"metadata of .*'{name}': {SETTINGS[name]}.* not .*'{name}': {value}"):
        run(finished, **change)
    assert not steps_made


def test_a_folder_of_other_images_is_refused(finished, monkeypatch, steps_made):
    digits = module.load_mnist(None, fallback=False)
    other = digits.__class__(**(vars(digits) | {"source": "TFDS mnist 3.0.1"}))
    monkeypatch.setattr(module, "load_mnist", lambda data_dir, fallback: other)
    with pytest.raises(ValueError, match=r"metadata of .*scikit-learn.* not .*TFDS mnist 3\.0\.1"):
        run(finished)
    assert not steps_made


def test_what_is_no_predictor_is_not_replaced(finished, tmp_path):
    foreign = tmp_path / "checkpoints" / "mnist-n0"
    foreign.mkdir(parents=True)
    (foreign / "thesis.txt").write_text("all of it")
    with pytest.raises(ValueError, match="does not hold a predictor"):
        run(tmp_path, workdir=finished / "work", num_examples=500, fit_steps=20)
    assert (foreign / "thesis.txt").read_text() == "all of it"
    assert [path.name for path in foreign.iterdir()] == ["thesis.txt"]
