import gzip
import json
import math

import numpy as np
import pytest

from experiments import results

SETTINGS = {"network": "MNIST_3", "around": (6,)}
ARMS = {"plain": {"forecaster": None, "jump_steps": ()}, "jumps": {"forecaster": "mnist-n0", "jump_steps": (6,)}}
PLACE = {"versions": {"jax": "0.12.0"}, "machine": "a CPU", "images": "files"}


def rows(arm, seed, steps=(0, 5, 10), **more):
    return [{"arm": arm, "seed": seed, "step": step, "test_accuracy": 0.1 + step / 3, **more} for step in steps]


def append(folder, new, settings=SETTINGS, arms=ARMS, place=PLACE, version="0.2.0"):
    results.append(folder, "tiny", new, settings=settings, arms=arms, environment=place, version=version)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_values_come_back_exactly(tmp_path):
    values = [1 / 3, 1e-310, 123456789.123456, math.nan, math.inf]
    append(tmp_path, [{"arm": "plain", "seed": 0, "step": i, "loss": value} for i, value in enumerate(values)])
    found = results.read("tiny", tmp_path)
    np.testing.assert_array_equal(found.curve("plain", 0)["loss"], [*values[:3], math.nan, math.nan])
    assert found.version == "0.2.0"
    assert found.info["settings"] == {"network": "MNIST_3", "around": [6]}


def test_bytes_depend_on_the_contents_alone(tmp_path):
    runs = [("jumps", 1), ("plain", 0), ("jumps", 0)]
    for run in runs:
        append(tmp_path / "a", rows(*run))
    append(tmp_path / "b", [row for run in reversed(runs) for row in reversed(rows(*run))])
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    table = gzip.decompress((tmp_path / "a" / "tiny.csv.gz").read_bytes()).decode().splitlines()
    assert table[0] == "arm,seed,step,test_accuracy,environment"
    assert [line.split(",")[:3] for line in table[1::3]] == [
        ["plain", "0", "0"],
        ["jumps", "0", "0"],
        ["jumps", "1", "0"],
    ]


def test_a_run_is_replaced_and_others_are_kept(tmp_path):
    append(tmp_path, rows("plain", 0) + rows("plain", 1))
    before = contents(tmp_path)
    append(tmp_path, rows("plain", 0))
    assert contents(tmp_path) == before
    append(tmp_path, rows("plain", 0, steps=(0, 7)))
    curves = results.read("tiny", tmp_path).curves("plain")
    assert {seed: curve["step"].tolist() for seed, curve in curves.items()} == {0: [0, 7], 1: [0, 5, 10]}


def test_a_further_table_keeps_its_rows(tmp_path):
    # Some of the results that are there have no JSON of their own.
    append(tmp_path, rows("plain", 0) + rows("jumps", 0))
    (tmp_path / "tiny-curves.csv.gz").write_bytes((tmp_path / "tiny.csv.gz").read_bytes())
    more = {"settings": SETTINGS, "arms": ARMS, "environment": PLACE, "version": "0.2.0"}
    results.append(tmp_path, "tiny-curves", rows("plain", 0), **more)
    assert results.read("tiny-curves", tmp_path).curves("jumps").keys() == {0}


def test_columns_and_environments_may_be_added(tmp_path):
    append(tmp_path, rows("plain", 0), arms={"plain": ARMS["plain"]})
    append(tmp_path, rows("jumps", 0, jumps_taken=1), place=PLACE | {"machine": "another"})
    found = results.read("tiny", tmp_path)
    assert np.isnan(found.curve("plain", 0)["jumps_taken"]).all()
    assert found.curve("jumps", 0)["environment"].tolist() == [1, 1, 1]
    assert [place["machine"] for place in found.info["environments"]] == ["a CPU", "another"]
    assert list(found.info["arms"]) == ["plain", "jumps"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"settings": {"network": "other"}}, "settings"),
        ({"version": "0.1"}, "version"),
        ({"arms": ARMS | {"jumps": {"forecaster": "noise"}}}, "arm jumps"),
    ],
)
def test_other_settings_are_refused_and_nothing_is_lost(tmp_path, change, named):
    append(tmp_path, rows("plain", 0))
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=f"{named} of .*must be the same"):
        append(tmp_path, rows("plain", 1), **change)
    assert contents(tmp_path) == before


def test_a_failure_while_writing_keeps_what_was_there(tmp_path, monkeypatch):
    append(tmp_path, rows("plain", 0))
    before = results.read("tiny", tmp_path).columns

    def fail(descriptor):
        raise OSError("disk full")

    monkeypatch.setattr(results.os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        append(tmp_path, rows("plain", 1))
    after = results.read("tiny", tmp_path).columns
    assert {name: column.tolist() for name, column in after.items()} == {n: c.tolist() for n, c in before.items()}


def test_what_is_not_there(tmp_path):
    assert results.names(tmp_path) == []
    with pytest.raises(FileNotFoundError, match="tiny"):
        results.read("tiny", tmp_path)


@pytest.mark.parametrize("name", results.names())
def test_committed_results_are_whole(name):
    found = results.read(name)
    assert found.version in ("0.1", "0.2.0")
    if "arm" in found.columns:
        assert set(found.columns["arm"].tolist()) <= found.info["arms"].keys()
    if "step" in found.columns and "test_accuracy" in found.columns:
        for arm in found.info["arms"]:
            curves = found.curves(arm)
            assert curves
            assert all(np.all(np.diff(curve["step"]) > 0) for curve in curves.values())
            assert all(
                np.all((curve["test_accuracy"] >= 0) & (curve["test_accuracy"] <= 1)) for curve in curves.values()
            )


def test_all_of_the_first_edition_is_there():
    trainings = [found for name in results.names() if "test_accuracy" in (found := results.read(name)).columns]
    old = [found for found in trainings if found.version == "0.1" and not found.name.startswith("quickstart")]
    assert sum(len(found.curves(arm)) for found in old for arm in found.info["arms"]) == 1251  # 7 + 13 are no trainings


def test_environment():
    found = results.environment("original files")
    assert found["images"] == "original files"
    assert {"jax", "optax"} <= found["versions"].keys()
    assert json.loads(json.dumps(found)) == found
    assert "core" in found["machine"]
