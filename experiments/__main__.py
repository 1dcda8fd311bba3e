"""The command line: `python -m experiments`."""

import tyro

from .predictor import predictor


def main() -> None:
    """Runs one of the commands."""
    tyro.extras.subcommand_cli_from_dict({"predictor": predictor}, prog="python -m experiments")


if __name__ == "__main__":
    main()
