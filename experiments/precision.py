"""What it costs in accuracy to keep snapshots in fewer bits."""

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import optax
from flax import nnx
from rich.progress import track

from optax_introspect import WeightHistory, plan, pretrained

from .data import Images, load_mnist
from .networks import Mlp, WideConvNet
from .training import Task

Weights = npt.NDArray[np.float32]


@dataclasses.dataclass(frozen=True)
class Run:
    """A run of the paper whose weights are recorded; plain SGD, so that weights and step are all there is to resume.

    Attributes:
      network: makes the network.
      rate: the learning rate.
      batch_size: examples a step.
      jump_steps: the steps at which the forecasts are compared.
    """

    network: Callable[..., nnx.Module]
    rate: float
    batch_size: int
    jump_steps: tuple[int, ...]


RUNS = {
    "MNIST_3": Run(Mlp, 5e-3, 100, (6000, 8000, 10_000)),
    "MNIST_1": Run(WideConvNet, 1e-2, 50, (3000, 4000, 5000)),
}
DTYPES = ("bfloat16", "float16")
WAYS = ("weights", "differences to w_0")


@dataclasses.dataclass(frozen=True)
class Record:
    """How far one way of keeping snapshots leads a forecast astray.

    Attributes:
      run: a key of `RUNS`.
      seed: of the run.
      jump_step: where the forecast was made.
      dtype: of the snapshots.
      kept: one of `WAYS`.
      error: mean absolute difference to the forecast from float32 snapshots, as a share of the mean absolute change
        that this makes to the weights.
      accuracy: on the test set, of the forecast weights.
      accuracy_float32: the same from float32 snapshots.
    """

    run: str
    seed: int
    jump_step: int
    dtype: str
    kept: str
    error: float
    accuracy: float
    accuracy_float32: float


def precision(
    seeds: tuple[int, ...] = (0, 1),
    runs: tuple[str, ...] = tuple(RUNS),
    output: Path = Path("runs/precision"),
    workdir: Path = Path("runs/precision"),
    data_dir: Path | None = None,
) -> None:
    """Compares forecasts from bfloat16 and float16 snapshots with those from float32; 15 minutes a seed on two cores.

    Trains MNIST_3 and MNIST_1 with plain SGD, records what the jumps of the paper look at, and forecasts from it. No
    jump is made, so that all are compared on the same weights. A run that was interrupted goes on where it stopped.

    Args:
      seeds: of the start and the batches.
      runs: MNIST_3, MNIST_1, or both.
      output: the folder that gets precision.jsonl and README.md.
      workdir: the folder for the histories.
      data_dir: a folder with the four IDX files of MNIST; by default they are fetched once.
    """
    if unknown := [name for name in runs if name not in RUNS]:
        raise ValueError(f"unknown runs {unknown}; known are {list(RUNS)}")
    images = load_mnist(data_dir, fallback=False)
    output.mkdir(parents=True, exist_ok=True)
    records = []
    for name in runs:
        for seed in seeds:
            task = Task(RUNS[name].network, images, RUNS[name].batch_size, seed)
            history = train(name, RUNS[name], task, workdir / f"{name}-{seed}")
            records += list(compare(name, RUNS[name], task, history))
            lines = [json.dumps(dataclasses.asdict(record)) for record in records]
            (output / "precision.jsonl").write_text("\n".join([*lines, ""]))
            (output / "README.md").write_text(report(records, images))


def train(name: str, run: Run, task: Task, path: Path) -> WeightHistory:
    """Trains up to the last jump step, and returns the history of what the jumps look at."""
    needed = sorted({source for jump in plan(run.jump_steps).jumps for source in jump.sources})
    tx = optax.sgd(run.rate)
    update, params = task.step_function(tx), task.params
    with WeightHistory.record(path, params, metadata={"run": name, "seed": task.seed}) as history:
        if len(history.steps) == 0:
            history.append(0, params)
        step = int(history.steps[-1]) if len(history.steps) else 0
        if step > 0:
            params = as_params(task, history.read(step))
        opt_state = tx.init(params)
        for count in track(range(step, needed[-1]), description=f"{name}, seed {task.seed}"):
            params, opt_state = update(params, opt_state, count)
            if count + 1 in needed:
                history.append(count + 1, params)
    return WeightHistory.open(path)


