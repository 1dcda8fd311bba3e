"""Tables of the report, as Markdown, each computed from the results."""

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from . import language, language_evolution, results, statistics
from ._config import Claim, Experiment, Study
from .results import FOLDER, Results
from .statistics import Difference

_DASH, _MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"
WAYS = {"plain": "plain", "introspection": "network", "two-point-1.3": "two points, 1.3"}


class Report:
    """The results in a folder, each read once, and the records of their experiments.

    Args:
      experiments: the records, by name.
      folder: the folder of results.
    """

    def __init__(self, experiments: Mapping[str, Study], folder: Path = FOLDER):
        self.experiments, self.folder = experiments, folder
        self._read: dict[str, Results] = {}

    def read(self, name: str) -> Results:
        """Returns the newest results of an experiment: those of version 0.1 are named so where there are others."""
        name = self.newest(name)
        if name not in self._read:
            self._read[name] = results.read(name, self.folder)
        return self._read[name]

    def newest(self, name: str) -> str:
        """Returns the name of the newest results of an experiment."""
        return name if name in results.names(self.folder) else f"{name}-v0.1"

    def measured(self, name: str) -> bool:
        """Returns whether there are results of an experiment."""
        return self.newest(name) in results.names(self.folder)

    def label(self, experiment: str, arm: str) -> str:
        """Returns the label of an arm, or its name if the record doesn't have it any more."""
        record = self.experiments.get(experiment)
        arms = record.arms if isinstance(record, Experiment) else ()
        return next((a.label for a in arms if a.name == arm), arm)

    def trainings(self) -> list[Experiment]:
        """Returns the comparisons of trainings that there are results of, in the order of the registry."""
        return [e for e in self.experiments.values() if isinstance(e, Experiment) and self.measured(e.name)]


def claims(experiment: Experiment) -> tuple[Claim, ...]:
    """Returns the claims of the paper on an experiment: that of its jumps first, if the paper gives figures."""
    paper = experiment.paper
    if paper is None or paper.plain is None or paper.jumps is None:
        return experiment.claims
    share = paper.jumps_steps / paper.plain_steps if paper.jumps_steps and paper.plain_steps else None
    points = 100 * (paper.jumps - paper.plain)
    first = Claim("jumps of the network help", experiment.jumps, points=points, share=share)
    return first, *experiment.claims


def plain_of(found: Results, arm: str) -> str:
    """Returns the arm without jumps or averaging that an arm is to be compared with."""
    arms = found.info["arms"]

    def settings(name: str) -> tuple[Any, ...]:
        own = arms[name]
        decays = own.get("decay", "none") not in ("none", "inverse")
        return own.get("optimizer"), own.get("rate"), own.get("decay"), own["steps"] if decays else None

    ways: list[str] = [name for name, own in arms.items() if own["forecaster"] is None and not own.get("averaging")]
    return next((name for name in ways if settings(name) == settings(arm)), ways[0])


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a Markdown table; the first column is aligned to the left."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def interval(found: Difference, digits: int = 2) -> str:
    """Returns a mean with its interval, in words for Markdown."""
    if math.isnan(found.mean):
        return _DASH
    low, high = found.interval
    limits = "" if math.isinf(low) else f" [{low:+.{digits}f}, {high:+.{digits}f}]"
    return re.sub(r"[+-](?=0(\.0+)?\b(?!\.))", "", f"{found.mean:+.{digits}f}{limits}").replace("-", _MINUS)


def _share(value: float) -> str:
    return _DASH if math.isnan(value) else "not reached" if math.isinf(value) else f"{value:.2f}"


def _summary(report: Report) -> str:
    rows = []
    for e in report.experiments.values():
        if not isinstance(e, Experiment) or e.jumps not in {arm.name for arm in e.arms}:
            continue
        claim = next((c for c in claims(e) if c.arm == e.jumps and c.against == "plain"), None)
        paper = _paper(e)
        if not report.measured(e.name):
            rows.append([e.title, *[_DASH] * 5, paper, "open: not run", _DASH])
            continue
        found = report.read(e.name)
        plain = plain_of(found, e.jumps)
        rows.append([
            e.title,
            str(len(statistics.pairs(found, e.jumps, plain))),
            f"{statistics.final(found, plain, e.jumps):.2f}",
            f"{statistics.final(found, e.jumps, plain):.2f}",
            interval(statistics.difference(found, e.jumps, plain)),
            _share(statistics.share_of_steps(found, e.jumps, plain)),
            paper,
            _DASH if claim is None else f"**{statistics.verdict(found, claim)}**",
            found.version,
        ])  # fmt: skip
    header = ("experiment", "seeds", "plain, %", "jumps, %", "difference", "steps", "the paper", "verdict", "version")
    return table(header, rows)


