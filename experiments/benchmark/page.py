"""The page of the results, with its figures."""

import importlib.metadata
import itertools
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from ..figures import BLUE, GREEN, GREY, ORANGE, figure
from .jump import JUMP, MULTIPLY_ADD, NUMPY, STREAM, TORCH, VMAP
from .rows import Row

# Line styles besides the colours, for readers who cannot tell the colours apart.
_LOOKS: dict[str, dict[str, Any]] = {
    JUMP: {"color": BLUE, "marker": "o", "linewidth": 2.5},
    VMAP: {"color": ORANGE, "marker": "s"},
    NUMPY: {"color": GREEN, "marker": "^"},
    TORCH: {"color": "#CC79A7", "marker": "D"},
    MULTIPLY_ADD: {"color": GREY, "linestyle": "--"},
    STREAM: {"color": GREY, "linestyle": ":"},
}


def page(rows: Sequence[Row], folder: Path, command: str) -> str:
    """Returns the measurements as Markdown, and draws the figures that it shows.

    Args:
      rows: the measurements.
      folder: gets the figures; the page is to stand beside it.
      command: what made the measurements.
    """
    lines = [
        "# What it costs",
        "",
        f"`{command}`",
        "",
        machine(),
        "",
        "Sections may be of several calls, each with all of its figures from one. Medians and quartiles of what was",
        "measured in turn in one process; a ratio is that of two taken one after the other. Buffers are donated.",
        "*Bound*: what the median is meant to keep.",
    ]
    for section in dict.fromkeys(r.section for r in rows):
        lines += ["", f"## {section[0].upper()}{section[1:]}", ""]
        members = [r for r in rows if r.section == section]
        if name := _draw(section, members, folder):
            lines += [f"![{section}]({folder.name}/{name})", ""]
        lines += ["| what | median | quartiles | bound | |", "| --- | ---: | ---: | ---: | --- |"]
        lines += [_line(r) for r in members]
    return "\n".join([*lines, ""])


def machine() -> str:
    """Returns a line on the machine and the versions."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "jaxlib", "flax", "optax"))
    device = jax.devices()[0]
    kind = _processor() if device.platform == "cpu" else device.device_kind
    return f"Python {platform.python_version()}, {versions}; {kind}, {os.cpu_count()} cores, {platform.machine()}."


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "CPU"
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "CPU")


def _line(r: Row) -> str:
    bound = "" if r.met is None else f"{'≤' if r.at_least is None else '≥'} {r.at_most or r.at_least:g} {r.unit}"
    verdict = {None: "", True: ", met", False: ", **not met**"}[r.met]
    quartiles = "" if r.low == r.high else f"{r.low:.3g} to {r.high:.3g}"
    return f"| {r.what} | {r.median:.3g} {r.unit} | {quartiles} | {bound}{verdict} | {r.note} |"


def _draw(section: str, rows: list[Row], folder: Path) -> str:
    """Draws the figure of a section, and returns its name; nothing for a section without one."""
    draw = {"idle step": _draw_idle, "jump": _draw_jumps, "compilation, above the base optimizer's": _draw_compilation}
    if section not in draw:
        return ""
    name = f"{section.split(',')[0].replace(' ', '-')}.png"
    draw[section](rows, folder / name)
    return name


def _draw_idle(rows: list[Row], path: Path) -> None:
    optimizers = list(dict.fromkeys(r.place["optimizer"] for r in rows))
    colors = dict(zip(optimizers, (BLUE, ORANGE, GREEN), strict=False))
    markers = dict(zip(optimizers, "os^", strict=False))
    cases = list(dict.fromkeys((r.place["family"], r.place["weights"], r.place["arrays"]) for r in rows))
    with figure(path, 1, width=8, height=0.45 * len(cases) + 1.2) as (ax,):
        for r in rows:
            optimizer = r.place["optimizer"]
            case = cases.index((r.place["family"], r.place["weights"], r.place["arrays"]))
            y = case + 0.22 * (optimizers.index(optimizer) - 1)
            ax.plot([r.low, r.high], [y, y], color=colors[optimizer], linewidth=2)
            label = optimizer if case == 0 else None
            ax.plot(r.median, y, markers[optimizer], color=colors[optimizer], label=label)
        ax.axvline(1, color=GREY, linewidth=1)
        ax.axvline(1.01, color=GREY, linewidth=1, linestyle="--", label="bound, 1.01")
        ax.set_yticks(range(len(cases)), [f"{f}, {w / 1e6:.1f} M, {a} arrays" for f, w, a in cases])
        ax.invert_yaxis()
        ax.set_xlabel("time of an idle step / that of the base optimizer alone (median and quartiles)")
        ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))


def _draw_jumps(rows: list[Row], path: Path) -> None:
    with figure(path, 1, width=8, height=4) as (ax,):
        for name, look in _LOOKS.items():
            own = [r for r in rows if r.place.get("form") == name]
            x = [r.place["weights"] for r in own]
            ax.plot(x, [r.median for r in own], label=name, **look)
            ax.fill_between(x, [r.low for r in own], [r.high for r in own], color=look["color"], alpha=0.2, linewidth=0)
        ax.set(xscale="log", yscale="log", xlabel="weights", ylabel="ns a weight")
        ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))


def _draw_compilation(rows: list[Row], path: Path) -> None:
    with figure(path, 1, width=7, height=3.8) as (ax,):
        by_arrays = itertools.groupby((r for r in rows if r.place), lambda r: r.place["arrays"])
        for (arrays, group), color, marker in zip(by_arrays, (BLUE, ORANGE, GREEN), "os^", strict=False):
            own = list(group)
            x = range(len(own))
            ax.plot(x, [r.median for r in own], color=color, marker=marker, label=f"{arrays} arrays")
            ax.fill_between(x, [r.low for r in own], [r.high for r in own], color=color, alpha=0.2, linewidth=0)
            names = [r.place["schedule"].replace(", ", ",\n") for r in own]
            ax.set_xticks(x, names)
        ax.set(ylim=(0, None), ylabel="seconds more than without")
        ax.legend()
