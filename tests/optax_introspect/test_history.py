"""Weight histories: what is recorded is read again, and the checkpoints of a run are read like a recording."""

import json
import re
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import linen as nn
from flax import nnx
from flax.training.train_state import TrainState

from optax_introspect import WeightHistory
from optax_introspect.predictors import _history

PARAMS = {"dense": {"kernel": np.arange(6, dtype=np.float32).reshape(3, 2), "bias": np.ones(2, np.float32)}}


def scaled(factor, params=PARAMS):
    return jax.tree.map(lambda leaf: factor * leaf, params)


def record(path, steps=(0, 100, 200), params=PARAMS, metadata=None):
    with WeightHistory.record(path, params, metadata) as history:
        for step in steps:
            history.append(step, scaled(step, params))
    return WeightHistory.open(path)


def test_what_is_recorded_is_read(tmp_path):
    history = record(tmp_path / "new" / "history", metadata={"seed": 0, "points": (1, 0.7)})
    assert history.path == tmp_path / "new" / "history"
    assert history.steps.tolist() == [0, 100, 200]
    assert history.steps.dtype == np.int64
    assert (history.names, history.shapes) == (("dense/bias", "dense/kernel"), ((2,), (3, 2)))
    assert history.dtypes == (np.dtype(np.float32),) * 2
    assert history.num_weights == 8
    assert history.metadata == {"seed": 0, "points": [1, 0.7]}
    for step in (0, 100, 200):
        np.testing.assert_array_equal(history.read(step), step * np.array([1, 1, 0, 1, 2, 3, 4, 5], np.float32))
        np.testing.assert_array_equal(history.tree(step)["dense/kernel"], step * PARAMS["dense"]["kernel"])
    assert history.read(0).dtype == np.float32


def test_a_folder_holds_one_npz_a_step_and_one_json_file(tmp_path):
    record(tmp_path, (0, 1000, 123456789))
    assert {file.name for file in tmp_path.iterdir()} == {
        "history.json",
        "00000000.npz",
        "00001000.npz",
        "123456789.npz",
    }
    with np.load(tmp_path / "00001000.npz") as arrays:
        np.testing.assert_array_equal(arrays["dense/bias"], [1000, 1000])
    leaves = {"dense/bias": {"shape": [2], "dtype": "float32"}, "dense/kernel": {"shape": [3, 2], "dtype": "float32"}}
    assert json.loads((tmp_path / "history.json").read_text()) == {"metadata": {}, "leaves": leaves}


def test_names_that_end_as_files_do(tmp_path):
    params = {"a": np.zeros(2, np.float32), "a.npy": np.ones(2, np.float32)}
    with WeightHistory.record(tmp_path, params) as history:
        history.append(0, params)
    assert {name: leaf.tolist() for name, leaf in WeightHistory.open(tmp_path).tree(0).items()} == {
        "a": [0, 0],
        "a.npy": [1, 1],
    }


@pytest.mark.parametrize(
    ("dtype", "kept"),
    [
        (jnp.float8_e4m3fn, np.float32),
        (jnp.float16, np.float32),
        (jnp.bfloat16, np.float32),
        (np.float32, np.float32),
        (np.float64, np.float64),
        (np.complex64, np.complex64),
        (np.complex128, np.complex128),
    ],
)
def test_the_dtypes_that_are_kept(tmp_path, dtype, kept):
    values = np.array([1.5, -0.25, 3], dtype)
    if values.dtype.kind == "c":
        values = values + 2j
    history = record(tmp_path, (1,), {"w": values})
    assert history.dtypes == (np.dtype(kept),)
    assert history.tree(1)["w"].dtype == kept
    np.testing.assert_array_equal(history.tree(1)["w"], values.astype(kept))
    expected = [1.5, -0.25, 3, 2, 2, 2] if values.dtype.kind == "c" else [1.5, -0.25, 3]
    assert history.num_weights == len(expected)
    np.testing.assert_array_equal(history.read(1), np.array(expected, np.float32))


def test_only_floating_leaves_are_kept(tmp_path):
    params = {"w": np.ones(2), "step": 3, "key": jax.random.key(0), "mask": np.ones(2, bool), "scalar": 0.5, "no": None}
    with WeightHistory.record(tmp_path, params) as history:
        history.append(0, params)
    assert history.names == ("scalar", "w")
    np.testing.assert_array_equal(history.read(0), [0.5, 1, 1])


