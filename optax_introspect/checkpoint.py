"""Predictors on disk, as Orbax checkpoints, and those that are shipped."""

import functools
import hashlib
import json
import math
import re
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from flax import nnx

from .files import check_regular, name_file, read_json
from .forecast import Introspection, introspection
from .network import IntrospectionNetwork

# In format 1 the digest is of the weights alone.
_FORMATS = (1, 2)
# A network of as many numbers would take minutes to forecast a single array.
_MAX_WEIGHTS = 2**20
_MAX_JSON_BYTES = 2**20
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
      name: `"mnist-n0"` (the default: 4-40-1 with ReLU, fitted for `2t`), `"mnist-n0-linear"` (without ReLU),
        `"mnist-n0-k2.2"` (fitted for `2.2t`) or `"mnist-n0-equivariant"` (shift- and scale-equivariant). Each has a
        model card in its folder under `checkpoints/`.

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

    Its weights are zarr arrays, one folder each, and everything else is JSON, so that a change can be reviewed. The
    folder appears when it is whole.

    Args:
      forecaster: made by :func:`optax_introspect.introspection` of an
        :class:`optax_introspect.IntrospectionNetwork`.
      path: a folder that does not exist yet.

    Raises:
      TypeError: any other forecaster.
      ValueError: a network of which layers were replaced, or the dtype of its weights changed, after it was made; one
        of more than a million weights.
      FileExistsError: the folder is there already.
      OSError: it can't be written, for example since there is no space left; then nothing of it stays.

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
        "format": _FORMATS[-1],
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
    described = _described(config["network"])
    _check_same_arrays(weights, _weights(described))
    if nnx.graphdef(network) != nnx.graphdef(described):
        raise ValueError("the network was changed after it was made: its arguments do not describe it any more")
    config["sha256"] = _digest(weights, config)  # the compression notices no flipped bits
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as temporary:
            whole = Path(temporary) / "predictor"
            with ocp.Checkpointer(_handler()) as checkpointer:
                items = ocp.args.Composite(config=ocp.args.JsonSave(config), weights=ocp.args.PyTreeSave(weights))
                checkpointer.save(whole, items)
            # They say where this machine wrote the checkpoint to; that it is whole is known by its name.
            for note in whole.rglob("commit_success.txt"):
                note.unlink()
            whole.rename(path)
    except OSError as error:
        name_file(error, path)
        raise


def load(path: str | Path) -> Introspection:
    """Reads a predictor that :func:`save` wrote.

    Nothing is unpickled, and no code is run: JSON says what the network is, and weights of other names, shapes or
    dtypes are refused before memory is taken for them. A digest tells whether anything was changed.

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
        config = read_json(folder / "config" / "metadata", _MAX_JSON_BYTES)
        if config["format"] not in _FORMATS:
            raise ValueError(f"its format is {config['format']!r}; known are 1 and 2")
        architecture = config["network"]  # the oldest say nothing of biases and differences: the defaults are theirs
        names = _names(folder / "weights")
        if len(architecture["hidden"]) > len(names):  # before a network of any number of layers is made
            raise ValueError(f"it has {len(names)} arrays for {len(architecture['hidden'])} hidden layers")
        expected = _weights(_described(architecture))
        _check_same_arrays({name: _stored(folder / "weights" / name) for name in names}, expected)
        weights = {name: _read(folder / "weights" / name) for name in names}
        if _digest(weights, config) != config["sha256"]:
            raise ValueError("it is not as it was saved, by its digest")
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


def _digest(weights: dict[str, np.ndarray], config: dict[str, Any]) -> str:
    digest = hashlib.sha256()
    if config["format"] > 1:
        rest = {key: value for key, value in config.items() if key != "sha256"}
        digest.update(json.dumps(rest, sort_keys=True).encode())
    for name in sorted(weights):
        digest.update(np.ascontiguousarray(weights[name], "<f4").tobytes())
    return digest.hexdigest()


def _described(architecture: dict[str, Any]) -> IntrospectionNetwork:
    """Returns a network of shapes alone.

    Raises:
      ValueError: it is too large.
    """
    network: IntrospectionNetwork = nnx.eval_shape(lambda: IntrospectionNetwork(**architecture, rngs=nnx.Rngs(0)))
    size = sum(math.prod(array.shape) for array in _weights(network).values())
    if size > _MAX_WEIGHTS:
        raise ValueError(f"a predictor may have at most {_MAX_WEIGHTS} weights; this one has {size}")
    return network


def _names(folder: Path) -> list[str]:
    """Returns the names of the arrays that a folder of weights lists.

    Raises:
      ValueError: they are stored in another way than :func:`save` stores them.
    """
    tree = read_json(folder / "_METADATA", _MAX_JSON_BYTES)
    if tree["use_ocdbt"] or tree["use_zarr3"] or (folder / "manifest.ocdbt").exists():
        raise ValueError("its weights are not in one folder for each array")
    names = [".".join(key["key"] for key in array["key_metadata"]) for array in tree["tree_metadata"].values()]
    for name in names:
        if not re.fullmatch(r"layers\.[0-9]+\.(kernel|bias)", name):
            raise ValueError(f"it has an array named {name!r}")
    return names


def _read(folder: Path) -> np.ndarray:
    # Not by Orbax: where one array can't be read it complains of the others, too.
    kvstore = {"driver": "file", "path": str(folder.absolute())}
    array = ts.open({"driver": "zarr", "kvstore": kvstore, "fill_missing_data_reads": False}, open=True).result()
    return np.asarray(array.read().result())


def _stored(folder: Path) -> jax.ShapeDtypeStruct:
    """Returns the shape and dtype of an array, of which all is in one file of a plausible size.

    TensorStore ends the process where it is told to take more memory than there is.
    """
    about = read_json(folder / ".zarray", _MAX_JSON_BYTES)
    array = jax.ShapeDtypeStruct(tuple(about["shape"]), np.dtype(about["dtype"]))
    if about["chunks"] != about["shape"] or about["compressor"]["id"] != "zstd" or about["filters"] is not None:
        raise ValueError(f"{folder.name} is not stored as one compressed piece")
    check_regular(folder / ".".join("0" * len(array.shape)), 8 * _MAX_WEIGHTS)
    return array


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
