"""Reads every complete run, and refuses what does not belong into one report."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from .. import fits, runs
from ..data import DATA
from ..imagenet.records import RECORDS as IMAGENET
from ..movement import Recorded
from ..records import Arm, Training
from ..runs import Run
from ..table import EXPERIMENTS, Experiment
from .statistics import Comparison, Curve, Pair

Key = tuple[str, str, int]  # experiment, arm and seed
_CLOCKS = ("seconds", "cpu_seconds")


@dataclasses.dataclass(frozen=True)
class Results:
    """All complete runs.

    Attributes:
      folder: where they are.
      runs: each by its experiment, arm and seed; branches begin with the lines of the run that they branched from.
      orphans: branches that are left out, since the run that they branched from is not there.
    """

    folder: Path
    runs: dict[Key, Run]
    orphans: tuple[Key, ...] = ()

    def of(self, experiment: str, arm: str) -> dict[int, Run]:
        """Returns the runs of an arm, by seed."""
        return {key[2]: run for key, run in self.runs.items() if key[:2] == (experiment, arm)}

    def curves(self, experiment: str, arm: str) -> dict[int, Curve]:
        """Returns the evaluations of the runs of an arm, by seed."""
        return {seed: Curve.of(run) for seed, run in self.of(experiment, arm).items()}

    def progress(self, experiment: str) -> tuple[int, int]:
        """Returns how many runs of an experiment are complete, and how many are foreseen."""
        foreseen = sum(len(_seeds(EXPERIMENTS[experiment], arm)) for arm in EXPERIMENTS[experiment].arms)
        return sum(key[0] == experiment for key in self.runs), foreseen

    def compare(self, experiment: str, name: str, against: str | None = None, until: int | None = None) -> Comparison:
        """Compares an arm with another one of the same seeds.

        Args:
          experiment: the experiment.
          name: the arm.
          against: the other arm; by default the one without jumps and with the same learning rate.
          until: the step up to which they are compared; by default the end of the shorter one.
        """
        record = training(experiment)
        arm = _arm(record, name)
        other = _arm(record, against) if against else _plain(record, arm)
        mine, others = self.curves(experiment, name), self.curves(experiment, other.name)
        ends = min(arm.steps, other.steps) if until is None else until
        pairs = [
            Pair(others[seed].until(ends), mine[seed].until(ends))
            for seed in sorted(mine.keys() & others.keys())
            if mine[seed].finite and others[seed].finite
        ]
        finite = [curve for _, curve in sorted(mine.items()) if curve.finite]
        if until is not None:
            finite = [curve.until(until) for curve in finite]
        return Comparison(arm, ends, len(arm.seeds), finite, len(mine) - len(finite), pairs)


def training(name: str) -> Training:
    """Returns an experiment that trains a network several times."""
    experiment = EXPERIMENTS[name]
    assert isinstance(experiment, Training)
    return experiment


def read(folder: Path) -> Results:
    """Reads all complete runs of a folder, but for those on ImageNet, which have no section in the report.

    Args:
      folder: the `workdir` of `run`.

    Raises:
      FileNotFoundError: there is no such folder.
      ValueError: files that are not whole, or of no experiment, or with other settings than the record of their
        experiment, or of other versions or images than the rest (runs on an accelerator are the rest of each other).
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there are no results in {folder}: it is not a folder")
    found: dict[Key, Run] = {}
    paths: dict[Key, Path] = {}
    for path in sorted(folder.glob("[!.]*/*/seed-*.jsonl")):
        if path.parts[-3] in IMAGENET:
            continue
        run = runs.read(path)
        key = (path.parts[-3], path.parts[-2], int(path.stem.removeprefix("seed-")))
        _check_record(path, key, run.header)
        found[key], paths[key] = run, path
    # What the runs of one report have in common. The machine may differ, and an accelerator come with versions of its
    # own, but not within an experiment, whose arms are compared.
    for packages in sorted({tuple(run.header["versions"]) for run in found.values()}):
        same = [key for key, run in found.items() if tuple(run.header["versions"]) == packages]
        _check_same("versions", [(paths[key], found[key].header["versions"]) for key in same])
    for name in sorted({key[0] for key in found}):
        same = [key for key in found if key[0] == name]
        _check_same("versions", [(paths[key], found[key].header["versions"]) for key in same])
    for data in DATA:
        same = [key for key in found if EXPERIMENTS[key[0]].data == data]
        _check_same("images", [(paths[key], found[key].header.get("images")) for key in same])
    for forecaster in sorted({name for run in found.values() if (name := run.header["arm"].get("forecaster"))}):
        same = [key for key, run in found.items() if run.header["arm"].get("forecaster") == forecaster]
        fingerprints = [(paths[key], found[key].header["forecaster"]) for key in same]
        _check_same(f"weights of the forecaster {forecaster}", fingerprints)
    joined = {key: whole for key, run in found.items() if (whole := _joined(key, run, found))}
    return Results(folder, joined, tuple(sorted(found.keys() - joined.keys())))


