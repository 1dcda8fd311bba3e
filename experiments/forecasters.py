"""The forecasters of the experiments, by name."""

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from flax import nnx

import optax_introspect
from optax_introspect import Forecaster
from optax_introspect.forecast import Introspection

FITTED = "fitted-"


def _two_point(jump_ratio: float) -> Forecaster:
    return optax_introspect.polynomial(1, jump_ratio, points=(1.0, 0.4))


# One noise seed for all runs: the key of each jump and array differs anyway.
FORECASTERS: dict[str, Callable[[], Forecaster]] = {
    "introspection": optax_introspect.pretrained,
    "introspection-k2.2": functools.partial(optax_introspect.pretrained, "mnist-n0-k2.2"),
    "introspection-linear": functools.partial(optax_introspect.pretrained, "mnist-n0-linear"),
    "introspection-equivariant": functools.partial(optax_introspect.pretrained, "mnist-n0-equivariant"),
    **{f"two-point-{k:g}": functools.partial(_two_point, k) for k in (1.1, 1.2, 1.3, 1.4, 1.5, 1.75, 2.0)},
    **{f"linear-fit-{k:g}": functools.partial(optax_introspect.polynomial, 1, k) for k in (1.075, 1.1)},
    **{f"quadratic-{k:g}": functools.partial(optax_introspect.polynomial, 2, k) for k in (1.25, 1.3, 1.4)},
    **{f"noise-{s:g}": functools.partial(optax_introspect.gaussian_noise, s, 0) for s in (0.001, 0.005, 0.02, 0.1)},
    # The polynomial of degree 0 is the average of the trajectory points, wherever it is evaluated.
    "average": functools.partial(optax_introspect.polynomial, 0, 1.0),
}


def forecaster(name: str, predictors: Path) -> Forecaster:
    """Returns a forecaster by its name.

    Args:
      name: a key of `FORECASTERS`, or `fitted-` and the name of a predictor that `run predictors` made.
      predictors: the folder of those predictors.

    Raises:
      ValueError: an unknown name.
      FileNotFoundError: a predictor that was not fitted yet.
    """
    if not name.startswith(FITTED):
        if name not in FORECASTERS:
            raise ValueError(f"unknown forecaster {name!r}; known are {', '.join(FORECASTERS)} and {FITTED}NAME")
        return FORECASTERS[name]()
    folder = path_of_predictor(predictors, name.removeprefix(FITTED))
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no predictor {folder}: python -m experiments run predictors makes it")
    return optax_introspect.load(folder)


def path_of_predictor(predictors: Path, name: str) -> Path:
    """Returns the folder of a fitted predictor, which stands beside what was measured of it."""
    return predictors / name / "predictor"


def fingerprint(forecaster: Forecaster) -> str:
    """Returns what tells a forecaster from others: of a network a digest of its weights, else its parameters."""
    if not isinstance(forecaster, Introspection):
        return repr(forecaster)
    digest = hashlib.sha256(repr((forecaster.points, forecaster.scale)).encode())
    for leaf in jax.tree.leaves(nnx.state(forecaster.network)):
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()[:16]
