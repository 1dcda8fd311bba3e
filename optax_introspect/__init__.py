"""Speeds up the training of neural networks in JAX by forecasting how their weights evolve."""

from ._plan import Plan, plan
from ._recalibrate import recalibrate
from ._reschedule import reschedule
from ._transform import IntrospectState, introspect
from ._weight_change import WeightChange, weight_change
from .forecasters._base import Forecaster, custom_forecaster
from .forecasters._linear import heavy_ball, linear, lookahead, nesterov, polynomial
from .forecasters._network import IntrospectionNetwork, network_forecaster
from .forecasters._noise import gaussian_noise
from .predictors._checkpoint import load, pretrained, save
from .predictors._fit import Fit, fit, mean_absolute_error
from .predictors._history import WeightHistory
from .predictors._sampling import Examples, sample_examples

__all__ = [
    "Examples",
    "Fit",
    "Forecaster",
    "IntrospectState",
    "IntrospectionNetwork",
    "Plan",
    "WeightChange",
    "WeightHistory",
    "custom_forecaster",
    "fit",
    "gaussian_noise",
    "heavy_ball",
    "introspect",
    "linear",
    "load",
    "lookahead",
    "mean_absolute_error",
    "nesterov",
    "network_forecaster",
    "plan",
    "polynomial",
    "pretrained",
    "recalibrate",
    "reschedule",
    "sample_examples",
    "save",
    "weight_change",
]
