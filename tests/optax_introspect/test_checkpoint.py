"""Predictors on disk: written and read bit for bit, and the shipped ones."""

import inspect
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx

import optax_introspect
from optax_introspect import IntrospectionNetwork, load, network_forecaster, pretrained, save

SHIPPED = Path(optax_introspect.__file__).parent.parent / "checkpoints"
NAMES = ("mnist-n0", "mnist-n0-equivariant", "mnist-n0-k2.2", "mnist-n0-linear")


def network_of(seed=0, **arguments):
    """Makes a network none of whose weights is zero."""
    network = IntrospectionNetwork(**arguments, rngs=nnx.Rngs(seed))
    random = np.random.default_rng(seed)
    for _, variable in nnx.to_flat_state(nnx.state(network)):
        variable[...] = jnp.asarray(random.normal(size=variable.shape), jnp.float32)
    return network


def weights_of(forecaster):
    flat = nnx.to_flat_state(nnx.state(forecaster.module))
    return {".".join(map(str, key)): variable.get_value() for key, variable in flat}


def assert_same(found, expected):
    assert (found.points, found.scale) == (expected.points, expected.scale)
    assert list(map(type, found.points)) == list(map(type, expected.points))
    for attribute in ("num_points", "hidden", "activation", "use_bias", "residual"):
        assert getattr(found.module, attribute) == getattr(expected.module, attribute)
    have, want = weights_of(found), weights_of(expected)
    assert have.keys() == want.keys()
    for name in want:
        assert isinstance(have[name], np.ndarray)
        assert have[name].dtype == np.float32
        assert have[name].tobytes() == want[name].tobytes()
    weights = np.random.default_rng(0).normal(size=(len(found.points), 13)).astype(np.float32)
    a, b = (np.asarray(made(*map(jnp.asarray, weights), key=jax.random.key(0))) for made in (found, expected))
    assert a.tobytes() == b.tobytes()


