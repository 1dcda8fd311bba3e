"""The two ends of what the metadata allows; the gate tests what is shipped at both."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import compatibility as module
from experiments.compatibility import Result, compatibility

ROOT = Path(__file__).parents[2]
VERSIONS = dict.fromkeys(module.lower_bounds(), "1.0")


@pytest.fixture
def project(monkeypatch, tmp_path):
    """Replaces the metadata."""

    def write(dependencies, python=">=3.11,<3.14"):
        path = tmp_path / "pyproject.toml"
        path.write_text(f'[project]\nrequires-python = "{python}"\ndependencies = {dependencies}\n')
        monkeypatch.setattr(module, "PYPROJECT", path)

    return write


@pytest.fixture
def page(tmp_path):
    path = tmp_path / "page.md"
    path.write_text("Before.\n\n| releases | Python |\n| --- | --- |\n\nAfter.\n")
    return path


class TestMetadata:
    def test_lower_bounds_are_constraints(self, project):
        project(["jax>=0.10", "orbax-checkpoint >= 0.12.8", "numpy>=2.0,<3", "rich>=13, !=14.0"])
        assert module.constraints() == "jax==0.10\norbax-checkpoint==0.12.8\nnumpy==2.0\nrich==13\n"
        assert module.python_ends() == {"oldest": "3.11", "newest": "3.13"}

    @pytest.mark.parametrize("requirement", ["jax", "jax==0.10", "jax<1", "jax~=0.10"])
    def test_a_dependency_without_oldest_release(self, project, requirement):
        project(["numpy>=2", requirement])
        with pytest.raises(
            ValueError,
            match=re.escape(f"a dependency must say which release is the oldest, as in jax>=0.10; got {requirement!r}"),
        ):
            module.lower_bounds()

    def test_python_without_two_ends(self, project):
        project([], python=">=3.11")
        with pytest.raises(ValueError, match=r"requires-python must have two ends, as in >=3\.11,<3\.14; got .>=3\.11"):
            module.python_ends()

    def test_constraints_need_nothing_but_the_standard_library(self):
        code = "from experiments.compatibility import constraints; print(constraints(), end='')"
        ended = subprocess.run(
            [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, '.'); {code}"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        assert ended.stdout == module.constraints()
        assert "jax==" in ended.stdout


class TestInterpreter:
    def test_this_one(self):
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        ended = subprocess.run([module.interpreter(version), "--version"], capture_output=True, text=True, check=True)
        assert f"Python {version}." in ended.stdout

    def test_among_those_of_pyenv(self, monkeypatch, tmp_path):
        found, broken = (tmp_path / "versions" / name / "bin" / "python" for name in ("9.9.1", "9.9.0"))
        for path, status in ((found, 0), (broken, 1)):
            path.parent.mkdir(parents=True)
            path.write_text(f"#!/bin/sh\nexit {status}\n")
            path.chmod(0o755)
        monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
        assert module.interpreter("9.9") == str(found)

    def test_none(self, monkeypatch, tmp_path):
        monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
        with pytest.raises(
            FileNotFoundError, match=r"Python 9\.9 was not found, neither as python9\.9 nor in .*versions"
        ):
            module.interpreter("9.9")


class TestCommand:
    @pytest.fixture(autouse=True)
    def made(self, monkeypatch):
        """Makes no environments and runs no tests."""
        made = []
        monkeypatch.setattr(module, "interpreter", lambda version: f"python{version}")
        monkeypatch.setattr(
            module, "environment", lambda folder, python, oldest: made.append((folder.name, python, oldest))
        )
        monkeypatch.setattr(
            module, "run_tests", lambda end, *_: Result(end, f"python of {end}", VERSIONS, 7, 2 * (end == "newest"))
        )
        return made

    def test_both_ends(self, page, made):
        with pytest.raises(ValueError, match="tests failed: 2 with the newest"):
            compatibility(page=page)
        assert made == [("oldest", "python3.11", True), ("newest", "python3.13", False)]
        before, head, rule, *rows, after = [line for line in page.read_text().splitlines() if line]
        assert (before, after) == ("Before.", "After.")
        assert head == f"| releases | Python | {' | '.join(VERSIONS)} | passed | failed |"
        assert rule.endswith(" ---: | ---: |")
        ones = " | ".join(VERSIONS.values())
        assert rows == [
            f"| oldest | python of oldest | {ones} | 7 | 0 |",
            f"| newest | python of newest | {ones} | 7 | 2 |",
        ]

    def test_the_row_of_the_other_end_stays(self, page):
        module.write_table(page, [Result("oldest", "old", VERSIONS, 1, 0), Result("newest", "new", VERSIONS, 2, 0)])
        compatibility(ends=("oldest",), page=page)
        rows = page.read_text().splitlines()[4:6]
        assert [row.split(" | ")[:2] for row in rows] == [["| oldest", "python of oldest"], ["| newest", "new"]]

    def test_but_not_for_other_dependencies(self, page, project):
        module.write_table(page, [Result("newest", "new", VERSIONS, 2, 0)])
        project(["jax>=1.0"])
        compatibility(ends=("oldest",), page=page)
        assert "new" not in page.read_text()

    def test_a_page_without_table(self, tmp_path, made):
        (tmp_path / "page.md").write_text("Nothing.\n")
        with pytest.raises(ValueError, match=r"page\.md has no table that begins with \| releases \|"):
            compatibility(page=tmp_path / "page.md")
        with pytest.raises(FileNotFoundError, match=r"there is no page .*nowhere\.md to write the table to"):
            compatibility(page=tmp_path / "nowhere.md")
        assert made == []


class TestRunningTests:
    """With this Python in place of a new environment: what is made is what a user's pip and pytest make."""

    @pytest.fixture
    def python(self, tmp_path):
        path = tmp_path / "end" / "bin" / "python"
        path.parent.mkdir(parents=True)
        path.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        path.chmod(0o755)
        return path

    def run(self, python, tmp_path, text):
        (tmp_path / "test_it.py").write_text(text)
        return module.run_tests(
            "oldest", python, ["numpy"], [str(tmp_path / "test_it.py"), "--rootdir", str(tmp_path)], 0
        )

    def test_counts(self, python, tmp_path, capsys):
        text = "def test_good(): pass\n\ndef test_also(): pass\n\ndef test_bad(): assert not 'this is what failed'"
        result = self.run(python, tmp_path, text)
        assert (result.passed, result.failed) == (2, 1)
        assert result.python.startswith(f"{sys.version_info.major}.{sys.version_info.minor}.")
        assert re.fullmatch(r"[\d.]+", result.versions["numpy"])
        assert "this is what failed" in capsys.readouterr().out

    def test_tests_that_cannot_be_run(self, python, tmp_path):
        with pytest.raises(
            ValueError, match=r"(?s)the tests with the oldest didn't run to their end: .*no_such_folder"
        ):
            module.run_tests("oldest", python, ["numpy"], ["no_such_folder"], 0)

    def test_an_environment_that_cannot_be_made(self, tmp_path):
        with pytest.raises(ValueError, match=r"(?s)/false -m venv --clear .* failed: "):
            module.environment(tmp_path / "end", "/bin/false", oldest=True)


