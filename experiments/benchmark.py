"""What the library costs: ratios against a baseline in the same process."""

import dataclasses
import functools
import importlib.metadata
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console

import optax_introspect
from optax_introspect import WeightHistory

from .data import Images
from .networks import ConvNet, Mlp
from .training import Task

JUMP_STEPS = (3000, 4000, 5000)


@dataclasses.dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
      what: what was measured, and against what.
      unit: of the three figures.
      low: the first quartile of all repetitions.
      median: their median.
      high: the third quartile.
      note: what else is known of it.
    """

    what: str
    unit: str
    low: float
    median: float
    high: float
    note: str = ""


def row(what: str, unit: str, figures: Any, note: str = "") -> Row:
    """Returns the row of many repetitions."""
    low, median, high = np.quantile(np.asarray(figures), [0.25, 0.5, 0.75])
    return Row(what, unit, float(low), float(median), float(high), note)


def interleaved(functions: dict[str, Callable[[], Any]], repetitions: int) -> dict[str, np.ndarray]:
    """Returns the seconds that each function took, called in turn; the first round is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repetitions + 1):
        for name, function in functions.items():
            began = time.perf_counter()
            jax.block_until_ready(function())
            seconds[name].append(time.perf_counter() - began)
    return {name: np.array(taken[1:]) for name, taken in seconds.items()}


def benchmark(output: Path = Path("runs/benchmark"), repetitions: int = 40) -> None:
    """Measures what a step, a jump, recording and fitting cost; takes 2 minutes on two cores, otherwise idle.

    Args:
      output: the folder that gets benchmark.json and README.md.
      repetitions: of every measurement.
    """
    console = Console()
    rows: list[Row] = []
    for measure in (idle_steps, jumps, recording, fitting):
        with console.status(measure.__name__.replace("_", " ")):
            new = measure(repetitions)
        for r in new:
            console.print(f"{r.what}: {r.median:.3g} {r.unit} ({r.low:.3g} to {r.high:.3g}) {r.note}", highlight=False)
        rows += new
    output.mkdir(parents=True, exist_ok=True)
    (output / "benchmark.json").write_text(json.dumps([dataclasses.asdict(r) for r in rows], indent=2) + "\n")
    (output / "README.md").write_text(report(rows, repetitions))
    console.print(f"Wrote benchmark.json and README.md to {output}")


def idle_steps(repetitions: int) -> list[Row]:
    """Measures a step at which nothing happens against the base optimizer alone."""
    rows = []
    for widths in ((784, 700, 700, 10), (784, 1800, 1800, 1800, 1800, 10)):
        task = Task(functools.partial(Mlp, widths), _noise_images(), 64, seed=0)
        size = sum(leaf.size for leaf in jax.tree.leaves(task.params))
        for name, base in {"SGD": optax.sgd(1e-3), "Adam": optax.adam(1e-3)}.items():
            compiled, compiling, run = {}, {}, {}
            chains = {"alone": base, "chained": optax.chain(base, optax_introspect.introspect(JUMP_STEPS))}
            for arm, tx in chains.items():
                compiled[arm], compiling[arm], run[arm] = _training(task, tx)
            seconds = interleaved(run, repetitions)
            temporaries = {arm: _temporaries(c) for arm, c in compiled.items()}
            rows.append(
                row(
                    f"idle step, {name}, {size / 1e6:.1f} M weights, against {name} alone",
                    "x",
                    seconds["chained"] / seconds["alone"],
                    f"temporaries {temporaries['chained']:.1f} MB against {temporaries['alone']:.1f} MB, "
                    f"compiled in {compiling['chained']:.1f} s against {compiling['alone']:.1f} s",
                )
            )
    return rows


