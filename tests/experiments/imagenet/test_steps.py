import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

import optax_introspect
from experiments.imagenet.evaluation import evaluate
from experiments.imagenet.feed import on_mesh
from experiments.imagenet.input import normalise
from experiments.imagenet.mesh import device_mesh
from experiments.imagenet.optimizers import optimizer
from experiments.imagenet.processes import Ending
from experiments.imagenet.records import ALEXNET_1, INCEPTION_V1
from experiments.imagenet.steps import Programs
from experiments.imagenet.wishes import Clock, Wishes
from tests.experiments.imagenet import tiny

pytestmark = pytest.mark.usefixtures("compiled_once")


@functools.cache
def programs(dtype=None):
    return tiny.programs(device_mesh(), tiny.options(arm="plain"), dtype=dtype)


def batch(number=0, **changes):
    return on_mesh(next(tiny.feed().training(number)) | changes, Wishes(), device_mesh())


def stepped(number=0, of_batch=None, dtype=None):
    """Returns the state and the result of one step from the start."""
    return programs(dtype).step(programs(dtype).start(), of_batch or batch(), number)


def cross_entropies(logits, labels):
    logits = np.asarray(logits, np.float64)
    return np.log(np.exp(logits).sum(-1)) - logits[np.arange(len(labels)), labels]


class TestStep:
    def test_loss(self):
        weight = np.array([1, 0, 2, 1, 1, 0, 0, 3], np.float32)
        of_batch = batch(weight=weight)
        start = programs().start()
        key = jax.random.fold_in(jax.random.key(0), (1 << 30) + 5)
        outputs, _ = programs()._outputs(start.params, start.statistics, normalise(of_batch["image"]), key)
        label = np.asarray(of_batch["label"])
        main, *auxiliary = [np.average(cross_entropies(logits, label), weights=weight) for logits in outputs]
        assert len(auxiliary) == 2
        _, result = stepped(5, of_batch)
        np.testing.assert_allclose(result.loss, main + 0.3 * sum(auxiliary), rtol=1e-5)

    def test_dropout_follows_from_the_number_of_the_step(self):
        first, again, other = (float(stepped(number)[1].loss) for number in (5, 5, 6))
        assert first == again != other

    def test_statistics(self):
        start = programs().start()
        dense = start.params["dense"]
        images = np.asarray(normalise(batch()["image"])).reshape(8, -1)
        outputs = images @ np.asarray(dense["kernel"][...]) + np.asarray(dense["bias"][...])
        state, _ = stepped()
        np.testing.assert_allclose(state.statistics["norm"]["mean"][...], 0.1 * outputs.mean(0), rtol=1e-4, atol=1e-5)

    def test_bfloat16(self):
        state, result = stepped(dtype=jnp.bfloat16)
        assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
        assert result.loss.dtype == jnp.float32
        assert float(result.loss) != float(stepped()[1].loss)
        np.testing.assert_allclose(result.loss, stepped()[1].loss, rtol=0.02)

    def test_finite(self):
        state = programs().start()
        assert programs().is_finite(state)
        assert not programs().is_finite(jax.tree.map(lambda leaf: leaf.at[(0,) * leaf.ndim].set(jnp.inf), state.params))


class TestEvaluation:
    def scores(self, of_batch):
        return programs().evaluate(programs().start(), of_batch)

    def test_scores_are_weighted_sums(self):
        weight = np.array([1, 0, 1, 1, 1, 0, 1, 1], np.float32)
        of_batch = batch(weight=weight)
        start = programs().start()
        (logits,), _ = programs()._outputs(start.params, start.statistics, normalise(of_batch["image"]))
        label = np.asarray(of_batch["label"])
        order = np.argsort(-np.asarray(logits), axis=-1)
        scores = self.scores(of_batch)
        np.testing.assert_allclose(scores.loss, (weight * cross_entropies(logits, label)).sum(), rtol=1e-5)
        assert scores.top1 == (weight * (order[:, 0] == label)).sum()
        assert scores.top5 == (weight * (order[:, :5] == label[:, None]).any(1)).sum()
        assert 0 < scores.top5 < scores.examples == 6

    def test_fewer_classes_than_five(self):
        few = Programs("Tiny", 3, tiny.SIZE, optimizer(ALEXNET_1.optimizer, 10), device_mesh())
        assert few.evaluate(few.start(), batch(label=np.zeros(8, np.int32))).top5 == 8

    def test_the_whole_split(self):
        state, clock = programs().start(), Clock(Ending(), None, 10)
        found = evaluate(programs(), state, tiny.feed().validation, clock)
        each = [programs().evaluate(state, batch(number)) for number in range(10)]
        for name, key in (("top1", "top1"), ("top5", "top5"), ("validation_loss", "loss")):
            np.testing.assert_allclose(found[name], sum(float(getattr(s, key)) for s in each) / 80, rtol=1e-6)
        assert (found["examples"], found["skipped"]) == (80, 1)

    def test_nothing_could_be_read(self):
        def batches():
            yield next(tiny.feed().training(0)) | {"weight": np.zeros(8, np.float32)}

        with pytest.raises(ValueError, match="none of the validation images could be read"):
            evaluate(programs(), programs().start(), batches, Clock(Ending(), None, 10))

    def test_told_to_end(self):
        ending = Ending()
        ending.told = True
        assert evaluate(programs(), programs().start(), tiny.feed().validation, Clock(ending, None, 10)) is None


@pytest.fixture(scope="module", params=[ALEXNET_1, INCEPTION_V1], ids=lambda record: record.name)
def full(request):
    record = request.param
    jump_steps = record.arms[-1].jump_steps
    tx = optimizer(record.optimizer, 20_000, jump_steps, optax_introspect.pretrained())
    mesh = AbstractMesh((8,), ("data",), axis_types=(AxisType.Auto,))
    programs = Programs(record.network, 1000, record.image_size, tx, mesh, fsdp=True)
    return record, programs.shapes, optax_introspect.plan(jump_steps)


class TestFullSize:
    """Nothing is computed: the shapes alone, on 8 devices that there needn't be."""

    def test_weights(self, full):
        record, shapes, _ = full
        published = {"AlexNet": 60_965_224, "Inception": 13_378_280}
        assert sum(leaf.size for leaf in jax.tree.leaves(shapes.params)) == published[record.network]

    def test_bytes_of_the_snapshots(self, full):
        _, shapes, plan = full
        snapshots = jax.tree.leaves(shapes.opt_state[-1].snapshots)
        nbytes = sum(leaf.size * leaf.dtype.itemsize for leaf in snapshots)
        assert nbytes == plan.nbytes(shapes.params)
        assert nbytes == plan.num_buffers * 4 * sum(leaf.size for leaf in jax.tree.leaves(shapes.params))

    def test_snapshots_lie_where_their_parameters_lie(self, full):
        _, shapes, _ = full
        expected = [(leaf.shape, leaf.sharding) for leaf in jax.tree.leaves(shapes.params)]
        for snapshot in shapes.opt_state[-1].snapshots:
            assert [(leaf.shape, leaf.sharding) for leaf in jax.tree.leaves(snapshot)] == expected

    def test_a_device_has_little_more_than_its_share(self, full):
        _, shapes, _ = full
        leaves = jax.tree.leaves(shapes)
        whole = sum(leaf.size for leaf in leaves)
        on_each = sum(leaf.size // (1 if leaf.sharding.spec == PartitionSpec() else 8) for leaf in leaves)
        assert on_each < 1.1 * whole / 8
