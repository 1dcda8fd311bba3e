"""The first thing that a user runs."""

import dataclasses

import pytest

from experiments import mnist, quickstart, results


@pytest.fixture
def short(monkeypatch):
    arms = tuple(
        dataclasses.replace(arm, steps=60, jump_steps=arm.jump_steps and (20, 40)) for arm in mnist.quickstart.arms
    )
    record = dataclasses.replace(mnist.quickstart, arms=arms, every=20, around=())
    monkeypatch.setattr(mnist, "quickstart", record)

    def none(name, data_dir):
        if name == "mnist":
            raise FileNotFoundError("no network")
        return load(name, data_dir)

    load = quickstart.load
    monkeypatch.setattr(quickstart, "load", none)


@pytest.mark.slow
def test_without_a_network_it_takes_the_digits_and_says_so(short, tmp_path, capsys):
    quickstart.quickstart(workdir=tmp_path / "work", output=tmp_path / "output")
    printed = capsys.readouterr().out
    assert "takes the small digits of scikit-learn instead: no network" in " ".join(printed.split())
    assert "SGD, jumps" in printed
    assert {path.name for path in (tmp_path / "output").iterdir()} == {
        "README.md", "accuracy.png", "quickstart-digits.json", "quickstart-digits.csv.gz"
    }  # fmt: skip
    assert "| Adam, jumps | 1 | 60 |" in (tmp_path / "output" / "README.md").read_text()
    found = results.read("quickstart-digits", tmp_path / "output")
    plain, jumps = found.curve("adam-plain", 0), found.curve("adam-introspection", 0)
    assert plain["step"].tolist() == [0, 20, 40, 60]
    assert plain["test_loss"][1] == pytest.approx(jumps["test_loss"][1], rel=1e-3)
    assert jumps["jumps_taken"][-1] == 2
    assert plain["test_accuracy"][-1] > 0.5


def test_bad_input(short, tmp_path):
    for seeds in ((), (3,)):
        with pytest.raises(ValueError, match=r"seeds must be of \[0, 1, 2\]; got"):
            quickstart.quickstart(seeds, tmp_path)
    with pytest.raises(FileNotFoundError, match="no network"):
        quickstart.quickstart((0,), tmp_path, data_dir=tmp_path)