class Model(nnx.Module):
    def __init__(self):
        self.file = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
        self.layers = nnx.List([nnx.Param(jnp.ones(1))])


def test_the_leaves_of_a_module_are_named_without_their_variables(tmp_path):
    model = Model()
    with WeightHistory.record(tmp_path, nnx.state(model, nnx.Param)) as history:
        history.append(0, nnx.state(model, nnx.Param))
    assert set(history.names) == {"file/bias", "file/kernel", "layers/0"}
    np.testing.assert_array_equal(history.tree(0)["file/kernel"], model.file.kernel[...])
    with WeightHistory.record(tmp_path, nnx.to_pure_dict(nnx.state(model, nnx.Param))) as history:
        assert history.steps.tolist() == [0]


def test_parameters_may_be_donated_after_append(tmp_path):
    update = jax.jit(lambda w: w + 1, donate_argnums=0)
    w = jnp.zeros(100_000)
    with WeightHistory.record(tmp_path, {"w": w}) as history:
        for step in range(6):
            history.append(step, {"w": w})
            w = update(w)
    for step in range(6):
        assert np.unique(history.read(step)).tolist() == [step]


def test_few_copies_wait_to_be_written(tmp_path, monkeypatch):
    allowed, writing = threading.Semaphore(0), threading.Event()
    write = _history.NpzFolder.write

    def slow(self, step, leaves):
        writing.set()
        assert allowed.acquire(timeout=60)
        write(self, step, leaves)

    monkeypatch.setattr(_history.NpzFolder, "write", slow)
    with WeightHistory.record(tmp_path, PARAMS) as history:
        history.append(0, PARAMS)
        history.append(1, PARAMS)
        assert writing.wait(60)
        assert history.steps.tolist() == []
        threading.Timer(0.2, allowed.release).start()
        history.append(2, PARAMS)  # waits for that
        assert history.steps.tolist() == [0]
        allowed.release(2)
        history.flush()
        assert history.steps.tolist() == [0, 1, 2]


@pytest.mark.parametrize("where", ["append", "flush", "truncate", "close"])
def test_an_error_of_the_thread_is_raised_by_the_next_call(tmp_path, monkeypatch, where):
    class Full(_history.NpzFolder):
        def write(self, step, leaves):
            raise OSError(28, "No space left on device", str(self.path))

    history = WeightHistory.record(tmp_path, PARAMS)
    monkeypatch.setattr(history._source, "__class__", Full)
    history.append(0, PARAMS)
    history.append(1, PARAMS)
    call = {"append": lambda: history.append(2, PARAMS), "truncate": lambda: history.truncate(0)}
    with pytest.raises(OSError, match=f"No space left on device: '{re.escape(str(tmp_path))}'"):
        call.get(where, getattr(history, where))()
    history._pending.clear()
    history.close()
    assert history.steps.tolist() == []


def test_a_write_that_fails_names_the_file_and_leaves_nothing(tmp_path):
    history = WeightHistory.record(tmp_path, PARAMS)
    history.append(0, PARAMS)
    history.flush()
    (tmp_path / "00000001.npz").mkdir()  # it can't be replaced by a file
    (tmp_path / "00000001.npz" / "something").touch()
    history.append(1, PARAMS)
    with pytest.raises(OSError, match=re.escape(f"while writing: '{tmp_path}/00000001.npz'")):
        history.close()
    assert not (tmp_path / "unfinished").exists()
    np.testing.assert_array_equal(history.read(0), record(tmp_path / "other", (1,)).read(1))


def test_a_recording_goes_on(tmp_path):
    record(tmp_path, metadata={"seed": 0})
    (tmp_path / "unfinished").write_bytes(b"of a process that was killed")
    with WeightHistory.record(tmp_path, PARAMS) as history:
        assert history.metadata == {"seed": 0}
        with pytest.raises(ValueError, match="step must be an integer of at least 201; got 200"):
            history.append(200, PARAMS)
        history.append(300, scaled(300))
        history.truncate(150)
        assert history.steps.tolist() == [0, 100]
        history.append(110, scaled(110))
    assert WeightHistory.open(tmp_path).steps.tolist() == [0, 100, 110]
    np.testing.assert_array_equal(history.read(110), 1.1 * history.read(100))
    with WeightHistory.record(tmp_path, PARAMS, {"seed": 0}) as history:
        history.truncate(-1)
        assert history.steps.tolist() == []
        history.append(0, PARAMS)