def _paper(e: Experiment) -> str:
    paper = e.paper
    if paper is None:
        return _DASH
    accuracy = f"{100 * paper.plain:.2f} → {100 * paper.jumps:.2f}" if paper.plain and paper.jumps else ""
    steps = f"steps {paper.jumps_steps / paper.plain_steps:.2f}" if paper.jumps_steps and paper.plain_steps else ""
    return ", ".join(part for part in (accuracy, steps) if part) or _DASH


def _claims(report: Report) -> str:
    rows = []
    for e in report.trainings():
        found = report.read(e.name)
        for claim in e.claims:
            if not {claim.arm, claim.against} <= found.info["arms"].keys():
                continue
            measure = statistics.steadiness if claim.measure == "steadiness" else statistics.difference
            difference = measure(found, claim.arm, claim.against)
            here = interval(difference)
            if claim.expects == "collapse":
                here = f"at most {statistics.deepest_fall(found, claim.arm, claim.against):.1f} below plain"
            arms = f"{report.label(e.name, claim.arm)} less {report.label(e.name, claim.against)}"
            verdict = f"**{statistics.verdict(found, claim)}**"
            rows.append([f"{e.title}: {claim.text}", arms, str(len(difference.values)), here, verdict, found.version])
    return table(("claim", "compared", "seeds", "difference", "verdict", "version"), rows)


def _arms(report: Report, name: str) -> str:
    found, rows = report.read(name), []
    for arm in found.info["arms"]:
        if not (curves := found.curves(arm)):
            continue
        plain, best = plain_of(found, arm), [100 * float(c["test_accuracy"].max()) for c in curves.values()]
        steps, final = next(iter(curves.values()))["step"][-1], statistics.final(found, arm)
        row = [report.label(name, arm), str(len(curves)), f"{steps:.0f}", f"{final:.2f}", f"{np.mean(best):.2f}"]
        if arm == plain:
            rows.append([*row, _DASH, _DASH])
        else:
            share = _share(statistics.share_of_steps(found, arm, plain))
            rows.append([*row, interval(statistics.difference(found, arm, plain)), share])
    return table(("arm", "seeds", "steps", "final, %", "best, %", "difference to plain", "steps to plain's best"), rows)


def best(found: Results, way: str, tail: str, measure: str) -> str:
    """Returns the arm of a way whose learning rate is best by the mean of a measure at the end."""
    arms: list[str] = [arm for arm in found.info["arms"] if re.fullmatch(rf"{re.escape(way)}-{tail}", arm)]
    sign = 1 if measure.endswith("accuracy") else -1
    return max(arms, key=lambda arm: sign * float(np.mean([c[measure][-1] for c in found.curves(arm).values()])))


def _rates(report: Report) -> str:
    rows = []
    for optimizer in ("sgd", "adam"):
        found = report.read(f"mnist_3-rates-{optimizer}")
        tuned = {way: best(found, way, "x.*", "test_accuracy") for way in WAYS}
        for way, label in WAYS.items():
            arm = tuned[way]
            against = _DASH if way == "plain" else interval(statistics.difference(found, arm, tuned["plain"]))
            own = found.info["arms"][arm]
            decay = "constant" if own["decay"] == "none" else own["decay"]
            accuracy = f"{statistics.final(found, arm):.2f}"
            rows.append([f"{optimizer.upper() if optimizer == 'sgd' else 'Adam'}, {label}",
                         f"x {own['rate']:g}, {decay}", accuracy, against])  # fmt: skip
    return table(("MNIST_3", "best learning rate", "final, %", "difference to tuned plain"), rows)


