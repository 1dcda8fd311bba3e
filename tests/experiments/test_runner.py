"""Arms that are trained as one up to their first jumps are what each would be alone, whatever happens on the way."""

import dataclasses
import functools
import gc
import itertools
import math
import multiprocessing
import random
import shutil
import signal
import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from scipy import special

import optax_introspect
from experiments import runner, runs
from experiments.forecasters import FORECASTERS
from experiments.networks import NETWORKS
from experiments.runner import StoppedError, Unit, training_units
from experiments.training import Task

from . import tiny

JUMPS = (10, 16, 20)

# Those who are killed close no files.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")


@pytest.fixture(scope="module", autouse=True)
def compiled_once():
    """Tiny networks, and no program is compiled twice for the same arm: most of these tests train one again."""
    update = Task._jitted_update
    programs = {}

    def updates(self, optimizer):
        key = self.graphdef, self.seed, optimizer
        if key not in programs:
            programs[key] = update(self, optimizer)
        return programs[key]

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(runner, "Task", functools.cache(Task))
        monkeypatch.setattr(runner, "optimizer", functools.cache(runner.optimizer))
        monkeypatch.setattr(Task, "_jitted_update", updates)
        for name, network in tiny.TINY_NETWORKS.items():
            monkeypatch.setitem(NETWORKS, name, network)
        yield
    gc.collect()  # of files that were left open, while that may be


class Killed(BaseException):
    """The process ends here, as far as can be told from what it leaves behind."""


@pytest.fixture
def made(monkeypatch):
    """The steps that were made, a list for each program in the order of their making; `fuse` more can be made."""
    made = SimpleNamespace(steps=[], fuse=math.inf)
    update_function = Task.update_function

    def noting(self, optimizer):
        update, steps = update_function(self, optimizer), []
        made.steps.append(steps)

        def noted(trained, step):
            if made.fuse <= 0:
                raise Killed
            made.fuse -= 1
            steps.append(step)
            return update(trained, step)

        return noted

    monkeypatch.setattr(Task, "update_function", noting)
    return made


# Arms as they are described, beside what they should be, written by hand.

ARMS = {
    "plain": tiny.arm("plain"),
    "two-point": tiny.arm("two-point", "two-point-1.3", JUMPS),
    "early-noise": tiny.arm("early-noise", "noise-0.005", (5, 12)),
    "introspection": tiny.arm("introspection", "introspection", (14, 20)),
    "first-layer": tiny.arm("first-layer", "two-point-1.3", JUMPS, leaves="first-layer"),
}


def two_point():
    return optax_introspect.polynomial(1, 1.3, points=(1.0, 0.4))


def first_layer(params):
    """The mask of an `Mlp`."""
    return jax.tree.map_with_path(lambda path, leaf: path[1].key == 0, params)


INTROSPECT = {
    "two-point": lambda: optax_introspect.introspect(JUMPS, two_point()),
    "early-noise": lambda: optax_introspect.introspect((5, 12), optax_introspect.gaussian_noise(0.005, 0)),
    "introspection": lambda: optax_introspect.introspect((14, 20), optax_introspect.pretrained()),
    "first-layer": lambda: optax_introspect.introspect(JUMPS, two_point(), mask=first_layer),
}

PAIRED = [ARMS[name] for name in ("plain", "two-point", "early-noise", "introspection")]
ADAM = tiny.training(*PAIRED, every=7, around=(10,), after_jump=(1, 3))


def of_sgd(*names, changes=(), learning_rate=0.1, **settings):
    arms = [dataclasses.replace(ARMS[name], **dict(changes)) for name in names]
    return tiny.training(*arms, optimizer="sgd", learning_rate=learning_rate, **settings)


COSINE = of_sgd("plain", "first-layer", changes={"decay": "cosine", "rate": 0.5})


def half_of_cosine(step):
    return 0.05 * (1 + jnp.cos(jnp.pi * step / 24)) / 2


CASES = {
    "adam": (ADAM, lambda: optax.adam(0.01)),
    "dropout": (of_sgd("plain", "two-point", network="tiny-dropout"), lambda: optax.sgd(0.1)),
    "cosine": (COSINE, lambda: optax.sgd(half_of_cosine)),
    "of the paper": (of_sgd("plain", "introspection", network="MNIST_3", learning_rate=5e-3), lambda: optax.sgd(5e-3)),
}


