"""The experiments on MNIST, each in one record."""

from collections.abc import Sequence
from typing import Any

from ._config import Arm, Claim, Experiment, Paper, Study
from .studies import Fit, Movement, Predictors, Recorded

JUMPS_1, JUMPS_2, JUMPS_3, JUMPS_4 = (3000, 4000, 5000), (2500, 3000), (6000, 8000, 10_000), (2000, 3000, 4000)
_AFTER = (1, 2, 5, 10, 20, 50, 100, 200, 350, 500)

# Of arms that jump, by name: the label and the key of the forecaster, where that is not the name.
_NETWORKS = {
    "introspection": ("network", "mnist-n0"),
    "introspection-k2.2": ("network, to 2.2t", "mnist-n0-k2.2"),
    "introspection-linear": ("linear network", "mnist-n0-linear"),
    "introspection-equivariant": ("equivariant network", "mnist-n0-equivariant"),
    # Fitted before it was shipped, by `run predictors`.
    "fitted-equivariant": ("equivariant network", "fitted-equivariant"),
}
_RULES = {
    "two-point-": "two points, ",
    "quadratic-": "quadratic fit, ",
    "linear-fit-": "linear fit, ",
    "noise-": "noise, std ",
    "nesterov-": "Nesterov, every ",
    "average": "average of points",
}


def jumping(name: str, jump_steps: Sequence[int], *, end: str = "", **settings: Any) -> Arm:
    """Returns the arm with the name of a forecaster; `end` follows its name, and its label."""
    label, key = _NETWORKS.get(name, (name, name))
    for prefix, spelled in _RULES.items():
        label = spelled + label.removeprefix(prefix) if label.startswith(prefix) else label
    return Arm(name + end, label + end.replace("-", ", ", 1), key, jump_steps, **settings)


def _forecast_claims(noise: str, points: float) -> tuple[Claim, ...]:
    return (
        Claim("noise instead of a forecast gains nothing", noise, expects="no gain", points=points),
        Claim("a linear fit gains nothing", "linear-fit-1.1", expects="no gain", points=points),
        Claim("a quadratic fit can destroy the weights", "quadratic-1.4", expects="collapse"),
        Claim("the network beats the linear network", "introspection", "introspection-linear"),
    )


_FITS = ("quadratic-1.25", "quadratic-1.3", "quadratic-1.4", "linear-fit-1.1", "linear-fit-1.075")
_STEADIER = "forecasts of 2t are steadier than of 2.2t"

quickstart = Experiment(
    name="quickstart",
    title="Quickstart",
    question="Do jumps help MNIST_3, with SGD and with Adam?",
    minutes=6,
    network="MNIST_3",
    optimizer="sgd",
    learning_rate=5e-3,
    batch_size=100,
    arms=(
        Arm("sgd-plain", "SGD", steps=15_000, seeds=3),
        Arm("sgd-introspection", "SGD, jumps", "mnist-n0", JUMPS_3, steps=15_000, seeds=3),
        Arm("adam-plain", "Adam", steps=15_000, seeds=3, rate=0.2, optimizer="adam"),
        Arm(
            "adam-introspection", "Adam, jumps", "mnist-n0", JUMPS_3, steps=15_000, seeds=3, rate=0.2, optimizer="adam"
        ),
    ),
    every=250,
    around=JUMPS_3,
    choices="As `mnist_3-sgd` and `mnist_3-adam`, with the paper's predictor.",
)

