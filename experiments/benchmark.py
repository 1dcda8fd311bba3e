"""Benchmark of jumps: time, memory and compilation, compared with the same training without jumps."""

import dataclasses
import importlib.metadata
import importlib.util
import json
import math
import os
import platform
import re
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from matplotlib.figure import Figure

from optax_introspect import introspect, lookahead, nesterov, pretrained

from .benchmark_networks import ConvNet, Mlp, Training, Transformer, images_and_labels, loss_of

# So far away that nothing happens in a measured step.
JUMP_STEPS = (300_000, 400_000, 500_000)
CHUNK = 1 << 16  # weights that NumPy and PyTorch forecast at a time
STEPS_A_CALL = 10
MARKED = re.compile(r"(<!-- table: benchmark -->\n).*?(<!-- end -->)", re.DOTALL)
PAGE = """# What jumps cost

Measured by `python -m experiments benchmark --output results`. Ways to do the same are timed in turn in one process, in
another order each time, with buffers donated; a ratio is that of two times of one turn. The figures are medians and
quartiles of the repetitions. *Not judged*: the base optimizer is further than 1 % from itself, so that the machine
cannot tell. The base optimizer is AdamW.

![Idle steps, and a jump](benchmark.png)

<!-- table: benchmark -->
<!-- end -->
"""


