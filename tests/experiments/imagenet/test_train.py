import contextlib
import dataclasses
import json
import os
import shutil
import signal

import jax
import numpy as np
import pytest
from rich.console import Console

from experiments import runs
from experiments.imagenet import loop
from experiments.imagenet.checkpoints import CheckpointError, Checkpoints
from experiments.imagenet.feed import imagenet_feed
from experiments.imagenet.mesh import device_mesh
from experiments.imagenet.photographs import photographs
from experiments.imagenet.records import ALEXNET_1, Rate, Sgd
from experiments.imagenet.train import Outcome, fit, train
from experiments.imagenet.wishes import AHEAD
from tests.experiments.imagenet import tiny
from tests.experiments.imagenet.several import losses

pytestmark = pytest.mark.usefixtures("compiled_once")


def trained(workdir, feed=None, record=None, console=None, **asked):
    """Trains `Tiny` with jumps at 5 and 8, unless something else is asked for."""
    chosen = tiny.options(record, **({"arm": "two-point"} | asked))
    return fit(chosen, feed or tiny.feed(), workdir, device_mesh(), console or Console(quiet=True))


def done(workdir, arm="two-point"):
    return workdir / "tiny" / arm / "seed-0.jsonl"


def working(workdir):
    return workdir / ".working" / "tiny" / "two-point" / "seed-0"


def journal(workdir):
    return working(workdir) / "journal.jsonl"


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def checkpoints_of(workdir):
    return {int(path.name) for path in (working(workdir) / "checkpoints").iterdir()}


def feed_that(does, at, split="training"):
    """Returns a feed that does something before it gives the batch of a step, or of the validation split."""
    usual = getattr(tiny.feed(), split)

    def batches(start=0):
        with contextlib.closing(usual(start) if split == "training" else usual()) as own:
            for number, batch in enumerate(own, start):
                yield (does(batch) or batch) if number == at else batch

    return tiny.feed()._replace(**{split: batches})


def sigterm(batch):
    os.kill(os.getpid(), signal.SIGTERM)