def contents(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize(
    ("arguments", "others"),
    [
        ({}, {}),
        ({"activation": "identity"}, {"scale": 0.1 + 0.2}),
        ({"hidden": ()}, {}),
        ({"hidden": (5, 3, 2)}, {"scale": 1e-6}),
        ({"use_bias": False, "residual": True, "hidden": (400,)}, {}),
        ({"num_points": 1, "hidden": (2,)}, {"points": (1.0,)}),
        ({"num_points": 5}, {"points": (1.0, 1 / 3, 1e-9, -49, -50)}),
    ],
)
def test_what_is_saved_is_loaded_bit_for_bit(tmp_path, arguments, others):
    forecaster = network_forecaster(network_of(**arguments), **others)
    save(forecaster, tmp_path / "new" / "predictor")
    assert_same(load(tmp_path / "new" / "predictor"), forecaster)
    save(load(tmp_path / "new" / "predictor"), tmp_path / "again")
    assert contents(tmp_path / "again") == contents(tmp_path / "new" / "predictor")
    assert {path.name for path in tmp_path.iterdir()} == {"new", "again"}


def test_numbers_that_are_easily_lost(tmp_path):
    network = IntrospectionNetwork(rngs=nnx.Rngs(0))
    network.layers[0].kernel[...] = jnp.zeros((4, 40))
    limits = jnp.finfo(jnp.float32)
    special = [-0.0, 1e-45, float(limits.tiny), float(limits.max), -float(limits.max)]
    network.layers[0].bias[...] = jnp.asarray(np.array(special * 8, np.float32))
    forecaster = network_forecaster(network)
    save(forecaster, tmp_path / "predictor")
    found, expected = weights_of(load(tmp_path / "predictor")), weights_of(forecaster)
    assert {name: array.tobytes() for name, array in found.items()} == {
        name: array.tobytes() for name, array in expected.items()
    }


def test_relative_paths_and_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    save(pretrained(), "folder/here")
    save(pretrained(), Path("~/there"))
    assert_same(load("~/folder/here"), pretrained())
    assert_same(load("there"), pretrained())


def test_files_of_a_predictor(tmp_path):
    save(pretrained("mnist-n0"), tmp_path / "predictor")
    arrays = {"layers.0.bias/0", "layers.0.kernel/0.0", "layers.1.bias/0", "layers.1.kernel/0.0"}
    files = contents(tmp_path / "predictor")
    assert set(files) == {"config/metadata", "weights/_METADATA"} | {f"weights/{name}" for name in arrays} | {
        f"weights/{name.split('/')[0]}/.zarray" for name in arrays
    }
    assert json.loads(files["config/metadata"]) == {
        "points": [1.0, 0.7, 0.4, 0.0],
        "scale": 1000.0,
        "network": {"num_points": 4, "hidden": [40], "activation": "relu", "use_bias": True, "residual": False},
    }
    weights = ocp.StandardCheckpointer().restore(tmp_path / "predictor" / "weights")
    for name, array in weights_of(pretrained("mnist-n0")).items():
        np.testing.assert_array_equal(weights[name], array)


@pytest.mark.parametrize("name", NAMES)
def test_shipped_predictors(name, tmp_path):
    forecaster = pretrained(name)
    assert forecaster is pretrained(name)
    assert_same(load(SHIPPED / name), forecaster)
    assert (forecaster.points, forecaster.scale) == ((1.0, 0.7, 0.4, 0.0), 1000)
    save(forecaster, tmp_path / "again")
    shipped = contents(SHIPPED / name)
    assert shipped.pop("README.md").startswith(b"# ")
    assert shipped.pop("forecasts.png").startswith(b"\x89PNG")
    again = contents(tmp_path / "again")
    assert again.keys() == shipped.keys()  # those of the weights are compressed, by each version in its own way
    assert all(again[file] == shipped[file] for file in ("config/metadata", "weights/_METADATA"))


def test_names_of_the_shipped_predictors():
    assert {path.parent.name for path in SHIPPED.glob("*/config")} == set(NAMES)
    assert inspect.signature(pretrained).parameters["name"].default == "mnist-n0-equivariant"
    with pytest.raises(ValueError, match=r"name must be one of \['mnist-n0', .*\]; got 'imagenet'"):
        pretrained("imagenet")


def test_the_default_moves_no_weight_that_has_not_moved():
    weights = jnp.asarray(np.random.default_rng(0).normal(size=1000), jnp.float32)
    np.testing.assert_array_equal(pretrained()(*[weights] * 4, key=jax.random.key(0)), weights)


def forecast(w):
    return pretrained("mnist-n0")(w, 0.7 * w, 0.4 * w, 0 * w, key=jax.random.key(0))


class Model(nnx.Module):
    def __init__(self):
        self.w = nnx.Param(forecast(jnp.ones(3)))


@pytest.mark.parametrize(
    "first_use",
    [
        lambda: jax.jit(forecast)(jnp.ones(3)),
        lambda: jax.vmap(forecast)(jnp.ones((2, 3))),
        lambda: nnx.jit(Model)(),
        lambda: nnx.eval_shape(Model),
    ],
)
def test_the_first_use_may_be_inside_of_a_transformation(first_use):
    pretrained.cache_clear()
    first_use()
    assert_same(pretrained("mnist-n0"), load(SHIPPED / "mnist-n0"))
    assert np.all(np.asarray(forecast(jnp.ones(3))) > 1)


class Own(IntrospectionNetwork):
    pass


@pytest.mark.parametrize(
    "other",
    [
        optax_introspect.polynomial(1, 1.3),
        optax_introspect.gaussian_noise(0.1, 0),
        optax_introspect.custom_forecaster(lambda w: w, (1.0,)),
        network_forecaster(Own(rngs=nnx.Rngs(0))),
        network_forecaster(nnx.Linear(4, 1, rngs=nnx.Rngs(0))),
        IntrospectionNetwork(rngs=nnx.Rngs(0)),
        None,
    ],
)
def test_other_forecasters_are_not_saved(other, tmp_path):
    with pytest.raises(
        TypeError, match=r"forecaster must be network_forecaster\(IntrospectionNetwork\(\.\.\.\)\); got"
    ):
        save(other, tmp_path / "predictor")
    assert not list(tmp_path.iterdir())


def test_a_network_that_was_changed_is_not_saved(tmp_path):
    network = IntrospectionNetwork(hidden=(3,), rngs=nnx.Rngs(0))
    network.layers[1] = nnx.Linear(3, 1, use_bias=False, rngs=nnx.Rngs(0))
    with pytest.raises(
        ValueError,
        match=r"the network of forecaster must be as it was made: 'layers\.1\.bias' is missing, and must be float32",
    ):
        save(network_forecaster(network), tmp_path / "predictor")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["empty folder", "file", "predictor"])
def test_nothing_is_overwritten(kind, tmp_path):
    path = tmp_path / "here"
    {"empty folder": path.mkdir, "file": path.touch, "predictor": lambda: shutil.copytree(SHIPPED / NAMES[0], path)}[
        kind
    ]()
    before = contents(tmp_path)
    with pytest.raises(FileExistsError, match="path must be a new folder"):
        save(pretrained(), path)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("call", [load, lambda path: save(pretrained(), path)])
def test_urls_are_refused(call):
    with pytest.raises(ValueError, match=r"path must be a local folder; got 'gs://bucket/predictor': copy it to"):
        call("gs://bucket/predictor")
