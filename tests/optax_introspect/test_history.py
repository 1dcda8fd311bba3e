"""Weight histories: what is recorded is read back, whatever interrupts the recording."""

import collections
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from optax_introspect import history as history_module
from optax_introspect.history import WeightHistory

# Records a history in another process, step after step, until it is killed.
RECORDER = """
import itertools, sys
from optax_introspect.history import WeightHistory
from tests.optax_introspect.test_history import weights_at

history = WeightHistory.record(sys.argv[1], weights_at(0))
start = int(history.steps[-1]) + 1 if len(history.steps) else 0
for step in itertools.count(start):
    history.append(step, weights_at(step))
"""


def weights_at(step):
    """Small parameters that tell which step they belong to."""
    return {
        "bias": np.full((3,), step, np.float32),
        "kernel": step + np.arange(6, dtype=np.float32).reshape(2, 3),
    }


def record(path, steps, **options):
    with WeightHistory.record(path, weights_at(0), **options) as history:
        for step in steps:
            history.append(step, weights_at(step))
    return WeightHistory.open(path)


def check_complete(history, steps):
    assert history.steps.tolist() == list(steps)
    check_weights(history, steps)


def check_weights(history, steps):
    for step in steps:
        expected = weights_at(step)
        leaves = history.tree(step)
        assert list(leaves) == ["bias", "kernel"]
        for name, leaf in leaves.items():
            np.testing.assert_array_equal(leaf, expected[name], strict=True)
        flat = np.concatenate([expected["bias"], expected["kernel"].ravel()])
        np.testing.assert_array_equal(history.read(step), flat, strict=True)


@contextlib.contextmanager
def background_held(history):
    """Makes the background thread wait until the end of the context."""
    gate = threading.Event()
    history._thread.submit(gate.wait)
    try:
        yield
    finally:
        gate.set()


def rewrite_header(path, change):
    """Changes the header by a function that works in place, and makes its checksum right."""
    header = json.loads((path / "history.json").read_text())
    change(header)
    crc32 = zlib.crc32(json.dumps({key: header[key] for key in header.keys() - {"crc32"}}, sort_keys=True).encode())
    (path / "history.json").write_text(json.dumps(header | ({"crc32": crc32} if "crc32" in header else {})))


def make_version_1(path):
    """Makes a history as it was before there were checksums."""

    def change(header):
        header["version"] = 1
        del header["crc32"]

    rewrite_header(path, change)
    steps = [json.loads(line)["step"] for line in (path / "steps.jsonl").read_text().splitlines()]
    (path / "steps.jsonl").write_text("".join(f'{{"step": {step}}}\n' for step in steps))


def chunk_files(path):
    return [file for file in (path / "arrays").rglob("*") if file.is_file() and file.name != "zarr.json"]


# What goes in comes out.


def test_roundtrip_of_a_nested_tree(tmp_path):
    path = tmp_path / "new" / "folder"
    metadata = {"seed": 3, "optimizer": {"name": "adam", "betas": [0.9, 0.999]}}
    history = record(path, [0, 7, 100], metadata=metadata)
    check_complete(history, [0, 7, 100])
    assert history.steps.dtype == np.int64
    assert history.path == path
    assert history.names == ("bias", "kernel")
    assert history.shapes == ((3,), (2, 3))
    assert history.dtypes == (np.float32, np.float32)
    assert history.num_weights == 9
    assert history.metadata == metadata


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "complex64", "complex128"])
@pytest.mark.parametrize("shape", [(), (5,), (0, 3), (2, 3, 4)])
def test_roundtrip_of_every_dtype_and_rank(tmp_path, dtype, shape):
    dtype = jnp.dtype(dtype)
    values = np.random.default_rng(0).normal(size=(2, *shape))
    leaf = (values[0] + 1j * values[1] if dtype.kind == "c" else values[0]).astype(dtype)
    with WeightHistory.record(tmp_path, [np.float32(8), leaf]) as writer:
        writer.append(5, [np.float32(8), leaf])
    history = WeightHistory.open(tmp_path)
    assert history.dtypes[1] == dtype
    np.testing.assert_array_equal(history.tree(5)["1"], leaf, strict=True)
    parts = [leaf.real, leaf.imag] if dtype.kind == "c" else [leaf]
    flat = np.concatenate([[8.0], *(part.ravel() for part in parts)]).astype(np.float32)
    np.testing.assert_array_equal(history.read(5), flat, strict=True)
    assert history.num_weights == flat.size


def test_special_values_keep_their_bits(tmp_path):
    leaf = np.array([0.0, -0.0, np.nan, np.inf, -np.inf, 1e-45, 3e38], np.float32)
    zeros = np.zeros(7, np.float32)
    with WeightHistory.record(tmp_path, leaf) as writer:
        writer.append(0, leaf)
        writer.append(1, zeros)
    history = WeightHistory.open(tmp_path)
    assert history.names == ("",)
    np.testing.assert_array_equal(history.tree(0)[""].view(np.uint32), leaf.view(np.uint32))
    np.testing.assert_array_equal(history.read(1), zeros)


