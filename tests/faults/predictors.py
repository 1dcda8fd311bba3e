"""Predictors to be damaged, and what can happen to them in particular."""

import json
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from optax_introspect import IntrospectionNetwork, introspection, save

from .corruptions import LARGE, Corruption, deep_json, of_any_file, of_json, of_pairs

SHAPES = {"layers.0.bias": [6], "layers.0.kernel": [4, 6], "layers.2.bias": [1], "layers.2.kernel": [6, 1]}
CONFIG, TREE = "config/metadata", "weights/_METADATA"
LAYOUTS = {name: f"weights/{name}/.zarray" for name in SHAPES}
CHUNKS = {name: f"weights/{name}/{'.'.join('0' * len(shape))}" for name, shape in SHAPES.items()}
KERNEL = LAYOUTS["layers.0.kernel"]


def make(folder: Path, seed: int) -> Path:
    """Saves a predictor with random weights."""
    network = IntrospectionNetwork(hidden=(6,), rngs=nnx.Rngs(0))
    seeded = np.random.default_rng(seed)
    for _, variable in nnx.to_flat_state(nnx.state(network, nnx.Param)):
        variable[...] = np.asarray(seeded.normal(size=variable.shape), np.float32)
    save(introspection(network, scale=10.0**seed), folder)
    return folder


def corruptions(folder: Path, seeded: random.Random, flips: int = 6) -> list[Corruption]:
    """Returns what is done to a predictor that is in a folder."""
    return [
        *of_any_file(folder, seeded, flips),
        *of_pairs([CONFIG, TREE]),
        *of_pairs(CHUNKS.values()),
        *of_pairs(LAYOUTS.values()),
        *_of_shapes_and_dtypes(),
        *_of_settings(),
        *_of_sizes(),
        *_of_names(),
    ]


def _of_shapes_and_dtypes() -> list[Corruption]:
    kind = "shape or dtype"
    dtypes = ["<f8", "<f2", ">f4", "<i4", "<c8", "|b1", "|O", "<U4", "bfloat16", "nonsense", 4, None, ["<f4"]]
    shapes: list[Any] = [[6, 4], [4, 5], [4, 7], [24], [4, 6, 1], [4, 0], [4, -6], [4, 6.0], ["4", "6"], 24, None]
    changes: list[dict[str, Any]] = [{"dtype": dtype} for dtype in dtypes]
    changes += [{"shape": shape} for shape in shapes] + [{"shape": shape, "chunks": shape} for shape in shapes]
    changes += [{"chunks": shape} for shape in ([2, 6], [4, 3], [8, 6], [0, 6], [])]
    changes += [{"order": "F"}, {"zarr_format": 3}, {"compressor": None}, {"compressor.id": "blosc"}]
    changes += [{"filters": [{"id": "pickle"}]}, {"dimension_separator": "/"}, {"fill_value": 1.0}]
    return [of_json(KERNEL, kind, change) for change in changes]


def _of_settings() -> list[Corruption]:
    changes: list[dict[str, Any]] = [
        {"points": [1.0, 0.7, 0.3, 0.0]}, {"points": [1.0, 0.7, 0.4]}, {"points": [0.0, 0.4, 0.7, 1.0]},
        {"points": None},
        {"scale": 1.1}, {"scale": -1.0}, {"scale": "1"}, {"scale": 1e400}, {"format": 1}, {"format": 3},
        {"network.num_points": 3}, {"network.hidden": [7]}, {"network.hidden": [6, 6]}, {"network.hidden": []},
        {"network.activation": "identity"}, {"network.activation": "os.system"}, {"network.use_bias": False},
        {"network.relative": True}, {"network.rngs": 0}, {"network.unknown": 0}, {"network": None}, {"sha256": ""},
    ]  # fmt: skip
    return [of_json(CONFIG, "changed settings", change) for change in changes]


