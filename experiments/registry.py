"""All experiments, by name."""

from . import cifar10, imagenet, language, language_evolution, language_predictors, mnist
from ._config import Study

EXPERIMENTS: dict[str, Study] = {
    experiment.name: experiment
    for experiment in (
        *mnist.EXPERIMENTS,
        *cifar10.EXPERIMENTS,
        *language_predictors.EXPERIMENTS,
        *language.EXPERIMENTS,
        *language_evolution.EXPERIMENTS,
        *imagenet.RECORDS.values(),
    )
}
