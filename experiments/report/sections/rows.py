"""The table of rows of the report: which experiments stand for a part of the paper, and what is asked of each."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from .. import claims
from ..blocks import Block, Claim
from ..results import Results
from . import cifar10, drops

# Which arms are drawn together, by how their names begin; those that would be alone stand with the first.
_PANELS: dict[str, tuple[str, ...]] = {
    "networks": ("introspection", "fitted-"),
    "two points": ("two-point-",),
    "polynomial fits": ("linear-fit-", "quadratic-"),
    "noise and averages": ("noise-", "average", "ema", "lookahead"),
}
_PANELS_CIFAR_1: dict[str, tuple[str, ...]] = {
    "network, four sets of jumps": ("introspection-set-",),
    "forecasters, jumps of set 3": (cifar10.MAIN, *cifar10.BESIDE),
}


class Row(NamedTuple):
    """A row of the paper: one network and optimizer.

    Attributes:
      title: the heading of its section.
      claims: what the paper claims of it, and what is asked besides; None where there is no answer yet.
      main: the arm that stands for the paper's method.
      two_point: the arm with the same jumps by extrapolation through two points, if there is one.
      panels: which arms are drawn together, by how their names begin.
      scale: how the paper's training differs in length, to be told beside its figures.
      drops: the steps at which the learning rate falls steeply.
      figures: what is drawn besides.
    """

    title: str
    claims: tuple[Callable[[Results, str], Claim | None], ...]
    main: str = "introspection"
    two_point: str | None = "two-point-1.3"
    panels: Mapping[str, tuple[str, ...]] = _PANELS
    scale: str = ""
    drops: tuple[int, ...] = ()
    figures: tuple[Callable[[Results, str], Block], ...] = ()


def _steadier(results: Results, experiment: str) -> Claim:
    return claims.steadier(results, experiment, "introspection", "introspection-k2.2")


# Of MNIST_1 in the paper; MNIST_3 has all of these arms as well, with more seeds.
_FORECASTERS = (claims.network, claims.linear_network, claims.linear_fit, claims.quadratic, claims.noise)
MNIST: dict[str, Row] = {
    "mnist_1-sgd": Row("MNIST_1 with SGD", _FORECASTERS),
    "mnist_1-adam": Row("MNIST_1 with Adam", (claims.network, _steadier), two_point=None),
    "mnist_2": Row("MNIST_2", (claims.network,)),
    "mnist_3-sgd": Row("MNIST_3 with SGD", _FORECASTERS),
    "mnist_3-adam": Row("MNIST_3 with Adam", _FORECASTERS),
    "mnist_4": Row("MNIST_4", (claims.network,)),
}
CIFAR: dict[str, Row] = {
    "cifar_1-tenth": Row(
        "CIFAR_1 in one tenth of the steps",
        (cifar10.speed, claims.quadratic, cifar10.jump_sets, cifar10.forecasts),
        cifar10.MAIN,
        cifar10.TWO_POINT,
        _PANELS_CIFAR_1,
        ", in ten times as many steps",
    ),
    "cifar_1": Row(
        "CIFAR_1 in all of the paper's steps", (cifar10.speed, cifar10.jump_sets), cifar10.MAIN, None, _PANELS_CIFAR_1
    ),
    "alexnet-cifar10": Row(
        "Narrow AlexNet on CIFAR-10",
        (drops.answer, cifar10.who_gains),
        drops=drops.steps("alexnet-cifar10"),
        figures=(drops.figure,),
    ),
    "alexnet-cifar10-constant": Row("Narrow AlexNet at a constant rate", (cifar10.who_gains,), two_point=None),
    "inception-cifar10": Row(
        "Narrow Inception on CIFAR-10", (cifar10.who_gains,), main="introspection-early", two_point=None
    ),
}
ROWS = {**MNIST, **CIFAR}
