"""Checks of plain arguments, so that a bad one is named together with what is allowed."""

import math
import operator
from numbers import Real
from typing import Any

import numpy as np


def integer(name: str, value: Any, low: int = 1, high: int | None = None) -> int:
    """Returns an argument that must be an integer within bounds, or positive where there is none.

    Raises:
      ValueError: it is something else.
    """
    try:
        number = None if isinstance(value, bool | np.bool_) else operator.index(value)
    except TypeError:
        number = None
    if number is None or number < low or (high is not None and number > high):
        allowed = f"an integer from {low} to {high}" if high is not None else "a positive integer"
        raise ValueError(f"{name} must be {allowed}; got {value!r}")
    return number


def number(name: str, value: Any, *, zero: bool = False) -> float:
    """Returns an argument that must be a positive number of float32, or also 0.

    Raises:
      ValueError: it is something else.
    """
    result = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    with np.errstate(over="ignore", under="ignore"):
        kept = np.float32(result)
    if not (np.isfinite(kept) and (kept > 0 or (zero and result == 0))):
        allowed = "a number of at least 0" if zero else "a positive number"
        if math.isfinite(result) and result > 0:
            allowed += " that float32 can hold"
        raise ValueError(f"{name} must be {allowed}; got {value!r}")
    return result
