"""Work that is killed with signal 9 and goes on; `python -m tests.endurance` does it many more times."""

import hashlib

import pytest

from . import works
from .children import Child
from .killing import kill

LINES = 20


def write_carelessly(folder):
    """Writes a file bit by bit, and doesn't look at what is there already."""
    folder.mkdir(exist_ok=True)
    for number in range(LINES):
        with (folder / "file").open("a") as file:
            file.write(f"{number}\n")


def carelessly_found(folder):
    """Takes the file for whole wherever it is."""
    path = folder / "file"
    return {"file": hashlib.sha256(path.read_bytes()).hexdigest()} if path.exists() else {}


def end(code):
    raise SystemExit(code)


def test_what_is_not_safe_is_noticed(tmp_path):
    careless = works.Work("something careless", write_carelessly, carelessly_found)
    found = kill(careless, tmp_path, kills=3, seed=0, at_changes=1)
    assert found.at_changes == 3
    assert any("as left: file is" in violation for violation in found.violations)
    assert any("completed: file is" in violation for violation in found.violations)


def test_a_process_that_fails_is_not_taken_for_a_killed_one():
    with pytest.raises(RuntimeError, match="SystemExit: 3"):
        Child(end, 3).is_killed()


@pytest.mark.parametrize(
    ("name", "kills", "at_changes"), [("record", 3, 0.5), ("fit", 2, 1), ("fits", 2, 1), ("train", 2, 1)]
)
def test_killed_work_goes_on_with_the_same_bits(tmp_path, name, kills, at_changes):
    found = kill(works.WORKS[name], tmp_path, kills, seed=1, at_changes=at_changes)
    assert found.violations == []
    assert found.at_changes + found.at_times == kills
    assert all(0 <= part <= 1 for part in found.parts)