def _budgets(report: Report) -> str:
    rows = []
    for name in ("mnist_3-budgets", "he-budgets"):
        found = report.read(name)
        for budget in sorted({arm["steps"] for arm in found.info["arms"].values()}):
            accuracy, loss = (
                [best(found, way, f"{budget}-x.*", measure) for way in ("introspection", "plain")]
                for measure in ("test_accuracy", "train_loss")
            )
            ends = [(a["train_loss"][-1], b["train_loss"][-1]) for a, b in statistics.pairs(found, *loss)]
            ratio = Difference(tuple(math.log(max(a, 1e-12) / max(b, 1e-12)) for a, b in ends))
            low, high = np.exp(ratio.interval)
            rows.append([
                f"{report.experiments[name].title}, {budget} steps",
                *(f"{statistics.final(found, arm):.2f}" for arm in reversed(accuracy)),
                interval(statistics.difference(found, *accuracy)),
                f"{math.exp(ratio.mean):.2g} [{low:.2g}, {high:.2g}]",
            ])  # fmt: skip
    header = ("budget", "plain, %", "jumps, %", "difference", "training loss, times plain's")
    return table(header, rows)


def _predictors(report: Report) -> str:
    fits, rows = report.read("predictors"), []
    trained = {o: report.read(f"mnist_3-predictors-{o}") for o in ("sgd", "adam")}
    for i, arm in enumerate(fits.columns["arm"]):
        own = fits.info["arms"][arm]
        gains = [interval(statistics.difference(found, f"fitted-{arm}", "plain")) for found in trained.values()]
        errors = [f"{fits.columns[name][i]:.3f}" for name in ("validation_l1", "staying_l1", "rule_l1")]
        rows.append([f"{arm} (to {own['jump_ratio']:g}t)", *errors, f"{fits.columns['explained'][i]:.3f}", *gains])
    header = ("predictor", "error", "no change", "linear rule", "explained", "gain, SGD", "gain, Adam")
    return table(header, rows)


def _layers(report: Report) -> str:
    rows = []
    for name in ("mnist_3-layers", "mnist_1-layers"):
        found = report.read(name)
        for arm in list(found.info["arms"])[1:]:
            loss = interval(statistics.relative(found, arm, "plain", "test_loss"), 0)
            gain = interval(statistics.difference(found, arm, "plain"))
            network = found.info["settings"]["network"]
            rows.append([f"{network}, {report.label(name, arm)}", str(len(found.curves(arm))), gain, loss])
    return table(("weights that jump", "seeds", "difference to plain", "test loss, %"), rows)


def _batch_norm(report: Report) -> str:
    rows = []
    for name in ("cifar_1-tenth", "cifar_1"):
        found, arm = report.read(name), "introspection-set-3"
        jumps = found.info["arms"][arm]["jump_steps"]
        for after in (*found.info["settings"]["after_jump"], None):
            change: list[float] = []
            for curve in found.curves(arm).values():
                steps = [curve["step"][-1]] if after is None else [jump + after for jump in jumps]
                here = np.isin(curve["step"], steps)
                change.append(
                    100 * float(np.mean((curve["recalibrated_test_accuracy"] - curve["test_accuracy"])[here]))
                )
            when = "at the end" if after is None else f"{after} step{'s' * (after > 1)} after a jump"
            rows.append([report.experiments[name].title, when, interval(Difference(tuple(change)))])
    return table(("experiment", "evaluated", "accuracy, recalibrated less running statistics"), rows)


def _movement(report: Report) -> str:
    rows = []
    for name in ("movement", "movement-cifar10"):
        found, c = report.read(name), report.read(name).columns
        for arm, own in found.info["arms"].items():
            mine = c["arm"] == arm
            half = c["value"][mine & (c["measure"] == "difference") & (c["quantity"] == "share")]
            still = c["value"][mine & (c["quantity"] == "unmoved")]
            seeds = str(len(half))
            title = f"{own['network']}, {'SGD' if own['optimizer'] == 'sgd' else 'Adam'}"
            rows.append([title, seeds, f"{100 * half.mean():.1f}", f"{100 * still.mean():.1f}"])
    return table(("training", "seeds", "weights that make half of all change, %", "weights that never move, %"), rows)


def language_arms(found: Results, steps: int) -> dict[str, str]:
    """Returns the arm of each way to train a language model for so many steps, plain first; of those measured.

    Variants of a training are left out.
    """
    arms = {its.way: its.name for its in _alike(found) if its.steps == steps}
    return {way: arms[way] for way in language.WAYS if way in arms}