def test_leaves_that_are_not_floating_are_left_out(tmp_path):
    params = {
        "count": jnp.zeros((), jnp.int32),
        "flag": np.array([True]),
        "key": jax.random.key(0),
        "name": "a string",
        "scale": 0.5,
        "weight": jnp.ones(2),
    }
    with WeightHistory.record(tmp_path, params) as writer:
        writer.append(0, params | {"count": "of another type"})
    history = WeightHistory.open(tmp_path)
    assert history.names == ("scale", "weight")
    np.testing.assert_array_equal(history.read(0), [0.5, 1, 1])


def test_nnx_state_is_named_like_the_plain_dict_of_the_same_weights(tmp_path):
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.dense = nnx.Linear(2, 3, rngs=rngs)
            self.layers = nnx.List([nnx.Linear(3, 1, use_bias=False, rngs=rngs)])
            self.dropout = nnx.Dropout(0.5, rngs=rngs)

    model = Model(nnx.Rngs(0))
    state = nnx.state(model, nnx.Param)
    with WeightHistory.record(tmp_path, state) as writer:
        writer.append(0, state)
        writer.append(1, nnx.to_pure_dict(state))
    history = WeightHistory.open(tmp_path)
    assert history.names == ("dense/bias", "dense/kernel", "layers/0/kernel")
    np.testing.assert_array_equal(history.tree(0)["dense/kernel"], model.dense.kernel[...])
    np.testing.assert_array_equal(history.read(0), history.read(1))


def test_shapes_are_enough_to_begin(tmp_path):
    shapes = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, weights_at(0)))
    with WeightHistory.record(tmp_path, shapes) as writer:
        writer.append(4, weights_at(4))
    check_complete(WeightHistory.open(tmp_path), [4])


def test_leaves_are_found_by_name_whatever_their_order(tmp_path):
    record(tmp_path, [0])
    reordered = collections.OrderedDict(reversed(weights_at(1).items()))  # JAX sorts the keys of dicts only
    with WeightHistory.record(tmp_path, reordered) as writer:
        writer.append(1, reordered)
    check_complete(WeightHistory.open(tmp_path), [0, 1])


@pytest.mark.parametrize("shape", [(1500, 1500), (3_000_000,), (2, 3, 1200, 500)])
def test_large_leaves_are_split_to_chunks(tmp_path, shape):
    leaf = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    with WeightHistory.record(tmp_path, {"w": leaf}) as writer:
        writer.append(0, {"w": leaf})
    assert len(chunk_files(tmp_path)) > 1
    assert max(file.stat().st_size for file in chunk_files(tmp_path)) <= 4.1 * 2**20
    np.testing.assert_array_equal(WeightHistory.open(tmp_path).tree(0)["w"], leaf)


def test_names_cannot_lead_out_of_the_folder(tmp_path):
    path = tmp_path / "inner" / "history"
    names = ["..", "../../evil", "/etc/passwd", "a\\b", "a\x00b", "C:", "ä" * 300, "con.", " "]
    params = {name: np.full(2, index, np.float32) for index, name in enumerate(names)}
    with WeightHistory.record(path, params) as writer:
        writer.append(0, params)
    history = WeightHistory.open(path)
    assert set(history.names) == set(names)
    for name, leaf in history.tree(0).items():
        np.testing.assert_array_equal(leaf, params[name])
    assert [entry.name for entry in tmp_path.iterdir()] == ["inner"]
    assert [entry.name for entry in (tmp_path / "inner").iterdir()] == ["history"]
    arrays = list((path / "arrays").iterdir())
    assert len(arrays) == len(names)
    assert all(array.is_dir() for array in arrays)


# Recording beside a training.


def test_the_next_training_step_may_donate_what_was_appended(tmp_path):
    train = jax.jit(lambda w: w + 1, donate_argnums=0)
    params = jnp.arange(1000.0)
    with WeightHistory.record(tmp_path, params) as writer, background_held(writer):
        writer.append(0, params)
        new_params = train(params)
        assert params.is_deleted()
        writer.append(1, new_params)
        jax.block_until_ready(train(new_params))
    history = WeightHistory.open(tmp_path)
    np.testing.assert_array_equal(history.read(0), np.arange(1000))
    np.testing.assert_array_equal(history.read(1), np.arange(1000) + 1)


def test_host_arrays_are_copied_too(tmp_path):
    params = np.ones(10, np.float32)
    with WeightHistory.record(tmp_path, params) as writer, background_held(writer):
        writer.append(0, params)
        params[:] = 2
    np.testing.assert_array_equal(WeightHistory.open(tmp_path).read(0), np.ones(10))


