"""Recalibrated batch statistics against averages computed with NumPy."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from optax_introspect._recalibrate import recalibrate


def some_batches(number=4, size=16):
    random = np.random.default_rng(0)
    return [(random.normal(size=(size, 3)) * (i + 1) + i).astype(np.float32) for i in range(number)]


def layer(**options):
    return nnx.BatchNorm(3, rngs=nnx.Rngs(0), **options)


class Net(nnx.Module):
    def __init__(self, **options):
        self.norms = nnx.List([layer(**options), layer(momentum=0.5)])
        self.dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(0))
        self.momentum = 0.9  # of something else

    def __call__(self, x):
        return self.norms[1](self.dropout(self.momentum * nnx.relu(self.norms[0](x))))


def expected(batches):
    """Mean and variance that each layer of a `Net` has, averaged over the batches."""
    found = []
    for batch in batches:
        x = batch.astype(np.float64)
        hidden = 0.9 * np.maximum((x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5), 0)
        found.append([x.mean(0), x.var(0), hidden.mean(0), hidden.var(0)])
    return np.mean(found, 0)


def statistics(model):
    return np.array([x for norm in model.norms for x in (norm.mean[...], norm.var[...])], np.float64)


def values(state):
    return [
        np.array(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x)
        for x in jax.tree.leaves(state)
    ]


def assert_same(found, wanted):
    for one_found, one_wanted in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(one_found, one_wanted)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("sizes", [(16, 16, 16), (16, 4, 16)])
def test_the_average_over_batches_with_nothing_else_changed(training, sizes):
    model, batches = Net(), [batch[:size] for size, batch in zip(sizes, some_batches(), strict=False)]
    (model.train if training else model.eval)()
    rest = nnx.Not(nnx.BatchStat)
    graphdef, before = nnx.graphdef(model), values(nnx.state(model, rest))
    recalibrate(model, iter(batches))
    np.testing.assert_allclose(statistics(model), expected(batches), 1e-5, 1e-6)
    assert nnx.graphdef(model) == graphdef
    assert_same(values(nnx.state(model, rest)), before)


def test_evaluation_is_right_after_a_jump():
    model = nnx.Sequential(nnx.Linear(3, 3, rngs=nnx.Rngs(0)), layer(momentum=0.0))
    x = some_batches(1, 64)[0]
    model(x)
    model.layers[0].kernel[...] *= 10.0
    evaluated = nnx.view(model, use_running_average=True)
    assert np.max(np.abs(evaluated(x) - nnx.clone(model)(x))) > 1
    recalibrate(model, [x])
    np.testing.assert_allclose(evaluated(x), model(x), 1e-5, 1e-5)


def test_old_statistics_that_are_not_finite_are_replaced():
    model = Net()
    model.norms[0].mean[...] = jnp.full(3, jnp.nan)
    recalibrate(model, some_batches())
    np.testing.assert_allclose(statistics(model), expected(some_batches()), 1e-5, 1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_statistics_keep_their_dtype(dtype):
    model = Net()
    nnx.update(model, jax.tree.map(lambda x: x.astype(dtype), nnx.state(model, nnx.BatchStat)))
    recalibrate(model, some_batches())
    assert {x.dtype for x in jax.tree.leaves(nnx.state(model, nnx.BatchStat))} == {jnp.dtype(dtype)}
    np.testing.assert_allclose(statistics(model), expected(some_batches()), 2**-7, 1e-3)


def test_layers_of_other_classes_with_counters():
    class Level(nnx.Module):
        def __init__(self):
            self.level, self.updates = nnx.BatchStat(jnp.zeros(())), nnx.BatchStat(jnp.array(7))
            self.momentum = 0.9

        def __call__(self, x):
            self.level[...] += (1 - self.momentum) * (x.mean() - self.level[...])
            self.updates[...] += 1

    model = Level()
    recalibrate(model, some_batches())
    np.testing.assert_allclose(model.level[...], np.mean(some_batches()), 1e-4)
    assert model.updates[...] == 7


def test_random_numbers_that_forward_insists_on_differ_between_batches():
    means = []
    for number in (1, 2):
        model = Net()
        x = [np.ones((64, 3), np.float32)] * number
        recalibrate(model, x, lambda model, x: model.norms[1](model.norms[0](model.dropout(x, deterministic=False))))
        means.append(model.norms[0].mean[0])
    assert means[0] != means[1]


@pytest.mark.parametrize("mapped", [False, True])
def test_synchronised_batch_norm(mapped):
    @nnx.vmap(in_axes=(None, 0), axis_name="shards")
    def on_shards(model, x):
        return model.norms[0](x), model.norms[1](x)

    def forward(model, batch):
        model.norms[1].axis_name = "shards"
        return on_shards(model, batch.reshape(2, 8, -1))

    model = Net(axis_name="shards")
    recalibrate(model, some_batches(), forward if mapped else None)
    assert model.norms[0].axis_name == "shards"
    np.testing.assert_allclose(statistics(model)[:2], expected(some_batches())[:2], 1e-5, 1e-6)
    with pytest.raises(NameError, match=r"unbound axis name: shards.*shard_map"):
        recalibrate(model, some_batches(), lambda model, x: model(x))


def test_one_compilation_for_each_shape_and_all_jumps():
    traced = []

    def forward(model, batch):
        traced.append(batch["x"].shape)
        return model(batch["x"])

    model = Net()
    for _ in range(2):
        recalibrate(model, ({"x": batch, "label": None} for batch in some_batches()), forward)
        assert traced == [(16, 3)]
    recalibrate(model, [{"x": batch, "label": None} for batch in some_batches(2, 8)], forward)
    assert traced == [(16, 3), (8, 3)]


@pytest.mark.slow
def test_sharding_is_kept_on_eight_devices():
    program = """
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from optax_introspect._recalibrate import _one_pass, recalibrate
from tests.optax_introspect.test_recalibrate import Net, expected, nnx, some_batches, statistics
mesh = jax.sharding.Mesh(jax.devices(), ("data",))
replicated, by_rows = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))
batches = [jax.device_put(batch, by_rows) for batch in some_batches()]
for committed in (True, False):
    model = Net()
    if committed:
        nnx.update(model, jax.device_put(nnx.state(model), replicated))
    before = _one_pass._cache_size()
    for _ in range(2):
        recalibrate(model, batches)
    assert _one_pass._cache_size() == before + 1
    np.testing.assert_allclose(statistics(model), expected(some_batches()), 1e-5, 1e-6)
    found = jax.tree.leaves(nnx.state(model, nnx.BatchStat))
    assert {x.committed for x in found} == {committed}
    assert len(found) == 4 and all(len(x.sharding.device_set) == (8 if committed else 1) for x in found)
