"""The commands `list` and `run`: what is chosen, in which order, and in processes of their own."""

import concurrent.futures
import dataclasses
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import absl.logging
import jax
import pytest
from rich.console import Console

from experiments import __main__ as command_line
from experiments import run as module
from experiments import runs
from experiments.fits import FITS, Fits
from experiments.imagenet.train import Outcome
from experiments.networks import NETWORKS
from experiments.run import OnImageNet, check_workdir, choose, list_experiments, run
from experiments.runner import StoppedError
from experiments.table import EXPERIMENTS

from . import tiny

ROOT = Path(__file__).parents[2]


def chosen(*names, arms=(), seeds=(), steps=None):
    """The names of the arms and the seeds of each experiment that is chosen."""
    return {e.name: ([arm.name for arm in a], s) for e, a, s in choose(names, arms, seeds, steps)}


# What is chosen.


def test_all_is_everything():
    found = chosen("all")
    assert list(found) == list(EXPERIMENTS)
    for name, (arms, seeds) in found.items():
        assert arms == [arm.name for arm in EXPERIMENTS[name].arms]
        assert seeds == EXPERIMENTS[name].seeds
    assert chosen("mnist_2", "all") == found


def test_names_are_chosen_once_in_their_order():
    assert list(chosen("movement", "mnist_2", "movement")) == ["movement", "mnist_2"]


def test_some_arms_and_seeds():
    assert chosen("mnist_2", arms=["introspection"], seeds=[1, 3]) == {"mnist_2": (["introspection"], (1, 3))}
    # Each experiment has those that it has.
    assert chosen("predictors", "mnist_4", arms=["l1", "plain"], seeds=[0, 2]) == {
        "predictors": (["l1"], (0,)),
        "mnist_4": (["plain"], (0, 2)),
    }


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        ([], {}, "name at least one experiment; known are predictors, mnist_3-sgd, .*, movement-cifar10, and all"),
        (
            ["mnist_5", "mnist_2", "x"],
            {},
            "unknown experiments mnist_5, x; known are predictors, .*, movement-cifar10, and all",
        ),
        (
            ["mnist_4"],
            {"arms": ["plain", "simple"]},
            "unknown arms simple; mnist_4 have plain, introspection, introspection-equivariant, two",
        ),
        (
            ["mnist_4", "predictors"],
            {"arms": ["oracle"]},
            "unknown arms oracle; mnist_4, predictors have plain, .*, l1, ",
        ),
        (["mnist_4"], {"seeds": [0, 3, 7]}, r"unknown seeds \[3, 7\]; mnist_4 have \[0, 1, 2\]"),
        (
            ["mnist_1-sgd"],
            {"arms": ["quadratic-1.25"], "seeds": [1]},
            r"there is no run of seeds \[1\]: quadratic-1.25 of mnist_1-sgd has \[0\]",
        ),
        (["mnist_4"], {"steps": 4000}, "steps must be more than the last jump step of mnist_4, 4000; got 4000"),
        (["mnist_4"], {"steps": 0, "arms": ["plain"]}, "steps must be more than .*, 0; got 0"),
        (["mnist_4"], {"steps": -1, "arms": ["plain"]}, "steps must be more than .*, 0; got -1"),
        (["mnist_4", "predictors"], {"steps": 5000}, "predictors cannot be run with other steps"),
        (["movement"], {"steps": 20_000}, "movement cannot be run with other steps"),
    ],
)
def test_what_cannot_be_chosen(names, options, message):
    with pytest.raises(ValueError, match=message):
        choose(names, **({"arms": (), "seeds": (), "steps": None} | options))


def test_other_steps_have_no_place_among_the_results(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"with other steps it is another experiment, .* give --workdir"):
        run(("mnist_4",), steps=5000)
    assert list(tmp_path.iterdir()) == []


def steps_of(*names, **options):
    ((experiment, arms, _),) = choose(names, options.get("arms", ()), (), options["steps"])
    assert set(arms) <= set(experiment.arms)
    assert experiment.name == names[0]
    return {arm.name: arm.steps for arm in arms}, {arm.name for arm in experiment.arms}


MNIST_4 = ("plain", "introspection", "introspection-equivariant", "two-point-1.3")


