"""The package as its users get it: public names, imports, the wheel."""

import ast
import doctest
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

import optax_introspect

ROOT = Path(__file__).parents[1]
SHIPPED = ("mnist-n0", "mnist-n0-equivariant", "mnist-n0-k2.2", "mnist-n0-linear")


@pytest.mark.parametrize("name", optax_introspect.__all__)
def test_every_public_name_is_documented_with_an_example(name):
    docstring = getattr(optax_introspect, name).__doc__
    assert docstring.splitlines()[0].rstrip().endswith(".")
    if name not in {
        "Cost",
        "Examples",
        "Fit",
        "Forecaster",
        "IntrospectState",
        "Plan",
        "WeightChange",
    }:  # made by others
        assert doctest.DocTestParser().get_examples(docstring)


def test_imports_run_one_way():
    order = [
        *("arguments", "files", "snapshots", "plan", "network", "forecast", "checkpoint", "transform", "cost"),
        *("order", "layout", "missing", "slots", "reschedule", "recalibrate"),
        *("history_files", "history_arrays", "history", "sampling", "fit", "statistics", "__init__"),
    ]
    for path in (ROOT / "optax_introspect").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                for module in [node.module] if node.module else [alias.name for alias in node.names]:
                    assert order.index(module) < order.index(path.stem), f"{path.name} imports {module}"
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [getattr(node, "module", "")]
            assert not any((name or "").startswith("experiments") for name in names)


def test_wheel_carries_the_predictors_into_an_empty_environment(tmp_path):
    environment = os.environ | {"PIP_DISABLE_PIP_VERSION_CHECK": "1"}

    def run(*command):
        result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        return result.stdout

    run(sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path), str(ROOT))
    (wheel,) = tmp_path.glob("*.whl")
    files = zipfile.ZipFile(wheel).namelist()
    assert not [file for file in files if file.startswith(("tests", "experiments"))]
    assert {file.split("/")[2] for file in files if file.startswith("optax_introspect/checkpoints/")} == set(SHIPPED)
    assert wheel.stat().st_size < 1_000_000

    venv.create(tmp_path / "empty", with_pip=True)
    python = str(tmp_path / "empty" / "bin" / "python")
    run(python, "-m", "pip", "install", "--quiet", str(wheel))
    script = (
        "import optax_introspect as o; from pathlib import Path; "
        f"assert not Path(o.__file__).is_relative_to({str(ROOT)!r}); "
        f"print(*(o.pretrained(name).points for name in {SHIPPED!r}))"
    )
    assert run(python, "-c", script).strip() == " ".join(["(1.0, 0.7, 0.4, 0.0)"] * len(SHIPPED))


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_predictors_have_a_model_card_and_are_better_than_staying(name):
    card = (ROOT / "checkpoints" / name / "README.md").read_text()
    (row,) = [line for line in card.splitlines() if line.startswith("| this predictor |")]
    assert float(row.split("|")[-2]) <= 0.9
    assert (ROOT / "checkpoints" / name / "forecasts.png").read_bytes().startswith(b"\x89PNG")