def _of_sizes() -> list[Corruption]:
    kind = "huge size"
    made = [of_json(KERNEL, kind, {"chunks": [10**6, 10**6]})]
    for size in (10**5, 2**31, LARGE, 10**30):
        made.append(of_json(KERNEL, kind, {"shape": [4, size], "chunks": [4, size]}))
        made.append(of_json(CONFIG, kind, {"network.hidden": [size]}))
        made.append(of_json(CONFIG, kind, {"network.num_points": size}))
        made.append(of_json(CONFIG, kind, {"network.hidden": [size]}, also=_consistent(size)))
    made.append(of_json(CONFIG, kind, {"network.hidden": [6] * 10**5}))
    made.append(of_json(CONFIG, kind, {"points": [1.0] * 10**5}))
    made += [deep_json(name, key) for name, key in ((CONFIG, "scale"), (CONFIG, "more"), (TREE, "custom_metadata"))]
    made += [deep_json(KERNEL, key) for key in ("attributes", "filters", "compressor")]
    made += [deep_json("_CHECKPOINT_METADATA", "custom_metadata")]
    made += [
        Corruption(kind, f"{name}: 16 GB, compressed", lambda f, n=name: (f / n).write_bytes(_zstd_of_zeros(2**34)))
        for name in CHUNKS.values()
    ]
    for name in (CONFIG, KERNEL):
        number = Corruption(kind, f"{name}: a number of 100 000 digits", lambda f, n=name: _number(f / n))
        made.append(number)
    return made


def _consistent(size: int) -> Callable[[Path], None]:
    """Makes the layouts those of a network with so many hidden units."""

    def do(folder: Path) -> None:
        for name, shape in SHAPES.items():
            large = [size if length == 6 else length for length in shape]
            of_json(LAYOUTS[name], "", {"shape": large, "chunks": large}).do(folder)

    return do


def _number(file: Path) -> None:
    file.write_text(file.read_text().replace("4", "4" * 10**5, 1))


def _zstd_of_zeros(size: int) -> bytes:
    """Returns a frame of blocks of a repeated zero, without a checksum (RFC 8878)."""
    block = 2**17
    header = struct.pack("<I", 0xFD2FB528) + bytes([0, 0x58])
    repeated = (block << 3 | 1 << 1).to_bytes(3, "little") + b"\0"
    last = (block << 3 | 1 << 1 | 1).to_bytes(3, "little") + b"\0"
    return header + repeated * (size // block - 1) + last


def _of_names() -> list[Corruption]:
    kind = "names that lead elsewhere"
    names = ["../../other/weights/layers.0.bias", "/etc/passwd", "..", "", "layers.0.kernel", "a/b", "layers.0.bias/"]
    made = [Corruption(kind, f"{TREE}: key {name!r}", lambda f, n=name: _rename(f, n)) for name in names]
    made += [Corruption(kind, f"{TREE}: keys of two parts", lambda f: _rename(f, "..", "other"))]
    made += [of_json(TREE, kind, {flag: True}) for flag in ("use_ocdbt", "use_zarr3")]
    for handler in ("os.system", "subprocess.Popen", "builtins.exec", "../../evil"):
        handlers = {"item_handlers": {"config": handler, "weights": handler}}
        made.append(of_json("_CHECKPOINT_METADATA", kind, handlers))
    made.append(Corruption(kind, "a database in the place of the arrays", _database))
    made += [Corruption(kind, f"{name} outside, by a link", lambda f, n=name: _moved(f, n)) for name in SHAPES]
    return made


def _rename(folder: Path, *keys: str) -> None:
    """Gives another name to an array in the list of them."""
    tree = json.loads((folder / TREE).read_text())
    array = tree["tree_metadata"]["('layers.0.bias',)"]
    array["key_metadata"] = [{"key": key, "key_type": 2} for key in keys]
    (folder / TREE).write_text(json.dumps(tree))


def _database(folder: Path) -> None:
    (folder / "weights" / "manifest.ocdbt").write_bytes(b"\x0c\xdb\x3a\x2a" + bytes(100))


def _moved(folder: Path, name: str) -> None:
    """Puts an array beside the predictor, and a link to it into its place: what is read is right."""
    shutil.move(folder / "weights" / name, folder.parent / name)
    (folder / "weights" / name).symlink_to(folder.parent / name)
