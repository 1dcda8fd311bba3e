import _pickle
import hashlib
import json
import logging
import math
import pickle
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tensorstore as ts
from flax import linen as nn
from flax import nnx

from optax_introspect import (
    IntrospectionNetwork,
    checkpoint,
    forecaster,
    gaussian_noise,
    introspection,
    load,
    polynomial,
    pretrained,
    save,
)

KEY = jax.random.key(0)
ARRAYS = {
    "layers.0.bias": (40,),
    "layers.0.kernel": (4, 40),
    "layers.2.bias": (1,),
    "layers.2.kernel": (40, 1),
}
CHUNKS = [f"weights/{name}/{'.'.join('0' * len(shape))}" for name, shape in ARRAYS.items()]
LAYOUTS = [f"weights/{name}/.zarray" for name in ARRAYS]
FILES = ["_CHECKPOINT_METADATA", "config/metadata", "weights/_METADATA", *CHUNKS, *LAYOUTS]


@pytest.fixture(autouse=True, scope="module")
def _quiet():
    logging.disable(logging.WARNING)  # Orbax remarks on every save that there is no database to merge
    yield
    logging.disable(logging.NOTSET)


def network_of(*arguments, seed=0, **named):
    """Makes a network none of whose weights is zero."""
    network = IntrospectionNetwork(*arguments, **named, rngs=nnx.Rngs(seed))
    rng = np.random.default_rng(seed)
    for variable in jax.tree.leaves(nnx.state(network), is_leaf=lambda x: isinstance(x, nnx.Variable)):
        variable[...] = jnp.asarray(rng.normal(size=variable.shape), jnp.float32)
    return network


def weights_of(made):
    return {
        ".".join(map(str, path)): np.asarray(variable[...])
        for path, variable in nnx.to_flat_state(nnx.state(made.network))
    }


def assert_same(found, expected):
    """Checks that two forecasters are the same, bit for bit."""
    assert type(found) is type(expected)
    assert type(found.network) is IntrospectionNetwork
    for attribute in ("points", "scale"):
        assert getattr(found, attribute) == getattr(expected, attribute)
    for attribute in ("num_points", "hidden", "activation", "use_bias", "relative"):
        assert getattr(found.network, attribute) == getattr(expected.network, attribute)
    have, want = weights_of(found), weights_of(expected)
    assert have.keys() == want.keys()
    for name in want:
        assert (have[name].dtype, have[name].shape) == (want[name].dtype, want[name].shape)
        assert have[name].tobytes() == want[name].tobytes(), name
    weights = np.random.default_rng(0).normal(size=(len(found.points), 13)).astype(np.float32)
    forecasts = [np.asarray(made(*map(jnp.asarray, weights), key=KEY)) for made in (found, expected)]
    assert forecasts[0].tobytes() == forecasts[1].tobytes()


@pytest.fixture(scope="module")
def papers():
    return introspection(network_of())


@pytest.fixture(scope="module")
def saved(papers, tmp_path_factory):
    """A folder with the paper's network, not to be written to."""
    folder = tmp_path_factory.mktemp("saved") / "predictor"
    save(papers, folder)
    return folder


@pytest.fixture
def copy(saved, tmp_path):
    """A folder with the paper's network, to be damaged."""
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def edit(file, change):
    """Changes what a JSON file holds, by a function that works in place."""
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def make_format_1(folder, change=lambda config: None):
    """Makes a predictor as it was when the digest was of the weights alone."""

    def as_it_was(config):
        digest = hashlib.sha256()
        for name in sorted(ARRAYS):
            chunk = ts.open(
                {"driver": "zarr", "kvstore": {"driver": "file", "path": str(folder / "weights" / name)}}
            ).result()
            digest.update(chunk.read().result().tobytes())
        config.update(format=1, sha256=digest.hexdigest())
        change(config)

    edit(folder / "config" / "metadata", as_it_was)


def files_of(folder):
    return {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}


