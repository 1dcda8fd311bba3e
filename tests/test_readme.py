"""What the README shows is run here."""

import contextlib
import io
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

README = (Path(__file__).parents[1] / "README.md").read_text()


def blocks(language):
    fences = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.M | re.S)
    return [text for found, text in fences if found == language]


def test_the_code_runs_and_prints_what_the_readme_says():
    namespace, printed = {}, io.StringIO()
    with contextlib.redirect_stdout(printed):
        for block in blocks("python"):
            exec(block, namespace)
    assert printed.getvalue() in blocks("")

    loss = namespace["train_step"](namespace["model"], namespace["optimizer"], jnp.ones((4, 3)), jnp.ones((4, 2)))
    assert np.isfinite(loss)
    state = namespace["state"]
    state = state.apply_gradients(grads=jax.tree.map(jnp.ones_like, state.params))
    assert state.opt_state[-1].introspect_step == 1


def test_the_test_command_is_the_one_that_the_gate_runs():
    gate = (Path(__file__).parents[1] / ".ci" / "run").read_text()
    commands = blocks("")[0].splitlines()
    assert commands[-1] == "python -m pytest -n auto"
    assert commands[-1] in gate.splitlines()
