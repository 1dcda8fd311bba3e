"""The checks: what each does, and its section of the page."""

import collections
import random
import statistics
from pathlib import Path

from tests.faults import disks, histories, predictors
from tests.faults.children import Child
from tests.faults.corruptions import Corruption, judge_all, violations_of
from tests.faults.judging import ERROR, RIGHT, SHORTER, Verdict
from tests.faults.killing import kill
from tests.faults.works import WORKS

from .page import Section, made_with, table

# Bytes that a full disk still has, so that it is full in the middle of something.
SPARE = (0, 4096, 16384, 65536)
REASONS = ("No space left on device", "File too large", "Permission denied", "RESOURCE_EXHAUSTED", "OUT_OF_RANGE")
KILLS, DAMAGE, DISKS = (
    "Killed at any moment",
    "Damaged files",
    "Full disks, and folders that may not be written to",
)


def killed(folder: Path, seed: int, kills: int) -> Section:
    """Kills each kind of work many times."""
    rows, violations = [], []
    for key, work in WORKS.items():
        found = kill(work, folder / key, kills, seed)
        parts = [round(100 * part) for part in sorted(found.parts)]
        share = f"{statistics.median(parts):.0f} ({parts[0]} to {parts[-1]})"
        rows.append(
            [found.name, len(parts), found.at_changes, found.at_times, found.again, share, len(found.violations)]
        )
        violations += [f"{found.name}: {violation}" for violation in found.violations]
        print(rows[-1], flush=True)
    head = [
        "killed",
        "kills",
        "at a change to files",
        "at a random time",
        "after another kill",
        "there, %",
        "violations",
    ]
    text = f"""
Signal 9, half of the times right before a random one of the changes that the process makes to files (opening one for
writing, renaming, removing, making folders), half of the times at a random time. After each kill, everything that a
reader takes for whole is compared with that of a process that nobody interrupted: it must be part of it. A copy of what
is left is then completed by another process; all of it must be the same, bit for bit, and no other files may be there.
The original goes on, too, and is killed again (*after another kill*), until it is complete. *There*: how much of what
there is in the end was there at the kill, median and range.

{table(head, rows)}

*Recording*: 30 steps of 1.2 million weights, the bits of all of them. *Fitting*: `fit` with a checkpoint after every 20
steps, then `save`; the bits of the predictor. *The experiment*: `experiments.fits`, at a small scale, from training
`N_0` with a checkpoint after every 6 steps to the results; history, predictor and results. *Training*:
`experiments.runner`, an arm without jumps and one with two jumps that branches from it, with a checkpoint at every
evaluation; results, with a digest of all weights, moments and snapshots at each evaluation.

{made_with(seed, f"python -m tests.endurance --only kills --kills {kills} --seed {seed}")}
"""
    return Section(KILLS, text, violations)