def test_fewer_steps():
    assert steps_of("mnist_4", steps=4001)[0] == dict.fromkeys(MNIST_4, 4001)
    assert steps_of("mnist_4", steps=100_000)[0] == dict.fromkeys(MNIST_4, 7000)
    # Arms that were not asked for and would jump too late are no longer of the experiment.
    assert steps_of("mnist_4", arms=("plain",), steps=100) == ({"plain": 100}, {"plain"})
    arms, others = steps_of("mnist_3-schedules", arms=("1000-by-500-x2",), steps=1501)
    assert arms == {"1000-by-500-x2": 1501}
    assert others == {"plain", "1000-by-500-x1", "1000-by-500-x2"}
    with pytest.raises(ValueError, match="last jump step of mnist_3-schedules, 1500; got 1500"):
        steps_of("mnist_3-schedules", arms=("1000-by-500-x2",), steps=1500)


def test_arms_without_jumps_are_trained_each_however_few_steps_they_have():
    ((experiment, arms, seeds),) = choose(["mnist_3-budgets"], ["plain-1875-x4", "plain-3750-x4"], [0], 1000)
    assert [unit.trunk for unit in module.units_of(experiment, arms, seeds)] == list(arms)


def test_units_of_every_kind():
    for name, kinds in (("predictors", 3), ("movement", 6), ("mnist_4", 3)):
        ((experiment, arms, seeds),) = choose([name], (), (), None)
        units = module.units_of(experiment, arms, seeds)
        assert len(units) == kinds
        assert all(unit.name.startswith(name) for unit in units)
        assert module.units_of(experiment, arms, ()) == []
        assert module.units_of(experiment, (), seeds) == []


# The folder of results.


def test_a_workdir_is_made(tmp_path):
    check_workdir(tmp_path / "new" / "folder")
    assert (tmp_path / "new" / "folder").is_dir()


def test_a_workdir_that_cannot_be_written_to(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)  # to root, everything can be
    with pytest.raises(PermissionError, match=f"workdir {tmp_path} cannot be written to"):
        check_workdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError, match="file"):
        check_workdir(tmp_path / "file")


def test_a_workdir_without_space(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1_950_000_000))
    with pytest.raises(OSError, match=f"workdir {tmp_path} has 1.9 GB of space; 2 GB may be needed"):
        check_workdir(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2_000_000_000))
    check_workdir(tmp_path)


# The list.


