"""GoogLeNet, the network of the paper's experiment `Inception_v1` on ImageNet."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from .layers import check_images, local_response_norm, overlapping_max_pool


class _Widths(NamedTuple):
    """Channels of one inception module, as table 1 of the paper has them."""

    one: int
    reduce3: int
    three: int
    reduce5: int
    five: int
    pool: int

    @property
    def outputs(self) -> int:
        return self.one + self.three + self.five + self.pool


_MODULES = {
    "3a": _Widths(64, 96, 128, 16, 32, 32),
    "3b": _Widths(128, 128, 192, 32, 96, 64),
    "4a": _Widths(192, 96, 208, 16, 48, 64),
    "4b": _Widths(160, 112, 224, 24, 64, 64),
    "4c": _Widths(128, 128, 256, 24, 64, 64),
    "4d": _Widths(112, 144, 288, 32, 64, 64),
    "4e": _Widths(256, 160, 320, 32, 128, 128),
    "5a": _Widths(256, 160, 320, 32, 128, 128),
    "5b": _Widths(384, 192, 384, 48, 128, 128),
}
_POOL_AFTER = ("3b", "4e")
_HEAD_AFTER = ("4a", "4d")


class Inception(nnx.Module):
    """`Inception_v1`: nine inception modules, and two auxiliary heads while it trains (Szegedy et al. 2014).

    A convolution of 7x7 with stride 2 to 64 channels, pooling and local response normalisation, convolutions of 1x1 to
    64 and 3x3 to 192, normalisation and pooling; two inception modules, pooling, five, pooling, two; the mean over all
    pixels, dropout of 0.4, the logits. All pools are 3x3 with stride 2, all convolutions have ReLU. Auxiliary heads
    look at the first and the fourth of the five modules: 5x5 means with stride 3, a 1x1 convolution to 128, 1024
    units, dropout of 0.7, logits. For 1000 classes these are 6 998 552 weights, and 13 378 280 with the heads.

    The paper gives no initial weights. They are those of its replication in Caffe: kernels uniform with a variance of
    one over the number of values summed over, biases 0.2, but zero for logits. Local response normalisation is that of
    AlexNet.

    With `width=0.25, small=True, classes=10`, "Inception, narrow" of the experiments on CIFAR-10, the first convolution
    is of 3x3 with stride 1, so that the inception modules see sides of 8, 4 and 2 instead of 28, 14 and 7; all
    channels, and the units of the heads, are a quarter; the heads take the mean over all 4x4 pixels: 377 126 weights,
    407 546 with the heads.

    Args:
      classes: how many logits.
      width: what all channels are multiplied by.
      small: whether images are small, and the first convolution is of 3x3 with stride 1.
      image_size: side of the images, which is that of the dense layers of the heads, too; `None` is 224, or 32 if
        small.
      dtype: of the computations; `None` is float32. Weights and logits are float32 anyway.
      rngs: where the initial weights come from.

    Raises:
      ValueError: no pixels or no classes.
    """

    def __init__(
        self,
        classes: int = 1000,
        *,
        width: float = 1.0,
        small: bool = False,
        image_size: int | None = None,
        dtype: Any = None,
        rngs: nnx.Rngs,
    ):
        self.small = small
        self.image_size = (32 if small else 224) if image_size is None else image_size
        if self.image_size < 1:
            raise ValueError(f"image_size must be positive, not {self.image_size}")
        side = self._side_of_heads(self.image_size)
        if classes < 1:
            raise ValueError(f"classes must be positive, not {classes}")

        def scaled(channels: int) -> int:
            return max(1, round(width * channels))

        make = _Layers(dtype, rngs)
        first, second = scaled(64), scaled(192)
        self.conv1 = make.convolution(3, first, 3) if small else make.convolution(3, first, 7, 2)
        self.reduce2 = make.convolution(first, first, 1)
        self.conv2 = make.convolution(first, second, 3)
        self.inceptions: nnx.Dict[InceptionModule] = nnx.Dict()
        self.heads: nnx.Dict[_Head] = nnx.Dict()
        inputs = second
        for name, published in _MODULES.items():
            widths = _Widths(*map(scaled, published))
            self.inceptions[name] = InceptionModule(inputs, widths, make)
            inputs = widths.outputs
            if name in _HEAD_AFTER:
                self.heads[name] = _Head(inputs, scaled(128), side, scaled(1024), classes, make)
        self.dense = make.dense(inputs, classes, bias=0.0)
        self.dropout = nnx.Dropout(0.4)

    def __call__(
        self, images: jax.Array, key: jax.Array | None = None
    ) -> jax.Array | tuple[jax.Array, jax.Array, jax.Array]:
        """Maps images `[batch, height, width, 3]` to logits `[batch, classes]`.

        With a `key`, units are dropped, and the logits of both auxiliary heads are returned after those of the network.
        """
        outputs = {name: x for name, x in self.activations(images, key) if "logits" in name}
        if key is None:
            return outputs["logits"]
        first, second = (outputs[f"logits of head {name}"] for name in _HEAD_AFTER)
        return outputs["logits"], first, second

    def activations(self, images: jax.Array, key: jax.Array | None = None) -> Iterator[tuple[str, jax.Array]]:
        """Yields the output of every layer and inception module by name, those of the heads only with a `key`."""
        check_images(images, self.image_size, self._side_of_heads)
        keys = (None, None, None) if key is None else jax.random.split(key, 3)
        x = nnx.relu(self.conv1(images))
        yield "conv1", x
        x = overlapping_max_pool(x)
        yield "pool of conv1", x
        x = nnx.relu(self.reduce2(local_response_norm(x)))
        yield "reduce2", x
        x = nnx.relu(self.conv2(x))
        yield "conv2", x
        x = overlapping_max_pool(local_response_norm(x))
        yield "pool of conv2", x
        for name in _MODULES:
            x = self.inceptions[name](x)
            yield name, x
            if key is not None and name in _HEAD_AFTER:
                yield f"logits of head {name}", self.heads[name](x, keys[_HEAD_AFTER.index(name)])
            if name in _POOL_AFTER:
                x = overlapping_max_pool(x)
                yield f"pool of {name}", x
        x = self.dropout(x.mean((1, 2)), deterministic=key is None, rngs=keys[2])
        yield "mean", x
        yield "logits", self.dense(x).astype(jnp.float32)

    def _side_of_heads(self, image_size: int) -> int:
        """Returns the side of what the dense layers of the heads see of images of this side."""
        side = image_size
        for _ in range(3 if self.small else 4):
            side = -(-side // 2)
        return _side_of_means(side)


def _side_of_means(side: int) -> int:
    return max(0, side - 5) // 3 + 1


class InceptionModule(nnx.Module):
    """Four branches, the outputs of which are concatenated: 1x1; 1x1 and 3x3; 1x1 and 5x5; 3x3 max pool and 1x1."""

    def __init__(self, inputs: int, widths: _Widths, make: "_Layers"):
        self.one = make.convolution(inputs, widths.one, 1)
        self.reduce3 = make.convolution(inputs, widths.reduce3, 1)
        self.three = make.convolution(widths.reduce3, widths.three, 3)
        self.reduce5 = make.convolution(inputs, widths.reduce5, 1)
        self.five = make.convolution(widths.reduce5, widths.five, 5)
        self.pool = make.convolution(inputs, widths.pool, 1)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[batch, height, width, inputs]` to `[batch, height, width, outputs]`."""
        branches = (
            self.one(x),
            self.three(nnx.relu(self.reduce3(x))),
            self.five(nnx.relu(self.reduce5(x))),
            self.pool(overlapping_max_pool(x, stride=1)),
        )
        return nnx.relu(jnp.concatenate(branches, axis=-1))


