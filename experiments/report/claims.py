"""What the paper claims of training with jumps, each with its verdict in words."""

import math

from . import verdicts
from .blocks import Claim
from .results import Results, training
from .statistics import Comparison, Paired, mean, median
from .verdicts import Keyword
from .wording import both_seeds, count, interval, listed, name_of, number, percent, seeds, signed, spaced

_POINTS = "percentage points"


def network(results: Results, experiment: str, main: str = "introspection") -> Claim:
    """The network's jumps lead to a better accuracy, or to the plain run's best sooner, or both.

    Args:
      results: all complete runs.
      experiment: the experiment.
      main: the arm with the network's jumps.
    """
    paper = training(experiment).paper
    assert paper is not None
    assert paper.plain is not None
    assert paper.jumps is not None
    gained = 100 * (paper.jumps - paper.plain)
    kinds = ["gain"] * (gained > 0) + ["speed"] * (paper.plain_steps is not None)
    compared = results.compare(experiment, main)
    title = f"the network's jumps: {' and '.join(kinds)}"
    if compared.not_finite > compared.n:
        return Claim(title, f"Most runs failed.{_not_finite(compared)}", "contradicted", _seeds(compared))
    if not verdicts.enough(compared.n, compared.foreseen):
        return _open(title, compared)
    keywords: list[Keyword] = []
    told = []
    if gained > 0:
        keywords.append(_unless_not_finite(verdicts.gain(compared.gain, gained), compared))
        told.append(
            f"Final test accuracy {interval(compared.gain)} {_POINTS} against plain{both_seeds(compared.gain)}; in the "
            f"paper {signed(gained)}. {_levels(compared, paper.plain, paper.jumps)}"
        )
    if paper.plain_steps is not None and paper.jumps_steps is not None:
        shares = compared.shares()
        theirs = paper.jumps_steps / paper.plain_steps
        keywords.append(_unless_not_finite(verdicts.speed(shares, theirs), compared))
        told.append(f"{_reached(compared, median(shares))}; in the paper {number(theirs)}.")
    return _claim(title, " ".join(told) + _not_finite(compared), verdicts.both(keywords), compared)


def _levels(compared: Comparison, plain: float, jumps: float) -> str:
    """Returns where both arms end here and in the paper: a gain may be had from a lower start."""
    here, with_jumps = (mean([pair[i].final("test_accuracy") for pair in compared.pairs]) for i in (0, 1))
    below = ": here jumps end below the paper's plain" if with_jumps < plain else ""
    return (
        f"From {percent(here)} to {percent(with_jumps)} % here, from {percent(plain)} to {percent(jumps)} % in the "
        f"paper{below}."
    )


def _reached(compared: Comparison, share: float) -> str:
    reached = [line for line in compared.reached if line is not None]
    if math.isinf(share):
        return f"The plain run's best is reached by {len(reached)} of {count(compared.n, 'run')}"
    all_or_some = "" if len(reached) == compared.n else f" ({len(reached)} of {count(compared.n, 'run')} get there)"
    return f"The plain run's best is reached in {number(share)} of its steps (median){all_or_some}"


def linear_network(results: Results, experiment: str) -> Claim:
    """The network without ReLU is between plain training and the network."""
    title = f"linear network: between plain and the network{_elsewhere(experiment)}"
    linear = results.compare(experiment, "introspection-linear")
    apart = results.compare(experiment, "introspection-linear", "introspection")
    if not verdicts.enough(apart.n, apart.foreseen) or not linear.n:
        return _open(title, apart)
    words = (
        f"At step {spaced(linear.until)} the linear network is {interval(linear.gain)} {_POINTS} from plain and "
        f"{interval(apart.gain)} from the network."
    )
    return _claim(title, words, verdicts.in_between(linear.gain, apart.gain), apart)


def linear_fit(results: Results, experiment: str) -> Claim:
    """A linear fit to the history gains nothing."""
    return _no_gain(results, experiment, "linear fit: no gain", "linear-fit-")


def noise(results: Results, experiment: str) -> Claim:
    """Noise instead of the forecast gains nothing."""
    return _no_gain(results, experiment, "noise instead of a forecast: no gain", "noise-")


def _no_gain(results: Results, experiment: str, title: str, prefix: str) -> Claim:
    paper = training(experiment).paper
    assert paper is not None
    assert paper.plain is not None
    assert paper.jumps is not None
    gained = 100 * (paper.jumps - paper.plain)
    title += _elsewhere(experiment)
    arms = comparisons(results, experiment, prefix)
    if any(not verdicts.enough(c.n, c.foreseen) for c in arms):
        return _open(title, *arms)
    best = max(arms, key=lambda c: c.gain.mean)
    words = (
        f"The best of {len(arms)} arms ({name_of(best.arm.name)}) is {interval(best.gain)} {_POINTS} from plain at "
        f"step {spaced(best.until)}; the paper's network gained {signed(gained)}."
    )
    return _claim(title, words, verdicts.no_gain(best.gain, gained), best)


