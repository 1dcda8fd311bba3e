"""The networks of the paper's experiments, in Flax NNX."""

import functools
from collections.abc import Callable

from flax import nnx

from .alexnet import AlexNet
from .cifar10 import CifarNet
from .inception import Inception
from .layers import max_pool
from .mnist import ConvNet, LeNet, Mlp, RowLstm, WideConvNet

__all__ = [
    "NETWORKS",
    "AlexNet",
    "CifarNet",
    "ConvNet",
    "Inception",
    "LeNet",
    "Mlp",
    "RowLstm",
    "WideConvNet",
    "max_pool",
]

# By the names that the records of the experiments use; each makes the network from `rngs`, which is what determines the
# initial weights.
NETWORKS: dict[str, Callable[..., nnx.Module]] = {
    "N_0": ConvNet,
    "MNIST_1": WideConvNet,
    "MNIST_2": LeNet,
    "MNIST_3": Mlp,
    "MNIST_4": RowLstm,
    "MNIST_3, He": functools.partial(Mlp, kernel_init=nnx.initializers.he_normal(), bias_init=nnx.initializers.zeros),
    "CIFAR_1": CifarNet,
    "AlexNet": AlexNet,
    "AlexNet, narrow": functools.partial(AlexNet, classes=10, groups=1, width=1 / 6, small=True),
    "Inception": Inception,
    "Inception, narrow": functools.partial(Inception, classes=10, width=0.25, small=True),
}