def test_only_an_open_recording_is_written_to(tmp_path):
    history = record(tmp_path)
    recording = WeightHistory.record(tmp_path, PARAMS)
    recording.close()
    recording.close()
    for closed in (history, recording):
        for write in (lambda closed=closed: closed.append(300, PARAMS), lambda closed=closed: closed.truncate(0)):
            with pytest.raises(RuntimeError, match=r"is not open for writing: see WeightHistory\.record"):
                write()
    assert history.steps.tolist() == [0, 100, 200]


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"dense": {"bias": np.ones(2)}}, "'dense/bias' is float64[2], and must be float32[2]"),
        ({"dense": PARAMS["dense"] | {"bias": np.ones(3, np.float32)}}, "is float32[3], and must be float32[2]"),
        ({"dense": {"bias": np.ones(2, np.float32)}}, "'dense/kernel' is missing, and must be float32[3, 2]"),
        (PARAMS | {"more": np.ones(1)}, "'more' is float64[1], and must be no leaf"),
        ({}, "params must have floating leaves; got none"),
        ({"a": {"b": np.ones(1)}, "a/b": np.ones(1)}, "leaves of different names; two are named 'a/b'"),
    ],
)  # fmt: skip
def test_the_leaves_must_be_the_same(tmp_path, params, message):
    record(tmp_path)
    with pytest.raises(ValueError, match=re.escape(message)):
        WeightHistory.record(tmp_path, params)
    with WeightHistory.record(tmp_path, PARAMS) as history, pytest.raises(ValueError, match=re.escape(message)):
        history.append(300, params)
    assert history.steps.tolist() == [0, 100, 200]


def test_the_metadata_must_be_the_same_and_fit_into_json(tmp_path):
    record(tmp_path, metadata={"seed": 0})
    with pytest.raises(ValueError, match=re.escape("{'seed': 0}; got {'seed': 1}")):
        WeightHistory.record(tmp_path, PARAMS, {"seed": 1})
    for metadata in ({"key": object()}, {"key": np.nan}, [1]):
        with pytest.raises(ValueError, match="metadata must be a dict that JSON can hold; got"):
            WeightHistory.record(tmp_path / "new", PARAMS, metadata)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("step", [-1, 0.5, True, "0", None])
def test_bad_steps(tmp_path, step):
    history = record(tmp_path)
    with pytest.raises(ValueError, match=r"step must be recorded in .*, which holds 3 steps from 0 to 200; got"):
        history.read(-1 if step is True else step)
    with WeightHistory.record(tmp_path / "new", PARAMS) as history:
        with pytest.raises(ValueError, match="step must be an integer of at least 0; got"):
            history.append(step, PARAMS)
        with pytest.raises(ValueError, match="which holds no steps; got 0"):
            history.read(0)


@pytest.mark.parametrize("make", [WeightHistory.open, WeightHistory.from_checkpoints])
def test_paths(tmp_path, make, monkeypatch):
    with pytest.raises(FileNotFoundError, match=re.escape(f"at {tmp_path}/nothing")):
        make(tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"path must be a local folder; got 'gs://bucket/run': copy it to a local"):
        make("gs://bucket/run")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=re.escape(f"at {tmp_path}/nothing")):
        make("~/nothing")


# The checkpoints of a run.


def state_of_linen(factor):
    model = nn.Dense(3, param_dtype=jnp.bfloat16)
    variables = model.init(jax.random.key(0), jnp.ones((1, 2)))
    state = TrainState.create(apply_fn=model.apply, params=variables["params"], tx=optax.adam(0.1))
    return state.replace(params=scaled(factor, state.params))


def state_of_nnx(factor):
    return scaled(factor, nnx.state(Model(), nnx.Param))


def composite(item, other=state_of_linen):
    def save(tree):
        others = {"other": ocp.args.StandardSave(other(1)), "about": ocp.args.JsonSave({"a": 1})}
        return ocp.args.Composite(**{item: ocp.args.StandardSave(tree)}, **others)

    return save


