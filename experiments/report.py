"""Writes tables and figures into `results/README.md`; the words between them are written by hand.

What stands between `<!-- table: NAME -->` or `<!-- figure: NAME -->` and `<!-- end -->` is replaced. Figures go to
`results/figures`. A name may have an argument: `<!-- table: arms mnist_4 -->`.
"""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from . import figures, language, results, statistics
from ._config import Experiment
from .results import FOLDER
from .tables import TABLES, WAYS, Report, best, language_arms, language_budgets, plain_of

_MARKED = re.compile(r"(<!-- (table|figure): ([^>]+?) -->\n).*?(<!-- end -->)", re.DOTALL)


def _all_gains(report: Report) -> Figure:
    found = {e.title: report.read(e.name) for e in report.trainings() if e.jumps in report.read(e.name).info["arms"]}
    arms = {e.title: e.jumps for e in report.trainings()}
    gains = {title: statistics.difference(f, arms[title], plain_of(f, arms[title])) for title, f in found.items()}
    return figures.intervals({"jumps": gains}, "final test accuracy, jumps less plain, points (95 % intervals)")


def _curves(report: Report, name: str) -> Figure:
    found, record = report.read(name), report.experiments.get(name)
    drawn = record.drawn if isinstance(record, Experiment) else ()
    arms = [arm for arm in (drawn or list(found.info["arms"])[:5]) if arm in found.info["arms"]]
    arms = list(dict.fromkeys([*(plain_of(found, arm) for arm in arms), *arms]))
    return figures.curves(found, {arm: report.label(name, arm) for arm in arms}, lambda arm: plain_of(found, arm))


def _rules(report: Report) -> Figure:
    groups = {}
    for optimizer in ("SGD", "Adam"):
        name = f"mnist_3-{optimizer.lower()}"
        found = results.read(f"{name}-v0.1", report.folder)
        arms = {arm: report.label(name, arm) for arm in found.info["arms"] if arm != "plain"}
        groups[optimizer] = figures.gains(found, arms)
    return figures.intervals(groups, "MNIST_3: final test accuracy less plain, points (95 % intervals)")


def _rates_figure(report: Report) -> Figure:
    panels: dict[str, dict[str, Any]] = {}
    for optimizer in ("SGD", "Adam"):
        found = report.read(f"mnist_3-rates-{optimizer.lower()}")
        named: dict[str, Any] = {}
        for way, label in WAYS.items():
            for decay in ("none", "cosine"):
                own = {
                    settings["rate"]: statistics.final(found, arm)
                    for arm, settings in found.info["arms"].items()
                    if arm.startswith(f"{way}-x") and settings["decay"] == decay
                }
                named[label + figures.DOTTED * (decay == "cosine")] = (sorted(own), [own[rate] for rate in sorted(own)])
        panels[optimizer] = named
    return figures.lines(panels, "learning rate, times the paper's", "final test accuracy, %")


def _budgets_figure(report: Report) -> Figure:
    panels: dict[str, dict[str, Any]] = {}
    for name in ("mnist_3-budgets", "he-budgets"):
        found = report.read(name)
        budgets = sorted({arm["steps"] for arm in found.info["arms"].values()})
        panels[report.experiments[name].title] = {
            label: (budgets, [statistics.final(found, best(found, w, f"{b}-x.*", "test_accuracy")) for b in budgets])
            for w, label in WAYS.items()
        }
    return figures.lines(panels, "steps of the budget", "test accuracy at the end, %")


def _predictors_figure(report: Report) -> Figure:
    groups = {}
    for optimizer in ("SGD", "Adam"):
        found = report.read(f"mnist_3-predictors-{optimizer.lower()}")
        arms = {arm: arm.removeprefix("fitted-") for arm in found.info["arms"] if arm != "plain"}
        groups[optimizer] = figures.gains(found, arms)
    return figures.intervals(groups, "MNIST_3: final test accuracy less plain, points (95 % intervals)")


def _schedules(report: Report) -> Figure:
    found = report.read("mnist_3-schedules")
    return figures.schedules(found, lambda arm: statistics.difference(found, arm, "plain").mean)


