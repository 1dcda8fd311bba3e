"""The package as its users get it: public names, imports, the wheel."""

import ast
import doctest
import graphlib
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import optax_introspect

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "optax_introspect"
SHIPPED = ("mnist-n0", "mnist-n0-equivariant", "mnist-n0-k2.2", "mnist-n0-linear")
MADE_BY_OTHERS = {"Examples", "Fit", "Forecaster", "IntrospectState", "Plan", "WeightChange"}


def python(code, **kwargs):
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, **kwargs)
    assert result.returncode == 0, result.stderr
    return result.stdout.split()


@pytest.mark.parametrize("name", optax_introspect.__all__)
def test_every_public_name_is_documented_with_an_example(name):
    docstring = getattr(optax_introspect, name).__doc__
    assert docstring.splitlines()[0].rstrip().endswith(".")
    assert doctest.DocTestParser().get_examples(docstring) or name in MADE_BY_OTHERS


def imports():
    """Returns the modules of the package that each of them imports."""
    graph = {}
    for path in PACKAGE.rglob("*.py"):
        package = ".".join(path.relative_to(ROOT).parent.parts)
        name = package if path.stem == "__init__" else f"{package}.{path.stem}"
        found = graph.setdefault(name, set())
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                parent = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1])
                modules = [node.module] if node.module else [alias.name for alias in node.names]
                found |= {f"{parent}.{module}" for module in modules}
            elif isinstance(node, ast.Import | ast.ImportFrom):
                names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module]
                assert not any(name.split(".")[0] in ("experiments", "examples", "tests") for name in names), path
    return graph


def test_imports_run_one_way():
    graph = imports()
    assert "optax_introspect._plan" in graph["optax_introspect._transform"]
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError


def test_the_core_does_not_import_the_trainer():
    graph, core, todo = imports(), set(), ["optax_introspect._transform"]
    while todo:
        core.add(module := todo.pop())
        todo += graph[module] - core
    assert not core & {f"optax_introspect.predictors.{name}" for name in ("_fit", "_sampling", "_history")}


def test_import_loads_little_beside_optax_and_flax():
    code = (
        "import sys, optax, flax.nnx; before = set(sys.modules); import optax_introspect; "
        "print(*{name.split('.')[0] for name in set(sys.modules) - before})"
    )
    assert set(python(code)) - set(sys.stdlib_module_names) == {"optax_introspect"}


@pytest.mark.slow
def test_the_wheel_carries_the_predictors(tmp_path):
    build = [sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    files = zipfile.ZipFile(wheel).namelist()
    assert not [file for file in files if file.startswith(("tests", "experiments", "examples"))]
    assert "optax_introspect/py.typed" in files
    assert wheel.stat().st_size < 1_000_000
    # Only what is in the wheel, ahead of the checkout.
    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    code = (
        f"import optax_introspect as o; print(o.__file__); print(*(o.pretrained(name).scale for name in {SHIPPED!r}))"
    )
    file, *scales = python(code, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path / "installed")})
    assert Path(file).is_relative_to(tmp_path)
    assert scales == ["1000.0"] * len(SHIPPED)


def test_shipped_predictors_have_a_model_card():
    assert sorted(path.name for path in (ROOT / "checkpoints").iterdir()) == sorted(SHIPPED)
    for name in SHIPPED:
        assert "python -m experiments predictor" in (ROOT / "checkpoints" / name / "README.md").read_text()
        assert (ROOT / "checkpoints" / name / "forecasts.png").read_bytes().startswith(b"\x89PNG")


def test_version_is_the_same_everywhere():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    changelog = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.M).group(1)
    citation = re.search(r"^version: (\S+)", (ROOT / "CITATION.cff").read_text(), re.M).group(1)
    assert {version, changelog, citation} == {version}