print(jax.device_count())
"""
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    command, root = [sys.executable, "-W", "error", "-c", program], Path(__file__).parents[2]
    run = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (0, "8\n"), run.stderr


class Own(nnx.Module):
    """Statistics without an attribute `momentum`."""

    def __init__(self):
        self.norm, self.level = layer(), nnx.BatchStat(jnp.zeros(3))

    def __call__(self, x):
        self.level[...] = 0.9 * self.level[...] + 0.1 * self.norm(x).mean(0)


class Renorm(Own):
    """Normalises with running statistics in training."""

    def __call__(self, x):
        self.norm(x / (1 + self.level[...]))


def in_evaluation(model, batch):
    model.norms[1].eval()
    return model(batch)


def broken(model, batch):
    model(batch)
    raise RuntimeError("forward broke")


NAN = np.full((16, 3), np.nan, np.float32)
NOT_REPLACED = r"a forward pass with momentum 0 doesn't replace batch statistics "


@pytest.mark.parametrize(
    ("make_model", "batches", "forward", "error", "message"),
    [
        (dict, some_batches(), None, TypeError, r"model must be a flax.nnx.Module; got dict"),
        (
            lambda: linen.Dense(3),
            some_batches(),
            None,
            TypeError,
            r"got Dense \(examples/linen_batch_norm.py is for Linen\)",
        ),
        (lambda: nnx.Linear(2, 3, rngs=nnx.Rngs(0)), [], None, ValueError, r"Linear has no batch statistics"),
        (Net, iter([]), None, ValueError, r"batches must give at least one batch; got none"),
        (Net, {"x": NAN}, None, ValueError, r"batches must be an iterable of batches, such as a list; got a mapping"),
        (Own, some_batches(), None, ValueError, NOT_REPLACED + r"level: .* the layer needs an attribute momentum"),
        (Renorm, some_batches(), None, ValueError, NOT_REPLACED + r"level, norm\.mean, norm\.var: "),
        (Net, some_batches(), in_evaluation, ValueError, NOT_REPLACED + r"norms\.1\.mean, norms\.1\.var: "),
        (
            lambda: nnx.List([layer() for _ in range(4)]),
            some_batches(),
            lambda model, x: None,
            ValueError,
            r"0\.mean, 0\.var, 1\.mean, 1\.var, 2\.mean and 3 more: it has to use their layer in training mode",
        ),
        (Net, [*some_batches(), NAN], None, FloatingPointError, r"norms\.0\.mean, norms\.0\.var, .* are not finite"),
        (
            Net,
            [np.full_like(NAN, 1e30)],
            None,
            FloatingPointError,
            r"batch statistics norms\.0\.var, norms\.1\..* are not finite",
        ),
        (Net, some_batches(), broken, RuntimeError, "forward broke"),
    ],
)
def test_errors_leave_the_model_unchanged(make_model, batches, forward, error, message):
    model = make_model()
    before = values(nnx.state(model)) if isinstance(model, nnx.Module) else None
    with pytest.raises(error, match=message):
        recalibrate(model, batches, forward)
    if before:
        assert_same(values(nnx.state(model)), before)