def _layers_figure(report: Report) -> Figure:
    found = report.read("mnist_3-layers")
    labels = {arm: report.label("mnist_3-layers", arm) for arm in found.info["arms"]}
    return figures.around_jumps(found, labels, "test_loss", "test loss, times that before")


def _movement_figure(report: Report, name: str) -> Figure:
    found = report.read(name)
    labels = {arm: own["network"] for arm, own in found.info["arms"].items()}
    return figures.movement(found, results.read(f"{name}-curves", report.folder), labels)


def _language_figure(report: Report) -> Figure:
    found, groups = report.read("language"), {}
    for steps in language_budgets(found):
        arms = language_arms(found, steps)
        plain = arms.pop("plain")
        changes = {
            language.WAYS[way].label: statistics.relative(found, arm, plain, "loss") for way, arm in arms.items()
        }
        groups[f"{steps} steps"] = changes
    return figures.intervals(
        groups, "held-out loss less that of tuned AdamW, % (95 % intervals; left is better)", math.inf
    )


def _language_curves(report: Report) -> Figure:
    found, panels = report.read("language"), {}
    for steps in language_budgets(found):
        arms, lines = language_arms(found, steps), {}
        for way in ("lookahead", *language.NESTEROV, "evolved"):
            if way not in arms:
                continue
            both = statistics.pairs(found, arms[way], arms["plain"])
            losses = [100 * (ours["loss"] / other["loss"] - 1)[1:] for ours, other in both]
            lines[language.WAYS[way].label] = (both[0][0]["step"][1:], np.stack(losses))
        if lines:
            panels[f"{steps} steps"] = lines
    return figures.changes(panels, "step", "held-out loss less AdamW's, %")


FIGURES: dict[str, tuple[str, Callable[..., Figure]]] = {
    "gains": ("Final test accuracy of jumps less plain in every experiment, with intervals", _all_gains),
    "curves": ("Test accuracy against steps, and the difference to plain training", _curves),
    "rules": ("Gain of every forecaster on MNIST_3, with intervals", _rules),
    "rates": ("Final test accuracy on MNIST_3 against the learning rate", _rates_figure),
    "budgets": ("Test accuracy at the end of each budget", _budgets_figure),
    "predictors": ("Gain of every fitted predictor on MNIST_3, with intervals", _predictors_figure),
    "schedules": ("Gain against the number of jumps, their distance and the first of them", _schedules),
    "layers": ("Test loss after each jump, by the weights that jump", _layers_figure),
    "language": (
        "Loss of each way to train a language model against that of tuned AdamW, with intervals",
        _language_figure,
    ),
    "language-curves": (
        "Loss of lookahead and outer momentum against that of tuned AdamW along the training",
        _language_curves,
    ),
    "movement": ("How many weights change by how much, and curves of single weights", _movement_figure),
}


def write(report: Report, text: str, draw: bool = True) -> str:
    """Returns the page with its tables and figures as the results have them; figures are drawn into the folder.

    Args:
      report: what to read the results with.
      text: the page.
      draw: whether to draw the figures, or only to name them.

    Raises:
      ValueError: a marker names no table or figure.
    """

    def filled(match: re.Match[str]) -> str:
        kind, (name, *argument) = match[2], match[3].split()
        known = TABLES if kind == "table" else FIGURES
        if name not in known:
            raise ValueError(f"{kind} must be one of {', '.join(known)}; got {name!r}")
        if kind == "table":
            content = TABLES[name](report, *argument)
        else:
            alt, drawing = FIGURES[name]
            file = f"figures/{'-'.join(argument) or name}.png"
            content = f"![{': '.join([*argument, alt])}]({file})"
            if draw:
                figures.save(drawing(report, *argument), report.folder / file)
        return f"{match[1]}\n{content}\n\n{match[4]}"

    if text.count("<!-- table:") + text.count("<!-- figure:") != len(_MARKED.findall(text)):
        raise ValueError("each <!-- table: NAME --> and <!-- figure: NAME --> must be followed by an <!-- end -->")
    return _MARKED.sub(filled, text)


def report(folder: Path = FOLDER) -> None:
    """Writes the tables and figures of all results into `results/README.md`.

    Args:
      folder: the folder of results.
    """
    from .registry import EXPERIMENTS

    page = folder / "README.md"
    page.write_text(write(Report(EXPERIMENTS, folder), page.read_text()))
