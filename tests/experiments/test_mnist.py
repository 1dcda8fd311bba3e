"""The records of experiments fit together, and are the paper's."""

import dataclasses
import itertools
import math

import jax
import pytest
from flax import nnx

import optax_introspect
from experiments.data import AUGMENTATIONS, DATA
from experiments.fits import FITS, HISTORIES, Fits
from experiments.forecasters import FITTED, FORECASTERS
from experiments.movement import Movement
from experiments.networks import INITIAL_WEIGHTS, NETWORKS
from experiments.optimizers import AVERAGING, DECAYS, LEAVES, OPTIMIZERS, mask
from experiments.records import Training
from experiments.runner import training_units
from experiments.table import EXPERIMENTS

from . import tiny

TRAININGS = {name: experiment for name, experiment in EXPERIMENTS.items() if isinstance(experiment, Training)}
NAMES = [
    "predictors",
    *("mnist_3-sgd", "mnist_3-adam"),
    *("mnist_3-predictors-sgd", "mnist_3-predictors-adam"),
    *("mnist_3-rates-sgd", "mnist_3-rates-adam"),
    *("mnist_3-budgets", "he-budgets", "mnist_3-schedules", "mnist_3-layers"),
    *("mnist_4", "mnist_1-sgd", "mnist_1-adam", "mnist_1-layers", "mnist_2"),
    "movement",
    *(
        "cifar_1-tenth",
        "cifar_1",
        "alexnet-cifar10",
        "alexnet-cifar10-constant",
        "inception-cifar10",
        "movement-cifar10",
    ),
]


# What a record must be.