@pytest.fixture(scope="module")
def noted():
    """The weights that were trained, and those that were evaluated, by arm and step, of all that is trained."""
    noted = SimpleNamespace(trained={}, evaluated={})
    measure = runner._Trainer._measure

    def measured(self, state, journal):
        params, opt_state, _ = state.trained
        noted.trained[self.arm.name, state.step] = tiny.leaves(params)
        noted.evaluated[self.arm.name, state.step] = tiny.leaves(self.how.evaluated(params, opt_state))
        return measure(self, state, journal)

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(runner._Trainer, "_measure", measured)
        yield noted


@pytest.fixture(scope="module", params=CASES)
def finished(request, noted, tmp_path_factory):
    """An experiment of which all arms have been trained, and what came of it."""
    experiment, base = CASES[request.param]
    base = base()
    noted.trained.clear()
    workdir = tmp_path_factory.mktemp("finished")
    told = []
    unit = tiny.unit(experiment)
    context = tiny.context(workdir, advance=told.append)
    expected = unit.steps(context)
    unit.run(context)
    assert unit.unfinished(context) == []
    assert (unit.steps(context), sum(told)) == (0, expected)
    return SimpleNamespace(
        name=request.param,
        experiment=experiment,
        base=base,
        chains={arm.name: optax.chain(base, INTROSPECT[arm.name]()) for arm in experiment.arms[1:]},
        workdir=workdir,
        weights=dict(noted.trained),
        files=tiny.files(workdir),
    )


def weights_alone(experiment, tx, steps):
    """The weights at each step of a training from step 0 on, on its own."""
    task = Task(NETWORKS[experiment.network], tiny.digits(), experiment.batch_size, 0)
    update = task.step_function(tx)
    params, opt_state = task.params, tx.init(task.params)
    weights = [tiny.leaves(params)]
    for step in range(steps):
        params, opt_state = update(params, opt_state, step)
        weights.append(tiny.leaves(params))
    return weights


def weights_branched(experiment, base, chain, arm):
    """The same, but up to the first jump the chain sees the weights that the base optimizer alone leads to."""
    task = Task(NETWORKS[experiment.network], tiny.digits(), experiment.batch_size, 0)
    update_alone, update = task.step_function(base), task.step_function(chain)
    params, (base_state, jumps_state) = task.params, chain.init(task.params)
    weights = [tiny.leaves(params)]
    for step in range(arm.steps):
        if step < arm.jump_steps[0]:
            copies = jax.tree.map(jnp.copy, (params, base_state))
            _, (_, jumps_state) = update(copies[0], (copies[1], jumps_state), step)
            params, base_state = update_alone(params, base_state, step)
        else:
            params, (base_state, jumps_state) = update(params, (base_state, jumps_state), step)
        weights.append(tiny.leaves(params))
    return weights


def measured(finished, arm):
    return {step: weights for (name, step), weights in finished.weights.items() if name == arm.name}


def test_arms_with_jumps_are_what_they_would_be_alone(finished):
    # Bit for bit, where XLA makes the same of the base optimizer in a chain as alone; elsewhere it rounds differently.
    exact = finished.name == "of the paper"
    for arm in finished.experiment.arms[1:]:
        alone = weights_alone(finished.experiment, finished.chains[arm.name], arm.steps)
        for step, weights in measured(finished, arm).items():
            for found, expected in zip(weights, alone[step], strict=True):
                np.testing.assert_allclose(found, expected, rtol=0, atol=0 if exact else 1e-6)
        assert list(measured(finished, arm))[-1] == arm.steps


def test_arms_with_jumps_are_bit_for_bit_what_they_would_be_without_branching(finished):
    for arm in finished.experiment.arms[1:]:
        alone = weights_branched(finished.experiment, finished.base, finished.chains[arm.name], arm)
        for step, weights in measured(finished, arm).items():
            tiny.assert_same(weights, alone[step])


