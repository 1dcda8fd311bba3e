"""Full disks and folders that may not be written to."""

import pytest

from . import disks
from .children import Child

REASONS = ("No space left on device", "File too large", "Permission denied")


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    """The kinds of disks that can be had here."""
    may_mount = Child(disks.may_mount, tmp_path_factory.mktemp("mounted")).result()
    return [kind for kind in disks.DISKS if kind != "mounted" or may_mount]


def check(outcome, folder):
    assert outcome.left == []
    for call, error in outcome.errors.items():
        assert any(reason in error for reason in REASONS), (call, error)
        assert str(folder) in error, (call, error)


@pytest.mark.parametrize("scene", ["record", "begin", "truncate", "save"])
def test_a_clear_error_and_nothing_half_written(tmp_path, kinds, scene):
    for kind in kinds:
        check(Child(disks.play, scene, kind, tmp_path / kind).result(), tmp_path / kind)


def test_a_fit_goes_on_when_there_is_space_again(tmp_path, kinds):
    check(Child(disks.play, "fit", kinds[0], tmp_path / "disk").result(), tmp_path / "disk")


def test_what_is_left_is_noticed(tmp_path, monkeypatch):
    """A history with one more step than was recorded."""
    with disks.WeightHistory.record(tmp_path, disks.params_at(0)) as history:
        for step in range(3):
            history.append(step, disks.params_at(step))
    assert disks._not_recorded(tmp_path, range(3)) == disks._unexpected(tmp_path) == []
    assert disks._not_recorded(tmp_path, range(2)) == ["the history has the steps [0, 1, 2], not [0, 1]"]
    (tmp_path / "arrays" / "0000.kernel" / "c.3.0.0").touch()
    assert disks._unexpected(tmp_path) == ["arrays/0000.kernel/c.3.0.0 should not be there"]
    monkeypatch.setattr(disks, "params_at", lambda step: {"scale": step})
    assert disks._not_recorded(tmp_path, range(3))[0] == "step 0 of the history is another"
