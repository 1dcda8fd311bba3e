import json

import pytest
from rich.console import Console

from experiments.imagenet import meter, reporter
from experiments.imagenet.meter import Meter
from experiments.imagenet.reporter import Reporter


class FakeTime:
    now = 0.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def time(monkeypatch):
    fake = FakeTime()
    monkeypatch.setattr(meter, "time", fake)
    return fake


class TestMeter:
    def test_loss_and_speed(self, time):
        counter = Meter()
        counter.add(3.0, 1)  # which is not timed
        counter.resume()
        for loss in (2.0, 1.0):
            time.now += 0.5
            counter.add(loss, 1)
        assert counter.steps == 3
        assert counter.report(batch_size=10) == {"loss": 2.0, "images_per_second": 20.0, "skipped": 3}

    def test_a_report_begins_anew(self, time):
        counter = Meter()
        counter.resume()
        counter.add(3.0, 1)
        time.now += 1
        counter.report(10)
        assert counter.steps == 0
        counter.add(5.0, 0)
        time.now += 2
        assert counter.report(10) == {"loss": 5.0, "images_per_second": 5.0, "skipped": 0}

    def test_pauses_do_not_count(self, time):
        counter = Meter()
        counter.resume()
        time.now += 1
        counter.add(1.0, 0)
        counter.pause()
        counter.pause()
        time.now += 100
        counter.resume()
        time.now += 1
        counter.add(1.0, 0)
        assert counter.report(4)["images_per_second"] == 4.0

    def test_nothing_was_timed(self, time):
        counter = Meter()
        counter.add(1.0, 0)
        assert counter.report(4)["images_per_second"] is None


class TestReporter:
    def test_lines_are_on_disk_when_it_is_left(self, tmp_path):
        path = tmp_path / "journal.jsonl"
        with Reporter.open(path, {"name": "x"}, None, 10, Console(quiet=True)) as told:
            told.line({"step": 1, "loss": 2.0})
        with Reporter.open(path, {"name": "x"}, 1, 10, Console(quiet=True)) as told:
            told.line({"step": 2, "loss": 1.0})
        lines = [json.loads(text) for text in path.read_text().splitlines()]
        assert lines == [{"header": {"name": "x"}}, {"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}]

    def test_skipped_images_are_shown(self, tmp_path, capsys):
        with Reporter.open(tmp_path / "journal.jsonl", {}, None, 10, Console(width=200)) as told:
            told.line({"step": 1, "loss": 2.0, "skipped": 0})
            told.line({"step": 2, "loss": 2.0, "skipped": 3})
            told.line({"step": 2, "top1": 0.5, "top5": 0.9, "skipped": 0})
            told.line({"step": 3, "top1": 0.5, "top5": 0.9, "skipped": 1})
        shown = [line.strip() for line in capsys.readouterr().out.splitlines() if "could not" in line]
        assert shown == [
            "step 2: training images since the last report that could not be read: 3",
            "step 3: validation images that could not be read: 1",
        ]

    def test_other_processes_tell_nothing(self, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(reporter.jax, "process_index", lambda: 1)
        with Reporter.open(tmp_path / "journal.jsonl", {}, None, 10, Console()) as told:
            told.made(3)
            told.line({"step": 1, "top1": 0.5, "top5": 0.9})
            told.say("something")
            told.commit()
            told.complete(tmp_path / "done.jsonl", {"end": "complete"})
        assert list(tmp_path.iterdir()) == []
        assert capsys.readouterr().out == ""

    def test_complete(self, tmp_path):
        with Reporter.open(tmp_path / "journal.jsonl", {}, None, 10, Console(quiet=True)) as told:
            told.complete(tmp_path / "done.jsonl", {"end": "complete"})
        assert [path.name for path in tmp_path.iterdir()] == ["done.jsonl"]
