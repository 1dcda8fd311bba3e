"""Measures of how far weights move in a training run."""

from typing import NamedTuple

import numpy as np

from .predictors._files import Array
from .predictors._sampling import History


class WeightChange(NamedTuple):
    """The two measures of :func:`weight_change`, float32 `[num_weights]` in the order of `WeightHistory.read`.

    Attributes:
      difference: Last value of each weight minus its first.
      deviation: Root of the second moment of each weight about its first value, over all recorded steps.
    """

    difference: Array
    deviation: Array


def weight_change(history: History) -> WeightChange:
    r"""Measures how far every weight moved, and how far from its start it was on the way.

    .. math::
      d = w_{\mathrm{end}} - w_0, \qquad s = \sqrt{\frac{1}{|T|} \sum_{t \in T} (w_t - w_0)^2}

    Args:
      history: Weights of a training run at steps `T`: a :class:`optax_introspect.WeightHistory`, or any object with
        `steps`, `num_weights` and `read(step)`. Each step is read once.

    Returns:
      Both measures of every weight.

    Raises:
      ValueError: `history` has fewer than two steps.

    Examples:
      >>> import tempfile
      >>> import optax_introspect
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     with optax_introspect.WeightHistory.record(folder, {"w": np.zeros(2, np.float32)}) as history:
      ...         for step, weight in enumerate((1, 4, 1, 3)):
      ...             history.append(step, {"w": np.array([weight, step], np.float32)})
      ...     weight_change(history).difference
      array([2., 3.], dtype=float32)

    References:
      Sinha et al., "Introspection: Accelerating Neural Network Training by Learning Weight Evolution", ICLR 2017,
      section 3.
    """
    first, *rest = np.asarray(history.steps).tolist() or [None]
    if not rest:
        raise ValueError(f"history must have at least two steps; got {len(history.steps)}")
    start = history.read(first).astype(np.float64)
    moment = np.zeros_like(start)
    for step in rest:
        difference = history.read(step) - start
        moment += difference**2
    return WeightChange(difference.astype(np.float32), np.sqrt(moment / (1 + len(rest))).astype(np.float32))
