"""The records of experiments on CIFAR-10 are the paper's, at its steps or at the same fractions of fewer."""

import pytest

from experiments.cifar10 import EXPERIMENTS
from experiments.optimizers import DECAYS

ALL, TWO, ONE = (0, 1, 2), (0, 1), (0,)

# network, optimizer, learning rate, batch, steps, decay, augmentation
PAPER = {
    "cifar_1": ("CIFAR_1", "sgd", 0.1, 128, 40_000, "350-epochs", "crop-24"),
    "cifar_1-tenth": ("CIFAR_1", "sgd", 0.1, 128, 4000, "350-epochs", "crop-24"),
    "alexnet-cifar10": ("AlexNet, narrow", "momentum", 0.01, 128, 6000, "thirds", "pad-4"),
    "alexnet-cifar10-constant": ("AlexNet, narrow", "momentum", 0.01, 128, 6000, "none", "pad-4"),
    "inception-cifar10": ("Inception, narrow", "rmsprop", 0.01, 128, 4500, "two-epochs-of-150", "pad-4"),
}

# Of each arm: forecaster, jump steps and seeds.
ARMS = {
    "cifar_1": {
        "plain": (None, (), ALL),
        "introspection-set-1": ("introspection", (12_000, 17_000), ALL),
        "introspection-set-2": ("introspection", (15_000, 18_000), ALL),
        "introspection-set-3": ("introspection", (12_000, 15_000, 19_000), ALL),
        "introspection-set-4": ("introspection", (14_000, 17_000, 20_000), ALL),
    },
    "cifar_1-tenth": {
        "plain": (None, (), ALL),
        "introspection-set-1": ("introspection", (1200, 1700), ONE),
        "introspection-set-2": ("introspection", (1500, 1800), ONE),
        "introspection-set-3": ("introspection", (1200, 1500, 1900), ALL),
        "introspection-set-4": ("introspection", (1400, 1700, 2000), ONE),
        "introspection-equivariant-set-3": ("introspection-equivariant", (1200, 1500, 1900), TWO),
        "two-point-1.3-set-3": ("two-point-1.3", (1200, 1500, 1900), TWO),
        "quadratic-1.25-set-3": ("quadratic-1.25", (1200, 1500, 1900), ONE),
    },
    "alexnet-cifar10": {  # 120 000, 130 000, 144 000 and 160 000 of 300 000
        "plain": (None, (), TWO),
        "introspection": ("introspection", (2400, 2600, 2880, 3200), TWO),
        "two-point-1.3": ("two-point-1.3", (2400, 2600, 2880, 3200), TWO),
        "introspection-first": ("introspection", (2400,), TWO),
        "introspection-apart": ("introspection", (267, 800, 2400), TWO),
    },
    "alexnet-cifar10-constant": {
        "plain": (None, (), TWO),
        "introspection": ("introspection", (2400, 2600, 2880, 3200), TWO),
        "introspection-apart": ("introspection", (267, 800, 2400), TWO),
    },
    "inception-cifar10": {  # 200 000, 400 000 and 600 000, and 300 000, 600 000 and 900 000, of 1 500 000
        "plain": (None, (), ALL),
        "introspection-early": ("introspection", (600, 1200, 1800), ALL),
        "introspection-late": ("introspection", (900, 1800, 2700), ALL),
    },
}

# The learning rate at some steps.
RATES = {
    "cifar_1": {0: 0.1, 39_999: 0.1},  # 350 epochs are 136 500 batches
    "cifar_1-tenth": {0: 0.1, 3999: 0.1},
    "alexnet-cifar10": {0: 0.01, 1999: 0.01, 2000: 1e-3, 3999: 1e-3, 4000: 1e-4, 5999: 1e-4},
    "inception-cifar10": {0: 0.01, 59: 0.01, 60: 0.0094, 119: 0.0094, 120: 0.008836, 4499: 0.01 * 0.94**74},
}


@pytest.mark.parametrize("name", PAPER)
def test_an_experiment_of_the_paper_is_the_papers(name):
    experiment = EXPERIMENTS[name]
    (steps,) = {arm.steps for arm in experiment.arms}
    (decay,) = {arm.decay for arm in experiment.arms}
    assert PAPER[name] == (
        experiment.network,
        experiment.optimizer,
        experiment.learning_rate,
        experiment.batch_size,
        steps,
        decay,
        experiment.augmentation,
    )
    assert experiment.data == "cifar10"
    assert ARMS[name] == {arm.name: (arm.forecaster, arm.jump_steps, arm.seeds) for arm in experiment.arms}
    assert {(arm.rate, arm.leaves, arm.averaging) for arm in experiment.arms} == {(1.0, "all", None)}


@pytest.mark.parametrize("name", RATES)
def test_the_learning_rate_falls_as_the_papers(name):
    experiment = EXPERIMENTS[name]
    plain = experiment.arms[0]
    rate = DECAYS[plain.decay](experiment.learning_rate, plain.steps)
    assert {step: float(rate(step)) for step in RATES[name]} == pytest.approx(RATES[name], rel=1e-5)


@pytest.mark.parametrize("name", ["cifar_1", "cifar_1-tenth"])
def test_the_papers_figures(name):
    paper = EXPERIMENTS[name].paper
    assert (paper.plain, paper.jumps, paper.plain_steps, paper.jumps_steps) == (0.857, 0.857, 40_000, 28_000)


def test_the_weights_of_the_paper_are_recorded():
    (recorded,) = EXPERIMENTS["movement-cifar10"].recorded
    assert (recorded.network, recorded.optimizer, recorded.learning_rate, recorded.batch_size) == (
        "CIFAR_1",
        "sgd",
        0.1,
        128,
    )
    assert (recorded.steps, recorded.jump_steps, recorded.augmentation) == (4000, (1200, 1500, 1900), "crop-24")
