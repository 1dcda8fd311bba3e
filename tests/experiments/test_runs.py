"""Results on disk: whole, or refused with what is wrong about them."""

import importlib.metadata
import json
import multiprocessing
import os
import re
import signal
from types import SimpleNamespace

import jax
import pytest

from experiments import runs
from experiments.runs import Journal, check_header, locked, plain, read, read_header

HEADER = {"experiment": "tiny", "arm": {"name": "plain", "jump_steps": (3, 4)}, "seed": 0, "machine": "this one"}


def line(step, **values):
    return {"step": step, **({"test_loss": step / 3} | values)}


def written(path, *lines, step=None):
    journal = Journal(path, HEADER, step)
    for values in lines:
        journal.write(values)
    journal.close()
    return path


def steps_in(path):
    return [json.loads(text).get("step") for text in path.read_text().splitlines()[1:]]


def test_paths(tmp_path):
    assert runs.path_of(tmp_path, "mnist", "plain", 3) == tmp_path / "mnist" / "plain" / "seed-3.jsonl"
    assert runs.working(tmp_path, "mnist", "plain", 3) == tmp_path / ".working" / "mnist" / "plain" / "seed-3"


def test_a_complete_run_is_read_as_it_was_written(tmp_path):
    journal = Journal(tmp_path / "work" / "journal.jsonl", HEADER, None)
    for step in range(3):
        journal.write(line(step))
    destination = tmp_path / "results" / "plain" / "seed-0.jsonl"
    journal.complete(destination, {"end": "complete", "jumps_taken": 2})
    assert list((tmp_path / "work").iterdir()) == []
    run = read(destination)
    assert run.header == plain(HEADER) == read_header(destination)
    assert run.header["arm"]["jump_steps"] == [3, 4]
    assert run.lines == [{"step": step, "test_loss": round(step / 3, 7)} for step in range(3)]
    assert run.end == "complete"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1 / 3, "0.3333333"),
        (2_000 / 3, "666.6667"),
        (1e-9 / 3, "3.333333e-10"),
        (123456789.0, "123456800.0"),
        (-2.5, "-2.5"),
        (float("nan"), "null"),
        (float("inf"), "null"),
        (-float("inf"), "null"),
        (7, "7"),
        (123456789, "123456789"),
        (None, "null"),
        ("complete", '"complete"'),
    ],
)
def test_numbers_have_seven_digits_and_are_json(tmp_path, value, text):
    path = written(tmp_path / "journal.jsonl", {"value": value})
    assert path.read_text().splitlines()[1] == f'{{"value":{text}}}'


def test_what_is_not_finite_within_a_list_is_refused(tmp_path):
    journal = Journal(tmp_path / "journal.jsonl", HEADER, None)
    with pytest.raises(ValueError, match="not JSON compliant"):
        journal.write({"values": [float("nan")]})
    journal.close()


@pytest.mark.parametrize(
    ("step", "tail", "kept"),
    [
        (None, "", []),  # there is no checkpoint: all of it comes again
        (0, "", [0]),
        (20, "", [0, 10, 20]),
        (25, "", [0, 10, 20]),
        (40, "", [0, 10, 20, 30]),
        (30, '{"step":40,"test_lo', [0, 10, 20, 30]),  # a last line that is half there
        (40, '{"step":40}', [0, 10, 20, 30]),  # or almost
        (30, '{"end":"complete"}\n', [0, 10, 20, 30]),
    ],
)
def test_a_journal_goes_on_after_the_last_checkpoint(tmp_path, step, tail, kept):
    path = written(tmp_path / "journal.jsonl", *map(line, (0, 10, 20, 30)))
    with path.open("a") as file:
        file.write(tail)
    written(path, line(99), step=step)
    assert steps_in(path) == [*kept, 99]
    assert read_header(path) == plain(HEADER)
    assert [file.name for file in tmp_path.iterdir()] == ["journal.jsonl"]


def write_and_die(path):
    """Commits two lines and writes a third, in a process that is killed then."""
    journal = Journal(path, HEADER, None)
    journal.write(line(0))
    journal.write(line(10))
    journal.commit()
    journal.write(line(20))
    os.kill(os.getpid(), signal.SIGKILL)


