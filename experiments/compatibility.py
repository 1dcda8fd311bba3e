"""The command `compatibility`: the tests with the oldest and with the newest releases that the metadata allows.

Nothing but the standard library is imported, so that the gate can ask for the constraints before anything is installed.
"""

import json
import os
import re
import shutil
import subprocess
import tempfile
import tomllib
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

ROOT = Path(__file__).parents[1]
PYPROJECT = ROOT / "pyproject.toml"
PAGE = ROOT / "docs" / "compatibility.md"
End = Literal["oldest", "newest"]


class Result(NamedTuple):
    """What one end gave: the versions of Python and of each dependency, and how many tests passed and failed."""

    end: str
    python: str
    versions: dict[str, str]
    passed: int
    failed: int


def compatibility(
    ends: tuple[End, ...] = ("oldest", "newest"),
    tests: tuple[str, ...] = ("tests/optax_introspect",),
    workers: int = 2,
    workdir: Path | None = None,
    page: Path = PAGE,
) -> None:
    """Runs tests in new environments with the oldest and the newest releases, and writes the versions into the docs.

    Args:
      ends: which environments; the rows of others stay as they are.
      tests: what to give to pytest; `tests` is the whole suite.
      workers: processes that run them.
      workdir: where the environments are made, and kept; a temporary folder if None.
      page: the page whose table is written.
    """
    bounds = lower_bounds()
    interpreters = {end: interpreter(version) for end, version in python_ends().items() if end in ends}
    check_page(page)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) if workdir is None else workdir
        results = []
        for end, python in interpreters.items():
            print(f"{end}: making an environment of {python}")
            made = environment(folder / end, python, oldest=end == "oldest")
            print(f"{end}: running {' '.join(tests)}")
            results.append(run_tests(end, made, list(bounds), tests, workers))
    write_table(page, results)
    print("\n".join(table(results)))
    if failed := {result.end: result.failed for result in results if result.failed}:
        raise ValueError(f"tests failed: {', '.join(f'{count} with the {end}' for end, count in failed.items())}")


def metadata() -> dict[str, Any]:
    """Returns what the project says of itself."""
    project: dict[str, Any] = tomllib.loads(PYPROJECT.read_text())["project"]
    return project


def lower_bounds() -> dict[str, str]:
    """Returns the oldest release of each dependency that the metadata allows."""
    bounds = {}
    for requirement in metadata()["dependencies"]:
        match = re.fullmatch(r"([\w.-]+)\s*>=\s*([\w.]+)(?:\s*,\s*[<!]=?\s*[\w.]+)*", requirement)
        if not match:
            raise ValueError(f"a dependency must say which release is the oldest, as in jax>=0.10; got {requirement!r}")
        bounds[match[1]] = match[2]
    return bounds


def python_ends() -> dict[str, str]:
    """Returns the oldest and the newest Python that the metadata allows."""
    allowed = metadata()["requires-python"]
    match = re.fullmatch(r">=\s*3\.(\d+)\s*,\s*<\s*3\.(\d+)", allowed)
    if not match:
        raise ValueError(f"requires-python must have two ends, as in >=3.11,<3.14; got {allowed!r}")
    return {"oldest": f"3.{match[1]}", "newest": f"3.{int(match[2]) - 1}"}


def constraints() -> str:
    """Returns constraints for pip that allow only the oldest releases of the dependencies."""
    return "".join(f"{name}=={version}\n" for name, version in lower_bounds().items())


def interpreter(version: str) -> str:
    """Returns the command of a Python, on the path or among pyenv's."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    candidates = [f"python{version}", *sorted(pyenv.glob(f"versions/{version}.*/bin/python"))]
    for candidate in map(str, candidates):
        # A shim of pyenv may be there for a Python that it was told not to use.
        if shutil.which(candidate) and not subprocess.run([candidate, "--version"], capture_output=True).returncode:
            return candidate
    raise FileNotFoundError(f"Python {version} was not found, neither as python{version} nor in {pyenv / 'versions'}")


def environment(folder: Path, python: str, *, oldest: bool) -> Path:
    """Makes a new environment with the project and its test extra.

    Returns:
      The command of its Python.
    """
    _run([python, "-m", "venv", "--clear", str(folder)])
    made = folder / "bin" / "python"
    options: list[str] = []
    if oldest:
        file = folder / "constraints.txt"
        file.write_text(constraints())
        options = ["--constraint", str(file)]
    _run([str(made), "-m", "pip", "install", "--quiet", *options, "--editable", f"{ROOT}[test]"])
    return made


def run_tests(end: str, python: Path, names: Sequence[str], tests: Sequence[str], workers: int) -> Result:
    """Runs tests in an environment."""
    listed = json.loads(_run([str(python), "-m", "pip", "list", "--format", "json"]))
    versions = {package["name"]: package["version"] for package in listed}
    report = python.parents[1] / "report.xml"
    command = ["-m", "pytest", *tests, "-q", "-p", "no:cacheprovider", "-n", str(workers), f"--junitxml={report}"]
    ended = subprocess.run([str(python), *command], cwd=ROOT, capture_output=True, text=True)
    if ended.returncode not in (0, 1):
        raise ValueError(f"the tests with the {end} didn't run to their end: {_last_lines(ended)}")
    if ended.returncode:
        print(_last_lines(ended))
    suites = ET.parse(report).getroot().iter("testsuite")
    counts = [{key: int(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped")} for suite in suites]
    failed = sum(count["failures"] + count["errors"] for count in counts)
    passed = sum(count["tests"] - count["skipped"] for count in counts) - failed
    version = _run([str(python), "-c", "import platform; print(platform.python_version())"]).strip()
    return Result(end, version, {name: versions[name] for name in names}, passed, failed)


def table(results: Sequence[Result]) -> list[str]:
    """Returns the lines of the table."""
    names = list(lower_bounds())
    head = ["releases", "Python", *names, "passed", "failed"]
    rows = [[r.end, r.python, *(r.versions[name] for name in names), str(r.passed), str(r.failed)] for r in results]
    lines = [head, ["---"] * (len(head) - 2) + ["---:"] * 2, *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def check_page(page: Path) -> None:
    """Raises an error if a page has no table to be written."""
    if not page.is_file():
        raise FileNotFoundError(f"there is no page {page} to write the table to")
    if not re.search(r"^\| releases \|", page.read_text(), re.M):
        raise ValueError(f"{page} has no table that begins with | releases |")


def write_table(page: Path, results: Sequence[Result]) -> None:
    """Writes results into the table of a page; rows of other ends stay, unless the dependencies are others."""
    check_page(page)
    text = page.read_text()
    (old,) = re.findall(r"^\| releases \|.*\n(?:\|.*\n)*", text, re.M)
    head, rule, *rows = table(results)
    kept = [row for row in old.splitlines()[2:] if head in old and row.split()[1] not in {r.end for r in results}]
    order = list(python_ends())
    new = "\n".join([head, rule, *sorted([*kept, *rows], key=lambda row: order.index(row.split()[1]))]) + "\n"
    page.write_text(text.replace(old, new))


def _run(command: list[str]) -> str:
    ended = subprocess.run(command, capture_output=True, text=True)
    if ended.returncode:
        raise ValueError(f"{' '.join(command)} failed: {_last_lines(ended)}")
    return ended.stdout


def _last_lines(ended: subprocess.CompletedProcess[str]) -> str:
    return "\n".join((ended.stdout + ended.stderr).strip().splitlines()[-20:])