def quadratic(results: Results, experiment: str) -> Claim:
    """A quadratic fit can destroy the weights."""
    title = f"quadratic fit: can destroy the weights{_elsewhere(experiment)}"
    arms = comparisons(results, experiment, "quadratic-")
    if any(not verdicts.enough(c.n + c.not_finite, c.foreseen) for c in arms):
        return _open(title, *arms)
    not_finite = sum(c.not_finite for c in arms)
    worst = max((c.largest_loss for c in arms if c.n), default=math.nan)
    ends = listed([f"{signed(c.gain.mean)} ({name_of(c.arm.name)})" for c in arms if c.n])
    words = (
        f"At worst {number(worst, 1)} {_POINTS} below plain after a jump; at the end {ends}."
        if ends
        else "No run got to its end."
    )
    words += f" {count(not_finite, 'run')} became non-finite." if not_finite else ""
    keyword = verdicts.harm(worst, [c.gain for c in arms if c.n], not_finite)
    return _claim(title, words, keyword, arms[0])


def steadier(results: Results, experiment: str, short: str, long: str) -> Claim:
    """A network that was fitted for jump ratio 2.0 is steadier than one for 2.2."""
    title = "jump ratio 2.0 is steadier than 2.2"
    apart = results.compare(experiment, long, short)
    if not verdicts.enough(apart.n, apart.foreseen):
        return _open(title, apart)
    d = apart.unsteadiness
    words = (
        f"From one evaluation to the next, test accuracy changes by {interval(d, 3)} {_POINTS} more with 2.2; at the "
        f"end 2.2 is {interval(apart.gain)} {_POINTS} from 2.0."
    )
    return _claim(title, words, verdicts.steadier(d), apart)


def best_loss(results: Results, experiment: str) -> Claim:
    """A predictor that was fitted with L1 trains best."""
    title = "a predictor that is fitted with L1 is best"
    others = ("l2", "percentage")
    apart = [results.compare(experiment, "fitted-l1", f"fitted-{other}") for other in others]
    if any(not verdicts.enough(c.n, c.foreseen) for c in apart):
        return _open(title, *apart)
    told = [f"{interval(c.gain)} against {other}" for other, c in zip(others, apart, strict=True)]
    words = f"Final test accuracy with L1: {listed(told)}, in {_POINTS}."
    return _claim(title, words, verdicts.best([c.gain for c in apart]), apart[0])


def comparisons(results: Results, experiment: str, prefix: str = "") -> list[Comparison]:
    """Returns all arms whose name begins so, each compared with its plain one; without those that are plain."""
    return [
        results.compare(experiment, arm.name)
        for arm in training(experiment).arms
        if arm.name.startswith(prefix) and (arm.forecaster or arm.averaging)
    ]


def helps(d: Paired) -> str:
    """Returns in words whether arms gain by differences to plain training."""
    if d.n == 1:
        return "yes in one seed, which is not enough" if d.mean > 0 else "no in one seed, which is not enough"
    return {
        1: "yes, clearly",
        0: "yes by the mean, but not clearly" if d.mean > 0 else "no gain by the mean, though not clearly",
        -1: "no: they lose, clearly",
    }[verdicts.sign(d)]


def _claim(title: str, words: str, keyword: Keyword, compared: Comparison) -> Claim:
    """Returns a claim with its verdict; an open one has runs enough, but they don't tell."""
    undecided = f"Not decided by {_seeds(compared)}. " if keyword == "open" else ""
    return Claim(title, undecided + words, keyword, _seeds(compared))


def _elsewhere(experiment: str) -> str:
    """Returns what is to be said where a claim is asked of another network than the paper's."""
    return " (claimed of MNIST_1)" if experiment.startswith("mnist_3") else ""


def _unless_not_finite(keyword: Keyword, compared: Comparison) -> Keyword:
    return "partly" if compared.not_finite and keyword == "reproduced" else keyword


def _not_finite(compared: Comparison) -> str:
    return f" {count(compared.not_finite, 'run')} became non-finite." if compared.not_finite else ""


def _seeds(compared: Comparison) -> str:
    return seeds(compared.n, compared.foreseen)


def _open(title: str, *arms: Comparison) -> Claim:
    least = min(arms, key=lambda c: c.n / c.foreseen)
    dead = sum(c.not_finite for c in arms)
    words = "Not enough runs." + (f" {count(dead, 'run')} became non-finite." if dead else "")
    return Claim(title, words, "open", _seeds(least))