def test_at_most_two_steps_are_pending(tmp_path):
    with WeightHistory.record(tmp_path, weights_at(0)) as writer:
        third = threading.Thread(target=writer.append, args=(2, weights_at(2)))
        with background_held(writer):
            writer.append(0, weights_at(0))
            writer.append(1, weights_at(1))
            third.start()
            third.join(timeout=0.3)
            assert third.is_alive()
            assert writer.steps.tolist() == []
        third.join(timeout=30)
        assert not third.is_alive()
        writer.flush()
        check_complete(writer, [0, 1, 2])


def test_a_reader_sees_steps_recorded_after_it_was_opened(tmp_path):
    with WeightHistory.record(tmp_path, weights_at(0)) as writer:
        reader = WeightHistory.open(tmp_path)
        check_complete(reader, [])
        for step in range(4):
            writer.append(step, weights_at(step))
            writer.flush()
            check_complete(reader, range(step + 1))
            check_complete(writer, range(step + 1))
    check_complete(writer, range(4))


def test_resuming_goes_on_after_the_last_step(tmp_path):
    record(tmp_path, [0, 10], metadata={"seed": 1})
    history = record(tmp_path, [20, 30])
    check_complete(history, [0, 10, 20, 30])
    assert history.metadata == {"seed": 1}


def test_truncate_drops_the_steps_after_a_checkpoint(tmp_path):
    record(tmp_path, range(0, 60, 10))
    with WeightHistory.record(tmp_path, weights_at(0)) as writer:
        writer.append(60, weights_at(60))
        writer.truncate(60)
        check_complete(writer, range(0, 70, 10))
        writer.truncate(25)
        check_complete(writer, [0, 10, 20])
        assert len(chunk_files(tmp_path)) == 2 * 3
        writer.append(21, weights_at(21))
    check_complete(WeightHistory.open(tmp_path), [0, 10, 20, 21])


def test_truncate_to_before_the_first_step(tmp_path):
    record(tmp_path, [5, 6])
    with WeightHistory.record(tmp_path, weights_at(0)) as writer:
        writer.truncate(4)
        check_complete(writer, [])
        assert chunk_files(tmp_path) == []
        writer.append(0, weights_at(0))
    check_complete(WeightHistory.open(tmp_path), [0])


def test_a_process_that_does_not_close_loses_nothing(tmp_path):
    script = RECORDER.replace("itertools.count(start)", "range(3)")
    subprocess.run([sys.executable, "-c", script, tmp_path], check=True)
    check_complete(WeightHistory.open(tmp_path), [0, 1, 2])


# Interruptions.


def test_a_history_cut_off_at_any_byte_is_readable_and_can_go_on(tmp_path):
    steps = [9, 123]
    record(tmp_path / "whole", steps)
    content = (tmp_path / "whole" / "steps.jsonl").read_bytes()
    for size in range(len(content)):
        path = tmp_path / str(size)
        shutil.copytree(tmp_path / "whole", path)
        (path / "steps.jsonl").write_bytes(content[:size])
        complete = steps[: content[:size].count(b"\n")]
        check_complete(WeightHistory.open(path), complete)
        check_complete(record(path, [200]), [*complete, 200])
        lines = (path / "steps.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == [*complete, 200]
        assert len(chunk_files(path)) == 2 * (len(complete) + 1)


@pytest.mark.parametrize("tail", [b"\0\0\0\0\0\0\0\0\n", b'{"step": 10}\n', b'{"step": 20.5}\n', b"[1]\n", b"\n"])
def test_an_invalid_last_line_is_ignored_and_removed(tmp_path, tail):
    record(tmp_path, [0, 10])
    with (tmp_path / "steps.jsonl").open("ab") as file:
        file.write(tail)
    check_complete(WeightHistory.open(tmp_path), [0, 10])
    check_complete(record(tmp_path, [20]), [0, 10, 20])


@pytest.mark.parametrize("kept", [[], ["writer.lock"], ["writer.lock", "history.json"]])
def test_a_beginning_that_was_interrupted_can_be_repeated(tmp_path, kept):
    record(tmp_path, [])
    for entry in tmp_path.iterdir():
        if entry.name not in kept:
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    (tmp_path / "history.json.tmp").write_text("{")
    check_complete(record(tmp_path, [0]), [0])


@pytest.mark.parametrize("complete", [[], [0], [0, 1]])
def test_what_a_killed_process_was_writing_never_gets_into_what_is_written_next(tmp_path, complete):
    record(tmp_path, complete)
    for array in (tmp_path / "arrays").iterdir():
        for file in ["zarr.json", *(f"c.{row}{'.0' * (2 if 'kernel' in array.name else 1)}" for row in range(3))]:
            # TensorStore writes beside a file before it replaces it, under one of these names with and without locks;
            # this is more than it will write next.
            for suffix in ["", "_76207b36b27da881"]:
                (array / f"{file}{suffix}.__lock").write_bytes(b"}" * 2**10)
    check_complete(WeightHistory.open(tmp_path), complete)
    check_complete(record(tmp_path, [2]), [*complete, 2])
    assert not list(tmp_path.rglob("*.__lock"))


def test_a_killed_recording_is_complete_up_to_its_last_step_and_goes_on(tmp_path):
    delays = random.Random(0)
    num_steps = 0
    for _ in range(3):
        recorder = subprocess.Popen([sys.executable, "-c", RECORDER, tmp_path])
        try:
            deadline = time.monotonic() + 60
            reader = None
            while reader is None or len(reader.steps) < num_steps + 3:
                assert recorder.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.01)
                if (tmp_path / "steps.jsonl").exists():
                    reader = reader or WeightHistory.open(tmp_path)
            # Read beside the writer, and be refused beside it.
            check_weights(reader, reader.steps.tolist())
            with pytest.raises(BlockingIOError, match="already open for writing"):
                WeightHistory.record(tmp_path, weights_at(0))
            time.sleep(delays.uniform(0, 0.1))
        finally:
            recorder.send_signal(signal.SIGKILL)
            recorder.wait()
        seen = len(reader.steps)
        assert seen >= num_steps + 3
        check_complete(WeightHistory.open(tmp_path), range(seen))
        check_complete(record(tmp_path, [seen]), range(seen + 1))
        num_steps = seen + 1