@dataclasses.dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
      what: What was measured.
      unit: The unit.
      low: First quartile over the repetitions; None if it could not be measured.
      median: Median; or None.
      high: Third quartile; or None.
      at_most: Bound of the median, if there is one.
      judged: Tells whether the bound can be judged.
      note: What else there is to say.
    """

    what: str
    unit: str
    low: float | None
    median: float | None
    high: float | None
    at_most: float | None = None
    judged: bool = True
    note: str = ""


Section = dict[str, list[Row]]  # rows by the title of their table


def row(what: str, unit: str, values: Any, **others: Any) -> Row:
    """Returns the row of one value, or of those of many repetitions."""
    low, median, high = np.quantile(np.atleast_1d(values), [0.25, 0.5, 0.75]).tolist()
    return Row(what, unit, low, median, high, **others)


def interleaved(functions: dict[Any, Callable[[], Any]], repetitions: int) -> dict[Any, np.ndarray]:
    """Returns the seconds of each function, float [repetitions]: called in turn, in another order each time."""
    seconds: dict[Any, list[float]] = {name: [] for name in functions}
    names = list(functions)
    for repetition in range(repetitions + 1):
        shift = repetition // 2 % len(names)
        order = names[shift:] + names[:shift]
        for name in order[::-1] if repetition % 2 else order:
            began = time.perf_counter()
            jax.block_until_ready(functions[name]())
            if repetition:  # the first is a warm-up
                seconds[name].append(time.perf_counter() - began)
    return {name: np.array(taken) for name, taken in seconds.items()}


def base() -> optax.GradientTransformation:
    """Returns the base optimizer."""
    return optax.adamw(1e-3)


# Networks and the number of images a step: few, so that the step is short.
Case = tuple[Callable[..., nnx.Module], int]
CASES: tuple[Case, ...] = (
    (partial(Mlp, 1e6), 64),
    (partial(Mlp, 10e6), 64),
    (partial(ConvNet, 1e6), 32),
    (partial(ConvNet, 10e6), 8),
    (partial(Transformer, 1e6), 8),
    (partial(Transformer, 10e6), 4),
)
SMALL = partial(Mlp, 1e4, 6)  # 14 arrays


def idle(repetitions: int, cases: Sequence[Case] = CASES) -> Section:
    """Measures steps at which nothing happens: their time, and what there is of jumps in the compiled program."""
    times, programs = [], []
    for case in cases:
        training = Training(*case)
        arms = {"base": base(), "again": base(), "jumps": optax.chain(base(), introspect(JUMP_STEPS))}
        compiled = {arm: training.compile(tx) for arm, tx in arms.items()}
        run = {arm: training.run(tx, compiled[arm]) for arm, tx in arms.items()}
        began = time.perf_counter()
        jax.block_until_ready(run["base"](2))
        burst = min(max(round(0.4 / (time.perf_counter() - began)), 1), 50)  # 0.2 s, so that calls overlap as they do
        seconds = interleaved({arm: partial(calls, burst) for arm, calls in run.items()}, repetitions)
        again, jumps = (seconds[arm] / seconds["base"] for arm in ("again", "jumps"))
        judged = abs(float(np.median(again)) - 1) <= 0.01
        note = f"{1e3 * np.median(seconds['base']) / burst:.1f} ms a step"
        times.append(row(training.name, "x", jumps, at_most=1.01, judged=judged, note=note))
        times.append(row(f"{training.name}: the base optimizer against itself", "x", again))
        megabytes = {arm: step.memory_analysis().temp_size_in_bytes / 1e6 for arm, step in compiled.items()}
        more = megabytes["jumps"] - megabytes["base"]
        programs.append(row(f"{training.name}: temporaries", "MB", more, at_most=1.0))
        text = compiled["jumps"].as_text()
        conditionals = text[text.index("\nENTRY") :].count(" conditional(")
        programs.append(row(f"{training.name}: conditionals", "", conditionals, at_most=2.0))
    return {"Idle step, against the base optimizer alone": times, "Idle step, above the base optimizer": programs}


def jump(repetitions: int, sizes: Sequence[int] = (1_000_000, 10_000_000)) -> Section:
    """Measures a jump: the whole update, against other ways to evaluate the network alone."""
    # OpenMP would go on using the cores for a while after PyTorch is done, at the cost of what comes next.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    rows = []
    for weights in sizes:
        ways = {
            "jump, arrays of at most 2 500 000 weights": _jump(weights, 2_500_000),
            "jump, arrays of at most 50 000 weights": _jump(weights, 50_000),
            **_other_ways(weights),
        }
        seconds = interleaved({name: way for name, way in ways.items() if way}, repetitions)
        for name, way in ways.items():
            what, unit = f"{name}, {weights / 1e6:g} M weights", "ns a weight"
            missing = Row(what, unit, None, None, None, note="not installed")
            rows.append(row(what, unit, 1e9 * seconds[name] / weights) if way else missing)
    return {"A jump": rows}


def _jump(weights: int, largest: int) -> Callable[[], Any]:
    """Returns a function that jumps with so many weights, in arrays of at most so many, again and again."""
    number = -(-weights // largest)
    shape = (weights // number // 100, 100)
    tx = introspect((10,))
    params = [0.05 * jax.random.normal(jax.random.key(i), shape) for i in range(number)]
    carry, step = [params, tx.init(params)], _update(tx)
    for _ in range(10):
        carry[:] = step(*carry, np.float32(0.1))
    ready = np.asarray(carry[1].snapshot_steps).copy()

    def once() -> Any:
        state = carry[1]._replace(introspect_step=np.int32(10), snapshot_steps=ready)
        # All that stood there is replaced by the displacement, so that weights stay small however often they jump.
        carry[:] = step(carry[0], state, np.float32(1))
        return carry[0]

    once()
    if int(carry[1].jumps_taken) != 1:
        raise AssertionError("there was no jump to be measured")
    return once


def _other_ways(weights: int) -> dict[str, Callable[[], Any] | None]:
    """Returns other ways to forecast so many weights with the default predictor; None if PyTorch is missing."""
    forecaster = pretrained()
    points = [0.05 * jax.random.normal(key, (weights,)) for key in jax.random.split(jax.random.key(0), 4)]
    arrays = [np.asarray(point) for point in points]
    kernels = [layer.kernel for layer in forecaster.module.dense()]

    def by_numpy(x: Any) -> Any:
        return np.maximum(x @ kernels[0], 0) @ kernels[1]

    def in_chunks(function: Callable[[Any], Any]) -> Callable[[], Any]:
        def forecast() -> Any:
            output = np.empty_like(arrays[0])
            for start in range(0, weights, CHUNK):
                now, *before = (array[start : start + CHUNK] for array in arrays)
                differences = np.stack([1000 * (point - now) for point in before], -1)
                output[start : start + CHUNK] = now + function(differences)[:, 0] / 1000
            return output

        return forecast

    ways: dict[str, Callable[[], Any] | None] = {
        "Flax module under jax.vmap": _compiled(forecaster.definition, points),
        "NumPy": in_chunks(by_numpy),
        "PyTorch": None,
        "reading four arrays and writing one": _compiled(lambda *w: 0.25 * sum(w), points),
    }
    if importlib.util.find_spec("torch"):
        import torch

        tensors = [torch.from_numpy(kernel.copy()) for kernel in kernels]

        def by_torch(x: Any) -> Any:
            with torch.inference_mode():
                return (torch.relu(torch.from_numpy(x) @ tensors[0]) @ tensors[1]).numpy()

        ways["PyTorch"] = in_chunks(by_torch)
    return ways


def _compiled(function: Callable[..., Any], points: Sequence[jax.Array]) -> Callable[[], Any]:
    """Returns a function that computes an array from points, in the buffer of the first of them."""
    now, *before = points
    compiled = jax.jit(function, donate_argnums=0).lower(now, *before).compile()
    carry = [jnp.copy(now)]

    def run() -> Any:
        carry[0] = compiled(carry[0], *before)
        return carry[0]

    return run


def compilation(repetitions: int, case: Case = CASES[-1]) -> Section:
    """Measures how long a step takes to trace, lower and compile."""
    training = Training(*case)
    arms = {
        "alone": base(),
        "3 jumps of the default predictor": optax.chain(base(), introspect(JUMP_STEPS)),
        "nesterov every 20 steps": optax.chain(base(), introspect(range(19, 10_000, 20), nesterov(20))),
    }

    def from_scratch(tx: optax.GradientTransformation) -> None:
        jax.clear_caches()
        training.compile(tx)

    seconds = interleaved({arm: partial(from_scratch, tx) for arm, tx in arms.items()}, repetitions)
    alone = seconds.pop("alone")
    bound = 1.5 * float(np.median(alone)) + 5
    rows = [row(f"{training.name}, the base optimizer alone", "s", alone)]
    rows += [row(f"{training.name}, {arm}", "s", taken, at_most=bound) for arm, taken in seconds.items()]
    return {"Compilation of a step": rows}


def host(repetitions: int, make: Callable[..., nnx.Module] = SMALL, calls: int = 100) -> Section:
    """Measures calls whose computation is next to nothing: what is left is to hand arrays over, in Python."""
    scanned = f"plain trees, {STEPS_A_CALL} steps a call"
    run: dict[tuple[str, str], Callable[[int], Any]] = {}
    for arm, tx in {"alone": base(), "jumps": optax.chain(base(), introspect(JUMP_STEPS))}.items():
        training = Training(make, 1)
        run["plain trees", arm] = training.run(tx, training.jit(tx))
        run[scanned, arm] = training.run(tx, training.jit(tx, STEPS_A_CALL))
        run["nnx trees", arm] = _nnx_calls(make, tx, cached=False)
        run["nnx.cached_partial", arm] = _nnx_calls(make, tx, cached=True)
    seconds = interleaved({key: partial(one, calls) for key, one in run.items()}, repetitions)
    rows = []
    for way in ("nnx trees", "nnx.cached_partial", "plain trees", scanned):
        steps = calls * (STEPS_A_CALL if way == scanned else 1)
        alone, jumps = (1e6 * seconds[way, arm] / steps for arm in ("alone", "jumps"))
        note = f"{np.median(alone):.0f} µs alone, {np.median(jumps):.0f} µs with jumps"
        rows.append(row(way, "µs a step", jumps - alone, note=note))
    return {f"Handing over {len(training.params)} arrays of parameters, above the base optimizer": rows}


def _nnx_calls(make: Callable[..., nnx.Module], tx: optax.GradientTransformation, cached: bool) -> Callable[[int], Any]:
    model: Any = make(rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    batch = images_and_labels(1)

    def train_step(model: Any, optimizer: Any, images: Any, labels: Any) -> Any:
        loss, gradients = nnx.value_and_grad(loss_of)(model, images, labels)
        optimizer.update(model, gradients)
        return loss

    step: Any = nnx.jit(train_step, donate_argnums=(0, 1))
    once = nnx.cached_partial(step, model, optimizer) if cached else partial(step, model, optimizer)

    def calls(count: int) -> Any:
        for _ in range(count):
            loss = once(*batch)
        return loss

    jax.block_until_ready(calls(1))
    return calls


# Batches such as networks of 10 M weights are trained with: 512 images, 1008 tokens of 36.
OUTER: tuple[Case, ...] = ((partial(Mlp, 10e6), 512), (partial(Transformer, 10e6), 36))


def outer(repetitions: int, cases: Sequence[Case] = OUTER, steps: int = 20) -> Section:
    """Measures steps with jumps at even intervals, captures and jumps included, `steps` at a time.

    Whole steps vary by more than jumps cost. So the update is measured without the gradient as well, ten times as
    often, and what jumps add to it is divided by the time of a whole step.
    """
    shares, ratios = [], []
    for case in cases:
        training = Training(*case)
        end = 10 * steps * (repetitions + 2)
        even = {
            "nesterov(20)": introspect(range(19, end, 20), nesterov(20)),
            "nesterov(20), bfloat16 snapshots": introspect(
                range(19, end, 20), nesterov(20), snapshot_dtype=jnp.bfloat16
            ),
            "lookahead(5)": introspect(range(4, end, 5), lookahead(5)),
        }
        arms = {"alone": base(), "again": base(), **{arm: optax.chain(base(), tx) for arm, tx in even.items()}}
        whole, update = (
            interleaved({arm: partial(calls, steps) for arm, calls in run.items()}, times * repetitions)
            for times, run in (
                (1, {arm: training.run(tx, training.compile(tx)) for arm, tx in arms.items()}),
                (10, {arm: _updates(training.params, tx) for arm, tx in arms.items()}),
            )
        )
        step = float(np.median(whole["alone"])) / steps
        name = f"{training.name}, batches of {case[1]}"
        again = whole["again"] / whole["alone"]
        judged = abs(float(np.median(again)) - 1) <= 0.01
        for arm in even:
            bound = 5.0 if arm.startswith("nesterov") else None
            more = (update[arm] - update["alone"]) / steps
            note = f"{1e3 * np.median(more):.2g} ms of {1e3 * step:.0f} ms"
            shares.append(row(f"{name}, {arm}", "%", 100 * more / step, at_most=bound, note=note))
            bound = None if bound is None else 1 + bound / 100
            ratios.append(row(f"{name}, {arm}", "x", whole[arm] / whole["alone"], at_most=bound, judged=judged))
        ratios.append(row(f"{name}: the base optimizer against itself", "x", again))
    return {
        "Jumps at even intervals, what they add to the update of a step, as a share of the step": shares,
        "Jumps at even intervals, whole steps against the base optimizer alone": ratios,
    }


def _updates(params: Any, tx: optax.GradientTransformation) -> Callable[[int], Any]:
    """Returns a function that makes so many updates with gradients that cost nothing."""
    params = jax.tree.map(jnp.copy, params)
    carry, step = [params, jax.jit(tx.init)(params)], _update(tx)

    def calls(count: int) -> Any:
        for _ in range(count):
            carry[:] = step(*carry, np.float32(1e-3))
        return carry[0]

    jax.block_until_ready(calls(1))
    return calls


def _update(tx: optax.GradientTransformation) -> Any:
    """Returns the jitted update, in the buffers of parameters and optimizer state, with gradients toward zero."""

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Any, state: Any, decay: Any) -> Any:
        updates, state = tx.update([-decay * param for param in params], state, params)
        return optax.apply_updates(params, updates), state

    return step


# What is measured, and the part of the repetitions for it.
SECTIONS: dict[str, tuple[Callable[[int], Section], float]] = {
    "idle": (idle, 1),
    "jump": (jump, 0.5),
    "compilation": (compilation, 0.1),
    "host": (host, 1),
    "outer": (outer, 0.075),
}


def benchmark(output: Path = Path("runs/benchmark"), repetitions: int = 40, only: Sequence[str] = ()) -> None:
    """Measures what jumps cost: idle steps, a jump, compilation, calls, and outer momentum.

    It takes a quarter of an hour on two cores that do nothing else. PyTorch takes part where it is installed, as by the
    extra `benchmark`.

    Args:
      output: The folder that gets benchmark.json and benchmark.png, and the tables in benchmark.md.
      repetitions: Of the short measurements; long ones are repeated less.
      only: Which to measure, of idle, jump, compilation, host and outer; the others stay as they are in the folder.
    """
    if unknown := sorted(set(only) - set(SECTIONS)):
        raise ValueError(f"only must be of {', '.join(SECTIONS)}; got {', '.join(unknown)}")
    if repetitions < 1:
        raise ValueError(f"repetitions must be a positive integer; got {repetitions}")
    output.mkdir(parents=True, exist_ok=True)
    file, page = output / "benchmark.json", output / "benchmark.md"
    text = page.read_text() if page.exists() else PAGE
    if not MARKED.search(text):
        raise ValueError(f"{page} must have <!-- table: benchmark --> and <!-- end --> around its tables")
    measured = json.loads(file.read_text()) if file.exists() else {}
    for name in only or SECTIONS:
        function, part = SECTIONS[name]
        count = math.ceil(part * repetitions)
        tables = {title: [dataclasses.asdict(r) for r in rows] for title, rows in function(count).items()}
        measured[name] = {"machine": machine(), "repetitions": count, "tables": tables}
        print(table({name: measured[name]}))
        ordered = {name: measured[name] for name in SECTIONS if name in measured}
        file.write_text(json.dumps(ordered, indent=1) + "\n")  # at once, so that an interrupted run keeps what it has
    draw(measured, output / "benchmark.png")
    page.write_text(MARKED.sub(lambda match: f"{match[1]}\n{table(ordered)}\n{match[2]}", text))


def table(measured: dict[str, Any]) -> str:
    """Returns the measurements as Markdown."""
    lines = []
    for section in measured.values():
        for title, rows in section["tables"].items():
            lines += [f"## {title}", "", f"{section['repetitions']} repetitions; {section['machine']}", ""]
            lines += ["| what | median | quartiles | bound | |", "| --- | ---: | ---: | --- | --- |"]
            lines += [_line(Row(**r)) for r in rows]
            lines += [""]
    return "\n".join(lines)


def _line(r: Row) -> str:
    if r.median is None:
        return f"| {r.what} | | | | {r.note} |"
    quartiles = "" if r.low == r.high else f"{r.low:.3g} to {r.high:.3g}"
    bound = ""
    if r.at_most is not None:
        met = ("met" if r.median <= r.at_most else "**not met**") if r.judged else "not judged"
        bound = f"≤ {r.at_most:.3g} {r.unit}, {met}".replace(" ,", ",")
    return f"| {r.what} | {r.median:.3g} {r.unit} | {quartiles} | {bound} | {r.note} |"


def machine() -> str:
    """Returns the versions and the machine, in a line."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "jaxlib", "flax", "optax"))
    return f"Python {platform.python_version()}, {versions}; {jax.devices()[0].device_kind}, {_processor()}"