def test_the_arm_without_jumps_is_bit_for_bit_the_base_optimizer_alone(finished):
    arm = finished.experiment.arms[0]
    alone = weights_alone(finished.experiment, finished.base, arm.steps)
    for step, weights in measured(finished, arm).items():
        tiny.assert_same(weights, alone[step])
    assert {0, arm.steps} < set(measured(finished, arm))


def test_arms_differ_as_soon_as_one_jumps(finished):
    last = [finished.weights[arm.name, arm.steps] for arm in finished.experiment.arms]
    for a, b in itertools.combinations(last, 2):
        assert not np.array_equal(a[0], b[0])


def numpy_logits(weights, images):
    """The logits of a dense network of two or three layers, in float64."""
    x = images.reshape(len(images), -1) / 255
    for i, (bias, kernel) in enumerate(zip(weights[::2], weights[1::2], strict=True)):
        x = (np.maximum(x, 0) if i else x) @ np.float64(kernel) + bias
    return x


def test_what_is_written_is_of_these_weights(finished):
    images = tiny.digits()
    for name, (_, *lines, end) in finished.files.items():
        arm = name.split("/")[1]
        assert [line["step"] for line in lines] == [step for other, step in finished.weights if other == arm]
        for line in lines:
            weights = finished.weights[arm, line["step"]]
            for part, pixels, labels in (
                ("train", images.train_images[:100], images.train_labels[:100]),
                ("test", images.test_images, images.test_labels),
            ):
                logits = numpy_logits(weights, pixels)
                losses = special.logsumexp(logits, axis=1) - logits[np.arange(len(labels)), labels]
                assert line[f"{part}_loss"] == pytest.approx(losses.mean(), rel=1e-5)
                assert line[f"{part}_accuracy"] == pytest.approx(np.mean(logits.argmax(axis=1) == labels), abs=1e-6)
            assert 0 < line["calibrated_loss"] < line["test_loss"] + 0.1
        assert end["end"] == "complete"


def test_the_header_says_what_it_is_a_run_of(finished):
    for arm in finished.experiment.arms:
        header, *_, end = finished.files[f"tiny/{arm.name}/seed-0"]
        header = header["header"]
        settings = ("network", "optimizer", "learning_rate", "batch_size", "every", "train_examples")
        assert {name: header[name] for name in settings} == {
            name: getattr(finished.experiment, name) for name in settings
        }
        assert (header["seed"], header["images"]) == (0, "the digits of scikit-learn")
        assert header["arm"]["jump_steps"] == list(arm.jump_steps)
        assert (header["arm"]["decay"], header["arm"]["rate"]) == (arm.decay, arm.rate)
        assert set(header["versions"]) == {"jax", "jaxlib", "flax", "optax", "numpy", "optax-introspect"}
        if arm.jump_steps:
            assert header["branch"] == {"arm": "plain", "step": arm.jump_steps[0]}
            assert header["forecaster"]
            assert (end["jumps_taken"], end["jumps_refused"]) == (len(arm.jump_steps), 0)
        else:
            assert header["branch"] is header["forecaster"] is None
            assert end == {"end": "complete"}


def test_nothing_else_is_left(finished):
    left = {path.relative_to(finished.workdir).as_posix() for path in finished.workdir.rglob("*") if path.is_file()}
    assert left == {f"{name}.jsonl" for name in finished.files}
    assert set(finished.files) == {f"tiny/{arm.name}/seed-0" for arm in finished.experiment.arms}


def steps_of(workdir):
    return {name.split("/")[1]: [line["step"] for line in lines[1:-1]] for name, lines in tiny.files(workdir).items()}


def test_evaluations(tmp_path):
    """Every 7 steps, at the end, around step 10 and around an arm's own jumps: before, and 1 and 3 steps after."""
    tiny.unit(ADAM).run(tiny.context(tmp_path))
    assert steps_of(tmp_path) == {
        "plain": [0, 7, 10, 11, 13, 14, 21, 24],
        "two-point": [11, 13, 14, 16, 17, 19, 20, 21, 23, 24],
        "early-noise": [6, 7, 8, 10, 11, 12, 13, 14, 15, 21, 24],
        "introspection": [15, 17, 20, 21, 23, 24],
    }


