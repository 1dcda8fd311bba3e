"""When to use jumps and when not: one paragraph, worded by rule from the numbers."""

from collections.abc import Mapping

from .results import Results
from .sections.budgets import EXPERIMENTS as BUDGETS
from .sections.budgets import MEASURES, by_sign, differences, missing
from .sections.rates import EXPERIMENTS as RATES
from .sections.rates import all_tried, headline
from .sections.rows import CIFAR, MNIST, ROWS, Row
from .sections.rules import EXPERIMENTS as RULES
from .sections.rules import PICKED, best_two_point, ratio_of
from .statistics import Paired
from .verdicts import sign
from .wording import both_seeds, interval, listed, spaced

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
        how = {1: "raise it clearly", 0: "make no clear difference", -1: "lower it clearly"}[sign(d)]
        told.setdefault(how, []).append(f"{title} ({interval(d)}{both_seeds(d)})")
    parts = [f"{how} in {listed(rows)}" for how, rows in told.items()]
    if not parts:
        return ""
    return f"{where}, in {_POINTS}: the network's jumps {'; they '.join(parts)}."


def _tuned(tuned: dict[str, Paired]) -> str:
    if not tuned:
        return "What is left of that with tuned learning rates is not known yet."
    how = {1: "still gain", 0: "neither clearly gain nor clearly lose", -1: "lose"}
    parts = [f"with {optimizer} they {how[sign(d)]} ({interval(d)}{both_seeds(d)})" for optimizer, d in tuned.items()]
    left = [optimizer for optimizer in RATES if optimizer not in tuned]
    open_ = f"; with {listed(left)} not all rates have been tried yet" if left else ""
    return f"Where the learning rate is tuned for both (MNIST_3), {listed(parts)}{open_}."


def _budgets(results: Results) -> list[str]:
    """Returns what is known of equal budgets where all runs are complete: a rate that is missing may be the best."""
    told = []
    for network, name in BUDGETS.items():
        if not missing(results, name):
            found = {measure: differences(results, name, "introspection", measure) for measure in MEASURES}
            parts = [by_sign(d, measure) for measure, d in found.items() if d]
            told += [f"{' and '.join(parts)} on {network}"] if parts else []
    if not told:
        return []
    return [f"With a learning rate that falls to zero at the budget, jumps end with {'; '.join(told)}."]


def _two_points(results: Results) -> str:
    found = {name: results.compare(name, row.two_point, row.main) for name, row in ROWS.items() if row.two_point}
    told: dict[str, list[str]] = {}
    for name, c in sorted(found.items(), key=lambda item: -sign(item[1].gain)):
        if c.n > 1:
            how = {1: "better", 0: "not distinguishable", -1: "worse"}[sign(c.gain)]
            sooner = c.until < results.compare(name, ROWS[name].main).until
            when = f" at step {spaced(c.until)}" if sooner else ""
            told.setdefault(how, []).append(f"{ROWS[name].title}{when} ({interval(c.gain)}{both_seeds(c.gain)})")
    parts = [f"{how} in {listed(rows)}" for how, rows in told.items()]
    if not parts:
        return ""
    words = f"Extrapolation through two points (1.3), which needs no network, is {'; '.join(parts)}, compared with it."
    return " ".join((words, *_best_ratios(results)))


def _best_ratios(results: Results) -> list[str]:
    """Returns how the best jump ratio does where several were tried."""
    best = {name: c for name in RULES.values() if (c := best_two_point(results, name)) and c.n > 1}
    told = [
        f"{ratio_of(c.arm.name)} in {ROWS[name].title} ({interval(c.gain)} from the network)"
        for name, c in best.items()
        if c.arm.name != ROWS[name].two_point
    ]
    return [f"The best jump ratios, {PICKED}, are {listed(told)}."] if told else []


def _conclusion(gains: dict[str, Paired], tuned: dict[str, Paired]) -> str:
    clear = [title for title, d in gains.items() if sign(d) > 0]
    if gains and not clear:
        return "**So there is no case for jumps in these results.**"
    if not tuned:
        return "**So use them, for now, only where the learning rate is given and cannot be tuned.**"
    warnings = [
        f"{what} in {listed(titles)}"
        for what, its_sign in (("no clear gain", 0), ("a clear loss", -1))
        if (titles := [title for title, d in gains.items() if sign(d) == its_sign])
    ]
    warning = f" Even then compare with a run without them: {', and '.join(warnings)}." if warnings else ""
    still, others = ([o for o, d in tuned.items() if (sign(d) > 0) is pays] for pays in (True, False))
    parts = [f"jumps still pay with {listed(still)}"] * bool(still)
    parts += [f"there is no clear gain with {listed(others)}"] * bool(others)
    if still:
        return f"**So tune the learning rate first; then {', and '.join(parts)}.{warning}**"
    return (
        "**So use jumps where the learning rate is given and cannot be tuned; where it can, tune it or let it decay "
        f"instead: then {parts[0]}.{warning}**"
    )
