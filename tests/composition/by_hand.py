"""A small problem whose training with jumps can be written down in NumPy, one line for each rule.

The forecaster is two-point extrapolation, `w_t + (w_t - w_s) / 2` with `s` the step nearest to `0.4 t`, the loss a bowl
with another curvature in every direction.
"""

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


def jumps(*jump_steps):
    """`introspect` with the forecaster of the tests."""
    return introspect(jump_steps or tuple(JUMPS), TWO_POINT)


def map_leaves(function, *trees):
    return {name: function(*(tree[name] for tree in trees)) for name in trees[0]}


def slope(weights, n=0):
    """The gradient of the bowl, whichever the step."""
    del n
    return map_leaves(lambda curvature, w: curvature * w, CURVATURE, weights)


def noisy_slope(weights, n):
    """Another bowl at every step, as from another batch."""
    return map_leaves(lambda curvature, w: curvature * (w - np.sin(n)), CURVATURE, weights)


def forecast(history, t, s):
    return map_leaves(lambda now, then: now + (now - then) / 2, history[t], history[s])


def by_hand(step, steps=STEPS, jump_from=None):
    """Returns `[w_0, ..., w_steps]` with `w_{n+1} = step(w_n, n)`, but for the jumps.

    The step is asked for at jumps as well: the state of a base optimizer moves on.
    """
    jump_from = JUMPS if jump_from is None else jump_from
    history = [START]
    for n in range(steps):
        after_update = step(history[n], n)
        history.append(forecast(history, n, jump_from[n]) if n in jump_from else after_update)
    return history


def descent(weights, gradient, rate=0.1):
    """One step of gradient descent."""
    return map_leaves(lambda w, g: w - rate * g, weights, gradient)


def start():
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), START)


def train(tx, steps=STEPS, gradient=slope, params=None, project=lambda params: params, read=lambda params: params):
    """Trains with a jitted step; returns `[w_0, ..., w_steps]` and the last state.

    Args:
      tx: the optimizer.
      steps: how many.
      gradient: from NumPy weights and a step to NumPy gradients.
      params: the first parameters, if they aren't those of the problem.
      project: applied to the parameters after each update.
      read: what of the parameters the gradient is taken at.
    """

    @jax.jit
    def step(gradients, state, params):
        updates, state = tx.update(gradients, state, params)
        return project(optax.apply_updates(params, updates)), state

    params = start() if params is None else params
    state, history = tx.init(params), [params]
    for n in range(steps):
        here = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), read(params))
        gradients = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), gradient(here, n))
        params, state = step(gradients, state, params)
        history.append(params)
    return history, state


def assert_same_histories(actual, expected):
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
