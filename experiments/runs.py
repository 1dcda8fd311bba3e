"""The work folder: what is done of each run, and what it needs to go on.

`WORKDIR/EXPERIMENT/ARM/seed-N` holds `settings.json`, what the run depends on; while it is under way, `checkpoints`;
and when it is complete `result.json`, its rows of measurements.
"""

import abc
import contextlib
import dataclasses
import importlib.metadata
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import filelock

from . import results
from ._config import Arm, Experiment, Study
from .networks import NETWORKS
from .optimizers import fingerprint, optimizer
from .training import Row, Task, measure, stops_of, train

Settings = dict[str, Any]
Tables = dict[str, list[Row]]


@dataclasses.dataclass(frozen=True)
class Context:
    """Settings shared by all runs of one command.

    Attributes:
      workdir: the work folder.
      data: from the key of a data set to its images, or its text.
      deadline: time of `time.time` at which to stop; None is never.
      advance: called with the number of steps that were made.
    """

    workdir: Path
    data: Callable[[str], Any]
    deadline: float | None = None
    advance: Callable[[int], None] = lambda steps: None

    @property
    def predictors(self) -> Path:
        """Folder of the fitted predictors."""
        return self.workdir / "predictors" / "fitted"


@dataclasses.dataclass(frozen=True)
class Run(abc.ABC):
    """One arm and one seed of an experiment; a process does one at a time.

    Attributes:
      experiment: the experiment.
      arm: one of its arms.
      seed: the seed.
    """

    experiment: Study
    arm: Any
    seed: int

    @property
    def name(self) -> str:
        """The name in progress bars."""
        return f"{self.experiment.name}, {self.arm.name}, seed {self.seed}"

    @property
    def steps(self) -> int:
        """Number of steps to be made."""
        return int(self.arm.steps)

    def arm_settings(self, context: Context) -> Settings:
        """Returns the settings of the arm, for JSON."""
        return dataclasses.asdict(self.arm)

    @abc.abstractmethod
    def work(self, context: Context, folder: Path) -> Tables:
        """Does the work, or goes on with it, and returns the rows of each table; that of the experiment is `""`."""

    def folder(self, context: Context) -> Path:
        """Returns the folder of the run."""
        return context.workdir / self.experiment.name / str(self.arm.name) / f"seed-{self.seed}"

    def is_complete(self, context: Context) -> bool:
        """Returns whether the run is complete."""
        return (self.folder(context) / "result.json").exists()

    def about(self, context: Context) -> Settings:
        """Returns what results depend on: settings, versions, and the kind of images."""
        place = results.environment(context.data(self.experiment.data).kind)
        versions = {"optax-introspect": importlib.metadata.version("optax-introspect"), **place["versions"]}
        settings = self.experiment.settings() | {"arm": self.arm_settings(context), "seed": self.seed}
        return {"settings": settings, "images": place["images"], "versions": versions}

    def check(self, context: Context) -> None:
        """Raises a ValueError if the folder holds a run of other settings, or a part of one of other versions."""
        path = self.folder(context) / "settings.json"
        if path.exists():
            found, expected = read_json(path), json.loads(json.dumps(self.about(context)))
            if self.is_complete(context):
                # Only a change of ours makes other results; what else differs is written down with them.
                for about in (found, expected):
                    about["versions"] = about["versions"]["optax-introspect"]
            if differ := _differences(found, expected):
                raise ValueError(f"{path} is of another run: {'; '.join(differ)}. Give another --workdir, or remove it")

    def complete(self, context: Context) -> None:
        """Does what is not done yet.

        Raises:
          StoppedError: it is to be continued later.
          BlockingIOError: another process works on it.
          ValueError: the folder is of another run.
        """
        folder = self.folder(context)
        # What a killed command started may end some moments after it.
        with locked(folder, "another process works on", seconds=10):
            self.check(context)
            if not self.is_complete(context):
                about = self.about(context)
                write_json(folder / "settings.json", about)
                tables = self.work(context, folder)
                place = results.environment(about["images"])
                write_json(folder / "result.json", about | {"environment": place, "tables": tables})
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)


@dataclasses.dataclass(frozen=True)
class TrainingRun(Run):
    """One arm and seed of a comparison of trainings."""

    experiment: Experiment
    arm: Arm

    def arm_settings(self, context: Context) -> Settings:
        """Returns the settings of the arm, with what tells its forecaster from others."""
        return self.arm.settings() | {"fingerprint": fingerprint(self.arm.forecaster, context.predictors)}

    def work(self, context: Context, folder: Path) -> Tables:
        """Trains, and returns the evaluations, up to the first that is not finite."""
        experiment, arm = self.experiment, self.arm
        images = context.data(experiment.data)
        task = Task(NETWORKS[experiment.network], images, experiment.batch_size, self.seed, experiment.augmentation)
        how = optimizer(experiment, arm, context.predictors)
        stops, around = stops_of(experiment, arm)
        for state in train(
            task, how, stops, folder / "checkpoints", advance=context.advance, deadline=context.deadline
        ):
            if not measure(task, how, state, experiment.train_examples, around):
                context.advance(arm.steps - state.step)
                break
        return {"": state.rows}


def append(runs: list[Run], context: Context, folder: Path) -> None:
    """Adds complete runs of one experiment to its results, and their further tables to those.

    Raises:
      ValueError: the results that are there are of another version or of other settings.
    """
    name, settings = runs[0].experiment.name, runs[0].experiment.settings()
    arms = {run.arm.name: run.arm_settings(context) for run in runs}
    tables: dict[str, list[tuple[Mapping[str, Any], list[Row]]]] = {}
    for run in runs:
        result = read_json(run.folder(context) / "result.json")
        for table, rows in result["tables"].items():
            of_run = [{"arm": run.arm.name, "seed": run.seed, **row} for row in rows]
            tables.setdefault(table, []).append((result["environment"], of_run))
    for table, parts in tables.items():
        places: list[Mapping[str, Any]] = []
        for place, _ in parts:
            if place not in places:
                places.append(place)
        for place in places:
            rows = [row for other, rows in parts if other == place for row in rows]
            results.append(
                folder, f"{name}-{table}" if table else name, rows, settings=settings, arms=arms, environment=place
            )


@contextlib.contextmanager
def locked(folder: Path, message: str, seconds: float = 0.0) -> Iterator[None]:
    """Keeps other processes from a folder; the lock goes with the process, however it ends.

    Raises:
      BlockingIOError: another process has it for so many seconds.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=seconds)
    except filelock.Timeout as error:
        raise BlockingIOError(f"{message} {folder}") from error
    try:
        yield
    finally:
        lock.release()


def read_json(path: Path) -> Any:
    """Returns the contents of a JSON file.

    Raises:
      ValueError: it is damaged.
    """
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def write_json(path: Path, contents: Any) -> None:
    """Writes a JSON file that is whole or not there."""
    results.replace(path, json.dumps(contents, allow_nan=False).encode())


def _differences(found: Any, expected: Any, name: str = "") -> list[str]:
    """Returns in words what differs; of settings within settings only those that do."""
    if isinstance(found, dict) and isinstance(expected, dict):
        keys = sorted(found.keys() | expected.keys())
        return [text for key in keys for text in _differences(found.get(key), expected.get(key), f"{name}.{key}")]
    return [] if found == expected else [f"{name[1:]} was {found!r:.100} and is {expected!r:.100}"]
