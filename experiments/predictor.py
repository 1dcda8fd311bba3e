"""From MNIST to the shipped predictors: trains `N_0`, records it, samples, fits, evaluates."""

import dataclasses
import importlib.metadata
import platform
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import optax_introspect as oi
from optax_introspect import WeightHistory

from . import figures
from .data import load
from .networks import ConvNet
from .runs import Context, locked
from .studies import BATCH_SIZE, LEARNING_RATE, Fit, record
from .training import Task

PREDICTORS = {
    Fit("mnist-n0"): "The introspection network of the paper: 4-40-1 with ReLU, forecasts step 2t.",
    Fit("mnist-n0-linear", activation="identity"): "The linear one of the paper: 4-40-1 without ReLU, forecasts 2t.",
    Fit("mnist-n0-k2.2", jump_ratio=2.2): "As mnist-n0, but for a longer jump: forecasts step 2.2t.",
    Fit("mnist-n0-equivariant", equivariant=True): (
        "The default. As mnist-n0, but on differences to the weight now and without biases: 3-40-1 with ReLU,\n"
        "forecasts step 2t. Shifting or scaling the history of a weight shifts or scales its forecast, and a weight\n"
        "that has not moved stays."
    ),
}


def predictor(
    output: Path = Path("runs/checkpoints"),
    workdir: Path = Path("runs/predictor"),
    data_dir: Path | None = None,
    seed: int = 0,
    steps: int = 20_000,
    record_every: int = 100,
    num_examples: int = 800_000,
    fit_steps: int = 30_000,
) -> None:
    """Fits the predictors that the package ships, from nothing but MNIST; takes 6 minutes on two cores.

    Trains N_0 with Adam and records its weights, samples examples of how they evolve, fits four introspection networks,
    evaluates them, and writes each with its model card. Interrupted, it goes on. Run twice, it gives the same bits.

    Args:
      output: gets one folder for each predictor; those of the same names are replaced.
      workdir: the folder for the weight history and for checkpoints.
      data_dir: a folder with the original MNIST files, if you have them.
      seed: seed of everything random.
      steps: updates of N_0.
      record_every: updates from one record of the weights to the next.
      num_examples: examples that are sampled from the history.
      fit_steps: updates of the introspection network.
    """
    sizes = {"steps": steps, "record_every": record_every, "num_examples": num_examples, "fit_steps": fit_steps}
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"{name} must be a positive integer; got {value}")
    for fit in PREDICTORS:
        if (output / fit.name).exists():
            oi.load(output / fit.name)  # refuses to replace what is not a predictor
    console = Console()
    images = load("mnist", data_dir)
    console.print(f"Images: {images.source}")
    about = {"images": images.kind, "seed": seed, **sizes}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with locked(workdir, "another command works on"), Progress(*columns, console=console) as progress:
        bar = progress.add_task("training N_0", total=steps)
        context = Context(workdir, lambda name: images, advance=lambda made: progress.update(bar, advance=made))
        task = Task(ConvNet, images, BATCH_SIZE, seed)
        tx = optax.adam(LEARNING_RATE)
        metadata = {name: about[name] for name in ("images", "seed", "steps", "record_every")}
        history, weights = record(task, tx, steps, record_every, workdir, context, metadata)
    accuracy = task.metrics(weights, task.statistics, 1000)["test_accuracy"]
    console.print(f"N_0 reached {accuracy:.2%} on the test set")
    for fit, summary in PREDICTORS.items():
        fit = dataclasses.replace(
            fit, steps=steps, record_every=record_every, examples=num_examples, fit_steps=fit_steps
        )
        write(fit, summary, history, accuracy, about, output / fit.name, workdir, console)


def write(
    fit: Fit,
    summary: str,
    history: WeightHistory,
    accuracy: float,
    about: dict[str, Any],
    folder: Path,
    workdir: Path,
    console: Console,
) -> None:
    """Fits one predictor, and writes it with its model card and a figure."""
    with console.status(f"{fit.name}: sampling {fit.examples} examples and fitting"):
        fitted = fit.fitted_to(history, workdir / fit.name, about["seed"])
    errors = evaluate(fitted, fit.jump_ratio)
    shutil.rmtree(folder, ignore_errors=True)
    oi.save(fitted.forecaster, folder)
    figures.save(draw_forecasts(fitted), folder / "forecasts.png")
    (folder / "README.md").write_text(model_card(fit, summary, errors, accuracy, about, fitted))
    error, none = errors["this predictor"][1], errors["no change"][1]
    console.print(f"{fit.name}: mean absolute error x 1000 on validation {error:.2f}, of no change {none:.2f}")