def test_committed_lines_are_there_whatever_happens(tmp_path):
    path = tmp_path / "journal.jsonl"
    process = multiprocessing.get_context("spawn").Process(target=write_and_die, args=(path,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert steps_in(path) == [0, 10]


def test_other_settings_are_named_with_both_values(tmp_path):
    path = written(tmp_path / "journal.jsonl")
    check_header(path, HEADER)
    check_header(path, HEADER | {"machine": "another one"})
    other = {"experiment": "tiny", "arm": {"name": "plain", "jump_steps": (3, 5)}, "seed": 1, "batch_size": 50}
    with pytest.raises(ValueError, match=re.escape(f"{path} belongs to a run with other settings: ")) as raised:
        check_header(path, other | {"machine": "another one"})
    message = str(raised.value).partition("settings: ")[2]
    assert "seed was 0 and is 1" in message
    assert "batch_size was None and is 50" in message
    assert "arm.jump_steps was [3, 4] and is [3, 5]" in message
    assert "name" not in message
    assert "experiment" not in message
    assert "machine" not in message
    assert message.endswith(". Use another workdir")
    # Versions differ in what was run elsewhere.
    elsewhere = HEADER | {"versions": {"jax": "0.1"}}
    check_header(path, elsewhere, versions=False)
    with pytest.raises(ValueError, match=r"settings: versions.* and is "):
        check_header(path, elsewhere)
    with pytest.raises(ValueError, match=r"settings: seed was 0 and is 1\. Use"):
        check_header(path, elsewhere | {"seed": 1}, versions=False)
    with pytest.raises(ValueError, match=r"seed was 0 and is None\. Use"):
        check_header(path, {name: value for name, value in HEADER.items() if name != "seed"})


def test_long_values_are_cut(tmp_path):
    path = written(tmp_path / "journal.jsonl")
    with pytest.raises(ValueError, match=r"experiment was 'tiny' and is 'x{116}\.\.\.") as raised:
        check_header(path, HEADER | {"experiment": "x" * 1000})
    assert len(str(raised.value)) < 400


@pytest.mark.parametrize(
    "content", ["", "\n", "{", '{"step":0}\n', "[]\n", "null\n", '"header"\n', '{"header":{"seed":0}', "\x00\x00\n"]
)
def test_a_file_without_a_header_is_refused(tmp_path, content):
    path = tmp_path / "seed-0.jsonl"
    path.write_text(content)
    for function in (read_header, read, lambda path: check_header(path, HEADER)):
        with pytest.raises(ValueError, match=re.escape(f"{path} does not begin with the header of a run")):
            function(path)


def test_a_truncated_run_is_refused_wherever_it_ends(tmp_path):
    journal = Journal(tmp_path / "journal.jsonl", HEADER, None)
    journal.write(line(0))
    journal.write(line(10))
    path = tmp_path / "seed-0.jsonl"
    journal.complete(path, {"end": "complete"})
    content = path.read_bytes()
    first_line = content.index(b"\n")
    for length in range(len(content) - 1):  # all but the last line break, which says nothing
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match="header of a run" if length < first_line else "not the whole of a run"):
            read(path)


@pytest.mark.parametrize("content", [b"{", b"", b"\xff\xfe", b'{"step":0} {"step":1}'])
def test_a_damaged_line_is_refused(tmp_path, content):
    path = written(tmp_path / "seed-0.jsonl", line(0), {"end": "complete"})
    header, first, last = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([header, first, content, last, b""]))
    with pytest.raises(ValueError, match=f"{path} (is not the whole|does not begin with the header) of a run"):
        read(path)


def test_a_lock_is_for_one(tmp_path):
    folder = tmp_path / "new" / "folder"
    with locked(folder):
        with pytest.raises(BlockingIOError, match=f"another run works on {folder}$"), locked(folder):
            raise AssertionError("both have it")
        with locked(tmp_path / "other"):
            pass
    with locked(folder):  # it is free again
        pass
    with pytest.raises(KeyError, match="within"), locked(folder):
        raise KeyError("within")
    with locked(folder):
        pass


def test_versions_and_machine(monkeypatch):
    assert runs.versions()["jax"] == jax.__version__
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3})
    assert runs.machine().endswith(", 1 core a run")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2})
    assert runs.machine().endswith(", 3 cores a run")
    monkeypatch.setattr(jax, "devices", lambda: [SimpleNamespace(platform="gpu", device_kind="H100")])
    monkeypatch.setattr(jax, "device_count", lambda: 8)
    assert runs.machine() == "H100, 8 of them"


def test_the_plugin_of_an_accelerator_is_named_where_it_is_used(monkeypatch):
    installed = [SimpleNamespace(name=name) for name in ("jax", "jax-cuda13-plugin", "numpy")]
    monkeypatch.setattr(importlib.metadata, "distributions", lambda: installed)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: f"of {name}")
    # It is installed, but JAX runs on the CPU all the same.
    assert "jax-cuda13-plugin" not in runs.versions()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert runs.versions()["jax-cuda13-plugin"] == "of jax-cuda13-plugin"
