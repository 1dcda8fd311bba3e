import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_it_stays_short():
    assert len(re.findall(r"[^\s|`]+", re.sub(r"```.*?```", "", README, flags=re.S))) < 850


def test_it_has_two_commands_and_the_gate_runs_the_second():
    commands = re.findall(r"^```sh\n(.*?)\n```$", README, re.M | re.S)
    assert commands == [
        "pip install -e '.[experiments]' && python -m experiments quickstart",
        "pip install -e '.[test]' && python -m pytest -n auto",
    ]
    assert "python -m pytest -n auto" in (ROOT / ".ci" / "run").read_text()


def test_the_extras_of_its_commands_exist():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(re.findall(r"'\.\[(\w+)\]'", README)) <= set(extras)
