"""How numbers and names are written."""

import math
from collections.abc import Sequence

from .statistics import Paired

NONE, MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"

_NAMES = {
    "plain": "plain",
    "introspection": "network",
    "introspection-k2.2": "network, k = 2.2",
    "introspection-linear": "linear network",
    "introspection-equivariant": "equivariant network",
    "fitted-equivariant": "equivariant network",
    "ema": "EMA of weights",
    "average": "average of points",
    "all": "all weights",
}


# What follows the name of a forecaster where its arms have different jump steps.
_JUMPS = {
    "-early": ", early jumps",
    "-late": ", late jumps",
    "-first": ", first jump only",
    "-apart": ", jumps far apart",
    **{f"-set-{n}": f", set {n}" for n in range(1, 5)},
}


def name_of(arm: str) -> str:
    """Returns what an arm is called on the page."""
    for suffix, spelled in _JUMPS.items():
        if arm.endswith(suffix):
            return name_of(arm.removesuffix(suffix)) + spelled
    if arm in _NAMES:
        return _NAMES[arm]
    for prefix, spelled in (
        ("two-point-", "two points, "),
        ("linear-fit-", "linear fit, "),
        ("quadratic-", "quadratic fit, "),
        ("noise-", "noise, std "),
        ("fitted-", "fitted: "),
    ):
        if arm.startswith(prefix):
            return spelled + arm.removeprefix(prefix)
    return arm.replace("-", " ")


def number(value: float, digits: int = 2) -> str:
    """Returns a number with so many decimals, with a real minus."""
    if math.isnan(value):
        return NONE
    text = f"{value:.{digits}f}"
    return (text[1:] if float(text) == 0 and text.startswith("-") else text).replace("-", MINUS)


def signed(value: float, digits: int = 2) -> str:
    """Returns a difference with its sign."""
    text = number(value, digits)
    return text if text == NONE or text.startswith(MINUS) or float(text) == 0 else f"+{text}"


def significant(value: float) -> str:
    """Returns a positive number of any size with three digits."""
    if math.isnan(value):
        return NONE
    return f"{value:.3g}" if value < 1000 else spaced(value)


def spaced(value: float) -> str:
    """Returns a large number, its thousands apart by narrow spaces."""
    return NONE if math.isnan(value) else f"{value:,.0f}".replace(",", "\u202f")


def percent(share: float, digits: int = 2) -> str:
    """Returns a share in percent, without the sign."""
    return number(100 * share, digits)


def interval(d: Paired, digits: int = 2) -> str:
    """Returns a mean difference with its 95 % interval; one seed has none."""
    if d.n < 2:
        return signed(d.mean, digits)
    return f"{signed(d.mean, digits)} [{signed(d.low, digits)}, {signed(d.high, digits)}]"


def times(log_ratio: Paired) -> str:
    """Returns a geometric mean with its 95 % interval, from logs; one seed has none."""
    middle = significant(math.exp(log_ratio.mean)) if log_ratio.n else NONE
    if log_ratio.n < 2:
        return middle
    return f"{middle} [{significant(math.exp(log_ratio.low))}, {significant(math.exp(log_ratio.high))}]"


def both_seeds(d: Paired) -> str:
    """Returns what can be said of two seeds, whose interval is of little use; nothing of more or fewer."""
    if d.n != 2 or min(d.differences) <= 0 <= max(d.differences):
        return ""
    return f", {'above' if d.mean > 0 else 'below'} 0 in both seeds"


def seeds(n: int, foreseen: int) -> str:
    """Returns how many seeds there are."""
    if n == foreseen:
        return "one seed" if n == 1 else f"{n} seeds"
    return f"{n} of {foreseen} seeds"


def complete(n: int, foreseen: int, not_finite: int = 0) -> str:
    """Returns how many of the seeds there are, for a column of them."""
    dead = f", {not_finite} not finite" if not_finite else ""
    return (f"{n}" if n == foreseen else f"{n} of {foreseen}") + dead


def count(n: int, noun: str) -> str:
    """Returns a number of things."""
    return f"{n} {noun}{'' if n == 1 else 's'}"


def listed(items: Sequence[str]) -> str:
    """Returns items as a sentence has them."""
    return " and ".join((", ".join(items[:-1]), items[-1])) if len(items) > 1 else "".join(items)