class _Head(nnx.Module):
    """An auxiliary classifier."""

    def __init__(self, inputs: int, channels: int, side: int, hidden: int, classes: int, make: "_Layers"):
        self.conv = make.convolution(inputs, channels, 1)
        self.dense1 = make.dense(side**2 * channels, hidden, bias=0.2)
        self.dense2 = make.dense(hidden, classes, bias=0.0)
        self.dropout = nnx.Dropout(0.7)

    def __call__(self, x: jax.Array, key: jax.Array | None) -> jax.Array:
        # Where there are no 5x5 pixels, the mean is over all there are.
        means = nnx.avg_pool(x, (min(5, x.shape[1]), min(5, x.shape[2])), (3, 3))
        x = nnx.relu(self.conv(means))
        x = nnx.relu(self.dense1(x.reshape(x.shape[0], -1)))
        return self.dense2(self.dropout(x, deterministic=key is None, rngs=key)).astype(jnp.float32)


class _Layers:
    """Makes layers that have the same initial weights and dtype."""

    def __init__(self, dtype: Any, rngs: nnx.Rngs):
        self.settings = {"kernel_init": nnx.initializers.lecun_uniform(), "dtype": dtype, "rngs": rngs}

    def convolution(self, inputs: int, outputs: int, size: int, stride: int = 1) -> nnx.Conv:
        bias_init = nnx.initializers.constant(0.2)
        return nnx.Conv(inputs, outputs, (size, size), stride, padding=size // 2, bias_init=bias_init, **self.settings)

    def dense(self, inputs: int, outputs: int, bias: float) -> nnx.Linear:
        return nnx.Linear(inputs, outputs, bias_init=nnx.initializers.constant(bias), **self.settings)
