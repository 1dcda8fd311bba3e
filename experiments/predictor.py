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
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import optax_introspect
from optax_introspect import Fit, WeightHistory

from .data import Images, load_mnist
from .figures import figure
from .networks import ConvNet
from .recording import record
from .training import Task

BATCH_SIZE, LEARNING_RATE = 50, 1e-4  # the paper's, section 4.1


@dataclasses.dataclass(frozen=True)
class Predictor:
    """One of the shipped predictors.

    Attributes:
      activation: of its hidden layer.
      jump_ratio: `k`, what it forecasts.
      summary: what it is, for its model card.
      equivariant: whether it sees differences to the weight now and has no biases, instead of the weights themselves.
    """

    activation: str
    jump_ratio: float
    summary: str
    equivariant: bool = False


PREDICTORS = {
    "mnist-n0": Predictor("relu", 2.0, "The introspection network of the paper: 4-40-1 with ReLU, forecasts step 2t."),
    "mnist-n0-linear": Predictor("identity", 2.0, "The linear one of the paper: 4-40-1 without ReLU, forecasts 2t."),
    "mnist-n0-k2.2": Predictor("relu", 2.2, "As mnist-n0, but for a longer jump: forecasts step 2.2t."),
    "mnist-n0-equivariant": Predictor(
        "relu",
        2.0,
        "As mnist-n0, but on differences to the weight now and without biases, so that shifting or scaling the whole "
        "history\nof a weight shifts or scales its forecast: 3-40-1 with ReLU, forecasts step 2t.",
        equivariant=True,
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
    """Fits the predictors that the package ships, from nothing but MNIST; takes 5 minutes on two cores.

    Trains N_0 with Adam and records its weights, samples examples of how they evolve, fits four introspection
    networks, evaluates them and writes each with its model card. Interrupted, it goes on where it stopped.

    Args:
      output: the folder that gets one folder for each predictor; those of the same names are replaced.
      workdir: the folder for the weight history and for checkpoints.
      data_dir: a folder with the original MNIST files, if you have them.
      seed: of everything random.
      steps: updates of N_0.
      record_every: updates from one record of the weights to the next.
      num_examples: examples that are sampled from the history.
      fit_steps: updates of the introspection network.
    """
    for argument, value in {
        "steps": steps,
        "record_every": record_every,
        "num_examples": num_examples,
        "fit_steps": fit_steps,
    }.items():
        if value < 1:
            raise ValueError(f"{argument} must be at least 1; got {value}")
    for name in PREDICTORS:
        if (output / name).exists():
            optax_introspect.load(output / name)  # refuses to replace what is not a predictor
    console = Console()
    images = load_mnist(data_dir, fallback=False)
    console.print(f"Images: {images.source}")
    # Where the files came from makes no difference, but their order does.
    settings = {"images": images.source.partition(",")[0], "seed": seed, "steps": steps, "record_every": record_every}
    accuracy = train_n0(images, workdir, settings)
    console.print(f"N_0 reached {accuracy:.2%} on the test set")

    history = WeightHistory.open(workdir / "history")
    for name, kind in PREDICTORS.items():
        with console.status(f"{name}: sampling {num_examples} examples"):
            examples = optax_introspect.sample_examples(history, num_examples, jump_ratio=kind.jump_ratio, seed=seed)
        console.print(f"{name}: {kind.summary}")
        fitted = optax_introspect.fit(
            examples,
            activation=kind.activation,
            use_bias=not kind.equivariant,
            relative=kind.equivariant,
            num_steps=fit_steps,
            seed=seed,
        )
        errors = evaluate(fitted, kind.jump_ratio)
        folder = output / name
        shutil.rmtree(folder, ignore_errors=True)
        optax_introspect.save(fitted.forecaster, folder)
        draw_forecasts(fitted, folder / "forecasts.png")
        made = {**settings, "num_examples": num_examples, "fit_steps": fit_steps}
        (folder / "README.md").write_text(model_card(name, kind, errors, accuracy, made, fitted))
        console.print(f"  validation L1 x 1000: {errors['this predictor'][1]:.2f}; staying: {errors['staying'][1]:.2f}")


def train_n0(images: Images, workdir: Path, settings: dict[str, Any]) -> float:
    """Trains `N_0` and records its weights in `workdir/history`; returns its test accuracy."""
    task = Task(ConvNet, images, BATCH_SIZE, settings["seed"])
    tx = optax.adam(LEARNING_RATE)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        bar = progress.add_task("training N_0", total=settings["steps"])
        for step, weights in record(task, tx, workdir, settings, settings["steps"], settings["record_every"]):
            progress.update(bar, completed=step)
            last = weights
    return task.evaluate(last)[1]


def evaluate(fitted: Fit, jump_ratio: float) -> dict[str, tuple[float, float]]:
    """Returns the L1 of forecasts, times 1000 as in the paper, on training and validation examples."""
    forecasters = {
        "this predictor": fitted.forecaster,
        "staying": None,
        "linear extrapolation, fitted to the 4 points": optax_introspect.polynomial(1, jump_ratio),
        "linear extrapolation through the points 1 and 0.4": optax_introspect.polynomial(
            1, jump_ratio, points=(1.0, 0.4)
        ),
        "the same with jump ratio 1.3": optax_introspect.polynomial(1, 1.3, points=(1.0, 0.4)),
    }
    return {
        name: (1000 * optax_introspect.l1(f, fitted.train), 1000 * optax_introspect.l1(f, fitted.validation))
        for name, f in forecasters.items()
    }


def draw_forecasts(fitted: Fit, path: Path) -> None:
    """Draws where validation weights were forecast to go against where they went."""
    examples = fitted.validation
    inputs = [jnp.asarray(column) for column in examples.inputs.T]
    forecast = 1000 * np.asarray(fitted.forecaster(*inputs, key=jax.random.key(0)) - inputs[0])
    truth = 1000 * (examples.targets - examples.inputs[:, 0])
    edge = float(np.quantile(np.abs(truth), 0.998))
    with figure(path, 1, width=5.2, height=4.2) as (axes,):
        hexagons = axes.hexbin(
            truth, forecast, gridsize=80, extent=(-edge, edge, -edge, edge), cmap="cividis", norm=LogNorm(), mincnt=1
        )
        axes.plot([-edge, edge], [-edge, edge], color="black", linewidth=1, linestyle="--", label="perfect")
        axes.axhline(0, color="black", linewidth=1, linestyle=":", label="staying")
        axes.set(
            xlim=(-edge, edge),
            ylim=(-edge, edge),
            xlabel=f"change of the weight from t to {examples.jump_ratio:g}t, times 1000",
            ylabel="forecast of that change, times 1000",
            title=f"{len(truth)} validation examples",
        )
        axes.legend(loc="upper left")
        axes.figure.colorbar(hexagons, label="examples")


def model_card(
    name: str,
    kind: Predictor,
    errors: dict[str, tuple[float, float]],
    accuracy: float,
    settings: dict[str, Any],
    fitted: Fit,
) -> str:
    """Returns the text that goes with a predictor."""
    staying = errors["staying"][1]
    rows = "\n".join(
        f"| {what} | {train:.2f} | {validation:.2f} | {validation / staying:.3f} |"
        for what, (train, validation) in errors.items()
    )
    versions = ", ".join(
        f"{package} {importlib.metadata.version(package)}"
        for package in ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    )
    train, validation = fitted.train, fitted.validation
    return f"""# {name}

{kind.summary}

```python
import optax_introspect

forecaster = optax_introspect.pretrained("{name}")
tx = optax.chain(optax.sgd(1e-2), optax_introspect.introspect((3000, 4000, 5000), forecaster))
```

## How good it is

Mean absolute error (L1) of the forecast of a weight, times 1000 as in the paper, on examples of the weights that it was
fitted on and on examples of other weights of the same network. *Staying* forecasts that the weight does not move.

| forecast | training | validation | validation / staying |
| --- | ---: | ---: | ---: |
{rows}

The paper reports 3.1 and 3.4 for its network, on the history of a run whose length and start it does not give.

![Forecast against truth](forecasts.png)

## How it was made

`python -m experiments predictor --seed {settings["seed"]} --steps {settings["steps"]} \
--record-every {settings["record_every"]} --num-examples {settings["num_examples"]} --fit-steps {settings["fit_steps"]}`

1. The network `N_0` of the paper (551 818 weights, LeCun normal start, zero biases, dropout of one half) was trained on
   MNIST ({settings["images"]}) with Adam, {LEARNING_RATE:g}, batches of {BATCH_SIZE}, for {settings["steps"]} steps,
   to {accuracy:.2%} on the test set. Its weights were recorded at every step that is a multiple of
   {settings["record_every"]}.
2. {len(train.targets) + len(validation.targets)} examples were sampled: random weights at a random recorded `t`,
   uniform among the {len(np.unique(train.steps))} from {train.steps.min()} to {train.steps.max()} for which the
   trajectory points and {kind.jump_ratio:g}t are recorded to within 2 % of `t`; bands and shares as in the paper.
3. The network was fitted to {len(train.targets)} of them with the L1 loss: weights times 1000, batches of 20, Adam
   5e-4, halved every 8000 steps, {settings["fit_steps"]} steps. The {len(validation.targets)} others, of a tenth of
   the weights, were kept for validation.

Seed {settings["seed"]} for everything random. Versions: Python {platform.python_version()}, {versions}; on a CPU.
The same command on the same machine gives the same weights, bit for bit.

## What it is for, and what not

It has learned from one small network under one optimizer, and from no jump longer than to
{kind.jump_ratio:g} times the jump step. It forecasts weights near zero that move by some thousandths to hundredths; for
weights or movements of another size, compare with two-point extrapolation, the last row of the table, first.
"""