def compare(name: str, run: Run, task: Task, history: WeightHistory) -> Iterator[Record]:
    """Yields a record for every jump step and every way of keeping snapshots."""
    for jump in plan(run.jump_steps).jumps:
        now, *before = (history.read(source) for source in jump.sources)
        exact = forecast(now, before)
        accuracy_float32 = task.evaluate(as_params(task, exact))[1]
        for dtype in DTYPES:
            for way in WAYS:
                found = forecast(now, kept(before, dtype, way))
                yield Record(
                    run=name,
                    seed=task.seed,
                    jump_step=jump.step,
                    dtype=dtype,
                    kept=way,
                    error=float(np.mean(np.abs(found - exact)) / np.mean(np.abs(exact - now))),
                    accuracy=task.evaluate(as_params(task, found))[1],
                    accuracy_float32=accuracy_float32,
                )


def kept(before: list[Weights], dtype: str, way: str) -> list[Weights]:
    """Returns snapshots, the last of which is `w_0`, as they are after they were kept in a dtype of 16 bits."""

    def rounded(weights: Weights) -> Weights:
        return np.asarray(jnp.asarray(weights).astype(dtype), np.float32)

    if way == "weights":
        return [rounded(weights) for weights in before]
    *others, first = before
    start = rounded(first)
    return [*(start + rounded(weights - start) for weights in others), start]


@functools.cache
def _forecast_function() -> Callable[..., jax.Array]:
    forecaster = pretrained()
    return jax.jit(lambda *weights: forecaster(*weights, key=jax.random.key(0)))


def forecast(now: Weights, before: list[Weights]) -> Weights:
    """Returns the forecast of all weights by the shipped predictor."""
    return np.asarray(_forecast_function()(now, *before))


def as_params(task: Task, weights: Weights) -> Any:
    """Returns weights in the order of a history as the parameters of a task."""
    leaves = jax.tree.leaves(task.params)
    pieces = np.split(weights, np.cumsum([leaf.size for leaf in leaves])[:-1])
    arrays = [jnp.asarray(piece).reshape(leaf.shape) for piece, leaf in zip(pieces, leaves, strict=True)]
    return jax.tree.unflatten(jax.tree.structure(task.params), arrays)


def report(records: list[Record], images: Images) -> str:
    """Returns the comparison as Markdown."""
    lines = [
        "# Snapshots in 16 bits",
        "",
        "`python -m experiments precision --output results/precision`",
        "",
        "Forecasts of the shipped predictor from snapshots kept in 16 bits, against those from float32 snapshots, on",
        f"the weights of plain runs with SGD ({images.source}). *Error*: mean absolute difference of the forecasts, as",
        "a share of the mean absolute change that the jump makes to the weights. *Accuracy*: on the test set right",
        "after the jump, less that from float32 snapshots, in percentage points. Ranges are over the three jump steps",
        "and all seeds.",
        "",
        "| run | seeds | snapshots | kept as | error | accuracy |",
        "| --- | --- | --- | --- | ---: | ---: |",
    ]
    for name in dict.fromkeys(record.run for record in records):
        for dtype in DTYPES:
            for way in WAYS:
                own = [r for r in records if (r.run, r.dtype, r.kept) == (name, dtype, way)]
                errors = [r.error for r in own]
                points = [100 * (r.accuracy - r.accuracy_float32) for r in own]
                seeds = ", ".join(map(str, sorted({r.seed for r in own})))
                lines.append(
                    f"| {name} | {seeds} | {dtype} | {way} | {min(errors):.2%} to {max(errors):.2%} "
                    f"| {min(points):+.2f} to {max(points):+.2f} |"
                )
    return "\n".join([*lines, ""])
