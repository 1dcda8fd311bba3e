"""The trainer of the introspection network."""

import functools
import hashlib
import math
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import lax

from .. import _arguments
from ..forecasters._base import Forecaster
from ..forecasters._network import IntrospectionNetwork, NetworkForecaster, network_forecaster
from ._files import Array, local_path
from ._sampling import Examples, split_by_weight

# Steps that are scanned in one call.
_BLOCK = 500
# Blocks between two checkpoints.
_CHECKPOINT_EVERY = 10

# Of the error and the target, both scaled, as Keras defines the percentage error.
LOSSES: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "l1": lambda error, target: jnp.abs(error),
    "l2": lambda error, target: jnp.square(error),
    "percentage": lambda error, target: 100 * jnp.abs(error) / jnp.maximum(jnp.abs(target), 1e-7),
}


class Fit(NamedTuple):
    """A fitted predictor, and what it was fitted and validated on.

    Attributes:
      forecaster: The forecaster.
      train: The examples that it was fitted on.
      validation: Examples of other weights.
    """

    forecaster: NetworkForecaster
    train: Examples
    validation: Examples


def fit(
    examples: Examples,
    *,
    hidden: Sequence[int] = (40,),
    activation: str = "relu",
    use_bias: bool = True,
    residual: bool = False,
    loss: str = "l1",
    scale: float = 1000.0,
    num_steps: int = 30_000,
    batch_size: int = 20,
    learning_rate: float = 5e-4,
    decay_every: int = 8000,
    decay_factor: float = 0.5,
    validation_share: float = 0.1,
    seed: int = 0,
    workdir: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Fit:
    r"""Fits an introspection network to examples of how weights evolve.

    .. math:: \min_I \; \mathbb{E} \left| I(c\, w_t, c\, w_{0.7t}, c\, w_{0.4t}, c\, w_0) - c\, w_{2t} \right|

    by Adam, whose learning rate falls in steps. The defaults are the paper's, which does not say how far the rate
    falls. The same arguments give the same network, bit for bit, on the same machine.

    Args:
      examples: Made by :func:`optax_introspect.sample_examples`.
      hidden: Number of units of each hidden layer.
      activation: `"relu"` or `"identity"`, after each hidden layer.
      use_bias: Adds biases.
      residual: Maps differences to `w_t` to the change of the weight. With `use_bias=False`, a weight that has not
        moved is forecast not to move, see :class:`optax_introspect.IntrospectionNetwork`.
      loss: `"l1"`, `"l2"` or `"percentage"`.
      scale: `c`.
      num_steps: Number of updates.
      batch_size: Number of examples in a batch. Their order is new in every epoch.
      learning_rate: Adam's initial learning rate.
      decay_every: Number of updates between two falls of the learning rate.
      decay_factor: Factor of the learning rate at each fall.
      validation_share: Share of the weights whose examples are kept for validation.
      seed: Seed of the initial network, the split and the order of the examples.
      workdir: Folder for checkpoints, from which the same call goes on after it was interrupted. None keeps none.
      progress: Prints a line after each tenth of the steps.

    Returns:
      The fit.

    Raises:
      ValueError: An argument is out of its range, the examples are not finite or too few for a batch, or `workdir` is
        that of other arguments or damaged.
      FloatingPointError: The loss or the network became infinite or NaN.

    Examples:
      >>> t, speed = np.full(1000, 100), np.linspace(-1, 1, 1000, dtype=np.float32)[:, None]
      >>> line = speed * np.array([1, 0.7, 0.4, 0, 2], np.float32)
      >>> examples = Examples(line[:, :4], line[:, 4], np.arange(1000), t, (1.0, 0.7, 0.4, 0.0), 2.0)
      >>> result = fit(examples, scale=1, num_steps=2000, progress=False)
      >>> mean_absolute_error(result.forecaster, result.validation) < 0.1
      True

    References:
      Sinha et al., "Introspection: Accelerating Neural Network Training by Learning Weight Evolution", ICLR 2017,
      section 4.1.
    """
    if loss not in LOSSES:
        raise ValueError(f"loss must be one of {sorted(LOSSES)}; got {loss!r}")
    for name, count in {"num_steps": num_steps, "batch_size": batch_size, "decay_every": decay_every}.items():
        _arguments.integer(name, count)
    _arguments.integer("seed", seed, 0)
    for name, value in {"scale": scale, "learning_rate": learning_rate, "decay_factor": decay_factor}.items():
        _arguments.number(name, value)
    if not (np.all(np.isfinite(examples.inputs)) and np.all(np.isfinite(examples.targets))):
        raise ValueError("examples must be finite; some of their weights are infinite or NaN")
    train, validation = split_by_weight(examples, validation_share, seed)
    _arguments.integer("batch_size", batch_size, high=len(train.targets))

    network = IntrospectionNetwork(
        len(examples.points), hidden, activation, use_bias=use_bias, residual=residual, rngs=nnx.Rngs(seed)
    )
    settings = {
        "hidden": list(network.hidden),
        "activation": activation,
        "use_bias": use_bias,
        "residual": residual,
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
    graphdef, params = nnx.split(network)
    tx = optax.adam(optax.exponential_decay(learning_rate, decay_every, decay_factor, staircase=True))
    run_block = _block_function(graphdef, tx, LOSSES[loss])
    batches = _batches(train, scale, batch_size, seed)
    with _Checkpoints(workdir, settings) as checkpoints:
        step, state = checkpoints.latest((params, tx.init(params)), num_steps)
        while step < num_steps:
            end = min(num_steps, step + _BLOCK)
            state, mean_loss = run_block(state, *batches(step, end))
            if not (math.isfinite(mean_loss) and all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(state[0]))):
                raise FloatingPointError(f"the fit diverged between steps {step} and {end}: its loss is {mean_loss}")
            if progress and 10 * end // num_steps > 10 * step // num_steps:
                print(f"step {end} of {num_steps}: {loss} loss {mean_loss:.4g}", flush=True)
            step = end
            if step % (_BLOCK * _CHECKPOINT_EVERY) == 0 or step == num_steps:
                checkpoints.save(step, state)
    return Fit(network_forecaster(nnx.merge(graphdef, state[0]), examples.points, scale), train, validation)


def mean_absolute_error(forecaster: Forecaster | None, examples: Examples) -> float:
    r"""Returns the mean absolute error of forecasts, in the units of the weights.

    .. math:: \frac{1}{N} \sum_i |F(x_i) - y_i|

    Args:
      forecaster: The forecaster. None forecasts no change.
      examples: The examples, which must have the forecaster's points.

    Returns:
      The error.

    Raises:
      ValueError: The examples lack a point of the forecaster.

    Examples:
      >>> line = np.array([[1.0, 0.7, 0.4, 0.0, 2.0]], np.float32)
      >>> examples = Examples(line[:, :4], line[:, 4], np.array([0]), np.array([100]), (1.0, 0.7, 0.4, 0.0), 2.0)
      >>> mean_absolute_error(None, examples)
      1.0

    References:
      Sinha et al., "Introspection: Accelerating Neural Network Training by Learning Weight Evolution", ICLR 2017,
      section 4.1.
    """
    points = (1.0,) if forecaster is None else forecaster.points
    if missing := [point for point in points if point not in examples.points]:
        raise ValueError(f"examples must have the points of the forecaster, {points}; {missing} are missing")
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
    digest = hashlib.sha256(repr((examples.points, examples.target)).encode())
    for array in (examples.inputs, examples.targets, examples.weights):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


class _Checkpoints:
    """Checkpoints of a fit, each with its settings, in an Orbax `CheckpointManager`; none where there is no folder."""

    def __init__(self, workdir: str | os.PathLike[str] | None, settings: dict[str, Any]):
        self._settings = settings
        self._manager: Any = None
        if workdir is not None:
            import orbax.checkpoint as ocp

            self._folder = local_path("workdir", workdir)
            # The state is small. Where it can't be written, the fit is to end then, and not some blocks later.
            options = ocp.CheckpointManagerOptions(max_to_keep=1, enable_async_checkpointing=False)
            self._manager = ocp.CheckpointManager(self._folder, options=options)

    def __enter__(self) -> "_Checkpoints":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._manager is not None:
            self._manager.close()

    def latest(self, state: Any, num_steps: int) -> tuple[int, Any]:
        """Returns the step and state to go on from."""
        import orbax.checkpoint as ocp

        step = self._manager.latest_step() if self._manager is not None else None
        if step is None:
            return 0, state
        items = ocp.args.Composite(settings=ocp.args.JsonRestore(), state=ocp.args.StandardRestore(state))
        try:
            settings = self._manager.restore(step, args=ocp.args.Composite(settings=ocp.args.JsonRestore())).settings
            differ = [name for name in self._settings if settings.get(name) != self._settings[name]]
            found = self._manager.restore(step, args=items).state if not differ else None
        except Exception as error:
            raise ValueError(f"workdir must hold checkpoints of a fit; {self._folder}/{step}: {error!r}") from error
        if differ:
            changes = ", ".join(f"{name} was {settings.get(name)!r} and is {self._settings[name]!r}" for name in differ)
            raise ValueError(f"workdir must be that of the same fit; in {self._folder} {changes}")
        if step > num_steps:
            raise ValueError(f"num_steps must be at least the {step} made in {self._folder}; got {num_steps}")
        return step, found

    def save(self, step: int, state: Any) -> None:
        """Keeps a state, and drops the one before."""
        if self._manager is not None:
            import orbax.checkpoint as ocp

            state = jax.tree.map(np.asarray, state)
            items = ocp.args.Composite(settings=ocp.args.JsonSave(self._settings), state=ocp.args.StandardSave(state))
            self._manager.save(step, args=items)
