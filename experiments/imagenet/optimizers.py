"""From the record of an experiment on ImageNet to its optimizer."""

import optax

import optax_introspect
from optax_introspect import Forecaster

from .records import RmsProp, Sgd


def optimizer(
    settings: Sgd | RmsProp,
    decay_steps: int,
    jump_steps: tuple[int, ...] = (),
    forecaster: Forecaster | None = None,
) -> optax.GradientTransformation:
    """Returns an optimizer, which ends in `introspect` if there are jump steps.

    Args:
      settings: the optimizer of a record.
      decay_steps: after how many steps the learning rate falls.
      jump_steps: the steps at which the weights are replaced by their forecast.
      forecaster: what forecasts.
    """
    rate = settings.rate
    schedule = optax.exponential_decay(rate.base, decay_steps, rate.factor, staircase=True)
    transformations = [optax.add_decayed_weights(settings.weight_decay)] if settings.weight_decay else []
    if isinstance(settings, Sgd):
        transformations.append(optax.sgd(schedule, momentum=settings.momentum))
    else:
        # The learning rate stands within the momentum, as in TensorFlow.
        transformations.append(
            optax.rmsprop(
                schedule,
                decay=settings.decay,
                eps=settings.epsilon,
                initial_scale=1.0,
                eps_in_sqrt=True,
                momentum=settings.momentum,
            )
        )
    if jump_steps:
        transformations.append(optax_introspect.introspect(jump_steps, forecaster))
    return optax.chain(*transformations)
