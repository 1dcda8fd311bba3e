"""What it costs to record a history, to sample examples from it, and to fit a predictor to them."""

import tempfile
import time
from typing import Any

import jax
import numpy as np
import optax

from optax_introspect import WeightHistory, fit, sample_examples

from ..networks import ConvNet
from ..training import Task
from .networks import noise_images
from .rows import Row, interleaved, row


def recording(repetitions: int) -> list[Row]:
    """Measures 100 training steps of `N_0` with a record of its weights against 100 without."""
    task = Task(ConvNet, noise_images(), 50, seed=0)
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
    return [row("history", "training N_0 with a record at every 100th step, against none", "x", ratio, note=note)]


def fitting(repetitions: int) -> list[Row]:
    """Measures sampling and fitting at the paper's size."""
    few = range(max(repetitions // 10, 2))
    with tempfile.TemporaryDirectory() as folder:
        random = np.random.default_rng(0)
        weights = {"w": random.normal(size=550_000).astype(np.float32)}
        with WeightHistory.record(folder, weights) as history:
            for step in range(0, 20_001, 100):
                weights["w"] += random.normal(size=550_000).astype(np.float32) * 1e-3
                history.append(step, weights)
        sampling = []
        for _ in few:
            began = time.perf_counter()
            examples = sample_examples(history)
            sampling.append(time.perf_counter() - began)
    fits = []
    for seed in few:
        began = time.perf_counter()
        fit(examples, seed=seed, progress=False)
        fits.append(time.perf_counter() - began)
    rates = len(examples.targets) / np.array(sampling) / 1e6, 30_000 * 20 / np.array(fits) / 1e6
    unit = "M examples/s"
    return [
        row("history", "sampling 800 000 examples from 0.55 M weights at 201 steps", unit, rates[0]),
        row("history", "fitting, 30 000 steps of batch 20, with compilation", unit, rates[1]),
    ]
