"""Every experiment on CIFAR-10, as data."""

from .movement import Movement, Recorded
from .records import Paper, Training, arm, jumping

_AFTER = (1, 20, 100, 300)

# The four sets of jump steps that the paper tries, of 40 000 steps.
JUMP_SETS = {
    1: (12_000, 17_000),
    2: (15_000, 18_000),
    3: (12_000, 15_000, 19_000),
    4: (14_000, 17_000, 20_000),
}
_PAPER_1 = Paper(
    "section 4.2: 85.7 % after 28 000 steps with jumps, after 40 000 without (jump set not named; four are tried)",
    plain=0.857,
    jumps=0.857,
    plain_steps=40_000,
    jumps_steps=28_000,
)
_CHOICES_1 = (
    "Biases start at zero, ReLUs follow the convolutions and the first two dense layers, and there is no weight decay: "
    "the paper names none. The learning rate falls by ten every 350 epochs, that is never within 40 000 steps."
)


def _at_one_tenth(jump_steps: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(step // 10 for step in jump_steps)


_DECAY_1 = "350-epochs"

_CIFAR_1 = Training(
    name="cifar_1",
    question="Do jumps speed up a convolutional network on CIFAR-10, and which set of jump steps is best?",
    network="CIFAR_1",
    optimizer="sgd",
    learning_rate=0.1,
    batch_size=128,
    arms=(
        arm("plain", 3, 40_000, decay=_DECAY_1),
        *(
            arm(f"introspection-set-{number}", 3, 40_000, "introspection", jump_steps, decay=_DECAY_1)
            for number, jump_steps in JUMP_SETS.items()
        ),
    ),
    every=1000,
    around=JUMP_SETS[3],
    after_jump=_AFTER,
    train_examples=2000,
    data="cifar10",
    augmentation="crop-24",
    minutes=900,
    paper=_PAPER_1,
    choices=_CHOICES_1,
)

_SET_3 = _at_one_tenth(JUMP_SETS[3])

_CIFAR_1_TENTH = Training(
    name="cifar_1-tenth",
    question="The same in a tenth of the steps: do jumps help, and does the forecast matter?",
    network="CIFAR_1",
    optimizer="sgd",
    learning_rate=0.1,
    batch_size=128,
    arms=(
        arm("plain", 3, 4000, decay=_DECAY_1),
        arm("introspection-set-3", 3, 4000, "introspection", _SET_3, decay=_DECAY_1),
        arm("introspection-equivariant-set-3", 2, 4000, "introspection-equivariant", _SET_3, decay=_DECAY_1),
        arm("two-point-1.3-set-3", 2, 4000, "two-point-1.3", _SET_3, decay=_DECAY_1),
        arm("quadratic-1.25-set-3", 1, 4000, "quadratic-1.25", _SET_3, decay=_DECAY_1),
        *(
            arm(f"introspection-set-{n}", 1, 4000, "introspection", _at_one_tenth(JUMP_SETS[n]), decay=_DECAY_1)
            for n in (1, 2, 4)
        ),
    ),
    every=200,
    around=_SET_3,
    after_jump=_AFTER,
    train_examples=2000,
    data="cifar10",
    augmentation="crop-24",
    minutes=110,
    paper=_PAPER_1,
    choices=f"{_CHOICES_1} Steps and jump steps are a tenth of the paper's: this is another, shorter training.",
)

_NOT_IMAGENET = (
    "This is not ImageNet: a narrow form of the network on the 32x32 images of CIFAR-10, with the paper's optimizer, "
    "and with its decay of the learning rate and its jumps at the same fractions of a much shorter training."
)
_JUMPS_ALEXNET = tuple(step * 6000 // 300_000 for step in (120_000, 130_000, 144_000, 160_000))
# Up to the first of them, each three times as late as the one before, which so comes before all its snapshots but w_0.
_APART_ALEXNET = (267, 800, 2400)

_ALEXNET = Training(
    name="alexnet-cifar10",
    question="Does a jump between two steep drops of the learning rate still help after the second?",
    network="AlexNet, narrow",
    optimizer="momentum",
    learning_rate=0.01,
    batch_size=128,
    arms=(
        arm("plain", 2, 6000, decay="thirds"),
        *jumping(("introspection", "two-point-1.3"), 2, 6000, _JUMPS_ALEXNET, decay="thirds"),
        # The four jumps come soon after the first drop, and close together; these only the former.
        arm("introspection-first", 2, 6000, "introspection", _JUMPS_ALEXNET[:1], decay="thirds"),
        arm("introspection-apart", 2, 6000, "introspection", _APART_ALEXNET, decay="thirds"),
    ),
    every=250,
    around=_JUMPS_ALEXNET,
    after_jump=_AFTER,
    train_examples=2000,
    data="cifar10",
    augmentation="pad-4",
    minutes=80,
    paper=Paper("section 4.2, AlexNet_1 on ImageNet: 72 % top-5 after 179 000 steps with jumps, 196 000 without"),
    choices=_NOT_IMAGENET,
)

_ALEXNET_CONSTANT = Training(
    name="alexnet-cifar10-constant",
    question="What do the same jumps do where the learning rate never drops?",
    network=_ALEXNET.network,
    optimizer=_ALEXNET.optimizer,
    learning_rate=_ALEXNET.learning_rate,
    batch_size=_ALEXNET.batch_size,
    arms=(
        arm("plain", 2, 6000),
        arm("introspection", 2, 6000, "introspection", _JUMPS_ALEXNET),
        arm("introspection-apart", 2, 6000, "introspection", _APART_ALEXNET),
    ),
    every=_ALEXNET.every,
    around=_JUMPS_ALEXNET,
    after_jump=_AFTER,
    train_examples=_ALEXNET.train_examples,
    data=_ALEXNET.data,
    augmentation=_ALEXNET.augmentation,
    minutes=45,
    choices="Not in the paper: the narrow AlexNet of `alexnet-cifar10`, with the learning rate that it begins with.",
)

_INCEPTION = Training(
    name="inception-cifar10",
    question="Do early jumps help a narrow Inception with RMSprop and a decaying learning rate?",
    network="Inception, narrow",
    optimizer="rmsprop",
    learning_rate=0.01,
    batch_size=128,
    arms=(
        arm("plain", 3, 4500, decay="two-epochs-of-150"),
        arm("introspection-early", 3, 4500, "introspection", (600, 1200, 1800), decay="two-epochs-of-150"),
        arm("introspection-late", 3, 4500, "introspection", (900, 1800, 2700), decay="two-epochs-of-150"),
    ),
    every=250,
    around=(600, 900, 1200, 1800, 2700),
    after_jump=_AFTER,
    train_examples=2000,
    data="cifar10",
    augmentation="pad-4",
    minutes=125,
    paper=Paper(
        "section 4.2, Inception_v1 on ImageNet: 68.40 % after 852 000 and 944 000 steps with two sets of jumps; here "
        "at the same fractions of the training, 200, 400 and 600 and 300, 600 and 900 of 1500"
    ),
    choices=_NOT_IMAGENET,
)

_MOVEMENT = Movement(
    name="movement-cifar10",
    question="How much do the weights of a network on CIFAR-10 change, and on what curves?",
    minutes=35,
    paper=Paper("section 3, figures 3, 8 and 9: as on MNIST, few weights carry most of the change"),
    choices="A tenth of the paper's steps for CIFAR_1, with its third set of jump steps, a tenth of each.",
    num_seeds=1,
    recorded=(Recorded("cifar_1-sgd", "CIFAR_1 with SGD", "CIFAR_1", "sgd", 0.1, 128, 4000, 40, _SET_3, "crop-24"),),
    images="cifar10",
)

EXPERIMENTS: dict[str, Training | Movement] = {
    experiment.name: experiment
    for experiment in (_CIFAR_1_TENTH, _CIFAR_1, _ALEXNET, _ALEXNET_CONSTANT, _INCEPTION, _MOVEMENT)
}
