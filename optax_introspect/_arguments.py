"""Checks of plain arguments, whose errors name the value that was given and what is allowed."""

import math
import operator
from numbers import Real
from typing import Any

import numpy as np


def integer(name: str, value: Any, low: int = 1, high: int | None = None) -> int:
    """Returns an argument that must be an integer of at least `low` and at most `high`.

    Raises:
      ValueError: It is something else.
    """
    try:
        number = None if isinstance(value, bool | np.bool_) else operator.index(value)
    except TypeError:
        number = None
    if number is None or number < low or (high is not None and number > high):
        allowed = f"an integer of at least {low}" if high is None else f"an integer from {low} to {high}"
        raise ValueError(f"{name} must be {allowed}; got {value!r}")
    return number


def number(name: str, value: Any, *, zero: bool = False) -> float:
    """Returns an argument that must be a positive number that float32 can hold, or also 0.

    Raises:
      ValueError: It is something else.
    """
    try:
        result = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    except OverflowError:  # of a huge integer
        result = math.nan
    with np.errstate(over="ignore", under="ignore"):
        kept = np.float32(result)
    if not (np.isfinite(kept) and (kept > 0 or (zero and result == 0))):
        allowed = "at least 0" if zero else "positive"
        raise ValueError(f"{name} must be {allowed} and within the range of float32; got {value!r}")
    return result
