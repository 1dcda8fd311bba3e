"""From the keys that records use to optimizers, forecasters and masks."""

import functools
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import optax_introspect as oi

from ._config import Arm, Experiment

FITTED = "fitted-"
_Rate = float | Callable[[Any], Any]

# From the base of the learning rate and the number of steps of the arm to the learning rate at a step.
DECAYS: Mapping[str, Callable[[float, int], _Rate]] = {
    "none": lambda rate, steps: rate,
    "cosine": lambda rate, steps: optax.cosine_decay_schedule(rate, steps),
    # Every 350 epochs of 390 batches, had the training the 40 000 steps of the paper's CIFAR_1: never in these.
    "350-epochs": lambda rate, steps: optax.exponential_decay(rate, steps * 350 * 390 // 40_000, 0.1, staircase=True),
    # As the paper's AlexNet_1, which takes 300 000 steps: a tenth at each third.
    "thirds": lambda rate, steps: optax.exponential_decay(rate, steps // 3, 0.1, staircase=True),
    # As the paper's Inception_v1: 1 500 000 steps of 128 images are 75 times two epochs of ImageNet.
    "two-epochs-of-150": lambda rate, steps: optax.exponential_decay(rate, steps // 75, 0.94, staircase=True),
    # Caffe's `inv`, with the gamma and the power that the paper gives for MNIST_2.
    "inverse": lambda rate, steps: lambda step: rate * (1 + 1e-4 * step) ** -0.75,
}

OPTIMIZERS: Mapping[str, Callable[[_Rate], optax.GradientTransformation]] = {
    "sgd": optax.sgd,
    "adam": optax.adam,
    "momentum": lambda rate: optax.sgd(rate, momentum=0.9),
    # As TensorFlow's, which the paper's Inception_v1 was trained with: epsilon in the root, the average starts at 1.
    "rmsprop": lambda rate: optax.rmsprop(rate, decay=0.9, eps=1.0, eps_in_sqrt=True, initial_scale=1.0, momentum=0.9),
}

# From the path of a leaf, such as "layers/0/kernel", to whether it jumps.
LEAVES: Mapping[str, Callable[[str], bool]] = {
    "all": lambda path: True,
    "first-layer": lambda path: path.startswith(("layers/0/", "conv1/")),
    "later-layers": lambda path: not path.startswith(("layers/0/", "conv1/")),
    "convolutions": lambda path: path.startswith("conv"),
    "dense": lambda path: not path.startswith("conv"),
    "kernels": lambda path: path.endswith("kernel"),
    "biases": lambda path: path.endswith("bias"),
}

FORECASTERS: Mapping[str, Callable[[], oi.Forecaster]] = {
    **{f"mnist-n0{kind}": functools.partial(oi.pretrained, f"mnist-n0{kind}") for kind in ("", "-equivariant")},
    **{f"mnist-n0{kind}": functools.partial(oi.pretrained, f"mnist-n0{kind}") for kind in ("-linear", "-k2.2")},
    **{
        f"two-point-{k:g}": functools.partial(oi.polynomial, 1, k, points=(1.0, 0.4))
        for k in (1.1, 1.2, 1.3, 1.4, 1.5, 1.75, 2.0)
    },
    **{f"linear-fit-{k:g}": functools.partial(oi.polynomial, 1, k) for k in (1.075, 1.1)},
    **{f"quadratic-{k:g}": functools.partial(oi.polynomial, 2, k) for k in (1.25, 1.3, 1.4)},
    # One noise seed for all runs: the key of each jump and array differs anyway.
    **{f"noise-{s:g}": functools.partial(oi.gaussian_noise, s, 0) for s in (0.001, 0.005, 0.02, 0.1)},
    "average": functools.partial(oi.polynomial, 0, 1.0),
    # As for images in the paper of lookahead: five steps, and one half.
    "lookahead-5": functools.partial(oi.lookahead, 5, 0.5),
    **{f"nesterov-{k}": functools.partial(oi.nesterov, k, learning_rate=0.8, momentum=0.75) for k in (20, 50)},
}


class Optimizer(NamedTuple):
    """Optimizer of an arm.

    Attributes:
      tx: the gradient transformation.
      evaluated: from the weights and the optimizer state to the weights that are evaluated.
    """

    tx: optax.GradientTransformation
    evaluated: Callable[[Any, Any], Any] = lambda params, opt_state: params


class EmaState(NamedTuple):
    """State of `ema_of_weights`, the average."""

    average: Any


def ema_of_weights(decay: float) -> optax.GradientTransformation:
    """Keeps an exponential moving average of the weights; goes last in a chain and leaves the updates alone."""

    def update(updates: Any, state: EmaState, params: Any = None) -> tuple[Any, EmaState]:
        new = optax.apply_updates(params, updates)
        return updates, EmaState(optax.incremental_update(new, state.average, 1 - decay))

    return optax.GradientTransformation(lambda params: EmaState(jax.tree.map(jnp.copy, params)), update)


def adamw(rate: float, steps: int, b1: float = 0.9, decay: float = 1.0) -> optax.GradientTransformation:
    """Returns AdamW for language models: clipped gradients, warmup in a twentieth of the steps, linear decay to zero.

    Args:
      rate: largest learning rate.
      steps: number of updates.
      b1: of AdamW.
      decay: share of the steps in which the rate falls, up to the last; 0 is a constant rate.
    """
    warmup, falling = max(steps // 20, 1), decay * steps

    def schedule(step: Any) -> Any:
        left = jnp.minimum((steps - step) / falling, 1) if falling else 1
        return rate * jnp.minimum((step + 1) / warmup, 1) * left

    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, b1=b1, b2=0.99, weight_decay=0.1))


def optimizer(experiment: Experiment, arm: Arm, predictors: Path) -> Optimizer:
    """Returns the optimizer of an arm, whose jumps come last in its chain.

    Args:
      experiment: the experiment.
      arm: one of its arms.
      predictors: the folder of the predictors that `run predictors` fits.
    """
    rate = DECAYS[arm.decay](experiment.learning_rate * arm.rate, arm.steps)
    base = OPTIMIZERS[arm.optimizer or experiment.optimizer](rate)
    if arm.averaging == "ema":
        return Optimizer(optax.chain(base, ema_of_weights(0.999)), lambda params, opt_state: opt_state[-1].average)
    if arm.forecaster is None:
        return Optimizer(base)
    jumps = oi.introspect(arm.jump_steps, forecaster(arm.forecaster, predictors))
    return Optimizer(optax.chain(base, jumps if arm.leaves == "all" else optax.masked(jumps, mask(arm.leaves))))


def mask(leaves: str) -> Callable[[Any], Any]:
    """Returns the mask for `optax.masked` with which only some leaves jump."""

    def of_leaf(path: Any, leaf: Any) -> bool:
        # Flax NNX ends the path of a leaf with the attribute that its variable has it in.
        return LEAVES[leaves](jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value"))

    return lambda params: jax.tree.map_with_path(of_leaf, params)


def forecaster(key: str, predictors: Path) -> oi.Forecaster:
    """Returns a forecaster by its key.

    Args:
      key: a key of `FORECASTERS`, or `fitted-NAME`.
      predictors: the folder of the fitted predictors.

    Raises:
      ValueError: an unknown key.
      FileNotFoundError: a predictor that is not fitted yet.
    """
    if key.startswith(FITTED):
        folder = predictors / key.removeprefix(FITTED)
        if not folder.is_dir():
            raise FileNotFoundError(
                f"there is no predictor {folder}: `python -m experiments run predictors language-predictors` fits all"
            )
        return oi.load(folder)
    if key not in FORECASTERS:
        raise ValueError(f"forecaster must be one of {', '.join(FORECASTERS)}, or {FITTED}NAME; got {key!r}")
    return FORECASTERS[key]()


def fingerprint(key: str | None, predictors: Path) -> str | None:
    """Returns text that tells a forecaster from all others: of a network a digest of its weights."""
    if key is None:
        return None
    return described(forecaster(key, predictors))


def described(found: oi.Forecaster) -> str:
    """Returns text that tells a forecaster from all others: of a network a digest of its weights."""
    network = getattr(found, "module", None)
    if network is None:
        return repr(found)
    digest = hashlib.sha256(repr((found.points, getattr(found, "scale", None))).encode())
    for leaf in jax.tree.leaves(nnx.state(network)):
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()[:16]