def _processor() -> str:
    cores = f"{os.cpu_count()} cores, {platform.machine()}"
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return cores
    return next((f"{line.split(':')[1].strip()}, {cores}" for line in lines if line.startswith("model name")), cores)


def draw(measured: dict[str, Any], path: Path) -> None:
    """Draws idle steps, and the ways to forecast."""
    figure = Figure(figsize=(10, 4.8), layout="constrained")
    panels = {"idle": "time of an idle step / of the base optimizer", "jump": "ns a weight"}
    for axis, (name, label) in zip(figure.subplots(1, 2), panels.items(), strict=True):
        first, *_ = measured[name]["tables"].values() if name in measured else [[]]
        rows = [Row(**r) for r in first if r["median"] is not None]
        for y, r in enumerate(rows):
            color, marker = ("0.5", "s") if "itself" in r.what else ("#0072B2", "o")
            axis.plot([r.low, r.high], [y, y], color=color, linewidth=2)
            axis.plot(r.median, y, marker, color=color)
        axis.set_yticks(
            range(len(rows)), [r.what.replace(", ", ",\n", 1).replace(": ", ":\n") for r in rows], fontsize=7
        )
        axis.invert_yaxis()
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
        axis.set(xlabel=label, xscale="log" if name == "jump" else "linear")
        if name == "idle":
            axis.axvline(1.01, color="black", linewidth=0.8, linestyle="--")
    figure.savefig(path, dpi=110, metadata={"Software": None})
