"""What a jump costs, against other ways to evaluate the same network and against the limits of the machine."""

import functools
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from optax_introspect import introspect, pretrained

from .rows import Row, interleaved, row, temporaries
from .steps import lower_update

# The largest array of the tree that jumps, its columns, and the weights that NumPy and PyTorch take at a time.
LARGEST_ARRAY = 2_500_000
COLUMNS = 1000
CHUNK = 1 << 16

# Trees of other shapes: columns and the largest array. The shape decides how well a loop over an array is vectorised,
# and arrays beyond the largest of a tree are evaluated in the compact form.
OTHER_TREES = {"100 columns": (100, LARGEST_ARRAY), "1000 columns, arrays of 50 000 weights": (1000, 50_000)}

# The Flax module under `jax.vmap` keeps 164 bytes for every weight: 16 GB for the largest size.
MOST_FOR_VMAP = 10e6

Forms = dict[str, Callable[[], Any]]

JUMP = "jump"
VMAP = "Flax module under jax.vmap"
NUMPY = "NumPy, 65 536 weights at a time"
TORCH = "PyTorch, 65 536 weights at a time"
STREAM = "reading four arrays and writing one"
MULTIPLY_ADD = "200 multiply-adds, as fast as a matrix product"


def jumps(repetitions: int) -> list[Row]:
    """Measures a jump for more and more weights."""
    rows = []
    for weights in (100_000, 1_000_000, 10_000_000, 100_000_000):
        rows += jump(weights, max(repetitions // (8 if weights > 50e6 else 2), 2))
    return rows + other_trees(10_000_000, max(repetitions // 2, 2))


def other_trees(weights: int, repetitions: int) -> list[Row]:
    """Measures jumps of trees of other shapes than those of :func:`jump`, against the multiply-add limit."""
    run, memory = {}, {}
    for name, (columns, largest) in OTHER_TREES.items():
        run[name], memory[name] = _jump(weights, columns, largest)
    run[MULTIPLY_ADD] = _limits(weights)[MULTIPLY_ADD]
    seconds = interleaved(run, repetitions)
    _points.cache_clear()
    limit = 200 * float(np.median(seconds[MULTIPLY_ADD])) / _MATRIX**3
    rows = []
    for name, mb in memory.items():
        what = f"{JUMP}, {weights / 1e6:g} M weights, {name}"
        rows.append(row("jump", what, "ns a weight", 1e9 * seconds[name] / weights, at_most=6.0))
        rows.append(row("jump", f"{what}, against multiply-adds", "x", seconds[name] / weights / limit, at_most=1.7))
        rows.append(row("jump", f"temporaries of a {what}", "MB", mb, at_most=64.0))
    return rows


def jump(weights: int, repetitions: int) -> list[Row]:
    """Measures a jump of so many weights: the whole step, with captures looked for, choice and update.

    PyTorch takes part where it is installed, as by the extra `benchmark`.
    """
    # OpenMP would go on using the cores for a while after PyTorch is done, at the cost of whoever comes next.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    one_jump, memory = _jump(weights, COLUMNS, LARGEST_ARRAY)
    # A matrix product comes before the jump, so that it is the one to wait for leftover threads of PyTorch.
    forms: Forms = {**_other_forms(weights), **_limits(weights), JUMP: one_jump}
    seconds = interleaved(forms, repetitions)
    _points.cache_clear()
    ns = {name: 1e9 * taken / weights for name, taken in seconds.items()}
    ns[MULTIPLY_ADD] = 200 * 1e9 * seconds[MULTIPLY_ADD] / _MATRIX**3
    limit = max(float(np.median(ns[STREAM])), float(np.median(ns[MULTIPLY_ADD])))

    section, size = "jump", f"{weights / 1e6:g} M weights"
    rows = [
        row(
            section,
            f"{name}, {size}",
            "ns a weight",
            ns[name],
            at_most=6.0 if name == JUMP else None,
            place={"form": name, "weights": weights},
        )
        for name in (JUMP, STREAM, MULTIPLY_ADD, VMAP, NUMPY, TORCH)
        if name in ns
    ]
    against_limit = f"{JUMP} against the larger of stream and multiply-adds, {size}"
    rows.append(row(section, against_limit, "x", ns[JUMP] / limit, at_most=1.7))
    for name in (name for name in (VMAP, NUMPY, TORCH) if name in ns):
        bound = 15.0 if name == VMAP else None
        rows.append(row(section, f"{name} against {JUMP}, {size}", "x", ns[name] / ns[JUMP], at_least=bound))
    rows.append(row(section, f"temporaries of a {JUMP}, {size}", "MB", memory, at_most=64.0))
    return rows


def _jump(weights: int, columns: int, largest: int) -> tuple[Callable[[], Any], float]:
    """Returns a function that jumps in place, again and again, and the temporaries that it needs."""
    number = -(-weights // largest)
    shape = (weights // number // columns, columns)
    params = [0.05 * jax.random.normal(jax.random.key(i), shape) for i in range(number)]
    tx = introspect((10, 20, 30))
    state = jax.jit(tx.init)(params)
    compiled = lower_update(tx, params, state).compile()
    zeros = [jnp.zeros(shape)] * number
    before = [params, state._replace(introspect_step=jnp.int32(30))]

    def once() -> Any:
        params, state = compiled(zeros, *before)
        before[:] = params, state._replace(introspect_step=jnp.int32(30))
        return params

    once()
    if not before[1].jumps_taken:
        raise AssertionError("there was no jump to be measured")
    return once, temporaries(compiled)


_MATRIX = 2048


def _limits(weights: int) -> Forms:
    """Returns what no jump can be faster than."""
    now, *before = _points(weights)
    matrix = jnp.ones((_MATRIX, _MATRIX))
    stream = _in_place(lambda now, *before: 0.25 * functools.reduce(jnp.add, before, now), now, before)
    multiply = jax.jit(lambda x: x @ x)
    return {STREAM: stream, MULTIPLY_ADD: lambda: multiply(matrix)}


def _other_forms(weights: int) -> Forms:
    """Returns other ways to evaluate the same network."""
    forecaster = pretrained()
    network: Any = forecaster.network
    hidden, _, last = network.layers
    kernels, biases = zip(*((np.asarray(x.kernel[...]), np.asarray(x.bias[...])) for x in (hidden, last)), strict=True)
    points = _points(weights)
    arrays = [np.asarray(point) for point in points]
    forms: Forms = {}
    if weights <= MOST_FOR_VMAP:
        now, *before = points
        forms[VMAP] = _in_place(lambda *w: forecaster.definition([1000 * x for x in w]) / 1000, now, before)

    def by_numpy(inputs: npt.NDArray[Any]) -> npt.NDArray[Any]:
        units = np.maximum(inputs @ kernels[0] + biases[0], 0)
        found: npt.NDArray[Any] = (units @ kernels[1] + biases[1]) / 1000
        return found

    forms[NUMPY] = lambda: _in_chunks(by_numpy, arrays)
    try:
        import torch
    except ImportError:
        return forms
    layers = torch.nn.Linear(*kernels[0].shape), torch.nn.Linear(*kernels[1].shape)
    with torch.no_grad():
        for layer, kernel, bias in zip(layers, kernels, biases, strict=True):
            layer.weight.copy_(torch.from_numpy(kernel.T.copy()))
            layer.bias.copy_(torch.from_numpy(bias.copy()))
    in_torch = torch.nn.Sequential(layers[0], torch.nn.ReLU(), layers[1])

    def by_torch(inputs: npt.NDArray[Any]) -> npt.NDArray[Any]:
        with torch.inference_mode():
            found: npt.NDArray[Any] = in_torch(torch.from_numpy(inputs)).numpy() / 1000
        return found

    forms[TORCH] = lambda: _in_chunks(by_torch, arrays)
    return forms


def _in_chunks(function: Callable[..., npt.NDArray[Any]], arrays: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    forecast = np.empty_like(arrays[0])
    for start in range(0, forecast.size, CHUNK):
        piece = slice(start, start + CHUNK)
        forecast[piece] = function(np.stack([1000 * array[piece] for array in arrays], -1))[:, 0]
    return forecast


@functools.cache
def _points(weights: int) -> list[jax.Array]:
    return [0.05 * jax.random.normal(key, (weights,)) for key in jax.random.split(jax.random.key(0), 4)]


def _in_place(function: Callable[..., jax.Array], now: jax.Array, before: list[jax.Array]) -> Callable[[], Any]:
    """Returns a function that replaces an array by what is computed of it and others, in its own buffer."""
    compiled = jax.jit(function, donate_argnums=0).lower(now, *before).compile()
    state = [jnp.copy(now)]

    def run() -> Any:
        state[0] = compiled(state[0], *before)
        return state[0]

    return run
