"""Damaged predictors and histories, a sample of those of `python -m tests.endurance`; and that those judge rightly."""

import json
import os
import pickle
import random

import pytest

from . import histories, predictors
from .corruptions import Corruption, judge_all, violations_of
from .judging import DIED, ERROR, RAN, RIGHT, SHORTER, UNCLEAR, WRONG, Verdict, judged

MODULES = {"predictor": predictors, "history": histories}


def careless(folder, truth):
    """Does what a file says."""
    del truth
    what = (folder / "file").read_bytes()
    match what:
        case b"die":
            os.abort()
        case b"take memory":
            return Verdict(RIGHT, str(len(bytes(2**40))))
        case b"right":
            return Verdict(RIGHT, "")
    pickle.loads(what)
    return Verdict(RIGHT, "")


def test_a_process_that_dies_or_runs_code_is_noticed(tmp_path):
    contents = [b"right", b"die", b"right", pickle.dumps(os.path.join), b"die", b"right"]
    folders = []
    for number, content in enumerate(contents):
        folders.append(tmp_path / str(number))
        folders[-1].mkdir()
        (folders[-1] / "file").write_bytes(content)
    verdicts = judged(len, careless, "", folders, tmp_path / "report")
    assert [verdict.outcome for verdict in verdicts] == [RIGHT, DIED, RIGHT, RAN, DIED, RIGHT]
    assert verdicts[3].detail == "pickle.find_class"


def test_memory_that_is_not_there_is_not_given(tmp_path):
    (tmp_path / "file").write_bytes(b"take memory")
    with pytest.raises(RuntimeError, match="MemoryError"):
        judged(len, careless, "", [tmp_path], tmp_path / "report")


@pytest.mark.parametrize("judge", MODULES)
def test_another_one_is_no_right_answer(tmp_path, judge):
    module = MODULES[judge]
    base, other = module.make(tmp_path / "base", 0), module.make(tmp_path / "other", 1)

    def replace(folder):
        folder.rename(folder.with_name("aside"))
        (folder.parent / "other").rename(folder)
        folder.with_name("aside").rename(folder.parent / "other")

    corruptions = [
        Corruption("replaced", "all of it", replace),
        Corruption("outside", "precious", lambda folder: (folder / "link").symlink_to("/")),
        Corruption("nothing", "at all", lambda folder: None),
    ]
    verdicts = [verdict.outcome for _, verdict in judge_all(judge, corruptions, base, other, tmp_path / "work")]
    assert verdicts == [WRONG, RIGHT, RIGHT]


@pytest.mark.parametrize(("judge", "number"), [("predictor", 60), ("history", 90)])
def test_a_clear_error_or_the_right_answer(tmp_path, judge, number):
    module = MODULES[judge]
    base, other = module.make(tmp_path / "base", 0), module.make(tmp_path / "other", 1)
    corruptions = module.corruptions(base, random.Random(0))
    assert len(corruptions) > 350
    chosen = random.Random(1).sample(corruptions, number)
    results = judge_all(judge, chosen, base, other, tmp_path / "work")
    assert violations_of(results) == []
    outcomes = {verdict.outcome for _, verdict in results}
    assert {ERROR, RIGHT} <= outcomes <= {ERROR, RIGHT, SHORTER}


def test_an_error_that_does_not_say_where_is_not_clear(tmp_path):
    corruption = Corruption("a byte flipped", "somewhere", lambda folder: None)
    (text,) = violations_of([(corruption, Verdict(UNCLEAR, json.dumps("why")))])
    assert text == 'a byte flipped, somewhere: unclear error, "why"'
