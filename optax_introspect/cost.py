"""What jumps cost in a training of one's own: plan, bytes, and the compiled step with and without."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import optax

from .plan import Plan
from .snapshots import HOST_MEMORY
from .transform import Initialised, left_out, on_init


@dataclasses.dataclass(frozen=True)
class CompiledStep:
    """What is known of a compiled training step before it runs.

    Attributes:
      seconds: to trace, lower and compile it.
      temporary_bytes: what it needs besides its arguments and results.
      argument_bytes: parameters, optimizer state and, without a loss, gradients; on one device.
    """

    seconds: float
    temporary_bytes: int
    argument_bytes: int


@dataclasses.dataclass(frozen=True)
class Cost:
    """The costs that :func:`cost` finds; as a string, a table.

    Attributes:
      plans: the plan of every `introspect` in the chain.
      params_bytes: the parameters.
      snapshot_bytes: all snapshots, in the optimizer state.
      with_jumps: the step.
      without_jumps: the same step with the updates left as they are.
    """

    plans: tuple[Plan, ...]
    params_bytes: int
    snapshot_bytes: int
    with_jumps: CompiledStep
    without_jumps: CompiledStep

    def __str__(self) -> str:
        """Lay out the plans, the bytes and the compiled step."""
        rows = [
            ("parameters", f"{self.params_bytes:,} bytes"),
            ("snapshots", f"{self.snapshot_bytes:,} bytes"),
            *(
                (f"{what} {which}", text)
                for which, step in (("with jumps", self.with_jumps), ("without", self.without_jumps))
                for what, text in (
                    ("temporaries", f"{step.temporary_bytes:,} bytes"),
                    ("compilation", f"{step.seconds:.2f} s"),
                )
            ),
        ]
        return "\n".join([*map(str, self.plans), *(f"{what:24}  {text:>24}" for what, text in rows)])


def cost(tx: optax.GradientTransformation, params: Any, loss: Callable[[Any], jax.Array] | None = None) -> Cost:
    """Finds what the jumps in an optimizer will cost, without running it or allocating anything.

    Compiles one training step, with parameters and optimizer state donated, as it is and with every `introspect` in it
    left out.

    Args:
      tx: an optimizer with `introspect` in it, however deep.
      params: the parameters, or their shapes (as from `jax.eval_shape`). Shardings are kept, also of
        arrays of the state that are named and shaped as a parameter.
      loss: a function from `params` to a scalar, for the temporaries of a step with its gradient; without it,
        gradients are arguments of the step.

    Returns:
      The costs; `print` them.

    Raises:
      ValueError: there is no `introspect` in `tx`.

    Examples:
      >>> import jax, jax.numpy as jnp, optax, optax_introspect
      >>> tx = optax.chain(optax.adam(1e-3), optax_introspect.introspect((3000,)))
      >>> found = optax_introspect.cost(tx, {"w": jax.ShapeDtypeStruct((1000, 1000), jnp.float32)})
      >>> print(found.plans[0])
      1 jumps, 3 snapshots in 3 slots
        step  event    weights
           0  capture  slot 2 until 3000
        1200  capture  slot 0 until 3000
        2100  capture  slot 1 until 3000
        3000  jump     w_3000 w_2100 (slot 1) w_1200 (slot 0) w_0 (slot 2)
      >>> found.snapshot_bytes
      12000000
    """
    shapes = jax.tree.map(_shape, params)
    met: list[tuple[Plan, int]] = []

    def note(made: Initialised) -> None:
        arrays = jax.tree.leaves(made.state.snapshots)
        met.append((made.plan, sum(leaf.size * leaf.dtype.itemsize for leaf in arrays)))

    with on_init(note):
        state = _state_of(tx, shapes)
    if not met:
        raise ValueError("there is no introspect in tx, so that there is nothing to tell")
    with left_out(True):
        without = _compiled(tx, shapes, state, loss)
    return Cost(
        plans=tuple(plan for plan, _ in met),
        params_bytes=sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes)),
        snapshot_bytes=sum(nbytes for _, nbytes in met),
        with_jumps=_compiled(tx, shapes, state, loss),
        without_jumps=without,
    )


def _shape(leaf: Any) -> jax.ShapeDtypeStruct:
    shape = jax.typeof(leaf) if not isinstance(leaf, jax.ShapeDtypeStruct) else leaf
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=getattr(leaf, "sharding", None))


def _state_of(tx: optax.GradientTransformation, params: Any) -> Any:
    """Returns the shapes of a new state, each with the sharding that it has in a training, and in its memory."""
    traced = jax.jit(lambda p: tx.init(p)).trace(params)
    named = [(jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree.leaves_with_path(params)]

    def placed(path: Any, leaf: jax.ShapeDtypeStruct, aval: Any) -> jax.ShapeDtypeStruct:
        # Transformations keep what belongs to a parameter in trees of the structure of the parameters.
        own = jax.tree_util.keystr(path)
        like = [each for name, each in named if own.endswith(name) and each.shape == leaf.shape]
        sharding = like[0].sharding if like else None
        if aval.memory_space == jax.memory.Space.Host:
            if sharding is None or isinstance(sharding, jax.sharding.SingleDeviceSharding):
                mesh = jax.make_mesh((1,), ("device",), devices=jax.local_devices()[:1])
                sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
            sharding = sharding.with_memory_kind(HOST_MEMORY)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    leaves, treedef = jax.tree.flatten_with_path(traced.out_info)
    pairs = zip(leaves, traced.jaxpr.out_avals, strict=True)
    return jax.tree.unflatten(treedef, [placed(path, leaf, aval) for (path, leaf), aval in pairs])


def _compiled(
    tx: optax.GradientTransformation, params: Any, state: Any, loss: Callable[[Any], jax.Array] | None
) -> CompiledStep:
    def step(params: Any, state: Any, gradients: Any) -> Any:
        if loss is not None:
            gradients = jax.grad(loss)(params)
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    began = time.perf_counter()
    lowered = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, params if loss is None else None)
    analysis: Any = lowered.compile().memory_analysis()
    return CompiledStep(
        seconds=time.perf_counter() - began,
        temporary_bytes=analysis.temp_size_in_bytes,
        argument_bytes=analysis.argument_size_in_bytes,
    )
