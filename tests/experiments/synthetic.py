"""Results of all experiments, made up: plausible curves under the real names, without any training."""

import dataclasses
import json
import math
import zlib
from pathlib import Path

import numpy as np

from experiments import fits, movement
from experiments.records import Training
from experiments.table import EXPERIMENTS

VERSIONS = {"jax": "0.10.2", "optax-introspect": "0.1.0"}
COMMON = {"images": "original files", "versions": VERSIONS, "machine": "a machine, 1 core a run"}
GAINS = {"introspection": 0.3, "two-point": 0.28, "fitted": 0.32, "quadratic": -3.0, "linear-fit": 0.02, "noise": 0.0,
         "ema": -0.02, "lookahead": -0.05, "average": -0.8, "all": 0.3, "biases": 0.05}  # fmt: skip


def write(folder, names=tuple(EXPERIMENTS), seeds=None, every=None):
    """Writes results of some experiments and seeds; `every` makes evaluations fewer than in the record."""
    for name in names:
        experiment = EXPERIMENTS[name]
        for arm in experiment.arms:
            for seed in arm.seeds if isinstance(experiment, Training) else experiment.seeds:
                if seeds is None or seed in seeds:
                    lines, branch = _lines(experiment, arm, seed, every)
                    write_run(folder, experiment, arm, seed, lines, {"branch": branch})


def write_run(folder, experiment, arm, seed, lines, changes, end="complete"):
    """Writes one run; `changes` are to its header."""
    header = {"experiment": experiment.name, "arm": dataclasses.asdict(arm), "seed": seed, **COMMON}
    header["images"] = f"original files of {experiment.data}"
    if isinstance(experiment, Training):
        header |= experiment.settings()
        header["arm"]["seeds"] = None
        header["forecaster"] = arm.forecaster and f"digest of {arm.forecaster}"
    elif isinstance(experiment, fits.Fits):
        header["steps"] = [fits.STEPS, fits.RECORD_EVERY, fits.NUM_EXAMPLES, fits.FIT_STEPS]
    else:
        header |= arm.settings()
    path = Path(folder) / experiment.name / arm.name / f"seed-{seed}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = [{"header": header | changes}, *lines, {"end": end}]
    path.write_text("".join(json.dumps(line) + "\n" for line in whole))
    return path


def line(step, accuracy, seconds=None, loss=None):
    """Returns an evaluation."""
    loss = 3 * (1 - accuracy) if loss is None else loss
    return {
        "step": step, "seconds": step / 500 if seconds is None else seconds, "train_loss": loss / 2,
        "train_accuracy": (1 + accuracy) / 2, "test_loss": loss, "test_accuracy": accuracy,
        "calibrated_loss": 0.8 * loss, "temperature": 1.3,
    }  # fmt: skip


