"""The trainer of the introspection network."""

import functools
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import nnx
from jax import lax
from rich.progress import Progress

from . import arguments
from .files import name_file, read_json, write_atomically
from .forecast import Forecaster, Introspection, introspection
from .network import IntrospectionNetwork
from .sampling import Array, Examples, split_by_weight

# Steps that are scanned in one call, after which there is progress to be seen.
_BLOCK = 500
# Blocks between two checkpoints.
_CHECKPOINT_EVERY = 10
_MAX_SETTINGS_BYTES = 2**20

# Of the error and the target, both scaled, as Keras defines the percentage error.
LOSSES: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "l1": lambda error, target: jnp.abs(error),
    "l2": lambda error, target: jnp.square(error),
    "percentage": lambda error, target: 100 * jnp.abs(error) / jnp.maximum(jnp.abs(target), 1e-7),
}


class Fit(NamedTuple):
    """A fitted introspection network, and what it was fitted and validated on.

    Attributes:
      forecaster: the forecaster.
      train: the examples that it was fitted on.
      validation: examples of other weights.
    """

    forecaster: Introspection
    train: Examples
    validation: Examples


def fit(
    examples: Examples,
    *,
    hidden: Sequence[int] = (40,),
    activation: str = "relu",
    use_bias: bool = True,
    relative: bool = False,
    loss: str = "l1",
    scale: float = 1000.0,
    num_steps: int = 30_000,
    batch_size: int = 20,
    learning_rate: float = 5e-4,
    decay_every: int = 8000,
    decay_factor: float = 0.5,
    validation_share: float = 0.1,
    seed: int = 0,
    workdir: str | Path | None = None,
    progress: bool = True,
) -> Fit:
    r"""Fits an introspection network to examples of how weights evolve.

    .. math:: \min_I \; \mathbb{E} \left| I(c\, w_t, c\, w_{0.7t}, c\, w_{0.4t}, c\, w_0) - c\, w_{kt} \right|

    by Adam, whose learning rate is multiplied by a factor every so many steps. The defaults are the paper's; it says
    that the rate falls every 8000 steps, not by how much. The examples of a share of the weights are kept for
    validation. The same arguments give the same network, bit for bit, on the same machine.

    Args:
      examples: from :func:`optax_introspect.sample_examples`.
      hidden: units of each hidden layer.
      activation: after each hidden layer, `"relu"` or `"identity"`.
      use_bias: whether the layers have biases.
      relative: whether they map differences to `w_t` to the change of the weight. Relative and without biases, the
        forecast is shifted and scaled with the weights, see :class:`optax_introspect.IntrospectionNetwork`.
      loss: `"l1"`, `"l2"` or `"percentage"`.
      scale: `c`.
      num_steps: updates to be made.
      batch_size: examples an update; the order of the examples is new in every epoch.
      learning_rate: Adam's, at first.
      decay_every: updates after which the learning rate falls.
      decay_factor: what it is then multiplied by.
      validation_share: the share of the weights that are kept for validation.
      seed: of the initial network, the split and the order of the examples.
      workdir: a folder for checkpoints, from which a fit that was interrupted goes on.
      progress: whether to show a progress bar.

    Returns:
      The fit.

    Raises:
      ValueError: arguments that are out of their range, examples that are not finite or too few for one batch, or a
        `workdir` of a fit with other arguments.
      FloatingPointError: the loss or the network became infinite or NaN.
      OSError: a checkpoint can't be written; the one before stays, and the fit can go on from it.

    Examples:
      >>> import numpy as np
      >>> t, speed = np.full(1000, 100), np.linspace(-1, 1, 1000, dtype=np.float32)[:, None]
      >>> line = speed * np.array([1, 0.7, 0.4, 0, 2], np.float32)
      >>> examples = Examples(line[:, :4], line[:, 4], np.arange(1000), t, (1, 0.7, 0.4, 0), 2.0)
      >>> result = fit(examples, scale=1, num_steps=2000, progress=False)
      >>> l1(result.forecaster, result.validation) < 0.1 < l1(None, result.validation)
      True

    References:
      Sinha et al., "Introspection: Accelerating Neural Network Training by Learning Weight Evolution", ICLR 2017,
      section 4.1.
    """
    if loss not in LOSSES:
        raise ValueError(f"unknown loss {loss!r}; known are {sorted(LOSSES)}")
    for name, count in {"num_steps": num_steps, "batch_size": batch_size, "decay_every": decay_every}.items():
        arguments.integer(name, count)
    for name, value in {"scale": scale, "learning_rate": learning_rate, "decay_factor": decay_factor}.items():
        arguments.number(name, value)
    if not (np.all(np.isfinite(examples.inputs)) and np.all(np.isfinite(examples.targets))):
        raise ValueError("the examples must be finite; some of their weights are infinite or NaN")
    train, validation = split_by_weight(examples, validation_share, seed)
    if len(train.targets) < batch_size:
        raise ValueError(
            f"batch_size must be at most the number of training examples, {len(train.targets)}; got {batch_size}"
        )

    network = IntrospectionNetwork(
        len(examples.points), hidden, activation, use_bias=use_bias, relative=relative, rngs=nnx.Rngs(seed)
    )
    graphdef, params = nnx.split(network)
    schedule = optax.exponential_decay(learning_rate, decay_every, decay_factor, staircase=True)
    tx = optax.adam(schedule)
    run_block = _block_function(graphdef, tx, LOSSES[loss])
    batches = _batches(train, scale, batch_size, seed)
    settings = {
        "hidden": list(network.hidden),
        "activation": activation,
        "use_bias": use_bias,
        "relative": relative,
        "loss": loss,
        "scale": float(scale),
        "batch_size": int(batch_size),
        "learning_rate": float(learning_rate),
        "decay_every": int(decay_every),
        "decay_factor": float(decay_factor),
        "validation_share": float(validation_share),
        "seed": int(seed),
        "examples": _fingerprint(examples),
    }
    state = (params, tx.init(params))
    with _Checkpoints(workdir, settings) as checkpoints, Progress(disable=not progress) as bar:
        step, state = checkpoints.latest(state, num_steps)
        task = bar.add_task("fitting the introspection network", total=num_steps, completed=step)
        while step < num_steps:
            end = min(num_steps, step + _BLOCK)
            state, mean_loss = run_block(state, *batches(step, end))
            if not (math.isfinite(mean_loss) and all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(state[0]))):
                raise FloatingPointError(f"the fit diverged between steps {step} and {end}: its loss is {mean_loss}")
            step = end
            bar.update(task, completed=step)
            if step % (_BLOCK * _CHECKPOINT_EVERY) == 0 or step == num_steps:
                checkpoints.save(step, state)
    fitted = introspection(nnx.merge(graphdef, state[0]), points=examples.points, scale=scale)
    return Fit(fitted, train, validation)