class TestPage:
    def rows(self):
        lines = re.findall(r"^\| (?:releases|oldest|newest) \|.*$", module.PAGE.read_text(), re.M)
        head, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
        return [dict(zip(head, row, strict=True)) for row in rows]

    def test_the_oldest_releases_are_those_of_the_metadata(self):
        oldest, newest = self.rows()
        for name, bound in module.lower_bounds().items():
            have = [int(number) for number in oldest[name].split(".")]
            want = [int(number) for number in bound.split(".")]
            assert have == want + [0] * (len(have) - len(want)), name
            assert [int(number) for number in newest[name].split(".")] >= have
        ends = module.python_ends()
        assert {row["releases"]: ".".join(row["Python"].split(".")[:2]) for row in (oldest, newest)} == ends

    def test_all_tests_passed(self):
        rows = self.rows()
        assert len(rows) == 2
        for row in rows:
            assert int(row["passed"]) > 100
            assert row["failed"] == "0"

    def test_the_gate_runs_at_both_ends(self):
        gate = (ROOT / ".ci" / "run").read_text()
        assert "from experiments.compatibility import constraints" in gate
        prepared = re.findall(r"^prepare (\S+) (\S+) ", gate, re.M)
        assert {end: version for version, end in prepared} == module.python_ends()
