"""Predictors on disk, as Orbax checkpoints, and those that are shipped."""

import functools
import itertools
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from ..forecasters._network import IntrospectionNetwork, NetworkForecaster, network_forecaster
from ._files import Leaf, check_layout, local_path

# Inside the installed package, or beside it in a checkout of the repository.
_SHIPPED = next(
    (folder for parent in Path(__file__).resolve().parents[1:3] if (folder := parent / "checkpoints").is_dir()), None
)


@functools.cache
def pretrained(name: str = "mnist-n0-equivariant") -> NetworkForecaster:
    """Returns a predictor that is shipped with the package.

    Args:
      name: `"mnist-n0-equivariant"` forecasts that a weight that has not moved does not move, and does not depend on
        the units of the weights. `"mnist-n0"` is that of the paper, 4-40-1 with ReLU; `"mnist-n0-linear"` is without
        ReLU; `"mnist-n0-k2.2"` forecasts step `2.2t` instead of `2t`. Each has a model card in its folder under
        `checkpoints/`.

    Returns:
      The forecaster.

    Raises:
      ValueError: `name` is not one of these.

    Examples:
      >>> pretrained().points
      (1.0, 0.7, 0.4, 0.0)
    """
    folders = {path.parent.name: path.parent for path in _SHIPPED.glob("*/config")} if _SHIPPED else {}
    if name not in folders:
        raise ValueError(f"name must be one of {sorted(folders)}; got {name!r}")
    return load(folders[name])


def save(forecaster: NetworkForecaster, path: str | os.PathLike[str]) -> None:
    """Writes a predictor as two Orbax checkpoints: JSON in `config`, and the weights in `weights`.

    The folder appears when it is whole.

    Args:
      forecaster: Made by :func:`optax_introspect.network_forecaster` of an
        :class:`optax_introspect.IntrospectionNetwork`, or by :func:`optax_introspect.fit`.
      path: A folder that does not exist yet.

    Raises:
      TypeError: `forecaster` is another one.
      ValueError: `path` is a URL, or the network was changed after it was made.
      FileExistsError: `path` exists.

    Examples:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     save(pretrained(), f"{folder}/copy")
      ...     load(f"{folder}/copy").scale
      1000.0
    """
    import orbax.checkpoint as ocp

    network = getattr(forecaster, "module", None)
    if not isinstance(forecaster, NetworkForecaster) or type(network) is not IntrospectionNetwork:
        raise TypeError(f"forecaster must be network_forecaster(IntrospectionNetwork(...)); got {forecaster!r}")
    path = local_path("path", path)
    if path.exists():
        raise FileExistsError(f"path must be a new folder; {path} exists")
    names = ("num_points", "hidden", "activation", "use_bias", "residual")
    described = {name: getattr(network, name) for name in names}
    weights = _weights(network)
    check_layout("the network of forecaster must be as it was made", _layout(weights), _expected(**described))
    config = {"points": forecaster.points, "scale": forecaster.scale, "network": described}
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as temporary:
        whole = Path(temporary) / "predictor"
        (whole / "config").mkdir(parents=True)
        (whole / "weights").mkdir()
        ocp.JsonCheckpointHandler().save(whole / "config", args=ocp.args.JsonSave(config))
        # A folder of small files for each array, rather than a database.
        ocp.PyTreeCheckpointHandler(use_ocdbt=False).save(whole / "weights", args=ocp.args.PyTreeSave(weights))
        whole.rename(path)


def load(path: str | os.PathLike[str]) -> NetworkForecaster:
    """Reads a predictor that :func:`save` wrote. No code in it is run.

    Args:
      path: Its folder.

    Returns:
      The forecaster.

    Raises:
      FileNotFoundError: `path` does not exist.
      ValueError: `path` is a URL, or does not hold a whole predictor.

    Examples:
      >>> load("/nowhere")
      Traceback (most recent call last):
      FileNotFoundError: path must be the folder of a predictor; there is no /nowhere
    """
    import orbax.checkpoint as ocp

    path = local_path("path", path)
    if not path.is_dir():
        raise FileNotFoundError(f"path must be the folder of a predictor; there is no {path}")
    # The first use may be inside of a transformation such as nnx.jit.
    with jax.ensure_compile_time_eval():
        try:
            config = ocp.JsonCheckpointHandler().restore(path / "config", args=ocp.args.JsonRestore())
            handler = ocp.PyTreeCheckpointHandler(use_ocdbt=False)
            expected = _expected(**config["network"])
            check_layout("for its network", _layout(handler.metadata(path / "weights").tree), expected)
            as_numpy = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in expected}
            restore = ocp.args.PyTreeRestore(item=dict.fromkeys(expected, 0), restore_args=as_numpy)
            weights = handler.restore(path / "weights", args=restore)
            network: Any = nnx.eval_shape(lambda: IntrospectionNetwork(**config["network"], rngs=nnx.Rngs(0)))
            for key, variable in nnx.to_flat_state(nnx.state(network, nnx.Param)):
                variable.set_value(weights[_name(key)])
            return network_forecaster(network, config["points"], config["scale"])
        except Exception as error:
            raise ValueError(f"{path} does not hold a whole predictor: {error!r}") from error


def _expected(
    num_points: int, hidden: Sequence[int], activation: str, use_bias: bool, residual: bool
) -> dict[str, Leaf]:
    """Returns the weights of a network of these arguments; a damaged number may be too large to make it."""
    del activation
    layout = {}
    for i, (inputs, outputs) in enumerate(itertools.pairwise([num_points - residual, *hidden, 1])):
        layout[f"layers.{i}.kernel"] = Leaf((inputs, outputs), np.dtype(np.float32))
        if use_bias:
            layout[f"layers.{i}.bias"] = Leaf((outputs,), np.dtype(np.float32))
    return layout


def _weights(network: IntrospectionNetwork) -> dict[str, Any]:
    return {_name(key): variable.get_value() for key, variable in nnx.to_flat_state(nnx.state(network, nnx.Param))}


def _layout(weights: dict[str, Any]) -> dict[str, Leaf]:
    return {name: Leaf(tuple(array.shape), np.dtype(array.dtype)) for name, array in weights.items()}


def _name(key: tuple[Any, ...]) -> str:
    return ".".join(map(str, key))
