"""Simple rules beside the network: two-point extrapolation, averages of weights, lookahead."""

from ...figures import BLUE, GREEN, GREY, ORANGE, PURPLE
from .. import charts, verdicts
from ..blocks import Block, Claim, Figure, Section, Table, sketch
from ..results import Results, training
from ..statistics import Comparison
from ..wording import NONE, complete, interval, listed, name_of, number, seeds
from .common import section

EXPERIMENTS = {"SGD": "mnist_3-sgd", "Adam": "mnist_3-adam"}
_PREFIX = "two-point-"
PICKED = "picked as the best on the same seeds, for which intervals aren't adjusted"
_BESIDE = {
    "introspection": (ORANGE, "s"),
    "fitted-equivariant": (GREEN, "D"),
    "average": (GREY, "v"),
    "ema": (PURPLE, "P"),
    "lookahead": (PURPLE, "X"),
}
_SHORT = {"introspection": "network", "fitted-equivariant": "equi-\nvariant", "lookahead": "look-\nahead"}


def rules(results: Results) -> Section:
    """Returns the section on simple rules."""
    names = list(EXPERIMENTS.values())
    blocks: list[Block] = []
    if any(results.progress(name)[0] for name in names):
        blocks = [_figure(results), _table(results)]
    answers = [claim for optimizer in EXPERIMENTS if (claim := _answer(results, optimizer))]
    return section(results, "Simple rules", names, answers, blocks, "Do simpler rules do as well as the network?")


def _names(experiment: str) -> list[str]:
    return [arm.name for arm in training(experiment).arms if arm.name.startswith(_PREFIX)]


def ratio_of(name: str) -> str:
    """Returns the jump ratio of a two-point rule."""
    return name.removeprefix(_PREFIX)


def _figure(results: Results) -> Figure:
    caption = (
        "MNIST_3: difference of final test accuracy to plain training; left, two-point extrapolation through w_0.4t "
        "and w_t by its jump ratio, right, other ways. Bars are 95 % intervals; what is below the axis has an arrow."
    )
    with sketch("simple-rules", caption, 2, width=5.4, height=3.8) as drawn:
        for ax, (optimizer, experiment) in zip(drawn.axes, EXPERIMENTS.items(), strict=True):
            two_point = {name: c.gain for name in _names(experiment) if (c := results.compare(experiment, name)).n}
            x = {name: float(ratio_of(name)) for name in two_point}
            ax.plot(list(x.values()), [d.mean for d in two_point.values()], color=BLUE, label="two points")
            for name, d in two_point.items():
                charts.error_bar(ax, x[name], d, color=BLUE, marker="^")
            others = {name: c.gain for name in _BESIDE if (c := results.compare(experiment, name)).n}
            shown = [*two_point.values(), *others.values()]
            top = max((x for d in shown for x in d.differences), default=0)
            bottom = -0.6 * top if top > 0 else min((x for d in shown for x in d.differences), default=-1)
            if not shown:
                charts.say_if_empty(ax)
            for place, (name, d) in enumerate(others.items()):
                color, marker = _BESIDE[name]
                if d.mean < bottom:
                    ax.plot(2.3 + 0.28 * place, bottom, "v", color=color)
                    ax.annotate(number(d.mean, 1), (2.3 + 0.28 * place, bottom), (0, 7),
                                textcoords="offset points", ha="center", fontsize=8)  # fmt: skip
                else:
                    charts.error_bar(ax, 2.3 + 0.28 * place, d, color=color, marker=marker)
            ax.axvline(2.13, color=GREY, linewidth=0.8)
            ax.axhline(0, color="black", linewidth=1)
            ratios = [1.1, 1.3, 1.5, 1.75, 2.0]
            places = [2.3 + 0.28 * i for i in range(len(others))]
            names = [_SHORT.get(name, name) for name in others]
            ax.set_xticks([*ratios, *places], [*(f"{k:g}" for k in ratios), *names], fontsize=8)
            ax.set(
                title=optimizer,
                xlabel="jump ratio of two points | other ways",
                ylabel="difference to plain, percentage points",
                ylim=(bottom - 0.1 * abs(top - bottom), top + 0.12 * abs(top - bottom)),
            )
    return drawn.figure


def _table(results: Results) -> Table:
    columns, cells = ["way"], {name: [name_of(name)] for name in (*_names(EXPERIMENTS["SGD"]), *_BESIDE)}
    for optimizer, experiment in EXPERIMENTS.items():
        columns += [f"{optimizer}: seeds", "difference to plain", "difference to the network"]
        for name, row in cells.items():
            c = results.compare(experiment, name)
            beside = results.compare(experiment, name, "introspection").gain
            row += [complete(c.n, c.foreseen), interval(c.gain), NONE if name == "introspection" else interval(beside)]
    caption = (
        "Final test accuracy on MNIST_3, in percentage points with 95 % intervals. Two points "
        "take one snapshot instead of three; EMA (0.999) and lookahead (5 steps, 0.5) have no jumps."
    )
    return Table(columns, list(cells.values()), caption)


def best_two_point(results: Results, experiment: str) -> Comparison | None:
    """Returns the two-point rule with the best final test accuracy, compared with the network."""
    found = [c for name in _names(experiment) if (c := results.compare(experiment, name)).n]
    if not found:
        return None
    best = max(found, key=lambda c: c.gain.mean)
    return results.compare(experiment, best.arm.name, "introspection")


def _answer(results: Results, optimizer: str) -> Claim | None:
    experiment = EXPERIMENTS[optimizer]
    best = best_two_point(results, experiment)
    if best is None or not best.n:
        return None
    how = {1: "better than", 0: "neither clearly better nor clearly worse than", -1: "worse than"}
    beside = [
        f"{name_of(name)} {interval(c.gain)}"
        for name in ("average", "ema", "lookahead")
        if (c := results.compare(experiment, name, "introspection")).n
    ]
    words = (
        f"The best of {len(_names(experiment))} two-point rules ({name_of(best.arm.name)}) is "
        f"{how[verdicts.sign(best.gain)]} the network: {interval(best.gain)} percentage points of final test accuracy, "
        f"{PICKED}"
    )
    words += f"; against the network, {listed(beside)}." if beside else "."
    return Claim(
        f"Does a simpler rule do as well as the network? ({optimizer})", words, seeds=seeds(best.n, best.foreseen)
    )
