"""What XLA makes of a step in which nothing happens: nothing is run here."""

import re

import jax
import jax.numpy as jnp
import optax
import pytest

from optax_introspect import custom_forecaster, introspect, lookahead, nesterov, polynomial, pretrained

SHAPES = [(1024, 512), (1024, 512), (512,)]
MEGABYTE = 1 << 20


def compile_step(tx):
    params = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in SHAPES]

    def loss(params, x):
        w, v, b = params
        return jnp.sum((jnp.tanh(x @ w) @ v.T) ** 2) + jnp.sum(b**2)

    def step(params, state, x):
        updates, state = tx.update(jax.grad(loss)(params, x), state, params)
        return optax.apply_updates(params, updates), state

    arguments = params, jax.eval_shape(tx.init, params)
    x = jax.ShapeDtypeStruct((8, 1024), jnp.float32)
    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(*arguments, x).compile()
    return compiled, sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(arguments))


@pytest.fixture(scope="module")
def base():
    return compile_step(optax.adam(1e-3))[0]


CASES = {
    "default predictor": lambda: introspect((3000, 4000, 5000)),
    "many jumps": lambda: introspect(range(1000, 20_000, 1000)),
    "network with biases": lambda: introspect((3000, 4000), pretrained("mnist-n0")),
    "bfloat16 snapshots": lambda: introspect((3000, 4000, 5000), snapshot_dtype=jnp.bfloat16),
    "two points": lambda: introspect((3000, 4000), polynomial(1, 1.3, points=(1.0, 0.4))),
    "function": lambda: introspect((30,), custom_forecaster(lambda now, then: 2 * now - then, points=(1.0, 0.5))),
    "lookahead": lambda: introspect(range(4, 1000, 5), lookahead(5)),
    "nesterov": lambda: introspect(range(19, 10_000, 20), nesterov(20)),
}


def check_idle(tx, base):
    compiled, donated = compile_step(tx)
    text = compiled.as_text()
    entry = text[text.index("\nENTRY") :]
    idle = re.findall(r" conditional\(.*branch_computations=\{%([\w.\-]+), ", entry)
    assert len(idle) == entry.count(" conditional(") == 2
    # The branches taken in an idle step compute nothing, and copy single numbers at the most.
    for name in idle:
        (body,) = re.findall(rf"^%{re.escape(name)} [^\n]*\{{\n(.*?)\n\}}", text, re.MULTILINE | re.DOTALL)
        assert not re.findall(r"\[(?!1\])\d[\d,]*\][^\n]* (?:copy|fusion|call)\(", body)
    # Beside them nothing copies weights: they are updated in the buffers that are handed over.
    copies = r"f(?:32|16)\[\d[\d,]*\][^\n]* copy\("
    assert len(re.findall(copies, entry)) <= len(re.findall(copies, base.as_text()))
    memory = compiled.memory_analysis()
    assert memory.alias_size_in_bytes == donated
    assert memory.temp_size_in_bytes - base.memory_analysis().temp_size_in_bytes < MEGABYTE


@pytest.mark.parametrize("make", CASES.values(), ids=CASES)
def test_an_idle_step_is_one_conditional_and_that_of_the_finite_check(make, base):
    check_idle(optax.chain(optax.adam(1e-3), make()), base)


def test_choosing_by_where_is_seen(monkeypatch, base):
    # So that the test above is known to be able to fail.
    def write_if(condition, write, old, *operands):
        return jax.tree.map(lambda new, old: jnp.where(condition, new, old), write(old, *operands), old)

    monkeypatch.setattr("optax_introspect._step.write_if", write_if)
    with pytest.raises(AssertionError):
        check_idle(optax.chain(optax.adam(1e-3), introspect((30,), polynomial(1, 1.3))), base)