def test_a_failure_in_the_background_is_raised_and_ends_the_recording(tmp_path):
    writer = WeightHistory.record(tmp_path, weights_at(0))
    writer.append(0, weights_at(0))
    writer.flush()
    array = next(path for path in (tmp_path / "arrays").iterdir() if "kernel" in path.name)
    array.rename(tmp_path / "aside")
    array.write_text("a file instead of a folder")
    writer.append(100, weights_at(100))
    with pytest.raises(RuntimeError, match=rf"step 100 could not be written to {tmp_path}: .*kernel") as caught:
        writer.flush()
    assert caught.value.__cause__ is not None
    array.unlink()
    (tmp_path / "aside").rename(array)
    for call in (
        lambda: writer.append(200, weights_at(200)),
        writer.flush,
        lambda: writer.truncate(0),
        writer.close,
    ):
        with pytest.raises(RuntimeError, match="step 100 could not be written"):
            call()
    writer.close()
    check_complete(WeightHistory.open(tmp_path), [0])
    check_complete(record(tmp_path, [100]), [0, 100])


def test_a_step_that_waits_behind_a_failed_one_is_not_written(tmp_path, monkeypatch):
    def append(path, content):
        if json.loads(content)["step"] == 1:
            raise OSError(28, "No space left on device")
        original(path, content)

    original = history_module.append
    writer = WeightHistory.record(tmp_path, weights_at(0))
    monkeypatch.setattr(history_module, "append", append)
    with background_held(writer):
        writer.append(1, weights_at(1))
        writer.append(2, weights_at(2))
    with pytest.raises(RuntimeError, match=r"step 1 could not be written .*No space left on device"):
        writer.append(3, weights_at(3))
    with pytest.raises(RuntimeError, match="step 1 could not be written"):
        writer.close()
    check_complete(WeightHistory.open(tmp_path), [])
    assert chunk_files(tmp_path) == []


def test_a_truncation_that_fails_half_way_mixes_nothing_up(tmp_path, monkeypatch):
    def write_and_fail(path, content):
        original(path, content)
        raise OSError(5, "Input/output error")

    original = history_module.write_atomically
    record(tmp_path, range(0, 60, 10))
    writer = WeightHistory.record(tmp_path, weights_at(0))
    monkeypatch.setattr(history_module, "write_atomically", write_and_fail)
    with pytest.raises(OSError, match="Input/output error"):
        writer.truncate(25)
    monkeypatch.undo()
    check_complete(writer, [0, 10, 20])
    # Rows and lines no longer agree: this writer can't go on, another one can.
    writer.append(60, weights_at(60))
    with pytest.raises(RuntimeError, match="step 60 could not be written"):
        writer.close()
    check_complete(record(tmp_path, [21]), [0, 10, 20, 21])


def test_an_error_of_the_training_still_closes_the_history(tmp_path):
    def train():
        with WeightHistory.record(tmp_path, weights_at(0)) as writer:
            writer.append(0, weights_at(0))
            raise FloatingPointError

    with pytest.raises(FloatingPointError):
        train()
    check_complete(record(tmp_path, [1]), [0, 1])


# Errors in what is given.