def test_arms_share_one_training_up_to_their_first_jumps(tmp_path, made):
    tiny.unit(ADAM).run(tiny.context(tmp_path))
    # The first step of each is made twice, for its program to be compiled outside of the time that is measured.
    # Arms with jumps make those steps of the plain one again at which they take snapshots before the first jump.
    assert made.steps == [
        [0, *range(24)],
        [4, 6, 8, 10, *range(10, 24)],
        [5, *range(5, 24)],
        [0, 6, 8, 10, 14, *range(14, 24)],
    ]


@pytest.mark.parametrize("averaging", ["ema", "lookahead"])
def test_averages_of_weights(averaging, noted, tmp_path):
    experiment = of_sgd("plain", changes={"averaging": averaging, "steps": 23})
    noted.evaluated.clear()
    tiny.unit(experiment).run(tiny.context(tmp_path))

    task = Task(NETWORKS["tiny"], tiny.digits(), 50, 0)
    update = task.step_function(optax.sgd(0.1))
    fast = task.params
    average = slow = tiny.leaves(fast)
    expected = []
    for step in range(24):
        expected.append(average if averaging == "ema" else slow)
        fast, _ = update(fast, optax.sgd(0.1).init(fast), step)
        average = [0.999 * a + 0.001 * w for a, w in zip(average, tiny.leaves(fast), strict=True)]
        if averaging == "lookahead" and step % 5 == 4:
            slow = [s + 0.5 * (w - s) for s, w in zip(slow, tiny.leaves(fast), strict=True)]
            fast = jax.tree.unflatten(jax.tree.structure(fast), [jnp.asarray(leaf) for leaf in slow])
    assert [step for _, step in noted.evaluated] == [0, 4, 8, 12, 16, 20, 23]
    for (_, step), weights in noted.evaluated.items():
        for found, leaf in zip(weights, expected[step], strict=True):
            np.testing.assert_allclose(found, leaf, rtol=1e-4, atol=1e-6)
    assert not np.array_equal(expected[23][0], expected[0][0])
    for line in tiny.files(tmp_path)["tiny/plain/seed-0"][1:-1]:
        logits = numpy_logits(expected[line["step"]], tiny.digits().test_images)
        labels = tiny.digits().test_labels
        losses = special.logsumexp(logits, axis=1) - logits[np.arange(len(labels)), labels]
        assert line["test_loss"] == pytest.approx(losses.mean(), rel=1e-4)


# Runs that are killed, stopped, or asked for once more.

NAMES = ("two-point", "early-noise")
TWO = ("tiny/plain/seed-0", "tiny/two-point/seed-0")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("uninterrupted")
    tiny.unit(ADAM, *NAMES).run(tiny.context(workdir))
    return tiny.files(workdir)


def is_killed(unit, context):
    """Runs a unit; returns whether it was killed on the way."""
    try:
        unit.run(context)
    except Killed:
        return True
    return False


@pytest.fixture
def checkpoints(monkeypatch):
    """A checkpoint at every evaluation."""
    monkeypatch.setattr(runner, "CHECKPOINT_SECONDS", -1.0)


def test_killed_after_every_few_steps(tmp_path, made, checkpoints, uninterrupted):
    made.fuse, killed = 9, 0
    while is_killed(tiny.unit(ADAM, *NAMES), tiny.context(tmp_path)):
        made.fuse, killed = 9, killed + 1
        assert killed < 20
    assert killed > 1
    assert tiny.files(tmp_path) == uninterrupted


def test_killed_before_the_first_checkpoint(tmp_path, made, uninterrupted):
    made.fuse = 20
    assert is_killed(tiny.unit(ADAM, *NAMES), tiny.context(tmp_path))
    made.fuse = math.inf
    assert not is_killed(tiny.unit(ADAM, *NAMES), tiny.context(tmp_path))
    assert made.steps[:2] == [[0, *range(19)], [0, *range(24)]]
    assert tiny.files(tmp_path) == uninterrupted


