"""AlexNet, the network of the paper's experiment `AlexNet_1` on ImageNet."""

import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from .layers import local_response_norm, overlapping_max_pool

# Of the published network: inputs that a unit of each convolution sums over if it isn't divided, and outputs.
_CONVOLUTIONS = {
    "conv1": (11 * 11 * 3, 96),
    "conv2": (5 * 5 * 96, 256),
    "conv3": (3 * 3 * 256, 384),
    "conv4": (3 * 3 * 384, 384),
    "conv5": (3 * 3 * 384, 256),
}
