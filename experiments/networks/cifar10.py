"""The network of the paper's experiments on CIFAR-10."""

import jax
from flax import nnx

from .layers import overlapping_max_pool


class CifarNet(nnx.Module):
    """`CIFAR_1`: two convolutions with batch norm, three dense layers, on crops of 24x24.

    A convolution of 5x5 to 64 channels, ReLU, 3x3 max pooling of stride 2, batch norm; a second one to 64 channels,
    ReLU, batch norm, pooling; then 2304 x 384 and 384 x 192 with ReLU, and 192 x 10: 1 068 554 weights, 256 of them of
    the batch norms. Kernels are normal with standard deviation 1e-4 (convolutions), 0.04 and 1/192 (the last), biases
    zero.

    The paper says which layers there are, but not in which order. Its sizes, initial weights and learning rate are
    those of TensorFlow's tutorial network for CIFAR-10, whose order this is, batch norms standing where that has local
    response normalisation; the tutorial cuts its normal distributions off at two deviations. The first convolution
    yields values of about 1e-3, the squares of which are below the epsilon of the batch norms, 1e-5: at first, they
    enlarge, but don't normalise. Running statistics have the momentum 0.99.

    Convolutions and batch norms are Flax's own: on a CPU the first convolution takes longer as patches and a matrix
    product, and a step hardly less without batch norms.

    Args:
      rngs: where the initial weights come from.
    """

    def __init__(self, *, rngs: nnx.Rngs):
        normal = nnx.initializers.normal
        self.conv1 = nnx.Conv(3, 64, (5, 5), kernel_init=normal(1e-4), rngs=rngs)
        self.norm1 = nnx.BatchNorm(64, rngs=rngs)
        self.conv2 = nnx.Conv(64, 64, (5, 5), kernel_init=normal(1e-4), rngs=rngs)
        self.norm2 = nnx.BatchNorm(64, rngs=rngs)
        self.dense1 = nnx.Linear(2304, 384, kernel_init=normal(0.04), rngs=rngs)
        self.dense2 = nnx.Linear(384, 192, kernel_init=normal(0.04), rngs=rngs)
        self.dense3 = nnx.Linear(192, 10, kernel_init=normal(1 / 192), rngs=rngs)

    def __call__(self, images: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Maps images `[batch, 24, 24, 3]` to logits `[batch, 10]`.

        With a `key`, of which nothing else is used, batch norms use the statistics of the batch and update their own.
        """
        training = key is not None
        x = overlapping_max_pool(nnx.relu(self.conv1(images)))
        x = self.norm1(x, use_running_average=not training)
        x = self.norm2(nnx.relu(self.conv2(x)), use_running_average=not training)
        x = overlapping_max_pool(x)
        x = nnx.relu(self.dense1(x.reshape(x.shape[0], -1)))
        return self.dense3(nnx.relu(self.dense2(x)))
