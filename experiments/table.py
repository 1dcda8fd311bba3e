"""The table of all experiments."""

from . import cifar10, mnist
from .fits import Fits
from .movement import Movement
from .records import Training

Experiment = Training | Fits | Movement

EXPERIMENTS: dict[str, Experiment] = {**mnist.EXPERIMENTS, **cifar10.EXPERIMENTS}