def l1(forecaster: Forecaster | None, examples: Examples) -> float:
    r"""Returns the mean absolute error of forecasts, in the units of the weights.

    .. math:: \frac{1}{N} \sum_i |F(x_i) - y_i|

    Args:
      forecaster: the forecaster; None is *staying*, the forecast that the weight stays as it is.
      examples: the examples.

    Returns:
      The error.

    Raises:
      ValueError: the forecaster looks at a trajectory point that the examples do not have.

    Examples:
      >>> import numpy as np
      >>> line = np.array([[1.0, 0.7, 0.4, 0.0, 2.0]], np.float32)
      >>> examples = Examples(line[:, :4], line[:, 4], np.array([0]), np.array([100]), (1.0, 0.7, 0.4, 0.0), 2.0)
      >>> l1(None, examples)
      1.0

    References:
      Sinha et al., "Introspection: Accelerating Neural Network Training by Learning Weight Evolution", ICLR 2017,
      section 4.1.
    """
    points = (1.0,) if forecaster is None else forecaster.points
    if missing := set(points) - set(examples.points):
        raise ValueError(f"the examples have the points {examples.points}; the forecaster also needs {sorted(missing)}")
    inputs = [jnp.asarray(examples.inputs[:, examples.points.index(point)]) for point in points]
    forecasts = inputs[0] if forecaster is None else jax.jit(lambda *w: forecaster(*w, key=jax.random.key(0)))(*inputs)
    return float(np.mean(np.abs(np.asarray(forecasts, np.float64) - examples.targets)))


