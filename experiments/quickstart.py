"""A first result: `MNIST_3` with and without jumps, as a table and a picture."""

import dataclasses
import shutil
from pathlib import Path

from rich.console import Console
from rich.markdown import Markdown

from . import figures, mnist, report, results, runs
from .commands import execute
from .data import load
from .runs import Context, TrainingRun
from .tables import TABLES, Report


def quickstart(
    seeds: tuple[int, ...] = (0,),
    workdir: Path = Path("runs"),
    output: Path = Path("runs/quickstart-results"),
    data_dir: Path | None = None,
) -> None:
    """Trains MNIST_3 with SGD and with Adam, each without and with jumps; takes 3 minutes on two cores.

    Where MNIST can't be had, it takes the small digits of scikit-learn instead, and says so. It is the experiment
    `quickstart` of `run`, whose work folder it shares; interrupted, it goes on.

    Args:
      seeds: one run of every arm for each.
      workdir: the work folder.
      output: folder for the measurements, a table and a picture; an earlier one is replaced.
      data_dir: a folder with the original MNIST files, if you have them.
    """
    console = Console()
    record = mnist.quickstart
    if not seeds or not set(seeds) <= set(range(record.arms[0].seeds)):
        raise ValueError(f"seeds must be of {list(range(record.arms[0].seeds))}; got {list(seeds)}")
    try:
        load(record.data, data_dir)
    except FileNotFoundError as error:
        if data_dir is not None:
            raise
        console.print(f"MNIST can't be had, so this takes the small digits of scikit-learn instead: {error}")
        record = dataclasses.replace(record, name="quickstart-digits", title="Quickstart, digits", data="digits")
    chosen = [TrainingRun(record, arm, seed) for seed in seeds for arm in record.arms]
    execute(chosen, workdir, data_dir=data_dir)
    shutil.rmtree(output / "figures", ignore_errors=True)
    for path in (output / f"{record.name}.json", output / f"{record.name}.csv.gz"):
        path.unlink(missing_ok=True)
    runs.append(list(chosen), Context(workdir, lambda name: load(name, data_dir)), output)

    written = Report({record.name: record}, output)
    table = TABLES["arms"](written, record.name)
    picture = output / "accuracy.png"
    figures.save(report.FIGURES["curves"][1](written, record.name), picture)
    (output / "README.md").write_text(
        f"# MNIST_3 with and without jumps\n\n{record.question} On {chosen[0].experiment.data}, seeds "
        f"{', '.join(map(str, seeds))}, version {results.read(record.name, output).version}.\n\n{table}\n\n"
        f"![Test accuracy against steps]({picture.name})\n"
    )
    console.print(Markdown(table))
    console.print(f"Test accuracy is in percent, differences in percentage points. Wrote {output} with accuracy.png")
