"""What can happen to files: damage that any file can take, and then that of predictors and of histories."""

import dataclasses
import itertools
import json
import os
import pickle
import random
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from .judging import BAD, JUDGES, RIGHT, WRONG, Verdict, judged

# Of a file outside of what is damaged, which nothing may change.
PRECIOUS = "precious"
# The name of an undamaged copy, and so of a right answer.
COPY = "copy"
LARGE = 2**40


@dataclasses.dataclass(frozen=True)
class Corruption:
    """One way to damage a folder.

    Attributes:
      kind: what is counted together.
      where: what it is done to, for people.
      do: does it; the folder has `other`, another one of its sort, and the file `precious` beside it.
    """

    kind: str
    where: str
    do: Callable[[Path], Any]


def files_of(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def of_any_file(folder: Path, seeded: random.Random, flips: int) -> Iterator[Corruption]:
    """Damage that needs no knowledge of what the files are."""
    for name in files_of(folder):
        size = (folder / name).stat().st_size
        for _ in range(flips if size else 0):
            place, mask = seeded.randrange(size), seeded.randrange(1, 256)
            yield _to("a byte flipped", name, lambda f, p=place, m=mask: _flip(f, p, m), f"byte {place}")
        for length in sorted({0, seeded.randrange(size), size - 1}) if size else ():
            yield _to("cut off", name, lambda f, k=length: os.truncate(f, k), f"to {length} of {size} bytes")
        more, noise = seeded.randbytes(seeded.randint(1, 40)), seeded.randbytes(200)
        yield _to("bytes appended", name, lambda f, b=more: f.write_bytes(f.read_bytes() + b))
        yield _to("random content", name, lambda f, b=noise: f.write_bytes(b))
        yield _to("missing", name, Path.unlink)
        yield _to("huge size", name, lambda f: os.truncate(f, LARGE), "sparse")
        yield _to("link, pipe or device", name, lambda f: _remade(f, os.mkfifo), "a pipe")
        yield _to("link, pipe or device", name, lambda f: _remade(f, os.mkdir), "a folder")
        yield _to("link, pipe or device", name, lambda f: _link(f, f), "a link to itself")
        yield _to("link, pipe or device", name, lambda f: _link(f, Path("/dev/zero")), "a link to /dev/zero")
        yield _to("link, pipe or device", name, lambda f: _link(f, f.with_name("nothing")), "a link to nothing")
        for beside in (COPY, "other"):
            yield Corruption(
                "link, pipe or device",
                f"{name}, a link to {beside}",
                lambda f, n=name, b=beside: _link(f / n, f.parent / b / n),
            )
        yield Corruption("of another", name, lambda f, n=name: shutil.copy(f.parent / "other" / n, f / n))
        yield Corruption("pickled code", name, lambda f, n=name: (f / n).write_bytes(_pickled(f.parent / PRECIOUS)))
    for path in sorted(path for path in folder.rglob("*") if path.is_dir()):
        name = str(path.relative_to(folder))
        yield _to("missing", name, shutil.rmtree)
        yield Corruption("of another", name, lambda f, n=name: _exchange(f / n, f.parent / "other" / n))
        yield Corruption(
            "link, pipe or device", f"{name}, a link to other", lambda f, n=name: _link(f / n, f.parent / "other" / n)
        )


def _to(kind: str, name: str, do: Callable[[Path], Any], how: str = "") -> Corruption:
    return Corruption(kind, f"{name}, {how}" if how else name, lambda folder: do(folder / name))


def of_pairs(names: Iterable[str]) -> Iterator[Corruption]:
    """Swaps any two of them."""
    for first, second in itertools.combinations(names, 2):
        yield Corruption("swapped", f"{first}, {second}", lambda f, a=first, b=second: _exchange(f / a, f / b))


def of_json(name: str, kind: str, changes: dict[str, Any], also: Callable[[Path], Any] = lambda f: None) -> Any:
    """Sets what paths such as `network.hidden` lead to in a file of JSON, and then does something more."""

    def do(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        for path, value in changes.items():
            *parents, last = path.split(".")
            inner = content
            for parent in parents:
                inner = inner[parent]
            inner[last] = value
        (folder / name).write_text(json.dumps(content))
        also(folder)

    return Corruption(kind, f"{name}: {str(changes)[:80]}", do)


def deep_json(name: str, key: str) -> Corruption:
    """Puts a million brackets into a file of JSON."""

    def do(folder: Path) -> None:
        text = (folder / name).read_text().rstrip()
        (folder / name).write_text(f'{text[:-1]}, "{key}": {"[" * 10**6}{"]" * 10**6}}}')

    return Corruption("huge size", f"{name}: a million brackets in {key}", do)


def judge_all(
    judge: str, corruptions: list[Corruption], base: Path, other: Path, folder: Path
) -> list[tuple[Corruption, Verdict]]:
    """Returns what comes of each corruption of a predictor or a history.

    Args:
      judge: `"predictor"` or `"history"`.
      corruptions: what is done, each to a copy of its own.
      base: what is damaged.
      other: another one.
      folder: an empty one.
    """
    results = []
    for start in range(0, len(corruptions), 100):
        some = corruptions[start : start + 100]
        folders = []
        for number, corruption in enumerate(some):
            inner = folder / str(number)
            for name, source in {judge: base, COPY: base, "other": other}.items():
                shutil.copytree(source, inner / name)
            (inner / PRECIOUS).write_text("as it was")
            corruption.do(inner / judge)
            folders.append(inner / judge)
        beside = [_contents(path.parent) for path in folders]
        verdicts = judged(*JUDGES[judge], base, folders, folder / "report.jsonl")
        for corruption, path, before, verdict in zip(some, folders, beside, verdicts, strict=True):
            if _contents(path.parent) != before:
                results.append((corruption, Verdict(WRONG, "something outside of its folder was changed")))
            else:
                results.append((corruption, verdict))
        shutil.rmtree(folder)
    return results


def violations_of(results: list[tuple[Corruption, Verdict]]) -> list[str]:
    """Returns in words what must not be; a file that is a copy of the right one must not even be an error."""
    return [
        f"{corruption.kind}, {corruption.where}: {verdict.outcome}, {verdict.detail}"
        for corruption, verdict in results
        if verdict.outcome in BAD or (corruption.where.endswith(f"to {COPY}") and verdict.outcome != RIGHT)
    ]


def _contents(inner: Path) -> dict[str, bytes]:
    """Returns what is beside what was damaged."""
    names = [PRECIOUS] + [f"{beside}/{name}" for beside in (COPY, "other") for name in files_of(inner / beside)]
    return {name: (inner / name).read_bytes() for name in names}


def _flip(file: Path, place: int, mask: int) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= mask
    file.write_bytes(content)


def _remade(path: Path, make: Callable[[Path], Any]) -> None:
    path.unlink()
    make(path)


def _link(path: Path, target: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    path.symlink_to(target)


def _exchange(first: Path, second: Path) -> None:
    aside = first.with_name("aside")
    first.rename(aside)
    second.rename(first)
    aside.rename(second)


class _Code:
    """Writes into a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return Path.write_text, (self.path, "code was run")


def _pickled(path: Path) -> bytes:
    return pickle.dumps(_Code(path))
