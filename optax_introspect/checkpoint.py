"""Predictors on disk, as Orbax checkpoints, and those that are shipped."""

import functools
import hashlib
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax import nnx

from .forecast import Introspection, introspection
from .network import IntrospectionNetwork

_FORMAT = 1
DEFAULT = "mnist-n0"

# Inside the installed package, or beside it in a checkout of the repository.
_SHIPPED = next(
    (folder for parent in Path(__file__).resolve().parents[:2] if (folder := parent / "checkpoints").is_dir()),
    None,
)


@functools.lru_cache
def pretrained(name: str = DEFAULT) -> Introspection:
    """Returns a predictor that is shipped with the package.

    Args:
      name: `"mnist-n0"` (the default: 4-40-1 with ReLU, fitted for `2t`), `"mnist-n0-linear"` (without ReLU) or
        `"mnist-n0-k2.2"` (fitted for `2.2t`). Each has a model card in its folder under `checkpoints/`.

    Returns:
      A forecaster.

    Raises:
      ValueError: a name that is not known.

    Examples:
      >>> pretrained().points
      (1.0, 0.7, 0.4, 0.0)
    """
    folders = {path.parent.name: path.parent for path in _SHIPPED.glob("*/config")} if _SHIPPED else {}
    if name not in folders:
        raise ValueError(f"unknown predictor {name!r}; shipped are {', '.join(map(repr, sorted(folders)))}")
    return load(folders[name])


def save(forecaster: Introspection, path: str | Path) -> None:
    """Writes an introspection forecaster as an Orbax checkpoint.

    Its weights are zarr arrays, one folder each, and everything else is JSON, so that a change can be reviewed.

    Args:
      forecaster: made by :func:`optax_introspect.introspection` of an
        :class:`optax_introspect.IntrospectionNetwork`.
      path: a folder that does not exist yet.

    Raises:
      TypeError: any other forecaster.
      ValueError: a network of which layers were replaced, or the dtype of its weights changed, after it was made.
      FileExistsError: the folder is there already.

    Examples:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     save(pretrained(), f"{folder}/copy")
      ...     load(f"{folder}/copy").scale
      1000.0
    """
    if not isinstance(forecaster, Introspection) or type(forecaster.network) is not IntrospectionNetwork:
        raise TypeError(f"only an introspection(IntrospectionNetwork(...)) can be saved; got {forecaster!r}")
    path = Path(path).absolute()
    if path.exists():
        raise FileExistsError(f"{path} is there already; a predictor is saved into a new folder")
    network = forecaster.network
    config: dict[str, Any] = {
        "format": _FORMAT,
        "points": forecaster.points,
        "scale": forecaster.scale,
        "network": {
            "num_points": network.num_points,
            "hidden": network.hidden,
            "activation": network.activation,
            "use_bias": network.use_bias,
            "relative": network.relative,
        },
    }
    weights = {name: np.asarray(value) for name, value in _weights(network).items()}
    described = nnx.eval_shape(lambda: IntrospectionNetwork(**config["network"], rngs=nnx.Rngs(0)))
    _check_same_arrays(weights, _weights(described))
    if nnx.graphdef(network) != nnx.graphdef(described):
        raise ValueError("the network was changed after it was made: its arguments do not describe it any more")
    config["sha256"] = _digest(weights)  # the compression notices no flipped bits
    with ocp.Checkpointer(_handler()) as checkpointer:
        items = ocp.args.Composite(config=ocp.args.JsonSave(config), weights=ocp.args.PyTreeSave(weights))
        checkpointer.save(path, items)
    # They say where this machine wrote the checkpoint to; that it is whole is known by its name.
    for note in path.rglob("commit_success.txt"):
        note.unlink()


def load(path: str | Path) -> Introspection:
    """Reads a predictor that :func:`save` wrote.

    Nothing is unpickled, and no code is run: JSON says what the network is, and weights of other names, shapes or
    dtypes are refused.

    Args:
      path: its folder.

    Returns:
      The forecaster.

    Raises:
      FileNotFoundError: there is no such folder.
      ValueError: the folder does not hold a whole predictor of a known format.

    Examples:
      >>> load("nowhere")
      Traceback (most recent call last):
      FileNotFoundError: there is no predictor at nowhere
    """
    folder = Path(path)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no predictor at {path}")
    if not (folder / "config").is_dir() or not (folder / "weights").is_dir():
        raise ValueError(f"{path} does not hold a predictor: it has no folders named config and weights")
    try:
        with ocp.Checkpointer(_handler()) as checkpointer:
            items = ocp.args.Composite(config=ocp.args.JsonRestore())
            config = checkpointer.restore(folder.absolute(), items)["config"]
        if config["format"] != _FORMAT:
            raise ValueError(f"its format is {config['format']!r}; known is {_FORMAT}")
        architecture = config["network"]  # the oldest say nothing of biases and differences: the defaults are theirs
        found = ocp.PyTreeCheckpointHandler().metadata(epath.Path(folder.absolute() / "weights")).tree
        if len(architecture["hidden"]) > len(found):  # before a network of any number of layers is made
            raise ValueError(f"it has {len(found)} arrays for {len(architecture['hidden'])} hidden layers")
        expected = _weights(nnx.eval_shape(lambda: IntrospectionNetwork(**architecture, rngs=nnx.Rngs(0))))
        _check_same_arrays(found, expected)
        with ocp.Checkpointer(_handler()) as checkpointer:
            as_numpy = dict.fromkeys(expected, ocp.RestoreArgs(restore_type=np.ndarray))
            items = ocp.args.Composite(weights=ocp.args.PyTreeRestore(dict(expected), restore_args=as_numpy))
            weights = checkpointer.restore(folder.absolute(), items)["weights"]
        if _digest(weights) != config["sha256"]:
            raise ValueError("its weights are not those that were saved")
        network = IntrospectionNetwork(**architecture, rngs=nnx.Rngs(0))
        for path_of_variable, variable in nnx.to_flat_state(nnx.state(network, nnx.Param)):
            variable[...] = weights[_name(path_of_variable)]
        return introspection(network, points=config["points"], scale=config["scale"])
    except Exception as error:
        raise ValueError(f"{path} does not hold a whole predictor: {error}") from error


def _handler() -> ocp.CompositeCheckpointHandler:
    # One folder of small files for each array, rather than a database that no diff can show.
    return ocp.CompositeCheckpointHandler(
        config=ocp.JsonCheckpointHandler(), weights=ocp.PyTreeCheckpointHandler(use_ocdbt=False)
    )


def _digest(weights: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(np.ascontiguousarray(weights[name], "<f4").tobytes())
    return digest.hexdigest()


def _name(path: tuple[Any, ...]) -> str:
    return ".".join(map(str, path))


def _weights(network: IntrospectionNetwork) -> dict[str, Any]:
    return {_name(path): variable.get_value() for path, variable in nnx.to_flat_state(nnx.state(network, nnx.Param))}


def _check_same_arrays(found: Any, expected: dict[str, Any]) -> None:
    for name in sorted(found.keys() | expected.keys()):
        have, want = (
            f"{jnp.dtype(tree[name].dtype)}{list(tree[name].shape)}" if name in tree else "nothing"
            for tree in (found, expected)
        )
        if have != want:
            raise ValueError(f"for {name} it has {have}, where its network needs {want}")
