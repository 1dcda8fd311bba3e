"""Frozen records of the experiments: everything that is said of one stands in one place.

`mnist.py`, `cifar10.py`, `imagenet.py`, `language.py` and others that begin with `language` hold a record for each
experiment, and `registry.py` collects them. Training reads how to train from it, `results/NAME.json` keeps it beside
the measurements, and the report reads the question, the paper's figures and the labels of the arms. An experiment is
added or changed in its one file:

    mnist_4 = Experiment(
      name="mnist_4", title="MNIST_4", question="Do jumps help a recurrent network?", minutes=20,
      network="MNIST_4", optimizer="adam", learning_rate=5e-4, batch_size=128, every=250, around=(2000, 3000, 4000),
      arms=(
        Arm("plain", "plain", steps=7000, seeds=3),
        Arm("introspection", "network", "mnist-n0", (2000, 3000, 4000), steps=7000, seeds=3),
      ),
      paper=Paper("section 4.2: 98.85 % with jumps against 98.65 %, the latter after 4200 instead of 6500 steps",
                  plain=0.9865, jumps=0.9885, plain_steps=6500, jumps_steps=4200),
      choices="The initial weights are not given: Flax's defaults here.",
    )

What is no comparison of trainings (fitting predictors, recording weights) extends `Study`.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal


@dataclasses.dataclass(frozen=True)
class Arm:
    """One of the trainings that an experiment compares: same start, batches and dropout for each seed.

    Attributes:
      name: the key in commands and in the results.
      label: the name in tables and figures.
      forecaster: key of a forecaster; None trains without jumps.
      jump_steps: steps at which the weights jump.
      steps: number of updates.
      seeds: number of seeds, counted from 0.
      rate: factor of the experiment's learning rate.
      decay: key of a learning rate schedule.
      averaging: `"ema"` evaluates an average of the weights; or None.
      leaves: key of the weights that jump.
      optimizer: key of an optimizer; None is that of the experiment.
    """

    name: str
    label: str
    forecaster: str | None = None
    jump_steps: Sequence[int] = ()
    _: dataclasses.KW_ONLY
    steps: int
    seeds: int
    rate: float = 1.0
    decay: str = "none"
    averaging: str | None = None
    leaves: str = "all"
    optimizer: str | None = None

    def settings(self) -> dict[str, Any]:
        """Returns what a run of this arm depends on, for JSON; without its label and the number of seeds."""
        settings = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in ("label", "seeds")}
        steps = self.jump_steps
        settings["jump_steps"] = [steps.start, steps.stop, steps.step] if isinstance(steps, range) else list(steps)
        return settings | ({"even_intervals": True} if isinstance(steps, range) else {})


@dataclasses.dataclass(frozen=True)
class Paper:
    """Figures that the paper reports for an experiment. Accuracies are between 0 and 1.

    Attributes:
      text: the claim in words, with its section.
      plain: test accuracy without jumps.
      jumps: test accuracy with jumps.
      plain_steps: steps that plain training takes to `plain`.
      jumps_steps: steps that training with jumps takes to the same accuracy.
    """

    text: str
    plain: float | None = None
    jumps: float | None = None
    plain_steps: int | None = None
    jumps_steps: int | None = None


@dataclasses.dataclass(frozen=True)
class Claim:
    """A claim of the paper on the difference between two arms, which the report gives a verdict on.

    Attributes:
      text: the claim in a few words.
      arm: name of the arm.
      against: name of the arm that it is compared with.
      expects: sign of the difference (`"collapse"`: the weights are destroyed by a jump).
      points: the paper's difference of test accuracy in percentage points; for `"no gain"` that of its network.
      share: the paper's share of the other arm's steps to the same accuracy, or None.
      measure: the final test accuracy, or how little it changes between evaluations after the first jump.
    """

    text: str
    arm: str
    against: str = "plain"
    expects: Literal["gain", "no gain", "collapse"] = "gain"
    points: float = 0.0
    share: float | None = None
    measure: Literal["accuracy", "steadiness"] = "accuracy"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """Base record of all experiments.

    Attributes:
      name: the key in commands, and the stem of its files under `results`.
      title: the name in tables and headings.
      question: what it is to answer.
      minutes: time on two CPU cores; None if it needs other hardware.
      data: key of a data set.
      paper: what the paper reports, or None.
      choices: what was chosen where the paper is silent, and why.
    """

    name: str
    title: str
    question: str
    minutes: int | None
    data: str = "mnist"
    paper: Paper | None = None
    choices: str = ""

    def settings(self) -> dict[str, Any]:
        """Returns what its results depend on apart from their arm, for JSON."""
        return {"data": self.data}

    @property
    def command(self) -> str:
        """Command that runs it."""
        return f"python -m experiments run {self.name}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment(Study):
    """A comparison of trainings.

    Attributes:
      network: key of a network.
      optimizer: key of an optimizer.
      learning_rate: base of every arm's learning rate.
      batch_size: examples in a step.
      arms: the trainings; the first is without jumps.
      every: steps between two evaluations.
      around: jump steps around which all arms are evaluated as well: at each, and `after_jump` steps later.
      after_jump: steps from a jump to the evaluations after it.
      train_examples: number of training images that are evaluated.
      augmentation: key of an augmentation, or None.
      jumps: name of the arm that the summary table compares with plain.
      drawn: names of the arms in the figure; () for the first five.
      claims: what the paper says of other arms; that of `paper` is added.
    """

    network: str
    optimizer: str
    learning_rate: float
    batch_size: int
    arms: tuple[Arm, ...]
    every: int
    around: tuple[int, ...] = ()
    after_jump: tuple[int, ...] = (1,)
    train_examples: int = 10_000
    augmentation: str | None = None
    jumps: str = "introspection"
    drawn: tuple[str, ...] = ()
    claims: tuple[Claim, ...] = ()

    def __post_init__(self) -> None:
        names = [arm.name for arm in self.arms]
        if len(set(names)) < len(names):
            raise ValueError(f"arms of {self.name} must have different names; got {names}")
        if not self.arms or self.arms[0].forecaster is not None:
            raise ValueError(f"arms of {self.name} must begin with one without jumps; got {names}")
        for arm in self.arms:
            if (arm.forecaster is None) != (not arm.jump_steps):
                raise ValueError(f"{arm.name} of {self.name} must have both a forecaster and jump steps, or neither")
            if arm.jump_steps and arm.jump_steps[-1] >= arm.steps:
                raise ValueError(
                    f"steps of {arm.name} must be more than its last jump, {arm.jump_steps[-1]}; got {arm.steps}"
                )
        for name in (*self.drawn, *(claim.arm for claim in self.claims), *(claim.against for claim in self.claims)):
            self.arm(name)

    def arm(self, name: str) -> Arm:
        """Returns an arm by its name.

        Raises:
          ValueError: unknown name.
        """
        for arm in self.arms:
            if arm.name == name:
                return arm
        raise ValueError(f"unknown arm {name!r} of {self.name}; known are {', '.join(arm.name for arm in self.arms)}")

    def settings(self) -> dict[str, Any]:
        """Returns what its results depend on apart from their arm, for JSON."""
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
        values = {name: getattr(self, name) for name in (*names, "data", "augmentation")}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