@pytest.mark.parametrize("every", [13, 23])
def test_killed_before_or_after_something_is_written(every, tmp_path, monkeypatch, checkpoints, uninterrupted):
    moments = []

    def at_a_moment(name):
        moments.append(name)
        if len(moments) == every:
            raise Killed

    def watch(owner, name):
        method = getattr(owner, name)

        def watched(*arguments, **options):
            at_a_moment(f"before {name}")
            result = method(*arguments, **options)
            at_a_moment(f"after {name}")
            return result

        monkeypatch.setattr(owner, name, watched)

    for name in ("write", "commit", "complete"):
        watch(runs.Journal, name)
    watch(ocp.CheckpointManager, "save")
    watch(ocp.StandardCheckpointer, "save")
    killed = []
    while is_killed(tiny.unit(ADAM, *NAMES), tiny.context(tmp_path)):
        killed.append(moments[-1])
        moments.clear()
        assert len(killed) < 40
    assert len(killed) > 4
    assert len(set(killed)) > 1
    assert tiny.files(tmp_path) == uninterrupted


def train_slowly(workdir, calls):
    """What a process does that is killed from outside: it tells how many steps it has made."""
    NETWORKS.update(tiny.TINY_NETWORKS)
    runner.CHECKPOINT_SECONDS = -1.0
    update_function = Task.update_function

    def slow(self, optimizer):
        update = update_function(self, optimizer)

        def counted(trained, step):
            time.sleep(0.02)
            calls.value += 1
            return update(trained, step)

        return counted

    Task.update_function = slow
    tiny.unit(ADAM, "two-point").run(tiny.context(workdir))


def test_kill_9(tmp_path, uninterrupted):
    spawn, seeded = multiprocessing.get_context("spawn"), random.Random(0)
    # Of 25 steps of the arm without jumps and 18 of the other one, at first; of the 35 that are left then; never.
    for killed_at in (seeded.randint(9, 15), seeded.randint(24, 32), None):
        calls = spawn.Value("i", 0)
        process = spawn.Process(target=train_slowly, args=(tmp_path, calls))
        process.start()
        if killed_at is not None:
            while calls.value < killed_at and process.is_alive():
                time.sleep(0.001)
            time.sleep(seeded.uniform(0, 0.02))
            process.kill()
        process.join()
        assert process.exitcode == (0 if killed_at is None else -signal.SIGKILL)
    assert tiny.files(tmp_path) == {name: uninterrupted[name] for name in TWO}


def test_the_time_is_up_at_every_step(tmp_path, made, uninterrupted):
    stopped = 0
    while stopped < 100:
        try:
            tiny.unit(ADAM, "two-point").run(tiny.context(tmp_path, deadline=time.time() - 1))
            break
        except StoppedError:
            stopped += 1
    assert tiny.files(tmp_path) == {name: uninterrupted[name] for name in TWO}
    assert stopped == 24 + 14
    # One, and the one that compiles, and those at which snapshots are taken.
    assert all(len(steps) <= 2 + 4 for steps in made.steps)


def test_a_complete_run_is_not_run_again(tmp_path, made):
    unit = tiny.unit(ADAM, *NAMES)
    unit.run(tiny.context(tmp_path))
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.glob("*/*/*.jsonl")}
    assert len(before) == 3
    made.steps.clear()
    unit.run(tiny.context(tmp_path))
    assert made.steps == []
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.glob("*/*/*.jsonl")} == before


@pytest.mark.parametrize("kept", [True, False])
def test_an_arm_that_is_asked_for_later(kept, tmp_path, made, uninterrupted):
    tiny.unit(ADAM, "two-point").run(tiny.context(tmp_path))
    assert len(tiny.files(tmp_path)) == 2
    if not kept:
        shutil.rmtree(tmp_path / ".working")
    made.steps.clear()
    tiny.unit(ADAM, *NAMES).run(tiny.context(tmp_path))
    # To its first jump the arm without jumps is trained once more, from what is left of it.
    assert made.steps == [[4] if kept else list(range(5)), [5, *range(5, 24)]]
    assert tiny.files(tmp_path) == uninterrupted


