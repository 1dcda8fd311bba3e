"""A small problem whose training with jumps can be written in NumPy, a line for each rule.

The loss is a bowl with another curvature in every direction. The forecaster is two-point extrapolation,
`w_t + (w_t - w_s) / 2` with `s` the step nearest to `0.4 t`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_introspect import IntrospectState, introspect, polynomial

TWO_POINT = polynomial(1, 1.3, points=(1.0, 0.4))

# The jump steps of most tests, and the step of the older point of each.
JUMPS = {5: 2, 10: 4}
STEPS = 14

START = {"a": np.array([3.0, -2.0, 0.5]), "b": np.array([[1.0, -1.0], [0.25, 4.0]])}
CURVATURE = {"a": np.array([0.2, 1.0, 1.5]), "b": np.array([[0.5, 2.0], [1.2, 0.7]])}


@functools.cache  # so that one that is called outside of jit is compiled once
def jumps(*jump_steps):
    """Returns `introspect` with the forecaster of the tests."""
    return introspect(jump_steps or tuple(JUMPS), TWO_POINT)


def each(function, *trees):
    return {name: function(*(tree[name] for tree in trees)) for name in trees[0]}


def add(*trees):
    return each(lambda *leaves: sum(leaves), *trees)


def scaled(tree, factor):
    return each(lambda leaf: factor * leaf, tree)


def norm(tree):
    return np.sqrt(sum(np.sum(leaf**2) for leaf in tree.values()))


def slope(weights, n=0):
    """The gradient of the bowl, whatever the step."""
    del n
    return each(lambda curvature, w: curvature * w, CURVATURE, weights)


def noisy_slope(weights, n):
    """The gradient of another bowl at every step, as from another batch."""
    return each(lambda curvature, w: curvature * (w - np.sin(n)), CURVATURE, weights)


def displacement(history, n, jump_from=None):
    """What a jump adds to the weights of step `n`, zero where there is none."""
    jump_from = JUMPS if jump_from is None else jump_from
    if n not in jump_from:
        return scaled(START, 0)
    return each(lambda now, then: (now - then) / 2, history[n], history[jump_from[n]])


def by_hand(step, steps=STEPS, jump_from=None, jump=displacement):
    """Returns `[w_0, ..., w_steps]` with `w_{n+1} = step(w_n, n)`, and at jump steps the displacement on top."""
    history = [START]
    for n in range(steps):
        history.append(add(step(history[n], n), jump(history, n, jump_from)))
    return history


def descent(weights, gradient, rate=0.1):
    """One step of gradient descent."""
    return each(lambda w, g: w - rate * g, weights, gradient)


def plain(weights, n):
    return descent(weights, slope(weights, n))


def momentum(rate=0.1, decay=0.9):
    """Returns the step of gradient descent with momentum."""
    trace = scaled(START, 0)

    def step(weights, n):
        nonlocal trace
        trace = each(lambda g, m: g + decay * m, slope(weights, n), trace)
        return descent(weights, trace, rate)

    return step


def start():
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), START)


def train(
    tx,
    steps=STEPS,
    gradient=slope,
    params=None,
    project=lambda params: params,
    read=lambda params: params,
    jit=False,
):
    """Trains; returns `[w_0, ..., w_steps]` and the last state.

    Args:
      tx: The optimizer.
      steps: Number of updates.
      gradient: Function of NumPy weights and a step that returns NumPy gradients.
      params: The first parameters, if they are not those of the problem.
      project: Applied to the parameters after each update.
      read: Returns the weights of the parameters that the gradient is taken at.
      jit: Compiles the step, which pays for optimizers with conditionals.
    """

    def step(gradients, state, params):
        updates, state = tx.update(gradients, state, params)
        return project(optax.apply_updates(params, updates)), state

    step = jax.jit(step) if jit else step
    params = start() if params is None else params
    state, history = tx.init(params), [params]
    for n in range(steps):
        here = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), read(params))
        gradients = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), gradient(here, n))
        params, state = step(gradients, state, params)
        history.append(params)
    return history, state


def assert_same_history(actual, expected):
    assert len(actual) == len(expected)
    for n, (found, wanted) in enumerate(zip(actual, expected, strict=True)):
        assert found.keys() == wanted.keys()
        for name in wanted:
            np.testing.assert_allclose(found[name], wanted[name], 2e-5, 2e-5, err_msg=f"w_{n}, {name}")


def introspect_states(state):
    """All states of `introspect` within that of an optimizer."""
    leaves = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, IntrospectState))
    return [leaf for leaf in leaves if isinstance(leaf, IntrospectState)]


def jumps_taken(state):
    return [int(found.jumps_taken) for found in introspect_states(state)]
