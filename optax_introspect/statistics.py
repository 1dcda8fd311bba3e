"""How much, and how far, weights moved in a training run."""

from typing import NamedTuple

import numpy as np

from .history import WeightHistory
from .sampling import Array


class WeightChange(NamedTuple):
    """The two measures of :func:`weight_change`, float32 [num_weights] in the order of `WeightHistory.read`.

    Attributes:
      difference: where each weight ended, less where it began.
      deviation: the root of its second moment about where it began, over all recorded steps.
    """

    difference: Array
    deviation: Array


def weight_change(history: WeightHistory) -> WeightChange:
    r"""Measures how far every weight got, and how far from its start it was on the way.

    .. math::
      d = w_{\mathrm{end}} - w_0, \qquad s = \sqrt{\frac{1}{|T|} \sum_{t \in T} (w_t - w_0)^2}

    Args:
      history: the weights at the recorded steps `T`; two float64 arrays of their size and one step are
        held in memory.

    Returns:
      Both measures for every weight.

    Raises:
      ValueError: a history with fewer than two steps.

    Examples:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     with WeightHistory.record(folder, {"w": np.zeros(2, np.float32)}) as history:
      ...         for step, weight in enumerate((1, 4, 1, 3)):
      ...             history.append(step, {"w": np.array([weight, step], np.float32)})
      ...     weight_change(history).difference
      array([2., 3.], dtype=float32)

    References:
      Sinha et al., "Introspection: Accelerating Neural Network Training by Learning Weight Evolution", ICLR 2017,
      section 3.
    """
    steps = history.steps
    if len(steps) < 2:
        raise ValueError(f"a history needs at least two steps for a change; this one has {len(steps)}")
    start = history.read(steps[0]).astype(np.float64)
    moment = np.zeros_like(start)
    for step in steps:
        difference = history.read(step) - start
        moment += difference**2
    return WeightChange(difference.astype(np.float32), np.sqrt(moment / len(steps)).astype(np.float32))
