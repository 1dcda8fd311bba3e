"""Batch statistics for the weights as they are, once a jump has replaced those that they were gathered under."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar, overload

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx
from flax.core import FrozenDict

from .snapshots import promoted

Model = TypeVar("Model", bound=nnx.Module)
Arrays = dict[str, Any]


@overload
def recalibrate(
    model: Model, batches: Iterable[Any], forward: Callable[[Model, Any], Any] | None = None, *, variables: None = None
) -> Model: ...


@overload
def recalibrate(
    model: nn.Module,
    batches: Iterable[Any],
    forward: Callable[[Any, Any], Any] | None = None,
    *,
    variables: Mapping[str, Any],
) -> Mapping[str, Any]: ...


def recalibrate(
    model: Any,
    batches: Iterable[Any],
    forward: Callable[[Any, Any], Any] | None = None,
    *,
    variables: Mapping[str, Any] | None = None,
) -> Any:
    r"""Recomputes the running statistics of batch norms under the weights of now, from a few batches.

    Running statistics are gathered along the way, and so belong to the weights before a jump. They are replaced by

    .. math::
      \mu = \frac{1}{N} \sum_{i=1}^{N} \mu_i, \qquad \sigma^2 = \frac{1}{N} \sum_{i=1}^{N} \sigma_i^2

    with :math:`\mu_i, \sigma_i^2` the mean and variance that a layer takes of batch :math:`i`. All batches count alike,
    whatever their size and the momentum of the layers, as in stochastic weight averaging. The variance between the
    means of batches, which precise batch norm adds, is left out, as it is of running statistics.

    Passes are made in training mode, but without dropout, as at evaluation: in NNX every module gets
    `deterministic=True` and `use_running_average=False`, in Linen `nn.Dropout` lets everything pass. What else a pass
    changes, such as the state of random numbers, is dropped.

    The momentum is measured, for a layer of any class that moves its statistics by
    :math:`m \cdot \mathrm{old} + (1 - m) \cdot \mathrm{new}`. The first batch takes three passes, each other one.

    Args:
      model: a Flax NNX module, whose `nnx.BatchStat` variables are replaced in place; or a Flax Linen module.
      batches: any iterable of batches, each a tree of arrays; gone through once, with one batch at a time.
      forward: `forward(model, batch)` makes one forward pass in training mode; what it returns is not used. It is
        compiled, once for each shape of batches, so that a function of your own is best made once and used for all
        jumps. In Linen it gets the module bound to its variables. `None` is `model(batch)`.
      variables: for Linen, the variables of the module, with the collection `batch_stats`.

    Returns:
      For NNX the model. For Linen new variables, in the same containers; those given stay as they are. Statistics keep
      their dtype and sharding.

    Raises:
      ValueError: a model without batch statistics; `variables` missing, or given with an NNX module; no batches, or
        something that isn't an iterable of batches; statistics that a pass doesn't update, or that are no running
        averages. All statistics are then as they were.
      FloatingPointError: statistics that are not finite. All are then as they were.
      TypeError: a model that is no Flax module.

    Examples:
      >>> import optax, optax_introspect
      >>> x = jax.random.normal(jax.random.key(0), (20, 64, 2)) + 3.0
      >>> model = nnx.Sequential(nnx.Linear(2, 1, rngs=nnx.Rngs(0)), nnx.BatchNorm(1, rngs=nnx.Rngs(0)))
      >>> two_point = optax_introspect.polynomial(1, 1.3, points=(1.0, 0.4))
      >>> tx = optax.chain(optax.sgd(0.1), optax_introspect.introspect((10,), two_point))
      >>> optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
      >>> for step in range(11):
      ...     gradient = nnx.grad(lambda model, x: jnp.mean((model(x) - x[:, :1]) ** 2))(model, x[step])
      ...     _ = optimizer.update(model, gradient)
      >>> running, now = model.layers[1].mean, model.layers[0](x).mean()
      >>> bool(abs(running[0] - now) < 0.001)
      False
      >>> model = optax_introspect.recalibrate(model, x)
      >>> bool(abs(running[0] - now) < 0.001)
      True

    References:
      Izmailov et al., "Averaging Weights Leads to Wider Optima and Better Generalization", UAI 2018, section 3.2.

      Wu and Johnson, "Rethinking 'Batch' in BatchNorm", 2021, section 3.
    """
    forward = _call if forward is None else forward
    if isinstance(model, nnx.Module):
        if variables is not None:
            raise ValueError(
                f"variables are for Linen modules; {type(model).__name__} is an NNX module and has its own"
            )
        # A second model on the same variables, so that the flags of the first one never change.
        training = nnx.with_attributes(model, deterministic=True, use_running_average=False, raise_if_not_found=False)
        graphdef, statistics, *others = nnx.split(training, nnx.BatchStat, nnx.RngCount, ...)
        averages = _averages(model, _NnxPass(graphdef, forward), statistics, others, batches)
        nnx.update(model, _with(statistics, averages))
        return model
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a flax.nnx.Module or a flax.linen.Module; got {type(model).__name__}")
    if not isinstance(variables, Mapping):
        raise ValueError(
            f"the Linen module {type(model).__name__} needs variables=, a mapping with the collection batch_stats; "
            f"got {'none' if variables is None else type(variables).__name__}"
        )
    statistics = variables.get("batch_stats", {})
    averages = _averages(model, _LinenPass(model, forward), statistics, dict(variables), batches)
    replaced = {"batch_stats": _with(statistics, averages)}
    return variables.copy(replaced) if isinstance(variables, FrozenDict) else {**variables, **replaced}


def _call(model: Any, batch: Any) -> Any:
    return model(batch)


@dataclasses.dataclass(frozen=True)
class _NnxPass:
    """From statistics, everything else of a model, and a batch to the statistics after it.

    Equal ones share what is compiled, so that all jumps of a training do.
    """

    graphdef: Any
    forward: Callable[[Any, Any], Any]

    def __call__(self, statistics: Any, others: Any, batch: Any, number: jax.Array) -> Any:
        counts, rest = others
        # Other random numbers for each batch, though each begins with the same state.
        counts = jax.tree.map(lambda count: count + (number << 16).astype(count.dtype), counts)
        model = nnx.merge(self.graphdef, statistics, counts, rest)
        self.forward(model, batch)
        return nnx.state(model, nnx.BatchStat)


@dataclasses.dataclass(frozen=True, eq=False)
class _LinenPass:
    """The same for a Linen module, told from others by identity, since not all modules can be hashed."""

    module: nn.Module
    forward: Callable[[Any, Any], Any]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _LinenPass) and self.module is other.module and self.forward == other.forward

    def __hash__(self) -> int:
        return hash((id(self.module), self.forward))

    def __call__(self, statistics: Any, others: Any, batch: Any, number: jax.Array) -> Any:
        key = jax.random.fold_in(jax.random.key(0), number)
        # Linen takes the key called params wherever one of another name is missing. The other name sets this pass
        # apart from those of a training: blocks under nn.jit would otherwise be reused there, dropout left out.
        rngs = {"params": key, "recalibrate": key}
        apply = nn.apply(self.forward, self.module, mutable=[name for name in others if name != "params"])
        with nn.intercept_methods(_without_dropout):
            _, updated = apply({**others, "batch_stats": statistics}, batch, rngs=rngs)
        return updated["batch_stats"]


def _without_dropout(method: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
    if isinstance(context.module, nn.Dropout) and context.method_name == "__call__":
        return args[0] if args else kwargs["inputs"]
    return method(*args, **kwargs)


# An old value beside which that of any batch is lost to rounding.
_HUGE = 2.0**100


def _averages(model: Any, one_pass: Any, statistics: Any, others: Any, batches: Iterable[Any]) -> Arrays:
    """Returns the average over the batches of each statistic, by its name.

    From an old value of 0 a pass leads to (1 - m) times the value of the batch, whose sum is divided by 1 - m.
    """
    old = _named(statistics)
    if not old:
        raise ValueError(f"{type(model).__name__} has no batch statistics to recalibrate")
    total: Arrays = {}
    momenta: dict[str, float] = {}
    zero, one, huge = jax.device_put([np.float32(value) for value in (0, 1, _HUGE)])
    number = 0
    for number, batch in enumerate(_iterator(batches), start=1):
        inputs = one_pass, statistics, others, batch, jax.device_put(np.int32(number))
        new = _after(*inputs, zero)
        if number == 1:
            momenta = _momenta(new, _after(*inputs, one), _after(*inputs, huge))
        total = _sum(total, new) if total else new
        # Lest batches queue up on the device.
        jax.block_until_ready(total)
    if not number:
        raise ValueError("recalibrate needs at least one batch; batches gave none (an iterator gives its items once)")
    divisors = {
        name: np.asarray(number * (1 - momentum), np.finfo(total[name].dtype).dtype)
        for name, momentum in momenta.items()
    }
    averages = _divide(total, jax.device_put(divisors))
    averages = {name: average.astype(old[name].dtype) for name, average in averages.items()}
    _check_finite(jax.device_get(_finite(averages)))
    return {name: _placed_like(average, old[name]) for name, average in averages.items()}


def _iterator(batches: Iterable[Any]) -> Iterator[Any]:
    try:
        if not isinstance(batches, Mapping):
            return iter(batches)
    except TypeError:
        pass
    raise ValueError(f"batches must be an iterable of batches, such as a list; got one {type(batches).__name__}")


@functools.partial(jax.jit, static_argnums=0)
def _after(one_pass: Any, statistics: Any, others: Any, batch: Any, number: jax.Array, old_value: jax.Array) -> Arrays:
    """Returns the statistics after a pass over a batch, from one old value for all of them."""
    old = {
        # In at least float32: in bfloat16 a momentum of 0.99 would come out as 0.988.
        name: jnp.full_like(value, old_value, dtype=promoted(value.dtype, jnp.float32))
        for name, value in _named(statistics).items()
    }
    new = _named(one_pass(_with(statistics, old), others, batch, number))
    for name in old:
        if new[name].dtype.itemsize < 4:
            raise ValueError(
                f"the layer of batch statistic {name} rounds it to {new[name].dtype}, which hides its momentum; "
                f"a layer has to keep float32 statistics in float32"
            )
    return {name: new[name] for name in old}


@jax.jit
def _sum(total: Arrays, new: Arrays) -> Arrays:
    return {name: value + new[name] for name, value in total.items()}


@jax.jit
def _divide(total: Arrays, divisors: Arrays) -> Arrays:
    return {name: value / divisors[name] for name, value in total.items()}


@jax.jit
def _finite(values: Arrays) -> Arrays:
    return {name: jnp.all(jnp.isfinite(value)) for name, value in values.items()}


@jax.jit
def _measure(at_zero: Arrays, at_one: Arrays, at_huge: Arrays) -> tuple[Arrays, Arrays, Arrays, Arrays]:
    """Returns the least and greatest momentum of each statistic, what they leave unexplained, and what is finite."""
    momenta = {name: ((at_huge[name] - zero) / _HUGE).real for name, zero in at_zero.items()}
    misfit = {
        name: jnp.max(jnp.abs(at_one[name] - zero - momenta[name]) / (1 + jnp.abs(zero)))
        for name, zero in at_zero.items()
    }
    return jax.tree.map(jnp.min, momenta), jax.tree.map(jnp.max, momenta), misfit, _finite(at_zero)


def _momenta(at_zero: Arrays, at_one: Arrays, at_huge: Arrays) -> dict[str, float]:
    """Returns the momentum of each statistic, from passes over one batch with old values 0, 1 and 2**100."""
    lowest, highest, misfit, finite = jax.device_get(_measure(at_zero, at_one, at_huge))
    _check_finite(finite)
    still = [name for name in lowest if lowest[name] == highest[name] == 1 and misfit[name] == 0]
    if still:
        raise ValueError(
            f"a forward pass doesn't update batch statistics {_listed(still)}: it probably ran in evaluation mode "
            f"(give a forward that runs the model in training mode), or their momentum is 1"
        )
    for name in lowest:
        one_momentum = lowest[name] >= 0 and highest[name] < 1 and highest[name] - lowest[name] < 1e-6
        if not (one_momentum and misfit[name] < 1e-4):
            raise ValueError(
                f"batch statistic {name} is no running average of batches with a momentum from 0 to 1 (measured "
                f"{lowest[name]:.6g} to {highest[name]:.6g}, misfit {misfit[name]:.2g}), or depends on one that isn't"
            )
    # A layer computes 1 - m from the number that was written down, not from that rounded to float32. The shortest
    # decimal number that rounds so is nearly always that one.
    return {name: float(str(value)) for name, value in lowest.items()}


def _check_finite(finite: Mapping[str, Any]) -> None:
    if bad := [name for name, is_finite in finite.items() if not is_finite]:
        message = f"recalibrated batch statistics are not finite: {_listed(bad)}; all were left as they were"
        raise FloatingPointError(message)


def _listed(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _name(path: Any) -> str:
    # In NNX the path goes on into the variable.
    return jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value")


def _named(statistics: Any) -> Arrays:
    """Returns the statistics by their names, without counters and other integers."""
    leaves = jax.tree.leaves_with_path(statistics)
    return {_name(path): leaf for path, leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.inexact) and leaf.size}


def _with(statistics: Any, values: Arrays) -> Any:
    return jax.tree.map_with_path(lambda path, leaf: values.get(_name(path), leaf), statistics)


def _placed_like(value: jax.Array, old: Any) -> Any:
    """Returns an array where the old one was: on its devices, wherever JAX puts arrays by itself, or in NumPy."""
    if isinstance(old, jax.Array) and old.committed:
        return jax.device_put(value, old.sharding)
    on_host = jax.device_get(value)
    return jax.device_put(on_host) if isinstance(old, jax.Array) else on_host
