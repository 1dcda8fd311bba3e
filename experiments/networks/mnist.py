"""The networks of the paper's experiments on MNIST."""

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from .layers import max_pool

_LECUN_NORMAL, _STANDARD_NORMAL = nnx.initializers.lecun_normal(), nnx.initializers.normal(1.0)


class ConvNet(nnx.Module):
    """`N_0`, whose weights the introspection network learns from: three convolutions, two dense layers, dropout.

    Convolutions of 5x5 to 8, 16 and 32 channels, each with ReLU and 2x2 max pooling, then 512 x 1024 with ReLU and
    dropout of one half, then 1024 x 10: 551 818 weights (Sinha et al. 2017, section 4.1).

    Args:
      kernel_init: of all kernels; biases are zero.
      rngs: where the initial weights come from.
    """

    def __init__(self, kernel_init: nnx.Initializer = _LECUN_NORMAL, *, rngs: nnx.Rngs):
        self.conv1 = nnx.Conv(1, 8, (5, 5), kernel_init=kernel_init, rngs=rngs)
        self.conv2 = nnx.Conv(8, 16, (5, 5), kernel_init=kernel_init, rngs=rngs)
        self.conv3 = nnx.Conv(16, 32, (5, 5), kernel_init=kernel_init, rngs=rngs)
        self.dense1 = nnx.Linear(512, 1024, kernel_init=kernel_init, rngs=rngs)
        self.dense2 = nnx.Linear(1024, 10, kernel_init=kernel_init, rngs=rngs)
        self.dropout = nnx.Dropout(0.5)

    def __call__(self, images: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Maps images `[batch, 28, 28]` to logits `[batch, 10]`; with a `key`, units are dropped."""
        x = images[..., None]
        for conv in (self.conv1, self.conv2, self.conv3):
            x = max_pool(nnx.relu(conv(x)))
        x = nnx.relu(self.dense1(x.reshape(x.shape[0], -1)))
        x = self.dropout(x, deterministic=key is None, rngs=key)
        return self.dense2(x)


class WideConvNet(nnx.Module):
    """`MNIST_1`: two convolutions, two dense layers, dropout, all initial weights truncated normal, biases zero.

    Convolutions of 5x5 to 32 and 64 channels, each with ReLU and 2x2 max pooling, then 3136 x 1024 with ReLU and
    dropout of one half, then 1024 x 10: 3 274 634 weights. The paper prints 8 channels for the first convolution, which
    doesn't fit the second.

    Args:
      rngs: where the initial weights come from.
    """

    def __init__(self, *, rngs: nnx.Rngs):
        init = nnx.initializers.truncated_normal(0.01)
        self.conv1 = nnx.Conv(1, 32, (5, 5), kernel_init=init, rngs=rngs)
        self.conv2 = nnx.Conv(32, 64, (5, 5), kernel_init=init, rngs=rngs)
        self.dense1 = nnx.Linear(3136, 1024, kernel_init=init, rngs=rngs)
        self.dense2 = nnx.Linear(1024, 10, kernel_init=init, rngs=rngs)
        self.dropout = nnx.Dropout(0.5)

    def __call__(self, images: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Maps images `[batch, 28, 28]` to logits `[batch, 10]`; with a `key`, units are dropped."""
        x = images[..., None]
        for conv in (self.conv1, self.conv2):
            x = max_pool(nnx.relu(conv(x)))
        x = nnx.relu(self.dense1(x.reshape(x.shape[0], -1)))
        x = self.dropout(x, deterministic=key is None, rngs=key)
        return self.dense2(x)


class LeNet(nnx.Module):
    """`MNIST_2`: two convolutions, two dense layers, all kernels Xavier uniform, biases zero.

    Convolutions of 5x5 to 20 and 50 channels without padding, each with 2x2 max pooling, then 800 x 500 with ReLU, then
    500 x 10: 431 080 weights. The paper doesn't say where the ReLUs are; its sizes, batches and learning rate are those
    of Caffe's LeNet, which has this one.

    Args:
      rngs: where the initial weights come from.
    """

    def __init__(self, *, rngs: nnx.Rngs):
        init = nnx.initializers.xavier_uniform()
        self.conv1 = nnx.Conv(1, 20, (5, 5), padding="VALID", kernel_init=init, rngs=rngs)
        self.conv2 = nnx.Conv(20, 50, (5, 5), padding="VALID", kernel_init=init, rngs=rngs)
        self.dense1 = nnx.Linear(800, 500, kernel_init=init, rngs=rngs)
        self.dense2 = nnx.Linear(500, 10, kernel_init=init, rngs=rngs)

    def __call__(self, images: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Maps images `[batch, 28, 28]` to logits `[batch, 10]`; a `key` is not used."""
        x = images[..., None]
        for conv in (self.conv1, self.conv2):
            x = max_pool(conv(x))
        x = nnx.relu(self.dense1(x.reshape(x.shape[0], -1)))
        return self.dense2(x)


class RowLstm(nnx.Module):
    """`MNIST_4`: an LSTM of 128 units reads an image row by row; a dense layer maps its last output to logits.

    Initial weights as Flax has them, those of the paper not being known: LeCun normal for the input, orthogonal for the
    recurrent kernel, zero biases.

    Args:
      rngs: where the initial weights come from.
    """

    def __init__(self, *, rngs: nnx.Rngs):
        self.lstm = nnx.OptimizedLSTMCell(28, 128, rngs=rngs)
        self.dense = nnx.Linear(128, 10, rngs=rngs)

    def __call__(self, images: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Maps images `[batch, 28, 28]` to logits `[batch, 10]`; a `key` is not used."""
        zeros = jnp.zeros((images.shape[0], 128))
        # Written out row by row instead of in a loop, a step would take twice as long, and 6 s to compile.
        _, outputs = jax.lax.scan(lambda carry, row: self.lstm(carry, row), (zeros, zeros), images.swapaxes(0, 1))
        return self.dense(outputs[-1])


class Mlp(nnx.Module):
    """`MNIST_3`: 784-256-256-10 with ReLU, all initial weights and biases normal with standard deviation 1.

    Args:
      widths: units of every layer, the input first.
      kernel_init: of the kernels.
      bias_init: of the biases.
      rngs: where the initial weights come from.
    """

    def __init__(
        self,
        widths: Sequence[int] = (784, 256, 256, 10),
        kernel_init: nnx.Initializer = _STANDARD_NORMAL,
        bias_init: nnx.Initializer = _STANDARD_NORMAL,
        *,
        rngs: nnx.Rngs,
    ):
        self.layers = nnx.List(
            nnx.Linear(inputs, outputs, kernel_init=kernel_init, bias_init=bias_init, rngs=rngs)
            for inputs, outputs in itertools.pairwise(widths)
        )

    def __call__(self, images: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Maps images `[batch, 28, 28]` to logits `[batch, 10]`; a `key` is not used."""
        x = images.reshape(images.shape[0], -1)
        for layer in self.layers[:-1]:
            x = nnx.relu(layer(x))
        return self.layers[-1](x)
