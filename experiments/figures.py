"""The look that all figures share."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt

# Okabe and Ito's colours, which colour-blind readers can tell apart.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#777777"

_STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "grid.color": "#dddddd",
    "legend.frameon": False,
    "savefig.dpi": 150,
}


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
    with mpl.rc_context(_STYLE):
        drawing, axes = plt.subplots(1, columns, figsize=(width * columns, height), squeeze=False, **options)
        try:
            yield list(axes[0])
            # Without the version of the library in it, the same figure is the same file.
            drawing.savefig(path, metadata={"Software": None})
        finally:
            plt.close(drawing)
