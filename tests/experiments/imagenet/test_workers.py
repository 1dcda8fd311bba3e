import itertools
import multiprocessing
import subprocess
import sys
import threading

import numpy as np
import pytest

from experiments.imagenet.input import evaluation_batches, training_batches

from .test_input import EVALUATION, TRAINING, assert_equal, numbered, take

# Starts workers, signals them as a scheduler would, goes on, and is then killed.
PROGRAM = """
import multiprocessing, os, signal, sys
from experiments.imagenet.input import training_batches
from experiments.imagenet.photographs import photographs
from experiments.imagenet.sources import open_source

if __name__ == "__main__":
    source = open_source(photographs(), "train")
    batches = training_batches(source, image_size=16, batch_size=4, seed=0, start=0, workers=1)
    next(batches)
    (worker,) = multiprocessing.active_children()
    for number in (signal.SIGTERM, signal.SIGINT):
        os.kill(worker.pid, number)
    for _ in range(20):
        next(batches)
    print(len(multiprocessing.active_children()), "worker lives", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def started():
    """Returns the threads of Grain that live, of those started since."""
    before = set(threading.enumerate())
    return lambda: {thread for thread in set(threading.enumerate()) - before if thread.name.startswith("grain")}


@pytest.fixture
def workers():
    """Returns the processes that live, of those started since."""
    before = set(multiprocessing.active_children())
    return lambda: set(multiprocessing.active_children()) - before


def wait_for(threads):
    for thread in threads:
        thread.join(60)


class TestThreads:
    def test_end_when_closed(self, started):
        batches = training_batches(numbered(20), **TRAINING)
        next(batches)
        assert started()
        batches.close()
        wait_for(started())
        assert not started()
        with pytest.raises(StopIteration):
            next(batches)
        batches.close()

    def test_end_when_exhausted(self, started):
        batches = evaluation_batches(numbered(20), **EVALUATION)
        assert len(list(batches)) == 3
        wait_for(started())
        assert not started()

    def test_end_when_no_longer_referred_to(self, started):
        batches = training_batches(numbered(20), **TRAINING)
        next(batches)
        assert started()
        del batches
        wait_for(started())
        assert not started()

    def test_end_after_an_error(self, started):
        batches = training_batches(numbered(3, broken=range(3)), **TRAINING)
        with pytest.raises(ValueError, match="could not be decoded"):
            next(batches)
        wait_for(started())
        assert not started()
        with pytest.raises(StopIteration):
            next(batches)

    def test_batches_are_the_callers_own(self):
        first, second = take(2, numbered(20))
        expected = second["image"].copy()
        first["image"][:] = 0
        np.testing.assert_array_equal(second["image"], expected)


class TestProcesses:
    def test_give_what_threads_give_and_end(self, workers):
        source = numbered(20, broken=(4,))
        batches = training_batches(source, **TRAINING | {"start": 1}, workers=2)
        found = list(itertools.islice(batches, 7))
        assert len(workers()) == 2
        assert all(type(array) is np.ndarray for batch in found for array in batch.values())
        assert not source.reads  # the workers have copies
        batches.close()
        assert not workers()
        assert_equal(found, take(8, source)[1:])

    def test_end_with_the_last_batch_or_an_error(self, workers):
        source = numbered(33)
        source.labels[32] = 5000
        batches = evaluation_batches(source, **EVALUATION, workers=2)
        found = list(itertools.islice(batches, 4))
        assert_equal(found, list(evaluation_batches(numbered(32), **EVALUATION)))
        with pytest.raises(ValueError, match="image 32 has the label 5000, not one of 0 to 999"):
            next(batches)
        assert not workers()

    def test_survive_signals_to_all_and_end_with_a_killed_main_process(self, tmp_path):
        program = tmp_path / "program.py"
        program.write_text(PROGRAM)
        # The output ends when the last process that could write to it has ended.
        run = subprocess.run([sys.executable, str(program)], timeout=300, capture_output=True, text=True)
        assert run.stdout == "1 worker lives\n", run.stderr
        assert run.returncode == -9