def _lines(experiment, arm, seed, every):
    if isinstance(experiment, fits.Fits):
        return _fit(arm), None
    if isinstance(experiment, movement.Movement):
        return _movement(arm, seed), None
    around = {*arm.jump_steps, *experiment.around}
    steps = {*range(0, arm.steps + 1, every or experiment.every), arm.steps}
    steps |= {t for t in around if t <= arm.steps} | {t + a for t in around for a in experiment.after_jump}
    branch = {"arm": experiment.trunk_of(arm).name, "step": arm.jump_steps[0]} if arm.jump_steps else None
    steps = sorted(step for step in steps if step <= arm.steps and (branch is None or step > branch["step"]))
    name = f"{experiment.name} {arm.name}"
    random = np.random.default_rng([seed, zlib.crc32(name.encode())])
    # A power law of the error, of which each jump takes a part for good, after a while of being worse.
    level = 0.08 * arm.rate ** (-0.3 if arm.decay == "none" else -0.2) * (1 + 0.02 * seed)
    level *= 3.0 if experiment.data == "cifar10" else 0.2 if experiment.network != "MNIST_3" else 1.0
    share = next((g for begin, g in GAINS.items() if (arm.forecaster or arm.averaging or "").startswith(begin)), 0.0)
    share *= {"all": 1.0, "biases": 0.1}.get(arm.leaves, 0.5) / max(1, len(arm.jump_steps)) ** 0.5 / max(1, arm.rate)
    lines = []
    for step in steps:
        error = level * (1 + 40 * math.exp(-step / 150)) * (step / 10_000 + 0.05) ** -0.4
        error *= 0.5 if arm.decay == "cosine" and step == arm.steps else 1.0
        for jump in arm.jump_steps:
            since = step - jump
            if since > 0:
                error *= (1 - share) ** (1 - math.exp(-since / 300)) * (1 + 0.8 * math.exp(-since / 60))
        error = min(0.902, error * (1 + 0.01 * random.normal()))
        made = line(step, round(1 - error, 4))
        made["test_loss"] *= 1 + 0.3 * share
        made["train_loss"] = error * (step + 100) ** -0.2
        made["temperature"] += share
        if experiment.network == "CIFAR_1" and (step == arm.steps or _is_after(step, around, experiment.after_jump)):
            # Running statistics are worse for some steps after a jump.
            stale = max((math.exp((t - step) / 20) for t in arm.jump_steps if t < step), default=0.0)
            error *= (1 - 0.2 * stale) * (1 + 0.001 * random.normal())
            again = line(step, 1 - error, loss=3 * error * (1 + 0.3 * share))
            made |= {f"recalibrated_{name}": x for name, x in again.items() if name not in ("step", "seconds")}
        lines.append(made)
    return lines, branch


def _is_after(step, jumps, after):
    return any(step - jump in (0, *after) for jump in jumps)


def _fit(fit):
    came = np.linspace(-8, 8, 41)
    moved = {"linear": 0.5 * came}.get(fit.name, 0.5 * came - 0.002 * came**3)
    made = [
        {"came": x, "weights": 1000, "moved": [y - 0.3, y, y + 0.3], "truth": [0.4 * x - 2, 0.4 * x, 0.4 * x + 2]}
        for x, y in zip(came.tolist(), moved.tolist(), strict=True)
    ]
    digits = zlib.crc32(fit.name.encode()) % 100 / 500
    return [
        {"train_l1": 4.3 + digits, "validation_l1": 4.4 + digits, "staying_l1": 5.1, "two_point_l1": 4.45},
        {"points": [0.7, 0.4, 0.0], "coefficients": [-0.2, -0.3, 0.01], "constant_x1000": 0.0, "explained": 0.9,
         "rule_l1": 4.5 + digits, "displacement_x1000": 2.5},
        *made,
    ]  # fmt: skip


def _movement(recorded, seed):
    random = np.random.default_rng(seed)
    steps = list(range(0, recorded.steps + 1, recorded.every))
    values = random.laplace(size=20_000) * 0.02
    lines = []
    for name, of in (("difference", values), ("deviation", np.abs(values))):
        counts, edges = np.histogram(of, movement.BINS)
        lines.append({"histogram": name, "low": edges[0], "high": edges[-1], "counts": counts.tolist()})
        lines.append({"share_of": name, "share": movement.carrying_half(of), "weights": len(of)})
    lines.append({"unmoved": 0.125})
    if seed > 0:
        return lines
    for weight in range(40):
        difference = 0.2 * (weight - 20) / 20
        plain = [difference * (1 - math.exp(-step / 5000)) for step in steps]
        jumps = [difference * (1 - math.exp(-(step + 3000 * (step > 6000)) / 5000)) for step in steps]
        measures = {"difference": difference, "deviation": abs(difference) / 2}
        bins_of = "difference" if weight % 2 else "deviation"
        lines.append({"weight": weight, "bins_of": bins_of, **measures, "plain": plain, "jumps": jumps})
    return [*lines, {"steps": steps}]
