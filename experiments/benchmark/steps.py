"""What every step of a training pays: time and memory of idle steps, compilation, and the optimizer state."""

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from optax_introspect import introspect, plan

from ..networks import Mlp
from ..training import Optimizer, Task, Trained
from .networks import FAMILIES, Family, noise_images, transformer
from .rows import Row, interleaved, row, temporaries

# So far away that no measured step captures anything but w_0, in the first.
JUMP_STEPS = (30_000, 40_000, 50_000)

OPTIMIZERS: dict[str, Callable[[], optax.GradientTransformation]] = {
    "SGD": lambda: optax.sgd(1e-3),
    "Adam": lambda: optax.adam(1e-3),
    "AdamW with clipping": lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3)),
}

# The schedules of the paper.
SCHEDULES = {
    "MNIST_1": (3000, 4000, 5000),
    "MNIST_2": (2500, 3000),
    "MNIST_3": (6000, 8000, 10_000),
    "MNIST_4": (2000, 3000, 4000),
    "CIFAR_1, set 1": (12_000, 17_000),
    "CIFAR_1, set 2": (15_000, 18_000),
    "CIFAR_1, set 3": (12_000, 15_000, 19_000),
    "CIFAR_1, set 4": (14_000, 17_000, 20_000),
    "AlexNet_1": (120_000, 130_000, 144_000, 160_000),
    "Inception_v1, first": (200_000, 400_000, 600_000),
    "Inception_v1, second": (300_000, 600_000, 900_000),
}


# The last two differ in how many snapshots are alive at once.
COMPILED_SCHEDULES = {
    "1 jump": (3000,),
    "4 jumps": tuple(range(3000, 7000, 1000)),
    "32 jumps, each 1.7 times as late": tuple(round(10 * 1.7**i) for i in range(32)),
    "32 jumps, every 1000 steps": tuple(range(3000, 35_000, 1000)),
}


CONTROLS = "controls of the idle steps"

SCANNED = "idle step, several in one call"
STEPS_A_CALL = 10


