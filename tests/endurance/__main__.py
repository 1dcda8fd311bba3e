"""Checks that take longer than tests may; writes what comes of them to `docs/endurance.md`."""

import logging
import sys
import tempfile
import time
from pathlib import Path
from typing import Literal

import tyro

from .checks import DAMAGE, DISKS, KILLS, damaged, full, killed
from .page import write

PAGE = Path(__file__).resolve().parents[2] / "docs" / "endurance.md"


def main(
    only: tuple[Literal["kills", "damage", "disks"], ...] = (),
    seed: int = 0,
    kills: int = 50,
    flips: int = 6,
    output: Path = PAGE,
) -> None:
    """Kills, damages and starves recording, fitting and training, and compares what comes of it.

    Args:
      only: the checks to make; all of them if there are none.
      seed: of everything random.
      kills: of each kind of work.
      flips: flipped bytes in each file.
      output: the page; sections of other checks stay as they are.
    """
    logging.disable(logging.ERROR)
    checks = {
        "kills": lambda folder: killed(folder, seed, kills),
        "damage": lambda folder: damaged(folder, seed, flips),
        "disks": lambda folder: full(folder, seed),
    }
    violations = []
    for name in only or checks:
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            section = checks[name](Path(folder))
        write(output, [section], [KILLS, DAMAGE, DISKS])
        violations += section.violations
        print(f"{name}: {len(section.violations)} violations, {time.monotonic() - began:.0f} s", flush=True)
    if violations:
        sys.exit("\n".join(violations))


if __name__ == "__main__":
    tyro.cli(main)
