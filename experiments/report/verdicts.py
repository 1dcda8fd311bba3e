"""How verdicts are made: rules from numbers to one word each."""

from collections.abc import Sequence
from typing import Literal

from .statistics import Paired

Keyword = Literal["reproduced", "partly", "contradicted", "open"]

# Which share of the weights makes half of the change, if changes are distributed normally.
NORMAL_SHARE = 0.239

RULES = (
    "*d* is the difference of the **final** test accuracy, arm less plain, of the same seed, in percentage points. A "
    "sign is *clear* if the 95 % interval of the mean (Student) is on one side of 0; with two seeds, if both have "
    "this sign; with one, never. With fewer than two seeds a verdict is *open*, unless the record foresees only one. "
    "Whatever is neither reproduced nor contradicted is *partly* so. An arm of which a run became non-finite is at "
    "most partly a gain, and contradicted if most did.",
    "**Gain**: reproduced if *d* is clearly above 0 and at least half of the paper's; contradicted if its mean is at "
    "most 0. **Speed**: reproduced if the median share of the plain run's steps to its best test accuracy is below 1 "
    "and at most 0.15 above the paper's; contradicted if it is 1 or more, or most runs never get there. A row that "
    "claims both is reproduced, or contradicted, if both are.",
    "**No gain**: reproduced if the best of the arms has a mean *d* of at most 0.05, or *d* may be 0 and is less than "
    "half of the network's own; contradicted if *d* is clearly above 0 and at least half of the network's. "
    "**In between**: reproduced if the mean *d* of the linear network is above 0 and below the network's; contradicted "
    "if it is at most 0 or the linear network is clearly better. **Harm**: reproduced if, after a jump, any run is "
    "10 points below the plain one or non-finite; contradicted if none is ever 1 point below it, and all arms end "
    "at or above it.",
    "**Steadier**: by the mean absolute change of test accuracy from one evaluation to the next after the first jump; "
    "reproduced if it is clearly smaller, contradicted if its mean isn't smaller. **Best**: reproduced if the final "
    "accuracy is clearly above that of each other; contradicted if one of them is clearly above it. **Few "
    f"weights**: reproduced if, in every training, fewer than {100 * NORMAL_SHARE:.0f} % of the weights make half of "
    "the sum of all absolute changes, which is their share if changes are normally distributed; contradicted if in "
    "none.",
)


def sign(d: Paired) -> int:
    """Returns the sign of the mean of differences if it is clear, else 0."""
    if d.n == 2:
        low, high = min(d.differences), max(d.differences)
    else:
        low, high = d.low, d.high
    return 1 if low > 0 else -1 if high < 0 else 0


def enough(n: int, foreseen: int) -> bool:
    """Returns whether there are enough seeds for a verdict."""
    return n >= min(2, foreseen) and n > 0


def gain(d: Paired, paper: float | None) -> Keyword:
    """Returns whether an arm is better than plain training, by the paper's difference if that is given."""
    if d.mean <= 0:
        return "contradicted"
    return "reproduced" if sign(d) > 0 and (paper is None or d.mean >= paper / 2) else "partly"


def speed(share: float, paper: float) -> Keyword:
    """Returns whether a share of the steps is about as small as the paper's."""
    if share >= 1:
        return "contradicted"
    return "reproduced" if share <= paper + 0.15 else "partly"


def both(keywords: Sequence[Keyword]) -> Keyword:
    """Returns the verdict on a claim that consists of several."""
    if len(set(keywords)) == 1:
        return keywords[0]
    return "open" if "open" in keywords else "partly"


def no_gain(d: Paired, network: float) -> Keyword:
    """Returns whether an arm is no better than plain training, compared with the mean gain of the network."""
    if d.mean <= 0.05 or (sign(d) <= 0 and d.mean < network / 2):
        return "reproduced"
    return "contradicted" if sign(d) > 0 and d.mean >= network / 2 else "partly"


def in_between(linear: Paired, network: Paired, apart: Paired) -> Keyword:
    """Returns whether the linear network gains, but less than the network; `apart` is linear less network."""
    if linear.mean <= 0 or sign(apart) > 0:
        return "contradicted"
    return "reproduced" if linear.mean < network.mean else "partly"


def harm(largest_loss: float, gains: Sequence[Paired], not_finite: int) -> Keyword:
    """Returns whether a forecaster can destroy the weights."""
    if largest_loss >= 10 or not_finite:
        return "reproduced"
    return "contradicted" if largest_loss < 1 and all(d.mean >= 0 for d in gains) else "partly"


def steadier(d: Paired) -> Keyword:
    """Returns whether an arm is steadier than another; `d` is how much more the other one moves."""
    if d.mean <= 0:
        return "contradicted"
    return "reproduced" if sign(d) > 0 else "partly"


def best(differences: Sequence[Paired]) -> Keyword:
    """Returns whether an arm is better than each of some others."""
    signs = {sign(d) for d in differences}
    if -1 in signs:
        return "contradicted"
    return "reproduced" if signs == {1} else "partly"


def few_weights(shares: Sequence[float]) -> Keyword:
    """Returns whether few weights carry most of the change."""
    few = [share < NORMAL_SHARE for share in shares]
    return "reproduced" if all(few) else "partly" if any(few) else "contradicted"