def test_there_is_one_writer_at_a_time(tmp_path):
    with WeightHistory.record(tmp_path, weights_at(0)) as writer:
        with pytest.raises(BlockingIOError, match=f"{tmp_path} is already open for writing"):
            WeightHistory.record(tmp_path, weights_at(0))
        writer.append(0, weights_at(0))
    check_complete(record(tmp_path, [1]), [0, 1])


def test_only_an_open_writer_writes(tmp_path):
    reader = record(tmp_path, [0])
    writer = WeightHistory.record(tmp_path, weights_at(0))
    writer.close()
    writer.close()
    for history in (reader, writer):
        for call in (
            lambda history=history: history.append(1, weights_at(1)),
            history.flush,
            lambda history=history: history.truncate(0),
        ):
            with pytest.raises(RuntimeError, match=f"{tmp_path} is not open for writing"):
                call()
    reader.close()
    check_complete(reader, [0])


OTHER_TREES = [
    (lambda w: w | {"bias": w["bias"][:2]}, r"leaf 'bias' is float32\[2\] in the parameters, but float32\[3\]"),
    (
        lambda w: w | {"kernel": w["kernel"].astype(np.float16)},
        r"leaf 'kernel' is float16\[2, 3\] in the parameters, but float32\[2, 3\] in",
    ),
    (lambda w: {"kernel": w["kernel"]}, r"leaf 'bias' is missing in the parameters, but float32\[3\] in"),
    (lambda w: w | {"more": np.ones(())[()]}, r"leaf 'more' is float64\[\] in the parameters, but missing in"),
    (lambda w: {"count": 1}, "the parameters have no floating leaf"),
]


@pytest.mark.parametrize(("change", "message"), OTHER_TREES)
def test_another_tree_is_refused(tmp_path, change, message):
    record(tmp_path, [0])
    with pytest.raises(ValueError, match=message):
        WeightHistory.record(tmp_path, change(weights_at(0)))
    with WeightHistory.record(tmp_path, weights_at(0)) as writer:
        with pytest.raises(ValueError, match=message):
            writer.append(1, change(weights_at(1)))
        writer.append(1, weights_at(1))
    check_complete(WeightHistory.open(tmp_path), [0, 1])


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({}, "the parameters have no floating leaf"),
        ({"a/b": 1.0, "a": {"b": 2.0}}, "two leaves of the parameters are named 'a/b'"),
        ({"a": jnp.ones(2, jnp.float8_e5m2)}, "leaf 'a' is float8_e5m2, not one of float16, bfloat16, float32"),
    ],
)
def test_trees_that_have_no_history(tmp_path, params, message):
    with pytest.raises(ValueError, match=message):
        WeightHistory.record(tmp_path / "history", params)
    assert not (tmp_path / "history").exists()


@pytest.mark.parametrize(
    ("step", "error", "message"),
    [
        (1.0, TypeError, "a step must be an integer, not 1.0"),
        ("1", TypeError, "a step must be an integer, not '1'"),
        (-1, ValueError, "a step must be at least 0 and below 2\\*\\*63, not -1"),
        (2**63, ValueError, "a step must be at least 0 and below 2\\*\\*63, not 9223372036854775808"),
        (10, ValueError, "steps must increase, but 10 was given after 10"),
        (9, ValueError, "steps must increase, but 9 was given after 10"),
    ],
)
def test_wrong_steps_are_refused(tmp_path, step, error, message):
    record(tmp_path, [10])
    with WeightHistory.record(tmp_path, weights_at(0)) as writer:
        with pytest.raises(error, match=message):
            writer.append(step, weights_at(0))
        writer.append(np.int32(11), weights_at(11))
        writer.append(jnp.int32(12), weights_at(12))
    check_complete(WeightHistory.open(tmp_path), [10, 11, 12])


@pytest.mark.parametrize("step", [1.0, -1])
def test_truncate_and_read_check_the_step(tmp_path, step):
    record(tmp_path, [0])
    with WeightHistory.record(tmp_path, weights_at(0)) as writer:
        for call in (writer.truncate, writer.tree, writer.read):
            with pytest.raises((TypeError, ValueError), match="a step must be"):
                call(step)
    check_complete(writer, [0])


def test_a_step_that_is_not_there(tmp_path):
    history = record(tmp_path, [])
    with pytest.raises(KeyError, match=f"step 0 is not in {tmp_path}, which holds no step"):
        history.read(0)
    record(tmp_path, [10, 20, 30])
    for step in (9, 15, 31):
        with pytest.raises(KeyError, match=f"step {step} is not in .*, which holds 3 steps from 10 to 30"):
            history.tree(step)


