"""The page of `python -m tests.endurance`."""

import logging
import re
from pathlib import Path

import pytest

from tests.endurance import __main__ as command
from tests.endurance import checks
from tests.endurance.page import HEAD, Section, table, write
from tests.faults.corruptions import Corruption
from tests.faults.judging import ERROR, RIGHT, SHORTER, WRONG, Verdict

ROOT = Path(__file__).parents[2]


def test_sections_that_are_not_made_stay(tmp_path):
    page, titles = tmp_path / "page.md", ["One", "Two", "Three"]
    write(page, [Section("Two", "old", []), Section("One", "first", [])], titles)
    write(page, [Section("Two", "\nnew\n", ["something"])], titles)
    text = page.read_text()
    assert text == f"{HEAD}\n## One\n\nfirst\n\n## Two\n\nnew\n\n**Violations:**\n\n- something\n"
    write(page, [Section("Two", "new", [])], titles)
    assert page.read_text() == f"{HEAD}\n## One\n\nfirst\n\n## Two\n\nnew\n"


def test_counts():
    outcomes = [("flip", ERROR), ("flip", ERROR), ("flip", RIGHT), ("cut", SHORTER), ("cut", WRONG)]
    results = [(Corruption(kind, "", len), Verdict(outcome, "")) for kind, outcome in outcomes]
    assert checks._counts(results).splitlines()[2:] == [
        "| flip | 3 | 2 | 1 | 0 | 0 |",
        "| cut | 2 | 0 | 0 | 1 | 1 |",
        "| all | 5 | 2 | 1 | 1 | 1 |",
    ]
    assert table(["a", "b"], [["x", 1]]) == "| a | b |\n| --- | ---: |\n| x | 1 |"


def test_the_command(tmp_path, monkeypatch):
    """It makes the sections that are asked for, and fails if anything is violated."""
    monkeypatch.setattr(logging, "disable", lambda level: None)
    asked = []

    def check(title, violations):
        def made(folder, *arguments):
            assert folder.is_dir()
            asked.append((title, *arguments))
            return Section(title, "figures", violations)

        return made

    monkeypatch.setattr(command, "killed", check(checks.KILLS, []))
    monkeypatch.setattr(command, "damaged", check(checks.DAMAGE, ["something"]))
    monkeypatch.setattr(command, "full", check(checks.DISKS, []))
    page = tmp_path / "page.md"
    command.main(only=("disks", "kills"), seed=3, kills=7, output=page)
    assert asked == [(checks.DISKS, 3), (checks.KILLS, 3, 7)]
    assert re.findall("^## (.*)$", page.read_text(), re.M) == [checks.KILLS, checks.DISKS]
    with pytest.raises(SystemExit, match="something"):
        command.main(flips=2, output=page)
    assert asked[3] == (checks.DAMAGE, 0, 2)
    assert re.findall("^## (.*)$", page.read_text(), re.M) == [checks.KILLS, checks.DAMAGE, checks.DISKS]


def test_the_last_figures_are_those_that_the_issue_asks_for():
    text = (ROOT / "docs" / "endurance.md").read_text()
    assert "Violations:" not in text
    for title in (checks.KILLS, checks.DAMAGE, checks.DISKS):
        assert f"## {title}" in text
    kills = [
        line.split(" | ") for line in re.findall(r"^\| (.*(?:a history|checkpoints|predictors) \| \d+ .*)", text, re.M)
    ]
    assert len(kills) == 4
    assert all(int(row[1]) >= 50 and row[-1].strip(" |") == "0" for row in kills)
    totals = [[int(cell) for cell in row.split(" | ")] for row in re.findall(r"^\| all \| (.*) \|$", text, re.M)]
    assert sum(row[0] for row in totals) >= 200
    assert [row[-1] for row in totals] == [0, 0]
