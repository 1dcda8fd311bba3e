"""Weight histories to be damaged, and what can happen to them in particular."""

import itertools
import json
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from optax_introspect import WeightHistory
from optax_introspect.history_files import Leaf, header_of, line_of

from .corruptions import LARGE, PRECIOUS, Corruption, deep_json, of_any_file, of_json, of_pairs

STEPS = (0, 10, 25)
HEADER, LINES = "history.json", "steps.jsonl"
SHAPES = {"a/kernel": (2, 3), "b/kernel": (2, 3), "large": (1100, 1000), "scale": ()}
FOLDERS = ["arrays/0000.a.kernel", "arrays/0001.b.kernel", "arrays/0002.large", "arrays/0003.scale"]
ARRAY = f"{FOLDERS[0]}/zarr.json"


def make(folder: Path, seed: int) -> Path:
    """Records a history; those of all seeds have the same header but the metadata."""
    seeded = np.random.default_rng(seed)
    params = {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}
    with WeightHistory.record(folder, params, metadata={"seed": seed}) as history:
        for step in STEPS:
            params = {name: np.full(shape, seeded.normal(), np.float32) for name, shape in SHAPES.items()}
            params["a/kernel"] = seeded.normal(size=(2, 3)).astype(np.float32)
            history.append(step, params)
    return folder


def corruptions(folder: Path, seeded: random.Random, flips: int = 3) -> list[Corruption]:
    """Returns what is done to a history that is in a folder."""
    chunks = [[f"{name}/c.{row}" + ".0" * len(shape) for row in range(len(STEPS))] for name, shape in _arrays()]
    return [
        *of_any_file(folder, seeded, flips),
        *(pair for rows in chunks for pair in of_pairs(rows)),
        *of_pairs(chunks[0] + chunks[1]),
        *of_pairs([f"{FOLDERS[2]}/c.1.0.0", f"{FOLDERS[2]}/c.1.1.0"]),
        *of_pairs([f"{name}/zarr.json" for name in FOLDERS]),
        *of_pairs(FOLDERS),
        *of_pairs([HEADER, LINES]),
        *_of_lines(),
        *_of_shapes_and_dtypes(),
        *_of_sizes(),
        *_of_names(),
    ]


def _arrays() -> list[tuple[str, tuple[int, ...]]]:
    return list(zip(FOLDERS, SHAPES.values(), strict=True))


def _of_lines() -> list[Corruption]:
    kind = "changed lines"
    orders = [order for size in range(4) for order in itertools.permutations(range(3), size) if order != (0, 1, 2)]
    made = [Corruption(kind, f"in the order {order}", lambda f, o=order: _reordered(f, o)) for order in orders]
    for old, new in (("10", "11"), ("25", "24"), ("0", "1"), ('"step"', '"stop"'), ("{", "[{"), ("10", "10.0")):
        made.append(Corruption(kind, f"{old} is {new}", lambda f, o=old, n=new: _replaced(f / LINES, o, n)))
    without = '{"step": 0}\n{"step": 10}\n{"step": 25}\n'
    made.append(Corruption(kind, "without checksums", lambda f: (f / LINES).write_text(without)))
    changes: list[dict[str, Any]] = [
        {"version": 1}, {"version": 3}, {"metadata.seed": 7}, {"metadata": None}, {"leaves": {}}, {"crc32": None},
    ]  # fmt: skip
    return made + [of_json(HEADER, "changed header", change) for change in changes]


def _reordered(folder: Path, order: tuple[int, ...]) -> None:
    lines = (folder / LINES).read_text().splitlines(keepends=True)
    (folder / LINES).write_text("".join(lines[index] for index in order))


def _replaced(file: Path, old: str, new: str) -> None:
    file.write_text(file.read_text().replace(old, new, 1))


def _of_shapes_and_dtypes() -> list[Corruption]:
    kind = "shape or dtype"
    made = []
    for shape in ((3, 2), (6,), (2, 3, 1), (2, 4), (1, 3), (0,)):
        for also_array in (False, True):
            made.append(_signed(kind, {"a/kernel": Leaf(shape, np.dtype(np.float32))}, also_array=also_array))
    for dtype in (np.float16, np.float64, np.complex64):
        for also_array in (False, True):
            made.append(_signed(kind, {"a/kernel": Leaf((2, 3), np.dtype(dtype))}, also_array=also_array))
    changes: list[dict[str, Any]] = [
        {"data_type": name} for name in ("float64", "int32", "bool", "bytes", "nonsense", 4)
    ]
    changes += [
        {"shape": shape} for shape in ([2, 2, 3], [9, 2, 3], [3, 2, 4], [3, 6], [], None, [3, 2, -3], [3, 2, "3"])
    ]
    chunk = "chunk_grid.configuration.chunk_shape"
    changes += [{chunk: shape} for shape in ([1, 2, 2], [1, 1, 3], [1, 4, 3], [3, 2, 3], [1, 0, 3], [], None)]
    changes += [{"codecs": codecs} for codecs in ([], [{"name": "bytes"}], [{"name": "pickle"}], None)]
    changes += [{"fill_value": 1.0}, {"zarr_format": 2}, {"node_type": "group"}, {"chunk_key_encoding.name": "v2"}]
    return made + [of_json(ARRAY, kind, change) for change in changes]