def test_what_is_trained_again_is_stopped_too(tmp_path, made, uninterrupted):
    tiny.unit(ADAM, "two-point").run(tiny.context(tmp_path))
    shutil.rmtree(tmp_path / ".working")
    told = []
    later = dataclasses.replace(tiny.unit(ADAM, *NAMES), branches=(ARMS["early-noise"],))
    assert later.steps(tiny.context(tmp_path)) == 5 + 19
    made.steps.clear()
    for _ in range(4):
        with pytest.raises(StoppedError):
            later.run(tiny.context(tmp_path, deadline=time.time() - 1))
    assert made.steps == [[0], [1], [2], [3]]
    later.run(tiny.context(tmp_path, advance=told.append))
    assert tiny.files(tmp_path) == uninterrupted
    assert sum(told) == 5 + 19


def test_what_arms_branch_from_is_kept_as_long_as_one_may(tmp_path, made):
    kept = tmp_path / ".working" / "tiny" / "plain" / "seed-0" / "plain" / "kept"
    for name, trunk in (
        ("introspection", [0, *range(24)]),
        ("two-point", [0, 1, 2, 3]),  # of its snapshots, only that of step 4 was not taken for the first
        ("early-noise", [4]),
    ):
        made.steps.clear()
        tiny.unit(ADAM, name).run(tiny.context(tmp_path))
        assert made.steps[0] == trunk
        assert kept.exists() == (name != "early-noise")
    assert len(tiny.files(tmp_path)) == 4


def test_two_at_once_are_refused(tmp_path, made):
    folder = tmp_path / ".working" / "tiny" / "plain" / "seed-0"
    with runs.locked(folder), pytest.raises(BlockingIOError, match=f"another run works on {folder}"):
        tiny.unit(ADAM).run(tiny.context(tmp_path))
    assert made.steps == []
    assert tiny.files(tmp_path) == {}


@pytest.mark.parametrize("complete", [True, False])
def test_other_settings_are_refused(complete, tmp_path, made, checkpoints):
    if not complete:
        made.fuse = 20
    assert is_killed(tiny.unit(ADAM, "two-point"), tiny.context(tmp_path)) != complete
    made.steps.clear()
    other = dataclasses.replace(ADAM, batch_size=25, learning_rate=0.02)
    message = "plain.*other settings: batch_size was 50 and is 25; learning_rate was 0.01 and is 0.02. Use another"
    for check in (tiny.unit(other, "two-point").check, tiny.unit(other, "two-point").run):
        with pytest.raises(ValueError, match=message):
            check(tiny.context(tmp_path))
    assert made.steps == []


# Training that fails.


@pytest.fixture
def explosive(monkeypatch):
    """An experiment of which one arm jumps so far that nothing finite is left."""
    monkeypatch.setitem(FORECASTERS, "explosive", lambda: optax_introspect.polynomial(1, 1e30, points=(1.0, 0.4)))
    exploding = tiny.arm("exploding", "explosive", (10, 16))
    return tiny.training(tiny.arm("plain"), exploding, ARMS["two-point"], optimizer="sgd", learning_rate=0.1)


def test_an_arm_that_explodes_ends_and_the_others_go_on(explosive, tmp_path):
    told = []
    unit, context = tiny.unit(explosive), tiny.context(tmp_path, advance=told.append)
    expected = unit.steps(context)
    unit.run(context)
    found = tiny.files(tmp_path)
    _, line, end = found["tiny/exploding/seed-0"]
    assert (line["step"], line["train_loss"], line["test_loss"], line["temperature"]) == (11, None, None, None)
    assert 0 <= line["test_accuracy"] <= 1
    assert end == {"end": "not finite", "jumps_taken": 1, "jumps_refused": 0}
    for name, steps in (("plain", 7), ("two-point", 7)):
        _, *lines, end = found[f"tiny/{name}/seed-0"]
        assert end["end"] == "complete"
        assert len(lines) == steps
        assert None not in lines[-1].values()
    assert sum(told) == expected
    assert unit.unfinished(context) == []


def test_an_arm_without_jumps_that_explodes(tmp_path):
    absurd = tiny.training(
        tiny.arm("absurd", rate=1e30), tiny.arm("after", "two-point-1.3", (12, 16), rate=1e30), optimizer="sgd"
    )
    tiny.unit(absurd).run(tiny.context(tmp_path))
    found = tiny.files(tmp_path)
    assert [line.get("step") for line in found["tiny/absurd/seed-0"][1:]] == [0, 4, None]
    assert found["tiny/absurd/seed-0"][-1] == {"end": "not finite"}
    assert found["tiny/after/seed-0"][-1]["end"] == "not finite"


