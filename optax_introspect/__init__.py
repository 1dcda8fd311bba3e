"""Speeds up the training of neural networks in JAX by forecasting how their weights evolve."""

from .checkpoint import load, pretrained, save
from .forecast import Forecaster, forecaster, gaussian_noise, introspection, polynomial
from .network import IntrospectionNetwork
from .plan import Plan, plan
from .transform import IntrospectState, introspect

__all__ = [
    "Forecaster",
    "IntrospectState",
    "IntrospectionNetwork",
    "Plan",
    "forecaster",
    "gaussian_noise",
    "introspect",
    "introspection",
    "load",
    "plan",
    "polynomial",
    "pretrained",
    "save",
]
