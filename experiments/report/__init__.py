"""The command `report`: what comes out of all complete runs, as Markdown and as one page of HTML."""

from pathlib import Path

from rich.console import Console

from . import page
from .results import read


def report(results: Path = Path("results/runs"), output: Path = Path("results")) -> None:
    """Writes the report of all complete runs: README.md with figures, and one self-contained HTML page.

    It is made of whatever is complete, and says of the rest which command makes it. The same results give the same
    files. Nothing is written if results are of mixed versions or images, or of other settings than the experiments.

    Args:
      results: the folder of complete runs, the workdir of `run`.
      output: the folder for README.md, report.html and figures; what an earlier report left there is replaced.

    Raises:
      FileNotFoundError: there is no folder of results.
      ValueError: results that don't belong into one report.
    """
    complete = read(results)
    made = page.make(complete, f"python -m experiments report --results {results} --output {output}")
    texts = {"README.md": page.markdown(made), "report.html": page.html(made)}
    figures = output / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    for figure in made.figures:
        (figures / f"{figure.name}.png").write_bytes(figure.png)
    for name, text in texts.items():
        (output / name).write_text(text, encoding="utf-8")
    Console().print(f"Wrote README.md, report.html and {len(made.figures)} figures to {output}")