def test_a_network_with_batch_norm(tmp_path):
    experiment = tiny.training(
        tiny.arm("plain"),
        ARMS["two-point"],
        network="tiny-batch-norm",
        optimizer="sgd",
        around=(10,),
        learning_rate=0.1,
    )
    for name in ("once", "again"):
        tiny.unit(experiment).run(tiny.context(tmp_path / name))
    found = tiny.files(tmp_path / "once")
    assert found == tiny.files(tmp_path / "again")  # to recalibrate changes neither the start nor the training
    lines = found["tiny/plain/seed-0"][1:-1]
    assert [line["step"] for line in lines if "recalibrated_test_loss" in line] == [10, 11, 24]
    assert lines[-1]["recalibrated_test_loss"] < lines[-1]["test_loss"] < lines[0]["test_loss"] - 0.5
    lines = found["tiny/two-point/seed-0"][1:-1]
    assert [line["step"] for line in lines if "recalibrated_test_loss" in line] == [11, 16, 17, 20, 21, 24]


@pytest.mark.parametrize("rate", [1e30, 1e20])  # the losses are not finite, or nothing but the recalibrated statistics
def test_a_network_with_batch_norm_that_explodes(rate, tmp_path):
    absurd = tiny.training(
        tiny.arm("absurd", rate=rate), optimizer="sgd", network="tiny-batch-norm", around=(2,), after_jump=(1,)
    )
    tiny.unit(absurd).run(tiny.context(tmp_path))
    _, *lines, end = tiny.files(tmp_path)["tiny/absurd/seed-0"]
    assert lines[-1]["recalibrated_test_loss"] is None
    assert end == {"end": "not finite"}


def test_an_arm_that_explodes_and_is_stopped_then(explosive, tmp_path):
    once, often = (tiny.context(tmp_path / name, deadline=None) for name in ("once", "often"))
    tiny.unit(explosive, "exploding").run(once)
    often = dataclasses.replace(often, deadline=time.time() - 1)
    for _ in range(40):
        try:
            tiny.unit(explosive, "exploding").run(often)
        except StoppedError:
            continue
        break
    assert tiny.files(tmp_path / "often") == tiny.files(tmp_path / "once")
    assert len(tiny.files(tmp_path / "once")) == 2


# What there is to do.


def test_units():
    plain, slow = tiny.arm("plain", seeds=(0, 1)), tiny.arm("slow", seeds=(0, 1), rate=0.5)
    jumping = tiny.arm("jumping", "average", JUMPS)
    slowly = tiny.arm("slowly", "average", JUMPS, rate=0.5, seeds=(0, 1))
    experiment = tiny.training(plain, slow, jumping, slowly)
    units = training_units(experiment, experiment.arms, (0, 1))
    assert units == [
        Unit(experiment, 0, plain, (jumping,)),
        Unit(experiment, 0, slow, (slowly,)),
        Unit(experiment, 1, plain, ()),
        Unit(experiment, 1, slow, (slowly,)),
    ]
    assert units[1].name == "tiny, slow, seed 0"
    # Those that they branch from come with them.
    assert training_units(experiment, (slowly,), (1,)) == [units[3]]
    assert training_units(experiment, (jumping,), (1,)) == []
    assert training_units(experiment, (plain,), (0,)) == [Unit(experiment, 0, plain, ())]


def test_seeds_differ(tmp_path):
    for seed in (0, 1):
        experiment = tiny.training(tiny.arm("plain", seeds=(0, 1), steps=8))
        tiny.unit(experiment, seed=seed).run(tiny.context(tmp_path))
    first, second = tiny.files(tmp_path).values()
    assert [line["step"] for line in first[1:-1]] == [line["step"] for line in second[1:-1]] == [0, 4, 8]
    assert all(a["test_loss"] != b["test_loss"] for a, b in zip(first[1:-1], second[1:-1], strict=True))
    assert (first[0]["header"]["seed"], second[0]["header"]["seed"]) == (0, 1)
