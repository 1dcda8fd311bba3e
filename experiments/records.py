"""What an experiment is: everything about it is data, and stands in the header of its results."""

import dataclasses
from collections.abc import Sequence
from typing import Any

# Of a field that came later: it stands in headers only where it is not the default, so that old results still count.
_LATER = {"later": True}


@dataclasses.dataclass(frozen=True)
class Arm:
    """One of several runs of an experiment that are compared: same start, same batches, same dropout.

    Attributes:
      name: what it is called.
      forecaster: a name known to `experiments.forecasters`; None is training without jumps.
      jump_steps: the steps at which it jumps.
      leaves: which weights jump, a key of `experiments.optimizers.LEAVES`.
      rate: the learning rate, as a multiple of the experiment's.
      decay: how the learning rate falls, a key of `experiments.optimizers.DECAYS`.
      averaging: a key of `experiments.optimizers.AVERAGING`, or None.
      steps: updates; cosine decay ends with them.
      seeds: the seeds that it is run with.
    """

    name: str
    forecaster: str | None
    jump_steps: tuple[int, ...]
    leaves: str
    rate: float
    decay: str
    averaging: str | None
    steps: int
    seeds: tuple[int, ...]

    @property
    def trunk(self) -> tuple[Any, ...]:
        """What it has in common with the arms that are trained as one with it up to the first jump."""
        return self.rate, self.decay, self.averaging, None if self.decay in ("none", "inverse") else self.steps


def arm(
    name: str,
    seeds: int,
    steps: int,
    forecaster: str | None = None,
    jump_steps: tuple[int, ...] = (),
    *,
    leaves: str = "all",
    rate: float = 1.0,
    decay: str = "none",
    averaging: str | None = None,
) -> Arm:
    """Returns an arm that is run with the first so many seeds."""
    return Arm(name, forecaster, jump_steps, leaves, rate, decay, averaging, steps, tuple(range(seeds)))


def jumping(
    names: Sequence[str], seeds: int, steps: int, jump_steps: tuple[int, ...], decay: str = "none"
) -> tuple[Arm, ...]:
    """Returns an arm for each of some forecasters, with its name."""
    return tuple(arm(name, seeds, steps, name, jump_steps, decay=decay) for name in names)


@dataclasses.dataclass(frozen=True)
class Paper:
    """What the paper reports of an experiment, where it does.

    Attributes:
      text: in words, with the place.
      plain: its test accuracy without jumps.
      jumps: its test accuracy with jumps.
      plain_steps: the steps that plain training takes to `plain`.
      jumps_steps: the steps that training with jumps takes to the same accuracy.
    """

    text: str
    plain: float | None = None
    jumps: float | None = None
    plain_steps: int | None = None
    jumps_steps: int | None = None


@dataclasses.dataclass(frozen=True)
class Study:
    """An experiment that is no comparison of trainings.

    Attributes:
      name: what it is called on the command line.
      question: what it is to answer.
      minutes: what it takes on two CPU cores.
      paper: what the paper reports.
      choices: what was chosen where the paper says nothing, and why.
    """

    name: str
    question: str
    minutes: int
    paper: Paper
    choices: str

    @property
    def seeds(self) -> tuple[int, ...]:
        """By default there is one; what it trains may have others of its own."""
        return (0,)

    @property
    def data(self) -> str:
        """What it trains on, a key of `experiments.data.DATA`."""
        return "mnist"


@dataclasses.dataclass(frozen=True)
class Training:
    """An experiment that trains a network several times.

    Attributes:
      name: what it is called on the command line.
      question: what it is to answer.
      network: a key of `experiments.networks.NETWORKS`.
      optimizer: a key of `experiments.optimizers.OPTIMIZERS`.
      learning_rate: the base of every arm's.
      batch_size: examples a step.
      arms: the arms; those without a forecaster come first.
      every: steps between two evaluations; besides, an arm is evaluated after its jumps, and before them.
      around: jump steps that arms without them are evaluated around as well, to be compared.
      after_jump: how many steps after a jump it is evaluated.
      train_examples: training images that are evaluated, the first ones.
      minutes: what all of it takes on two CPU cores.
      paper: what the paper reports.
      choices: what was chosen where the paper says nothing, or contradicts itself, and why.
      data: what it is trained on, a key of `experiments.data.DATA`.
      augmentation: what is done to the images of a batch, a key of `experiments.data.AUGMENTATIONS`, or None.
    """

    name: str
    question: str
    network: str
    optimizer: str
    learning_rate: float
    batch_size: int
    arms: tuple[Arm, ...]
    every: int
    minutes: int
    paper: Paper | None = None
    choices: str = ""
    around: tuple[int, ...] = ()
    after_jump: tuple[int, ...] = (1,)
    train_examples: int = 10_000
    data: str = dataclasses.field(default="mnist", metadata=_LATER)
    augmentation: str | None = dataclasses.field(default=None, metadata=_LATER)

    def __post_init__(self) -> None:
        names = [arm.name for arm in self.arms]
        if len(set(names)) < len(names):
            raise ValueError(f"{self.name}: two arms have the same name, among {names}")
        for arm in self.arms:
            if (arm.forecaster is None) != (not arm.jump_steps):
                raise ValueError(f"{self.name}: {arm.name} must have both a forecaster and jump steps, or neither")
            if arm.steps <= max(arm.jump_steps, default=0):
                last = arm.jump_steps[-1]
                raise ValueError(
                    f"{self.name}: {arm.name} jumps at {last}, so that it needs more steps than {arm.steps}"
                )
            if arm.forecaster is not None and arm.averaging is not None:
                raise ValueError(
                    f"{self.name}: {arm.name} has both jumps and {arm.averaging}, which is not provided for"
                )
            trunk = self.trunk_of(arm)
            if trunk.steps < max(arm.jump_steps[:1], default=0) or not set(arm.seeds) <= set(trunk.seeds):
                raise ValueError(f"{self.name}: {arm.name} branches from {trunk.name}, which doesn't get there")

    def trunk_of(self, arm: Arm) -> Arm:
        """Returns the arm without jumps that an arm is one with up to its first jump; itself, if it has none."""
        if arm.forecaster is None:
            return arm
        for other in self.arms:
            if other.forecaster is None and other.trunk == arm.trunk:
                return other
        raise ValueError(f"{self.name}: there is no arm without jumps for {arm.name} to branch from")

    @property
    def seeds(self) -> tuple[int, ...]:
        """All seeds that any arm is run with."""
        return tuple(sorted({seed for arm in self.arms for seed in arm.seeds}))

    def settings(self) -> dict[str, Any]:
        """Returns what a result depends on, apart from its arm."""
        names = (
            "network",
            "optimizer",
            "learning_rate",
            "batch_size",
            "every",
            "around",
            "after_jump",
            "train_examples",
        )
        later = [
            f.name for f in dataclasses.fields(self) if f.metadata == _LATER and getattr(self, f.name) != f.default
        ]
        return {"experiment": self.name, **{name: getattr(self, name) for name in (*names, *later)}}
