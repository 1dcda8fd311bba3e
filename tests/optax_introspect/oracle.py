"""What `introspect` must add to the updates, in NumPy and float64, from the whole history of the weights.

Nothing here knows of plans, slots or snapshots: a jump looks its points up in the list of all the weights there were.
"""

import math
from fractions import Fraction

import ml_dtypes
import numpy as np


def step_of(point, t):
    """The step of a point of the jump at `t`."""
    if isinstance(point, int) and point < 0:
        return max(t + point, 0)
    return math.floor(Fraction(repr(float(point))) * t + Fraction(1, 2))


def displacement(history, forecast, points, snapshot_dtype=None):
    """What the jump at the end of a history adds to the update of one array, and how far rounding may lead from it.

    Args:
      history: `[w_0, ..., w_t]`, in the dtype of the weights.
      forecast: From float64 `[points, ...]` to the forecast, and the sum of the magnitudes that it adds up.
      points: The points of the forecaster.
      snapshot_dtype: What older weights are rounded to.
    """
    now = history[-1]
    steps = [step_of(point, len(history) - 1) for point in points]
    values = [wide(now), *(wide(kept(history, step, 0.0 in points, snapshot_dtype)) for step in steps[1:])]
    if np.iscomplexobj(now):
        parts = [forecast(np.stack([part(value) for value in values])) for part in (np.real, np.imag)]
        moved, size = parts[0][0] + 1j * parts[1][0] - wide(now), parts[0][1] + parts[1][1]
    else:
        moved, size = forecast(np.stack(values))
        moved = moved - wide(now)
    compute = np.finfo(np.float32).eps if eps(now) >= np.finfo(np.float32).eps else np.finfo(np.float64).eps
    slot = now if snapshot_dtype is None or np.iscomplexobj(now) else np.zeros((), snapshot_dtype)
    tolerance = 16 * compute * size + 2 * eps(now) * (np.abs(wide(now)) + np.abs(moved)) + 2 * eps(slot) * np.abs(moved)
    return moved, tolerance + 1e-6 * (eps(now) > 1e-4)


def kept(history, step, with_first, snapshot_dtype):
    """The weights of a step as they come back from a slot: as differences to `w_0`, where that is kept, if narrower."""
    weights, first = history[step], history[0]
    if snapshot_dtype is None or np.iscomplexobj(weights) or (with_first and step == 0):
        return weights
    if with_first and weights.dtype != snapshot_dtype:
        return wide(first) + wide((wide(weights) - wide(first)).astype(snapshot_dtype))
    return weights.astype(snapshot_dtype)


def wide(array):
    """The same numbers in float64 or complex128."""
    return np.asarray(array).astype(np.complex128 if np.iscomplexobj(array) else np.float64)


def eps(array):
    return float(ml_dtypes.finfo(np.asarray(array).real.dtype).eps)
