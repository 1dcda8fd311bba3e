"""How verdicts are made: rules from numbers to one word each."""

from collections.abc import Sequence
from typing import Literal

from .statistics import Paired, median

Keyword = Literal["reproduced", "partly", "contradicted", "open"]

# Which share of the weights makes half of the change, if changes are distributed normally.
NORMAL_SHARE = 0.239
# And which share is few: the paper has no number.
FEW_SHARE = 0.1

RULES = (
    "*d* is the difference of the **final** test accuracy, arm less plain, of the same seed, in percentage points. It "
    "is *clear* if the 95 % interval of the mean (Student) is on one side of 0; this interval is very wide with two "
    "seeds, and there is none with one. A verdict that hangs on a difference is *open*, and said to be not decided, "
    "as long as its interval neither shows nor excludes what is claimed. With fewer than two seeds it is *open* "
    "anyway, unless the record foresees only one. An arm of which a run became non-finite is at most partly a gain, "
    "and contradicted if most did.",
    "**Gain**: reproduced if *d* is clearly above 0 and its mean at least half of the paper's; partly if it is clearly "
    "above 0 but smaller; contradicted if it may be 0 and its interval is all below half of the paper's. **No gain** "
    "is the same with the words exchanged, of the best of the arms: contradicted where a gain would be reproduced, "
    "reproduced where it would be contradicted. **Speed**, by the share of the plain run's steps to its best test "
    "accuracy: reproduced if it is below 1 in every run and its median at most 0.15 above the paper's; partly if only "
    "below 1 in every run, or if there are only two; contradicted if every run, of three or more, takes as many steps "
    "or never gets there. A row that claims both is reproduced, or contradicted, if both are, open if one is open, "
    "and else partly.",
    "**In between**: reproduced if the linear network is clearly better than plain and clearly worse than the network; "
    "partly if only one of these is clear; contradicted if it is clearly worse than plain or clearly better than the "
    "network. **Harm**: reproduced if, after a jump, any run is 10 points below the plain one or non-finite; "
    "contradicted if, of several seeds, none is ever 1 point below it and all arms end at or above it; else partly, "
    "and open with one seed.",
    "**Steadier**: by the mean absolute change of test accuracy from one evaluation to the next after the first jump; "
    "reproduced if it is clearly smaller, contradicted if it is clearly larger. **Best**: reproduced if the final "
    "accuracy is clearly above that of each other; contradicted if one of them is clearly above it; partly if it is "
    "clearly above some. **Few "
    f"weights**: reproduced if, in every training, at most {100 * FEW_SHARE:.0f} % of the weights make half of the sum "
    f"of all absolute changes; contradicted if in none fewer than {100 * NORMAL_SHARE:.1f} % do, which is their share "
    "if changes are normally distributed; else partly.",
)


def sign(d: Paired) -> int:
    """Returns the sign of the mean of differences if it is clear, else 0."""
    return 1 if d.low > 0 else -1 if d.high < 0 else 0


def enough(n: int, foreseen: int) -> bool:
    """Returns whether there are enough seeds for a verdict."""
    return n >= min(2, foreseen) and n > 0


def gain(d: Paired, paper: float) -> Keyword:
    """Returns whether an arm is better than plain training, by about as much as the paper's difference."""
    if sign(d) > 0:
        return "reproduced" if d.mean >= paper / 2 else "partly"
    return "contradicted" if d.high < paper / 2 else "open"


def no_gain(d: Paired, paper: float) -> Keyword:
    """Returns whether an arm is no better than plain training: it gains nothing like the paper's difference."""
    opposite: dict[Keyword, Keyword] = {"reproduced": "contradicted", "contradicted": "reproduced"}
    keyword = gain(d, paper)
    return opposite.get(keyword, keyword)


def speed(shares: Sequence[float], paper: float) -> Keyword:
    """Returns whether the share of the steps that each run takes is about as small as the paper's."""
    faster, several = [share < 1 for share in shares], len(shares) > 2
    if all(faster):
        return "reproduced" if several and median(shares) <= paper + 0.15 else "partly"
    return "contradicted" if several and not any(faster) else "open"


def both(keywords: Sequence[Keyword]) -> Keyword:
    """Returns the verdict on a claim that consists of several."""
    if len(set(keywords)) == 1:
        return keywords[0]
    return "open" if "open" in keywords else "partly"


def in_between(linear: Paired, apart: Paired) -> Keyword:
    """Returns whether the linear network gains, but less than the network; `apart` is linear less network."""
    better, worse = sign(linear) > 0, sign(apart) < 0
    if sign(linear) < 0 or sign(apart) > 0:
        return "contradicted"
    return "reproduced" if better and worse else "partly" if better or worse else "open"


def harm(largest_loss: float, gains: Sequence[Paired], not_finite: int) -> Keyword:
    """Returns whether a forecaster can destroy the weights."""
    if largest_loss >= 10 or not_finite:
        return "reproduced"
    if any(d.n < 2 for d in gains):
        return "open"
    return "contradicted" if largest_loss < 1 and all(d.mean >= 0 for d in gains) else "partly"


def steadier(d: Paired) -> Keyword:
    """Returns whether an arm is steadier than another; `d` is how much more the other one moves."""
    return "reproduced" if sign(d) > 0 else "contradicted" if sign(d) < 0 else "open"


def best(differences: Sequence[Paired]) -> Keyword:
    """Returns whether an arm is better than each of some others."""
    signs = {sign(d) for d in differences}
    if -1 in signs:
        return "contradicted"
    return "reproduced" if signs == {1} else "partly" if 1 in signs else "open"


def few_weights(shares: Sequence[float]) -> Keyword:
    """Returns whether few weights carry most of the change."""
    if all(share <= FEW_SHARE for share in shares):
        return "reproduced"
    return "contradicted" if all(share >= NORMAL_SHARE for share in shares) else "partly"
