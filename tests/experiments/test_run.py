"""The commands `list` and `run`: clear errors, and nothing is lost."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments import __main__ as command_line
from experiments import commands, results, runs
from experiments.commands import choose, execute, list_experiments, run
from experiments.registry import EXPERIMENTS

from . import tiny

ROOT = Path(__file__).parents[2]


def contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock"}


@pytest.fixture
def complete(tmp_path):
    """A work folder with complete runs."""
    tiny.work("dense", tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def few_digits(monkeypatch):
    monkeypatch.setattr(commands, "load", lambda name, data_dir: tiny.digits())


# What is asked for.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"names": ()}, "names must be of quickstart, .*, movement-cifar10, .* or all; got none"),
        ({"names": ("mnist_5", "mnist_2")}, "names must be of .*; got mnist_5, mnist_2"),
        ({"names": ("mnist_2", "alexnet_1")}, "got mnist_2, alexnet_1; alexnet_1 and inception_v1 are run alone"),
        ({"names": ("mnist_4",), "arms": ("plain", "x")}, "arms must be of plain, introspection, .*; got x"),
        ({"names": ("mnist_4",), "seeds": (7,)}, r"seeds must be those of an arm of mnist_4; got \[7\]"),
        (
            {"names": ("mnist_4",), "steps": 4000},
            "steps must be more than the last jump of introspection of mnist_4, 4000",
        ),
        (
            {"names": ("mnist_3-sgd",), "arms": ("nesterov-50",), "steps": 40},
            "steps must be more than the last jump of nesterov-50 of mnist_3-sgd, 49; got 40",
        ),
        ({"names": ("predictors",), "steps": 5}, "steps of predictors can't be changed; got 5"),
        ({"names": ("mnist_4",), "minutes": 0.0}, "minutes must be more than 0; got 0"),
        ({"names": ("mnist_4",), "processes": -1}, "processes must be more than 0; got -1"),
        ({"names": ("mnist_4",), "steps": 5000, "results_dir": Path("r")}, "steps must not be given with results"),
    ],
)
def test_what_cannot_be_run(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        run(**({"workdir": tmp_path / "work"} | options))
    assert not (tmp_path / "work").exists()


def test_choice():
    chosen = choose(["mnist_4", "movement"], (), (), None)
    assert len(chosen) == 4 * 3 + 2 * 3
    (one,) = choose(["mnist_3-sgd"], ["nesterov-20"], [3], 100)
    assert (one.arm.steps, one.arm.jump_steps, one.seed) == (100, range(19, 100, 20), 3)
    (one,) = choose(["mnist_3-sgd"], ["lookahead"], [3], 20_000)
    assert (one.arm.steps, one.arm.jump_steps) == (15_000, range(4, 15_000, 5))
    everything = choose(["all"], (), (), None)
    assert len({run.name for run in everything}) == len(everything) > 1000


def test_errors_are_one_line_and_a_status(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["experiments", "run", "mnist_5"])
    with pytest.raises(SystemExit, match=r"^error: names must be of"):
        command_line.main()


def test_every_row_of_the_paper_is_listed_with_its_state(monkeypatch, capsys, complete):
    monkeypatch.setenv("COLUMNS", "150")
    list_experiments(complete, ROOT / "results")
    listed = capsys.readouterr().out
    for name in EXPERIMENTS:
        assert f" {name} " in listed
    for title in ("N_0 and I", "MNIST_1", "MNIST_2", "MNIST_3", "MNIST_4", "CIFAR_1", "AlexNet_1", "Inception_v1"):
        assert title in listed
    states = {name: commands.state_of(experiment, ROOT / "results") for name, experiment in EXPERIMENTS.items()}
    assert states["cifar_1"] == "in version 0.1"
    assert states["alexnet_1"] == "needs data and hardware"
    assert "not yet" not in states.values()
    assert commands.state_of(EXPERIMENTS["cifar_1"], complete) == "not yet"


# The work folder.


@pytest.mark.slow
def test_two_commands_on_one_folder(complete):
    before = contents(complete)
    with runs.locked(complete, "test"), pytest.raises(BlockingIOError, match=f"another command works on {complete}"):
        execute(tiny.runs_of(tiny.experiment()), complete)
    assert contents(complete) == before


def test_a_folder_of_other_settings(complete):
    before = contents(complete)
    with pytest.raises(
        ValueError, match=r"is of another run: settings.learning_rate was 0.01 and is 0.02. Give another"
    ):
        execute(tiny.runs_of(tiny.experiment(learning_rate=0.02)), complete)
    assert contents(complete) == before


@pytest.mark.parametrize("whole", [True, False])
def test_other_versions_of_packages_count_only_for_a_run_under_way(complete, whole):
    chosen = tiny.runs_of(tiny.experiment())
    folder = chosen[0].folder(tiny.context(complete))
    about = json.loads((folder / "settings.json").read_text())
    about["versions"]["jax"] = "0.0.1"
    (folder / "settings.json").write_text(json.dumps(about))
    if whole:
        assert execute(chosen, complete)
    else:
        (folder / "result.json").unlink()
        with pytest.raises(ValueError, match=r"versions.jax was '0.0.1' and is"):
            execute(chosen, complete)


def test_a_damaged_file(complete):
    path = complete / "tiny-dense" / "plain" / "seed-0" / "settings.json"
    path.write_text(path.read_text()[:20])
    with pytest.raises(ValueError, match=f"{path} is damaged"):
        execute(tiny.runs_of(tiny.experiment()), complete)


def test_results_of_another_version_are_left_alone(complete, tmp_path):
    folder = tmp_path / "results"
    old = [{"arm": "plain", "seed": 0, "step": 0, "test_accuracy": 0.5}]
    results.append(folder, "tiny-dense", old, settings={}, arms={"plain": {}}, environment={}, version="0.1")
    before = contents(folder)
    with pytest.raises(
        ValueError, match=r"results must be of version .*tiny-dense is of 0.1: rename .* tiny-dense-v0.1"
    ):
        execute(tiny.runs_of(tiny.experiment()), complete, folder)
    assert contents(folder) == before


def test_complete_runs_are_added_to_results_once(complete, tmp_path):
    chosen = tiny.runs_of(tiny.experiment())
    for _ in range(2):
        assert execute(chosen, complete, tmp_path / "results")
    found = results.read("tiny-dense", tmp_path / "results")
    assert list(found.info["arms"]) == ["plain", "introspection"]
    assert found.info["arms"]["introspection"]["fingerprint"]
    curve = found.curve("introspection", 0)
    assert curve["step"].tolist() == [0, 4, 8, 10, 11, 12, 16, 20, 21, 24]
    assert curve["jumps_taken"].tolist()[-1] == 2
    assert {"seconds", "train_loss", "calibrated_loss", "temperature"} <= curve.keys()


# The command, in processes.

COMMAND = """
import sys
from experiments import commands, training
from experiments.registry import EXPERIMENTS
import dataclasses
training.CHECKPOINT_SECONDS = 0.0
tiny = dataclasses.replace(EXPERIMENTS["quickstart"], name="tiny", data="digits", every=100, around=(200,), arms=tuple(
    dataclasses.replace(arm, jump_steps=arm.jump_steps and (200, 400), steps=600, seeds=1)
    for arm in EXPERIMENTS["quickstart"].arms[:2]
))
EXPERIMENTS["tiny"] = tiny
from experiments.__main__ import main
main()
"""


def command(workdir, *options):
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, "run", "tiny", "--arms", "sgd-introspection", "--workdir", workdir, *options],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
def test_a_killed_command_goes_on(tmp_path):
    first = command(tmp_path / "work")
    deadline = time.monotonic() + 200
    while not list(tmp_path.glob("work/tiny/*/seed-0/settings.json")):
        assert first.poll() is None, first.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    first.kill()
    # The processes that it started end with it, or else they would hold on to its output.
    first.communicate(timeout=60)
    second = command(tmp_path / "work", "--results", tmp_path / "results", "--minutes", "10")
    output, _ = second.communicate(timeout=300)
    assert second.returncode == 0, output
    assert "Complete: 1 runs" in output
    found = results.read("tiny", tmp_path / "results")
    assert found.curve("sgd-introspection", 0)["step"][-1] == 600
    assert found.curve("sgd-introspection", 0)["jumps_taken"][-1] == 2
