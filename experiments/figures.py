"""The look that all figures share."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt

# Okabe and Ito's colours, which colour-blind readers can tell apart.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#777777"
BLACK, AMBER, SKY, PURPLE = "#000000", "#E69F00", "#56B4E9", "#CC79A7"

_STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "grid.color": "#dddddd",
    "legend.frameon": False,
    "svg.fonttype": "none",
}


@contextmanager
def drawing(
    columns: int, *, rows: int = 1, width: float = 4.5, height: float = 3.6, **options: Any
) -> Iterator[tuple[Any, list[Any]]]:
    """Yields a figure and its axes, row after row, in the shared look.

    Args:
      columns: how many axes stand beside each other.
      rows: how many below each other.
      width: of each of the axes, in inches.
      height: of each of the axes, in inches.
      **options: passed on to `plt.subplots`.
    """
    with mpl.rc_context(_STYLE):
        size = (width * columns, height * rows)
        drawn, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, **options)
        try:
            yield drawn, list(axes.flat)
        finally:
            plt.close(drawn)


@contextmanager
def figure(path: Path, columns: int, *, width: float = 4.5, height: float = 3.6, **options: Any) -> Iterator[list[Any]]:
    """Yields axes in a row, and writes them as a PNG at the end.

    Args:
      path: the file.
      columns: how many axes.
      width: of each of the axes, in inches.
      height: of the figure, in inches.
      **options: passed on to `plt.subplots`.
    """
    with drawing(columns, width=width, height=height, **options) as (drawn, axes):
        yield axes
        path.write_bytes(png(drawn))


def png(drawn: Any, dpi: float = 150) -> bytes:
    """Returns a figure as a PNG; without the version of the library in it, the same figure is the same file."""
    file = io.BytesIO()
    drawn.savefig(file, format="png", dpi=dpi, metadata={"Software": None})
    return file.getvalue()


def svg(drawn: Any, name: str) -> str:
    """Returns a figure as an SVG element to be put into a page.

    Args:
      drawn: the figure.
      name: begins every id in it, so that several figures can stand in one page.
    """
    file = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": name}):
        drawn.savefig(file, format="svg", metadata={"Date": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    for pattern, shorter in _SHORTER.items():
        text = re.sub(pattern, shorter, text, flags=re.DOTALL)
    text = re.sub(r'\b(id="|url\(#|href="#)', rf"\g<1>{name}-", text)
    text = re.sub(r"-?\d+\.\d{2,}(?=[\s\"])", lambda number: f"{float(number[0]):.1f}", text)
    return re.sub(r'(?<= d=")[^"]*', _shorter_path, text).strip()


# What is taken out of an SVG: it makes half of it.
_SHORTER = {
    r"<metadata>.*?</metadata>\s*": "",
    r"font-family: [^;\"]*;? ?": "",
    r'<g id="[^"]*">': "<g>",  # nothing refers to these
    r' transform="rotate\(-0 [^"]*"': "",
    r"\n\s*": "\n",
}


def _shorter_path(path: re.Match[str]) -> str:
    """Returns a path in which lines to points are not called so: that is what follows the first point anyway."""
    text = path[0].replace(" \n", "\n").strip()
    return text if re.search("[CQ]", text) else text.replace("\nL ", "\n")
