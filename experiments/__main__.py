"""The command line: `python -m experiments`."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import absl.logging
import tyro

from . import imagenet
from .commands import WORKDIR, list_experiments, run
from .predictor import predictor
from .quickstart import quickstart
from .report import report


def run_imagenet(
    name: Annotated[str, tyro.conf.Positional],
    data: Path,
    options: Annotated[imagenet.Options, tyro.conf.arg(name="")],
    workdir: Path = WORKDIR,
    results: Path | None = None,
) -> None:
    """Trains one arm of an experiment on ImageNet, and goes on where it stopped.

    Args:
      name: the experiment.
      data: folder of ImageNet: JPEGs, one sub-folder a class, or what TFDS prepared.
      options: how to train.
      workdir: the work folder.
      results: folder of results that the run is added to; None is the work folder.
    """
    complete = imagenet.train(name, data, workdir, results_folder=results, **vars(options))
    if not complete:
        sys.exit("Stopped: the same command goes on.")


def benchmark() -> Callable[..., Any]:
    """Returns the command `benchmark`, whose packages the others can do without."""
    command: Callable[..., Any] = importlib.import_module("experiments.benchmark").benchmark
    return command


def main() -> None:
    """Runs one of the commands; bad input ends it with a message instead of a traceback."""
    # Orbax warns at every save that it does not make a database of a few small files, which is what is wanted.
    absl.logging.set_verbosity(absl.logging.ERROR)
    commands: dict[str, Callable[..., Any]] = {
        "quickstart": quickstart, "list": list_experiments, "run": run, "report": report, "predictor": predictor
    }  # fmt: skip
    arguments = sys.argv[1:]
    if not {*commands} & {*arguments[:1]}:
        commands["benchmark"] = benchmark()
    try:
        if arguments[:1] == ["run"] and any(name in imagenet.RECORDS for name in arguments[1:2]):
            tyro.cli(run_imagenet, prog="python -m experiments run", args=arguments[1:])
        else:
            tyro.extras.subcommand_cli_from_dict(commands, prog="python -m experiments")
    except (ValueError, OSError, ArithmeticError, RuntimeError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
