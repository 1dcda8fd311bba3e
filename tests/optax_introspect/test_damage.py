"""Damaged files and killed processes: a clear error that says where, or all that was whole."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx

from optax_introspect import Examples, WeightHistory, fit, load, pretrained, save
from optax_introspect.predictors import _fit

# Where several arrays can't be read, Orbax raises the error of the first, and those of the others have nowhere to go.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

SHAPES = {"a": (40, 30), "b": (7,)}


def weights_at(step):
    return {name: np.full(shape, step, np.float32) for name, shape in SHAPES.items()}


def record_all(folder, steps=range(0, 100, 10)):
    with WeightHistory.record(folder, weights_at(0)) as history:
        for step in steps:
            if step > history._last:
                history.append(step, weights_at(step))


def read_all(folder):
    history = WeightHistory.open(folder)
    return {step: history.read(step).tobytes() for step in history.steps.tolist()}


def examples():
    random = np.random.default_rng(0)
    inputs, targets = random.normal(size=(300, 4)), random.normal(size=300)
    steps = np.full(300, 100)
    return Examples(np.float32(inputs), np.float32(targets), np.arange(300), steps, (1.0, 0.7, 0.4, 0.0), 2.0)


def fit_all(folder):
    with mock.patch.multiple(_fit, _BLOCK=20, _CHECKPOINT_EVERY=1):
        return fit(examples(), num_steps=100, hidden=(8,), workdir=folder, progress=False)


def weights_of(fitted):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(nnx.state(fitted.forecaster.module))]


# Damage.


def cut(file):
    os.truncate(file, file.stat().st_size // 2)


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def remove(path):
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def empty(file):
    file.write_bytes(b"")


def noise(file):
    file.write_bytes(np.random.default_rng(0).bytes(300))


def as_folder(file):
    file.unlink()
    file.mkdir()


def sets(**changes):
    """Sets what paths such as `network__hidden` lead to in a file of JSON; `...` removes it."""

    def damage(file):
        content = json.loads(file.read_text())
        for path, value in changes.items():
            *parents, last = path.split("__")
            inner = content
            for part in parents:
                inner = inner[part]
            if value is ...:
                del inner[last]
            else:
                inner[last] = value
        file.write_text(json.dumps(content))

    return damage


def npz(**leaves):
    return lambda file: np.savez(file, **leaves)


def foreign(path):
    remove(path)
    with ocp.StandardCheckpointer() as checkpointer:  # waits for it
        checkpointer.save(path, {"w": np.ones(2)})


STEP, ZARRAY = "00000050.npz", "weights/layers.0.kernel/.zarray"
CHUNK = "weights/layers.0.kernel/0.0"
A, B = weights_at(50).values()

DAMAGE = [
    ("history", "history.json", remove),
    ("history", "history.json", empty),
    ("history", "history.json", cut),
    ("history", "history.json", lambda file: file.write_text("[]")),
    ("history", "history.json", sets(leaves__a__shape=[-1, 3])),
    ("history", "history.json", sets(leaves__a__shape=[4, 300])),
    ("history", "history.json", sets(leaves__a__dtype="object")),
    ("history", "history.json", sets(leaves__c={"shape": [1], "dtype": "float32"})),
    ("history", "history.json", sets(metadata=...)),
    ("history", STEP, empty),
    ("history", STEP, cut),
    ("history", STEP, flip),
    ("history", STEP, noise),
    ("history", STEP, as_folder),
    ("history", STEP, npz(a=A)),
    ("history", STEP, npz(a=A, b=B[1:])),
    ("history", STEP, npz(a=A, b=B.astype(np.float64))),
    ("history", STEP, npz(a=A, b=B.astype(object))),
    ("history", ".", foreign),
    ("predictor", "config", remove),
    ("predictor", "config/metadata", cut),
    ("predictor", "config/metadata", lambda file: file.write_text("[]")),
    ("predictor", "config/metadata", sets(network__activation="tanh")),
    ("predictor", "config/metadata", sets(network__hidden=[41])),
    ("predictor", "config/metadata", sets(network__hidden=[10**12])),
    ("predictor", "config/metadata", sets(network__residual=...)),
    ("predictor", "config/metadata", sets(network__code="import os")),
    ("predictor", "config/metadata", sets(points=[1.0, 0.5])),
    ("predictor", "config/metadata", sets(scale=0)),
    ("predictor", "weights", remove),
    ("predictor", "weights", foreign),
    ("predictor", "weights/_METADATA", cut),
    ("predictor", "weights/layers.1.kernel", remove),
    ("predictor", ZARRAY, cut),
    ("predictor", ZARRAY, sets(dtype="<f8")),
    ("predictor", CHUNK, remove),
    ("predictor", CHUNK, cut),
    ("predictor", ".", foreign),
    ("fit", "100/settings", remove),
    ("fit", "100/settings/metadata", cut),
    ("fit", "100/settings/metadata", lambda file: file.write_text("[]")),
    ("fit", "100/state", remove),
    ("fit", "100/state", foreign),
    ("fit", "100/state/manifest.ocdbt", cut),
    ("fit", "100/state/_METADATA", cut),
    ("fit", "100/state/d", remove),
    ("fit", "100", foreign),
    ("fit", ".", lambda path: (remove(path), path.touch())),
]
READ = {"history": read_all, "predictor": load, "fit": fit_all}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    record_all(folder / "history")
    save(pretrained("mnist-n0"), folder / "predictor")
    fit_all(folder / "fit")
    return folder


@pytest.mark.parametrize(("kind", "where", "damage"), DAMAGE)
def test_damage_is_a_clear_error(whole, tmp_path, kind, where, damage):
    folder = Path(shutil.copytree(whole / kind, tmp_path / kind))
    READ[kind](folder)
    damage(folder / where)
    with pytest.raises((ValueError, OSError), match=re.escape(str(folder))) as caught:
        READ[kind](folder)
    if where == STEP:
        assert f"step 50 of {folder} is damaged" in str(caught.value)
        assert WeightHistory.open(folder).read(40).tobytes() == read_all(whole / kind)[40]


@pytest.mark.parametrize("name", ["unfinished", "00000050.npz.part", "5.npz", "notes.txt", "000000060.npz"])
def test_other_files_in_a_history_are_left_alone(whole, tmp_path, name):
    folder = Path(shutil.copytree(whole / "history", tmp_path / "history"))
    noise(folder / name)
    assert read_all(folder) == read_all(whole / "history")


# Kills.

# Does the work several times over, in a copy of this process that is killed right before one of its changes to files.
KILLING = """
import os, shutil, signal, sys
from tests.optax_introspect import test_damage

