import hashlib
import re
import subprocess
import zipfile
from pathlib import Path

import pytest

from experiments.imagenet import photographs as module
from experiments.imagenet.photographs import photographs
from experiments.imagenet.sources import open_source

CONTENTS = [f"photograph {number}".encode() for number in range(20)]


def write_wheel(folder, members):
    folder.mkdir()
    info = "foolbox-3.3.4.dist-info"
    with zipfile.ZipFile(folder / module._WHEEL, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: foolbox\nVersion: 3.3.4\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return (folder / module._WHEEL).read_bytes()


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    """A pip that finds only what is in the folder returned, and an empty cache folder."""
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "wheels"


@pytest.fixture
def wheel(no_network, monkeypatch):
    """A package with other photographs, for which the hashes hold."""
    names = [f"foolbox/data/imagenet_{n:02}_{label}.jpg" for n, label in enumerate(module._LABELS)]
    content = write_wheel(no_network, dict(zip(names, CONTENTS, strict=True)) | {"foolbox/../../evil": b"x"})
    monkeypatch.setattr(module, "_WHEEL_SHA256", hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(module, "_CONTENT_SHA256", hashlib.sha256(b"".join(CONTENTS)).hexdigest())


@pytest.fixture
def no_fetch(monkeypatch):
    def stop():
        monkeypatch.setattr(module, "_fetch", lambda cache: pytest.fail("not to be fetched again"))

    return stop


class TestRealPhotographs:
    @pytest.mark.parametrize("split", ["train", "val"])
    def test_are_twenty_of_a_thousand_classes(self, split):
        source = open_source(photographs(), split)
        assert (len(source), source.classes) == (20, 1000)
        found = {(Path(example["name"]).stem, example["label"]) for example in source}
        assert found == {(f"{number:02}", label) for number, label in enumerate(module._LABELS)}
        assert all(example["image"].startswith(b"\xff\xd8\xff") for example in source)


@pytest.mark.usefixtures("wheel")
class TestFetching:
    def test_makes_a_folder_of_both_splits(self, tmp_path, no_fetch):
        folder = photographs()
        assert folder == tmp_path / "cache" / "optax-introspect" / "photographs"
        for split in ("train", "val"):
            source = open_source(folder, split)
            assert source.classes == 1000
            found = {(example["label"], example["image"]) for example in source}
            assert found == set(zip(module._LABELS, CONTENTS, strict=True))
        assert [path.name for path in folder.parent.iterdir()] == ["photographs"]
        assert not list(tmp_path.rglob("evil"))
        no_fetch()
        assert photographs() == folder

    def test_into_a_folder_of_ones_own(self, tmp_path):
        assert photographs(tmp_path / "new" / "mine") == tmp_path / "new" / "mine"
        assert len(open_source(tmp_path / "new" / "mine", "train")) == 20

    def test_another_process_may_be_faster(self, tmp_path, monkeypatch):
        other, rename = tmp_path / "other", Path.rename
        photographs(other)

        def late_rename(path, target):
            rename(other, target)
            return rename(path, target)

        monkeypatch.setattr(Path, "rename", late_rename)
        assert len(open_source(photographs(tmp_path / "mine"), "train")) == 20

    def test_a_folder_in_the_way_is_left_alone(self, tmp_path):
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "thesis.txt").touch()
        with pytest.raises(FileNotFoundError, match=r"fetching the PyPI package foolbox==3\.3\.4 failed: .*not empty"):
            photographs(tmp_path / "mine")
        assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]

    def test_another_package_is_refused(self, tmp_path, monkeypatch):
        monkeypatch.setattr(module, "_WHEEL_SHA256", "0" * 64)
        message = rf"foolbox==3\.3\.4 is not the one known here \(expected SHA-256 {'0' * 64}, found \w+ of \d+ bytes"
        with pytest.raises(ValueError, match=message):
            photographs()
        assert not list((tmp_path / "cache" / "optax-introspect").iterdir())

    def test_a_changed_folder_is_refused(self):
        folder = photographs()
        changed = [
            ("train/class-251/16.JPEG", "train has been changed", b"other"),
            ("val/class-251/16.JPEG", "val has been changed", None),
            ("classes.txt", "classes.txt has been changed", b"class-000\n"),
        ]
        for name, message, content in changed:
            original = (folder / name).read_bytes()
            (folder / name).unlink()
            if content is not None:
                (folder / name).write_bytes(content)
            with pytest.raises(ValueError, match=rf"{message}; delete {re.escape(str(folder))} to fetch it again"):
                photographs()
            (folder / name).write_bytes(original)
        assert photographs() == folder


@pytest.mark.usefixtures("no_network")
class TestNoNetwork:
    def test_says_what_pip_said(self, tmp_path):
        message = (
            rf"the photographs are not in {tmp_path}.*photographs, and fetching the PyPI package foolbox==3\.3\.4 "
            r"failed: ERROR: Could not find a version"
        )
        with pytest.raises(FileNotFoundError, match=message):
            photographs()

    def test_python_without_pip(self, tmp_path, monkeypatch):
        python = tmp_path / "python"
        python.write_text("#!/bin/sh\necho 'python: No module named pip' >&2\nexit 1\n")
        python.chmod(0o755)
        monkeypatch.setattr(module.sys, "executable", str(python))
        with pytest.raises(FileNotFoundError, match=r"foolbox==3\.3\.4 failed: python: No module named pip"):
            photographs()

    def test_a_pip_that_says_nothing(self, monkeypatch):
        failed = subprocess.CompletedProcess([], 1, b"", b"")
        monkeypatch.setattr(module.subprocess, "run", lambda *_, **__: failed)
        with pytest.raises(FileNotFoundError, match="failed: pip failed"):
            photographs()

    def test_a_pip_that_does_not_end(self, monkeypatch):
        monkeypatch.setattr(module, "_TIMEOUT_S", 0.0)
        with pytest.raises(FileNotFoundError, match=r"failed: .*timed out after 0.0 seconds"):
            photographs()