@pytest.mark.parametrize("columns", [80, 200])
def test_the_list_names_every_experiment(columns, tmp_path, monkeypatch, capsys):
    for arm, seed in (("plain", 0), ("plain", 2), ("introspection", 1), ("elsewhere", 0)):
        path = runs.path_of(tmp_path, "mnist_4", arm, seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    monkeypatch.setenv("COLUMNS", str(columns))
    list_experiments(tmp_path)
    rows = {words[0]: words for line in capsys.readouterr().out.splitlines() if (words := line.split())}
    assert {*EXPERIMENTS, "alexnet_1", "inception_v1"} <= set(rows)
    assert rows["mnist_4"][-6:] == ["4", "3", "20", "3", "of", "12"]
    assert rows["mnist_1-sgd"][-3:] == ["0", "of", "17"]
    assert rows["predictors"][-3:] == ["0", "of", str(len(FITS))]
    assert rows["movement"][-3:] == ["0", "of", str(3 * len(EXPERIMENTS["movement"].recorded))]


# The command.


@dataclasses.dataclass(frozen=True)
class Fake:
    """A unit that leaves a file, and does something else before."""

    name: str
    count: int = 2
    does: str = ""

    def path(self, context):
        return context.workdir / f"{self.name}.json"

    def steps(self, context):
        return 0 if self.path(context).exists() else self.count

    def check(self, context, versions=True):
        if self.does == "refuses":
            raise ValueError(f"{self.name} has other settings")

    def run(self, context):
        if self.does == "fails":
            raise ValueError(f"{self.name} has failed")
        if self.does == "waits":  # for another one, which must be in another process
            (context.workdir / f"{self.name}.started").touch()
            while len(list(context.workdir.glob("*.started"))) < 2:
                time.sleep(0.01)
        for _ in range(self.count):
            context.advance(1)
        if self.does == "stops":
            raise StoppedError
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
        found = {"process": os.getpid(), "cores": cores, "images": context.images("mnist").name}
        self.path(context).write_text(json.dumps(found))


TINY = tiny.training(tiny.arm("plain", steps=8, seeds=(0, 1)), tiny.arm("jumping", "average", (4,), steps=8))


@pytest.fixture
def small(monkeypatch):
    """Experiments with tiny and fake units, all run in this process; what is said and done is noted."""
    monkeypatch.setattr(module, "EXPERIMENTS", {"tiny": TINY, "predictors": Fits()})
    monkeypatch.setattr(module, "load", lambda name, data_dir: tiny.digits())
    monkeypatch.setitem(NETWORKS, "tiny", tiny.SMALL_MLP)
    noted = SimpleNamespace(fits=[Fake("fits-small", 1), Fake("fits-large", 5)], trainings=None, order=[], options=None)
    units_of = module.units_of

    def fake_units(experiment, arms, seeds):
        if isinstance(experiment, Fits):
            return noted.fits
        return units_of(experiment, arms, seeds) if noted.trainings is None else noted.trainings

    def run_all(units, context, processes, data_dir, console):
        noted.options = (context.deadline, processes, data_dir)
        for unit in units:
            noted.order.append(unit.name)
            try:
                context.check_time()
                unit.run(context)
            except StoppedError:
                return True
        return False

    monkeypatch.setattr(module, "units_of", fake_units)
    monkeypatch.setattr(module, "_run_all", run_all)
    return noted


def test_predictors_come_first_and_then_the_longest(small, tmp_path, capsys):
    small.trainings = [Fake("short", 1), Fake("long", 3), Fake("middle", 2)]
    run(("tiny", "predictors"), workdir=tmp_path)
    assert small.order == ["fits-large", "fits-small", "long", "middle", "short"]
    said = capsys.readouterr().out
    assert "mnist: the digits of scikit-learn" in said
    assert re.search(rf"Complete\. Results are in\s+{tmp_path}", said)
    small.order.clear()
    run(("tiny", "predictors"), workdir=tmp_path)
    assert small.order == []
    (tmp_path / "middle.json").unlink()
    run(("tiny", "predictors"), workdir=tmp_path)
    assert small.order == ["middle"]


def test_when_the_time_is_up_during_the_predictors_nothing_follows(small, tmp_path, capsys):
    """Not even a look at results for which there are no predictors yet."""
    small.fits, small.trainings = [Fake("fits", does="stops")], [Fake("refusing", does="refuses")]
    run(("tiny", "predictors"), workdir=tmp_path, minutes=1)
    assert small.order == ["fits"]
    assert "Stopped: the same command goes on. Results are in" in " ".join(capsys.readouterr().out.split())
    assert small.options[0] == pytest.approx(time.time() + 60, abs=30)


def test_other_settings_are_refused_before_anything_is_trained(small, tmp_path):
    small.trainings = [Fake("first"), Fake("refusing", does="refuses")]
    with pytest.raises(ValueError, match="refusing has other settings"):
        run(("tiny",), workdir=tmp_path)
    assert small.order == []


def test_a_whole_experiment(small, tmp_path, monkeypatch, capsys):
    run(("tiny",), workdir=tmp_path, seeds=(0,), processes=3, data_dir=tmp_path)
    assert small.options == (None, 3, tmp_path)
    assert set(tiny.files(tmp_path)) == {"tiny/plain/seed-0", "tiny/jumping/seed-0"}
    run(("tiny",), workdir=tmp_path)
    assert set(tiny.files(tmp_path)) == {"tiny/plain/seed-0", "tiny/jumping/seed-0", "tiny/plain/seed-1"}
    assert small.order == ["tiny, plain, seed 0", "tiny, plain, seed 1"]
    monkeypatch.setenv("COLUMNS", "200")
    list_experiments(tmp_path)
    assert re.search(r"tiny .* 3 of 3", capsys.readouterr().out)
    # With other steps it is another experiment.
    with pytest.raises(ValueError, match=r"other settings: arm\.steps was 8 and is 6\. Use another workdir"):
        run(("tiny",), workdir=tmp_path, steps=6)
    run(("tiny",), workdir=tmp_path / "other", arms=("plain",), seeds=(1,), steps=2)
    assert [line.get("step") for line in tiny.files(tmp_path / "other")["tiny/plain/seed-1"][1:]] == [0, 2, None]


def test_what_is_complete_may_be_of_other_versions_unless_something_is_added_to_it(small, tmp_path, monkeypatch):
    run(("tiny",), workdir=tmp_path, seeds=(0,))
    monkeypatch.setattr(runs, "versions", lambda: {"jax": "0.1"})
    small.order.clear()
    run(("tiny",), workdir=tmp_path, seeds=(0,))
    with pytest.raises(ValueError, match=r"seed-0.* other settings: .*versions\.jax was .* and is '0\.1'"):
        run(("tiny",), workdir=tmp_path)
    assert small.order == []


def test_two_at_once_are_refused(small, tmp_path):
    with (
        runs.locked(tmp_path / ".working"),
        pytest.raises(BlockingIOError, match=f"another run works on {tmp_path}/.working"),
    ):
        run(("predictors",), workdir=tmp_path)
    assert small.order == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "error: name at least one experiment; known are predictors, "),
        (("mnist_5",), "error: unknown experiments mnist_5; known are predictors, "),
        (("mnist_4", "--arms", "oracle"), "error: unknown arms oracle; mnist_4 have plain, "),
        (("mnist_4", "--seeds", "9"), "error: unknown seeds [9]; mnist_4 have [0, 1, 2]"),
        (
            ("mnist_4", "--steps", "4000"),
            "error: steps must be more than the last jump step of mnist_4, 4000; got 4000",
        ),
        (("mnist_4", "--processes", "0"), "error: processes must be at least 1; got 0"),
        (("mnist_4", "--processes", "-2"), "error: processes must be at least 1; got -2"),
        (("mnist_4", "--minutes", "0"), "error: minutes must be more than 0; got 0.0"),
        (("mnist_4", "--minutes", "-1"), "error: minutes must be more than 0; got -1.0"),
        (("mnist_4", "--minutes", "nan"), "error: minutes must be more than 0; got nan"),
        (("alexnet_1",), "error: alexnet_1 needs --data, the folder of ImageNet"),
        (("alexnet_1", "--data", "none"), "error: data is not an existing folder: none"),
        (
            ("alexnet_1", "mnist_2", "--data", "."),
            "error: mnist_2 cannot be run with ImageNet; with it go alexnet_1, inception_v1, alone",
        ),
        (
            ("mnist_2", "--fsdp"),
            "error: mnist_2 cannot be run with ImageNet; with it go alexnet_1, inception_v1, alone",
        ),
    ],
)
def test_bad_input_ends_with_a_message(monkeypatch, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["experiments", "run", *arguments])
    monkeypatch.setattr(absl.logging, "set_verbosity", lambda level: None)  # it would outlive the test
    with pytest.raises(SystemExit) as exited:
        command_line.main()
    assert exited.value.code.startswith(message)
    assert not list(tmp_path.iterdir())


