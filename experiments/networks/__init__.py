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
    "INITIAL_WEIGHTS",
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

# Of the networks above, in words.
INITIAL_WEIGHTS: dict[str, str] = {
    "N_0": "kernels LeCun normal, biases 0",
    "MNIST_1": "kernels truncated normal with standard deviation 0.01, biases 0",
    "MNIST_2": "kernels Xavier uniform, biases 0",
    "MNIST_3": "kernels and biases normal with standard deviation 1",
    "MNIST_4": "Flax's defaults: kernels LeCun normal, those of the recurrence orthogonal, biases 0",
    "MNIST_3, He": "kernels He normal, biases 0",
    "CIFAR_1": "kernels normal, with standard deviation 1e-4 (convolutions), 0.04 and 1/192 (the last), biases 0",
    **dict.fromkeys(
        ("AlexNet", "AlexNet, narrow"),
        "kernels normal with standard deviation 0.01, or what gives sums the same one in a narrow network; biases 1 in "
        "the second, fourth and fifth convolution and the hidden layers, else 0",
    ),
    **dict.fromkeys(
        ("Inception", "Inception, narrow"),
        "kernels uniform with a variance of one over the number of values summed over, biases 0.2, but 0 for logits",
    ),
}
