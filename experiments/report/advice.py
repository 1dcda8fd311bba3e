"""When to use jumps and when not: one paragraph, worded by rule from the numbers."""

from collections.abc import Mapping

import numpy as np

from .results import Results
from .sections.budgets import EXPERIMENTS as BUDGETS
from .sections.budgets import MEASURES, shares
from .sections.rates import EXPERIMENTS as RATES
from .sections.rates import all_tried, headline
from .sections.rows import CIFAR, MNIST, ROWS, Row
from .statistics import Paired
from .verdicts import sign
from .wording import both_seeds, interval, listed, number

_POINTS = "percentage points"


def advice(results: Results) -> str:
    """Returns the paragraph; what is not known yet is said to be open."""
    gains, on_cifar = _gains(results, MNIST), _gains(results, CIFAR)
    tuned = {
        optimizer: compared.gain
        for optimizer in RATES
        if (compared := headline(results, optimizer)) is not None and compared.n > 1 and all_tried(results, optimizer)
    }
    if not gains and not on_cifar and not tuned:
        return "Not known yet: no two seeds of any comparison are complete."
    told = [
        _by_sign("Final test accuracy at the paper's settings", gains),
        _by_sign("On CIFAR-10, final test accuracy", on_cifar),
        _tuned(tuned),
        *_budgets(results),
        _two_points(results),
    ]
    return " ".join(part for part in (*told, _conclusion(gains | on_cifar, tuned)) if part)


def _gains(results: Results, rows: Mapping[str, Row]) -> dict[str, Paired]:
    """Returns the gains of the paper's method by the titles of rows, where there are several seeds."""
    found = {row.title: results.compare(name, row.main).gain for name, row in rows.items()}
    return {title: d for title, d in found.items() if d.n > 1}


def _by_sign(where: str, gains: dict[str, Paired]) -> str:
    told: dict[str, list[str]] = {}
    for title, d in sorted(gains.items(), key=lambda item: -sign(item[1])):
        surely = "in both seeds" if d.n == 2 else "clearly"
        how = {1: f"raise it {surely}", 0: "make no clear difference", -1: f"lower it {surely}"}[sign(d)]
        told.setdefault(how, []).append(f"{title} ({interval(d)})")
    parts = [f"{how} in {listed(rows)}" for how, rows in told.items()]
    if not parts:
        return ""
    return f"{where}, in {_POINTS}: the network's jumps {'; they '.join(parts)}."


def _tuned(tuned: dict[str, Paired]) -> str:
    if not tuned:
        return "What is left of that with tuned learning rates is not known yet."
    how = {1: "still gain", 0: "neither clearly gain nor clearly lose", -1: "lose"}
    parts = [f"with {optimizer} they {how[sign(d)]} ({interval(d)}{both_seeds(d)})" for optimizer, d in tuned.items()]
    return f"Where the learning rate is tuned for both (MNIST_3), {listed(parts)}."


def _budgets(results: Results) -> list[str]:
    parts = []
    for network, name in BUDGETS.items():
        for measure, spelled in MEASURES.items():
            known = [share for share in shares(results, name, "introspection", measure).values() if share is not None]
            if known:
                times = number(float(np.median(known)), 2)
                parts.append(f"{times} times the steps of plain training to equal {spelled} on {network}")
    if not parts:
        return []
    return [
        f"With a learning rate that falls to zero at the budget, jumps take {listed(parts)} (medians over budgets)."
    ]


def _two_points(results: Results) -> str:
    found = {name: results.compare(name, row.two_point, row.main).gain for name, row in ROWS.items() if row.two_point}
    told: dict[str, list[str]] = {}
    for name, d in sorted(found.items(), key=lambda item: -sign(item[1])):
        if d.n > 1:
            how = {1: "better", 0: "not distinguishable", -1: "worse"}[sign(d)]
            told.setdefault(how, []).append(f"{ROWS[name].title} ({interval(d)}{both_seeds(d)})")
    parts = [f"{how} in {listed(rows)}" for how, rows in told.items()]
    if not parts:
        return ""
    return f"Extrapolation through two points (1.3), which needs no network, is {'; '.join(parts)}, compared with it."


def _conclusion(gains: dict[str, Paired], tuned: dict[str, Paired]) -> str:
    clear = [title for title, d in gains.items() if sign(d) > 0]
    still = [optimizer for optimizer, d in tuned.items() if sign(d) > 0]
    if gains and not clear:
        return "**So there is no case for jumps in these results.**"
    if not tuned:
        return "**So use them, for now, only where the learning rate is given and cannot be tuned.**"
    lost = [title for title, d in gains.items() if sign(d) < 0]
    warning = f" Even then compare with a run without them: {listed(lost)} ended below it." if lost else ""
    if len(still) == len(tuned):
        return f"**So tune the learning rate first; jumps still pay then.{warning}**"
    if still:
        others = [optimizer for optimizer in tuned if optimizer not in still]
        return (
            f"**So tune the learning rate first; then jumps still pay with {listed(still)}, and there is no clear "
            f"gain with {listed(others)}.{warning}**"
        )
    return (
        "**So use jumps where the learning rate is given and cannot be tuned; where it can, tune it or let it decay "
        f"instead: then there is no clear gain.{warning}**"
    )
