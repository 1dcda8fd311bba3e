"""Is it only larger logits? Training accuracy, test loss and what a temperature leaves of it, plain against jumps."""

import dataclasses
from collections.abc import Callable

from ...figures import BLUE
from .. import charts
from ..blocks import Block, Claim, Figure, Section, Table, sketch
from ..results import Results, training
from ..statistics import Comparison, Paired
from ..verdicts import sign
from ..wording import complete, interval, listed, name_of, seeds, spaced
from .common import section
from .rows import CIFAR, MNIST, ROWS

_CALIBRATED = (
    "The temperature is fitted on each half of the test images and the loss taken on the other half: the calibrated "
    "loss is what is left when it is only a matter of larger or smaller logits."
)


def logits(results: Results) -> Section:
    """Returns the section on calibration."""
    names = [*MNIST, *(name for name in CIFAR if results.progress(name)[0])]
    found = [(name, c) for name in names for c in _compared(results, name)]
    blocks: list[Block] = [_figure(found), _table(found)] if found else []
    answers = [
        Claim(f"Is it only larger logits? ({ROWS[name].title})", advice(c), seeds=seeds(c.n, c.foreseen))
        for name, c in found
        if c.arm.name == ROWS[name].main
    ]
    question = "Do jumps improve what a network tells apart, or only make it more sure of itself?"
    made = section(results, "Is it only larger logits", names, answers, blocks, question)
    # The papers' figures and the choices are in the experiments' own sections.
    return dataclasses.replace(made, paper="", choices=_CALIBRATED)


def _compared(results: Results, experiment: str) -> list[Comparison]:
    row = ROWS[experiment]
    # Where the two-point rule has fewer steps than plain training, it is compared at its own end.
    return [c for way in (row.main, row.two_point) if way and (c := results.compare(experiment, way)).n]


def advice(c: Comparison) -> str:
    """Returns what to make of the losses at the end, by rule."""
    raw, calibrated = c.relative("test_loss"), c.relative("calibrated_loss")
    accuracy = c.difference("train_accuracy", 100)
    numbers = (
        f"Training accuracy {interval(accuracy)} percentage points, test loss {interval(raw, 1)} %, calibrated "
        f"{interval(calibrated, 1)} %, temperature {interval(c.relative('temperature'), 1)} %."
    )
    return f"{_conclusion(raw, calibrated, accuracy)} {numbers}"


def _conclusion(raw: Paired, calibrated: Paired, train_accuracy: Paired) -> str:
    """Returns a sentence for each combination of better and worse."""
    better, worse = sign(calibrated) < 0, sign(calibrated) > 0
    if better and sign(raw) > 0:
        return (
            "No: the calibrated loss falls while the raw loss rises, so that the network knows more but is too sure of "
            "itself. Fit a temperature on held-out images, smooth the labels, or stop earlier."
        )
    if better and sign(raw) < 0:
        return "No: the loss falls, with and without a temperature. Nothing needs to be done."
    if better:
        return (
            "No: the calibrated loss falls, while the raw loss isn't clearly changed. Fit a temperature on held-out "
            "images if probabilities matter."
        )
    if worse and train_accuracy.mean < 0:
        return (
            "It is harm: even the calibrated loss rises, and training accuracy is lower by the mean. Don't jump so "
            "here."
        )
    if worse:
        return (
            "It is overfitting: even the calibrated loss rises. Stop earlier, as one would with longer training, or "
            "regularize."
        )
    if sign(raw) > 0:
        return (
            "By the loss, yes: the raw loss rises, and the calibrated one doesn't change clearly. Fit a "
            "temperature if probabilities matter."
        )
    if sign(raw) < 0:
        return "By the loss, yes: the raw loss falls, but the calibrated one doesn't change clearly."
    return "Open: neither loss changes clearly."


def _longest(name: str) -> int:
    return max(arm.steps for arm in training(name).arms)


def _label(name: str, c: Comparison) -> str:
    return f"{ROWS[name].title}, {name_of(c.arm.name)}"


def _figure(found: list[tuple[str, Comparison]]) -> Figure:
    caption = (
        "Jumps against plain training at the end, per experiment and way; ticks are seeds, dots their mean, bars its "
        "95 % interval, cut off at the edge. A temperature above 1 means that the network is too sure of itself."
    )
    panels: dict[str, Callable[[Comparison], Paired]] = {
        "training accuracy, difference in points": lambda c: c.difference("train_accuracy", 100),
        "test loss, change in %": lambda c: c.relative("test_loss"),
        "calibrated test loss, change in %": lambda c: c.relative("calibrated_loss"),
        "temperature, change in %": lambda c: c.relative("temperature"),
    }
    height = 0.26 * len(found) + 1
    with sketch("calibration", caption, 2, rows=2, width=5.2, height=height, sharey=True) as drawn:
        for ax, (label, of) in zip(drawn.axes, panels.items(), strict=True):
            charts.dots(ax, {_label(name, c): of(c) for name, c in found}, label, BLUE, digits=0)
    return drawn.figure


def _table(found: list[tuple[str, Comparison]]) -> Table:
    columns = (
        "experiment, way", "seeds", "training accuracy, points", "test loss, %", "calibrated loss, %", "temperature, %"
    )  # fmt: skip
    rows = [
        [
            _label(name, c),
            complete(c.n, c.foreseen),
            interval(c.difference("train_accuracy", 100)),
            *(interval(c.relative(m), 1) for m in ("test_loss", "calibrated_loss", "temperature")),
        ]
        for name, c in found
    ]
    sooner = [f"{_label(name, c)}: at step {spaced(c.until)}" for name, c in found if c.until < _longest(name)]
    caption = (
        f"Jumps against plain training of the same seed at the end{f' ({listed(sooner)})' if sooner else ''}, with "
        "95 % intervals; losses and temperature as changes in percent."
    )
    return Table(columns, rows, caption)
