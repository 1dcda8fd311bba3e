"""What a jump costs for networks that are too large to be tried here: computed, not run."""

from pathlib import Path

from rich.console import Console

from .measured import Measured
from .page import page, sections, table


def scale(output: Path = Path("runs/scale"), results: Path = Path("results")) -> None:
    """Computes memory and time of a jump for AlexNet, Inception, ResNet-50 and a 7 B transformer on 64 chips.

    Nothing is run or allocated; takes some seconds. Memory follows from shapes and the plan; times are of what
    `python -m experiments benchmark` measured, or bounds from what has to be moved.

    Args:
      output: the folder that gets scale.md.
      results: the folder with the results of `benchmark` and `accelerators`.
    """
    measured = Measured.read(results)
    found = sections(measured)
    console = Console()
    if not console.is_terminal:
        console.width = 120  # whoever reads it from a file can scroll
    for section in found:
        console.print(table(section))
    output.mkdir(parents=True, exist_ok=True)
    (output / "scale.md").write_text(page(found))
    console.print(f"Wrote {output / 'scale.md'}, which says how each figure was computed.")
