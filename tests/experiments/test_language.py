import json

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments import language, results
from experiments.data.text import BLOCK, HOLD_OUT, Sequences, load_text
from experiments.language import Language, LanguageRun, TextTask, Training
from experiments.runs import Context

STUDY = Language(
    name="tiny",
    title="Tiny",
    question="Do jumps help?",
    minutes=1,
    width=8,
    blocks=1,
    arms=tuple(Training(way, 60, 1e-2) for way in ("plain", "ema", "nesterov-20-0.8-0.75", "network")),
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
    assert load_text(folder / "a.txt").kind != text.kind


def test_a_pass_shows_every_byte_once(text):
    sequences = Sequences(text.train, 8, 128, seed=0)
    starts = np.concatenate([sequences.batch(step) for step in range(len(sequences))])
    assert len(np.unique(starts)) == len(starts) == len(sequences) * 8
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
    arm = Training("plain", 10_000, 1e-2)
    with pytest.raises(
        ValueError, match=r"steps must be at most \d+, one pass over the text; plain-10000-0.01 has 10000"
    ):
        LanguageRun(STUDY, arm, 0).work(Context(tmp_path, lambda name: text), tmp_path)


def test_a_byte_is_predicted_from_those_before_it(text):
    task = TextTask(STUDY, text, 0)
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
    jumps = {"nesterov-20-0.8-0.75": 3, "network": 3}.get(arm.way)
    assert rows[-1].get("jumps_taken") == jumps


def test_every_way_has_as_many_tries_as_the_baseline_or_fewer():
    tries = {}
    for arm in language.EXPERIMENTS[0].arms:
        tries[arm.way, arm.steps] = tries.get((arm.way, arm.steps), 0) + 1
    assert {way for way, _ in tries} == language.WAYS.keys()
    for (_, steps), count in tries.items():
        assert 4 <= count <= tries["plain", steps]


def test_what_is_measured_was_best_in_the_tuning():
    found = results.read("language-tuning")
    for (way, steps), (rate, b1) in language.CHOSEN.items():
        arms = {arm: own for arm, own in found.info["arms"].items() if (own["way"], own["steps"]) == (way, steps)}
        assert len(arms) >= 4
        best = arms[min(arms, key=lambda arm: found.curve(arm, 0)["loss"][-1])]
        assert (best["rate"], best["b1"]) == (rate, b1)