class TestRoundTrip:
    @pytest.mark.parametrize(
        ("arguments", "others"),
        [
            pytest.param({}, {}, id="the paper's"),
            pytest.param({"activation": "identity"}, {}, id="linear"),
            pytest.param({"hidden": ()}, {}, id="no hidden layer"),
            pytest.param({"hidden": (1,)}, {"scale": 1.0}, id="one unit"),
            pytest.param({"hidden": (8, 8)}, {"scale": 0.1 + 0.2}, id="two hidden layers"),
            pytest.param({"hidden": (5, 3, 2), "activation": "identity"}, {"scale": 1e-6}, id="three"),
            pytest.param({"hidden": (400,)}, {"scale": math.pi}, id="wide"),
            pytest.param({"use_bias": False}, {}, id="without biases"),
            pytest.param({"relative": True}, {}, id="relative"),
            pytest.param({"use_bias": False, "relative": True}, {}, id="equivariant"),
            pytest.param({"use_bias": False, "relative": True, "hidden": (5, 3)}, {}, id="equivariant, two layers"),
            pytest.param({"use_bias": False, "relative": True, "activation": "identity"}, {}, id="linear equivariant"),
            pytest.param({"num_points": 1, "hidden": (2,)}, {"points": (1,)}, id="one point"),
            pytest.param({"num_points": 2}, {"points": (1, 1 / 3)}, id="two points"),
            pytest.param({"num_points": 5}, {"points": (1, 0.9, 0.8, 0.1 + 0.2, 1e-9)}, id="five points"),
        ],
    )
    def test_bit_for_bit(self, arguments, others, tmp_path):
        made = introspection(network_of(**arguments), **others)
        save(made, tmp_path / "predictor")
        assert_same(load(tmp_path / "predictor"), made)

    def test_numbers_that_are_easily_lost(self, tmp_path):
        network = IntrospectionNetwork(rngs=nnx.Rngs(0))
        network.layers[0].kernel[...] = jnp.zeros((4, 40))  # what zarr fills missing chunks with
        limits = jnp.finfo(jnp.float32)
        special = [-0.0, 1e-45, float(limits.tiny), float(limits.max), float(limits.smallest_subnormal)]
        network.layers[0].bias[...] = jnp.asarray(np.array(special * 8, np.float32))
        made = introspection(network)
        save(made, tmp_path / "predictor")
        found = weights_of(load(tmp_path / "predictor"))
        for name, array in weights_of(made).items():
            assert found[name].tobytes() == array.tobytes(), name

    def test_format_1(self, papers, copy):
        make_format_1(copy)
        assert_same(load(copy), papers)

    def test_a_config_that_says_nothing_of_biases_and_differences(self, papers, copy):
        def as_it_was(config):
            del config["network"]["use_bias"], config["network"]["relative"]

        make_format_1(copy, as_it_was)
        assert_same(load(copy), papers)

    def test_saved_again_it_is_the_same(self, papers, saved, tmp_path):
        save(load(saved), tmp_path / "again")
        assert_same(load(tmp_path / "again"), papers)
        changing = {"_CHECKPOINT_METADATA"}  # it says when it was written
        again = files_of(tmp_path / "again")
        for name, path in files_of(saved).items():
            assert name in changing or path.read_bytes() == again[name].read_bytes(), name

    def test_forecasts_of_large_arrays(self, papers, saved):
        weights = [jnp.linspace(-1, 1, 70_000) + i for i in range(4)]
        found = load(saved)(*weights, key=KEY)
        np.testing.assert_array_equal(found, papers(*weights, key=KEY))
        assert np.any(found)

    @pytest.mark.parametrize("kind", [str, Path])
    def test_relative_paths(self, kind, papers, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        save(papers, kind("new/folder"))
        assert (tmp_path / "new" / "folder" / "config").is_dir()
        assert_same(load(kind("new/folder")), papers)

    def test_loading_changes_nothing_on_disk(self, copy):
        before = {name: path.read_bytes() for name, path in files_of(copy).items()}
        load(copy)
        assert {name: path.read_bytes() for name, path in files_of(copy).items()} == before

    def test_what_is_loaded_can_be_moved(self, papers, copy, tmp_path):
        shutil.move(copy, tmp_path / "elsewhere")
        assert_same(load(tmp_path / "elsewhere"), papers)

    def test_a_model_card_may_lie_in_the_folder(self, papers, copy):
        (copy / "README.md").write_text("# A predictor")
        (copy / "forecasts.png").write_bytes(b"\x89PNG")
        assert_same(load(copy), papers)


class TestFiles:
    def test_orbax_reads_it(self, papers, saved):
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
            parts = ocp.args.Composite(config=ocp.args.JsonRestore(), weights=ocp.args.PyTreeRestore())
            found = checkpointer.restore(saved, parts)
        assert found["config"]["scale"] == papers.scale
        expected = weights_of(papers)
        assert found["weights"].keys() == expected.keys()
        for name, array in expected.items():
            np.testing.assert_array_equal(found["weights"][name], array)

    def test_the_files(self, saved):
        assert set(files_of(saved)) == set(FILES)

    def test_metadata_is_json_and_the_rest_is_small(self, saved):
        for name, path in files_of(saved).items():
            assert path.stat().st_size < 2048, name
            if name not in CHUNKS:
                assert isinstance(json.loads(path.read_text()), dict), name

    def test_the_config(self, saved):
        config = json.loads((saved / "config" / "metadata").read_text())
        expected = {
            "format": 2,
            "points": [1.0, 0.7, 0.4, 0.0],
            "scale": 1000.0,
            "network": {
                "num_points": 4,
                "hidden": [40],
                "activation": "relu",
                "use_bias": True,
                "relative": False,
            },
        }
        assert {key: config[key] for key in expected} == expected

    def test_without_biases_there_are_none(self, tmp_path):
        save(introspection(network_of(use_bias=False)), tmp_path / "predictor")
        kernels = {name for name in ARRAYS if name.endswith("kernel")}
        assert {path.name for path in (tmp_path / "predictor" / "weights").iterdir() if path.is_dir()} == kernels

    @pytest.mark.parametrize(("name", "shape"), ARRAYS.items())
    def test_the_arrays(self, name, shape, saved):
        layout = json.loads((saved / "weights" / name / ".zarray").read_text())
        assert (layout["dtype"], layout["shape"], layout["chunks"]) == ("<f4", list(shape), list(shape))

    def test_nothing_says_where_it_was_written(self, saved):
        places = {saved, *saved.parents, Path.home(), Path.cwd(), Path(__file__).parent} - {Path("/")}
        for name, path in files_of(saved).items():
            content = path.read_bytes()
            for place in places:
                assert str(place).encode() not in content, (name, place)

    def test_no_path_is_absolute(self, saved):
        def strings(value):
            if isinstance(value, dict):
                return [found for item in value.items() for found in strings(item)]
            if isinstance(value, list | tuple):
                return [found for item in value for found in strings(item)]
            return [value] if isinstance(value, str) else []

        for name in set(FILES) - set(CHUNKS):
            found = strings(json.loads((saved / name).read_text()))
            assert found, name
            assert [text for text in found if text.startswith(("/", "file:", "\\"))] == [], name


class TestSaveRefuses:
    class Own(IntrospectionNetwork):
        pass

    @pytest.mark.parametrize(
        "other",
        [
            pytest.param(polynomial(1, 1.3), id="polynomial"),
            pytest.param(gaussian_noise(0.1, 0), id="noise"),
            pytest.param(forecaster(lambda w: w, (1,)), id="function"),
            pytest.param(introspection(Own(rngs=nnx.Rngs(0))), id="subclass"),
            pytest.param(introspection(nnx.Sequential(nnx.Linear(4, 1, rngs=nnx.Rngs(0)))), id="sequential"),
            pytest.param(introspection(nn.Dense(1).bind(nn.Dense(1).init(KEY, jnp.ones(4)))), id="linen"),
            pytest.param(IntrospectionNetwork(rngs=nnx.Rngs(0)), id="the network itself"),
            pytest.param(None, id="None"),
        ],
    )
    def test_other_forecasters(self, other, tmp_path):
        with pytest.raises(TypeError, match=r"only an introspection.* can be saved; got ") as error:
            save(other, tmp_path / "predictor")
        assert repr(other) in str(error.value)
        assert list(tmp_path.iterdir()) == []

    def test_a_network_that_is_too_large(self, tmp_path):
        network = IntrospectionNetwork(hidden=(1100, 1000), rngs=nnx.Rngs(0))
        with pytest.raises(ValueError, match=r"a predictor may have at most 1048576 weights; this one has 1107501"):
            save(introspection(network), tmp_path / "predictor")
        assert list(tmp_path.iterdir()) == []

    def test_a_folder_that_is_there(self, papers, copy):
        before = {name: path.read_bytes() for name, path in files_of(copy).items()}
        with pytest.raises(FileExistsError, match="is there already") as error:
            save(papers, copy)
        assert str(copy) in str(error.value)
        assert {name: path.read_bytes() for name, path in files_of(copy).items()} == before

    def test_an_empty_folder_and_a_file(self, papers, tmp_path):
        (tmp_path / "folder").mkdir()
        (tmp_path / "file").write_text("precious")
        for name in ("folder", "file"):
            with pytest.raises(FileExistsError, match=f"{name} is there already"):
                save(papers, tmp_path / name)
        assert list((tmp_path / "folder").iterdir()) == []
        assert (tmp_path / "file").read_text() == "precious"


class TestLoadRefuses:
    def test_a_folder_that_is_not_there(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"there is no predictor at .*nowhere"):
            load(tmp_path / "nowhere")

    def test_a_file(self, tmp_path):
        (tmp_path / "file").write_text("{}")
        with pytest.raises(FileNotFoundError, match=r"there is no predictor at .*file"):
            load(tmp_path / "file")

    def test_an_empty_folder(self, tmp_path):
        with pytest.raises(ValueError, match="it has no folders named config and weights"):
            load(tmp_path)

    @pytest.mark.parametrize("folder", ["config", "weights"])
    def test_half_a_predictor(self, folder, copy):
        shutil.rmtree(copy / folder)
        with pytest.raises(ValueError, match="it has no folders named config and weights"):
            load(copy)

    @pytest.mark.parametrize("folder", ["config", "weights", *(f"weights/{name}" for name in ARRAYS)])
    def test_emptied_folders(self, folder, copy):
        shutil.rmtree(copy / folder)
        (copy / folder).mkdir()
        with pytest.raises(ValueError, match="does not hold a whole predictor"):
            load(copy)

    def test_a_foreign_checkpoint(self, tmp_path):
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(tmp_path / "foreign", {"kernel": np.ones((4, 40), np.float32)})
        with pytest.raises(ValueError, match="does not hold a predictor"):
            load(tmp_path / "foreign")

    @pytest.mark.parametrize("config", [{}, {"learning_rate": 0.1}, {"format": "orbax"}])
    def test_a_foreign_checkpoint_of_the_same_parts(self, config, tmp_path):
        write(tmp_path / "foreign", config, {"kernel": np.ones((4, 40), np.float32)})
        with pytest.raises(ValueError, match="does not hold a whole predictor"):
            load(tmp_path / "foreign")

    # Nothing but its own handlers reads a predictor, so that it doesn't matter what this file says of them.
    NOT_NEEDED = ("_CHECKPOINT_METADATA",)

    @pytest.mark.parametrize("damage", ["removed", "emptied", "truncated", "halved", "replaced"])
    @pytest.mark.parametrize("file", FILES)
    def test_a_damaged_file(self, file, damage, copy, papers):
        path = copy / file
        content = path.read_bytes()
        if damage == "removed":
            path.unlink()
        else:
            length = {"emptied": 0, "truncated": len(content) - 1, "halved": len(content) // 2, "replaced": 0}
            rest = b"\xff" * len(content) if damage == "replaced" else b""
            path.write_bytes(content[: length[damage]] + rest)
        if file in self.NOT_NEEDED:
            assert_same(load(copy), papers)
        else:
            with pytest.raises(ValueError, match="does not hold a whole predictor") as error:
                load(copy)
            assert str(copy) in str(error.value)
            assert error.value.__cause__ is not None

    @pytest.mark.parametrize("content", ["", "{", "null", "[]", "3", '"relu"', "{}", "not JSON", '{"format": 1}'])
    def test_a_bad_config(self, content, copy):
        (copy / "config" / "metadata").write_text(content)
        with pytest.raises(ValueError, match="does not hold a whole predictor"):
            load(copy)

    @pytest.mark.parametrize("version", [0, 3, "1", None, [1]])
    def test_an_unknown_format(self, version, copy):
        edit(copy / "config" / "metadata", lambda config: config.update(format=version))
        with pytest.raises(ValueError, match=r"its format is .*; known are 1 and 2") as error:
            load(copy)
        assert repr(version) in str(error.value)

    @pytest.mark.parametrize("key", ["format", "points", "scale", "network"])
    def test_a_missing_entry(self, key, copy):
        make_format_1(copy, lambda config: config.pop(key))
        with pytest.raises(ValueError, match=f"does not hold a whole predictor: .*{key}"):
            load(copy)

    @pytest.mark.parametrize(
        "change", [{"format": 1}, {"scale": 1100.0}, {"points": [1.0, 0.7, 0.3, 0.0]}, {"sha256": "0" * 64}, {"x": 1}]
    )
    def test_a_config_that_was_changed(self, change, copy):
        edit(copy / "config" / "metadata", lambda config: config.update(change))
        with pytest.raises(ValueError, match="does not hold a whole predictor: it is not as it was saved"):
            load(copy)

    @pytest.mark.parametrize("activation", ["gelu", "ReLU", "", None, ["relu"], "os.system"])
    def test_an_unknown_activation(self, activation, copy):
        edit(copy / "config" / "metadata", lambda config: config["network"].update(activation=activation))
        with pytest.raises(ValueError, match="does not hold a whole predictor"):
            load(copy)

    def test_names_the_unknown_activation(self, copy):
        edit(copy / "config" / "metadata", lambda config: config["network"].update(activation="gelu"))
        with pytest.raises(ValueError, match="unknown activation 'gelu'; known are"):
            load(copy)

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("num_points", 3), ("num_points", 5), ("num_points", 0), ("num_points", -4), ("num_points", "4"),
            ("num_points", None), ("hidden", []), ("hidden", [39]), ("hidden", [41]), ("hidden", [40, 40]),
            ("hidden", [0]), ("hidden", 40), ("hidden", "40"), ("hidden", [40.5]), ("hidden", None),
            ("hidden", [10**12]), ("use_bias", False), ("use_bias", 1), ("use_bias", None), ("relative", True),
            ("relative", 0), ("relative", "False"), ("rngs", 0), ("dtype", "bfloat16"),
        ],
    )  # fmt: skip
    def test_another_network(self, key, value, copy):
        edit(copy / "config" / "metadata", lambda config: config["network"].update({key: value}))
        with pytest.raises(ValueError, match="does not hold a whole predictor"):
            load(copy)

    @pytest.mark.parametrize(
        ("key", "message"),
        [
            ("relative", r"layers.0.kernel it has float32\[{}, 40\], where its network needs float32\[{}, 40\]"),
            ("use_bias", r"for layers.0.bias it has {}, where its network needs {}"),
        ],
    )
    @pytest.mark.parametrize("saved_as", [False, True])
    def test_a_flag_that_is_flipped(self, key, message, saved_as, tmp_path):
        save(introspection(network_of(**{key: saved_as})), tmp_path / "predictor")
        edit(
            tmp_path / "predictor" / "config" / "metadata",
            lambda config: config["network"].update({key: not saved_as}),
        )
        parts = {"relative": ("4", "3"), "use_bias": ("nothing", r"float32\[40\]")}[key]
        with pytest.raises(ValueError, match=message.format(*(reversed(parts) if saved_as else parts))):
            load(tmp_path / "predictor")

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("points", [1, 0.7, 0.4]), ("points", [1, 0.7, 0.4, 0.2, 0]), ("points", [0, 0.4, 0.7, 1]),
            ("points", [2, 1, 0.5, 0]), ("points", []), ("points", None), ("points", "abcd"), ("scale", 0),
            ("scale", -1000), ("scale", math.nan), ("scale", math.inf), ("scale", "1000"), ("scale", None),
        ],
    )  # fmt: skip
    def test_bad_points_and_scales(self, key, value, copy):
        make_format_1(copy, lambda config: config.update({key: value}))
        with pytest.raises(ValueError, match=r"does not hold a whole predictor: .*(point|scale)") as error:
            load(copy)
        assert "digest" not in str(error.value)

    @pytest.mark.parametrize(
        ("key", "value", "message"),
        [
            ("shape", [40, 4], r"float32\[40, 4\], where its network needs float32\[4, 40\]"),
            ("shape", [4, 39], r"float32\[4, 39\], where its network needs float32\[4, 40\]"),
            ("shape", [4, 41], r"float32\[4, 41\], where its network needs float32\[4, 40\]"),
            ("shape", [4, 40, 1], "does not hold a whole predictor"),
            ("shape", [160], "does not hold a whole predictor"),
            ("dtype", "<f8", r"float64\[4, 40\], where its network needs float32\[4, 40\]"),
            ("dtype", "<f2", r"float16\[4, 40\], where its network needs float32\[4, 40\]"),
            ("dtype", "<i4", r"int32\[4, 40\], where its network needs float32\[4, 40\]"),
            ("dtype", "|O", "does not hold a whole predictor"),
            ("chunks", [4, 20], "layers.0.kernel is not stored as one compressed piece"),
            ("chunks", [2, 40], "layers.0.kernel is not stored as one compressed piece"),
            ("chunks", [4, 80], "layers.0.kernel is not stored as one compressed piece"),
            ("compressor", None, "does not hold a whole predictor"),
            ("compressor", {"id": "blosc", "cname": "lz4", "clevel": 5, "shuffle": 1}, "not stored as one compressed"),
            ("filters", [{"id": "pickle"}], "layers.0.kernel is not stored as one compressed piece"),
            ("dimension_separator", "/", "does not hold a whole predictor"),
            ("zarr_format", 3, "does not hold a whole predictor"),
        ],
    )
    def test_an_edited_array(self, key, value, message, copy):
        def change(layout):
            layout.update({key: value} | ({"chunks": value} if key == "shape" else {}))

        edit(copy / "weights" / "layers.0.kernel" / ".zarray", change)
        if key == "shape":
            (copy / "weights" / "layers.0.kernel" / "0.0").rename(
                copy / "weights" / "layers.0.kernel" / ".".join("0" * len(value))
            )
        with pytest.raises(ValueError, match=message):
            load(copy)

    @pytest.mark.parametrize("fill_value", [0.0, 1.0])
    def test_a_missing_chunk_is_not_filled(self, fill_value, copy):
        folder = copy / "weights" / "layers.0.kernel"
        edit(folder / ".zarray", lambda layout: layout.update(fill_value=fill_value))
        (folder / "0.0").unlink()
        with pytest.raises(ValueError, match=r"does not hold a whole predictor: .*No such file"):
            load(copy)

    @pytest.mark.parametrize("name", ARRAYS)
    def test_an_array_that_is_not_listed(self, name, copy):
        edit(copy / "weights" / "_METADATA", lambda tree: tree["tree_metadata"].pop(f"('{name}',)"))
        with pytest.raises(ValueError, match=f"for {name} it has nothing, where its network needs float32"):
            load(copy)

    @pytest.mark.parametrize("kind", ["scalar", "string", "None", "Dict", "builtins.object"])
    def test_an_array_listed_as_something_else(self, kind, papers, copy):
        def change(tree):
            tree["tree_metadata"]["('layers.0.bias',)"]["value_metadata"]["value_type"] = kind

        edit(copy / "weights" / "_METADATA", change)
        assert_same(load(copy), papers)

    @pytest.mark.parametrize(
        "name", ["../evil", "/etc/passwd", "layers.0", "layers.0.bias/../../x", "", "layers.0.bias\n"]
    )
    def test_an_array_of_another_name(self, name, copy):
        def change(tree):
            tree["tree_metadata"]["('layers.0.bias',)"]["key_metadata"][0]["key"] = name

        edit(copy / "weights" / "_METADATA", change)
        with pytest.raises(ValueError, match="does not hold a whole predictor: it has an array named") as error:
            load(copy)
        assert repr(name) in str(error.value)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"layers.0.bias": None}, r"for layers.0.bias it has nothing, where its network needs float32\[40\]"),
            ({"layers.1.bias": np.zeros(1, np.float32)}, r"for layers.1.bias it has float32\[1\], .* nothing"),
            ({"layers.0.bias": np.zeros(40)}, r"float64\[40\], where its network needs float32\[40\]"),
            ({"layers.0.bias": np.zeros(40, np.int32)}, r"int32\[40\], where its network needs float32\[40\]"),
            ({"layers.0.bias": np.zeros(41, np.float32)}, r"float32\[41\], where its network needs float32"),
            ({"layers.0.bias": np.zeros((1, 40), np.float32)}, r"float32\[1, 40\], where its network needs"),
            ({"layers.0.bias": np.full(40, np.nan, np.float32)}, "does not hold a whole predictor"),
            ({"layers.2.kernel": np.full((40, 1), np.inf, np.float32)}, "does not hold a whole predictor"),
        ],
        ids=["missing", "extra", "float64", "int32", "longer", "another rank", "NaN", "infinite"],
    )
    def test_another_tree(self, changes, message, papers, saved, tmp_path):
        config = json.loads((saved / "config" / "metadata").read_text())
        weights = {name: array for name, array in (weights_of(papers) | changes).items() if array is not None}
        write(tmp_path / "predictor", config, weights)
        with pytest.raises(ValueError, match=message):
            load(tmp_path / "predictor")

    def test_but_not_the_right_tree(self, papers, saved, tmp_path):
        config = json.loads((saved / "config" / "metadata").read_text())
        write(tmp_path / "predictor", config, weights_of(papers))
        assert_same(load(tmp_path / "predictor"), papers)

    def test_a_database(self, papers, saved, tmp_path):
        config = json.loads((saved / "config" / "metadata").read_text())
        write(tmp_path / "predictor", config, weights_of(papers), database=True)
        for _ in range(2):
            with pytest.raises(ValueError, match="its weights are not in one folder for each array"):
                load(tmp_path / "predictor")
            edit(tmp_path / "predictor" / "weights" / "_METADATA", lambda tree: tree.update(use_ocdbt=False))


