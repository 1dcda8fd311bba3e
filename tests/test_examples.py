import functools
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
# These are shown with what they print and draw; the others are loops to copy from.
GALLERY = ("digits", "language_model", "own_predictor")
OTHERS = ("__init__", "problem", *GALLERY)
EXAMPLES = sorted(path.stem for path in ROOT.glob("examples/*.py") if path.stem not in OTHERS)
# These train the same network on the same batches.
ALIKE = ("accumulation", "data_parallel", "scan")


@functools.cache
def run(name):
    return importlib.import_module(f"examples.{name}").main(steps=100, jump_steps=(50,))


@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
def test_example_learns_and_makes_its_jump(name):
    result = run(name)
    assert result.jumps == 1
    assert result.losses[-1] < 0.5 * result.losses[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", ALIKE)
def test_loops_give_the_weights_of_the_plain_one(name):
    weights, expected = (jax.tree.leaves(run(each).params) for each in (name, "plain"))
    for a, b in zip(weights, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


@pytest.mark.slow
def test_eight_devices_give_the_loss_of_one():
    code = "from examples.data_parallel import main; print(main(steps=100, jump_steps=(50,)).losses[-1])"
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.splitlines()[-1]) == pytest.approx(run("plain").losses[-1], rel=1e-3)


def test_every_example_is_in_the_guide():
    guide = (ROOT / "docs" / "your-loop.md").read_text()
    assert sorted(set(re.findall(r"examples/(\w+)\.py", guide))) == EXAMPLES


@pytest.mark.slow
@pytest.mark.parametrize("name", GALLERY)
def test_the_gallery_prints_and_draws(name, tmp_path):
    command = [sys.executable, ROOT / "examples" / f"{name}.py", "--steps", "100"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=os.environ | {"MPLBACKEND": "agg"})
    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
