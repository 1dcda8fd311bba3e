"""Optax transformations that forecast weights."""