def write(folder, config, weights, database=False):
    """Writes an Orbax checkpoint of the two parts of a predictor."""
    handler = ocp.CompositeCheckpointHandler(
        config=ocp.JsonCheckpointHandler(), weights=ocp.PyTreeCheckpointHandler(use_ocdbt=database)
    )
    parts = ocp.args.Composite(config=ocp.args.JsonSave(config), weights=ocp.args.PyTreeSave(weights))
    with ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(folder, parts)


class TestSafety:
    def test_a_network_of_a_trillion_units(self, copy):
        """All of the files agree on it, and no memory is taken for it."""
        size = 10**12

        def widen(layout):
            layout["shape"] = layout["chunks"] = [size if length == 40 else length for length in layout["shape"]]

        for name in ARRAYS:
            edit(copy / "weights" / name / ".zarray", widen)
        edit(copy / "config" / "metadata", lambda config: config["network"].update(hidden=[size]))
        with pytest.raises(
            ValueError, match=r"a predictor may have at most 1048576 weights; this one has 6000000000001"
        ):
            load(copy)

    @pytest.mark.parametrize("file", ["config/metadata", "weights/_METADATA", LAYOUTS[0], CHUNKS[0]])
    def test_devices_are_not_read(self, file, copy):
        (copy / file).unlink()
        (copy / file).symlink_to("/dev/zero")
        with pytest.raises(ValueError, match=rf"does not hold a whole predictor: {copy / file} is not a regular file"):
            load(copy)

    def test_weights_and_settings_of_two_predictors(self, copy, tmp_path):
        save(introspection(network_of(seed=1), scale=10.0), tmp_path / "other")
        for part in ("config", "weights"):
            shutil.copytree(copy, tmp_path / part)
            shutil.rmtree(tmp_path / part / part)
            shutil.copytree(tmp_path / "other" / part, tmp_path / part / part)
            with pytest.raises(ValueError, match="does not hold a whole predictor: it is not as it was saved"):
                load(tmp_path / part)

    def test_nothing_is_unpickled(self, saved, papers, monkeypatch):
        class Refusing:
            def __init__(self, *_, **__):
                raise AssertionError("something is unpickled")

        with monkeypatch.context() as patch:
            for module in (pickle, _pickle):
                for name in ("load", "loads", "Unpickler"):
                    patch.setattr(module, name, Refusing)
            with pytest.raises(AssertionError, match="something is unpickled"):
                pickle.loads(pickle.dumps(1))
            found = load(saved)
        assert_same(found, papers)

    def test_handlers_named_in_the_checkpoint_are_not_looked_up(self, copy, papers):
        handlers = {"config": "os.system", "weights": "subprocess.Popen"}
        edit(copy / "_CHECKPOINT_METADATA", lambda metadata: metadata.update(item_handlers=handlers))
        assert_same(load(copy), papers)