def language_budgets(found: Results) -> list[int]:
    """Returns the numbers of steps that were measured, but for variants of a training."""
    return sorted({its.steps for its in _alike(found)})


def _alike(found: Results) -> list[language.Training]:
    return [its for its in language.MEASURED if its.name in found.info["arms"] and not its.variation()]


def _language(report: Report) -> str:
    found = report.read("language")
    budgets = language_budgets(found)
    plain = {n: found.curves(language_arms(found, n)["plain"]) for n in budgets}
    rows = []
    for steps in budgets:
        arms = language_arms(found, steps)
        for way, arm in arms.items():
            row = [f"{steps}, {language.WAYS[way].label}", *_chosen(report, arm)]
            if way == "plain":
                rows.append([*row, _DASH, _DASH])
            else:
                shares = []
                for seed, curve in found.curves(arm).items():
                    ends = {n: of_seed[seed]["loss"][-1] for n, of_seed in plain.items() if seed in of_seed}
                    if len(ends) > 1:
                        shares.append(statistics.share_of_budget(ends, curve["loss"][-1], steps))
                share = statistics.Difference(tuple(shares))
                low, high = share.interval
                change = interval(_against(found, arm, arms["plain"]))
                rows.append([*row, change, f"{share.mean:.2f} [{low:.2f}, {high:.2f}]"])
    return table(("steps, way", *_CHOSEN, "difference to plain, %", "share of plain's steps"), rows)


def _language_variants(report: Report) -> str:
    found, rows, ways = report.read("language"), [], list(language.WAYS)
    for training in sorted(language.MEASURED, key=lambda its: (str(its.variation()), ways.index(its.way))):
        if training.until == 1.0 and training.variation() and training.name in found.info["arms"]:
            plain = _same(training, way="plain").name
            change = _DASH if training.way == "plain" else interval(_against(found, training.name, plain))
            rows.append([_words(training), *_chosen(report, training.name), change])
    return table(("training", *_CHOSEN, "difference to plain, %"), rows)


def _language_until(report: Report) -> str:
    found, rows = report.read("language"), []
    for training in language.MEASURED:
        if training.until < 1.0 and training.name in found.info["arms"]:
            others = _same(training, way="plain", until=1.0).name, _same(training, until=1.0).name
            changes = [interval(_against(found, training.name, other)) for other in others]
            rows.append([_words(training), *_chosen(report, training.name), *changes])
    return table(("training", *_CHOSEN, "difference to plain, %", "difference to jumps up to the end, %"), rows)


def _same(training: language.Training, **changed: Any) -> language.Training:
    """Returns the measured training that differs in what is given, and maybe in how it was tuned."""
    free: dict[str, Any] = {"rate": training.rate, "b1": training.b1, "seeds": training.seeds}
    wanted = dataclasses.replace(training, **changed)
    (found,) = (other for other in language.MEASURED if dataclasses.replace(other, **free) == wanted)
    return found


def _against(found: Results, arm: str, other: str) -> statistics.Difference:
    return statistics.relative(found, arm, other, "loss")


_CHOSEN = ("tries", "chosen rate", "seeds", "loss, nats a byte")
_VARIANTS: dict[str, Callable[[float], str]] = {
    "until": lambda share: f"jumps in the first {100 * share:.0f} %",
    "decay": lambda share: "constant rate" if share == 0 else f"rate falls in the last {100 * share:.0f} %",
    "batch_size": lambda size: f"batches of {size}",
    "width": lambda width: f"width {width}",
}


def _words(training: language.Training) -> str:
    words = ", ".join(_VARIANTS[key](value) for key, value in training.variation().items())
    return f"{training.steps} steps, {words}: {language.WAYS[training.way].label}"


def _chosen(report: Report, arm: str) -> list[str]:
    """Returns the number of settings that a training was chosen from, the one that was chosen, and its loss."""
    found, tuning = report.read("language"), report.read("language-tuning")
    own = found.info["arms"][arm]
    (training,) = (training for training in language.MEASURED if training.name == arm)
    tries = sum(other.name in tuning.info["arms"] for other in language.tries(training))
    rate = f"{own['rate']:g}" + (f", b1 {own['b1']:g}" if own["way"] == "plain" else "")
    losses = [curve["loss"][-1] for curve in found.curves(arm).values()]
    return [str(tries), rate, str(len(losses)), f"{np.mean(losses):.3f}"]


