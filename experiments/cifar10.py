"""The experiments on CIFAR-10, each in one record."""

import dataclasses
from typing import Any

from ._config import Arm, Claim, Experiment, Paper, Study
from .studies import Movement, Recorded

# The four sets of jump steps that the paper tries, of 40 000 steps.
JUMP_SETS = {
    1: (12_000, 17_000),
    2: (15_000, 18_000),
    3: (12_000, 15_000, 19_000),
    4: (14_000, 17_000, 20_000),
}
_TENTHS = {number: tuple(step // 10 for step in steps) for number, steps in JUMP_SETS.items()}
_AFTER = (1, 20, 100, 300)
_EVALUATED: dict[str, Any] = {"after_jump": _AFTER, "train_examples": 2000, "data": "cifar10"}

cifar_1 = Experiment(
    name="cifar_1",
    title="CIFAR_1",
    question="Do jumps speed up a convolutional network on CIFAR-10, and which set of jump steps is best?",
    minutes=900,
    network="CIFAR_1",
    optimizer="sgd",
    learning_rate=0.1,
    batch_size=128,
    arms=(
        Arm("plain", "plain", steps=40_000, seeds=3, decay="350-epochs"),
        *(
            Arm(f"introspection-set-{n}", f"network, set {n}", "mnist-n0", jumps, steps=40_000, seeds=3,
                decay="350-epochs")
            for n, jumps in JUMP_SETS.items()
        ),
    ),
    every=1000,
    around=JUMP_SETS[3],
    augmentation="crop-24",
    jumps="introspection-set-3",
    paper=Paper(
        "section 4.2: 85.7 % after 28 000 steps with jumps, after 40 000 without (jump set not named; four are tried)",
        plain=0.857,
        jumps=0.857,
        plain_steps=40_000,
        jumps_steps=28_000,
    ),
    choices=(
        "Biases start at zero, ReLUs follow the convolutions and the first two dense layers, and there is no weight "
        "decay: the paper names none. The learning rate falls by ten every 350 epochs, so never within 40 000 steps."
    ),
    **_EVALUATED,
)  # fmt: skip


def _tenth(name: str, label: str, forecaster: str, number: int, seeds: int) -> Arm:
    return Arm(
        f"{name}-set-{number}", f"{label}, set {number}", forecaster, _TENTHS[number], steps=4000, seeds=seeds,
        decay="350-epochs",
    )  # fmt: skip


cifar_1_tenth = dataclasses.replace(
    cifar_1,
    name="cifar_1-tenth",
    title="CIFAR_1, a tenth of the steps",
    question="The same in a tenth of the steps: do jumps help, and does the forecast matter?",
    minutes=110,
    arms=(
        Arm("plain", "plain", steps=4000, seeds=3, decay="350-epochs"),
        _tenth("introspection", "network", "mnist-n0", 3, 3),
        _tenth("introspection-equivariant", "equivariant network", "mnist-n0-equivariant", 3, 2),
        _tenth("two-point-1.3", "two points, 1.3", "two-point-1.3", 3, 2),
        _tenth("quadratic-1.25", "quadratic fit, 1.25", "quadratic-1.25", 3, 1),
        *(_tenth("introspection", "network", "mnist-n0", number, 1) for number in (1, 2, 4)),
    ),
    every=200,
    around=_TENTHS[3],
    drawn=("plain", "introspection-set-3", "introspection-equivariant-set-3", "two-point-1.3-set-3"),
    claims=(Claim("a quadratic fit can destroy the weights", "quadratic-1.25-set-3", expects="collapse"),),
    choices=f"{cifar_1.choices} Steps and jump steps are a tenth of the paper's: this is another, shorter training.",
)

_NOT_IMAGENET = (
    "This is not ImageNet: a narrow form of the network on the 32x32 images of CIFAR-10, with the paper's optimizer, "
    "and with its decay of the learning rate and its jumps at the same fractions of a much shorter training."
)
_JUMPS_ALEXNET = tuple(step * 6000 // 300_000 for step in (120_000, 130_000, 144_000, 160_000))
# Up to the first of them, each three times as late as the one before, which so comes before all its snapshots but w_0.
_APART_ALEXNET = (267, 800, 2400)
_THIRDS: dict[str, Any] = {"steps": 6000, "seeds": 2, "decay": "thirds"}
_CONSTANT: dict[str, Any] = {"steps": 6000, "seeds": 2}

alexnet = Experiment(
    name="alexnet-cifar10",
    title="AlexNet, narrow, CIFAR-10",
    question="Does a jump between two steep drops of the learning rate still help after the second?",
    minutes=80,
    network="AlexNet, narrow",
    optimizer="momentum",
    learning_rate=0.01,
    batch_size=128,
    arms=(
        Arm("plain", "plain", **_THIRDS),
        Arm("introspection", "network", "mnist-n0", _JUMPS_ALEXNET, **_THIRDS),
        Arm("two-point-1.3", "two points, 1.3", "two-point-1.3", _JUMPS_ALEXNET, **_THIRDS),
        # The four jumps come soon after the first drop, and close together; these only the former.
        Arm("introspection-first", "network, first", "mnist-n0", _JUMPS_ALEXNET[:1], **_THIRDS),
        Arm("introspection-apart", "network, apart", "mnist-n0", _APART_ALEXNET, **_THIRDS),
    ),
    every=250,
    around=_JUMPS_ALEXNET,
    augmentation="pad-4",
    paper=Paper("section 4.2, AlexNet_1 on ImageNet: 72 % top-5 after 179 000 steps with jumps, 196 000 without"),
    choices=_NOT_IMAGENET,
    **_EVALUATED,
)

alexnet_constant = dataclasses.replace(
    alexnet,
    name="alexnet-cifar10-constant",
    title="AlexNet, narrow, constant rate",
    question="What do the same jumps do where the learning rate never drops?",
    minutes=45,
    arms=(
        Arm("plain", "plain", **_CONSTANT),
        Arm("introspection", "network", "mnist-n0", _JUMPS_ALEXNET, **_CONSTANT),
        Arm("introspection-apart", "network, apart", "mnist-n0", _APART_ALEXNET, **_CONSTANT),
    ),
    paper=None,
    choices="Not in the paper: the narrow AlexNet of `alexnet-cifar10`, with the learning rate that it begins with.",
)

_EPOCHS: dict[str, Any] = {"steps": 4500, "seeds": 3, "decay": "two-epochs-of-150"}

inception = Experiment(
    name="inception-cifar10",
    title="Inception, narrow, CIFAR-10",
    question="Do early jumps help a narrow Inception with RMSprop and a decaying learning rate?",
    minutes=125,
    network="Inception, narrow",
    optimizer="rmsprop",
    learning_rate=0.01,
    batch_size=128,
    arms=(
        Arm("plain", "plain", **_EPOCHS),
        Arm("introspection-early", "network, early", "mnist-n0", (600, 1200, 1800), **_EPOCHS),
        Arm("introspection-late", "network, late", "mnist-n0", (900, 1800, 2700), **_EPOCHS),
    ),
    every=250,
    around=(600, 900, 1200, 1800, 2700),
    augmentation="pad-4",
    jumps="introspection-late",
    paper=Paper(
        "section 4.2, Inception_v1 on ImageNet: 68.40 % after 852 000 and 944 000 steps with two sets of jumps; here "
        "at the same fractions of the training, 200, 400 and 600 and 300, 600 and 900 of 1500"
    ),
    choices=_NOT_IMAGENET,
    **_EVALUATED,
)

movement = Movement(
    name="movement-cifar10",
    title="Weight change, CIFAR-10",
    question="How much do the weights of a network on CIFAR-10 change, and on what curves?",
    minutes=35,
    data="cifar10",
    arms=(Recorded("cifar_1-sgd", "CIFAR_1", "sgd", 0.1, 128, 4000, 40, _TENTHS[3], "crop-24"),),
    seeds=1,
    paper=Paper("section 3, figures 3, 8 and 9: as on MNIST, few weights carry most of the change"),
    choices="A tenth of the paper's steps for CIFAR_1, with its third set of jump steps, a tenth of each.",
)

EXPERIMENTS: tuple[Study, ...] = (cifar_1_tenth, cifar_1, alexnet, alexnet_constant, inception, movement)
