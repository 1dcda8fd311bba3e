"""What makes a predictor good: its error, the linear rule that is nearest to it, and what it does on MNIST_3."""

import numpy as np

from ...figures import BLACK, BLUE, GREEN, GREY, ORANGE
from ...fits import FITS, Fit
from ...runs import Run
from .. import charts, claims, verdicts
from ..blocks import Block, Claim, Figure, Section, Table, sketch
from ..results import Results, training
from ..statistics import Comparison, mean
from ..wording import NONE, complete, interval, number, percent, seeds, signed
from .common import section

_FITS = "predictors"
_TRAINED = {"SGD": "mnist_3-predictors-sgd", "Adam": "mnist_3-predictors-adam"}
_DRAWN = {"l1": (ORANGE, "-", "s"), "linear": (BLUE, "--", "^"), "equivariant": (GREEN, "-.", "D")}


def predictors(results: Results) -> Section:
    """Returns the section on predictors."""
    fitted = {fit.name: runs[0] for fit in FITS if (runs := results.of(_FITS, fit.name))}
    found: list[Claim] = []
    for optimizer, name in _TRAINED.items():
        for claim in (claims.best_loss(results, name), _steadier(results, name)):
            found.append(Claim(f"{claim.claim} (MNIST_3, {optimizer})", claim.words, claim.keyword, claim.seeds))
    found += [answer for answer in (_form(results), _linearity(fitted)) if answer]
    blocks: list[Block] = []
    if fitted:
        blocks.append(_errors(fitted))
    if any(name in fitted for name in _DRAWN):
        blocks.append(_displacements(fitted))
    if any(results.progress(name)[0] for name in _TRAINED.values()):
        blocks += [_gains(results), _trained(results)]
    return section(results, "What makes a predictor good", [_FITS, *_TRAINED.values()], found, blocks)


def _steadier(results: Results, name: str) -> Claim:
    return claims.steadier(results, name, "fitted-l1", "fitted-k2.2")


def _errors(fitted: dict[str, Run]) -> Table:
    rows = []
    for fit in FITS:
        if fit.name not in fitted:
            continue
        error, rule = fitted[fit.name].lines[:2]
        by_point = dict(zip(rule["points"], rule["coefficients"], strict=True))
        rows.append(
            [
                fit.name,
                _described(fit),
                number(error["train_l1"], 3),
                number(error["validation_l1"], 3),
                number(error["staying_l1"], 3),
                number(error["two_point_l1"], 3),
                percent(rule["explained"], 1),
                *(signed(by_point[point], 3) if point in by_point else NONE for point in (0.7, 0.4, 0.0)),
                number(rule["rule_l1"], 3),
            ]
        )
    columns = (
        "predictor", "what it is", "train L1", "validation L1", "staying", "two points, 1.3",
        "explained by a linear rule, %", "w at 0.7t", "w at 0.4t", "w at 0", "L1 of that rule",
    )  # fmt: skip
    caption = (
        "Mean absolute errors of forecasts, weights times 1000; the paper's: 3.1 on training and 3.4 on validation "
        "examples. Staying: the weight stays as it is. The linear rule is the nearest to what the predictor does on "
        "validation examples: the coefficients are of the differences of that point to `w_t`. Errors are comparable "
        "only for the same jump ratio and the same history."
    )
    return Table(columns, rows, caption, words=2)


def _described(fit: Fit) -> str:
    form = "differences to w_t, no biases" if fit.equivariant else "weights as they are"
    return f"k = {fit.jump_ratio:g}, {fit.loss}, {fit.activation}, {form}, N_0 {fit.history}"


