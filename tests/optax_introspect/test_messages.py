"""Error messages that no other test reads: tests/test_documentation.py tells which these are."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from flax import nnx

import optax_introspect
from optax_introspect import Examples, IntrospectionNetwork, WeightHistory, fit, load, save

SHIPPED = Path(__file__).parents[2] / "checkpoints" / "mnist-n0"


@pytest.fixture
def predictor(tmp_path):
    """The folder of a predictor that may be damaged."""
    return Path(shutil.copytree(SHIPPED, tmp_path / "predictor"))


@pytest.fixture
def history(tmp_path):
    """The folder of a history that may be damaged."""
    params = {"kernel": np.ones((2, 3), np.float32)}
    with WeightHistory.record(tmp_path / "history", params) as writer:
        writer.append(0, params)
    return tmp_path / "history"


def change(file, **changes):
    """Changes what the JSON in a file says."""
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


class TestPredictors:
    def test_a_network_whose_layers_were_replaced(self, tmp_path):
        network = IntrospectionNetwork(rngs=nnx.Rngs(0))
        network.layers[1] = nnx.tanh
        with pytest.raises(ValueError, match="the network was changed after it was made: its arguments do not"):
            save(optax_introspect.introspection(network), tmp_path / "new")
        assert not (tmp_path / "new").exists()

    def test_hidden_layers_that_are_none(self):
        with pytest.raises(ValueError, match=r"hidden must be a sequence such as \(40,\); got 40"):
            IntrospectionNetwork(hidden=40, rngs=nnx.Rngs(0))

    def test_a_folder_in_place_of_a_file(self, predictor):
        (predictor / "config" / "metadata").unlink()
        (predictor / "config" / "metadata").mkdir()
        with pytest.raises(ValueError, match=r"config/metadata is not a regular file"):
            load(predictor)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b" " * (2**20 + 1), "config/metadata has 1048577 bytes, where at most 1048576 are expected"),
            (b"[" * 2000, "config/metadata has more than 1000 brackets"),
            (b"{,}", "config/metadata is no JSON: Expecting property name"),
        ],
    )
    def test_a_file_that_is_not_json_of_a_small_size(self, predictor, content, message):
        (predictor / "config" / "metadata").write_bytes(content)
        with pytest.raises(ValueError, match=f"does not hold a whole predictor: .*{message}"):
            load(predictor)


class TestFits:
    def test_a_folder_of_something_else(self, tmp_path):
        (tmp_path / "notes.txt").write_text("not of a fit")
        steps = np.arange(20)
        line = np.linspace(-1, 1, 20, dtype=np.float32)[:, None] * np.array([1, 0.7, 0.4, 0, 2], np.float32)
        examples = Examples(line[:, :4], line[:, 4], steps, steps, (1.0, 0.7, 0.4, 0.0), 2.0)
        with pytest.raises(ValueError, match=r"holds something, but no settings of a fit in settings\.json"):
            fit(examples, batch_size=2, workdir=tmp_path, progress=False)
        assert [entry.name for entry in tmp_path.iterdir()] == ["notes.txt"]


class TestHistories:
    @pytest.mark.parametrize(
        ("shape", "message"),
        [
            ([1, -2, 3], r"its chunks have the shape \[1, -2, 3\]$"),
            ([2, 2, 3], r"its chunks have the shape \[2, 2, 3\], and not one row of at most [0-9]+ bytes"),
            ([1, 2, 2**40], r"its chunks have the shape .*, and not one row of at most [0-9]+ bytes"),
        ],
    )
    def test_chunks_of_another_shape(self, history, shape, message):
        (file,) = history.glob("arrays/*/zarr.json")
        change(file, chunk_grid={"name": "regular", "configuration": {"chunk_shape": shape}})
        with pytest.raises(ValueError, match=f"the array of leaf 'kernel' in .* is damaged: {message}"):
            WeightHistory.open(history)

    def test_another_compression(self, history):
        (file,) = history.glob("arrays/*/zarr.json")
        change(file, codecs=[{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "gzip"}])
        with pytest.raises(ValueError, match=r"is damaged: its codecs are \['bytes', 'gzip'\]"):
            WeightHistory.open(history)

    def test_a_link_in_place_of_a_file(self, history, tmp_path):
        (history / "steps.jsonl").rename(tmp_path / "elsewhere")
        (history / "steps.jsonl").symlink_to(tmp_path / "elsewhere")
        before = (tmp_path / "elsewhere").read_bytes()
        with pytest.raises(
            ValueError, match=r"steps\.jsonl is a link, and a history is written to its own folder only"
        ):
            WeightHistory.record(history, {"kernel": np.ones((2, 3), np.float32)})
        assert (tmp_path / "elsewhere").read_bytes() == before
