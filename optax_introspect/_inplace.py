"""Conditional writes that XLA makes in place."""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax

T = TypeVar("T")


def write_if(condition: jax.Array, write: Callable[..., T], old: T, *operands: object) -> T:
    """Returns `write(old, *operands)` if a condition holds, else `old`; in place, and at no cost where it doesn't hold.

    Snapshots are written at few steps, and copying all of them in every other step would cost as much as the optimizer.
    XLA writes in place, on every platform and version that was tried, if the choice is a `lax.switch` on a number whose
    first branch does nothing. With `lax.cond`, which is a choice by a truth value, XLA for GPUs turns cheap branches
    into selects, and so computes them in every step. `docs/scripts/compile_for_gpu.py` counts what stands outside.

    Args:
      condition: Boolean scalar.
      write: Function of `old` and the operands, which returns what takes the place of `old`.
      old: Tree of arrays.
      *operands: Trees of arrays that `write` reads.

    Returns:
      A tree as `old`.
    """
    result: T = lax.switch(condition.astype(jnp.int32), [lambda old, *_: old, write], old, *operands)
    return result