# ImageNet.


@pytest.fixture
def trained(monkeypatch):
    """What was trained on ImageNet: the options of each run, with the folders."""
    calls = []

    def train(options, data, workdir):
        calls.append((options, data, workdir))
        return Outcome.STOPPED if options.seed == 2 else Outcome.COMPLETE

    monkeypatch.setattr(module, "train", train)
    return calls


def arms_and_seeds(trained):
    return [(options.record.name, options.arm.name, options.seed) for options, *_ in trained]


def test_imagenet(trained, tmp_path):
    """One run after the other, each with what was asked for."""
    asked = OnImageNet(tmp_path, fsdp=True, bfloat16=True, batch_size=256, image_size=70, workers=3)
    run(("alexnet_1", "inception_v1"), arms=("plain",), seeds=(0, 1), steps=9, workdir=tmp_path / "w", imagenet=asked)
    names = ("alexnet_1", "inception_v1")
    assert arms_and_seeds(trained) == [(name, "plain", seed) for name in names for seed in (0, 1)]
    for options, data, workdir in trained:
        assert (data, workdir) == (tmp_path, tmp_path / "w")
        record = options.record
        assert (record.steps, record.batch_size, record.image_size) == (9, 256, 70)
        assert (options.fsdp, options.bfloat16, options.workers) == (True, True, 3)
        assert (options.deadline, options.checkpoint_minutes) == (None, 10.0)


def test_imagenet_has_all_arms_unless_some_are_named(trained, tmp_path):
    run(("inception_v1",), imagenet=OnImageNet(tmp_path))
    assert [arm for _, arm, _ in arms_and_seeds(trained)] == ["plain", "introspection-200k", "introspection-300k"]


def test_imagenet_with_other_jump_steps(trained, tmp_path):
    """Of arms that would jump at the same steps only one."""
    run(("alexnet_1", "inception_v1"), imagenet=OnImageNet(tmp_path, jump_steps=(10, 20)))
    assert arms_and_seeds(trained) == [("alexnet_1", "introspection", 0), ("inception_v1", "introspection-200k", 0)]
    assert all(options.arm.jump_steps == (10, 20) for options, *_ in trained)


def test_imagenet_stops_when_one_run_does(trained, tmp_path):
    with pytest.raises(SystemExit) as exited:
        run(("alexnet_1",), arms=("plain",), seeds=(1, 2, 3), imagenet=OnImageNet(tmp_path))
    assert exited.value.code == 75
    assert [seed for *_, seed in arms_and_seeds(trained)] == [1, 2]