mnist_1_sgd = Experiment(
    name="mnist_1-sgd",
    title="MNIST_1, SGD",
    question="Do jumps speed up a convolutional network trained with SGD, and does the forecast matter?",
    minutes=130,
    network="MNIST_1",
    optimizer="sgd",
    learning_rate=1e-2,
    batch_size=50,
    arms=(
        Arm("plain", "plain", steps=20_000, seeds=2),
        jumping("introspection", JUMPS_1, steps=20_000, seeds=2),
        *(
            jumping(name, JUMPS_1, steps=8000, seeds=2)
            for name in ("introspection-linear", "fitted-equivariant", "two-point-1.3")
        ),
        *(jumping(name, JUMPS_1, steps=8000, seeds=1) for name in (*_FITS, "noise-0.001", "noise-0.005")),
    ),
    every=500,
    around=JUMPS_1,
    train_examples=2000,
    drawn=("plain", "introspection"),
    claims=_forecast_claims("noise-0.005", 1.0),
    paper=Paper(
        "section 4.2: 98.22 % with jumps against 97.22 % without, at step 20 000; figures 13 to 15: noise and the "
        "linear fit gain nothing, the quadratic fit falls behind the network and can destroy the weights (99.19 % at "
        "best, a drop to 9.8 %), the linear network is between SGD and the network",
        plain=0.9722,
        jumps=0.9822,
    ),
    choices=(
        "The paper prints 8 channels for the first convolution and 32 for the input of the second; 32 here. Of the "
        "initial weights it gives the standard deviation only; biases start at zero here. It doesn't give the standard "
        "deviations of the noise: 0.001 and 0.005 here, about what a weight moves between jumps. Its 99.19 % with the "
        "quadratic fit are above all else that it reports for SGD, and cannot be of this training: not compared."
    ),
)

mnist_1_adam = Experiment(
    name="mnist_1-adam",
    title="MNIST_1, Adam",
    question="Do jumps also help a convolutional network trained with Adam, and how far should they go?",
    minutes=45,
    network="MNIST_1",
    optimizer="adam",
    learning_rate=1e-4,
    batch_size=50,
    arms=(
        Arm("plain", "plain", steps=10_000, seeds=2),
        *(
            jumping(name, JUMPS_1, steps=10_000, seeds=2)
            for name in ("introspection", "introspection-k2.2", "introspection-equivariant")
        ),
    ),
    every=500,
    around=JUMPS_1,
    train_examples=2000,
    claims=(Claim(_STEADIER, "introspection", "introspection-k2.2", measure="steadiness"),),
    paper=Paper(
        "section 4.3: 99.34 % with jumps against 99.30 % without, after 7200 instead of 10 000 steps; jump ratio 2.0 "
        "is steadier than 2.2",
        plain=0.9930,
        jumps=0.9934,
        plain_steps=10_000,
        jumps_steps=7200,
    ),
    choices="The jump steps with Adam are not given: those of MNIST_1 with SGD here.",
)

mnist_2 = Experiment(
    name="mnist_2",
    title="MNIST_2",
    question="Do jumps help a LeNet with a decaying learning rate?",
    minutes=60,
    network="MNIST_2",
    optimizer="sgd",
    learning_rate=1e-2,
    batch_size=64,
    arms=(
        Arm("plain", "plain", steps=10_000, seeds=5, decay="inverse"),
        *(
            jumping(name, JUMPS_2, steps=10_000, seeds=5, decay="inverse")
            for name in ("introspection", "introspection-equivariant", "two-point-1.3")
        ),
    ),
    every=250,
    around=JUMPS_2,
    train_examples=2000,
    paper=Paper(
        "section 4.2: 99.11 % after 3500 steps with jumps, after 6000 without",
        plain=0.9911,
        jumps=0.9911,
        plain_steps=6000,
        jumps_steps=3500,
    ),
    choices=(
        "Where the ReLUs are is not said: after the first dense layer here, as in Caffe's LeNet, which has the same "
        "sizes, batches and decay. Without momentum, since the paper says SGD. Xavier's initial weights are uniform "
        "here, as in Caffe; biases start at zero."
    ),
)


