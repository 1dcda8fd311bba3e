"""Recalibrated batch statistics against averages taken with NumPy."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from flax.core import FrozenDict, freeze
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from optax_introspect.forecast import polynomial
from optax_introspect.recalibrate import recalibrate
from optax_introspect.transform import introspect

ROOT = Path(__file__).parents[2]
FEATURES = 3, 5, 4
# float32 sums, and the variance as a mean of squares less the square of the mean.
EXACT = {"rtol": 1e-5, "atol": 1e-6}


def some_batches(number=4, size=16, seed=0):
    random = np.random.default_rng(seed)
    return [(random.normal(size=(size, FEATURES[0])) * (i + 1) + i).astype(np.float32) for i in range(number)]


def normalised(x, epsilon=1e-5):
    return (x - x.mean(0)) / np.sqrt(x.var(0) + epsilon)


def expected(kernels, batches):
    """Averages over the batches of (mean, var) before each normalisation of dense layers without biases and ReLU."""
    found = []
    for batch in batches:
        x, of_batch = np.asarray(batch, np.float64), []
        for kernel in kernels:
            x = x @ np.asarray(kernel, np.float64)
            of_batch.append((x.mean(0), x.var(0)))
            x = np.maximum(normalised(x), 0)
        found.append(of_batch)
    return [tuple(np.mean([of_batch[i][j] for of_batch in found], 0) for j in (0, 1)) for i in range(len(kernels))]


class Net(nnx.Module):
    """Dense layers with batch norms of different momenta, and dropout between them."""

    def __init__(self, momenta=(0.9, 0.99), **flags):
        rngs = nnx.Rngs(0)
        pairs = list(itertools.pairwise(FEATURES))
        self.dense = nnx.List([nnx.Linear(*pair, use_bias=False, rngs=rngs) for pair in pairs])
        self.norms = nnx.List(
            [nnx.BatchNorm(to, momentum=m, rngs=rngs, **flags) for (_, to), m in zip(pairs, momenta, strict=True)]
        )
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        for dense, norm in zip(self.dense, self.norms, strict=True):
            x = self.dropout(nnx.relu(norm(dense(x))))
        return x

    def kernels(self):
        return [dense.kernel[...] for dense in self.dense]

    def statistics(self):
        return [(np.asarray(norm.mean[...]), np.asarray(norm.var[...])) for norm in self.norms]


class LinenNet(nn.Module):
    momenta: tuple = (0.9, 0.99)
    norm_options: FrozenDict = FrozenDict()

    @nn.compact
    def __call__(self, x, train=False):
        for features, momentum in zip(FEATURES[1:], self.momenta, strict=True):
            x = nn.Dense(features, use_bias=False)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=momentum, **self.norm_options)(x))
            x = nn.Dropout(0.5, deterministic=not train)(x)
        return x


def train(model, batch):
    return model(batch, train=True)


def linen_variables(model):
    return model.init(jax.random.key(0), jnp.ones((2, FEATURES[0])))


def linen_statistics(variables):
    norms = variables["batch_stats"]
    return [(norms[name]["mean"], norms[name]["var"]) for name in ("BatchNorm_0", "BatchNorm_1")]


def linen_kernels(variables):
    return [variables["params"][name]["kernel"] for name in ("Dense_0", "Dense_1")]


def assert_statistics(found, wanted, **tolerance):
    for one_found, one_wanted in zip(found, wanted, strict=True):
        for a, b in zip(one_found, one_wanted, strict=True):
            np.testing.assert_allclose(np.asarray(a, np.float64), b, **(tolerance or EXACT))


MOMENTA = [(0.9, 0.99), (0.0, 0.999), (1 / 3, 0.5)]


class TestNnx:
    @pytest.mark.parametrize("momenta", MOMENTA)
    def test_the_average_of_what_each_batch_has(self, momenta):
        model, batches = Net(momenta), some_batches()
        assert recalibrate(model, batches) is model
        assert_statistics(model.statistics(), expected(model.kernels(), batches))

    def test_it_is_exact_to_rounding(self):
        # A single batch leaves nothing but what the layer itself has rounded.
        batch = some_batches(1)[0]
        direct, slow = Net((0.0, 0.0)), Net((0.99, 0.999))
        recalibrate(slow, [batch])
        direct.dropout.deterministic = True
        direct(batch)
        assert_statistics(slow.statistics(), direct.statistics(), rtol=2e-6, atol=1e-30)

    def test_whatever_the_statistics_were(self):
        model, other, batches = Net(), Net(), some_batches()
        for norm in other.norms:
            norm.mean[...] = jnp.full_like(norm.mean[...], jnp.nan)
            norm.var[...] = jnp.full_like(norm.var[...], 1e30)
        recalibrate(model, batches)
        recalibrate(other, batches)
        assert_statistics(other.statistics(), model.statistics(), rtol=0)

    def test_batches_count_alike_whatever_their_size(self):
        model, batches = Net(), [*some_batches(2), *some_batches(1, size=4, seed=1)]
        recalibrate(model, batches)
        assert_statistics(model.statistics(), expected(model.kernels(), batches))

    @pytest.mark.parametrize("flag", [True, False, None])
    def test_nothing_else_changes(self, flag):
        model = Net(use_running_average=flag)
        model.norms[1].use_running_average = True
        kept = nnx.Any(nnx.Param, nnx.RngCount)
        state = jax.tree.map(jnp.copy, nnx.state(model, kept))
        variables = [model.norms[0].mean, model.norms[1].var]

        def check():
            assert [norm.use_running_average for norm in model.norms] == [flag, True]
            assert model.dropout.deterministic is False
            jax.tree.map(np.testing.assert_array_equal, nnx.state(model, kept), state)

        recalibrate(model, some_batches())
        check()
        assert [model.norms[0].mean, model.norms[1].var] == variables
        before = model.statistics()

        def broken(model, batch):
            model(batch)
            raise RuntimeError("forward broke")

        with pytest.raises(RuntimeError, match="forward broke"):
            recalibrate(model, some_batches(), broken)
        check()
        assert_statistics(model.statistics(), before, rtol=0)

    def test_own_forward_with_batches_of_any_kind(self):
        class Keyed(Net):
            def __call__(self, x, key=None):
                for dense, norm in zip(self.dense, self.norms, strict=True):
                    x = nnx.relu(norm(dense(x), use_running_average=key is None))
                return x

        model, batches = Keyed(), some_batches()
        loader = ({"image": batch, "label": (np.zeros(16, np.int32), None)} for batch in batches)
        recalibrate(model, loader, lambda model, batch: model(batch["image"], key=jax.random.key(0)))
        assert_statistics(model.statistics(), expected(model.kernels(), batches))

    def test_dropout_that_forward_insists_on_differs_between_batches(self):
        class Dropping(nnx.Module):
            def __init__(self):
                self.dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(0))
                self.norm = nnx.BatchNorm(1, rngs=nnx.Rngs(0))

            def __call__(self, x):
                return self.norm(self.dropout(x, deterministic=False))

        means = []
        for number in (1, 2):
            model = Dropping()
            recalibrate(model, [np.ones((64, 1), np.float32)] * number)
            means.append(float(model.norm.mean[0]))
        assert means[0] != means[1]

    def test_a_layer_used_twice(self):
        class Twice(nnx.Module):
            def __init__(self):
                self.norm = nnx.BatchNorm(FEATURES[0], momentum=0.9, rngs=nnx.Rngs(0))

            def __call__(self, x):
                return self.norm(self.norm(x) * 3)

        model, batches = Twice(), some_batches()
        recalibrate(model, batches)
        # The second use weighs more, as in training: by 1 - m against m (1 - m).
        first = np.mean([batch.var(0) for batch in np.float64(batches)], 0)
        second = np.mean([(3 * normalised(batch)).var(0) for batch in np.float64(batches)], 0)
        np.testing.assert_allclose(model.norm.var[...], (0.9 * first + second) / 1.9, rtol=2e-5)

    def test_layers_of_other_classes_and_counters(self):
        class Norm(nnx.Module):
            def __init__(self):
                self.level = nnx.BatchStat(jnp.zeros(()))
                self.updates = nnx.BatchStat(jnp.array(7))

            def __call__(self, x):
                self.level[...] += 0.1 * (x.mean() - self.level[...])
                self.updates[...] += 1

        model, batches = Norm(), some_batches()
        recalibrate(model, batches)
        np.testing.assert_allclose(model.level[...], np.mean(batches), rtol=1e-6)
        assert model.updates[...] == 7

    def test_layers_stacked_by_vmap_and_scan(self):
        @nnx.split_rngs(splits=3)
        @nnx.vmap
        def stacked(rngs):
            return nnx.BatchNorm(FEATURES[0], momentum=0.9, rngs=rngs)

        def forward(norms, batch):
            nnx.scan(lambda x, norm: 2 * norm(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)(batch, norms)

        model, batches = stacked(nnx.Rngs(0)), some_batches()
        recalibrate(model, batches, forward)
        variances = np.array(model.var[...])
        np.testing.assert_allclose(variances[0], np.mean([batch.var(0) for batch in batches], 0), rtol=1e-5)
        np.testing.assert_allclose(variances[1:], 4, rtol=1e-4)

    def test_statistics_in_bfloat16(self):
        model, batches = Net((0.99, 0.999)), some_batches()
        nnx.update(model, jax.tree.map(lambda x: x.astype(jnp.bfloat16), nnx.state(model, nnx.BatchStat)))
        recalibrate(model, batches)
        assert {norm.var.dtype for norm in model.norms} == {jnp.dtype(jnp.bfloat16)}
        assert_statistics(model.statistics(), expected(model.kernels(), batches), rtol=2**-8, atol=1e-6)

    def test_named_axes_are_left_to_forward(self):
        model, batches = Net(axis_name="shards"), some_batches()

        @nnx.vmap(in_axes=(None, 0), axis_name="shards")
        def forward_shard(model, x):
            return model(x)

        def forward(model, batch):
            return forward_shard(model, batch.reshape(2, 8, -1))

        recalibrate(model, batches, forward)
        assert_statistics(model.statistics(), expected(model.kernels(), batches))

    def test_it_compiles_once_for_each_shape_and_for_all_jumps(self):
        traced = []

        def forward(model, batch):
            traced.append(batch.shape)
            return model(batch)

        model = Net()
        recalibrate(model, some_batches(5), forward)
        assert traced == [(16, 3)]
        recalibrate(model, [*some_batches(3), *some_batches(2, size=8)], forward)
        assert traced == [(16, 3), (8, 3)]
        model.dense[0].kernel[...] += 1
        batches = some_batches(2, size=8)
        recalibrate(model, batches, forward)
        assert len(traced) == 2
        assert_statistics(model.statistics(), expected(model.kernels(), batches))

    def test_one_batch_at_a_time(self):
        drawn, finished = [], []

        def loader():
            for i, batch in enumerate(some_batches(3)):
                # All passes over the batches before have ended.
                finished.append(len(ended))
                drawn.append(i)
                yield batch

        ended = []
        recalibrate(Net(), loader(), lambda model, batch: (model(batch), jax.debug.callback(lambda: ended.append(1))))
        assert drawn == [0, 1, 2]
        assert finished == [0, 3, 4]

    def test_after_a_jump(self):
        model, batches = Net(use_scale=False, use_bias=False), some_batches(30)
        jump = introspect((8,), polynomial(1, 1.3, points=(1.0, 0.4)))
        optimizer = nnx.Optimizer(model, optax.chain(optax.sgd(0.1), jump), wrt=nnx.Param)

        @nnx.jit
        def step(model, optimizer, x):
            optimizer.update(model, nnx.grad(lambda model: jnp.mean((model(x) - 1.0) ** 2))(model))

        for batch in batches[:9]:
            before = model.kernels()
            step(model, optimizer, batch)
        assert optimizer.opt_state[1].jumps_taken[...] == 1
        assert any(np.any(a != b) for a, b in zip(before, model.kernels(), strict=True))
        recalibrate(model, batches[9:])
        assert_statistics(model.statistics(), expected(model.kernels(), batches[9:]), rtol=1e-4, atol=1e-5)


class TestLinen:
    @pytest.mark.parametrize(("momenta", "container"), [((0.9, 0.99), dict), ((0.0, 0.999), freeze)])
    def test_the_average_of_what_each_batch_has(self, momenta, container):
        model, batches = LinenNet(momenta), some_batches()
        variables = container(linen_variables(model))
        before = jax.tree.map(np.array, variables)
        new = recalibrate(model, batches, train, variables=variables)
        assert type(new) is type(variables)
        assert jax.tree.structure(new) == jax.tree.structure(variables)
        assert_statistics(linen_statistics(new), expected(linen_kernels(variables), batches))
        jax.tree.map(np.testing.assert_array_equal, variables, before)
        assert new["params"]["Dense_0"]["kernel"] is variables["params"]["Dense_0"]["kernel"]

    def test_without_forward(self):
        class Plain(nn.Module):
            @nn.compact
            def __call__(self, x):
                return nn.BatchNorm(use_running_average=False)(x)

        model, batches = Plain(), some_batches()
        new = recalibrate(model, batches, variables=linen_variables(model))
        mean = np.mean([batch.mean(0) for batch in np.float64(batches)], 0)
        np.testing.assert_allclose(new["batch_stats"]["BatchNorm_0"]["mean"], mean, **EXACT)

    def test_statistics_in_bfloat16(self):
        options = freeze({"force_float32_reductions": False, "param_dtype": jnp.bfloat16})
        model, batches = LinenNet((0.99, 0.999), options), some_batches()
        variables = linen_variables(model)
        new = recalibrate(model, batches, train, variables=variables)
        assert {leaf.dtype for leaf in jax.tree.leaves(new["batch_stats"])} == {jnp.dtype(jnp.bfloat16)}
        assert_statistics(linen_statistics(new), expected(linen_kernels(variables), batches), rtol=2**-7, atol=1e-5)

    def test_statistics_from_numpy_stay_there(self):
        model, batches = LinenNet(), some_batches()
        variables = jax.tree.map(np.array, linen_variables(model))
        new = recalibrate(model, batches, train, variables=variables)
        assert {type(leaf) for leaf in jax.tree.leaves(new)} == {np.ndarray}
        assert_statistics(linen_statistics(new), expected(linen_kernels(variables), batches))

    def test_other_random_numbers_and_collections(self):
        class Noisy(nn.Module):
            @nn.compact
            def __call__(self, x):
                passes = self.variable("counters", "passes", lambda: jnp.zeros((), jnp.int32))
                passes.value += 1
                x = x + jax.random.normal(self.make_rng("noise"), x.shape)
                return nn.BatchNorm(use_running_average=False)(x)

        model = Noisy()
        variables = model.init({"params": jax.random.key(0), "noise": jax.random.key(1)}, jnp.ones((2, 3)))
        new = recalibrate(model, [np.zeros((1000, 3), np.float32)] * 10, variables=variables)
        np.testing.assert_allclose(new["batch_stats"]["BatchNorm_0"]["var"], 1, atol=0.05)
        # 10 000 different numbers, not ten times the same 1000.
        assert np.all(np.abs(new["batch_stats"]["BatchNorm_0"]["mean"]) < 0.04)
        assert new["counters"]["passes"] == variables["counters"]["passes"]

    def test_it_compiles_once_for_each_shape_and_for_all_jumps(self):
        traced = []

        def forward(model, batch):
            traced.append(batch.shape)
            return model(batch, train=True)

        model = LinenNet()
        variables = linen_variables(model)
        variables = recalibrate(model, some_batches(5), forward, variables=variables)
        recalibrate(model, [*some_batches(3), *some_batches(2, size=8)], forward, variables=variables)
        assert traced == [(16, 3), (8, 3)]

    def test_modules_that_cannot_be_hashed(self):
        class Shifted(nn.Module):
            shift: jax.Array

            @nn.compact
            def __call__(self, x):
                return nn.BatchNorm(use_running_average=False)(x + self.shift)

        model = Shifted(jnp.array([1.0, 2.0, 3.0]))
        new = recalibrate(model, [np.zeros((4, 3), np.float32)], variables=linen_variables(model))
        np.testing.assert_allclose(new["batch_stats"]["BatchNorm_0"]["mean"], [1, 2, 3], rtol=1e-6)

    def test_dropout_stays_in_training_steps_of_jitted_blocks(self):
        class Block(nn.Module):
            @nn.compact
            def __call__(self, x, train):
                x = nn.Dropout(0.5, deterministic=not train)(inputs=x)
                return nn.BatchNorm(use_running_average=not train)(x)

        jitted = nn.jit(Block, static_argnums=2)

        class Blocks(nn.Module):
            @nn.compact
            def __call__(self, x, train=False):
                return jitted()(x, train)

        model, batch = Blocks(), np.ones((64, 3), np.float32)
        variables = model.init(jax.random.key(0), batch)
        new = recalibrate(model, [batch], train, variables=variables)
        (statistics,) = new["batch_stats"].values()
        np.testing.assert_array_equal(statistics["BatchNorm_0"]["var"], 0)
        output = model.apply(variables, batch, train=True, mutable=["batch_stats"], rngs={"params": jax.random.key(1)})
        assert np.unique(output[0]).size > 1


class TestSharding:
    def test_statistics_stay_where_they_are(self):
        mesh = Mesh(np.array(jax.devices()[:1]), ("features",))
        where = NamedSharding(mesh, PartitionSpec("features"))
        model = Net()
        model.norms[0].mean.set_value(jax.device_put(model.norms[0].mean[...], where))
        recalibrate(model, some_batches())
        assert model.norms[0].mean[...].sharding == where
        assert model.norms[0].mean[...].committed
        assert not model.norms[0].var[...].committed

    def test_four_devices(self):
        environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
        run = subprocess.run(
            [sys.executable, "-c", FOUR_DEVICES], cwd=ROOT, env=environment, capture_output=True, text=True
        )
        assert run.returncode == 0, run.stderr
        assert run.stdout == "1 compiled\n"


FOUR_DEVICES = """
import jax, numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from optax_introspect.recalibrate import _after, recalibrate