def _signed(kind: str, leaves: dict[str, Leaf], *, also_array: bool) -> Corruption:
    """Changes leaves of the header, and makes all checksums right that do not need the weights."""

    def do(folder: Path) -> None:
        layout = {name: Leaf(shape, np.dtype(np.float32)) for name, shape in SHAPES.items()}
        sign(folder, layout | leaves)
        if also_array:
            leaf = leaves["a/kernel"]
            chunk, dtype = [1, *leaf.shape], leaf.dtype.name
            shapes = {"shape": [3, *leaf.shape], "chunk_grid.configuration.chunk_shape": chunk, "data_type": dtype}
            of_json(ARRAY, kind, shapes).do(folder)

    both = " and its array" if also_array else ""
    return Corruption(kind, f"{', '.join(f'{n}: {leaf}' for n, leaf in leaves.items())} in the header{both}", do)


def sign(folder: Path, layout: dict[str, Leaf]) -> None:
    """Writes a header with another layout, and lines that belong to it."""
    content = header_of(layout, {"seed": 0})
    crc32 = json.loads(content)["crc32"]
    lines = [json.loads(line) for line in (folder / LINES).read_text().splitlines()]
    (folder / HEADER).write_bytes(content)
    with (folder / LINES).open("wb") as file:
        for line in lines:
            text, crc32 = line_of(line["step"], line["weights"], crc32)
            file.write(text)


def _of_sizes() -> list[Corruption]:
    kind, chunk = "huge size", "chunk_grid.configuration.chunk_shape"
    made = [of_json(ARRAY, kind, {chunk: shape}) for shape in ([1, 10**6, 10**6], [1, 2, LARGE], [10**30, 2, 3])]
    for size in (10**6, 2**31, LARGE, 10**30):
        made.append(of_json(ARRAY, kind, {"shape": [size, 2, 3]}))
        made.append(of_json(ARRAY, kind, {"shape": [3, 2, size]}))
        for also_array in (False, True):
            made.append(_signed(kind, {"a/kernel": Leaf((2, size), np.dtype(np.float32))}, also_array=also_array))
        small = _signed(kind, {"a/kernel": Leaf((2, size), np.dtype(np.float32))}, also_array=True)
        made.append(Corruption(kind, f"{small.where}, in small chunks", _then(small, {chunk: [1, 2, 3]})))
    made += [deep_json(ARRAY, key) for key in ("attributes", "fill_value", "codecs")]
    made += [deep_json(HEADER, key) for key in ("metadata", "more")]
    made.append(Corruption(kind, "a million brackets in a line", lambda f: _replaced(f / LINES, "10", "[" * 10**6)))
    made.append(Corruption(kind, "a step of 5000 digits", lambda f: _replaced(f / LINES, "10", "1" * 5000)))
    for size in (2**20, 2**31 - 1):
        made.append(Corruption(kind, f"a chunk that says it is of {size} bytes", lambda f, s=size: _blosc(f, s)))
    return made


def _then(first: Corruption, changes: dict[str, Any]) -> Callable[[Path], None]:
    def do(folder: Path) -> None:
        first.do(folder)
        of_json(ARRAY, "", changes).do(folder)

    return do


def _blosc(folder: Path, size: int) -> None:
    """Makes a chunk say that it is of so many bytes, with the right checksum."""
    file = folder / FOLDERS[0] / "c.1.0.0"
    content = file.read_bytes()[:-4]
    content = content[:4] + struct.pack("<i", size) + content[8:]
    file.write_bytes(content + struct.pack("<I", _crc32c(content)))


def _crc32c(content: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in content:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def _of_names() -> list[Corruption]:
    kind = "names that lead elsewhere"
    made = []
    for name in ("../../precious", "/etc/passwd", "..", "", ".", "a/../../b", "a\x00b", "c.0.0.0", "zarr.json"):
        made.append(Corruption(kind, f"a leaf named {name!r}", lambda f, n=name: _rename(f, n)))
    for name in ("writer.lock", "history.json.tmp", "steps.jsonl.tmp", HEADER, LINES):
        made.append(Corruption(kind, f"{name} is a link to a file outside", lambda f, n=name: _link_to_precious(f, n)))
    for name in ("arrays", *FOLDERS):
        made.append(Corruption(kind, f"{name} outside, by a link", lambda f, n=name: _moved(f, n)))
    made += [of_json(ARRAY, kind, {"attributes": {"kvstore": "file:///etc/passwd"}})]
    made += [
        of_json(ARRAY, kind, {"chunk_key_encoding.configuration.separator": separator}) for separator in ("/", "../")
    ]
    return made


def _rename(folder: Path, name: str) -> None:
    layout = {name if old == "a/kernel" else old: Leaf(shape, np.dtype(np.float32)) for old, shape in SHAPES.items()}
    sign(folder, layout)


def _link_to_precious(folder: Path, name: str) -> None:
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(folder.parent / PRECIOUS)


def _moved(folder: Path, name: str) -> None:
    """Puts a part of the history beside it, and a link to it into its place: what is read is right."""
    shutil.move(folder / name, folder.parent / "aside")
    (folder / name).symlink_to(folder.parent / "aside")