def _mnist_3(optimizer: str, spelled: str, learning_rate: float, paper: Paper) -> Experiment:
    ways = (
        *("introspection", "introspection-equivariant", "introspection-linear"),
        *("two-point-1.3", "two-point-1.5", "quadratic-1.4", "linear-fit-1.1", "noise-0.02"),
    )
    how: dict[str, Any] = {"steps": 15_000, "seeds": 5}
    return Experiment(
        name=f"mnist_3-{optimizer}",
        title=f"MNIST_3, {spelled}",
        question=f"Do jumps help a dense network with {spelled}, and do simpler rules do as well?",
        minutes=40,
        network="MNIST_3",
        optimizer=optimizer,
        learning_rate=learning_rate,
        batch_size=100,
        arms=(
            Arm("plain", "plain", **how),
            Arm("ema", "EMA of weights", averaging="ema", **how),
            Arm("lookahead", "lookahead", "lookahead-5", range(4, 15_000, 5), **how),
            *(jumping(f"nesterov-{k}", range(k - 1, 15_000, k), **how) for k in (20, 50)),
            *(jumping(name, JUMPS_3, **how) for name in ways),
        ),
        every=250,
        around=JUMPS_3,
        drawn=("plain", "introspection", "two-point-1.5", "nesterov-20", "quadratic-1.4"),
        claims=_forecast_claims("noise-0.02", 1.18),
        paper=paper,
        choices=(
            "The paper names both SGD and Adam for this network, in different places: both are run. Biases start like "
            "weights, normal with standard deviation 1. Noise: about what the forecast moves a weight (0.02). Not in "
            "the paper: EMA, lookahead, and outer Nesterov momentum every 20 and 50 steps (learning rate 0.8, momentum "
            "0.75). More forecasters were measured in version 0.1."
        ),
    )


mnist_3_sgd = _mnist_3(
    "sgd",
    "SGD",
    5e-3,
    Paper(
        "section 4.2: 96.89 % with jumps against 95.71 % without, the latter reached after 8300 instead of 15 000 "
        "steps",
        plain=0.9571,
        jumps=0.9689,
        plain_steps=15_000,
        jumps_steps=8300,
    ),
)
mnist_3_adam = _mnist_3(
    "adam",
    "Adam",
    1e-3,
    Paper(
        "section 4.3: 96.9 % with jumps against 95.7 % without, the latter reached after 8800 instead of 15 000 steps",
        plain=0.957,
        jumps=0.969,
        plain_steps=15_000,
        jumps_steps=8800,
    ),
)

mnist_4 = Experiment(
    name="mnist_4",
    title="MNIST_4",
    question="Do jumps help a recurrent network?",
    minutes=20,
    network="MNIST_4",
    optimizer="adam",
    learning_rate=5e-4,
    batch_size=128,
    arms=(
        Arm("plain", "plain", steps=7000, seeds=3),
        *(
            jumping(name, JUMPS_4, steps=7000, seeds=3)
            for name in ("introspection", "introspection-equivariant", "two-point-1.3")
        ),
    ),
    every=250,
    around=JUMPS_4,
    train_examples=5000,
    paper=Paper(
        "section 4.2: 98.85 % with jumps against 98.65 % without, the latter reached after 4200 instead of 6500 steps",
        plain=0.9865,
        jumps=0.9885,
        plain_steps=6500,
        jumps_steps=4200,
    ),
    choices="The initial weights are not given: Flax's defaults here.",
)

predictors = Predictors(
    name="predictors",
    title="N_0 and I",
    question="Which loss, jump ratio and form give the smallest error on weights that were not fitted to?",
    minutes=15,
    arms=(
        Fit("l1"),
        Fit("l2", loss="l2"),
        Fit("percentage", loss="percentage"),
        Fit("k1.5", jump_ratio=1.5),
        Fit("k2.2", jump_ratio=2.2),
        Fit("k3", jump_ratio=3.0),
        Fit("linear", activation="identity"),
        Fit("equivariant", equivariant=True),
        Fit("equivariant-linear", equivariant=True, activation="identity"),
        Fit("l1-seed-1", history="lecun-1"),
        Fit("equivariant-seed-1", history="lecun-1", equivariant=True),
        Fit("l1-wide", history="wide"),
        Fit("equivariant-wide", history="wide", equivariant=True),
    ),
    paper=Paper("section 4.1: L1 of 3.1 on training and 3.4 on validation examples, weights times 1000"),
    choices=(
        "How N_0 starts and how long it runs is not given: LeCun normal and 20 000 steps, and two variants. Steps t "
        "are uniform. Of the examples half are from the 50 % of weights that have moved most, a quarter each from the "
        "next and the last 25 %, as the paper has it, though that reweights hardly anything. The learning rate of the "
        "predictor is halved every 8000 steps: by how much it falls is not given."
    ),
)