def _displacements(fitted: dict[str, Run]) -> Figure:
    caption = (
        "How far weights are forecast to move, by how far they have come since 0.4t: medians of each predictor, and "
        "the median and quartiles of how far they really moved."
    )
    shown = [name for name in _DRAWN if name in fitted]
    with sketch("predictors-displacement", caption, 1, width=6, height=4.4) as drawn:
        (ax,) = drawn.axes
        lines = fitted[shown[0]].lines[2:]
        came = [line["came"] for line in lines]
        truth = np.array([line["truth"] for line in lines])
        ax.fill_between(came, truth[:, 0], truth[:, 2], color=GREY, alpha=0.25, linewidth=0, label="truth, quartiles")
        ax.plot(came, truth[:, 1], color=BLACK, linewidth=1, label="truth, median")
        for name in shown:
            color, style, marker = _DRAWN[name]
            lines = fitted[name].lines[2:]
            x, y = [line["came"] for line in lines], [line["moved"][1] for line in lines]
            ax.plot(x, y, color=color, linestyle=style, marker=marker, markevery=4, markersize=4, label=name)
        ax.set(xlabel="w_t - w_0.4t, times 1000", ylabel="displacement from w_t, times 1000")
        ax.legend(fontsize=9)
    return drawn.figure


def _compared(results: Results, name: str) -> list[Comparison]:
    return [c for c in claims.comparisons(results, name) if c.curves or c.not_finite]


def _gains(results: Results) -> Figure:
    caption = "Final test accuracy on MNIST_3 with each predictor less that of plain training; bars are 95 % intervals."
    count = len(training(_TRAINED["SGD"]).arms) - 1
    with sketch("predictors-gain", caption, 2, width=4.8, height=0.26 * count + 1) as drawn:
        for ax, (optimizer, name) in zip(drawn.axes, _TRAINED.items(), strict=True):
            rows = {c.arm.name.removeprefix("fitted-"): c.gain for c in _compared(results, name)}
            charts.dots(ax, rows, "difference to plain, percentage points")
            ax.set_title(optimizer)
    return drawn.figure


def _trained(results: Results) -> Table:
    columns = ["predictor"]
    cells: dict[str, list[str]] = {fit.name: [fit.name] for fit in FITS}
    for optimizer, name in _TRAINED.items():
        columns += [f"{optimizer}: seeds", "final, %", "difference to plain", "unsteadiness"]
        for fit in FITS:
            c = results.compare(name, f"fitted-{fit.name}")
            since = c.arm.jump_steps[0]
            cells[fit.name] += [
                complete(len(c.curves), c.foreseen, c.not_finite),
                percent(mean([curve.final("test_accuracy") for curve in c.curves])),
                interval(c.gain),
                number(mean([curve.unsteadiness(since) for curve in c.curves])),
            ]
    caption = (
        "MNIST_3 with jumps by each predictor. Unsteadiness: the mean absolute change of test accuracy from one "
        "evaluation to the next since the first jump, in percentage points."
    )
    return Table(columns, list(cells.values()), caption)


def _form(results: Results) -> Claim | None:
    """Answers whether the equivariant network is as good as the paper's, by the fits of the same history."""
    told, n = [], 0
    for optimizer, name in _TRAINED.items():
        c = results.compare(name, "fitted-equivariant", "fitted-l1")
        if c.n:
            how = {1: "better", 0: "neither clearly better nor clearly worse", -1: "worse"}[verdicts.sign(c.gain)]
            told.append(f"{optimizer}: {how}, by {interval(c.gain)} percentage points of final test accuracy")
            n = max(n, c.n)
    if not told:
        return None
    title = "Is a network on differences, without biases, as good as the paper's?"
    foreseen = len(training(_TRAINED["SGD"]).seeds)
    return Claim(title, "; ".join(told) + ".", seeds=seeds(n, foreseen))


def _linearity(fitted: dict[str, Run]) -> Claim | None:
    told = []
    for name in ("l1", "equivariant"):
        if name in fitted:
            error, rule = fitted[name].lines[:2]
            added = round(rule["rule_l1"], 3) - round(error["validation_l1"], 3)
            rest = "makes it better" if added > 0 else "makes it worse" if added < 0 else "doesn't change it"
            told.append(
                f"of {name} it explains {percent(rule['explained'], 1)} % of the variance of how far weights are "
                f"moved, its L1 is {number(rule['rule_l1'], 3)} and the network's "
                f"{number(error['validation_l1'], 3)}: what is not linear {rest}"
            )
    if not told:
        return None
    words = f"By the nearest fixed linear rule: {'; '.join(told)}."
    return Claim("How much of the network is a fixed linear rule?", words, seeds="one fit each")
