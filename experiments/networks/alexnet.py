"""AlexNet, the network of the paper's experiment `AlexNet_1` on ImageNet."""

import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from .layers import check_images, local_response_norm, overlapping_max_pool

# Of the published network: the channels of its convolutions, and how many values a unit of each layer sums over (where
# a convolution is in two groups: would sum over, were it not).
_CHANNELS = (96, 256, 384, 384, 256)
_HIDDEN = 4096
_FAN_IN = {"conv1": 11 * 11 * 3, "conv2": 5 * 5 * 96, "conv3": 3 * 3 * 256, "conv4": 3 * 3 * 384, "conv5": 3 * 3 * 384}
_FAN_IN |= {"dense1": 6 * 6 * 256, "dense2": _HIDDEN, "dense3": _HIDDEN}
# The standard deviation of the pixel values of ImageNet, about.
_PIXELS = 57.0


class AlexNet(nnx.Module):
    """`AlexNet_1`: five convolutions, three dense layers (Krizhevsky, Sutskever and Hinton 2012).

    Convolutions of 11x11 with stride 4 to 96 channels, 5x5 to 256, 3x3 to 384, 384 and 256, each with ReLU; local
    response normalisation and overlapping 3x3 max pooling of stride 2 after the first two, pooling after the last;
    then two hidden layers of 4096 with ReLU and dropout, and the logits: 60 965 224 weights for 1000 classes with the
    second, fourth and fifth convolution in two groups, as published, 62 378 344 with `groups=1`.

    The paper's 55x55 outputs of the first convolution need images of 227x227 without padding, not the 224x224 that it
    says. Both are taken: images on which windows of 11 don't fit with stride 4 are padded with zeros to the next size
    on which they do, 224 by one pixel before and two after.

    Initial kernels are normal with standard deviation 0.01, biases one in the second, fourth and fifth convolution and
    the hidden layers, else zero. Where a unit sums over fewer values than in the published network, the deviation is
    larger, so that its sum has the same one. They and the normalisation are meant for pixel values with their mean
    taken off. Images here come with a deviation of about one, and are therefore multiplied by 57, that of the pixels of
    ImageNet; without that, the narrow form had learned nothing after 400 steps.

    With `width=1 / 6, small=True, groups=1, classes=10`, "AlexNet, narrow" of the experiments on CIFAR-10, it has a
    first convolution of 5x5 with stride 1 and padding to 16 channels, further ones to 48, 64, 64 and 48, and two hidden
    layers of 688: sides of 32, 15, 7 and 3, and 891 626 weights.

    Args:
      classes: how many logits.
      groups: in how many groups the second, fourth and fifth convolution are divided.
      width: what all channels and hidden units are multiplied by, rounded to multiples of 16: a convolution to 24
        channels takes longer than one to 32.
      small: whether images are small, and the first convolution is of 5x5 with stride 1.
      image_size: side of the images, which is that of the first dense layer, too; `None` is 224, or 32 if small.
      dtype: of the computations; `None` is float32. Weights and logits are float32 anyway.
      rngs: where the initial weights come from.

    Raises:
      ValueError: too small images, no classes, no groups, or channels that cannot be divided into the groups.
    """

    def __init__(
        self,
        classes: int = 1000,
        *,
        groups: int = 2,
        width: float = 1.0,
        small: bool = False,
        image_size: int | None = None,
        dtype: Any = None,
        rngs: nnx.Rngs,
    ):
        self.small = small
        self.image_size = (32 if small else 224) if image_size is None else image_size
        self.side = self._last_side(self.image_size)
        if self.side < 1:
            raise ValueError(f"image_size must be at least {15 if small else 64}, not {self.image_size}")
        if classes < 1:
            raise ValueError(f"classes must be positive, not {classes}")
        if groups < 1:
            raise ValueError(f"groups must be positive, not {groups}")
        *channels, hidden = (16 * max(1, round(width * published / 16)) for published in (*_CHANNELS, _HIDDEN))
        if any(outputs % groups for outputs in channels):
            raise ValueError(
                f"width {width} gives convolutions of {channels} channels, not divisible by groups={groups}"
            )

        def settings(layer: str, fan_in: int, bias: float) -> dict[str, Any]:
            deviation = 0.01 * math.sqrt(_FAN_IN[layer] / fan_in)
            return {
                "kernel_init": nnx.initializers.normal(deviation),
                "bias_init": nnx.initializers.constant(bias),
                "dtype": dtype,
                "rngs": rngs,
            }

        def convolution(layer: int, size: int, bias: float, stride: int = 1, groups: int = 1) -> nnx.Conv:
            inputs, outputs = (3, *channels)[layer - 1], channels[layer - 1]
            how = settings(f"conv{layer}", size**2 * inputs, bias)
            padding = "SAME" if stride == 1 else "VALID"
            return nnx.Conv(inputs, outputs, (size, size), stride, padding=padding, feature_group_count=groups, **how)

        self.conv1 = convolution(1, 5, 0.0) if small else convolution(1, 11, 0.0, stride=4)
        self.conv2 = convolution(2, 5, 1.0, groups=groups)
        self.conv3 = convolution(3, 3, 0.0)
        self.conv4 = convolution(4, 3, 1.0, groups=groups)
        self.conv5 = convolution(5, 3, 1.0, groups=groups)
        features = self.side**2 * channels[-1]
        self.dense1 = nnx.Linear(features, hidden, **settings("dense1", features, 1.0))
        self.dense2 = nnx.Linear(hidden, hidden, **settings("dense2", hidden, 1.0))
        self.dense3 = nnx.Linear(hidden, classes, **settings("dense3", hidden, 0.0))
        self.dropout = nnx.Dropout(0.5)

    def __call__(self, images: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Maps images `[batch, height, width, 3]` to logits `[batch, classes]`; with a `key`, units are dropped."""
        return next(x for name, x in self.activations(images, key) if name == "logits")

    def activations(self, images: jax.Array, key: jax.Array | None = None) -> Iterator[tuple[str, jax.Array]]:
        """Yields the output of every layer by name, the logits last."""
        check_images(images, self.image_size, self._last_side)
        x = _PIXELS * images if self.small else _PIXELS * _padded(images)
        for name in ("conv1", "conv2", "conv3", "conv4", "conv5"):
            x = nnx.relu(getattr(self, name)(x))
            yield name, x
            if name in ("conv1", "conv2"):
                x = local_response_norm(x)
                yield f"norm of {name}", x
            if name in ("conv1", "conv2", "conv5"):
                x = overlapping_max_pool(x, padding="VALID")
                yield f"pool of {name}", x
        x = x.reshape(x.shape[0], -1)
        keys = (None, None) if key is None else jax.random.split(key)
        for name, layer, dropout_key in (("dense1", self.dense1, keys[0]), ("dense2", self.dense2, keys[1])):
            x = self.dropout(nnx.relu(layer(x)), deterministic=key is None, rngs=dropout_key)
            yield name, x
        yield "logits", self.dense3(x).astype(jnp.float32)

    def _last_side(self, image_size: int) -> int:
        """Returns the side of what the dense layers see of images of this side."""
        side = image_size if self.small else -(-(image_size - 11) // 4) + 1
        for _ in range(3):
            side = (side - 1) // 2
        return side


def _padded(images: jax.Array) -> jax.Array:
    missing = [-(side - 11) % 4 for side in images.shape[1:3]]
    return jnp.pad(images, ((0, 0), *((pixels // 2, pixels - pixels // 2) for pixels in missing), (0, 0)))
