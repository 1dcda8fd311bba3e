"""What the state of an optimizer looks like, and where in it there is an `introspect`."""

import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from .plan import Plan
from .transform import Initialised, IntrospectState, on_init


class Introspect(NamedTuple):
    """One `introspect` of an optimizer.

    Attributes:
      place: the names on the way to its state.
      plan: its plan.
      slots_on_host: the slots that are kept in the memory of the host.
      shapes: its state, as shapes.
      params: the parameters that it sees, as shapes, by name.
    """

    place: tuple[str, ...]
    plan: Plan
    slots_on_host: range
    shapes: IntrospectState
    params: dict[str, Any]


class Layout:
    """The parts of an optimizer's state: those of every `introspect`, in the order of the tree, and the rest."""

    def __init__(self, tx: optax.GradientTransformation, params: Any) -> None:
        """Find out without computing anything."""
        self._tx = tx
        plans: list[tuple[Plan, range]] = []

        def shapes_of(params: Any) -> tuple[Any, list[Any]]:
            state, made = _initialised(tx, params)
            plans[:] = [(each.plan, each.slots_on_host) for each in made]  # nothing that is being traced may outlive it
            return state, [each.params for each in made]

        self._shapes, views = jax.eval_shape(shapes_of, params)
        nodes = jax.tree.leaves_with_path(self._shapes, is_leaf=_is_introspect)
        found = [(path, node) for path, node in nodes if _is_introspect(node)]
        self.introspects = [
            Introspect(_names(path), *plan, node, by_name(view))
            for (path, node), plan, view in zip(found, plans, views, strict=True)
        ]
        self._rest = [(_names(path), described(node)) for path, node in nodes if not _is_introspect(node)]

    def views(self, params: Any) -> list[Any]:
        """Returns the parameters as each `introspect` sees them: without what a mask around it hides, say."""
        return [each.params for each in _initialised(self._tx, params)[1]]

    def take_apart(self, opt_state: Any) -> tuple[list[Any], list[IntrospectState]]:
        """Returns the arrays of the rest, and the state of every `introspect`.

        Raises:
          ValueError: it is not a state of this optimizer.
        """
        found, expected = (
            {name: described(leaf) for name, leaf in by_name(tree).items()} for tree in (opt_state, self._shapes)
        )
        for name in [*expected, *found]:
            if found.get(name) != expected.get(name):
                raise ValueError(
                    f"opt_state is not what old makes of these params: at {name or 'the root'} it has "
                    f"{found.get(name, 'nothing')}, where a state of old has {expected.get(name, 'nothing')}"
                )
        nodes = jax.tree.leaves(opt_state, is_leaf=_is_introspect)
        return [node for node in nodes if not _is_introspect(node)], [node for node in nodes if _is_introspect(node)]

    def put_together(self, rest: list[Any], states: list[IntrospectState]) -> Any:
        """Returns the state that has these parts."""
        others, own = iter(rest), iter(states)
        return jax.tree.map(
            lambda node: next(own if _is_introspect(node) else others), self._shapes, is_leaf=_is_introspect
        )

    def check_same_rest(self, new: "Layout") -> None:
        """Raises a ValueError if another optimizer keeps other things in the rest of its state."""
        for had, has in itertools.zip_longest(self._rest, new._rest):
            if had != has:
                was, now = (
                    f"{'.'.join(each[0]) or 'an array'}: {each[1]}" if each else "nothing" for each in (had, has)
                )
                raise ValueError(
                    f"old and new may differ in introspect only, but where old keeps {was}, new keeps {now}"
                )


def by_name(tree: Any) -> dict[str, Any]:
    """Returns the leaves of a tree by their names, in its order."""
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def described(leaf: Any) -> str:
    """Returns dtype and shape of an array, or of the array that a number is."""
    dtype = leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(leaf)
    return f"{dtype}{list(jnp.shape(leaf))}"


def _initialised(tx: optax.GradientTransformation, params: Any) -> tuple[Any, list[Initialised]]:
    """Returns a new state, and what each `introspect` in it has made, in the order of the tree."""
    told: list[Initialised] = []
    with on_init(told.append):
        state = tx.init(params)
    by_counter = {id(each.state.introspect_step): each for each in told}
    nodes = [node for node in jax.tree.leaves(state, is_leaf=_is_introspect) if _is_introspect(node)]
    if any(id(node.introspect_step) not in by_counter for node in nodes):
        raise ValueError(
            "the init of a transformation around introspect is compiled or changes its state, which reschedule cannot "
            "follow"
        )
    told.clear()  # JAX remembers what it has called in this context, and all that hangs from it
    return state, [by_counter[id(node.introspect_step)] for node in nodes]


def _is_introspect(node: Any) -> bool:
    return isinstance(node, IntrospectState)


def _names(path: tuple[Any, ...]) -> tuple[str, ...]:
    # Not positions, which change when a transformation is put into a chain.
    named = (key for key in path if not isinstance(key, jax.tree_util.SequenceKey))
    return tuple(str(getattr(key, "name", getattr(key, "key", key))) for key in named)
