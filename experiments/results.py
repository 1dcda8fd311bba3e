"""Reads and writes results: `NAME.csv.gz`, with a row for each arm, seed and evaluation, and `NAME.json`.

`pandas.read_csv("results/mnist_4.csv.gz")` reads the rows. An empty cell is something that was not measured or not
finite. The JSON holds the settings of the experiment and of each arm, the version of `optax_introspect`, and a list of
environments (versions of the packages, machine, images), which the column `environment` counts from 0.

The bytes depend on the contents alone: rows are sorted, and the time is left out of the gzip header.
"""

import csv
import gzip
import importlib.metadata
import io
import json
import math
import os
import platform
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import numpy.typing as npt

FOLDER = Path("results")
Row = dict[str, Any]
Array = npt.NDArray[Any]
_FIRST = ("arm", "seed", "step")
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")


class Results(NamedTuple):
    """The results of one experiment.

    Attributes:
      name: stem of its files.
      info: contents of the JSON file.
      columns: columns of the table; numbers as float64 with NaN for empty cells, or else as text.
    """

    name: str
    info: dict[str, Any]
    columns: dict[str, Array]

    @property
    def version(self) -> str:
        """Version of `optax_introspect` that it was measured with."""
        return str(self.info["version"])

    def curve(self, arm: str, seed: int) -> dict[str, Array]:
        """Returns the evaluations of one run by step, a column each."""
        chosen = (self.columns["arm"] == arm) & (self.columns["seed"] == seed)
        return {name: column[chosen] for name, column in self.columns.items()}

    def curves(self, arm: str) -> dict[int, dict[str, Array]]:
        """Returns the evaluations of all runs of an arm, by seed; empty if there are none."""
        seeds = np.unique(self.columns["seed"][self.columns["arm"] == arm]).astype(int).tolist()
        return {seed: self.curve(arm, seed) for seed in seeds}


def environment(images: str) -> dict[str, Any]:
    """Returns the versions, the machine and the source of the images, which results depend on."""
    device, packages = jax.devices()[0], list(_PACKAGES)
    if device.platform != "cpu":
        packages += sorted({d.name for d in importlib.metadata.distributions() if d.name.startswith("jax-cuda")})
    versions = {package: importlib.metadata.version(package) for package in packages}
    return {"versions": versions, "machine": _machine(device), "images": images}


def append(
    folder: Path,
    name: str,
    rows: Iterable[Row],
    *,
    settings: Mapping[str, Any],
    arms: Mapping[str, Mapping[str, Any]],
    environment: Mapping[str, Any],
    version: str | None = None,
) -> None:
    """Adds complete runs to the results of an experiment; a run that is there already is replaced.

    The caller keeps two processes from adding at once.

    Args:
      folder: the folder of results.
      name: name of the experiment.
      rows: evaluations with `"arm"`, `"seed"`, `"step"` and measurements, of whole runs.
      settings: settings of the experiment.
      arms: settings of each arm in `rows`.
      environment: what `environment` returns.
      version: version of `optax_introspect`; None is the one installed.

    Raises:
      ValueError: the results that are there have other settings or another version.
    """
    new: dict[str, Any] = {
        "experiment": name,
        "version": version or importlib.metadata.version("optax-introspect"),
        "settings": dict(settings),
        "arms": {arm: dict(value) for arm, value in arms.items()},
        "environments": [dict(environment)],
    }
    new = json.loads(json.dumps(new))
    kept: list[Row] = []
    if (folder / f"{name}.csv.gz").exists():
        old, kept = _read_rows(folder, name)
        for key in ("version", "settings"):
            _check_same(f"{key} of {folder / name}", old[key], new[key])
        for arm in old["arms"].keys() & new["arms"].keys():
            _check_same(f"arm {arm} of {folder / name}", old["arms"][arm], new["arms"][arm])
        places = old["environments"] + [place for place in new["environments"] if place not in old["environments"]]
        new = new | {"environments": places, "arms": old["arms"] | new["arms"]}
        number = places.index(json.loads(json.dumps(dict(environment))))
    else:
        number = 0
    added = [row | {"environment": number} for row in rows]
    runs = {(row["arm"], int(row["seed"])) for row in added}
    write(folder, name, new, [*(row for row in kept if (row["arm"], int(row["seed"])) not in runs), *added])


def write(folder: Path, name: str, info: Mapping[str, Any], rows: Iterable[Row]) -> None:
    """Writes results atomically: the JSON first, so that no row is without its settings.

    Args:
      folder: the folder of results.
      name: name of the experiment.
      info: contents of the JSON file; the order of its arms is the order of the rows.
      rows: one for each evaluation; they may have different columns.
    """
    order = {arm: i for i, arm in enumerate(info.get("arms", {}))}
    ordered = list(rows)
    if order:  # the sort is stable: what has no steps stays as it was
        ordered.sort(key=lambda row: (order[row["arm"]], int(row.get("seed", 0)), int(row.get("step", 0))))
    names = dict.fromkeys(name for row in ordered for name in row)
    columns = [*(name for name in _FIRST if name in names), *(name for name in names if name not in _FIRST)]
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(columns)
    table.writerows([_cell(row.get(column)) for column in columns] for row in ordered)
    packed = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", fileobj=packed, mtime=0) as file:
        file.write(text.getvalue().encode())
    folder.mkdir(parents=True, exist_ok=True)
    replace(folder / f"{name}.json", (json.dumps(info, indent=1) + "\n").encode())
    replace(folder / f"{name}.csv.gz", packed.getvalue())


def read(name: str, folder: Path = FOLDER) -> Results:
    """Returns the results of an experiment.

    Raises:
      FileNotFoundError: nothing was measured.
    """
    info, rows = _read_rows(folder, name)
    names = list(rows[0]) if rows else []
    return Results(name, info, {name: _column([row[name] for row in rows]) for name in names})


def names(folder: Path = FOLDER) -> list[str]:
    """Returns the names of all results in a folder."""
    return sorted(path.name.removesuffix(".csv.gz") for path in folder.glob("*.csv.gz"))


def _read_rows(folder: Path, name: str) -> tuple[dict[str, Any], list[Row]]:
    with gzip.open(folder / f"{name}.csv.gz", "rt", newline="") as file:
        rows: list[Row] = list(csv.DictReader(file))
    # Tables that belong to an experiment, such as curves of single weights, share its JSON.
    path = folder / f"{name}.json"
    if not path.exists():
        path = folder / f"{name.rpartition('-')[0]}.json"
    return json.loads(path.read_text()), rows


def _column(cells: list[str]) -> Array:
    try:
        return np.array([float(cell) if cell else math.nan for cell in cells])
    except ValueError:
        return np.array(cells)


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    return value if isinstance(value, str) else repr(value)


def _check_same(what: str, found: Any, given: Any) -> None:
    if found != given:
        raise ValueError(f"{what} must be the same as in the results that are there, {found}; got {given}")


def replace(path: Path, contents: bytes) -> None:
    """Writes a file that is whole or not there."""
    new = path.with_name(f".{path.name}.new")
    with new.open("wb") as file:
        file.write(contents)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


def _machine(device: jax.Device) -> str:
    if device.platform != "cpu":
        return f"{device.device_kind}, {jax.device_count()} of them"
    try:
        models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        processor = models[0].partition(":")[2].strip()
    except (OSError, IndexError):
        processor = platform.processor() or platform.machine()
    return f"{processor}, {len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()} cores"
