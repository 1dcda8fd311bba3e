"""Trains a tiny network on twenty photographs with jumps at 4 and 6.

`python -m tests.experiments.test_imagenet WORKDIR PLAN [ADDRESS PROCESS]` is one process of such a run, which is killed
or told to end after step 7 by PLAN, `SIGKILL` or `SIGTERM`.
"""

import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import filelock
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from jax.sharding import AxisType, Mesh, PartitionSpec

from experiments import imagenet, results
from experiments._config import Arm
from experiments.imagenet import RECORDS, ImageNet, Options, train
from experiments.networks import NETWORKS

from .photographs import photographs

SIZE = 16


class Tiny(nnx.Module):
    """768 x 32 x classes, with dropout and an auxiliary head."""

    def __init__(self, classes, *, image_size, dtype, rngs):
        # Few arrays, and initial weights that are quick to compile.
        settings = {"use_bias": False, "kernel_init": nnx.initializers.lecun_uniform(), "dtype": dtype, "rngs": rngs}
        self.dense = nnx.Linear(image_size**2 * 3, 32, **settings)
        self.head = nnx.Linear(32, classes, **settings)
        self.auxiliary = nnx.Linear(32, classes, **settings)
        self.dropout = nnx.Dropout(0.1)

    def __call__(self, images, key=None):
        x = nnx.relu(self.dense(images.reshape(images.shape[0], -1)))
        x = self.dropout(x, deterministic=key is None, rngs=key)
        logits = self.head(x).astype(jnp.float32)
        return logits if key is None else (logits, self.auxiliary(x).astype(jnp.float32))


def tiny(**changes):
    settings = {
        "name": "tiny",
        "title": "Tiny",
        "question": "Does it train?",
        "minutes": 0,
        "network": "Tiny",
        "image_size": SIZE,
        "augmentation": "alexnet",
        "optimizer": "momentum",
        "learning_rate": 0.01,
        "batch_size": 8,
        "every": 4,
        "arms": (
            Arm("plain", "plain", steps=16, seeds=1),
            Arm("introspection", "two-point, 1.3", "two-point-1.3", (4, 6), steps=16, seeds=1),
        ),
    }
    return ImageNet(**settings | changes)


def trained(workdir, **options):
    settings = {"data": photographs(), "checkpoint_every": 3, "report_every": 2, "threads": 2} | options
    return train("tiny", workdir=workdir, **settings)


def rows(workdir):
    """Returns the evaluations of a run."""
    return results.read("tiny", workdir).curve("introspection", 0)


def checkpoints(workdir):
    return workdir / "tiny/introspection/seed-0/checkpoints"


def last_step(workdir):
    return max(int(path.name) for path in checkpoints(workdir).iterdir() if path.name.isdigit())


def state(workdir):
    """Returns the arrays of the last checkpoint."""
    arguments = ocp.args.Composite(state=ocp.args.StandardRestore())
    with ocp.CheckpointManager(checkpoints(workdir)) as manager:
        return jax.tree.leaves(manager.restore(last_step(workdir), args=arguments)["state"])


