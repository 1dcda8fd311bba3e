"""The networks of the paper's experiments, in Flax NNX."""

import functools
from collections.abc import Callable

from flax import nnx

from .layers import max_pool
from .mnist import ConvNet, LeNet, Mlp, RowLstm, WideConvNet

__all__ = ["NETWORKS", "ConvNet", "LeNet", "Mlp", "RowLstm", "WideConvNet", "max_pool"]

# By the names that the records of the experiments use; each makes the network from `rngs`.
NETWORKS: dict[str, Callable[..., nnx.Module]] = {
    "N_0": ConvNet,
    "MNIST_1": WideConvNet,
    "MNIST_2": LeNet,
    "MNIST_3": Mlp,
    "MNIST_4": RowLstm,
    "MNIST_3, He": functools.partial(Mlp, kernel_init=nnx.initializers.he_normal(), bias_init=nnx.initializers.zeros),
}
