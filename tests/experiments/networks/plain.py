"""What layers are, in NumPy and as plainly as can be, and what the tests of networks ask of all of them."""

import math

import jax
import numpy as np
from flax import nnx

# Programs that run a few times only, and take half of the time to compile so.
QUICKLY = {"xla_backend_optimization_level": 0}


def in_float64(layer):
    return {name: np.float64(value) for name, value in nnx.to_pure_dict(nnx.state(layer, nnx.Param)).items()}


def dense(x, layer):
    weights = in_float64(layer)
    return x @ weights["kernel"] + weights["bias"]


def convolution(x, layer, padding=0, stride=1, groups=1):
    """Pixel by pixel of the kernel; padded by as many zeros before as after."""
    kernel, bias = in_float64(layer)["kernel"], in_float64(layer)["bias"]
    x = np.pad(np.float64(x), ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    size = kernel.shape[0]
    height, width = ((side - size) // stride + 1 for side in x.shape[1:3])
    y = bias.copy()
    for i in range(size):
        for j in range(size):
            pixels = x[:, i : i + stride * height : stride, j : j + stride * width : stride][:, :height, :width]
            parts = zip(np.split(pixels, groups, -1), np.split(kernel[i, j], groups, -1), strict=True)
            y = y + np.concatenate([inputs @ weights for inputs, weights in parts], -1)
    return y


def max_pool(x, stride=2, padding="SAME", size=3):
    """Maxima of squares, one by one."""
    edges = [(0, 0)] * 4
    if padding == "SAME":
        for axis in (1, 2):
            missing = max(0, (math.ceil(x.shape[axis] / stride) - 1) * stride + size - x.shape[axis])
            edges[axis] = (missing // 2, missing - missing // 2)
    x = np.pad(np.float64(x), edges, constant_values=-np.inf)
    rows, columns = (range(0, side - size + 1, stride) for side in x.shape[1:3])
    return np.stack([np.stack([x[:, i : i + size, j : j + size].max((1, 2)) for j in columns], 1) for i in rows], 1)


def relu(x):
    return np.maximum(x, 0)


def local_response_norm(x, size=5, alpha=1e-4, beta=0.75, k=2.0):
    """Channel by channel, as equation (1) of AlexNet's paper has it."""
    x, y = np.float64(x), np.zeros(x.shape)
    channels = x.shape[-1]
    for c in range(channels):
        near = range(max(0, c - size // 2), min(channels - 1, c + size // 2) + 1)
        y[..., c] = x[..., c] / (k + alpha * sum(x[..., d] ** 2 for d in near)) ** beta
    return y


def shapes_of(network):
    leaves = nnx.to_flat_state(nnx.state(network, nnx.Param))
    return {"/".join(map(str, path)): leaf.get_value().shape for path, leaf in leaves}


def count(network):
    return sum(map(math.prod, shapes_of(network).values()))


def abstract(make, **settings):
    """The network without its weights, of which there may be many."""
    return nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0), **settings))


def shapes_of_activations(network, image_size, *, training, batch=2):
    """Shapes and dtypes of all outputs of a network that was not made, by name."""
    images = jax.ShapeDtypeStruct((batch, image_size, image_size, 3), np.float32)
    key = jax.eval_shape(lambda: jax.random.key(0)) if training else None
    found = nnx.eval_shape(lambda network, *given: dict(network.activations(*given)), network, images, key)
    return {name: x.shape[1:] for name, x in found.items()}, {name: x.dtype for name, x in found.items()}


def state_types(network):
    return {type(leaf) for _, leaf in nnx.to_flat_state(nnx.state(network))}
