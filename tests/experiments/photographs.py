"""Twenty photographs of ImageNet, from the PyPI package foolbox, which is fetched once and not installed."""

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

_WHEEL = "foolbox-3.3.4-py3-none-any.whl"
_SHA256 = "11049d515d38e765e206a73ace9cc648b81a0d6d1da9ad9057e149ee117989cb"
LABELS = (243, 559, 438, 990, 949, 853, 609, 609, 915, 455, 541, 630, 741, 471, 129, 99, 251, 22, 317, 305)


def photographs() -> Path:
    """Returns a folder with the photographs, the same ones in train and val.

    Raises:
      subprocess.CalledProcessError: they are not in the user's cache folder, and can't be fetched.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "optax-introspect"
    folder = cache / "photographs-2"
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        options = ["--quiet", "--no-deps", "--only-binary=:all:", f"--dest={scratch}"]
        subprocess.run([sys.executable, "-m", "pip", "download", *options, "foolbox==3.3.4"], check=True, timeout=120)
        wheel = Path(scratch, _WHEEL)
        assert hashlib.sha256(wheel.read_bytes()).hexdigest() == _SHA256
        with zipfile.ZipFile(wheel) as archive:
            for number, label in enumerate(LABELS):
                for split in ("train", "val"):
                    path = Path(scratch, "photographs", split, f"class-{label:03}", f"{number:02}.JPEG")
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(archive.read(f"foolbox/data/imagenet_{number:02}_{label}.jpg"))
        if not folder.is_dir():  # another process may be faster
            Path(scratch, "photographs").rename(folder)
    return folder