def _block_function(graphdef: Any, tx: Any, loss: Callable[[jax.Array, jax.Array], jax.Array]) -> Any:
    """Returns the function that makes the updates of a block of batches."""

    def update(state: Any, batch: Any) -> tuple[Any, jax.Array]:
        params, opt_state = state
        inputs, targets = batch

        def mean_loss(params: Any) -> jax.Array:
            network: Any = nnx.merge(graphdef, params)
            return jnp.mean(loss(network(inputs)[:, 0] - targets, targets))

        value, gradients = jax.value_and_grad(mean_loss)(params)
        updates, opt_state = tx.update(gradients, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), value

    @functools.partial(jax.jit, donate_argnums=0)
    def run_block(state: Any, inputs: jax.Array, targets: jax.Array) -> tuple[Any, jax.Array]:
        state, losses = lax.scan(update, state, (inputs, targets))
        return state, jnp.mean(losses)

    return run_block


def _batches(examples: Examples, scale: float, batch_size: int, seed: int) -> Callable[[int, int], tuple[Array, Array]]:
    """Returns the function from the first and last step of a block to its batches, scaled."""
    per_epoch = len(examples.targets) // batch_size

    @functools.lru_cache(maxsize=2)
    def order(epoch: int) -> Array:
        permutation = np.random.default_rng([seed, epoch]).permutation(len(examples.targets))
        return permutation[: per_epoch * batch_size].reshape(per_epoch, batch_size)

    def batches(start: int, end: int) -> tuple[Array, Array]:
        chosen = np.stack([order(step // per_epoch)[step % per_epoch] for step in range(start, end)])
        return np.float32(scale) * examples.inputs[chosen], np.float32(scale) * examples.targets[chosen]

    return batches


def _fingerprint(examples: Examples) -> str:
    digest = hashlib.sha256(repr((examples.points, examples.jump_ratio)).encode())
    for array in (examples.inputs, examples.targets, examples.weights):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


class _Checkpoints:
    """Where a fit can go on: a folder that belongs to its settings, or nothing."""

    def __init__(self, workdir: str | Path | None, settings: dict[str, Any]):
        self._manager: Any = None
        if workdir is None:
            return
        folder = Path(workdir).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "settings.json"
        if path.exists():
            try:
                found = read_json(path, _MAX_SETTINGS_BYTES)
                differ = sorted(name for name in settings if found.get(name) != settings[name])
            except (OSError, ValueError, AttributeError) as error:
                raise ValueError(f"{path} does not hold the settings of a fit: {error}") from error
            if differ:
                changes = ", ".join(f"{name} was {found.get(name)!r} and is {settings[name]!r}" for name in differ)
                raise ValueError(f"{workdir} belongs to a fit with other settings: {changes}")
        elif any(entry.name != f"{path.name}.tmp" for entry in folder.iterdir()):
            raise ValueError(f"{workdir} holds something, but no settings of a fit in {path.name}")
        else:
            write_atomically(path, json.dumps(settings, indent=2).encode())
        # The state is small, and so soon written. Where it can't be, the fit is to end then, and not some blocks later.
        options = ocp.CheckpointManagerOptions(max_to_keep=1, enable_async_checkpointing=False)
        self._manager = ocp.CheckpointManager(folder, options=options)

    def __enter__(self) -> "_Checkpoints":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._manager is not None:
            self._manager.close()

    def latest(self, state: Any, num_steps: int) -> tuple[int, Any]:
        """Returns the step and state to go on from."""
        step = self._manager.latest_step() if self._manager is not None else None
        if step is None:
            return 0, state
        for older in set(self._manager.all_steps()) - {step}:  # which a fit that was killed was about to drop
            self._manager.delete(older)
        if step > num_steps:
            raise ValueError(f"num_steps must be at least the {step} steps that the fit has made; got {num_steps}")
        return step, self._manager.restore(step, args=ocp.args.StandardRestore(state))

    def save(self, step: int, state: Any) -> None:
        """Keeps a state, and drops the one before."""
        if self._manager is None:
            return
        try:
            self._manager.save(step, args=ocp.args.StandardSave(jax.tree.map(np.asarray, state)))
        except OSError as error:
            name_file(error, Path(self._manager.directory))
            raise
