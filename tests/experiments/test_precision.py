import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import precision as module
from experiments.networks import Mlp
from experiments.precision import Run, as_params, forecast, kept, precision
from experiments.training import Task
from optax_introspect import WeightHistory

from .test_training import make_images


@pytest.fixture
def small(monkeypatch):
    """A run of some steps on a small network, in place of those of the paper."""
    images = make_images(train=20, test=30)
    run = Run(lambda rngs: Mlp((784, 5, 10), rngs=rngs), 0.05, 5, (10, 14))
    monkeypatch.setattr(module, "RUNS", {"small": run})
    monkeypatch.setattr(module, "load_mnist", lambda data_dir, fallback: images)
    return images, run


def test_all_ways_are_compared_at_every_jump_step(small, tmp_path):
    precision(seeds=(0, 1), runs=("small",), output=tmp_path / "out", workdir=tmp_path / "work")
    records = [json.loads(line) for line in (tmp_path / "out" / "precision.jsonl").read_text().splitlines()]
    assert len(records) == 2 * 2 * 2 * 2
    error = {(r["seed"], r["jump_step"], r["dtype"], r["kept"]): r["error"] for r in records}
    for seed in (0, 1):
        for step in (10, 14):
            for way in module.WAYS:
                assert 0 < error[seed, step, "float16", way] < error[seed, step, "bfloat16", way] < 1
            for dtype in module.DTYPES:
                weights, differences = (error[seed, step, dtype, way] for way in module.WAYS)
                assert differences < weights / 2
    assert "| small | 0, 1 | bfloat16 | differences to w_0 |" in (tmp_path / "out" / "README.md").read_text()


def test_an_interrupted_run_goes_on_to_the_same_weights(small, tmp_path):
    images, run = small
    path = tmp_path / "history"
    task = Task(run.network, images, run.batch_size, 0)
    whole = module.train("small", run, task, tmp_path / "whole")
    with WeightHistory.record(path, task.params, metadata={"run": "small", "seed": 0}) as history:
        for step in whole.steps[:4]:
            history.append(int(step), as_params(task, whole.read(step)))
    again = module.train("small", run, Task(run.network, images, run.batch_size, 0), path)
    np.testing.assert_array_equal(again.steps, whole.steps)
    assert {0, 4, 7, 10, 6, 14} <= set(whole.steps.tolist())
    for step in whole.steps:
        np.testing.assert_array_equal(again.read(step), whole.read(step))


def test_what_is_kept():
    first = np.array([1 + 2**-9, 3.0], np.float32)
    later = first + np.float32(2**-12)
    as_weights = kept([later, first], "bfloat16", "weights")
    np.testing.assert_array_equal(as_weights, [[1, 3], [1, 3]])
    as_differences = kept([later, first], "bfloat16", "differences to w_0")
    np.testing.assert_array_equal(as_differences[1], [1, 3])
    np.testing.assert_allclose(as_differences[0], later, rtol=2**-16)


def test_weights_of_a_history_as_parameters(small):
    images, run = small
    task = Task(run.network, images, run.batch_size, 0)
    flat = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(task.params)])
    for found, expected in zip(jax.tree.leaves(as_params(task, flat)), jax.tree.leaves(task.params), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_the_forecast_is_that_of_the_shipped_predictor():
    weights = [np.linspace(-0.1, 0.1, 7, dtype=np.float32) * scale for scale in (1.0, 0.9, 0.8, 0.5)]
    expected = module.pretrained()(*map(jnp.asarray, weights), key=jax.random.key(0))
    np.testing.assert_allclose(forecast(weights[0], weights[1:]), expected, rtol=1e-5, atol=1e-8)


def test_unknown_run(tmp_path):
    with pytest.raises(ValueError, match=r"unknown runs \['MNIST_9'\]; known are \['MNIST_3', 'MNIST_1'\]"):
        precision(runs=("MNIST_9",), output=tmp_path / "out", workdir=tmp_path / "work")
    assert not list(tmp_path.iterdir())