def process(workdir, plan, *arguments):
    """Starts a process of a run."""
    command = [sys.executable, "-W", "error", "-m", __name__, str(workdir), plan, *arguments]
    flags = {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        command, env=os.environ | flags, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.fixture(autouse=True)
def records(monkeypatch):
    monkeypatch.setitem(RECORDS, "tiny", tiny())
    monkeypatch.setitem(NETWORKS, "Tiny", Tiny)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run that nothing interrupts."""
    workdir = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(RECORDS, "tiny", tiny())
        patch.setitem(NETWORKS, "Tiny", Tiny)
        assert trained(workdir)
    return workdir


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """The folder of a run that was killed after its seventh step."""
    workdir = tmp_path_factory.mktemp("killed")
    started = process(workdir, "SIGKILL")
    printed, _ = started.communicate(timeout=120)
    assert started.returncode == -signal.SIGKILL, printed
    return workdir


class TestRecords:
    @pytest.mark.parametrize(
        ("name", "count"), [("alexnet_1", 60_965_224), pytest.param("inception_v1", 13_378_280, marks=pytest.mark.slow)]
    )
    def test_full_networks(self, name, count):
        record = RECORDS[name]
        mesh = Mesh(np.array(jax.devices()[:1]), ("data",), axis_types=(AxisType.Auto,))
        programs = imagenet.programs(record, optax.sgd(0.1), 1000, mesh, Options(bfloat16=True))
        params = programs.shapes.params
        assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)) == count
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
        batch = {
            "image": jax.ShapeDtypeStruct((4, record.image_size, record.image_size, 3), jnp.uint8),
            "label": jax.ShapeDtypeStruct((4,), jnp.int32),
            "weight": jax.ShapeDtypeStruct((4,), jnp.float32),
        }
        state, metrics = jax.eval_shape(programs.step, programs.shapes, batch, 0)
        assert jax.tree.map(lambda leaf: leaf.shape, state.params) == jax.tree.map(lambda leaf: leaf.shape, params)
        assert metrics["loss"].shape == ()
        sums = jax.eval_shape(programs.evaluate, params, batch)
        assert {name: leaf.shape for name, leaf in sums.items()} == dict.fromkeys(
            ("examples", "test_loss", "test_accuracy", "test_top5"), ()
        )

    def test_settings_are_plain(self):
        for record in RECORDS.values():
            assert all(isinstance(value, str | int | float) for value in record.settings().values())
            assert record.command == f"python -m experiments run {record.name} --data PATH"


class TestOptions:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"batch_size": 0}, "batch_size must be a positive integer; got 0"),
            ({"seed": -1}, "seed must be an integer from 0 to 2**32 - 1; got -1"),
            ({"arm": "none"}, "unknown arm 'none' of tiny; known are plain, introspection"),
            ({"steps": 6}, "steps of introspection must be more than its last jump, 6; got 6"),
            (
                {"arm": "plain", "jump_steps": (3,)},
                "plain of tiny must have both a forecaster and jump steps, or neither",
            ),
            ({"batch_size": 12}, "batch_size must be a multiple of the number of devices, 8; got 12"),
            ({"data": Path("nowhere")}, "data must be a folder; got nowhere"),
        ],
        ids=str,
    )
    def test_errors_come_before_training(self, tmp_path, monkeypatch, options, message):
        devices = jax.devices() * 8
        monkeypatch.setattr(jax, "devices", lambda: devices)
        with pytest.raises((ValueError, FileNotFoundError), match=re.escape(message)):
            trained(tmp_path, **options)
        assert not any(tmp_path.iterdir())

    def test_arrays_are_shared_along_their_largest_dimension(self):
        mesh = jax.sharding.AbstractMesh((8,), ("data",), axis_types=(AxisType.Auto,))

        def spec(shape, fsdp=True):
            return imagenet._sharding(shape, mesh, fsdp).spec

        assert spec((11, 11, 3, 96)) == PartitionSpec(None, None, None, "data")
        assert spec((4096, 4096)) == PartitionSpec(None, "data")
        assert spec((9216, 4096)) == PartitionSpec("data")
        assert spec((999, 97)) == spec((4096,)) == spec(()) == spec((9216, 4096), False) == PartitionSpec()


class TestTrain:
    def test_photographs_through_jumps(self, whole):
        found = rows(whole)
        assert found["step"].tolist() == [4, 8, 12, 16]
        assert found["jumps_taken"].tolist() == [0, 2, 2, 2]
        assert found["jumps_refused"].tolist() == [0, 0, 0, 0]
        assert found["test_loss"][-1] < math.log(19)
        assert (found["test_accuracy"] <= found["test_top5"]).all()
        assert found["test_top5"][-1] > 0.5

    def test_a_complete_run_is_left_alone(self, whole, capsys):
        before = (whole / "tiny.csv.gz").read_bytes()
        assert trained(whole)
        assert "steps 16 to 16" in capsys.readouterr().out
        assert (whole / "tiny.csv.gz").read_bytes() == before

    def test_broken_images_are_counted(self, tmp_path, capsys):
        data = shutil.copytree(photographs(), tmp_path / "data")
        for path in sorted(data.rglob("*.JPEG"))[::4]:
            path.write_bytes(path.read_bytes()[:1000])
        assert trained(tmp_path, data=data)
        found = rows(tmp_path)
        assert np.isfinite(found["train_loss"]).all()
        assert found["skipped"][-1] == 32  # five of twenty, in 16 batches of 8
        assert "32 images skipped" in capsys.readouterr().out

    def test_no_image_can_be_decoded(self, tmp_path):
        data = shutil.copytree(photographs(), tmp_path / "data")
        for path in data.rglob("*.JPEG"):
            path.write_bytes(b"x")
        with pytest.raises(ValueError, match="data must have images that can be decoded"):
            trained(tmp_path, data=data)

    def test_a_loss_that_is_not_finite(self, tmp_path, monkeypatch):
        monkeypatch.setitem(RECORDS, "tiny", tiny(learning_rate=1e30))
        with pytest.raises(FloatingPointError, match="loss was not finite in the 2 steps up to"):
            trained(tmp_path, arm="plain")

    def test_other_settings(self, whole):
        with pytest.raises(ValueError, match=r"the same settings; .* batch_size was 8 and is 4"):
            trained(whole, batch_size=4)

    def test_two_at_once(self, tmp_path):
        folder = tmp_path / "tiny/introspection/seed-0"
        folder.mkdir(parents=True)
        with filelock.FileLock(folder / ".lock"), pytest.raises(BlockingIOError, match="another process trains in"):
            trained(tmp_path)


@pytest.mark.slow
class TestResume:
    def test_after_a_kill_with_the_same_bits(self, whole, killed, tmp_path):
        shutil.copytree(killed, tmp_path, dirs_exist_ok=True)
        assert last_step(tmp_path) in (3, 6)
        assert trained(tmp_path)
        assert (tmp_path / "tiny.csv.gz").read_bytes() == (whole / "tiny.csv.gz").read_bytes()
        for found, expected in zip(state(tmp_path), state(whole), strict=True):
            np.testing.assert_array_equal(found, expected)

    def test_in_two_processes_and_after_preemption_as_in_one(self, whole, killed, tmp_path):
        shutil.copytree(killed, tmp_path, dirs_exist_ok=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        several = [process(tmp_path, "SIGTERM", address, str(number)) for number in range(2)]
        printed = [started.communicate(timeout=200)[0] for started in several]
        assert [started.returncode for started in several] == [0, 0], printed
        assert re.search(r"on 2 devices, 2 processes; steps [36] to 16\n", printed[0])
        step = int(re.search(r"Preempted after step (\d+)", printed[0])[1])
        assert 7 <= step < 16
        assert last_step(tmp_path) == step
        assert trained(tmp_path)
        for found, expected in zip(state(tmp_path), state(whole), strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def main(workdir, plan, address=None, number="0"):
    RECORDS["tiny"], NETWORKS["Tiny"] = tiny(), Tiny
    if address is not None:
        jax.distributed.initialize(address, 2, int(number))
    original = ocp.CheckpointManager.reached_preemption

    def reached_preemption(manager, step):  # is called after each step
        if step == 7 and number == "0":
            os.kill(os.getpid(), signal.Signals[plan])
        if step >= 7:
            time.sleep(1)  # the notice takes a second or two to the other process
        return original(manager, step)

    ocp.CheckpointManager.reached_preemption = reached_preemption
    trained(Path(workdir), fsdp=address is not None)


if __name__ == "__main__":
    main(*sys.argv[1:])
