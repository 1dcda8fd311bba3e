"""The networks whose jumps are computed: the shapes of their weights, and how they are trained."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jax.sharding import AbstractMesh, NamedSharding

from ..imagenet.mesh import AXIS, spec
from ..imagenet.records import ALEXNET_1, INCEPTION_V1
from ..networks import NETWORKS

Shapes = list[tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class Network:
    """A network, and a training of it.

    Attributes:
      name: what it is called.
      shapes: returns the shapes of its weights.
      dtype: of the weights.
      chips: how many share the weights ("fully sharded data parallel").
      steps: updates of the training.
      jump_steps: the steps at which it jumps.
      source: where steps and jump steps are from.
    """

    name: str
    shapes: Callable[[], Shapes]
    dtype: str
    chips: int
    steps: int
    jump_steps: tuple[int, ...]
    source: str

    @functools.cached_property
    def arrays(self) -> list[jax.ShapeDtypeStruct]:
        """All weights."""
        return [jax.ShapeDtypeStruct(shape, self.dtype) for shape in self.shapes()]

    @functools.cached_property
    def arrays_on_a_chip(self) -> list[jax.ShapeDtypeStruct]:
        """The part of the weights that one chip has, as the training on ImageNet shares them."""
        mesh = AbstractMesh((self.chips,), (AXIS,))
        return [
            jax.ShapeDtypeStruct(NamedSharding(mesh, spec(leaf.shape, self.chips)).shard_shape(leaf.shape), leaf.dtype)
            for leaf in self.arrays
        ]


def total(arrays: list[jax.ShapeDtypeStruct]) -> int:
    """Returns how many weights there are."""
    return sum(math.prod(leaf.shape) for leaf in arrays)


def of_module(name: str) -> Shapes:
    """Returns the shapes of a network of the experiments."""
    module = nnx.eval_shape(lambda: NETWORKS[name](rngs=nnx.Rngs(0)))
    weights: Any = nnx.state(module, nnx.Param)
    return [leaf.shape for leaf in jax.tree.leaves(weights)]


def resnet_50(classes: int = 1000) -> Shapes:
    """Returns the shapes of ResNet-50 (He et al. 2015): convolutions without biases, each with a batch norm."""
    shapes: Shapes = []

    def convolution(size: int, inputs: int, outputs: int) -> None:
        shapes.extend([(size, size, inputs, outputs), (outputs,), (outputs,)])

    convolution(7, 3, 64)
    inputs = 64
    for blocks, width in ((3, 64), (4, 128), (6, 256), (3, 512)):
        for block in range(blocks):
            convolution(1, inputs, width)
            convolution(3, width, width)
            convolution(1, width, 4 * width)
            if block == 0:
                convolution(1, inputs, 4 * width)
            inputs = 4 * width
    return [*shapes, (inputs, classes), (classes,)]


def transformer_7b(width: int = 4096, layers: int = 32, hidden: int = 11_008, vocabulary: int = 32_000) -> Shapes:
    """Returns the shapes of a transformer like Llama 2 7B (Touvron et al. 2023): no biases, three matrices to `hidden`.

    Embeddings are not shared with the matrix of the logits.
    """
    attention = [(width, width)] * 4
    dense = [(width, hidden), (width, hidden), (hidden, width)]
    block = [*attention, *dense, (width,), (width,)]
    return [(vocabulary, width), *(block * layers), (width,), (width, vocabulary)]


_RESNET_STEPS = 450_000
_LIKE_ALEXNET = tuple(step * _RESNET_STEPS // ALEXNET_1.steps for step in ALEXNET_1.arms[1].jump_steps)

NETWORKS_AT_SCALE = (
    Network(
        "AlexNet",
        functools.partial(of_module, "AlexNet"),
        "float32",
        chips=1,
        steps=ALEXNET_1.steps,
        jump_steps=ALEXNET_1.arms[1].jump_steps,
        source="the paper's",
    ),
    Network(
        "Inception",
        functools.partial(of_module, "Inception"),
        "float32",
        chips=1,
        steps=INCEPTION_V1.steps,
        jump_steps=INCEPTION_V1.arms[1].jump_steps,
        source="the first of the paper's, whose second takes as many slots; its auxiliary heads jump as well",
    ),
    Network(
        "ResNet-50",
        resnet_50,
        "float32",
        chips=1,
        steps=_RESNET_STEPS,
        jump_steps=_LIKE_ALEXNET,
        source="90 epochs of ImageNet in batches of 256, with jumps at the same fractions of it as AlexNet",
    ),
    Network(
        "7 B transformer",
        transformer_7b,
        "bfloat16",
        chips=64,
        steps=500_000,
        jump_steps=(30_000, 80_000, 210_000),
        source="2 T tokens in batches of 4 M, as Llama 2 had; each jump more than 2.5 times as late as the one before",
    ),
)
