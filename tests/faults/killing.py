"""Kills work at random moments, and compares what it leaves and what comes of it with work that nobody interrupted."""

import random
import re
import shutil
from pathlib import Path
from typing import NamedTuple

from .children import Child
from .works import Found, Work


class Kills(NamedTuple):
    """What came of killing something many times.

    Attributes:
      name: of what was killed.
      at_changes: how often it was killed right before one of its changes to files.
      at_times: how often after a random time.
      again: how often of these it had been killed before, and had gone on.
      parts: the share of all that was to be found in the end, at each kill.
      violations: what was found that is not so in the end, or not found that should be, in words.
    """

    name: str
    at_changes: int
    at_times: int
    again: int
    parts: list[float]
    violations: list[str]


def kill(work: Work, folder: Path, kills: int, seed: int, *, at_changes: float = 0.5) -> Kills:
    """Kills work at random moments; after each, a copy of what is left is completed, and compared.

    What is left is then gone on with, and killed again, until it is complete.

    Args:
      work: the work.
      folder: an empty one.
      kills: how often.
      seed: of the moments.
      at_changes: the share of the kills at a random change to files, instead of after a random time.
    """
    seeded = random.Random(f"{seed} {work.name}")
    cache, state, copy = folder / "cache", folder / "state", folder / "copy"
    uninterrupted = Child(work.do, folder / "uninterrupted", cache=cache)
    uninterrupted.result()
    expected, files = work.found(folder / "uninterrupted"), _files(folder / "uninterrupted")
    changes, seconds, violations = uninterrupted.changes, 0.0, []
    if at_changes < 1:
        timed = Child(work.do, folder / "timed", cache=cache)  # now that everything is compiled
        timed.result()
        seconds = timed.seconds
        violations += _differences("done twice", work.found(folder / "timed"), expected)
    counts, again, gone_on, parts = {True: 0, False: 0}, 0, False, []
    while len(parts) < kills:
        at_change = seeded.random() < at_changes
        if at_change:
            killed = Child(work.do, state, last=seeded.randint(1, changes), cache=cache).is_killed()
        else:
            killed = Child(work.do, state, cache=cache).is_killed(seeded.uniform(0, seconds))
        if not killed:
            violations += _differences(f"complete after {len(parts)} kills", work.found(state), expected)
            shutil.rmtree(state)
            gone_on = False
            continue
        counts[at_change] += 1
        again += gone_on
        gone_on = True
        state.mkdir(exist_ok=True)
        name, found = f"kill {len(parts) + 1}", work.found(state)
        parts.append(len(found) / len(expected))
        violations += _differences(f"{name}, as left", found, {key: expected.get(key, "nothing") for key in found})
        shutil.copytree(state, copy)
        Child(work.do, copy, cache=cache).result()
        violations += _differences(f"{name}, completed", work.found(copy), expected)
        if extra := sorted(_files(copy) ^ files):
            violations.append(f"{name}, completed: files that should not be there, or are missing: {extra}")
        shutil.rmtree(copy)
    return Kills(work.name, counts[True], counts[False], again, parts, violations)


def _differences(when: str, found: Found, expected: Found) -> list[str]:
    return [
        f"{when}: {name} is {found.get(name)} and not {expected.get(name)}"
        for name in sorted(found.keys() | expected.keys())
        if found.get(name) != expected.get(name)
    ]


def _files(folder: Path) -> set[str]:
    """Returns the names of all files; in Orbax's databases they are random.

    Without those that nobody takes for anything: of a save that was killed, and in the folder of runs that go on.
    """
    names = (str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    return {re.sub("[0-9a-f]{32}", "*", name) for name in names if not re.search(r"(^|/)\.(predictor-|working/)", name)}
