"""The paper's experiments on ImageNet: everything about them is data, and stands in the header of their results."""

import dataclasses

from ..records import Paper


@dataclasses.dataclass(frozen=True)
class Rate:
    """A learning rate that is multiplied by a factor at even intervals.

    Attributes:
      base: the first.
      factor: what it is multiplied by.
      every: after how many steps or epochs.
      unit: `"steps"` or `"epochs"`.
    """

    base: float
    factor: float
    every: int
    unit: str

    def steps(self, examples: int, batch_size: int) -> int:
        """Returns after how many steps it is multiplied, with so many examples in an epoch; at least 1."""
        return max(1, self.every if self.unit == "steps" else round(self.every * examples / batch_size))


@dataclasses.dataclass(frozen=True)
class Sgd:
    """Stochastic gradient descent with momentum.

    Attributes:
      rate: the learning rate.
      momentum: the share of the last update that is kept.
      weight_decay: how much of each weight is added to its gradient.
    """

    rate: Rate
    momentum: float
    weight_decay: float = 0.0


@dataclasses.dataclass(frozen=True)
class RmsProp:
    """RMSprop as TensorFlow has it: epsilon within the root, whose average begins at 1.

    Attributes:
      rate: the learning rate.
      decay: of the average of squared gradients.
      momentum: the share of the last update that is kept.
      epsilon: what is added to the average.
      weight_decay: how much of each weight is added to its gradient.
    """

    rate: Rate
    decay: float
    momentum: float
    epsilon: float
    weight_decay: float = 0.0


@dataclasses.dataclass(frozen=True)
class Arm:
    """One of several runs that are compared: same start, same batches, same dropout.

    Attributes:
      name: what it is called.
      forecaster: a name known to `experiments.forecasters`; None is training without jumps.
      jump_steps: the steps at which it jumps.
    """

    name: str
    forecaster: str | None = None
    jump_steps: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class ImageNetTraining:
    """An experiment that trains a network on ImageNet.

    Attributes:
      name: what it is called on the command line.
      question: what it is to answer.
      network: a key of `experiments.networks.NETWORKS`.
      image_size: the height and width of the images that it sees.
      augmentation: how training images are cropped, a name known to `experiments.imagenet.input`.
      optimizer: how it is trained.
      batch_size: examples a step, on all devices together.
      steps: updates.
      arms: the runs.
      every: steps between two evaluations on the validation split; besides, the last step is followed by one.
      report_every: steps between two lines of loss and speed.
      auxiliary_weight: of the losses of auxiliary heads.
      paper: what the paper reports.
      choices: what was chosen where the paper says nothing, and why.
    """

    name: str
    question: str
    network: str
    image_size: int
    augmentation: str
    optimizer: Sgd | RmsProp
    batch_size: int
    steps: int
    arms: tuple[Arm, ...]
    every: int
    report_every: int = 50
    auxiliary_weight: float = 0.3
    paper: Paper | None = None
    choices: str = ""

    def arm(self, name: str) -> Arm:
        """Returns an arm by its name.

        Raises:
          ValueError: there is none of that name.
        """
        for arm in self.arms:
            if arm.name == name:
                return arm
        raise ValueError(f"{self.name} has no arm {name!r}; it has {', '.join(arm.name for arm in self.arms)}")


ALEXNET_1 = ImageNetTraining(
    name="alexnet_1",
    question="Does a predictor fitted on MNIST speed up AlexNet on ImageNet?",
    network="AlexNet",
    image_size=227,
    augmentation="alexnet",
    optimizer=Sgd(Rate(0.01, 0.1, 100_000, "steps"), momentum=0.9),
    batch_size=128,
    steps=300_000,
    arms=(Arm("plain"), Arm("introspection", "introspection", (120_000, 130_000, 144_000, 160_000))),
    every=5000,
    paper=Paper(
        "72 % top-5 accuracy after 179 000 steps with jumps, and after 196 000 without",
        plain=0.72,
        jumps=0.72,
        plain_steps=196_000,
        jumps_steps=179_000,
    ),
    choices=(
        "The paper names no weight decay; AlexNet was published with 5e-4, which the record's optimizer can have, and "
        "here it is 0. It doesn't say how images are cropped: as published with AlexNet, squares of 227 out of the "
        "central 256 of images whose shorter side is 256, and flips, but without its changes of colour; scores are of "
        "the central crop alone. The learning rate stands outside the momentum, as in Optax and TensorFlow."
    ),
)

INCEPTION_V1 = ImageNetTraining(
    name="inception_v1",
    question="Does a predictor fitted on MNIST speed up Inception V1 on ImageNet?",
    network="Inception",
    image_size=224,
    augmentation="resized-crop",
    optimizer=RmsProp(Rate(0.01, 0.94, 2, "epochs"), decay=0.9, momentum=0.9, epsilon=1.0),
    batch_size=128,
    steps=1_500_000,
    arms=(
        Arm("plain"),
        Arm("introspection-200k", "introspection", (200_000, 400_000, 600_000)),
        Arm("introspection-300k", "introspection", (300_000, 600_000, 900_000)),
    ),
    every=10_000,
    paper=Paper("68.40 % accuracy after 852 000 and 944 000 steps"),
    choices=(
        "The learning rate falls in steps, once every 2 epochs, and RMSprop is TensorFlow's, whose settings the paper "
        "gives: epsilon within the root, the average of squared gradients begins at 1. The auxiliary heads count 0.3, "
        "as published. No weight decay, since the paper names none. It doesn't say how images are cropped: as with "
        "GoogLeNet, random crops of 8 to 100 % of the area, of any aspect from 3/4 to 4/3, and flips."
    ),
)

RECORDS = {record.name: record for record in (ALEXNET_1, INCEPTION_V1)}