def _fitted(optimizer: str, spelled: str, learning_rate: float) -> Experiment:
    return Experiment(
        name=f"mnist_3-predictors-{optimizer}",
        title=f"Fitted predictors, {spelled}",
        question=f"Which loss, jump ratio and form of the network make a good predictor for {spelled}?",
        minutes=15,
        network="MNIST_3",
        optimizer=optimizer,
        learning_rate=learning_rate,
        batch_size=100,
        arms=(
            Arm("plain", "plain", steps=15_000, seeds=3),
            *(
                Arm(f"fitted-{fit.name}", f"fitted: {fit.name}", f"fitted-{fit.name}", JUMPS_3, steps=15_000, seeds=3)
                for fit in predictors.arms
            ),
        ),
        every=500,
        around=JUMPS_3,
        claims=(
            Claim("L1 beats L2", "fitted-l1", "fitted-l2"),
            Claim("L1 beats percentage error", "fitted-l1", "fitted-percentage"),
            Claim(_STEADIER, "fitted-l1", "fitted-k2.2", measure="steadiness"),
        ),
        paper=Paper("section 4.3: a predictor fitted with L1 is best, and jump ratio 2.0 steadier than 2.2"),
        choices="Needs the predictors that `run predictors` leaves in the same work folder.",
    )


def _schedules() -> tuple[Arm, ...]:
    schedules: dict[str, tuple[int, ...]] = {}
    for first in (1000, 2000, 4000, 6000, 8000):
        for interval in (500, 1000, 2000):
            for count in range(1, 7):
                jump_steps = tuple(first + i * interval for i in range(count))
                if jump_steps[-1] <= 13_000 and not (count == 1 and interval > 500):  # one jump has no interval
                    schedules[f"{first}-by-{interval}-x{count}"] = jump_steps
    return tuple(Arm(name, name, "mnist-n0", steps, steps=15_000, seeds=2) for name, steps in schedules.items())


mnist_3_schedules = Experiment(
    name="mnist_3-schedules",
    title="Schedules",
    question="When should the first jump be, how far apart should jumps be, and how many?",
    minutes=25,
    network="MNIST_3",
    optimizer="sgd",
    learning_rate=5e-3,
    batch_size=100,
    arms=(Arm("plain", "plain", steps=15_000, seeds=2), *_schedules()),
    every=500,
    paper=Paper("section 4: jump steps are given without a rule; they lie where the training has slowed down"),
)


def _rates(optimizer: str, spelled: str, learning_rate: float, rates: tuple[float, ...]) -> Experiment:
    arms: list[Arm] = []
    for decay in ("none", "cosine"):
        for rate in rates:
            end = f"-x{rate:g}" + ("" if decay == "none" else f"-{decay}")
            how: dict[str, Any] = {"steps": 15_000, "seeds": 3, "rate": rate, "decay": decay}
            arms.append(Arm(f"plain{end}", f"plain, {end[1:]}", **how))
            arms += [jumping(way, JUMPS_3, end=end, **how) for way in ("introspection", "two-point-1.3")]
    return Experiment(
        name=f"mnist_3-rates-{optimizer}",
        title=f"Learning rates, {spelled}",
        question=f"Do jumps still help when the learning rate of {spelled} is tuned, for both?",
        minutes=30,
        network="MNIST_3",
        optimizer=optimizer,
        learning_rate=learning_rate,
        batch_size=100,
        arms=tuple(arms),
        every=250,
    )