class TestPretrained:
    @pytest.fixture(autouse=True)
    def _cleared(self):
        pretrained.cache_clear()
        yield
        pretrained.cache_clear()

    @pytest.fixture
    def shipped(self, papers, saved, tmp_path, monkeypatch):
        """A folder with two predictors, instead of those that are shipped."""
        linear = introspection(network_of(activation="identity", seed=1), scale=10.0)
        save(linear, tmp_path / "linear")
        shutil.copytree(saved, tmp_path / "papers")
        (tmp_path / "README.md").write_text("what they are")
        (tmp_path / "drafts").mkdir()
        monkeypatch.setattr(checkpoint, "_SHIPPED", tmp_path)
        return {"papers": papers, "linear": linear}

    def test_unknown_among_those_really_shipped(self):
        with pytest.raises(ValueError, match="unknown predictor 'nope'"):
            pretrained("nope")

    @pytest.mark.parametrize("name", ["nope", "", "drafts", "README.md", "..", "papers/", "PAPERS", None])
    def test_unknown_names(self, name, shipped):
        with pytest.raises(ValueError, match=r"unknown predictor .*; shipped are 'linear', 'papers'$") as error:
            pretrained(name)
        assert repr(name) in str(error.value)

    @pytest.mark.parametrize("name", ["papers", "linear"])
    def test_loads(self, name, shipped):
        assert_same(pretrained(name), shipped[name])

    def test_default(self, shipped, tmp_path):
        (tmp_path / "papers").rename(tmp_path / checkpoint.DEFAULT)
        assert_same(pretrained(), shipped["papers"])

    def test_is_loaded_once(self, shipped, tmp_path):
        first, other = pretrained("papers"), pretrained("linear")
        shutil.rmtree(tmp_path / "papers")
        assert pretrained("papers") is first
        assert pretrained("linear") is other
        assert first is not other

    def test_failures_are_not_kept(self, shipped, saved, tmp_path):
        with pytest.raises(ValueError, match="unknown predictor 'new'"):
            pretrained("new")
        shutil.copytree(saved, tmp_path / "new")
        assert_same(pretrained("new"), shipped["papers"])

    def test_a_damaged_one(self, shipped, tmp_path):
        (tmp_path / "linear" / "weights" / "_METADATA").unlink()
        with pytest.raises(ValueError, match="linear does not hold a whole predictor"):
            pretrained("linear")

    def test_without_the_folder(self, monkeypatch):
        monkeypatch.setattr(checkpoint, "_SHIPPED", None)
        with pytest.raises(ValueError, match=f"unknown predictor '{checkpoint.DEFAULT}'"):
            pretrained()