def test_metadata_is_json_and_stays_the_same(tmp_path):
    for metadata, error in (({"a": {1, 2}}, TypeError), ({"a": float("nan")}, ValueError), ([1], TypeError)):
        with pytest.raises(error):
            WeightHistory.record(tmp_path / "history", weights_at(0), metadata=metadata)
    assert not (tmp_path / "history").exists()
    record(tmp_path, [0], metadata={"seed": 1, "points": (1, 2)})
    with pytest.raises(ValueError, match=r"the metadata of .* is .*'seed': 1.*, not .*'seed': 2"):
        WeightHistory.record(tmp_path, weights_at(0), metadata={"seed": 2, "points": (1, 2)})
    check_complete(record(tmp_path, [1], metadata={"seed": 1, "points": (1, 2)}), [0, 1])


# Damage on disk.


def test_open_needs_a_history(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"there is no weight history at {tmp_path / 'missing'}"):
        WeightHistory.open(tmp_path / "missing")
    with pytest.raises(ValueError, match=f"{tmp_path} is not a weight history: it has no history.json"):
        WeightHistory.open(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="file is not a weight history"):
        WeightHistory.open(tmp_path / "file")
    with pytest.raises(FileExistsError):
        WeightHistory.record(tmp_path / "file", weights_at(0))


def test_a_header_cut_off_at_any_byte_is_refused(tmp_path):
    record(tmp_path, [0])
    header = tmp_path / "history.json"
    content = header.read_bytes()
    for size in range(len(content)):
        header.write_bytes(content[:size])
        for open_history in (WeightHistory.open, lambda path: WeightHistory.record(path, weights_at(0))):
            with pytest.raises(ValueError, match=r"history.json can't be read: JSONDecodeError"):
                open_history(tmp_path)
        assert header.read_bytes() == content[:size]


def change_leaf(**changes):
    return lambda header: header["leaves"]["kernel"].update(changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda header: header.update(version=3), "its format version is 3, and only 1 and 2 are known"),
        (lambda header: header.update(version=1), "it is not as it was written, by its checksum"),
        (lambda header: header.pop("crc32"), "it is not as it was written, by its checksum"),
        (lambda header: header.pop("version"), "history.json can't be read: KeyError\\('version'\\)"),
        (lambda header: header.pop("metadata"), "history.json can't be read: KeyError\\('metadata'\\)"),
        (lambda header: header.update(leaves=[1]), "history.json can't be read: AttributeError"),
        (lambda header: header.update(leaves={"a": 1}), "history.json can't be read: TypeError"),
        (change_leaf(dtype="object"), "history.json can't be read: KeyError\\('object'\\)"),
        (change_leaf(shape=[2, -3]), r"leaf 'kernel' has the shape \(2, -3\)"),
        (change_leaf(shape=[2, 3.0]), r"leaf 'kernel' has the shape \(2, 3.0\)"),
        (change_leaf(shape=[3, 2]), r"0 rows of float32\[2, 3\] for 0 steps of float32\[3, 2\]"),
        (change_leaf(dtype="float16"), r"0 rows of float32\[2, 3\] for 0 steps of float16\[2, 3\]"),
        (
            lambda header: header["leaves"].update({"../evil": header["leaves"].pop("kernel")}),
            r"the array of leaf '../evil' in .* is damaged: .*/arrays/0001\.\.evil/",
        ),
    ],
)
def test_a_header_that_cannot_be_used(tmp_path, change, message):
    record(tmp_path, [] if "rows" in message or "evil" in message else [0])  # the lines are of this very header
    rewrite_header(tmp_path, change)
    with pytest.raises(ValueError, match=message):
        WeightHistory.open(tmp_path)


def test_a_damaged_line_before_others(tmp_path):
    record(tmp_path, [10, 20, 30])
    first, second, third = (tmp_path / "steps.jsonl").read_text().splitlines(keepends=True)
    for lines, message in (
        ((first, '{"step": 2\n', third), "steps.jsonl is damaged: line 2: Expecting"),
        ((first, first, third), "steps.jsonl is damaged: line 2: it is not as it was written"),
        ((second, third), "steps.jsonl is damaged: line 1: it is not as it was written"),
        ((first, third, third), "steps.jsonl is damaged: line 2: it is not as it was written"),
        ((first, second.replace("20", "21", 1), third), "steps.jsonl is damaged: line 2: it is not as it was written"),
        ((first, '{"step": 20}\n', third), "steps.jsonl is damaged: line 2: it is not as it was written"),
        ((first, "[" * 100_000 + "\n", third), "steps.jsonl is damaged: line 2: .*recursion"),
    ):
        (tmp_path / "steps.jsonl").write_text("".join(lines))
        for open_history in (WeightHistory.open, lambda path: WeightHistory.record(path, weights_at(0))):
            with pytest.raises(ValueError, match=message):
                open_history(tmp_path)
    (tmp_path / "steps.jsonl").write_text(first + second + third)
    make_version_1(tmp_path)
    (tmp_path / "steps.jsonl").write_text('{"step": 10}\n{"step": 10}\n{"step": 30}\n')
    with pytest.raises(ValueError, match=r"steps.jsonl is damaged: line 2: step 10 after step 10"):
        WeightHistory.open(tmp_path)


