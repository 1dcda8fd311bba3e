"""A first result: `MNIST_3` with and without jumps."""

import dataclasses
import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

import optax_introspect

from .data import Images, load_mnist
from .figures import BLUE, ORANGE, figure
from .networks import Mlp
from .training import Task

# The paper's MNIST_3 (section 4.2); it names both optimizers, in different places.
OPTIMIZERS = {"sgd": optax.sgd(5e-3), "adam": optax.adam(1e-3)}
BATCH_SIZE = 100
ARMS = {"plain": BLUE, "introspection": ORANGE}


@dataclasses.dataclass(frozen=True)
class Record:
    """One line of `metrics.jsonl`.

    Attributes:
      images: `mnist`, or `digits` in place of it.
      optimizer: a key of `OPTIMIZERS`.
      arm: a key of `ARMS`.
      seed: of the start and the batches, the same for both arms.
      step: updates made.
      test_loss: mean cross entropy on the test set.
      test_accuracy: on the test set.
      seconds: wall-clock of the training up to here, without evaluation; the steps before the first jump are the
        same for both arms, and are made once.
    """

    images: str
    optimizer: str
    arm: str
    seed: int
    step: int
    test_loss: float
    test_accuracy: float
    seconds: float


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What the two arms of one optimizer and seed come to."""

    optimizer: str
    seed: int
    plain_best: float
    plain_best_step: int
    jumps_best: float
    jumps_reach_step: int | None
    plain_seconds: float
    jumps_seconds: float

    def cells(self) -> list[str]:
        """Returns the row of a table."""
        reach = self.jumps_reach_step
        return [
            self.optimizer,
            str(self.seed),
            f"{self.plain_best:.2%}",
            f"{self.jumps_best:.2%}",
            f"{self.plain_best_step}",
            "never" if reach is None else f"{reach}",
            "" if reach is None else f"{reach / self.plain_best_step:.2f}",
            f"{self.plain_seconds:.0f}",
            f"{self.jumps_seconds:.0f}",
        ]


COLUMNS = ["optimizer", "seed", "plain", "jumps", "best at", "reached", "ratio", "plain, s", "jumps, s"]
LEGEND = (
    "plain, jumps: best test accuracy of each arm; best at: the step of the plain arm's best; reached: the first step "
    "at which the arm with jumps is as good as that; ratio: of these two steps; s: seconds of training"
)


def quickstart(
    seeds: tuple[int, ...] = (0,),
    steps: int = 15_000,
    jump_steps: tuple[int, ...] = (6000, 8000, 10_000),
    predictor: str = "mnist-n0",
    every: int = 250,
    output: Path = Path("runs/quickstart"),
    data_dir: Path | None = None,
) -> None:
    """Trains MNIST_3 with SGD and with Adam, each with and without jumps; takes 2 minutes a seed on two cores.

    A network 784-256-256-10 on MNIST, as in the paper. Both arms have the same start and the same batches. Writes
    metrics.jsonl, accuracy.png and README.md, a table.

    Args:
      seeds: one run of every arm for each.
      steps: updates of every arm.
      jump_steps: steps at which the weights are replaced by their forecast.
      predictor: the shipped predictor that forecasts.
      every: steps from one evaluation to the next.
      output: the folder for the results; what an earlier run left there is replaced.
      data_dir: a folder with the original MNIST files, if you have them.
    """
    if not seeds:
        raise ValueError("seeds must name at least one seed")
    if every < 1:
        raise ValueError(f"every must be at least 1; got {every}")
    forecaster = optax_introspect.pretrained(predictor)
    if steps <= optax_introspect.plan(jump_steps, forecaster.points).jump_steps[-1]:
        raise ValueError(f"steps must be more than the last jump step, {jump_steps[-1]}; got {steps}")
    console = Console()
    images = load_mnist(data_dir)
    console.print(f"Images: {images.source}")
    output.mkdir(parents=True, exist_ok=True)

    records: list[Record] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with (output / "metrics.jsonl").open("w") as file, Progress(*columns, console=console) as progress:
        for seed in seeds:
            for name, base in OPTIMIZERS.items():
                with_jumps = optax.chain(base, optax_introspect.introspect(jump_steps, forecaster))
                bar = progress.add_task(f"{name}, seed {seed}", total=2 * steps - jump_steps[0])
                for metrics in run_pair(images, seed, base, with_jumps, steps, jump_steps, every):
                    record = Record(images=images.name, optimizer=name, seed=seed, **metrics)
                    records.append(record)
                    file.write(json.dumps(dataclasses.asdict(record)) + "\n")
                    file.flush()
                    # The arm with jumps comes last, and the steps up to the first jump are made once.
                    second = record.arm == "introspection" and record.step > jump_steps[0]
                    progress.update(bar, completed=record.step + second * (steps - jump_steps[0]))

    comparisons = [compare(records, name, seed) for name in OPTIMIZERS for seed in seeds]
    table = Table(*COLUMNS, box=box.SIMPLE, padding=(0, 1, 0, 0), caption=LEGEND)
    for comparison in comparisons:
        table.add_row(*comparison.cells())
    console.print(table)
    draw(records, jump_steps, output / "accuracy.png")
    command = (
        f"python -m experiments quickstart --seeds {' '.join(map(str, seeds))} --steps {steps} "
        f"--jump-steps {' '.join(map(str, jump_steps))} --predictor {predictor} --every {every}"
    )
    (output / "README.md").write_text(report(comparisons, records, jump_steps, images, command))
    console.print(f"Wrote metrics.jsonl, accuracy.png and README.md to {output}")


def run_pair(
    images: Images,
    seed: int,
    base: optax.GradientTransformation,
    with_jumps: optax.GradientTransformation,
    steps: int,
    jump_steps: tuple[int, ...],
    every: int,
) -> Iterator[dict[str, Any]]:
    """Trains both arms, which are one up to the first jump, and yields their metrics.

    These are taken at even intervals, and before and after every jump.
    """
    task = Task(Mlp, images, BATCH_SIZE, seed)
    measured = {*range(0, steps + 1, every), *jump_steps, *(t + 1 for t in jump_steps)}

    def train(update: Any, state: Any, start: int, end: int, arms: tuple[str, ...]) -> Iterator[Any]:
        params, opt_state, seconds = state
        if start == 0:
            yield from measure(params, 0, seconds, arms)
        for step in range(start, end):
            began = time.perf_counter()
            params, opt_state = update(params, opt_state, step)
            if step + 1 in measured or step + 1 == end:
                jax.block_until_ready(params)
            seconds += time.perf_counter() - began
            if step + 1 in measured:
                yield from measure(params, step + 1, seconds, arms)
        state[:] = params, opt_state, seconds

    def measure(params: Any, step: int, seconds: float, arms: tuple[str, ...]) -> Iterator[dict[str, Any]]:
        loss, accuracy = task.evaluate(params)
        for arm in arms:
            yield {"arm": arm, "step": step, "test_loss": loss, "test_accuracy": accuracy, "seconds": seconds}

    state = [task.params, with_jumps.init(task.params), 0.0]
    jumping = task.step_function(with_jumps)
    first_jump = jump_steps[0]
    yield from train(jumping, state, 0, first_jump, tuple(ARMS))
    # Copies, since each arm goes on in the buffers that it is given.
    plain_state = [*jax.tree.map(jnp.copy, (state[0], state[1][0])), state[2]]
    yield from train(task.step_function(base), plain_state, first_jump, steps, ("plain",))
    yield from train(jumping, state, first_jump, steps, ("introspection",))


def compare(records: list[Record], optimizer: str, seed: int) -> Comparison:
    """Returns what the arms of one optimizer and seed come to."""
    arms = {arm: [r for r in records if (r.optimizer, r.seed, r.arm) == (optimizer, seed, arm)] for arm in ARMS}
    best = max(arms["plain"][1:], key=lambda record: record.test_accuracy)  # what the start scores was not learned
    reach = next((r.step for r in arms["introspection"] if r.test_accuracy >= best.test_accuracy), None)
    return Comparison(
        optimizer=optimizer,
        seed=seed,
        plain_best=best.test_accuracy,
        plain_best_step=best.step,
        jumps_best=max(record.test_accuracy for record in arms["introspection"]),
        jumps_reach_step=reach,
        plain_seconds=arms["plain"][-1].seconds,
        jumps_seconds=arms["introspection"][-1].seconds,
    )


def right_after(records: list[Record], optimizer: str, jump_steps: tuple[int, ...]) -> list[tuple[float, float]]:
    """Returns, for every jump, the ratio of the losses and the difference of the accuracies after it and before it."""
    jumping = {(r.seed, r.step): r for r in records if (r.optimizer, r.arm) == (optimizer, "introspection")}
    pairs = [(jumping[seed, t], jumping[seed, t + 1]) for seed, t in jumping if t in jump_steps]
    return [(after.test_loss / before.test_loss, after.test_accuracy - before.test_accuracy) for before, after in pairs]


def draw(records: list[Record], jump_steps: tuple[int, ...], path: Path) -> None:
    """Draws test accuracy against steps, one line for each seed."""
    with figure(path, len(OPTIMIZERS)) as axes:
        for ax, optimizer in zip(axes, OPTIMIZERS, strict=True):
            shown = [r for r in records if r.optimizer == optimizer]
            for arm, color in ARMS.items():
                for i, seed in enumerate(sorted({r.seed for r in shown})):
                    line = [r for r in shown if (r.arm, r.seed) == (arm, seed)]
                    ax.plot(
                        [r.step for r in line],
                        [100 * r.test_accuracy for r in line],
                        color=color,
                        linewidth=1.2,
                        label=arm if i == 0 else None,
                    )
            for i, step in enumerate(jump_steps):
                label = "jump" if i == 0 else None
                ax.axvline(step, color="black", linewidth=0.8, linestyle=":", label=label)
            late = [100 * r.test_accuracy for r in shown if r.step >= jump_steps[0] / 2]
            ax.set(
                title={"sgd": "SGD", "adam": "Adam"}[optimizer],
                xlabel="step",
                ylabel="test accuracy, %",
                ylim=(min(late) - 0.5, max(late) + 0.5),
            )
            ax.locator_params(axis="x", nbins=6)
            ax.legend(loc="lower right")


def report(
    comparisons: list[Comparison], records: list[Record], jump_steps: tuple[int, ...], images: Images, command: str
) -> str:
    """Returns the table as Markdown, with what it takes to make it again."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "| --- " * 2 + "| ---: " * (len(COLUMNS) - 2) + "|"]
    lines += ["| " + " | ".join(comparison.cells()) + " |" for comparison in comparisons]
    summary = []
    for optimizer in OPTIMIZERS:
        own = [c for c in comparisons if c.optimizer == optimizer]
        gains = [100 * (c.jumps_best - c.plain_best) for c in own]
        ratios = [np.inf if c.jumps_reach_step is None else c.jumps_reach_step / c.plain_best_step for c in own]
        summary.append(
            f"- {optimizer}: best accuracy with jumps less plain, in percentage points: mean {np.mean(gains):.2f}, "
            f"from {min(gains):.2f} to {max(gains):.2f}; share of the steps to the plain run's best: "
            f"median {np.median(ratios):.2f}, from {min(ratios):.2f} to {max(ratios):.2f} ({len(own)} seeds)."
        )
        changes = np.array(right_after(records, optimizer, jump_steps))
        summary.append(
            f"- {optimizer}: from just before a jump to just after it, over all jumps: test loss times "
            f"{np.median(changes[:, 0]):.2f} (median, from {changes[:, 0].min():.2f} to {changes[:, 0].max():.2f}), "
            f"test accuracy by {100 * np.median(changes[:, 1]):+.2f} percentage points (median, from "
            f"{100 * changes[:, 1].min():+.2f} to {100 * changes[:, 1].max():+.2f})."
        )
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "jaxlib", "flax", "optax"))
    return "\n".join(
        [
            "# MNIST_3 with and without jumps",
            "",
            f"`{command}`",
            "",
            f"On {images.name} ({images.source.partition(',')[0]}), {len(images.test_labels)} test images. The best "
            "step is chosen by these too, for both arms alike. Evaluation is not timed.",
            "",
            *lines,
            "",
            f"{LEGEND}.".capitalize(),
            "",
            *summary,
            "",
            "![Test accuracy against steps](accuracy.png)",
            "",
            f"Python {platform.python_version()}, {versions}; {jax.default_backend()}, {os.cpu_count()} cores.",
            "",
        ]
    )
