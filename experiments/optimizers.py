"""From a record to the optimizer that it describes."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import optax_introspect
from optax_introspect import Forecaster

from .records import Arm, Training
from .training import Optimizer, Params

# The learning rate at a step, from its base and the number of steps of the arm.
DECAYS: dict[str, Callable[[float, int], optax.ScalarOrSchedule]] = {
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

OPTIMIZERS: dict[str, Callable[[optax.ScalarOrSchedule], optax.GradientTransformation]] = {
    "sgd": optax.sgd,
    "adam": optax.adam,
    "momentum": lambda rate: optax.sgd(rate, momentum=0.9),
    # As TensorFlow's, which the paper's Inception_v1 was trained with: epsilon in the root, the average starts at 1.
    "rmsprop": lambda rate: optax.rmsprop(rate, decay=0.9, eps=1.0, eps_in_sqrt=True, initial_scale=1.0, momentum=0.9),
}

# Which leaves jump, by their path.
LEAVES: dict[str, Callable[[str], bool]] = {
    "all": lambda path: True,
    "first-layer": lambda path: path.startswith(("layers/0/", "conv1/")),
    "later-layers": lambda path: not path.startswith(("layers/0/", "conv1/")),
    "convolutions": lambda path: path.startswith("conv"),
    "dense": lambda path: not path.startswith("conv"),
    "kernels": lambda path: path.endswith("kernel"),
    "biases": lambda path: path.endswith("bias"),
}


class AverageState(NamedTuple):
    """The average of the weights over the steps so far."""

    average: Params


def average_of_weights(decay: float) -> optax.GradientTransformation:
    """Keeps an exponential moving average of the weights; goes last in a chain and leaves the updates alone."""

    def update(updates: Any, state: AverageState, params: Any = None) -> tuple[Any, AverageState]:
        new = optax.apply_updates(params, updates)
        return updates, AverageState(optax.incremental_update(new, state.average, 1 - decay))

    return optax.GradientTransformation(lambda params: AverageState(jax.tree.map(jnp.copy, params)), update)


def _ema(base: optax.GradientTransformation) -> Optimizer:
    return Optimizer(
        optax.chain(base, average_of_weights(0.999)), evaluated=lambda params, opt_state: opt_state[-1].average
    )


def _lookahead(base: optax.GradientTransformation) -> Optimizer:
    # Five steps and one half, as its paper has them (Zhang et al. 2019) for images.
    def start(params: Params) -> Params:
        return optax.LookaheadParams(params, jax.tree.map(jnp.copy, params))

    return Optimizer(
        optax.lookahead(base, sync_period=5, slow_step_size=0.5),
        start,
        trained=lambda params: params.fast,
        evaluated=lambda params, opt_state: params.slow,
    )


AVERAGING: dict[str, Callable[[optax.GradientTransformation], Optimizer]] = {"ema": _ema, "lookahead": _lookahead}


def optimizer(experiment: Training, arm: Arm, forecaster: Forecaster | None) -> Optimizer:
    """Returns the optimizer of an arm; with a forecaster, `introspect` is the last of its chain of two."""
    rate = DECAYS[arm.decay](experiment.learning_rate * arm.rate, arm.steps)
    base = OPTIMIZERS[experiment.optimizer](rate)
    if forecaster is not None:
        base = optax.chain(base, optax_introspect.introspect(arm.jump_steps, forecaster, mask=mask(arm.leaves)))
    return Optimizer(base) if arm.averaging is None else AVERAGING[arm.averaging](base)


def mask(leaves: str) -> Any:
    """Returns the mask for `introspect` that lets some leaves jump; None for all."""
    if leaves == "all":
        return None

    def of_leaf(path: Any, leaf: Any) -> bool:
        # Flax NNX ends the path of a leaf with the attribute that its variable has it in.
        return LEAVES[leaves](jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value"))

    return lambda params: jax.tree.map_with_path(of_leaf, params)