def idle_steps(repetitions: int) -> list[Row]:
    """Measures a step at which nothing happens against the base optimizer alone."""
    rows = []
    for family in FAMILIES:
        for weights in family.batches:
            for optimizer in OPTIMIZERS:
                # A step of the largest networks takes half a second, so that fewer repetitions tell as much.
                rows += idle_step(family, weights, optimizer, max(repetitions // (3 if weights > 20e6 else 1), 1))
    return rows


def idle_step(family: Family, weights: float, optimizer: str, repetitions: int) -> list[Row]:
    """Measures idle steps of one network and one optimizer.

    As in a training, the next step is handed over while the last one runs; only a burst of them is waited for.
    """
    task = family.task(weights)
    base = OPTIMIZERS[optimizer]()
    jumps = introspect(JUMP_STEPS)
    arms = {
        "alone": base,
        "chained": optax.chain(base, jumps),
        # Two controls: how far the same thing is from itself, and what it takes to hand as many arrays through.
        "again": base,
        "handed through": optax.chain(base, _handed_through(jumps)),
    }
    memory, run = {}, {}
    for arm, tx in arms.items():
        memory[arm], run[arm] = _training(task, tx)
    for arm in arms:
        jax.block_until_ready(run[arm](1))
    began = time.perf_counter()
    jax.block_until_ready(run["alone"](2))
    burst = min(max(round(0.2 / (time.perf_counter() - began)), 1), 20)
    seconds = interleaved({arm: functools.partial(run[arm], burst) for arm in arms}, repetitions)

    what, place = _described(optimizer, family, task)
    step = f"{1e3 * np.median(seconds['alone']) / burst:.1f} ms a step"
    more = memory["chained"] - memory["alone"]
    return [
        row("idle step", what, "x", seconds["chained"] / seconds["alone"], at_most=1.01, note=step, place=place),
        row("temporaries of a step, above the base optimizer's", what, "MB", more, at_most=1.0),
        row(CONTROLS, f"{what}: the base optimizer against itself", "x", seconds["again"] / seconds["alone"]),
        row(
            CONTROLS,
            f"{what}: the state of the jumps handed through",
            "x",
            seconds["handed through"] / seconds["alone"],
        ),
        row(CONTROLS, f"{what}: jumps, against that", "x", seconds["chained"] / seconds["handed through"]),
    ]


def scanned_steps(repetitions: int) -> list[Row]:
    """Measures idle steps of which one call makes several: arrays are handed over once for all of them."""
    return [
        scanned_step(family, weights, optimizer, repetitions)
        for family in FAMILIES
        if family.name in {"MLP", "transformer"}
        for weights in (1e6, 10e6)
        for optimizer in ("SGD", "Adam")
    ]


def scanned_step(family: Family, weights: float, optimizer: str, repetitions: int) -> Row:
    """Measures several idle steps in one `jax.lax.scan`, of one network and one optimizer."""
    task, base = family.task(weights), OPTIMIZERS[optimizer]()
    arms = {"alone": base, "chained": optax.chain(base, introspect(JUMP_STEPS))}
    run = {arm: _scan(task, tx) for arm, tx in arms.items()}
    for call in run.values():
        call()  # which captures w_0
    seconds = interleaved(run, repetitions)
    what, _ = _described(optimizer, family, task)
    step = f"{STEPS_A_CALL} steps a call, {1e3 * np.median(seconds['alone']) / STEPS_A_CALL:.1f} ms a step"
    return row(SCANNED, what, "x", seconds["chained"] / seconds["alone"], note=step)


def _scan(task: Task, tx: optax.GradientTransformation) -> Callable[[], Any]:
    """Returns a function that makes several steps in one call."""
    update = task.update_function(Optimizer(tx))

    def steps(trained: Trained) -> Trained:
        return lax.scan(lambda trained, _: (update(trained, 0), None), trained, length=STEPS_A_CALL)[0]

    params = jax.tree.map(jnp.copy, task.params)
    trained = [Trained(params, jax.jit(tx.init)(params), task.statistics)]
    compiled = jax.jit(steps, donate_argnums=0).lower(*trained).compile()

    def call() -> Any:
        trained[0] = compiled(trained[0])
        return jax.tree.leaves(trained[0].params)[0]

    return call


def _described(optimizer: str, family: Family, task: Task) -> tuple[str, dict[str, Any]]:
    """Returns what is measured, in words and for a figure."""
    leaves = jax.tree.leaves(task.params)
    size = sum(leaf.size for leaf in leaves)
    what = f"{optimizer}, {family.name}, {size / 1e6:.1f} M weights in {len(leaves)} arrays"
    return what, {"family": family.name, "optimizer": optimizer, "weights": size, "arrays": len(leaves)}


def _handed_through(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """Returns a transformation with the state of another one, of which it does nothing."""
    # The barrier keeps JAX from leaving out of the computation what only passes through it.
    return optax.GradientTransformation(tx.init, lambda u, state, params=None: (u, lax.optimization_barrier(state)))


def _training(task: Task, tx: optax.GradientTransformation) -> tuple[float, Callable[[int], Any]]:
    """Returns the temporaries of a step, and a function that makes some steps."""
    params = jax.tree.map(jnp.copy, task.params)
    state = [params, jax.jit(tx.init)(params), task.statistics]
    compiled = task.lower(tx, *state[:2]).compile()
    batch = task.batch(0)

    def some_steps(steps: int) -> Any:
        for _ in range(steps):
            state[:] = compiled(*state, *batch, np.int32(0))
        return jax.tree.leaves(state[0])[0]  # waiting for one array is waiting for the step

    return temporaries(compiled), some_steps


def compilation(repetitions: int) -> list[Row]:
    """Measures the compilation of a whole step of Adam against that without jumps."""
    section, rows = "compilation, above the base optimizer's", []
    few = max(repetitions // 10, 1)
    networks = (
        (functools.partial(Mlp, (784, 1000, 1000, 1000, 1000, 10)), None),
        (transformer(27e6, blocks=10), 10.0),  # 230 thousand weights in an array, or four times as many
        (transformer(84e6, blocks=31), 20.0),
    )
    for network, bound in networks:
        task = Task(network, noise_images(), 2, seed=0)
        arrays = len(jax.tree.leaves(task.params))
        base = [compile_seconds(task, optax.adam(1e-3)) for _ in range(few)]
        single = None
        for name, steps in COMPILED_SCHEDULES.items():
            tx = optax.chain(optax.adam(1e-3), introspect(steps))
            seconds = np.array([compile_seconds(task, tx) for _ in range(few)])
            single = seconds if single is None else single
            what = f"{arrays} arrays, {name}"
            note = f"{np.median(base):.1f} s without; {plan(steps).num_buffers} slots"
            place = {"arrays": arrays, "schedule": name}
            above = seconds - np.array(base)
            rows.append(row(section, what, "s", above, at_most=bound, note=note, place=place))
            if len(steps) == 32:
                what = f"{arrays} arrays, the whole step, {name} against 1 jump"
                rows.append(row(section, what, "x", seconds / single, at_most=1.1))
    return rows


def compile_seconds(task: Task, tx: optax.GradientTransformation) -> float:
    """Returns how long a step takes to trace, lower and compile."""
    state = jax.eval_shape(tx.init, task.params)
    began = time.perf_counter()
    task.lower(tx, task.params, state).compile()
    return time.perf_counter() - began


def states(repetitions: int) -> list[Row]:
    """Counts the bytes of the optimizer state, for the paper's schedules."""
    del repetitions
    params = jax.ShapeDtypeStruct((1_000_000,), jnp.float32)
    rows = []
    for name, steps in SCHEDULES.items():
        schedule = plan(steps)
        state = jax.eval_shape(introspect(steps).init, params)
        nbytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state.snapshots))
        if nbytes != schedule.nbytes(params):
            raise AssertionError(f"the state of {name} takes {nbytes} bytes, the plan says {schedule.nbytes(params)}")
        four_points = 4 * len(steps)
        note = f"{schedule.num_slots} slots, {nbytes} bytes for each million float32 weights, as the plan says"
        what = f"{name}, jumps at {', '.join(map(str, steps))}, against keeping four points for every jump"
        rows.append(row("optimizer state", what, "x", schedule.num_buffers / four_points, note=note))
    return rows


def billion(repetitions: int) -> list[Row]:
    """Compiles a step over a billion weights, without any of them in memory."""
    del repetitions
    params = [jax.ShapeDtypeStruct((25_000, 2000), jnp.bfloat16)] * 20
    base = optax.adam(1e-3)
    section = "a billion bfloat16 weights in 20 arrays, never allocated"
    found = {}
    for arm, tx in {"alone": base, "chained": optax.chain(base, introspect(JUMP_STEPS))}.items():
        began = time.perf_counter()
        state = jax.eval_shape(tx.init, params)
        lowered = lower_update(tx, params, state)
        lowering = time.perf_counter() - began
        compiled = lowered.compile()
        found[arm] = lowering, time.perf_counter() - began - lowering, compiled.memory_analysis()
    (lowering, compiling, memory), (_, base_compiling, base_memory) = found["chained"], found["alone"]
    schedule = plan(JUMP_STEPS)
    nbytes = schedule.nbytes(params)
    state_bytes = memory.argument_size_in_bytes - base_memory.argument_size_in_bytes
    above = (memory.temp_size_in_bytes - base_memory.temp_size_in_bytes) / 1e6
    return [
        row(section, "snapshots, as planned", "GB", nbytes / 1e9, note=f"{schedule.num_slots} slots"),
        row(section, "snapshots, as compiled", "GB", state_bytes / 1e9),
        row(section, "temporaries, above the base optimizer's", "MB", above, at_most=64.0),
        row(section, "shapes, tracing and lowering", "s", lowering),
        row(section, "compilation", "s", compiling, note=f"{base_compiling:.1f} s without jumps"),
    ]


def lower_update(tx: optax.GradientTransformation, params: Sequence[Any], state: Any) -> Any:
    """Returns the lowered update of weights whose gradients are given, in their own buffers."""

    def update(gradients: Any, params: Any, state: Any) -> Any:
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    return jax.jit(update, donate_argnums=(1, 2)).lower(params, params, state)