def damaged(folder: Path, seed: int, flips: int) -> Section:
    """Damages predictors and histories in every way that there is, and reads them."""
    tables, violations, total = [], [], 0
    for judge, module in (("predictor", predictors), ("history", histories)):
        base, other = module.make(folder / f"{judge}-0", 0), module.make(folder / f"{judge}-1", 1)
        corruptions = module.corruptions(base, random.Random(seed), flips)
        results = judge_all(judge, corruptions, base, other, folder / "work")
        tables.append(_counts(results))
        violations += [f"{judge}: {violation}" for violation in violations_of(results)]
        total += len(results)
        print(judge, len(results), len(violations), flush=True)
    text = f"""
{total} damaged folders, each read in a process that may take one gigabyte more than it has, ends after a minute on one
of them, and notes whether anything is unpickled or another program started. A history is also gone on with, and read
again. What is beside the folder must stay as it is. Each gives one of these:

- *error*: `ValueError`, or `FileNotFoundError` where nothing is there, that names the folder; of a history, when it is
  opened or when a damaged step is read, while all other steps are right;
- *right*: the same predictor, or all of the history, bit for bit, since the damage is where it doesn't matter or what
  is in its place is the same;
- *right, but fewer steps*: a history whose end is torn off has all its other steps, as after a kill.

Anything else would be a violation: another forecast or other weights, an error that doesn't say where, the end of the
process, code that is run.

Predictors (`load`):

{tables[0]}

Weight histories (`WeightHistory.open`, `read`, `record`):

{tables[1]}

*Shape or dtype* and *huge size*: what the descriptions of arrays and the header say, also with all checksums made
right for it; sparse files of a terabyte, JSON of a million brackets, numbers of 100 000 digits, and compressed data
that claim gigabytes. *Of another*: a file or folder of another predictor or history of the same shapes. *Link, pipe or
device*: in the place of a file or folder.

Predictors of format 1 and histories of version 1, from before there was a checksum of everything, are still read: there
the weights have checksums, but a changed number in the settings of a predictor, or of a step, is not noticed.

{made_with(seed, f"python -m tests.endurance --only damage --flips {flips} --seed {seed}")}
"""
    return Section(DAMAGE, text, violations)


def _counts(results: list[tuple[Corruption, Verdict]]) -> str:
    kinds = list(dict.fromkeys(corruption.kind for corruption, _ in results))
    counts = collections.Counter((corruption.kind, verdict.outcome) for corruption, verdict in results)
    rows: list[list[object]] = []
    for kind in [*kinds, None]:
        of = {o: sum(n for (k, found), n in counts.items() if found == o and kind in (k, None)) for _, o in counts}
        number = sum(of.values())
        good = [of.get(outcome, 0) for outcome in (ERROR, RIGHT, SHORTER)]
        rows.append([kind or "all", number, *good, number - sum(good)])
    return table(["damage", "number", "error", "right", "right, but fewer steps", "violations"], rows)


def full(folder: Path, seed: int) -> Section:
    """Plays each scene on each kind of disk."""
    (folder / "mounted").mkdir(parents=True)
    kinds = [kind for kind in disks.DISKS if kind != "mounted" or Child(disks.may_mount, folder / "mounted").result()]
    rows, violations = [], []
    for scene, do in disks.SCENES.items():
        for kind in kinds:
            errors = through = wrong = 0
            for spare in SPARE if kind != "read-only" else (0,):
                place = folder / f"{scene}-{kind}-{spare}"
                outcome = Child(disks.play, scene, kind, place, spare).result()
                for call, error in outcome.errors.items():
                    if error == disks.NOTHING:
                        through += 1
                    elif any(reason in error for reason in REASONS):
                        errors += 1
                    else:
                        outcome.left.append(f"{call} raised {error}")
                wrong += len(outcome.left)
                violations += [f"{scene}, {kind}, {spare} bytes: {text}" for text in outcome.left]
            rows.append([f"{_first_line(do)} ({kind})", errors, through, wrong])
            print(rows[-1], flush=True)
    text = f"""
A disk is full in the middle of something, with 0 to 64 KiB left, or may not be written to any more. *Mounted*: a real
disk of 4 MiB. *Limited*: no file can be made longer than that. *Read-only*: by its permissions. Each call then raises
an error that gives the operating system's reason (*errors*), or gets through with what is left (*through*). What was
complete before stays, and is read; nothing half-written is taken for it; and when there is space again, everything goes
on to the same bits as without interruption.

{table(["what is done", "errors", "through", "violations"], rows)}

A history that can't be written raises `RuntimeError` from the next `append`, `flush` or `close` on, and records nothing
more: whoever trains decides whether to go on without. A fit or a training whose checkpoint can't be written ends.

{made_with(seed, "python -m tests.endurance --only disks")}
"""
    return Section(DISKS, text, violations)


def _first_line(scene: object) -> str:
    return (scene.__doc__ or "").splitlines()[0].rstrip(".")
