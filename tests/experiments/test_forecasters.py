"""Forecasters by name, and what tells them from each other in the header of a result."""

import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

import optax_introspect
from experiments.forecasters import FORECASTERS, fingerprint, forecaster

ROOT = Path(__file__).parents[2]
NOWHERE = Path("no", "where")


def untrained(seed=0, **settings):
    network = optax_introspect.IntrospectionNetwork(rngs=nnx.Rngs(seed))
    return optax_introspect.introspection(network, **settings)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("introspection", optax_introspect.pretrained("mnist-n0")),
        ("introspection-k2.2", optax_introspect.pretrained("mnist-n0-k2.2")),
        ("introspection-linear", optax_introspect.pretrained("mnist-n0-linear")),
        ("two-point-1.3", optax_introspect.polynomial(1, 1.3, points=(1.0, 0.4))),
        ("two-point-2", optax_introspect.polynomial(1, 2.0, points=(1.0, 0.4))),
        ("linear-fit-1.075", optax_introspect.polynomial(1, 1.075)),
        ("quadratic-1.25", optax_introspect.polynomial(2, 1.25)),
        ("noise-0.005", optax_introspect.gaussian_noise(0.005, 0)),
    ],
)
def test_a_name_says_what_it_is(name, expected):
    found = forecaster(name, NOWHERE)
    assert found.points == expected.points
    weights = [np.float32([i, 0.1 * i**2, -1]) for i in range(len(found.points))]
    key = jax.random.key(3)
    np.testing.assert_array_equal(found(*weights, key=key), expected(*weights, key=key))
    assert fingerprint(found) == fingerprint(expected)


def test_the_average_is_that_of_all_points():
    weights = [np.float32([1, 5]), np.float32([2, 5]), np.float32([4, 5]), np.float32([9, 5])]
    found = forecaster("average", NOWHERE)
    np.testing.assert_allclose(found(*weights, key=jax.random.key(0)), [4, 5], rtol=1e-6)


@pytest.mark.parametrize("name", ["oracle", "two-point", "two-point-1.30", "fitted", ""])
def test_an_unknown_name_lists_the_known_ones(name):
    message = f"unknown forecaster {name!r}; known are introspection, .*, two-point-1.3, .*, average and fitted-NAME"
    with pytest.raises(ValueError, match=re.escape(message).replace(r"\.\*", ".*")):
        forecaster(name, NOWHERE)


def test_a_fitted_predictor(tmp_path):
    made = untrained(1)
    message = f"no predictor {tmp_path}/equivariant/predictor: .*experiments run predictors"
    with pytest.raises(FileNotFoundError, match=message):
        forecaster("fitted-equivariant", tmp_path)
    optax_introspect.save(made, tmp_path / "equivariant" / "predictor")
    loaded = forecaster("fitted-equivariant", tmp_path)
    assert fingerprint(loaded) == fingerprint(made)
    with pytest.raises(FileNotFoundError, match=f"no predictor {tmp_path}/l1/predictor: "):
        forecaster("fitted-l1", tmp_path)


def test_fingerprints_tell_forecasters_apart():
    names = [name for name in FORECASTERS if name != "average"]
    found = [fingerprint(FORECASTERS[name]()) for name in names] + [
        fingerprint(other)
        for other in (
            untrained(),
            untrained(1),
            untrained(scale=100.0),
            untrained(points=(1.0, 0.8, 0.5, 0.1)),
            optax_introspect.gaussian_noise(0.005, 1),
            optax_introspect.polynomial(0, 1.0),
        )
    ]
    assert len(set(found)) == len(found)
    assert fingerprint(untrained()) == fingerprint(untrained())


def test_one_changed_weight_is_another_fingerprint():
    network = optax_introspect.IntrospectionNetwork(rngs=nnx.Rngs(0))
    before = fingerprint(optax_introspect.introspection(network))
    *_, (_, variable) = nnx.to_flat_state(nnx.state(network, nnx.Param))
    variable[...] = np.nextafter(np.asarray(variable[...]), np.float32(9))
    assert fingerprint(optax_introspect.introspection(network)) != before


def test_fingerprints_are_the_same_in_every_process():
    code = """
from experiments.forecasters import FORECASTERS, fingerprint
for name, make in FORECASTERS.items():
    print(name, fingerprint(make()), sep="=")
"""
    environment = os.environ | {"PYTHONHASHSEED": "7"}
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.stderr == ""
    assert run.stdout.splitlines() == [f"{name}={fingerprint(make())}" for name, make in FORECASTERS.items()]