@pytest.mark.parametrize(
    ("arms", "message"),
    [
        ([tiny.arm("plain"), tiny.arm("plain")], r"tiny: two arms have the same name, among \['plain', 'plain'\]"),
        (
            [tiny.arm("plain"), tiny.arm("a", "average")],
            "tiny: a must have both a forecaster and jump steps, or neither",
        ),
        ([tiny.arm("plain", jump_steps=(3,))], "tiny: plain must have both a forecaster and jump steps, or neither"),
        (
            [tiny.arm("plain"), tiny.arm("a", "average", (5, 10), steps=10)],
            "tiny: a jumps at 10, so that it needs more steps than 10",
        ),
        ([tiny.arm("a", "average", (5,))], "tiny: there is no arm without jumps for a to branch from"),
        (
            [tiny.arm("plain"), tiny.arm("a", "average", (5,), rate=2.0)],
            "tiny: there is no arm without jumps for a to branch from",
        ),
        (
            [tiny.arm("plain", decay="cosine", steps=20), tiny.arm("a", "average", (5,), decay="cosine", steps=24)],
            "tiny: there is no arm without jumps for a to branch from",  # the rates of 20 and 24 steps differ
        ),
        (
            [tiny.arm("plain", steps=4), tiny.arm("a", "average", (5,))],
            "tiny: a branches from plain, which doesn't get there",
        ),
        (
            [tiny.arm("plain", seeds=(0,)), tiny.arm("a", "average", (5,), seeds=(0, 1))],
            "tiny: a branches from plain, which doesn't get there",
        ),
    ],
)
def test_what_a_record_must_be(arms, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        tiny.training(*arms)


def test_what_an_arm_branches_from():
    plain, slow, cosine = tiny.arm("plain"), tiny.arm("slow", rate=0.5), tiny.arm("cosine", decay="cosine")
    jumping = [
        tiny.arm(f"j-{arm.name}", "average", (5,), rate=arm.rate, decay=arm.decay) for arm in (plain, slow, cosine)
    ]
    longer = tiny.arm("longer", "average", (5, 30), steps=40)
    experiment = tiny.training(plain, slow, cosine, *jumping, longer)
    assert [experiment.trunk_of(arm) for arm in experiment.arms] == [*[plain, slow, cosine] * 2, plain]


def test_the_settings_are_what_a_result_depends_on():
    experiment = tiny.training(tiny.arm("plain"))
    before = experiment.settings()
    for field in dataclasses.fields(experiment):
        if field.name not in ("arms", "paper"):
            other = dataclasses.replace(experiment, **{field.name: "other"}).settings()
            changed = field.name not in ("question", "minutes", "choices")
            assert (other != before) == changed, field.name


def test_seeds():
    experiment = tiny.training(tiny.arm("plain", seeds=(0, 1, 5)), tiny.arm("a", "average", (5,), seeds=(1,)))
    assert experiment.seeds == (0, 1, 5)


# Those on MNIST.


def test_every_experiment_has_its_name():
    assert list(EXPERIMENTS) == NAMES
    assert [experiment.name for experiment in EXPERIMENTS.values()] == NAMES
    assert isinstance(EXPERIMENTS["predictors"], Fits)
    assert isinstance(EXPERIMENTS["movement"], Movement)
    assert isinstance(EXPERIMENTS["movement-cifar10"], Movement)


@pytest.mark.parametrize("experiment", EXPERIMENTS.values(), ids=EXPERIMENTS)
def test_every_experiment_asks_something_and_says_what_it_takes(experiment):
    assert experiment.question.endswith("?")
    assert 0 < experiment.minutes < 48 * 60
    names = [arm.name for arm in experiment.arms]
    assert len(set(names)) == len(names) > isinstance(experiment, Training)
    assert all(name == name.strip() and "/" not in name for name in names)
    assert experiment.seeds


@pytest.mark.parametrize("experiment", TRAININGS.values(), ids=TRAININGS)
def test_everything_that_an_experiment_names_is_there(experiment):
    assert experiment.network in NETWORKS
    assert experiment.optimizer in OPTIMIZERS
    assert experiment.data in DATA
    assert experiment.augmentation is None or experiment.augmentation in AUGMENTATIONS
    fits = {f"{FITTED}{fit.name}" for fit in FITS}
    for arm in experiment.arms:
        assert arm.forecaster is None or arm.forecaster in FORECASTERS or arm.forecaster in fits
        assert arm.decay in DECAYS
        assert arm.averaging is None or arm.averaging in AVERAGING
        assert arm.averaging is None or arm.forecaster is None  # which `_Branch` could not take apart
        assert arm.leaves in LEAVES
        assert arm.rate > 0


@pytest.fixture(scope="module")
def points():
    """The trajectory points of every forecaster; fitted ones have the paper's."""
    return {name: make().points for name, make in FORECASTERS.items()}


@pytest.mark.parametrize("experiment", TRAININGS.values(), ids=TRAININGS)
def test_all_jumps_can_be_made(experiment, points):
    for arm in experiment.arms:
        if arm.jump_steps:
            schedule = optax_introspect.plan(arm.jump_steps, points.get(arm.forecaster, (1.0, 0.7, 0.4, 0.0)))
            assert schedule.jump_steps == arm.jump_steps
            assert arm.jump_steps[-1] < arm.steps


@pytest.mark.parametrize("experiment", TRAININGS.values(), ids=TRAININGS)
def test_every_arm_is_trained_once_for_each_of_its_seeds(experiment):
    units = training_units(experiment, experiment.arms, experiment.seeds)
    trained = [(arm.name, unit.seed) for unit in units for arm in (unit.trunk, *unit.branches)]
    assert sorted(trained) == sorted((arm.name, seed) for arm in experiment.arms for seed in arm.seeds)
    plain = [arm.forecaster is None for arm in experiment.arms[:2]]
    assert plain[0]


@pytest.fixture(scope="module")
def params():
    return {
        name: nnx.eval_shape(lambda network=network: nnx.state(network(rngs=nnx.Rngs(0)), nnx.Param))
        for name, network in NETWORKS.items()
    }


@pytest.mark.parametrize(
    ("network", "leaves"),
    sorted({(e.network, arm.leaves) for e in TRAININGS.values() for arm in e.arms if arm.leaves != "all"}),
)
def test_a_part_of_the_weights_is_some_and_not_all(network, leaves, params):
    chosen = jax.tree.leaves(mask(leaves)(params[network]))
    assert any(chosen)
    assert not all(chosen)


@pytest.mark.parametrize("name", ["mnist_3-layers", "mnist_1-layers"])
def test_the_parts_make_up_the_whole(name, params):
    """Every weight is in one of two parts, as far as both are there."""
    experiment = EXPERIMENTS[name]
    all_leaves = [arm.leaves for arm in experiment.arms]
    for pair in (("first-layer", "later-layers"), ("kernels", "biases"), ("convolutions", "dense")):
        if set(pair) <= set(all_leaves):
            one, other = (jax.tree.leaves(mask(leaves)(params[experiment.network])) for leaves in pair)
            assert [a != b for a, b in zip(one, other, strict=True)] == [True] * len(one)
    assert {arm.name for arm in experiment.arms if arm.forecaster} == set(all_leaves)


PAPER = {
    "mnist_1-sgd": ("MNIST_1", "sgd", 1e-2, 50, 20_000, (3000, 4000, 5000), 0.9722, 0.9822, None, None),
    "mnist_1-adam": ("MNIST_1", "adam", 1e-4, 50, 10_000, (3000, 4000, 5000), 0.9930, 0.9934, 10_000, 7200),
    "mnist_2": ("MNIST_2", "sgd", 1e-2, 64, 10_000, (2500, 3000), 0.9911, 0.9911, 6000, 3500),
    "mnist_3-sgd": ("MNIST_3", "sgd", 5e-3, 100, 15_000, (6000, 8000, 10_000), 0.9571, 0.9689, 15_000, 8300),
    "mnist_3-adam": ("MNIST_3", "adam", 1e-3, 100, 15_000, (6000, 8000, 10_000), 0.957, 0.969, 15_000, 8800),
    "mnist_4": ("MNIST_4", "adam", 5e-4, 128, 7000, (2000, 3000, 4000), 0.9865, 0.9885, 6500, 4200),
}


@pytest.mark.parametrize("name", PAPER)
def test_an_experiment_of_the_paper_is_the_papers(name):
    experiment = EXPERIMENTS[name]
    plain, jumping = experiment.arms[0], next(a for a in experiment.arms if a.name == "introspection")
    assert (plain.name, plain.forecaster, jumping.forecaster, jumping.leaves) == (
        "plain",
        None,
        "introspection",
        "all",
    )
    assert plain.steps == jumping.steps
    assert plain.rate == jumping.rate == 1
    assert plain.decay == jumping.decay == ("inverse" if name == "mnist_2" else "none")
    paper = experiment.paper
    assert PAPER[name] == (
        experiment.network,
        experiment.optimizer,
        experiment.learning_rate,
        experiment.batch_size,
        jumping.steps,
        jumping.jump_steps,
        paper.plain,
        paper.jumps,
        paper.plain_steps,
        paper.jumps_steps,
    )
    # Before and after each jump, the arms that jump are compared with those that don't.
    assert experiment.around == jumping.jump_steps


def test_the_paper_compares_with_other_forecasts():
    arms = {arm.name for arm in EXPERIMENTS["mnist_1-sgd"].arms}
    assert {"quadratic-1.25", "quadratic-1.3", "quadratic-1.4", "linear-fit-1.1", "linear-fit-1.075"} < arms
    assert {"introspection-linear", "noise-0.001", "noise-0.005"} < arms
    assert {"plain", "introspection", "introspection-k2.2"} < {arm.name for arm in EXPERIMENTS["mnist_1-adam"].arms}
    for name in ("mnist_1-adam", "mnist_2", "mnist_4"):
        assert "introspection-equivariant" in {arm.forecaster for arm in EXPERIMENTS[name].arms}
    for optimizer in ("sgd", "adam"):
        fitted = {arm.forecaster for arm in EXPERIMENTS[f"mnist_3-predictors-{optimizer}"].arms}
        assert fitted == {None, *(f"fitted-{fit.name}" for fit in FITS)}


def test_schedules():
    arms = {arm.name: arm.jump_steps for arm in EXPERIMENTS["mnist_3-schedules"].arms}
    assert arms.pop("plain") == ()
    assert arms["1000-by-500-x1"] == (1000,)
    assert arms["6000-by-2000-x3"] == (6000, 8000, 10_000)  # the paper's
    assert len(set(arms.values())) == len(arms)
    firsts = {steps[0] for steps in arms.values()}
    assert firsts == {1000, 2000, 4000, 6000, 8000}
    for steps in arms.values():
        assert len({later - earlier for earlier, later in itertools.pairwise(steps)}) <= 1
        assert 1 <= len(steps) <= 6


@pytest.mark.parametrize("name", ["mnist_3-budgets", "he-budgets"])
def test_budgets(name):
    experiment = EXPERIMENTS[name]
    assert {arm.steps for arm in experiment.arms} == {1875, 3750, 7500, 15_000, 30_000}
    for arm in experiment.arms:
        assert arm.decay == "cosine"
        assert all(
            math.isclose(step / arm.steps, share, abs_tol=1e-3)
            for step, share in zip(arm.jump_steps, (6 / 15, 8 / 15, 10 / 15), strict=bool(arm.jump_steps))
        )
        assert arm.steps % experiment.every == 0


def test_rates():
    # As far as the best of them is not the largest.
    for optimizer, rates in (("sgd", (0.5, 1, 2, 4, 8)), ("adam", (0.5, 1, 2, 4, 8, 16))):
        arms = EXPERIMENTS[f"mnist_3-rates-{optimizer}"].arms
        for name in ("plain", "introspection", "two-point-1.3"):
            assert {(arm.rate, arm.decay) for arm in arms if arm.name.startswith(f"{name}-x")} == {
                (rate, decay) for rate in rates for decay in ("none", "cosine")
            }


def test_it_is_said_how_every_network_starts():
    assert INITIAL_WEIGHTS.keys() == NETWORKS.keys()


def test_fits_and_recordings():
    assert [fit.name for fit in FITS] == list(dict.fromkeys(fit.name for fit in FITS))
    assert {fit.loss for fit in FITS} == {"l1", "l2", "percentage"}
    assert {fit.jump_ratio for fit in FITS} == {1.5, 2.0, 2.2, 3.0}
    assert {fit.history for fit in FITS} == set(HISTORIES)
    assert not {fit.name for fit in FITS} & set(HISTORIES)  # they share a folder
    for experiment in EXPERIMENTS.values():
        if isinstance(experiment, Movement):
            assert all(recorded.network in NETWORKS for recorded in experiment.recorded)
            assert experiment.data in DATA
