"""Speeds up the training of neural networks in JAX by forecasting how their weights evolve."""

from .checkpoint import load, pretrained, save
from .cost import Cost, cost
from .fit import Fit, fit, l1
from .forecast import Forecaster, forecaster, gaussian_noise, introspection, polynomial
from .history import WeightHistory
from .network import IntrospectionNetwork
from .order import check_order
from .plan import Plan, plan
from .recalibrate import recalibrate
from .reschedule import reschedule
from .sampling import Examples, sample_examples
from .statistics import WeightChange, weight_change
from .transform import IntrospectState, introspect

__all__ = [
    "Cost",
    "Examples",
    "Fit",
    "Forecaster",
    "IntrospectState",
    "IntrospectionNetwork",
    "Plan",
    "WeightChange",
    "WeightHistory",
    "check_order",
    "cost",
    "fit",
    "forecaster",
    "gaussian_noise",
    "introspect",
    "introspection",
    "l1",
    "load",
    "plan",
    "polynomial",
    "pretrained",
    "recalibrate",
    "reschedule",
    "sample_examples",
    "save",
    "weight_change",
]