def fail(batch):
    raise RuntimeError("killed")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The losses and scores of 12 steps."""
    workdir = tmp_path_factory.mktemp("uninterrupted")
    assert trained(workdir) == Outcome.COMPLETE
    return losses(done(workdir))


class TestComplete:
    def test_it_is_written_down(self, tmp_path, uninterrupted):
        found, scores = uninterrupted
        assert [*found] == [*range(1, 13)]
        assert [*scores] == [6, 12]
        assert found[12] < found[1] / 5
        assert scores[12][0] == 1  # top-1

    def test_the_lines(self, tmp_path):
        assert trained(tmp_path, record=tiny.record(report_every=4)) == 0
        header, *lines = lines_of(done(tmp_path))
        assert header["header"]["settings"]["plan"]["jump_steps"] == [5, 8]
        assert header["header"].items() >= {"experiment": "tiny", "arm": "two-point", "seed": 0, "steps": 12}.items()
        assert header["header"].items() >= {"devices": 1, "processes": 1, "fsdp": False}.items()
        reports = [line for line in lines if "loss" in line]
        assert [line["step"] for line in reports] == [4, 8, 12]
        assert [line["skipped"] for line in reports] == [1, 0, 0]
        assert [line["jumps_taken"] for line in reports] == [0, 1, 2]
        assert all(line["images_per_second"] > 0 for line in reports)
        (evaluation, _) = (line for line in lines if "top5" in line)
        assert evaluation.items() >= {"step": 6, "top5": 1.0, "examples": 80, "skipped": 1}.items()
        assert lines[-1] == {"end": "complete", "jumps_taken": 2, "jumps_refused": 0}
        assert runs.read(done(tmp_path)).end == "complete"

    def test_a_report_is_the_mean_since_the_last(self, tmp_path, uninterrupted):
        trained(tmp_path, record=tiny.record(report_every=4))
        each = np.array([*uninterrupted[0].values()])
        np.testing.assert_allclose([*losses(done(tmp_path))[0].values()], each.reshape(3, 4).mean(1), rtol=1e-6)

    def test_nothing_is_left_to_do(self, tmp_path, capsys):
        trained(tmp_path)
        before = done(tmp_path).read_bytes()
        assert trained(tmp_path, feed_that(fail, 0), console=Console()) == Outcome.COMPLETE
        assert capsys.readouterr().out.replace("\n", "") == f"Complete: {done(tmp_path)}"
        assert done(tmp_path).read_bytes() == before

    def test_only_the_results_are_where_results_are(self, tmp_path):
        trained(tmp_path, steps=7)
        assert sorted(path.name for path in tmp_path.iterdir()) == [".working", "tiny"]
        assert [path for path in (tmp_path / "tiny").rglob("*") if path.is_file()] == [done(tmp_path)]

    def test_more_steps_go_on(self, tmp_path, uninterrupted):
        assert trained(tmp_path, steps=7) == Outcome.COMPLETE
        assert [*losses(done(tmp_path))[1]] == [6, 7]
        assert trained(tmp_path) == Outcome.COMPLETE
        found, scores = losses(done(tmp_path))
        assert found == uninterrupted[0]
        assert scores.items() >= uninterrupted[1].items()
        assert not journal(tmp_path).exists()

    def test_without_jumps(self, tmp_path):
        assert trained(tmp_path, arm="plain") == Outcome.COMPLETE
        assert lines_of(done(tmp_path, "plain"))[-1] == {"end": "complete"}

    def test_what_people_see(self, tmp_path, capsys):
        trained(tmp_path, console=Console(width=200))
        printed = capsys.readouterr().out
        for text in (
            "tiny, two-point, seed 0: Tiny with 20,660 weights and 0.2 MB of snapshots; devices: 1, processes: 1",
            "synthetic images",
            "From the start to step 12",
            "step 6: top-1 100.00%, top-5 100.00%",
            "12/12",
            f"Complete: {done(tmp_path)}",
        ):
            assert text in printed


class TestResume:
    def test_killed_between_the_jumps(self, tmp_path, uninterrupted):
        with pytest.raises(RuntimeError, match="killed"):
            trained(tmp_path, feed_that(fail, 7), checkpoint_minutes=0)
        assert checkpoints_of(tmp_path) == {6, 7}
        assert not done(tmp_path).exists()
        assert trained(tmp_path) == Outcome.COMPLETE
        assert losses(done(tmp_path)) == uninterrupted

    def test_killed_without_a_checkpoint(self, tmp_path, uninterrupted):
        with pytest.raises(RuntimeError, match="killed"):
            trained(tmp_path, feed_that(fail, 7))
        assert trained(tmp_path) == Outcome.COMPLETE
        assert losses(done(tmp_path)) == uninterrupted

    @pytest.mark.parametrize("damaged", [7])
    def test_from_the_checkpoint_before(self, tmp_path, uninterrupted, damaged):
        with pytest.raises(RuntimeError, match="killed"):
            trained(tmp_path, feed_that(fail, 7), checkpoint_minutes=0)
        folder = working(tmp_path) / "checkpoints" / str(damaged)
        folder.rename(tmp_path / "damaged")
        assert trained(tmp_path) == Outcome.COMPLETE
        assert losses(done(tmp_path)) == uninterrupted

    def test_another_plan(self, tmp_path):
        trained(tmp_path, steps=7)
        with pytest.raises(ValueError, match=r"of another plan: jump_steps was \[5, 8\] and is \[5, 9\]. Use another"):
            trained(tmp_path, jump_steps=(5, 9))
        done(tmp_path).unlink()  # of the checkpoint the same
        with pytest.raises(
            ValueError, match=r"the checkpoint of step 7 .* of another plan: jump_steps was \[5, 8\] and"
        ):
            trained(tmp_path, jump_steps=(5, 9))

    @pytest.mark.parametrize(("jump_steps", "message"), [((9, 5), "got 5 after 9"), ((1,), "jump step 1 is too early")])
    def test_jump_steps_that_cannot_be(self, tmp_path, jump_steps, message):
        with pytest.raises(ValueError, match=message):
            trained(tmp_path, arm="network", jump_steps=jump_steps)
        assert list(tmp_path.iterdir()) == []

    def test_another_optimizer(self, tmp_path):
        trained(tmp_path, steps=7)
        other = tiny.record(optimizer=Sgd(Rate(0.01, 0.5, 10, "steps"), momentum=0.9))
        with pytest.raises(ValueError, match=r"of another optimizer: rate.base was 0.02 and is 0.01"):
            trained(tmp_path, record=other)

    def test_fewer_steps_than_there_are(self, tmp_path):
        with pytest.raises(RuntimeError, match="killed"):
            trained(tmp_path, feed_that(fail, 7), checkpoint_minutes=0)
        with pytest.raises(
            ValueError, match=r"steps must be at least 7, since there is a checkpoint of that step .*; got 6"
        ):
            trained(tmp_path, steps=6)

    def test_somebody_else_works_on_it(self, tmp_path):
        folder = working(tmp_path)
        with runs.locked(folder), pytest.raises(BlockingIOError, match=f"another run works on {folder}"):
            trained(tmp_path)


class TestStop:
    def test_sigterm(self, tmp_path, uninterrupted, capsys):
        before = signal.getsignal(signal.SIGTERM)
        assert trained(tmp_path, feed_that(sigterm, 6), console=Console()) == Outcome.STOPPED == 75
        assert signal.getsignal(signal.SIGTERM) is before
        assert "Stopped after 7 steps: the same command goes on." in capsys.readouterr().out
        assert checkpoints_of(tmp_path) == {7}
        assert [*losses(journal(tmp_path))[0]] == [*range(1, 8)]
        assert trained(tmp_path) == Outcome.COMPLETE
        assert losses(done(tmp_path)) == uninterrupted

    def test_sigterm_between_two_reports(self, tmp_path):
        assert trained(tmp_path, feed_that(sigterm, 4), tiny.record(report_every=100, every=100)) == Outcome.STOPPED
        step = 5 + AHEAD  # what was on its way is finished
        assert checkpoints_of(tmp_path) == {step}
        assert [*losses(journal(tmp_path))[0]] == [step]

    def test_sigterm_during_an_evaluation(self, tmp_path, uninterrupted):
        assert trained(tmp_path, feed_that(sigterm, 2, "validation")) == Outcome.STOPPED
        assert checkpoints_of(tmp_path) == {6}
        assert losses(journal(tmp_path))[1] == {}
        assert trained(tmp_path) == Outcome.COMPLETE
        assert losses(done(tmp_path)) == uninterrupted

    def test_sigterm_after_the_last_step(self, tmp_path, uninterrupted):
        assert trained(tmp_path, feed_that(sigterm, 2, "validation"), tiny.record(every=100)) == Outcome.STOPPED
        assert trained(tmp_path, record=tiny.record(every=100)) == Outcome.COMPLETE
        assert losses(done(tmp_path)) == (uninterrupted[0], {12: uninterrupted[1][12]})

    def test_the_time_is_up(self, tmp_path):
        assert trained(tmp_path, minutes=1e-9) == Outcome.STOPPED
        assert checkpoints_of(tmp_path) == {1}


class TestNotFinite:
    def test_loss(self, tmp_path, capsys):
        def not_finite(batch):
            return batch | {"weight": np.full(8, np.nan, np.float32)}

        feed, console = feed_that(not_finite, 6), Console(width=200)
        assert trained(tmp_path, feed, console=console, checkpoint_minutes=0) == Outcome.COMPLETE
        printed = capsys.readouterr().out
        assert "the loss after 7 steps is not finite, so that training ended; the last checkpoint" in printed
        assert max(checkpoints_of(tmp_path)) == 6
        assert lines_of(done(tmp_path))[-2] == {"step": 7, "loss": None}
        assert runs.read(done(tmp_path)).end == "not finite"
        assert lines_of(done(tmp_path))[-1].items() >= {"jumps_taken": 1, "jumps_refused": 0}.items()
        # It is not tried once more, not even with more steps.
        before = done(tmp_path).read_bytes()
        for steps in (12, 20):
            assert trained(tmp_path, feed_that(fail, 0), console=console, steps=steps) == Outcome.COMPLETE
            assert f"Not finite: {done(tmp_path)}" in capsys.readouterr().out.replace("\n", "")
        assert done(tmp_path).read_bytes() == before

    def test_weights(self, tmp_path, capsys):
        too_fast = Sgd(Rate(3e38, 1.0, 1, "steps"), momentum=0.0)
        record = tiny.record(steps=2, optimizer=too_fast, auxiliary_weight=1e6)
        message = "the weights after 1 steps are not finite, so that training ended; there is no checkpoint yet"
        assert trained(tmp_path, record=record, console=Console(width=200), checkpoint_minutes=0) == Outcome.COMPLETE
        assert message in capsys.readouterr().out
        assert checkpoints_of(tmp_path) == set()
        assert runs.read(done(tmp_path)).end == "not finite"


class TestSpace:
    @pytest.fixture
    def failing(self, monkeypatch):
        """Makes checkpoints of some steps fail, which is noticed when they are waited for."""
        steps = set()
        save, wait = Checkpoints.save, Checkpoints.wait

        def save_or_fail(self, step, *args):
            save(self, step, *args)
            if step in steps:
                wait(self)
                shutil.rmtree(self.folder / str(step))
                self.latest = step - 1
                self.failed = step

        def wait_or_fail(self):
            step, self.failed = getattr(self, "failed", None), None
            if step is not None:
                raise self._failure(step, OSError("No space left on device"))
            wait(self)

        monkeypatch.setattr(Checkpoints, "save", save_or_fail)
        monkeypatch.setattr(Checkpoints, "wait", wait_or_fail)
        return steps

    def test_training_goes_on(self, tmp_path, failing, uninterrupted, capsys):
        failing |= {4, 5}
        assert trained(tmp_path, checkpoint_minutes=0, console=Console(width=400)) == Outcome.COMPLETE
        printed = capsys.readouterr().out
        assert "Training goes on: the checkpoint of step 4 in" in printed
        assert "could not be written; the last good one is of step 3: No space left on device" in printed
        assert losses(done(tmp_path)) == uninterrupted
        failures = [line for line in lines_of(done(tmp_path)) if "checkpoint_not_written" in line]
        assert failures == [{"step": 5, "checkpoint_not_written": 4}, {"step": 6, "checkpoint_not_written": 5}]

    def test_the_last_one_must_be_written(self, tmp_path, failing, uninterrupted):
        failing |= {12}
        with pytest.raises(
            CheckpointError, match=r"the checkpoint of step 12 in .*; the last good one is of step 11: No"
        ):
            trained(tmp_path, checkpoint_minutes=0)
        assert not done(tmp_path).exists()
        failing.clear()
        assert trained(tmp_path) == Outcome.COMPLETE
        assert losses(done(tmp_path)) == uninterrupted

    def test_the_last_one_is_written_though_the_one_before_was_not(self, tmp_path, failing):
        failing |= {6}
        assert trained(tmp_path, feed_that(sigterm, 6), checkpoint_minutes=0) == Outcome.STOPPED
        assert max(checkpoints_of(tmp_path)) == 7

    def test_of_several_processes_all_end(self, tmp_path, failing, monkeypatch):
        monkeypatch.setattr(loop, "is_alone", lambda: False)
        failing |= {4}
        with pytest.raises(CheckpointError, match="the checkpoint of step 4"):
            trained(tmp_path, checkpoint_minutes=0)
        assert max(checkpoints_of(tmp_path)) == 3

    def test_too_little_to_begin_with(self, tmp_path, monkeypatch):
        monkeypatch.setattr(Checkpoints, "_check_space", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            trained(tmp_path)
        assert not journal(tmp_path).exists()


# At a resolution at which it trains in no time.
ON_PHOTOGRAPHS = dataclasses.replace(ALEXNET_1, network="AlexNet, narrow", every=100, report_every=20)
ASKED = {"image_size": 24, "batch_size": 20, "jump_steps": (40, 60)}


class TestPhotographs:
    def test_the_network_learns_them(self, tmp_path):
        chosen = tiny.options(ON_PHOTOGRAPHS, steps=140, **ASKED)
        feed = imagenet_feed(
            photographs(), image_size=24, augmentation=ALEXNET_1.augmentation, batch_size=20, seed=0, workers=0
        )
        (the_batch,) = feed.validation()

        def again(start):
            while True:
                yield the_batch

        fit(chosen, feed._replace(training=again), tmp_path, device_mesh(), Console(quiet=True))
        *lines, end = lines_of(tmp_path / "alexnet_1/introspection/seed-0.jsonl")[1:]
        reports = [line["loss"] for line in lines if "loss" in line]
        assert reports[-1] < reports[0] / 2
        assert lines[-1]["top5"] == 1
        assert end["jumps_taken"] == 2

    def test_the_whole_network_learns_them_through_a_jump(self, tmp_path):
        """As the command trains it, with its crops, flips and dropout, but at the smallest resolution."""
        # As much slower as the batch is smaller: at the rate for 128 images, the loss stays that of guessing, log 20.
        rate = dataclasses.replace(ALEXNET_1.optimizer.rate, base=ALEXNET_1.optimizer.rate.base * 20 / 128)
        slower = dataclasses.replace(ALEXNET_1.optimizer, rate=rate)
        record = dataclasses.replace(ALEXNET_1, optimizer=slower, report_every=5)
        chosen = tiny.options(record, image_size=64, batch_size=20, steps=180, jump_steps=(80,))
        assert train(chosen, photographs(), tmp_path, Console(quiet=True)) == Outcome.COMPLETE
        shutil.rmtree(tmp_path / ".working")  # half a gigabyte
        *steps, evaluation, end = lines_of(tmp_path / "alexnet_1/introspection/seed-0.jsonl")[1:]
        reports = [line["loss"] for line in steps]
        assert len(reports) == 36
        assert np.mean(reports[-5:]) < reports[0] / 3
        assert evaluation["top5"] == 1
        assert end == {"end": "complete", "jumps_taken": 1, "jumps_refused": 0}

    def test_the_command(self, tmp_path):
        chosen = tiny.options(ON_PHOTOGRAPHS, steps=3, **ASKED)
        outcome = train(chosen, photographs(), tmp_path, Console(quiet=True))
        assert outcome == Outcome.COMPLETE
        header, *_ = lines_of(tmp_path / "alexnet_1/introspection/seed-0.jsonl")
        assert header["header"]["settings"]["model"]["classes"] == 1000
        assert header["header"]["settings"]["input"]["examples"] == 20
        assert "20 images of 1000 classes" in header["header"]["data"]

    def test_bad_data(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=f"data is not an existing folder: {tmp_path}/none"):
            train(tiny.options(ON_PHOTOGRAPHS), tmp_path / "none", tmp_path)
        assert list(tmp_path.iterdir()) == []

    def test_too_small_images(self, tmp_path):
        with pytest.raises(ValueError, match="image_size must be at least 64"):
            train(tiny.options(ALEXNET_1, image_size=30), photographs(), tmp_path)

    def test_the_devices_are_all(self):
        assert device_mesh().size == jax.device_count()