def _budgets(name: str, title: str, network: str, rates: tuple[float, ...]) -> Experiment:
    arms: list[Arm] = []
    for budget in (1875, 3750, 7500, 15_000, 30_000):
        jump_steps = tuple(budget * t // 15_000 for t in JUMPS_3)
        for rate in rates:
            end = f"-{budget}-x{rate:g}"
            how: dict[str, Any] = {"steps": budget, "seeds": 3, "rate": rate, "decay": "cosine"}
            arms.append(Arm(f"plain{end}", f"plain, {end[1:]}", **how))
            arms += [jumping(way, jump_steps, end=end, **how) for way in ("introspection", "two-point-1.3")]
    return Experiment(
        name=name,
        title=title,
        question="How many steps do jumps save when the learning rate falls to zero at the budget, for both?",
        minutes=75,
        network=network,
        optimizer="adam",
        learning_rate=1e-3,
        batch_size=100,
        arms=tuple(arms),
        every=1875,
        train_examples=60_000,
        choices="Jumps at 0.4, 0.53 and 0.67 of the budget, as the paper's for MNIST_3.",
    )


def _layers(name: str, network: str, minutes: int, parts: Sequence[str], steps: int, **settings: Any) -> Experiment:
    seeds, jumps = settings.pop("seeds"), settings["around"]
    return Experiment(
        name=name,
        title=f"{network}, parts",
        question="What does a jump do to the loss, and which weights gain from it?",
        minutes=minutes,
        network=network,
        optimizer="sgd",
        arms=(
            Arm("plain", "plain", steps=steps, seeds=seeds),
            *(Arm(part, part, "mnist-n0", jumps, steps=steps, seeds=seeds, leaves=part) for part in parts),
        ),
        after_jump=_AFTER,
        **settings,
    )


mnist_3_layers = _layers(
    "mnist_3-layers", "MNIST_3", 5, ("all", "first-layer", "later-layers", "kernels", "biases"), 15_000,
    seeds=3, learning_rate=5e-3, batch_size=100, every=250, around=JUMPS_3,
)  # fmt: skip
mnist_1_layers = _layers(
    "mnist_1-layers", "MNIST_1", 40, ("all", "convolutions", "dense", "biases"), 5600,
    seeds=2, learning_rate=1e-2, batch_size=50, every=500, around=JUMPS_1, train_examples=2000,
)  # fmt: skip

movement = Movement(
    name="movement",
    title="Weight change",
    question="How much do weights change, on what curves, and what does a jump do to one?",
    minutes=30,
    arms=(
        Recorded("convolutional-sgd", "N_0", "sgd", 1e-2, 50, 15_000, 100, JUMPS_3),
        Recorded("dense-adam", "MNIST_3", "adam", 1e-3, 100, 15_000, 100, JUMPS_3),
    ),
    seeds=3,
    paper=Paper(
        "section 3, figures 1 to 10: most weights hardly change, those that do follow smooth curves, and few carry "
        "most of the change"
    ),
    choices=(
        "Which networks, for how long and at which rate is not said: N_0 for the convolutional one, here with SGD, and "
        "MNIST_3 for the dense one, at their usual rates, both with the jumps of MNIST_3."
    ),
)

EXPERIMENTS: tuple[Study, ...] = (
    quickstart,
    predictors,
    mnist_3_sgd,
    mnist_3_adam,
    _fitted("sgd", "SGD", 5e-3),
    _fitted("adam", "Adam", 1e-3),
    _rates("sgd", "SGD", 5e-3, (0.5, 1.0, 2.0, 4.0, 8.0)),
    _rates("adam", "Adam", 1e-3, (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)),
    _budgets("mnist_3-budgets", "MNIST_3", "MNIST_3", (2.0, 4.0, 8.0, 16.0, 32.0)),
    _budgets("he-budgets", "MNIST_3, He initialization", "MNIST_3, He", (0.5, 1.0, 2.0, 4.0, 8.0)),
    mnist_3_schedules,
    mnist_3_layers,
    mnist_4,
    mnist_1_sgd,
    mnist_1_adam,
    mnist_1_layers,
    mnist_2,
    movement,
)
