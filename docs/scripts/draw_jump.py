"""Draws `docs/jump.png`: one weight in a training with a jump and in one without.

Run `python -m docs.scripts.draw_jump` in the top folder of the repository.
"""

import sys
from pathlib import Path

import jax
import matplotlib
import numpy as np
import optax

from examples.problem import batch, initial_params, loss
from optax_introspect import introspect, pretrained

ROOT = Path(__file__).parents[2]

JUMP, STEPS = 200, 420
UNIT = (5, 9)  # the weight that is drawn


def path(tx: optax.GradientTransformation) -> np.ndarray:
    """Returns a weight of the first layer at every step of a training."""

    @jax.jit
    def train_step(params, state, x, y):
        updates, state = tx.update(jax.grad(loss)(params, x, y), state, params)
        return optax.apply_updates(params, updates), state

    params = initial_params()
    state, weights = tx.init(params), [params["w1"][UNIT]]
    for step in range(STEPS):
        params, state = train_step(params, state, *batch(step))
        weights.append(params["w1"][UNIT])
    return np.array(weights)


def main(file: Path = ROOT / "docs" / "jump.png") -> None:
    """Trains, draws and writes the picture."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    plain = path(optax.adam(1e-3))
    jumped = path(optax.chain(optax.adam(1e-3), introspect((JUMP,))))
    at = [round(point * JUMP) for point in pretrained().points]
    forecast = float(pretrained().definition(*(plain[[step]] for step in at))[0])

    figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
    axes.plot(plain, color="black", label="without a jump")
    axes.plot(np.arange(JUMP, STEPS + 1), jumped[JUMP:], color="#0072b2", label="with a jump")
    axes.plot(at, plain[at], "o", color="#d55e00", label="the four points")
    axes.plot(JUMP + 1, forecast, "X", markersize=9, color="#d55e00", label="the forecast")
    for step, name in zip(at, ("t", "0.7t", "0.4t", "0"), strict=True):
        axes.annotate(f"$w_{{{name}}}$", (step, plain[step]), (5, 6), textcoords="offset points")
    axes.set(xlabel="step", ylabel="weight")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(file, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
