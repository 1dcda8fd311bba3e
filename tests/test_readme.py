"""What the README and the docs show is run here."""

import contextlib
import io
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

ROOT = Path(__file__).parents[1]


def blocks(language, page="README.md"):
    fences = re.findall(r"^```(\w*)\n(.*?)^```$", (ROOT / page).read_text(), re.M | re.S)
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


@pytest.mark.parametrize("page", sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("docs/*.md")))
def test_the_code_of_the_docs_runs_and_prints_what_they_say(page):
    printed, namespace = io.StringIO(), {}
    with contextlib.redirect_stdout(printed):
        for block in blocks("python", page):
            exec(block, namespace)
    assert blocks("", page) or not blocks("python", page)
    for block in blocks("", page):
        assert block in printed.getvalue()


@pytest.mark.parametrize("page", [path.relative_to(ROOT).as_posix() for path in ROOT.glob("**/*.md")])
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)", (ROOT / page).read_text()):
        if not target.startswith("http"):
            assert (ROOT / page).parent.joinpath(target).exists(), target


def test_measurements_in_the_readme_stand_in_the_results():
    measured_part = (ROOT / "README.md").read_text().split("## What it costs")[1].split("## Forecasters")[0]
    rows = [line for line in measured_part.splitlines() if re.match(r"\| (?!what|optimizer|---)", line)]
    pages = [*(ROOT / "results").glob("*.md"), *(ROOT / "results").glob("*/*.md")]
    measured = {line for page in pages for line in page.read_text().splitlines()}
    assert len(rows) > 10
    assert [row for row in rows if row not in measured] == []


def test_the_test_command_is_the_one_that_the_gate_runs():
    gate = (ROOT / ".ci" / "run").read_text()
    commands = blocks("")[0].splitlines()
    assert commands[-1] == "python -m pytest -n auto"
    assert commands[-1] in gate.splitlines()