def test_imagenet_has_one_deadline_for_all_runs(trained, tmp_path):
    before = time.monotonic()
    run(("alexnet_1", "inception_v1"), minutes=5.0, imagenet=OnImageNet(tmp_path))
    assert [options.deadline for options, *_ in trained] == pytest.approx([before + 300] * 5, abs=30)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"arms": ("plain", "fast")}, "alexnet_1 has no arm 'fast'; it has plain, introspection"),
        ({"seeds": (0, -1)}, "seed must be an integer from 0 to 4294967295; got -1"),
        (
            {"arms": ("introspection", "plain"), "imagenet": {"jump_steps": (10, 20)}},
            r"the arm plain has no forecaster that could jump at \(10, 20\)",
        ),
        ({"processes": 2}, "processes is not for ImageNet, which trains on all devices, and whose images --data names"),
        ({"data_dir": Path()}, "data_dir is not for ImageNet"),
    ],
)
def test_what_cannot_be_run_on_imagenet_is_refused_before_anything_is_trained(trained, tmp_path, asked, message):
    imagenet = OnImageNet(tmp_path, **asked.pop("imagenet", {}))
    with pytest.raises(ValueError, match=message):
        run(("alexnet_1",), workdir=tmp_path, imagenet=imagenet, **asked)
    assert trained == []


# Processes of their own.


def begin_with_digits(*arguments):
    """What a worker begins with, but on scikit-learn's digits."""
    module.load = lambda name, data_dir: tiny.digits()
    module._begin_worker(*arguments)


@pytest.fixture
def console(monkeypatch):
    """Workers have the digits."""
    monkeypatch.setattr(module, "_begin_worker", begin_with_digits)
    return Console(file=io.StringIO(), width=120)


def test_units_run_in_processes_each_on_a_core_of_its_own(tmp_path, console):
    units = [Fake("a", does="waits"), Fake("b", does="waits"), Fake("c"), Fake("stopping", does="stops"), Fake("d")]
    assert module._run_all(units, tiny.context(tmp_path), 2, None, console)
    found = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    assert set(found) == {"a", "b", "c", "d"}  # the others go on when the time is up for one
    processes = {result["process"] for result in found.values()}
    assert len(processes) == 2
    assert os.getpid() not in processes
    assert {result["images"] for result in found.values()} == {"digits"}
    if hasattr(os, "sched_getaffinity"):
        available = sorted(os.sched_getaffinity(0))
        expected = {(available[0],), (available[1 % len(available)],)}
        assert {tuple(result["cores"]) for result in found.values()} == expected
    assert "all" in console.file.getvalue()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cores cannot be chosen here")
@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_all_cores_feed_an_accelerator(monkeypatch, backend):
    everywhere = os.sched_getaffinity(0)
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    try:
        module._pin(min(everywhere))
        # Threads begin on the cores of the thread that starts them.
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            cores = pool.submit(os.sched_getaffinity, 0).result()
    finally:
        os.sched_setaffinity(0, everywhere)
    assert cores == ({min(everywhere)} if backend == "cpu" else everywhere)


def test_what_happens_in_a_process_is_shown(tmp_path, console):
    late = dataclasses.replace(tiny.context(tmp_path), deadline=time.time() + 1000)
    with pytest.raises(ValueError, match="failing has failed"):
        module._run_all([Fake("failing", does="fails")], late, None, None, console)


def test_work_that_is_over_before_it_begins(tmp_path, monkeypatch):
    """As it is done in a process, but in this one."""
    told = []
    monkeypatch.setattr(module, "_news", SimpleNamespace(put=told.append), raising=False)
    for deadline, stopped in ((time.time() - 1, True), (time.time() + 1000, False), (None, False)):
        monkeypatch.setattr(module, "_context", tiny.context(tmp_path, deadline=deadline), raising=False)
        unit = Fake(f"until-{deadline}")
        assert module._work(7, unit) == stopped
        assert unit.path(module._context).exists() != stopped
    assert sum(steps for _, steps in told) == 4
    assert {number for number, _ in told} == {7}


WORKER = """
import threading
import time
from experiments.run import _die_with_parent
threading.Thread(target=_die_with_parent, daemon=True).start()
print("working", flush=True)
time.sleep(60)
"""
PARENT = f"""
import multiprocessing
worker = multiprocessing.get_context("spawn").Process(target=exec, args=({WORKER!r},))
worker.start()
worker.join()
"""


def test_no_worker_outlives_its_parent():
    with subprocess.Popen([sys.executable, "-c", PARENT], cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout.readline() == "working\n"
        parent.kill()
        began = time.monotonic()
        assert parent.stdout.read() == ""  # which takes until nobody is left who could write
        assert time.monotonic() - began < 30
    assert parent.returncode == -signal.SIGKILL