def _language_periods(report: Report) -> str:
    tuning, rows = report.read("language-tuning"), []
    for way in ("plain", *(f"nesterov-{period}-0.8-0.75" for period in language.PERIODS)):
        tries = language.tries(language.Training(way, 1500, rate=0.0))
        losses = {its: tuning.curve(its.name, 0)["loss"][-1] for its in tries if its.name in tuning.info["arms"]}
        best = min(losses, key=losses.__getitem__)
        rows.append([language.WAYS[way].label, str(len(losses)), f"{best.rate:g}", f"{losses[best]:.3f}"])
    return table(("1500 steps", "tries", "chosen rate", "loss, nats a byte"), rows)


def _language_predictors(report: Report) -> str:
    found, tuning = report.read("language-predictors"), report.read("language-tuning")

    def loss(way: str) -> str:
        curve = tuning.curves(f"{way}-3000-0.008").get(0)
        if curve is None:
            return _DASH
        return f"{curve['loss'][-1]:.3f}" if math.isfinite(curve["loss"][-1]) else "not finite"

    gains = (1, 2, 4)
    rows = [["AdamW alone", _DASH, _DASH, loss("plain"), _DASH, _DASH]]
    for i, arm in enumerate(found.columns["arm"]):
        own = found.info["arms"][arm]
        errors = [f"{found.columns[name][i]:.3f}" for name in ("validation_l1", "staying_l1")]
        losses = [loss(f"learned-{own['period']}-{own['target']}-x{gain}") for gain in gains]
        rows.append([f"{own['target']}, every {own['period']}", *errors, *losses])
    return table(("predictor", "error", "no change", *(f"loss, x {gain}" for gain in gains)), rows)


def _language_evolution(report: Report) -> str:
    c = report.read("language-evolution-compared").columns
    losses = {way: c["loss"][c["way"] == way] for way in dict.fromkeys(c["way"])}
    plain, rows = losses["AdamW"], []
    for way, own in losses.items():
        change = statistics.Difference(tuple((100 * (own / plain - 1)).tolist()))
        rate = f"{c['rate'][c['way'] == way][0]:.2g}"
        rows.append([way, rate, str(len(own)), f"{own.mean():.3f}", _DASH if way == "AdamW" else interval(change)])
    return table(("way", "rate", "seeds", "loss, nats a byte", "difference to AdamW, %"), rows)


def _language_coefficients(report: Report) -> str:
    c = report.read("language-evolution").columns
    names = [(name, half) for name in ("eta", "mu", "factor") for half in language_evolution.HALVES]
    tuned = {name: way for way, (_, free) in language_evolution.TUNED.items() for name in free}

    def last(name: str, half: str, kind: str) -> str:
        return f"{c[f'{name}_{half}_{kind}'][c['tuned'] == tuned[name]][-1]:.2f}"

    rows = [[kind, *(last(*name, kind) for name in names)] for kind in language_evolution.KINDS]
    return table(("arrays", *map(", ".join, names)), rows)


def _precision(report: Report) -> str:
    c, rows = results.read("precision", report.folder).columns, []
    for run, dtype, kept in dict.fromkeys(zip(c["run"], c["dtype"], c["kept"], strict=True)):
        own = (c["run"] == run) & (c["dtype"] == dtype) & (c["kept"] == kept)
        points = 100 * (c["accuracy"] - c["accuracy_float32"])[own]
        worst = points[np.argmax(np.abs(points))]
        rows.append(
            [f"{run}, {dtype}, {kept}", f"{100 * c['error'][own].max():.2f}", f"{worst:+.2f}".replace("-", _MINUS)]
        )
    return table(("snapshots", "largest error, % of the jump", "largest change of accuracy, points"), rows)


TABLES: dict[str, Callable[..., str]] = {
    "summary": _summary, "claims": _claims, "arms": _arms, "rates": _rates, "budgets": _budgets,
    "predictors": _predictors, "layers": _layers, "batch-norm": _batch_norm,
    "movement": _movement, "language": _language, "language-variants": _language_variants,
    "language-until": _language_until,
    "language-periods": _language_periods,
    "language-predictors": _language_predictors, "language-evolution": _language_evolution,
    "language-coefficients": _language_coefficients, "precision": _precision,
}  # fmt: skip
