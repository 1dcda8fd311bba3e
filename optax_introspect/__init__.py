"""Optax transformations that forecast weights."""

from .forecast import Forecaster, forecaster, gaussian_noise, introspection, polynomial
from .network import IntrospectionNetwork
from .plan import Plan, plan
from .transform import IntrospectState, introspect
