"""What comes out on CIFAR-10: the paper's claim, the sets of jump steps, other forecasters, and who gains at all."""

import dataclasses
import math

from .. import claims, verdicts
from ..blocks import Claim
from ..results import Results, training
from ..statistics import Comparison, Paired, mean, median
from ..wording import count, interval, listed, name_of, number, percent, seeds, spaced

# The paper doesn't say which of its four sets its figures are of: this one was chosen before any run.
MAIN, TWO_POINT = "introspection-set-3", "two-point-1.3-set-3"
BESIDE = ("introspection-equivariant-set-3", TWO_POINT, "quadratic-1.25-set-3")
_SETS = "introspection-set-"
_LENGTHS = {1: "all", 10: "one tenth"}
_POINTS = "percentage points"


def speed(results: Results, experiment: str) -> Claim:
    """The network's jumps lead to the same accuracy in seven tenths of the steps."""
    record = training(experiment)
    paper, c = record.paper, results.compare(experiment, MAIN)
    assert paper is not None
    assert paper.plain is not None
    assert paper.plain_steps is not None
    assert paper.jumps_steps is not None
    steps = next(arm.steps for arm in record.arms if arm.name == MAIN)
    length = _LENGTHS[paper.plain_steps // steps]
    title = (
        f"{percent(paper.plain, 1)} % after {spaced(paper.jumps_steps)} instead of {spaced(paper.plain_steps)} steps "
        f"with the network's jumps{'' if steps == paper.plain_steps else f' (here: {length} of the steps)'}"
    )
    claim = claims.network(results, experiment, MAIN)
    if not verdicts.enough(c.n, c.foreseen):
        return dataclasses.replace(claim, claim=title)
    plain, jumps = (mean([pair[i].best()["test_accuracy"] for pair in c.pairs]) for i in (0, 1))
    words = (
        f"In {spaced(steps)} steps, {length} of the paper's: {percent(plain)} % at best without jumps, "
        f"{percent(jumps)} % with those of set 3. Final test accuracy {interval(c.gain)} {_POINTS} against plain. "
        f"{claim.words}"
    )
    return dataclasses.replace(claim, claim=title, words=words)


def jump_sets(results: Results, experiment: str) -> Claim | None:
    """Returns which of the paper's sets of jump steps is best, by the seeds that all of them have."""
    record = training(experiment)
    arms = sorted((arm for arm in record.arms if arm.name.startswith(_SETS)), key=lambda arm: arm.name)
    curves = {name: results.curves(experiment, name) for name in ("plain", *(arm.name for arm in arms))}
    finals = {
        name: {seed: curve.final("test_accuracy") for seed, curve in of.items() if curve.finite}
        for name, of in curves.items()
    }
    ready = [arm for arm in arms if finals[arm.name]]
    common = sorted(set(finals["plain"]).intersection(*(finals[arm.name] for arm in ready)))
    if len(ready) < 2 or not common:
        return None

    def apart(name: str, other: str) -> Paired:
        return Paired(tuple(100 * (finals[name][seed] - finals[other][seed]) for seed in common))

    gains = {arm.name: apart(arm.name, "plain") for arm in ready}
    best = max(gains, key=lambda name: gains[name].mean)
    clear = all(verdicts.sign(apart(best, other)) > 0 for other in gains if other != best)
    told = [
        f"set {arm.name.removeprefix(_SETS)} (jumps at {listed([spaced(step) for step in arm.jump_steps])}) "
        f"{interval(gains[arm.name])}"
        for arm in ready
    ]
    conclusion = (
        f"Set {best.removeprefix(_SETS)} is clearly better than each other one"
        if clear
        else f"Set {best.removeprefix(_SETS)} by the mean, but it is not clearly better than each other one"
        if len(common) > 1
        else f"Set {best.removeprefix(_SETS)} in the one seed that all have, which doesn't tell gain from luck"
    )
    missing = f" Of the {len(arms)} sets {len(ready)} have runs." if len(ready) < len(arms) else ""
    words = f"{conclusion}. Final test accuracy against plain, in {_POINTS}: {listed(told)}.{missing}"
    foreseen = set(record.seeds).intersection(*(arm.seeds for arm in arms))
    return Claim("Which set of jump steps is best?", words, seeds=seeds(len(common), max(len(common), len(foreseen))))


def forecasts(results: Results, experiment: str) -> Claim | None:
    """Returns how other forecasters do with the network's jump steps."""
    compared = [c for name in BESIDE if (c := results.compare(experiment, name, MAIN)).n]
    if not compared:
        return None
    told = [f"{name_of(c.arm.name)} {interval(c.gain)} ({seeds(c.n, c.foreseen)})" for c in compared]
    clear = [
        f"{name_of(c.arm.name)} is clearly {'better' if s > 0 else 'worse'}"
        for c in compared
        if (s := verdicts.sign(c.gain))
    ]
    conclusion = f"It does: {listed(clear)}" if clear else "No other forecaster is clearly better or worse"
    words = f"{conclusion}. Final test accuracy against the network's jumps at the same steps: {listed(told)}."
    most = max(compared, key=lambda c: c.n)
    return Claim("Does it matter who forecasts?", words, seeds=seeds(most.n, most.foreseen))


def who_gains(results: Results, experiment: str) -> Claim | None:
    """Returns whether each arm with jumps is better than plain training in the end, and how soon it is as good."""
    compared = [c for c in claims.comparisons(results, experiment) if c.n or c.not_finite]
    if not compared:
        return None
    most = max(compared, key=lambda c: c.n)
    return Claim("Do jumps help?", " ".join(map(_told, compared)), seeds=seeds(most.n, most.foreseen))


def _told(c: Comparison) -> str:
    name = name_of(c.arm.name).capitalize()
    dead = f"; {count(c.not_finite, 'run')} became non-finite" if c.not_finite else ""
    if not c.n:
        return f"{name}: no run got to its end{dead}."
    share = median(c.shares())
    soon = (
        "the plain run's best is not reached"
        if math.isinf(share)
        else f"the plain run's best is reached in {number(share)} of its steps"
    )
    return f"{name}: {claims.helps(c.gain)} ({interval(c.gain)} {_POINTS} of final test accuracy); {soon}{dead}."