mesh = jax.make_mesh((4,), ("x",))
split, whole = NamedSharding(mesh, PartitionSpec("x")), NamedSharding(mesh, PartitionSpec())
batches = np.random.default_rng(0).normal(size=(3, 32, 8)).astype(np.float32)
norm = nnx.BatchNorm(8, rngs=nnx.Rngs(0))
nnx.update(norm, jax.device_put(nnx.state(norm), whole))
norm.var.set_value(jax.device_put(norm.var[...], split))
with jax.set_mesh(mesh):
    recalibrate(norm, (jax.device_put(batch, split) for batch in batches))
assert norm.mean[...].sharding == whole
assert norm.var.get_value().sharding == split
np.testing.assert_allclose(norm.mean[...], batches.mean((0, 1)), rtol=1e-4, atol=1e-6)
np.testing.assert_allclose(norm.var.get_value(), batches.var(1).mean(0), rtol=1e-5)
print(_after._cache_size(), "compiled")
"""


class TestModes:
    """What JAX can be set to watch for."""

    @pytest.mark.parametrize(
        "mode",
        [
            lambda: jax.transfer_guard("disallow"),
            lambda: jax.numpy_dtype_promotion("strict"),
            lambda: jax.numpy_rank_promotion("raise"),
            lambda: jax.debug_nans(True),
            jax.checking_leaks,
        ],
    )
    def test_it_passes(self, mode):
        model = nnx.BatchNorm(3, rngs=nnx.Rngs(0))
        batches = [jnp.asarray(batch) for batch in some_batches()]
        with mode():
            recalibrate(model, batches)
        np.testing.assert_allclose(model.mean[...], np.mean([batch.mean(0) for batch in batches], 0), **EXACT)

    def test_strict_promotion_of_16_bits(self):
        model = nnx.BatchNorm(3, rngs=nnx.Rngs(0))
        for variable in (model.mean, model.var):
            variable.set_value(variable[...].astype(jnp.bfloat16))
        with jax.numpy_dtype_promotion("strict"):
            recalibrate(model, some_batches())
        assert model.mean[...].dtype == jnp.bfloat16
        expected = np.mean([batch.mean(0) for batch in some_batches()], 0)
        np.testing.assert_allclose(np.float32(model.mean[...]), expected, rtol=2**-8)

    def test_float64(self):
        with jax.enable_x64():
            model = nnx.BatchNorm(3, momentum=1 - 1 / 300, rngs=nnx.Rngs(0))
            for variable in (model.mean, model.var):
                variable.set_value(variable[...].astype(jnp.float64))
            batches = np.float64(some_batches())
            recalibrate(model, batches)
            assert model.var[...].dtype == jnp.float64
            np.testing.assert_allclose(model.var[...], batches.var(1).mean(0), rtol=1e-12)


class TestErrors:
    def check(self, model, match, batches=None, forward=None, error=ValueError):
        before = model.statistics()
        with pytest.raises(error, match=match):
            recalibrate(model, some_batches() if batches is None else batches, forward)
        assert_statistics(model.statistics(), before, rtol=0)

    def test_no_module(self):
        with pytest.raises(TypeError, match=r"model must be a flax.nnx.Module or a flax.linen.Module; got dict"):
            recalibrate({}, some_batches())

    def test_a_class_instead_of_a_module(self):
        with pytest.raises(TypeError, match=r"model must be .* got .*Meta"):
            recalibrate(Net, some_batches())

    def test_no_statistics(self):
        with pytest.raises(ValueError, match=r"Linear has no batch statistics to recalibrate"):
            recalibrate(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), some_batches())
        model = nn.Dense(3)
        with pytest.raises(ValueError, match=r"Dense has no batch statistics to recalibrate"):
            recalibrate(model, some_batches(), variables=linen_variables(model))

    def test_linen_without_variables(self):
        with pytest.raises(ValueError, match=r"the Linen module LinenNet needs variables=, .* batch_stats; got none"):
            recalibrate(LinenNet(), some_batches())
        with pytest.raises(ValueError, match=r"the Linen module LinenNet needs variables=, .*; got list"):
            recalibrate(LinenNet(), some_batches(), variables=[])

    def test_nnx_with_variables(self):
        with pytest.raises(ValueError, match=r"variables are for Linen modules; Net is an NNX module"):
            recalibrate(Net(), some_batches(), variables={})

    def test_no_batches(self):
        self.check(Net(), r"needs at least one batch; batches gave none", batches=iter([]))

    @pytest.mark.parametrize(("batches", "kind"), [({"image": np.ones((4, 3))}, "dict"), (7, "int")])
    def test_not_an_iterable_of_batches(self, batches, kind):
        self.check(Net(), rf"batches must be an iterable of batches, such as a list; got one {kind}", batches=batches)

    def test_batches_that_are_not_finite(self):
        bad = np.full((16, 3), np.nan, np.float32)
        names = r"batch statistics are not finite: norms\.0\.mean, norms\.0\.var, norms\.1\.mean.* left as they were"
        self.check(Net(), names, [bad], error=FloatingPointError)
        self.check(Net(), names, [*some_batches(2), bad, *some_batches(1)], error=FloatingPointError)
        # The mean is still finite, its square is not.
        batches = [*some_batches(2), np.full_like(bad, 1e30)]
        self.check(Net(), r"not finite: norms\.0\.var", batches, error=FloatingPointError)

    def test_statistics_that_their_dtype_cannot_hold(self):
        model = nnx.BatchNorm(3, rngs=nnx.Rngs(0))
        model.var.set_value(model.var[...].astype(jnp.float16))
        with pytest.raises(FloatingPointError, match=r"batch statistics are not finite: var;"):
            recalibrate(model, [batch * 1000 for batch in some_batches()])

    def test_evaluation_mode(self):
        def forward(model, batch):
            model.eval()
            return model(batch)

        self.check(
            Net(), r"doesn't update batch statistics norms\.0\.mean, norms\.0\.var, .*evaluation mode", None, forward
        )
        model = LinenNet()
        with pytest.raises(ValueError, match=r"batch statistics BatchNorm_0\.mean, .* probably ran in evaluation mode"):
            recalibrate(model, some_batches(), variables=linen_variables(model))

    def test_one_layer_in_evaluation_mode(self):
        def forward(model, batch):
            model.norms[1].use_running_average = True
            return model(batch)

        self.check(Net(), r"doesn't update batch statistics norms\.1\.mean, norms\.1\.var: ", None, forward)
        self.check(Net((0.9, 1.0)), r"norms\.1\.mean, norms\.1\.var: .*or their momentum is 1")

    def test_many_names_are_cut(self):
        model = nnx.Sequential(*(nnx.BatchNorm(3, momentum=1.0, rngs=nnx.Rngs(0)) for _ in range(4)))
        with pytest.raises(ValueError, match=r"layers\.2\.mean and 3 more: "):
            recalibrate(model, some_batches())

    def test_statistics_that_are_no_running_averages(self):
        class Spectral(nnx.Module):
            def __init__(self):
                self.dense = nnx.SpectralNorm(nnx.Linear(3, 3, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(0))
                self.norm = nnx.BatchNorm(3, rngs=nnx.Rngs(0))

            def __call__(self, x):
                return self.norm(self.dense(x, update_stats=True))

        with pytest.raises(ValueError, match=r"batch statistic dense.* is no running average of batches"):
            recalibrate(Spectral(), some_batches())

    def test_several_momenta_in_one_statistic(self):
        class Uneven(nnx.Module):
            def __init__(self):
                self.level = nnx.BatchStat(jnp.zeros(3))

            def __call__(self, x):
                momentum = jnp.array([0.5, 0.9, 0.5])
                self.level[...] = momentum * self.level[...] + (1 - momentum) * x.mean(0)

        with pytest.raises(ValueError, match=r"level is no running average .* with a momentum .*measured 0\.5 to 0\.9"):
            recalibrate(Uneven(), some_batches())

    def test_a_layer_that_normalises_with_its_running_average(self):
        class Renorm(nnx.Module):
            def __init__(self):
                self.first = nnx.BatchStat(jnp.ones(3))
                self.norm = nnx.BatchNorm(3, rngs=nnx.Rngs(0))

            def __call__(self, x):
                running, now = self.first[...], x.std(0)
                self.first[...] = 0.9 * running + 0.1 * now
                return self.norm(x / now * jnp.clip(now / running, 0.5, 2))

        with pytest.raises(
            ValueError, match=r"batch statistic norm\.mean is no running .* or depends on one that isn't"
        ):
            recalibrate(Renorm(), some_batches())

    def test_layers_that_hide_their_momentum(self):
        class Rounded(nnx.Module):
            def __init__(self):
                self.level = nnx.BatchStat(jnp.zeros((), jnp.bfloat16))

            def __call__(self, x):
                self.level.set_value((0.99 * self.level[...] + 0.01 * x.mean()).astype(jnp.bfloat16))

        with pytest.raises(ValueError, match=r"the layer of batch statistic level rounds it to bfloat16"):
            recalibrate(Rounded(), some_batches())
