"""What comes of reading damaged predictors and histories: judged in processes of their own, which may die of it."""

import faulthandler
import json
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import optax_introspect
from optax_introspect import WeightHistory

from .children import Child

# Outcomes that are as they should be, and those that must never be.
ERROR, RIGHT, SHORTER = "error", "right", "right, without the last steps"
WRONG, UNCLEAR, DIED, RAN = "wrong", "unclear error", "process died", "code was run"
GOOD, BAD = (ERROR, RIGHT, SHORTER), (WRONG, UNCLEAR, DIED, RAN)
# Address space above what the process has when it begins: a damaged file must not make it take so much.
SPARE_BYTES = 2**30
# Seconds that no file takes to be read; the process ends itself then.
PATIENCE = 60
NEW_STEP = 10**6


class Verdict(NamedTuple):
    """What came of one damaged folder."""

    outcome: str
    detail: str


# What would run code that is in a file.
_RUNNING = {"pickle.find_class", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "subprocess.Popen"}


Judge = Callable[[Path, Any], "Verdict"]


def judged(describe: Callable[[Any], Any], judge: Judge, base: Any, folders: list[Path], report: Path) -> list[Verdict]:
    """Returns the verdicts on damaged copies of a folder.

    Args:
      describe: from a folder to what the judge compares with.
      judge: from a copy and that to a verdict.
      base: the folder that they are copies of.
      folders: the copies.
      report: a file for the verdicts so far, since the process that writes them may die.

    Raises:
      RuntimeError: the judge itself fails.
    """
    verdicts: list[Verdict] = []
    while len(verdicts) < len(folders):
        child = Child(_judge_all, describe, judge, base, folders[len(verdicts) :], report)
        died = None
        try:
            child.result()
        except RuntimeError as error:
            if "ended without a word" not in str(error):
                raise
            died = error
        verdicts += [Verdict(*json.loads(line)) for line in report.read_text().splitlines()]
        if died is not None:
            verdicts.append(Verdict(DIED, str(died)))
    return verdicts


def _judge_all(describe: Callable[[Any], Any], judge: Judge, base: Any, folders: list[Path], report: Path) -> None:
    truth = describe(base)
    run: list[str] = []
    sys.addaudithook(lambda event, arguments: run.append(event) if event in _RUNNING else None)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + SPARE_BYTES, used + SPARE_BYTES))
    with report.open("w") as file:
        for folder in folders:
            run.clear()
            faulthandler.dump_traceback_later(PATIENCE, exit=True)
            verdict = judge(folder, truth)
            faulthandler.cancel_dump_traceback_later()
            if run:
                verdict = Verdict(RAN, run[0])
            file.write(json.dumps(verdict) + "\n")
            file.flush()


def _error(folder: Path, error: Exception) -> Verdict:
    """An error is clear if it is one of those that are documented, and says where."""
    clear = isinstance(error, ValueError | FileNotFoundError | FileExistsError) and str(folder) in str(error)
    return Verdict(ERROR if clear else UNCLEAR, f"{type(error).__name__}: {error}"[:1000])


# Predictors.


def describe_predictor(folder: Path) -> Any:
    """Returns all that a predictor is, and some forecasts of it."""
    found = optax_introspect.load(folder)
    network = found.network
    weights = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(nnx.state(network))]
    points = np.random.default_rng(0).normal(size=(len(found.points), 7)).astype(np.float32)
    forecast = np.asarray(found(*map(jnp.asarray, points), key=jax.random.key(0))).tobytes()
    settings = network.num_points, network.hidden, network.activation, network.use_bias, network.relative
    return found.points, found.scale, settings, weights, forecast


def judge_predictor(folder: Path, truth: Any) -> Verdict:
    try:
        found = describe_predictor(folder)
    except Exception as error:
        return _error(folder, error)
    return Verdict(RIGHT, "") if found == truth else Verdict(WRONG, "another predictor")


# Histories.


def describe_history(folder: Path) -> Any:
    """Returns all that a history says, with the error in place of the weights of a step that can't be read."""
    history = WeightHistory.open(folder)
    about = history.names, history.shapes, [dtype.name for dtype in history.dtypes], history.metadata
    steps: dict[int, Any] = {}
    for step in history.steps.tolist():
        try:
            steps[step] = [leaf.tobytes() for leaf in history.tree(step).values()]
        except ValueError as error:
            steps[step] = error
    return about, steps


def judge_history(folder: Path, truth: Any) -> Verdict:
    """Reads it, goes on with the recording, and reads it again."""
    verdict = _judge_history(folder, *truth)
    if verdict.outcome in BAD:
        return verdict
    (names, shapes, dtypes, _), _ = truth
    params = {name: np.full(shape, 1, dtype) for name, shape, dtype in zip(names, shapes, dtypes, strict=True)}
    try:
        with WeightHistory.record(folder, params) as history:
            history.append(NEW_STEP, params)
    except (ValueError, OSError, RuntimeError) as error:
        if str(folder) not in str(error):
            return _error(folder, error)
    else:
        about, steps = truth
        longer = steps | {NEW_STEP: [leaf.tobytes() for leaf in params.values()]}
        after = _judge_history(folder, about, longer, but=verdict.outcome == SHORTER)
        if after.outcome in BAD:
            return Verdict(after.outcome, f"gone on with: {after.detail}")
    return verdict


def _judge_history(folder: Path, about: Any, steps: dict[int, Any], but: bool = False) -> Verdict:
    """Compares with the truth; `but` if steps may be missing before the last one."""
    try:
        found_about, found = describe_history(folder)
    except Exception as error:
        return _error(folder, error)
    if found_about != about:
        # Somebody made its checksums right; then no weights may be read.
        if found and all(isinstance(weights, ValueError) for weights in found.values()):
            return _error(folder, next(iter(found.values())))
        return Verdict(WRONG, f"it is of {found_about}")
    order = list(steps)
    expected = order[: len(found) - 1] + order[-1:] if but else order[: len(found)]
    if list(found) != expected:
        return Verdict(WRONG, f"it has the steps {list(found)}")
    for step, weights in found.items():
        if isinstance(weights, ValueError):
            if (error := _error(folder, weights)).outcome != ERROR:
                return error
        elif weights != steps[step]:
            return Verdict(WRONG, f"the weights of step {step}")
    if errors := [weights for weights in found.values() if isinstance(weights, ValueError)]:
        return _error(folder, errors[0])
    return Verdict(RIGHT if len(found) == len(steps) else SHORTER, f"{len(found)} of {len(steps)} steps")


JUDGES: dict[str, tuple[Callable[[Path], Any], Judge]] = {
    "predictor": (describe_predictor, judge_predictor),
    "history": (describe_history, judge_history),
}
