"""The command line: `python -m experiments`."""

import sys
from collections.abc import Callable
from typing import Any

import absl.logging
import tyro

from .accelerators import accelerators
from .benchmark import benchmark
from .compatibility import compatibility
from .precision import precision
from .predictor import predictor
from .quickstart import quickstart
from .report import report
from .run import list_experiments, run
from .scale import scale

COMMANDS: dict[str, Callable[..., Any]] = {
    "quickstart": quickstart,
    "list": list_experiments,
    "run": run,
    "report": report,
    "predictor": predictor,
    "benchmark": benchmark,
    "precision": precision,
    "accelerators": accelerators,
    "scale": scale,
    "compatibility": compatibility,
}


def main() -> None:
    """Runs one of the commands; bad input ends it with a message instead of a traceback."""
    # Orbax warns at every save that it does not make a database of a few small files, which is what is wanted.
    absl.logging.set_verbosity(absl.logging.ERROR)
    try:
        tyro.extras.subcommand_cli_from_dict(COMMANDS, prog="python -m experiments")
    except (ValueError, OSError, ArithmeticError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