def evaluate(fitted: oi.Fit, jump_ratio: float) -> dict[str, tuple[float, float]]:
    """Returns mean absolute errors, times 1000 as in the paper, on training and validation examples."""
    forecasters = {
        "this predictor": fitted.forecaster,
        "no change": None,
        "linear extrapolation, fitted to the 4 points": oi.polynomial(1, jump_ratio),
        "linear extrapolation through the points 1 and 0.4": oi.polynomial(1, jump_ratio, points=(1.0, 0.4)),
        "the same with jump ratio 1.3": oi.polynomial(1, 1.3, points=(1.0, 0.4)),
    }
    both = (fitted.train, fitted.validation)
    return {
        name: (1000 * oi.mean_absolute_error(f, both[0]), 1000 * oi.mean_absolute_error(f, both[1]))
        for name, f in forecasters.items()
    }


def draw_forecasts(fitted: oi.Fit) -> Figure:
    """Draws where validation weights were forecast to go against where they went."""
    examples = fitted.validation
    inputs = [jnp.asarray(column) for column in examples.inputs.T]
    forecast = 1000 * np.asarray(fitted.forecaster(*inputs, key=jax.random.key(0)) - inputs[0])
    truth = 1000 * (examples.targets - examples.inputs[:, 0])
    edge = float(np.quantile(np.abs(truth), 0.998))
    figure = Figure(figsize=(5.2, 4.2), layout="constrained")
    axes = figure.add_subplot()
    extent = (-edge, edge, -edge, edge)
    hexagons = axes.hexbin(truth, forecast, gridsize=80, extent=extent, cmap="cividis", norm=LogNorm(), mincnt=1)
    axes.plot([-edge, edge], [-edge, edge], color="black", linewidth=1, linestyle="--", label="perfect")
    axes.axhline(0, color="black", linewidth=1, linestyle=":", label="no change")
    axes.set(
        xlim=(-edge, edge),
        ylim=(-edge, edge),
        xlabel=f"change of the weight from t to {examples.target:g}t, times 1000",
        ylabel="forecast of that change, times 1000",
        title=f"{len(truth)} validation examples",
    )
    axes.legend(loc="upper left")
    figure.colorbar(hexagons, label="examples")
    return figure


def model_card(
    fit: Fit,
    summary: str,
    errors: dict[str, tuple[float, float]],
    accuracy: float,
    about: dict[str, Any],
    fitted: oi.Fit,
) -> str:
    """Returns the model card of a predictor, as Markdown."""
    none = errors["no change"][1]
    rows = "\n".join(
        f"| {what} | {train:.2f} | {validation:.2f} | {validation / none:.3f} |"
        for what, (train, validation) in errors.items()
    )
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    versions = ", ".join(f"{package} {importlib.metadata.version(package)}" for package in packages)
    train, validation = fitted.train, fitted.validation
    return f"""# {fit.name}

{summary}

```python
import optax
import optax_introspect

forecaster = optax_introspect.pretrained("{fit.name}")
tx = optax.chain(optax.sgd(1e-2), optax_introspect.introspect((3000, 4000, 5000), forecaster))
```

## How good it is

Mean absolute error of the forecast of a weight, times 1000 as in the paper, on examples of the weights that it was
fitted on and on examples of other weights of the same network. *No change* forecasts that the weight does not move.

| forecast | training | validation | validation / no change |
| --- | ---: | ---: | ---: |
{rows}

The paper reports 3.1 and 3.4 for its network, on the history of a run whose length and start it does not give.

![Forecast against truth](forecasts.png)

## How it was made

`python -m experiments predictor --seed {about["seed"]} --steps {about["steps"]} \
--record-every {about["record_every"]} --num-examples {about["num_examples"]} --fit-steps {about["fit_steps"]}`

1. The network `N_0` of the paper (551 818 weights, LeCun normal start, zero biases, dropout of one half) was trained on
   MNIST ({about["images"]}) with Adam, {LEARNING_RATE:g}, batches of {BATCH_SIZE}, for {about["steps"]} steps, to
   {accuracy:.2%} on the test set. Its weights were recorded every {about["record_every"]} steps.
2. {len(train.targets) + len(validation.targets)} examples were sampled: random weights at a random recorded `t`,
   uniform among the {len(np.unique(train.steps))} from {train.steps.min()} to {train.steps.max()} for which the
   points and {fit.jump_ratio:g}t are recorded to within 2 % of `t`; bands and shares as in the paper.
3. The network was fitted to {len(train.targets)} of them with the L1 loss: weights times 1000, batches of 20, Adam
   5e-4, halved every 8000 steps, {about["fit_steps"]} steps. The {len(validation.targets)} others, of a tenth of
   the weights, were kept for validation.

Seed {about["seed"]} for everything random. Versions: Python {platform.python_version()}, {versions}; on a CPU.
The same command on the same machine gives the same weights, bit for bit.

## What it is for, and what not

It has learned from one small network under one optimizer, and from no jump longer than to {fit.jump_ratio:g} times the
jump step. It forecasts weights near zero that move by some thousandths to hundredths; for weights or movements of
another size, compare with two-point extrapolation, the last row of the table, first.
"""
