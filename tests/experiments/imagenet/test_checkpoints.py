import contextlib
import dataclasses
import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.imagenet.checkpoints import CheckpointError, Checkpoints, check_same
from experiments.imagenet.records import RmsProp
from experiments.imagenet.steps import TrainState
from tests.experiments.imagenet import tiny

SETTINGS = {"model": {"network": "Tiny"}, "plan": {"jump_steps": [5, 8]}}


def a_state(seed=0, size=1000):
    weights = jax.random.normal(jax.random.key(seed), (size,))
    return TrainState({"w": weights}, {"mean": jnp.zeros(3)}, (jnp.full(3, 2.0, jnp.bfloat16), jnp.array(seed)))


def shapes(state):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state)


def opened(folder, settings=None, state=None):
    of_state = shapes(state or a_state())
    return contextlib.closing(Checkpoints(folder, settings or SETTINGS, of_state, of_state.params))


def assert_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@contextlib.contextmanager
def little_space(nbytes):
    """No file may become larger, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


class TestCheckpoints:
    def test_what_is_saved_is_restored(self, tmp_path):
        with opened(tmp_path) as checkpoints:
            assert checkpoints.latest is None
            checkpoints.save(3, a_state(3), {"evaluated": True})
        with opened(tmp_path) as checkpoints:
            assert (checkpoints.latest, checkpoints.notes) == (3, {"evaluated": True})
            assert_same(checkpoints.restore(), a_state(3))

    def test_the_state_may_be_changed_while_it_is_written(self, tmp_path):
        change = jax.jit(lambda state: jax.tree.map(lambda leaf: leaf + 1, state), donate_argnums=0)
        with opened(tmp_path) as checkpoints:
            state = a_state(3)
            checkpoints.save(3, state, {})
            change(state)
        with opened(tmp_path) as checkpoints:
            assert_same(checkpoints.restore(), a_state(3))

    def test_the_last_two_are_kept(self, tmp_path):
        with opened(tmp_path) as checkpoints:
            for step in (1, 2, 3, 4):
                checkpoints.save(step, a_state(step), {})
        assert {path.name for path in tmp_path.iterdir()} == {"3", "4"}

    def test_it_is_there_once_waited_for(self, tmp_path):
        with opened(tmp_path) as checkpoints:
            checkpoints.save(1, a_state(1), {})
            checkpoints.wait()
            assert checkpoints.latest == 1
            assert (tmp_path / "1" / "about").is_dir()

    @pytest.mark.parametrize("damaged", ["state", "about"])
    def test_a_damaged_one(self, tmp_path, damaged):
        with opened(tmp_path) as checkpoints:
            checkpoints.save(1, a_state(1), {})
            checkpoints.save(2, a_state(2), {})
        shutil.rmtree(tmp_path / "2" / damaged)
        message = rf"the checkpoint of step 2 in {tmp_path} can't be read; without its folder the run goes on from the"
        with pytest.raises(ValueError, match=message), opened(tmp_path) as checkpoints:
            checkpoints.restore()
        shutil.rmtree(tmp_path / "2")
        with opened(tmp_path) as checkpoints:
            assert_same(checkpoints.restore(), a_state(1))

    def test_what_was_being_written_when_all_was_killed(self, tmp_path):
        with opened(tmp_path) as checkpoints:
            checkpoints.save(1, a_state(1), {})
        shutil.copytree(tmp_path / "1", tmp_path / "2.orbax-checkpoint-tmp")
        with opened(tmp_path) as checkpoints:
            assert checkpoints.latest == 1


class TestAnotherRun:
    @pytest.fixture
    def folder(self, tmp_path):
        with opened(tmp_path) as checkpoints:
            checkpoints.save(7, a_state(), {})
        return tmp_path

    def check(self, folder, message, settings=SETTINGS, state=None):
        before = files(folder)
        with pytest.raises(ValueError, match=message), opened(folder, settings, state):
            pass
        assert files(folder) == before

    def test_another_model(self, folder):
        message = (
            rf"the checkpoint of step 7 in {folder} is of another model: network was 'Tiny' and is 'Large'. "
            "Use another workdir"
        )
        self.check(folder, message, SETTINGS | {"model": {"network": "Large"}})

    def test_other_weights(self, folder):
        message = r"another model: arrays.*w.* was 'float32\[1000\]' and is 'float32\[1001\]'"
        self.check(folder, message, state=a_state(size=1001))

    def test_another_plan(self, folder):
        message = r"another plan: jump_steps was \[5, 8\] and is \[5, 9\]"
        self.check(folder, message, SETTINGS | {"plan": {"jump_steps": [5, 9]}})

    def test_what_a_run_of_another_kind_would_find(self, tmp_path):
        chosen, other = tiny.options(), tiny.options(tiny.record(optimizer=RmsProp(tiny.RATE, 0.9, 0.9, 1.0)))
        found, expected = (options.settings(10, 80, None) for options in (chosen, other))
        message = (
            "of another optimizer: decay was not there and is 0.9; epsilon was not there and is 1.0; name was 'Sgd' "
        )
        with pytest.raises(ValueError, match=message):
            check_same("it is", found, expected)
        longer = dataclasses.replace(chosen, seed=3, record=tiny.record(batch_size=16))
        message = "of another input: batch_size was 8 and is 16; seed was 0 and is 3"
        with pytest.raises(ValueError, match=message):
            check_same("it is", found, longer.settings(10, 80, None))

    def test_many_differences(self):
        numbers = [{"group": {str(i): i + more for i in range(6)}} for more in (0, 1)]
        with pytest.raises(ValueError, match="3 was 3 and is 4; and 2 more"):
            check_same("it", *numbers)

    def test_a_checkpoint_of_another_program(self, folder, tmp_path):
        (folder / "7" / "about" / "metadata").write_text("[]")
        self.check(folder, f"{folder}/7 is not a checkpoint of this program")


class TestSpace:
    def test_too_little_to_begin_with(self, tmp_path, monkeypatch):
        usage = shutil.disk_usage(tmp_path)._replace(free=10_000_000)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
        # Two are kept while a third is written.
        message = rf"{tmp_path} has 10.0 MB of space; checkpoints of 4.0 MB each need 12.0 MB"
        with pytest.raises(OSError, match=message), opened(tmp_path, state=a_state(size=1_000_000)):
            pass
        with opened(tmp_path, state=a_state(size=800_000)):
            pass

    def test_it_ends_while_a_checkpoint_is_written(self, tmp_path):
        def large(seed):
            return {"w": jax.random.normal(jax.random.key(seed), (200_000,))}

        settings = {"model": {}}
        with contextlib.closing(Checkpoints(tmp_path, settings, large(0))) as checkpoints:
            checkpoints.save(1, large(1), {})
            checkpoints.wait()
            before = files(tmp_path)
            with little_space(100_000):
                checkpoints.save(2, large(2), {})
                message = (
                    f"the checkpoint of step 2 in {tmp_path} could not be written; the last good one is of step 1: "
                )
                with pytest.raises(CheckpointError, match=message):
                    checkpoints.wait()
            assert checkpoints.latest == 1
            assert files(tmp_path) == before  # nothing half-written is left
            checkpoints.save(3, large(3), {})
        with contextlib.closing(Checkpoints(tmp_path, settings, large(0))) as checkpoints:
            assert checkpoints.latest == 3
            assert_same(checkpoints.restore(), large(3))

    def test_the_first_checkpoint_fails(self, tmp_path, monkeypatch):
        with opened(tmp_path) as checkpoints:

            def fail(*args, **settings):
                raise OSError("No space left on device")

            monkeypatch.setattr(checkpoints._manager, "save", fail)
            message = f"step 2 in {tmp_path} could not be written; there is none before it: No space left on device"
            with pytest.raises(CheckpointError, match=message):
                checkpoints.save(2, a_state(2), {})