def test_lines_and_headers_of_another_history(tmp_path):
    for name, seed in (("one", 1), ("two", 2)):
        record(tmp_path / name, [0, 10], metadata={"seed": seed})
    for file in ("steps.jsonl", "history.json"):
        shutil.copytree(tmp_path / "one", tmp_path / file)
        shutil.copy(tmp_path / "two" / file, tmp_path / file / file)
        for open_history in (WeightHistory.open, lambda path: WeightHistory.record(path, weights_at(0))):
            with pytest.raises(ValueError, match=r"steps.jsonl is damaged: line 1: it is not as it was written"):
                open_history(tmp_path / file)


def test_lines_or_a_header_that_are_missing(tmp_path):
    for file, message in (
        ("steps.jsonl", "steps.jsonl is damaged: it is missing, but weights are there"),
        ("history.json", "is damaged: it has no history.json"),
    ):
        record(tmp_path / file, [0, 10])
        (tmp_path / file / file).unlink()
        for open_history in (WeightHistory.open, lambda path: WeightHistory.record(path, weights_at(0))):
            with pytest.raises(ValueError, match=message):
                open_history(tmp_path / file)
        assert len(chunk_files(tmp_path / file)) == 4


def test_arrays_that_are_missing_or_too_short(tmp_path):
    record(tmp_path, [0, 1])
    content = (tmp_path / "steps.jsonl").read_bytes()
    with WeightHistory.record(tmp_path, weights_at(0)) as writer:
        writer.truncate(0)
    (tmp_path / "steps.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=r"leaf 'bias' in .* is damaged: it has 1 rows of .* for 2 steps of"):
        WeightHistory.open(tmp_path)
    record_in = tmp_path / "missing"
    record(record_in, [0])
    kernel = next(path for path in (record_in / "arrays").iterdir() if "kernel" in path.name)
    shutil.rmtree(kernel)
    for open_history in (WeightHistory.open, lambda path: WeightHistory.record(path, weights_at(0))):
        with pytest.raises(ValueError, match=r"the array of leaf 'kernel' in .* is damaged: .*No such file"):
            open_history(record_in)


def rewrite_array(path, change):
    """Changes the description of the array of a leaf by a function that works in place."""
    file = next((path / "arrays").glob("*kernel/zarr.json"))
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("chunk", "message"),
    [
        ([1, 10**6, 10**6], r"its chunks have the shape .*, and not one row of at most 8388608 bytes"),
        ([2, 2, 3], r"its chunks have the shape \[2, 2, 3\], and not one row"),
        ([1, 0, 3], r"its chunks have the shape \[1, 0, 3\]"),
        ([1, 2.0, 3], r"its chunks have the shape \[1, 2.0, 3\]"),
        ([1, 2, 1], r"the chunk c.0.0.0 is of 24 bytes, not of 8"),
        ([1, 2, 4], r"the chunk c.0.0.0 is of 24 bytes, not of 32"),
    ],
)
def test_chunks_of_another_shape_take_no_memory(tmp_path, chunk, message):
    record(tmp_path, [0])
    rewrite_array(tmp_path, lambda array: array["chunk_grid"]["configuration"].update(chunk_shape=chunk))
    with pytest.raises(ValueError, match=rf"leaf 'kernel' in {tmp_path}.*: .*{message}"):
        WeightHistory.open(tmp_path).read(0)


def test_other_codecs(tmp_path):
    record(tmp_path, [0])
    rewrite_array(tmp_path, lambda array: array.update(codecs=[{"name": "bytes"}, {"name": "gzip"}]))
    with pytest.raises(ValueError, match=r"leaf 'kernel' .* is damaged: its codecs are \['bytes', 'gzip'\]"):
        WeightHistory.open(tmp_path)


def test_a_chunk_that_says_that_it_is_large(tmp_path):
    """TensorStore takes the memory before it looks at the checksum."""
    history = record(tmp_path, [0])
    file = next(file for file in chunk_files(tmp_path) if "kernel" in str(file))
    content = bytearray(file.read_bytes())
    content[7] = 0x7F
    file.write_bytes(content)
    with pytest.raises(ValueError, match=rf"the chunk c.0.0.0 is of {0x7F000018} bytes, not of 24"):
        history.read(0)


def test_more_rows_than_there_can_be(tmp_path):
    """As after a truncation that was interrupted, but many more."""
    record(tmp_path, [0, 10])
    rewrite_array(tmp_path, lambda array: array["shape"].__setitem__(0, 2**40))
    check_complete(WeightHistory.open(tmp_path), [0, 10])
    check_complete(record(tmp_path, [20]), [0, 10, 20])


