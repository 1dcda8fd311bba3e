"""What is measured of a network: losses, accuracies, and the loss that is left once a temperature has been fitted."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import optimize, special

Array = npt.NDArray[Any]


class Metrics(NamedTuple):
    """What is measured at a step; losses are means of the cross entropy in nats.

    Attributes:
      train_loss: on training images that stay the same.
      train_accuracy: on these.
      test_loss: on all test images.
      test_accuracy: on these.
      calibrated_loss: the test loss with logits divided by a temperature, fitted for each half of the test images on
        the other half: what is left when it is only a matter of larger or smaller logits.
      temperature: the geometric mean of the two; above 1, the network is too sure of itself.
    """

    train_loss: float
    train_accuracy: float
    test_loss: float
    test_accuracy: float
    calibrated_loss: float
    temperature: float


def metrics(train_logits: Array, train_labels: Array, test_logits: Array, test_labels: Array) -> Metrics:
    """Returns the metrics of logits `[n, classes]` and labels `[n]`."""
    even, odd = slice(0, None, 2), slice(1, None, 2)
    temperatures = [temperature(test_logits[half], test_labels[half]) for half in (even, odd)]
    calibrated = [
        cross_entropy(test_logits[half] / other, test_labels[half])
        for half, other in zip((even, odd), reversed(temperatures), strict=True)
    ]
    return Metrics(
        train_loss=float(np.mean(cross_entropy(train_logits, train_labels))),
        train_accuracy=accuracy(train_logits, train_labels),
        test_loss=float(np.mean(cross_entropy(test_logits, test_labels))),
        test_accuracy=accuracy(test_logits, test_labels),
        calibrated_loss=float(np.mean(np.concatenate(calibrated))),
        temperature=float(np.sqrt(np.prod(temperatures))),
    )


def cross_entropy(logits: Array, labels: Array) -> Array:
    """Returns the cross entropy of each example, float64 `[n]`; NaN or infinite where logits are."""
    chosen = np.take_along_axis(logits, labels[:, None].astype(int), axis=1)[:, 0]
    with np.errstate(invalid="ignore"):
        losses: Array = special.logsumexp(logits.astype(np.float64), axis=1) - chosen
    return losses


def accuracy(logits: Array, labels: Array) -> float:
    """Returns the share of examples of which the largest logit is that of the label."""
    return float(np.mean(np.argmax(logits, axis=1) == labels))


def temperature(logits: Array, labels: Array) -> float:
    r"""Returns the temperature that makes the cross entropy the smallest; NaN if logits are not finite.

    .. math:: T = \arg\min_T \sum_i \log \sum_j e^{z_{ij} / T} - z_{i y_i} / T

    The sum is convex in :math:`1/T`. The temperature is sought between 1/1000 and 1000: where all are classified right,
    there is no smallest loss.

    References:
      Guo et al., "On Calibration of Modern Neural Networks", ICML 2017.
    """
    if not np.all(np.isfinite(logits)):
        return float("nan")
    largest = np.max(logits, axis=1, keepdims=True)
    below = logits - largest
    missed = float(np.mean(largest - np.take_along_axis(logits, labels[:, None].astype(int), axis=1)))

    def loss(log_temperature: float) -> float:
        inverse = np.exp(-np.float32(log_temperature))
        with np.errstate(over="ignore"):  # far below the largest is 0, however far
            return float(np.mean(np.log(np.sum(np.exp(below * inverse), axis=1)))) + missed * float(inverse)

    bounds = (np.log(1e-3), np.log(1e3))
    return float(np.exp(optimize.minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-3}).x))
