"""What training with jumps must do, in NumPy and float64, from the whole history of the weights.

Nothing here knows of plans, slots or snapshots: a jump looks its trajectory points up in the list
`[w_0, ..., w_n]` of all the weights that there ever were.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any, Literal, NamedTuple, Protocol

import ml_dtypes
import numpy as np

Weights = Mapping[str, np.ndarray]


class Forecaster(Protocol):
    """A forecaster: its trajectory points, and its forecast."""

    points: tuple[float, ...]

    def __call__(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Forecasts weights given as float64 [points, weights].

        Returns:
          The forecast, and how large the numbers are that are added up for it, which bounds the rounding errors.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Polynomial:
    """Least squares through the trajectory points, evaluated at the jump ratio."""

    degree: int
    jump_ratio: float
    points: tuple[float, ...]

    def __call__(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        polynomial = np.polynomial.polynomial
        forecast = polynomial.polyval(self.jump_ratio, polynomial.polyfit(self.points, values, self.degree))
        # The same fit of unit vectors tells what each point counts.
        unit = polynomial.polyfit(self.points, np.eye(len(self.points)), self.degree)
        counts = np.abs(polynomial.polyval(self.jump_ratio, unit))
        return np.atleast_1d(forecast), (1 + 2 * counts.sum()) * np.abs(values).max(axis=0)


@dataclasses.dataclass(frozen=True)
class Network:
    """Dense layers with ReLU after all but the last."""

    kernels: tuple[np.ndarray, ...]  # [inputs, outputs]
    biases: tuple[np.ndarray, ...]
    points: tuple[float, ...]
    scale: float

    def __call__(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        x = values.T * self.scale
        size = np.abs(x)
        for i, (kernel, bias) in enumerate(zip(self.kernels, self.biases, strict=True)):
            x = np.einsum("ni,io->no", x, kernel.astype(np.float64)) + bias
            size = np.einsum("ni,io->no", size, np.abs(kernel.astype(np.float64))) + np.abs(bias)
            if i < len(self.kernels) - 1:
                x = np.where(x > 0, x, 0)
        return x[:, 0] / self.scale, 3 * size[:, 0] / self.scale


class Expected(NamedTuple):
    """What the weights must be after the next update.

    Attributes:
      outcome: which of three things happens. "unclear": rounding decides whether the forecast overflows.
      weights: float64 or complex128.
      tolerance: how far from that rounding may lead, for the real and the imaginary part each.
    """

    outcome: Literal["update", "taken", "refused", "unclear"]
    weights: Weights
    tolerance: Weights

    def check(self, actual: Weights) -> None:
        """Asserts that these are the weights."""
        assert actual.keys() == self.weights.keys()
        for name, expected in self.weights.items():
            found, tolerance = widened(actual[name]), self.tolerance[name]
            assert found.shape == expected.shape, name
            for part in (np.real, np.imag):
                error = np.abs(part(found) - part(expected))
                assert np.all(error <= tolerance), (
                    f"{self.outcome}, {name}: {found} is not {expected} within {tolerance}"
                )


def widened(array: Any) -> np.ndarray:
    """The same numbers in float64 or complex128."""
    array = np.asarray(array)
    return array.astype(np.complex128 if np.iscomplexobj(array) else np.float64)


def nearest_step(point: float, t: int) -> int:
    """The step nearest to `point * t`, ties upwards."""
    return math.floor(Fraction(repr(float(point))) * t + Fraction(1, 2))


def next_weights(
    history: Sequence[Weights],
    updates: Weights,
    jump_steps: Sequence[int],
    forecaster: Forecaster,
    snapshot_dtype: Any = None,
) -> Expected:
    """Says what `w_{n+1}` must be.

    Args:
      history: `[w_0, ..., w_n]`, all of it, each leaf in its own dtype.
      updates: what the base optimizer makes of the gradient at `w_n`.
      jump_steps: the jump steps.
      forecaster: the forecaster.
      snapshot_dtype: what older weights were rounded to.
    """
    t = len(history) - 1
    now = history[-1]
    after_update = {name: widened(weight) + widened(updates[name]) for name, weight in now.items()}
    tolerance = {
        name: _eps(weight)
        * (np.abs(widened(weight)) + np.abs(after_update[name]) + 16 * np.abs(widened(updates[name])))
        + _tiny(weight)
        for name, weight in now.items()
    }
    if t not in jump_steps:
        return Expected("update", after_update, tolerance)

    steps = [nearest_step(point, t) for point in forecaster.points]
    assert steps[0] == t
    forecasts, margins, finite = {}, {}, []
    for name, weight in now.items():
        values = [weight, *_kept([history[step][name] for step in steps[1:]], forecaster.points[1:], snapshot_dtype)]
        kept = _rounded(weight, snapshot_dtype)
        stacked = np.stack([widened(value).reshape(-1) for value in values])
        if np.iscomplexobj(weight):
            parts = [forecaster(stacked.real), forecaster(stacked.imag)]
            forecast = parts[0][0] + 1j * parts[1][0]
            size = np.maximum(parts[0][1], parts[1][1])
        else:
            forecast, size = forecaster(stacked)
        forecast, size = forecast.reshape(weight.shape), size.reshape(weight.shape)
        moved = np.abs(forecast - widened(weight))
        # Float32 arithmetic, then three roundings: of the forecast, of the difference to the weight, of their sum.
        margin = 8 * float(np.finfo(np.float32).eps) * size + _tiny(weight) + _tiny(kept)
        margins[name] = margin + _eps(weight) * (np.abs(forecast) + moved) + _eps(kept) * moved
        forecasts[name] = forecast
        for part in (np.real, np.imag):
            finite += [
                _is_finite(part(forecast), margin, weight),
                # What is added to the weight has to be a number too, both where it is kept and as an update.
                _is_finite(part(forecast - widened(weight)), 2 * margins[name], weight),
                _is_finite(part(forecast - widened(weight)), 2 * margins[name], kept),
            ]
        finite.append(True if np.all(size < 1e37) else None)

    if False in finite:
        return Expected("refused", after_update, tolerance)
    return Expected("unclear" if None in finite else "taken", forecasts, margins)


def descend(
    initial: Weights,
    gradient: Callable[[Weights], Weights],
    learning_rate: float,
    steps: int,
    jump_steps: Sequence[int],
    forecaster: Forecaster,
) -> list[Weights]:
    """Runs gradient descent with jumps in float64; returns `[w_0, ..., w_steps]`."""
    history: list[Weights] = [{name: widened(weight) for name, weight in initial.items()}]
    for _ in range(steps):
        updates = {name: -learning_rate * slope for name, slope in gradient(history[-1]).items()}
        expected = next_weights(history, updates, jump_steps, forecaster)
        assert expected.outcome in ("update", "taken")
        history.append(expected.weights)
    return history


def _kept(snapshots: list[np.ndarray], points: Sequence[float], dtype: Any) -> list[np.ndarray]:
    """Snapshots as they come back: rounded, and with fewer bits than the weights as their difference to `w_0`."""
    rounded = [_rounded(snapshot, dtype) for snapshot in snapshots]
    if dtype is None or 0 not in points or rounded[-1].dtype.itemsize >= snapshots[-1].dtype.itemsize:
        return rounded
    first = rounded[-1].astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        differences = [_rounded(snapshot.astype(np.float32) - first, dtype) for snapshot in snapshots[:-1]]
        return [*(first + difference.astype(np.float32) for difference in differences), rounded[-1]]


def _rounded(array: np.ndarray, dtype: Any) -> np.ndarray:
    if dtype is None or np.iscomplexobj(array):
        return array
    with np.errstate(over="ignore"):
        return array.astype(dtype)


def _eps(array: np.ndarray) -> float:
    return float(ml_dtypes.finfo(array.dtype).eps)


def _tiny(array: np.ndarray) -> float:
    return float(ml_dtypes.finfo(array.dtype).smallest_normal)


def _is_finite(values: np.ndarray, margin: np.ndarray, like: np.ndarray) -> bool | None:
    """Whether all values are finite in the dtype of `like`; None if they are too close to its limit to tell."""
    largest = float(ml_dtypes.finfo(like.dtype).max)
    if not np.all(np.isfinite(values)) or np.any(np.abs(values) - margin > largest * (1 + _eps(like))):
        return False
    return True if np.all(np.abs(values) + margin < largest) else None