def test_nothing_but_files_is_read(tmp_path):
    for name, error in (
        ("history.json", "history.json can't be read: .*history.json is not a regular file"),
        ("steps.jsonl", "steps.jsonl is damaged: .*steps.jsonl is not a regular file"),
        ("arrays/0001.kernel/zarr.json", "leaf 'kernel' .* is damaged: .*zarr.json is not a regular file"),
        ("arrays/0001.kernel/c.0.0.0", "step 0 of leaf 'kernel' in .*: .*c.0.0.0 is not a regular file"),
    ):
        path = tmp_path / name.replace("/", "-")
        record(path, [0])
        (path / name).unlink()
        (path / name).symlink_to("/dev/zero")
        with pytest.raises(ValueError, match=error):
            WeightHistory.open(path).read(0)


def test_files_that_are_too_large_to_be_true(tmp_path):
    for name in ("history.json", "steps.jsonl", "arrays/0001.kernel/zarr.json", "arrays/0001.kernel/c.0.0.0"):
        path = tmp_path / name.replace("/", "-")
        record(path, [0])
        os.truncate(path / name, 2**40)
        with pytest.raises(ValueError, match=rf"{name} has 1099511627776 bytes, where at most \d+ are expected"):
            WeightHistory.open(path).read(0)


@pytest.mark.parametrize("name", ["history.json", "steps.jsonl", "writer.lock", "arrays", "arrays/0000.bias"])
def test_a_history_is_not_written_through_links(tmp_path, name):
    record(tmp_path / "history", [0])
    path, aside = tmp_path / "history" / name, tmp_path / "aside"
    path.rename(aside)
    path.symlink_to(aside)
    with pytest.raises(ValueError, match=rf"{path} is a link, and a history is written to its own folder only"):
        WeightHistory.record(tmp_path / "history", weights_at(0))
    check_complete(WeightHistory.open(tmp_path / "history"), [0])  # but it can be read


def test_weights_that_changed_places(tmp_path):
    """Every chunk has a checksum of its own, which moves with it."""
    params = {"a": np.ones(3, np.float32), "b": np.zeros(3, np.float32)}
    with WeightHistory.record(tmp_path, params) as writer:
        for step in (0, 100, 200):
            writer.append(step, {name: leaf + step for name, leaf in params.items()})
    history = WeightHistory.open(tmp_path)
    chunk = {file.parent.name[-1] + file.name[2]: file for file in chunk_files(tmp_path)}
    for first, second, steps in (("a0", "a1", [0, 100]), ("a0", "b0", [0])):
        content = chunk[first].read_bytes()
        shutil.copy(chunk[second], chunk[first])
        chunk[second].write_bytes(content)
        for step in steps:
            with pytest.raises(ValueError, match=rf"the weights of step {step} in .* are not those that were recorded"):
                history.read(step)
        np.testing.assert_array_equal(history.read(200), np.repeat([201, 200], 3))
        shutil.copy(chunk[first], chunk[second])
        chunk[first].write_bytes(content)


def test_a_history_of_version_1_is_read_and_continued(tmp_path):
    record(tmp_path, [0, 10], metadata={"seed": 1})
    make_version_1(tmp_path)
    header = (tmp_path / "history.json").read_bytes()
    check_complete(WeightHistory.open(tmp_path), [0, 10])
    check_complete(record(tmp_path, [20], metadata={"seed": 1}), [0, 10, 20])
    assert (tmp_path / "history.json").read_bytes() == header
    assert (tmp_path / "steps.jsonl").read_text() == '{"step": 0}\n{"step": 10}\n{"step": 20}\n'


def test_weights_that_are_damaged_in_any_byte_are_noticed(tmp_path):
    history = record(tmp_path, [0, 100])
    file = next(file for file in chunk_files(tmp_path) if "kernel" in str(file) and file.name[2] == "1")
    content = file.read_bytes()
    noticed = r"step 100 of leaf 'kernel' in .*(Error reading local file|the chunk c.1.0.0 is of \d+ bytes, not of 24)"
    for index in range(len(content)):
        file.write_bytes(content[:index] + bytes([content[index] ^ 1]) + content[index + 1 :])
        with pytest.raises(ValueError, match=noticed):
            history.read(100)
        file.write_bytes(content[:index])
        with pytest.raises(ValueError, match=noticed):
            history.tree(100)
    file.unlink()
    with pytest.raises(ValueError, match=r"step 100 of leaf 'kernel' in .*No such file"):
        history.read(100)
    np.testing.assert_array_equal(history.read(0), [0, 0, 0, 0, 1, 2, 3, 4, 5])
