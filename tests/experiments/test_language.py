import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import optax_introspect as oi
from experiments import language, language_evolution, results
from experiments.data.text import BLOCK, HOLD_OUT, Sequences, load_text
from experiments.language import Language, LanguageRun, Training
from experiments.language_evolution import Coefficients, Evolution, EvolutionRun, Evolved
from experiments.language_predictors import Window, amplified
from experiments.language_task import TextTask
from experiments.optimizers import Optimizer, adamw
from experiments.runs import Context
from experiments.training import StoppedError

STUDY = Language(
    name="tiny",
    title="Tiny",
    question="Do jumps help?",
    minutes=1,
    arms=tuple(
        Training(way, 60, 1e-2, width=8) for way in ("plain", "ema", "nesterov-20-0.8-0.75", "network", "evolved")
    ),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with 20 blocks of text in three files."""
    folder = tmp_path_factory.mktemp("text")
    words = np.random.default_rng(0).choice(["jump", "weight", "grün", "step\n"], 20 * BLOCK // 4)
    text = " ".join(words)[: 20 * BLOCK]
    (folder / "more").mkdir()
    for i, name in enumerate(("a.txt", "b.txt", "more/c.md")):
        (folder / name).write_text(text[i::3])
    return folder


@pytest.fixture(scope="module")
def text(folder):
    return load_text(folder)


def test_some_blocks_are_held_out(folder, text):
    assert text.train.shape[1] == text.validation.shape[1] == BLOCK
    assert len(text.validation) == (len(text.train) + len(text.validation)) // HOLD_OUT > 0
    assert not {block.tobytes() for block in text.train} & {block.tobytes() for block in text.validation}
    assert load_text(folder / "a.txt").kind != text.kind


def test_a_pass_shows_every_byte_once(text):
    sequences = Sequences(text.train, 8, 128, seed=0)
    starts = np.concatenate([sequences.batch(step) for step in range(len(sequences))])
    assert len(starts) == len(sequences) * 8
    assert np.unique(starts[:, None] + np.arange(128)).size == 128 * len(starts)
    assert np.all(starts % BLOCK + 128 < BLOCK)  # its last target too is in the block
    assert np.array_equal(sequences.batch(3), Sequences(text.train, 8, 128, seed=0).batch(3))
    assert not np.array_equal(sequences.batch(3), Sequences(text.train, 8, 128, seed=1).batch(3))


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "there is no"), (b"", "at least 32768 bytes; got 0"), (b"\xff" * 3 * BLOCK, "must hold UTF-8 text")],
)
def test_bad_text(tmp_path, content, message):
    path = tmp_path / "text"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load_text(path)


def test_a_text_shorter_than_a_batch(text):
    with pytest.raises(ValueError, match="must have 500 sequences of 128 bytes, one batch"):
        Sequences(text.train[:2], 500, 128, seed=0)


def test_more_steps_than_a_pass(text, tmp_path):
    arm = Training("plain", 10_000, 1e-2, width=8)
    with pytest.raises(
        ValueError, match=r"steps must be at most \d+, one pass over the text; plain-10000-0.01-width_8 has 10000"
    ):
        LanguageRun(STUDY, arm, 0).work(Context(tmp_path, lambda name: text), tmp_path)


def test_a_byte_is_predicted_from_those_before_it(text):
    task = TextTask(text, 0, 8, 8)
    model = nnx.merge(task.graphdef, task.params)
    bytes_ = jnp.asarray(text.train[0, :20].astype(np.int32))[None]
    changed = bytes_.at[0, 12].set(7)
    before, after = model(bytes_), model(changed)
    np.testing.assert_allclose(before[0, :12], after[0, :12], rtol=1e-5, atol=1e-6)
    assert np.abs(before[0, 12:] - after[0, 12:]).max() > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("arm", STUDY.arms, ids=lambda arm: arm.way)
def test_a_run_learns_and_has_its_jumps(text, tmp_path, arm):
    run = LanguageRun(STUDY, arm, 0)
    run.complete(Context(tmp_path, lambda name: text))
    (result,) = tmp_path.rglob("result.json")
    rows = json.loads(result.read_text())["tables"][""]
    assert [row["step"] for row in rows] == list(range(0, 61, 6))
    assert rows[0]["loss"] == pytest.approx(np.log(256), abs=0.1)
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.5
    jumps = {"nesterov-20-0.8-0.75": 3, "network": 3, "evolved": 3}.get(arm.way)
    assert rows[-1].get("jumps_taken") == jumps


def test_every_way_is_tried():
    assert {arm.way for arm in language.EXPERIMENTS[0].arms} == language.WAYS.keys()


def test_what_is_measured_was_best_in_the_tuning():
    tuning, found = results.read("language-tuning"), results.read("language")

    def tried(arm):
        return {
            other: [curve["loss"][-1] for curve in tuning.curves(other.name).values()]
            for other in language.tries(arm)
            if other.name in tuning.info["arms"]
        }

    for arm in language.MEASURED:
        assert set(found.curves(arm.name)) == set(arm.seeds)
        losses = tried(arm)
        assert 4 <= len(losses) <= len(tried(dataclasses.replace(arm, way="plain")))
        # Those that were run on more seeds than one are the best of seed 0.
        last = sorted(losses, key=lambda other: losses[other][0])[: max(1, sum(len(x) > 1 for x in losses.values()))]
        assert len({len(losses[other]) for other in last}) == 1
        best = min(last, key=lambda other: np.mean(losses[other]))
        assert (best.rate, best.b1) == (arm.rate, arm.b1)


def test_a_rate_that_falls_late_or_never():
    def updates(**changed):
        """Returns the sizes of updates whose gradient is always the same."""
        tx = Training("plain", 100, 1e-2, **changed).optimizer(None).tx
        params, sizes = {"w": jnp.zeros(1)}, []
        state = tx.init(params)
        for _ in range(100):
            change, state = tx.update({"w": jnp.ones(1)}, state, params)
            sizes.append(-float(change["w"][0]))
        return np.array(sizes)

    steps = np.arange(100)
    warmup = np.minimum((steps + 1) / 5, 1)
    for decay, left in {1.0: 1 - steps / 100, 0.2: np.minimum((100 - steps) / 20, 1), 0.0: np.ones(100)}.items():
        np.testing.assert_allclose(updates(decay=decay), 1e-2 * warmup * left, rtol=1e-3)


def test_jumps_that_end_early():
    jump_steps, _ = Training("nesterov-20-0.8-0.75", 6000, 1e-3, until=0.75).jumps(None)
    assert (jump_steps[0], jump_steps[-1]) == (19, 4499)


def test_the_target_of_a_window(tmp_path):
    # Weights that move by 1, 2 and 3 a step.
    with oi.WeightHistory.record(tmp_path, {"w": np.zeros(3, np.float32)}) as history:
        for step in range(0, 301, 10):
            history.append(step, {"w": step * np.arange(1, 4, dtype=np.float32)})
    for target, ahead in {"next": 20, "fourth": 80, "average": 15}.items():
        examples = Window(20, target).examples(oi.WeightHistory.open(tmp_path))
        speed = examples.weights + 1
        steps = examples.steps[:, None] - np.array([0, 20, 40, 60])
        np.testing.assert_allclose(examples.inputs, speed[:, None] * np.maximum(steps, 0), rtol=1e-6)
        np.testing.assert_allclose(examples.targets, speed * (examples.steps + ahead), rtol=1e-6)


def test_longer_jumps(tmp_path):
    network = oi.IntrospectionNetwork(use_bias=False, residual=True, rngs=nnx.Rngs(0))
    points = Window(20, "next").points
    oi.save(oi.network_forecaster(network, points), tmp_path / "fitted")
    weights = np.random.default_rng(0).normal(size=(4, 9)).astype(np.float32)
    once, thrice = (amplified("fitted", gain, tmp_path)(*weights, key=None) for gain in (1, 3))
    assert amplified("fitted", 3, tmp_path).points == points
    np.testing.assert_allclose(thrice - weights[0], 3 * (once - weights[0]), rtol=1e-4)
    assert np.abs(once - weights[0]).max() > 0.01


def test_coefficients_that_differ_by_half(text):
    """Twenty steps or more after the last jump the weights are those of `nesterov` with jumps in the first half."""
    task = TextTask(text, 0, 8, 8)
    coefficients = jax.tree.map(jnp.asarray, Coefficients.of_way(language_evolution.PERIODIC, 1e-2))
    # With these a jump changes nothing.
    coefficients = coefficients._replace(eta=coefficients.eta.at[1].set(1.0), mu=coefficients.mu.at[1].set(0.0))
    ours = language_evolution.optimizer(80, coefficients)
    others = optax.chain(adamw(1e-2, 80), oi.introspect(range(19, 40, 20), oi.nesterov(20)))
    trained = [task.stepper(Optimizer(tx))(task.start(Optimizer(tx)).trained, 0, 79) for tx in (ours, others)]
    for one, other in zip(*(jax.tree.leaves(of.params) for of in trained), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)


def test_rates_by_kind(text):
    """Updates are those of AdamW, times the factor of their kind in this half."""
    params = TextTask(text, 0, 8, 8).params
    factor = jnp.asarray([[5.0, 0.5, 2.0, 1.0], [1.0, 3.0, 1.0, 0.0]])
    updates = []
    for tx in (adamw(1e-2, 40), language_evolution.optimizer(40, Coefficients(1e-2, factor=factor))):
        state, of_tx = tx.init(params), []
        for _ in range(40):
            change, state = jax.jit(tx.update)(jax.tree.map(jnp.ones_like, params), state, params)
            of_tx.append(change)
        updates.append(of_tx)
    kinds = language_evolution.kinds(params)
    for step, half in ((0, 0), (19, 0), (20, 1), (39, 1)):
        factors = jax.tree.map(lambda kind, half=half: factor[half, list(language_evolution.KINDS).index(kind)], kinds)
        for plain, scaled, its in zip(*map(jax.tree.leaves, (*(of[step] for of in updates), factors)), strict=True):
            np.testing.assert_allclose(scaled, its * plain, rtol=1e-4, atol=1e-9)


def test_every_array_has_a_kind(text):
    found = jax.tree.leaves(language_evolution.kinds(TextTask(text, 0, 8, 8).params))
    assert {kind: found.count(kind) for kind in found} == {"embedding": 2, "attention": 4, "mlp": 4, "norm": 5}


def test_the_evolved_coefficients_are_those_of_the_results():
    columns = results.read("language-evolution").columns
    assert language_evolution.EVOLVED.keys() == set(columns["tuned"])
    for way, coefficients in language_evolution.EVOLVED.items():
        for name, value in coefficients.row().items():
            assert value == pytest.approx(columns[name][columns["tuned"] == way][-1], abs=0.005)


@pytest.mark.slow
def test_an_evolution_that_is_stopped_goes_on(text, tmp_path):
    arm = Evolved("tiny", width=8, batch_size=8, training=40, generations=2, pairs=2)
    run = EvolutionRun(Evolution(name="tiny", title="", question="", minutes=1, arms=(arm,)), arm, 0)
    made = []
    for name in ("whole", "part"):
        (tmp_path / name).mkdir()
    context = Context(tmp_path, lambda name: text, advance=made.append)
    whole = run.work(context, tmp_path / "whole")
    known = json.loads((tmp_path / "whole" / "losses.json").read_text())
    (tmp_path / "part" / "losses.json").write_text(json.dumps(known[:7]))
    with pytest.raises(StoppedError):
        run.work(dataclasses.replace(context, deadline=1.0), tmp_path / "part")
    assert sum(made) == arm.steps + 7 * arm.training
    assert run.work(context, tmp_path / "part") == whole
    assert sum(made) == 2 * arm.steps + 7 * arm.training
    first, second, *rates = whole[""]
    assert first["eta_late_mlp"] != second["eta_late_mlp"] != 0.8
    assert rates[0]["factor_late_mlp"] != rates[1]["factor_late_mlp"] != 1.0
    assert len(whole["compared"]) == 5 * len(language_evolution.SEEDS)
