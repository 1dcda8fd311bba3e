"""Every experiment on MNIST, as data."""

from .fits import FITS, Fits
from .movement import Movement, Recorded
from .records import Arm, Paper, Training, arm, jumping

_LINEAR_AND_QUADRATIC = ("quadratic-1.25", "quadratic-1.3", "quadratic-1.4", "linear-fit-1.1", "linear-fit-1.075")
_TWO_POINT = tuple(f"two-point-{k:g}" for k in (1.1, 1.2, 1.3, 1.4, 1.5, 1.75, 2.0))
_EQUIVARIANT = "fitted-equivariant"  # fitted before it was shipped, which is `introspection-equivariant`

_JUMPS_1, _JUMPS_2, _JUMPS_3, _JUMPS_4 = (3000, 4000, 5000), (2500, 3000), (6000, 8000, 10_000), (2000, 3000, 4000)
_AFTER = (1, 2, 5, 10, 20, 50, 100, 200, 350, 500)

_MNIST_1_SGD = Training(
    name="mnist_1-sgd",
    question="Do jumps speed up a convolutional network trained with SGD, and does the forecast matter?",
    network="MNIST_1",
    optimizer="sgd",
    learning_rate=1e-2,
    batch_size=50,
    arms=(
        arm("plain", 2, 20_000),
        arm("introspection", 2, 20_000, "introspection", _JUMPS_1),
        *jumping(("introspection-linear", _EQUIVARIANT, "two-point-1.3"), 2, 8000, _JUMPS_1),
        *jumping((*_LINEAR_AND_QUADRATIC, "noise-0.001", "noise-0.005"), 1, 8000, _JUMPS_1),
    ),
    every=500,
    around=_JUMPS_1,
    train_examples=2000,
    minutes=130,
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

_MNIST_1_ADAM = Training(
    name="mnist_1-adam",
    question="Do jumps also help a convolutional network trained with Adam, and how far should they go?",
    network="MNIST_1",
    optimizer="adam",
    learning_rate=1e-4,
    batch_size=50,
    arms=(
        arm("plain", 2, 10_000),
        *jumping(("introspection", "introspection-k2.2", "introspection-equivariant"), 2, 10_000, _JUMPS_1),
    ),
    every=500,
    around=_JUMPS_1,
    train_examples=2000,
    minutes=45,
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

_MNIST_2 = Training(
    name="mnist_2",
    question="Do jumps help a LeNet with a decaying learning rate?",
    network="MNIST_2",
    optimizer="sgd",
    learning_rate=1e-2,
    batch_size=64,
    arms=(
        arm("plain", 5, 10_000, decay="inverse"),
        *jumping(("introspection", "introspection-equivariant", "two-point-1.3"), 5, 10_000, _JUMPS_2, decay="inverse"),
    ),
    every=250,
    around=_JUMPS_2,
    train_examples=2000,
    minutes=50,
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


def _mnist_3(optimizer: str, learning_rate: float, paper: Paper) -> Training:
    names = (
        "introspection",
        "introspection-k2.2",
        "introspection-linear",
        _EQUIVARIANT,
        *_TWO_POINT,
        *_LINEAR_AND_QUADRATIC,
        "average",
        "noise-0.005",
        "noise-0.02",
        "noise-0.1",
    )
    return Training(
        name=f"mnist_3-{optimizer}",
        question=f"Do jumps help a dense network with {_SPELLED[optimizer]}, and do simpler rules do as well?",
        network="MNIST_3",
        optimizer=optimizer,
        learning_rate=learning_rate,
        batch_size=100,
        arms=(
            arm("plain", 5, 15_000),
            arm("ema", 5, 15_000, averaging="ema"),
            arm("lookahead", 5, 15_000, averaging="lookahead"),
            *jumping(names, 5, 15_000, _JUMPS_3),
        ),
        every=250,
        around=_JUMPS_3,
        minutes=25,
        paper=paper,
        choices=(
            "The paper names both SGD and Adam for this network, in different places: both are run. Biases start like "
            "weights, normal with standard deviation 1. Noise: about what "
            "the forecast moves a weight (0.02), and a quarter and five times of that."
        ),
    )


_SPELLED = {"sgd": "SGD", "adam": "Adam"}
_MNIST_3 = (
    _mnist_3(
        "sgd",
        5e-3,
        Paper(
            "section 4.2: 96.89 % with jumps against 95.71 % without, the latter reached after 8300 instead of 15 000 "
            "steps",
            plain=0.9571,
            jumps=0.9689,
            plain_steps=15_000,
            jumps_steps=8300,
        ),
    ),
    _mnist_3(
        "adam",
        1e-3,
        Paper(
            "section 4.3: 96.9 % with jumps against 95.7 % without, the latter reached after 8800 instead of 15 000 "
            "steps",
            plain=0.957,
            jumps=0.969,
            plain_steps=15_000,
            jumps_steps=8800,
        ),
    ),
)

_MNIST_4 = Training(
    name="mnist_4",
    question="Do jumps help a recurrent network?",
    network="MNIST_4",
    optimizer="adam",
    learning_rate=5e-4,
    batch_size=128,
    arms=(
        arm("plain", 3, 7000),
        *jumping(("introspection", "introspection-equivariant", "two-point-1.3"), 3, 7000, _JUMPS_4),
    ),
    every=250,
    around=_JUMPS_4,
    train_examples=5000,
    minutes=20,
    paper=Paper(
        "section 4.2: 98.85 % with jumps against 98.65 % without, the latter reached after 4200 instead of 6500 steps",
        plain=0.9865,
        jumps=0.9885,
        plain_steps=6500,
        jumps_steps=4200,
    ),
    choices="The initial weights are not given: Flax's defaults here.",
)


def _predictors(optimizer: str, learning_rate: float) -> Training:
    return Training(
        name=f"mnist_3-predictors-{optimizer}",
        question=f"Which loss, jump ratio and form of the network make a good predictor for {_SPELLED[optimizer]}?",
        network="MNIST_3",
        optimizer=optimizer,
        learning_rate=learning_rate,
        batch_size=100,
        arms=(arm("plain", 3, 15_000), *jumping([f"fitted-{fit.name}" for fit in FITS], 3, 15_000, _JUMPS_3)),
        every=500,
        around=_JUMPS_3,
        minutes=15,
        paper=Paper("section 4.3: a predictor fitted with L1 is best, and jump ratio 2.0 steadier than 2.2"),
    )


def _schedules() -> Training:
    steps = 15_000
    arms = []
    for first in (1000, 2000, 4000, 6000, 8000):
        for interval in (500, 1000, 2000):
            for count in range(1, 7):
                jump_steps = tuple(first + i * interval for i in range(count))
                if jump_steps[-1] <= 13_000 and not (count == 1 and interval > 500):  # one jump has no interval
                    arms.append(arm(f"{first}-by-{interval}-x{count}", 2, steps, "introspection", jump_steps))
    return Training(
        name="mnist_3-schedules",
        question="When should the first jump be, how far apart should jumps be, and how many?",
        network="MNIST_3",
        optimizer="sgd",
        learning_rate=5e-3,
        batch_size=100,
        arms=(arm("plain", 2, steps), *arms),
        every=500,
        minutes=25,
        paper=Paper("section 4: jump steps are given without a rule; they lie where the training has slowed down"),
    )


def _rates(optimizer: str, learning_rate: float, rates: tuple[float, ...]) -> Training:
    arms: list[Arm] = []
    for decay in ("none", "cosine"):
        for rate in rates:
            tail = f"x{rate:g}" if decay == "none" else f"x{rate:g}-{decay}"
            arms.append(arm(f"plain-{tail}", 3, 15_000, rate=rate, decay=decay))
            for name in ("introspection", "two-point-1.3"):
                arms.append(arm(f"{name}-{tail}", 3, 15_000, name, _JUMPS_3, rate=rate, decay=decay))
    return Training(
        name=f"mnist_3-rates-{optimizer}",
        question=f"Do jumps still help when the learning rate of {_SPELLED[optimizer]} is tuned, for both?",
        network="MNIST_3",
        optimizer=optimizer,
        learning_rate=learning_rate,
        batch_size=100,
        arms=tuple(arms),
        every=250,
        minutes=30,
    )


def _budgets(name: str, network: str, rates: tuple[float, ...], minutes: int) -> Training:
    arms: list[Arm] = []
    for budget in (1875, 3750, 7500, 15_000, 30_000):
        jump_steps = tuple(budget * t // _BUDGET_3 for t in _JUMPS_3)
        for rate in rates:
            tail = f"{budget}-x{rate:g}"
            arms.append(arm(f"plain-{tail}", 3, budget, rate=rate, decay="cosine"))
            for way in ("introspection", "two-point-1.3"):
                arms.append(arm(f"{way}-{tail}", 3, budget, way, jump_steps, rate=rate, decay="cosine"))
    return Training(
        name=name,
        question="How many steps do jumps save when the learning rate falls to zero at the budget, for both?",
        network=network,
        optimizer="adam",
        learning_rate=1e-3,
        batch_size=100,
        arms=tuple(arms),
        every=1875,
        train_examples=60_000,
        minutes=minutes,
        choices="Jumps at 0.4, 0.53 and 0.67 of the budget, as the paper's for MNIST_3.",
    )


_BUDGET_3 = 15_000

_LAYERS = Training(
    name="mnist_3-layers",
    question="What does a jump do to the loss, and which weights gain from it?",
    network="MNIST_3",
    optimizer="sgd",
    learning_rate=5e-3,
    batch_size=100,
    arms=(
        arm("plain", 3, 15_000),
        *(
            arm(leaves, 3, 15_000, "introspection", _JUMPS_3, leaves=leaves)
            for leaves in ("all", "first-layer", "later-layers", "kernels", "biases")
        ),
    ),
    every=250,
    around=_JUMPS_3,
    after_jump=_AFTER,
    minutes=5,
)

_LAYERS_1 = Training(
    name="mnist_1-layers",
    question="What does a jump do to the loss of a convolutional network, and which weights gain from it?",
    network="MNIST_1",
    optimizer="sgd",
    learning_rate=1e-2,
    batch_size=50,
    arms=(
        arm("plain", 2, 5600),
        *(
            arm(leaves, 2, 5600, "introspection", _JUMPS_1, leaves=leaves)
            for leaves in ("all", "convolutions", "dense", "biases")
        ),
    ),
    every=500,
    around=_JUMPS_1,
    after_jump=_AFTER,
    train_examples=2000,
    minutes=40,
)

_MOVEMENT = Movement(
    name="movement",
    question="How much do weights change, on what curves, and what does a jump do to one?",
    minutes=30,
    paper=Paper(
        "section 3, figures 1 to 10: most weights hardly change, those that do follow smooth curves, and few carry "
        "most of the change"
    ),
    choices=(
        "Which networks, for how long and at which rate is not said: N_0 for the convolutional one, here with SGD, and "
        "MNIST_3 for the dense one, at their usual rates, both with the jumps of MNIST_3."
    ),
    num_seeds=3,
    recorded=(
        Recorded("convolutional-sgd", "N_0 with SGD", "N_0", "sgd", 1e-2, 50, 15_000, 100, _JUMPS_3),
        Recorded("dense-adam", "MNIST_3 with Adam", "MNIST_3", "adam", 1e-3, 100, 15_000, 100, _JUMPS_3),
    ),
)

EXPERIMENTS: dict[str, Training | Fits | Movement] = {
    experiment.name: experiment
    for experiment in (
        Fits(),
        *_MNIST_3,
        _predictors("sgd", 5e-3),
        _predictors("adam", 1e-3),
        _rates("sgd", 5e-3, (0.5, 1.0, 2.0, 4.0, 8.0)),
        _rates("adam", 1e-3, (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)),
        _budgets("mnist_3-budgets", "MNIST_3", (2.0, 4.0, 8.0, 16.0, 32.0), minutes=75),
        _budgets("he-budgets", "MNIST_3, He", (0.5, 1.0, 2.0, 4.0, 8.0), minutes=75),
        _schedules(),
        _LAYERS,
        _MNIST_4,
        _MNIST_1_SGD,
        _MNIST_1_ADAM,
        _LAYERS_1,
        _MNIST_2,
        _MOVEMENT,
    )
}