folder, work, *changes = sys.argv[1:]
for left in map(int, changes):
    if not (pid := os.fork()):
        def hook(event, args):
            global left
            writes = event == "open" and set(str(args[1] or "")) & set("wax+")
            if (writes or event in ("os.rename", "os.mkdir", "os.remove", "os.rmdir")) and folder in str(args[0]):
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(hook)
        getattr(test_damage, work)(folder)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL, "it ended before it was killed"
    shutil.copytree(folder, f"{folder}-{left}")
"""


def kill(folder, work, *changes):
    """Returns what each kill left of work that goes on after it."""
    arguments = [sys.executable, "-c", KILLING, folder, work, *changes]
    root = Path(__file__).parents[2]
    done = subprocess.run(list(map(str, arguments)), cwd=root, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return [folder.with_name(f"{folder.name}-{change}") for change in changes]


def test_a_recording_that_is_killed_leaves_whole_steps(whole, tmp_path):
    expected, folder = read_all(whole / "history"), tmp_path / "history"
    early, *left = kill(folder, "record_all", 2, 12, 7)
    assert [file.name for file in early.iterdir()] == ["unfinished"]
    for copy, count in zip(left, (4, 7), strict=True):
        assert read_all(copy) == {step: expected[step] for step in list(expected)[:count]}
    record_all(folder)
    assert read_all(folder) == expected
    assert {file.name for file in folder.iterdir()} == {file.name for file in (whole / "history").iterdir()}


@pytest.mark.slow
def test_a_fit_that_is_killed_goes_on_bit_for_bit(whole, tmp_path):
    folder, expected = tmp_path / "fit", weights_of(fit_all(whole / "fit"))
    for copy in kill(folder, "fit_all", 9, 30, 13):
        assert not (copy / "100").exists()
    assert weights_of(fit_all(folder)) == expected