PLAIN = {"b": np.ones(2), "list": [np.ones(3, np.float32), np.full(1, 2 + 1j, np.complex64)], "count": np.ones(2, int)}


@pytest.mark.parametrize(
    ("make", "save", "arguments", "part", "options"),
    [
        (state_of_linen, ocp.args.StandardSave, {}, lambda tree: tree.params, {}),
        (state_of_linen, ocp.args.PyTreeSave, {"key": "params"}, lambda tree: tree.params, {"step_prefix": "run_1"}),
        (state_of_linen, composite("state"), {"item": "state", "key": "params"}, lambda tree: tree.params, {}),
        (state_of_linen, composite("state"), {"item": "state", "key": "opt_state"}, lambda tree: tree.opt_state, {}),
        (state_of_nnx, ocp.args.StandardSave, {}, lambda tree: tree, {}),
        (state_of_nnx, composite("model"), {"item": "model", "key": "file"}, lambda tree: tree["file"], {}),
        (lambda f: scaled(f, PLAIN), ocp.args.StandardSave, {}, lambda tree: tree, {"step_format_fixed_length": 8}),
        (lambda f: scaled(f, PLAIN), composite("params"), {"item": "params"}, lambda tree: tree, {}),
        (lambda f: {"a": scaled(f, PLAIN)}, composite("x"), {"item": "x", "key": "a"}, lambda tree: tree["a"], {}),
    ],
)  # fmt: skip
def test_checkpoints_are_read_as_a_recording_is(tmp_path, make, save, arguments, part, options):
    with ocp.CheckpointManager(tmp_path / "run", options=ocp.CheckpointManagerOptions(**options)) as manager:
        for step in (3, 20):
            manager.save(step, args=save(make(step)), metrics={"loss": 0.5})
    history = WeightHistory.from_checkpoints(tmp_path / "run", **arguments)
    with WeightHistory.record(tmp_path / "recorded", part(make(0))) as recorded:
        for step in (3, 20):
            recorded.append(step, part(make(step)))
    assert history.steps.tolist() == [3, 20]
    for name in ("names", "shapes", "dtypes", "num_weights", "metadata"):
        assert getattr(history, name) == getattr(recorded, name)
    for step in (3, 20):
        np.testing.assert_array_equal(history.read(step), recorded.read(step))
        assert {name: leaf.dtype for name, leaf in history.tree(step).items()} == dict(
            zip(recorded.names, recorded.dtypes, strict=True)
        )
    with pytest.raises(RuntimeError, match="not open for writing"):
        history.append(30, part(make(30)))


def test_checkpoints_are_found_while_the_run_goes_on(tmp_path):
    with ocp.CheckpointManager(tmp_path) as manager:
        manager.save(1, args=ocp.args.StandardSave(scaled(1)))
        manager.wait_until_finished()
        history = WeightHistory.from_checkpoints(tmp_path)
        manager.save(2, args=ocp.args.StandardSave(scaled(2)))
        manager.wait_until_finished()
        manager.save(3, args=ocp.args.StandardSave({"other": np.ones(2, np.float32)}))
    np.testing.assert_array_equal(history.read(2), 2 * history.read(1))
    with pytest.raises(ValueError, match=re.escape(f"step 3 of {tmp_path} is damaged")):
        history.read(3)


def test_items_and_keys_that_are_not_there(tmp_path):
    with pytest.raises(ValueError, match=f"{tmp_path} holds no Orbax checkpoint"):
        WeightHistory.from_checkpoints(tmp_path)
    with ocp.CheckpointManager(tmp_path) as manager:
        manager.save(0, args=composite("model", state_of_nnx)(state_of_linen(1)))
    for item in (None, "about"):
        with pytest.raises(ValueError, match=re.escape(f"{tmp_path}/0 holds, ['model', 'other']; got {item!r}")):
            WeightHistory.from_checkpoints(tmp_path, item=item)
    known = "'weights' must be one of ['opt_state', 'params', 'step']"
    with pytest.raises(ValueError, match=re.escape(f"in item 'model'; got 'weights/a': {known}")):
        WeightHistory.from_checkpoints(tmp_path, item="model", key="weights/a")
    with pytest.raises(ValueError, match="params must have floating leaves; got none"):
        WeightHistory.from_checkpoints(tmp_path, item="model", key="step")