def _joined(key: Key, run: Run, found: dict[Key, Run]) -> Run | None:
    """Returns a run with the lines from before its first jump; None if those are not there."""
    branch = run.header.get("branch")
    if branch is None:
        return run
    trunk = found.get((key[0], branch["arm"], key[2]))
    if trunk is None:
        return None
    lines = _on_the_clock_of(trunk.lines, run.lines)
    return run._replace(lines=[*(line for line in trunk.lines if line["step"] <= branch["step"]), *lines])


def _on_the_clock_of(trunk: list[runs.Line], branch: list[runs.Line]) -> list[runs.Line]:
    """Returns the lines of a branch as if it had gone on from the very trunk that is in the results.

    What it began with may be from another time that the trunk was trained, on a busier machine. So its first line,
    one step after the branch, is put where the trunk was at that step; what the first jump takes is lost with that.
    """
    steps = [line["step"] for line in trunk]
    shared = [clock for clock in _CLOCKS if all(clock in line for line in (*trunk, *branch))]
    offsets = {
        clock: float(np.interp(branch[0]["step"], steps, [line[clock] for line in trunk])) - branch[0][clock]
        for clock in shared
        if branch
    }
    others = [{name: value for name, value in line.items() if name not in _CLOCKS} for line in branch]
    return [
        {**rest, **{clock: line[clock] + offset for clock, offset in offsets.items()}}
        for line, rest in zip(branch, others, strict=True)
    ]


def _check_record(path: Path, key: Key, header: runs.Line) -> None:
    name, arm_name, seed = key
    experiment = EXPERIMENTS.get(name)
    arm = next((arm for arm in experiment.arms if arm.name == arm_name), None) if experiment else None
    if experiment is None or arm is None or seed not in _seeds(experiment, arm):
        raise ValueError(f"{path} is a run of no experiment that is known: python -m experiments list names them")
    expected = runs.plain({**_settings(experiment, arm), "seed": seed})
    differ = [field for field, value in expected.items() if header.get(field) != value]
    if differ:
        told = "; ".join(f"{field} is {header.get(field)}, and {expected[field]} in the record" for field in differ)
        raise ValueError(f"{path} was run with other settings than those of {name}: {told}. Run it again elsewhere")


def _settings(experiment: Experiment, arm: Any) -> runs.Line:
    """Returns what must stand in the header of a run."""
    if isinstance(arm, Recorded):
        return {"experiment": experiment.name, **arm.settings()}
    described = dataclasses.asdict(arm)
    if isinstance(experiment, Training):
        branch = {"arm": experiment.trunk_of(arm).name, "step": arm.jump_steps[0]} if arm.jump_steps else None
        return {**experiment.settings(), "arm": described | {"seeds": None}, "branch": branch}
    steps = [fits.STEPS, fits.RECORD_EVERY, fits.NUM_EXAMPLES, fits.FIT_STEPS]
    return {"experiment": experiment.name, "arm": described, "steps": steps}


def _check_same(what: str, found: Iterable[tuple[Path, Any]]) -> None:
    """Raises a ValueError, with a file for each, if there are several values."""
    examples: dict[str, Path] = {}
    for path, value in found:
        examples.setdefault(str(value), path)
    if len(examples) > 1:
        told = "; ".join(f"{value} in {path}" for value, path in examples.items())
        raise ValueError(f"these results are of mixed {what} and don't belong into one report: {told}")


def _seeds(experiment: Experiment, arm: Any) -> tuple[int, ...]:
    return arm.seeds if isinstance(experiment, Training) else experiment.seeds


def _plain(experiment: Training, arm: Arm) -> Arm:
    """Returns the arm with neither jumps nor averaging and the same learning rate."""
    trunk = dataclasses.replace(arm, averaging=None).trunk
    return next(other for other in experiment.arms if other.forecaster is None and other.trunk == trunk)


def _arm(experiment: Training, name: str) -> Arm:
    return next(arm for arm in experiment.arms if arm.name == name)