def jumps(repetitions: int) -> list[Row]:
    """Measures the forecast of one array, against the Flax definition and against reading and writing alone."""
    forecaster = optax_introspect.pretrained()
    rows = []
    for size in (1_000_000, 8_000_000):
        keys = jax.random.split(jax.random.key(0), len(forecaster.points))
        now, *before = [jax.random.normal(key, (size,)) * 0.05 for key in keys]
        forms: dict[str, Callable[..., Any]] = {
            "fused": lambda *w: forecaster(*w, key=jax.random.key(1)),
            "flax": lambda *w: forecaster.definition(list(w)),
            "stream": lambda *w: 0.25 * (w[0] + w[1] + w[2] + w[3]),
        }
        compiled, run = {}, {}
        for name, form in forms.items():
            compiled[name] = jax.jit(form, donate_argnums=0).lower(now, *before).compile()
            run[name] = _in_place(compiled[name], jnp.copy(now), before)
        seconds = interleaved(run, max(repetitions // 4, 3))
        temporaries = {name: _temporaries(c) for name, c in compiled.items()}
        for name, what in {
            "fused": "forecast by mnist-n0",
            "flax": "the same, by jax.vmap of the Flax module",
            "stream": "reading four arrays and writing one",
        }.items():
            note = f"temporaries {temporaries[name]:.0f} MB"
            rows.append(row(f"{what}, {size / 1e6:.0f} M weights", "ns a weight", 1e9 * seconds[name] / size, note))
    return rows


def recording(repetitions: int) -> list[Row]:
    """Measures 100 training steps of `N_0` with a record of its weights against 100 without."""
    task = Task(ConvNet, _noise_images(), 50, seed=0)
    update = task.step_function(tx := optax.adam(1e-4))
    state = [task.params, tx.init(task.params)]
    count = 0

    def hundred_steps() -> Any:
        for step in range(100):
            state[:] = update(state[0], state[1], step)
        return state

    with tempfile.TemporaryDirectory() as folder, WeightHistory.record(folder, task.params) as history:

        def with_record() -> Any:
            nonlocal count
            history.append(count, state[0])
            count += 1
            jax.block_until_ready(hundred_steps())
            history.flush()  # so that no writing is left to be paid for by the steps without a record
            return state

        seconds = interleaved({"recorded": with_record, "plain": hundred_steps}, repetitions)
    ratio = seconds["recorded"] / seconds["plain"]
    note = f"{np.median(seconds['plain']) * 10:.1f} ms a step"
    return [row("training N_0 with a record at every 100th step, against none", "x", ratio, note)]


def fitting(repetitions: int) -> list[Row]:
    """Measures sampling and fitting at the paper's size."""
    with tempfile.TemporaryDirectory() as folder:
        random = np.random.default_rng(0)
        weights = {"w": random.normal(size=550_000).astype(np.float32)}
        with WeightHistory.record(folder, weights) as history:
            for step in range(0, 20_001, 100):
                weights["w"] += random.normal(size=550_000).astype(np.float32) * 1e-3
                history.append(step, weights)
        few = range(max(repetitions // 10, 2))
        sampling = []
        for _ in few:
            began = time.perf_counter()
            examples = optax_introspect.sample_examples(history)
            sampling.append(time.perf_counter() - began)
    fits = []
    for seed in few:
        began = time.perf_counter()
        optax_introspect.fit(examples, seed=seed, progress=False)
        fits.append(time.perf_counter() - began)
    return [
        row("sampling 800 000 examples from a history of 0.55 M weights at 201 steps", "s", sampling),
        row("fitting, 30 000 steps of batch 20, with compilation", "s", fits),
    ]


def report(rows: list[Row], repetitions: int) -> str:
    """Returns the measurements as Markdown."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "jaxlib", "flax", "optax"))
    table = [f"| {r.what} | {r.median:.3g} {r.unit} | {r.low:.3g} to {r.high:.3g} | {r.note} |" for r in rows]
    return "\n".join(
        [
            "# What it costs",
            "",
            f"`python -m experiments benchmark --repetitions {repetitions}`",
            "",
            "Ratios are of measurements taken in turn in one process. Buffers are donated.",
            "",
            "| what | median | quartiles | |",
            "| --- | ---: | ---: | --- |",
            *table,
            "",
            f"Python {platform.python_version()}, {versions}; {jax.default_backend()}, {os.cpu_count()} cores, "
            f"{platform.machine()}.",
            "",
        ]
    )


def _training(task: Task, tx: optax.GradientTransformation) -> tuple[Any, float, Callable[[], Any]]:
    """Returns the compiled step of a task, the seconds that compiling took, and a function that makes one more step."""
    params = jax.tree.map(jnp.copy, task.params)
    state = [params, jax.jit(tx.init)(params)]
    update = task.step_function(tx)
    began = time.perf_counter()
    compiled = task.lower(tx, *state).compile()
    seconds = time.perf_counter() - began

    def one_step() -> Any:
        state[:] = update(state[0], state[1], 0)
        return jax.tree.leaves(state[0])[0]  # waiting for one array is waiting for the step

    return compiled, seconds, one_step


def _in_place(compiled: Any, now: jax.Array, before: list[jax.Array]) -> Callable[[], Any]:
    """Returns a function that replaces an array by what is computed of it and others, in its own buffer."""
    state = [now]

    def run() -> Any:
        state[0] = compiled(state[0], *before)
        return state[0]

    return run


def _temporaries(compiled: Any) -> float:
    return float(compiled.memory_analysis().temp_size_in_bytes / 1e6)


def _noise_images() -> Images:
    """Returns images of the size of MNIST: what they show makes no difference to the time."""
    random = np.random.default_rng(0)
    images, labels = random.integers(256, size=(5000, 28, 28)), random.integers(10, size=5000)
    return Images("noise", "random numbers", *(array.astype(np.uint8) for array in (images, labels, images, labels)))
