"""The records: their keys are known, and they are those of the results that are there."""

import json
from pathlib import Path

import pytest

from experiments import results
from experiments._config import Experiment
from experiments.data import AUGMENTATIONS, DATA
from experiments.networks import NETWORKS
from experiments.optimizers import DECAYS, FITTED, FORECASTERS, LEAVES, OPTIMIZERS
from experiments.registry import EXPERIMENTS
from experiments.studies import HISTORIES, Movement, Predictors

FOLDER = Path(__file__).parents[2] / "results"
TRAININGS = {name: e for name, e in EXPERIMENTS.items() if isinstance(e, Experiment)}


@pytest.mark.parametrize("name", TRAININGS)
def test_keys(name):
    experiment = TRAININGS[name]
    assert experiment.network in NETWORKS
    if experiment.minutes is not None:  # ImageNet has its own
        assert experiment.data in DATA
        assert experiment.augmentation is None or experiment.augmentation in AUGMENTATIONS
    fits = {FITTED + fit.name for fit in EXPERIMENTS["predictors"].arms}
    for arm in experiment.arms:
        assert (arm.optimizer or experiment.optimizer) in OPTIMIZERS
        assert arm.decay in DECAYS
        assert arm.leaves in LEAVES
        assert arm.averaging in (None, "ema")
        assert arm.forecaster is None or arm.forecaster in FORECASTERS.keys() | fits


def test_studies():
    for experiment in EXPERIMENTS.values():
        if type(experiment) is Predictors:
            assert all(fit.history in HISTORIES for fit in experiment.arms)
        if isinstance(experiment, Movement):
            assert all(arm.network in NETWORKS and arm.optimizer in OPTIMIZERS for arm in experiment.arms)


@pytest.mark.parametrize("name", [name for name in results.names(FOLDER) if name.removesuffix("-v0.1") in TRAININGS])
def test_results_are_of_the_records(name):
    experiment, found = TRAININGS[name.removesuffix("-v0.1")], results.read(name, FOLDER)
    settings = json.loads(json.dumps(experiment.settings()))
    for key, value in found.info["settings"].items():
        assert settings[key] == value
    known = {arm.name for arm in experiment.arms}
    for key, measured in found.info["arms"].items():
        if name.endswith("-v0.1") and key not in known:  # measured again, but with fewer arms
            continue
        arm = experiment.arm(key).settings()
        if key != "lookahead":  # was a way to average weights, and is a forecaster
            same = ("jump_steps", "steps", "rate", "decay", "leaves", "averaging")
            assert {k: measured[k] for k in same if k in measured} == {k: arm[k] for k in same if k in measured}
        assert set(found.curves(key)) <= set(range(experiment.arm(key).seeds))
