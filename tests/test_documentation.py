"""What the documentation says of the package holds, and what the package says of errors is tested."""

import ast
import re
from pathlib import Path

import pytest

import optax_introspect

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
GUIDE = sorted(DOCS.glob("*.md"))

# As many letters of a message in a row must stand in a test that reads it, or all of a shorter message.
ENOUGH = 16


def literals(node):
    """Returns the literal parts of a string expression, as written, between what is filled in."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return [node.value]
    if isinstance(node, ast.JoinedStr):
        return [part.value for part in node.values if isinstance(part, ast.Constant)]
    if isinstance(node, ast.BinOp):
        return literals(node.left) + literals(node.right)
    if isinstance(node, ast.IfExp):
        return literals(node.body) + literals(node.orelse)
    return []


def messages(source):
    """Yields the line and the literal parts of every message raised, those of local variables in it included."""
    for function in ast.walk(ast.parse(source)):
        if not isinstance(function, ast.FunctionDef):
            continue
        variables = {}
        for node in ast.walk(function):
            if isinstance(node, ast.Assign | ast.AugAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                for name in (target.id for target in targets if isinstance(target, ast.Name)):
                    variables.setdefault(name, []).extend(literals(node.value))
        for node in ast.walk(function):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
                message = node.exc.args[0]
                names = [part.id for part in ast.walk(message) if isinstance(part, ast.Name)]
                parts = literals(message) + [part for name in names for part in variables.get(name, [])]
                if any(len(part.strip()) > 3 for part in parts):
                    yield node.lineno, parts


def expectations(source):
    """Yields the literal parts of the strings of a test module, as which regular expressions count as well."""
    tree = ast.parse(source)
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}  # docstrings
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            for piece in re.split(r"\.[*+]\??|\[[^]]*\][*+]?|\\d\+?|[()|^$\n]", node.value):
                yield re.sub(r"\\(.)", r"\1", piece)


def runs(text, length=ENOUGH):
    """Returns everything of that length that a text holds, or the whole of a shorter one."""
    return {text[i : i + length] for i in range(max(1, len(text) - length + 1))}


def is_read(parts, expected):
    """Returns whether what is expected, as the set of its runs, has one in common with a part of the message."""
    longest = max((part.strip() for part in parts), key=len)
    if len(longest) < ENOUGH:
        return any(longest in run for run in expected)
    return any(runs(part) & expected for part in parts if len(part) >= ENOUGH)


class TestMessages:
    def test_every_error_message_is_read_by_a_test(self):
        tests = [*ROOT.glob("tests/optax_introspect/*.py"), *ROOT.glob("tests/faults/*.py")]
        expected = {run for test in tests for piece in expectations(test.read_text()) for run in runs(piece)}
        # Doctests show messages as well.
        for module in ROOT.glob("optax_introspect/*.py"):
            shown = re.findall(r"^\s+\w+Error: (.*)$", module.read_text(), re.M)
            expected |= {run for line in shown for run in runs(line)}
        found = [
            (module.name, line, parts)
            for module in sorted(ROOT.glob("optax_introspect/*.py"))
            for line, parts in messages(module.read_text())
        ]
        assert len(found) > 90
        unread = [f"{name}:{line}: {' … '.join(parts)}" for name, line, parts in found if not is_read(parts, expected)]
        assert unread == []

    @pytest.mark.parametrize(
        ("test", "read"),
        [
            ('match="must be positive; got -1"', True),
            ("match=r'must be positive; got .*'", True),
            ('match="x must be odd"', False),
            ('match="must"', False),
            ('"""Says that it must be positive; got."""', False),
        ],
    )
    def test_what_counts_as_read(self, test, read):
        source = 'def f(x):\n    raise ValueError(f"{x} must be positive; got {x}")'
        ((line, parts),) = messages(source)
        call = f"raises({test})" if "match" in test else test
        assert line == 2
        assert is_read(parts, {run for piece in expectations(call) for run in runs(piece)}) is read


class TestReference:
    def test_every_public_name_has_its_place(self):
        listed = re.findall(r"^\.\. auto(?:function|class):: (\w+)(?:\(\))?$", (DOCS / "api.rst").read_text(), re.M)
        assert sorted(listed) == sorted(optax_introspect.__all__)

    def test_every_page_is_in_the_contents(self):
        contents = (DOCS / "index.rst").read_text().split()
        assert [page.stem for page in GUIDE if page.stem not in contents] == []


class TestFigures:
    @pytest.mark.parametrize("page", GUIDE, ids=lambda page: page.stem)
    def test_intervals_stand_in_the_report(self, page):
        report = re.sub(r"\s+", " ", (ROOT / "results" / "README.md").read_text())
        text = re.sub(r"\s+", " ", page.read_text())
        figures = re.findall(r"[+\u2212]\d+\.\d+ \[[+\u2212]?\d[^]\n]*, [^]\n]*\]", text)
        assert [figure for figure in figures if figure not in report] == []

    def test_the_table_of_forecasters_is_that_of_the_report(self):
        rows = re.findall(r"^\| (?:two points|network).*$", (DOCS / "choosing-jump-steps.md").read_text(), re.M)
        report = (ROOT / "results" / "README.md").read_text().splitlines()
        assert len(rows) == 6
        assert [row for row in rows if row not in report] == []


class TestWarnings:
    def test_none_about_something_deprecated_is_filtered_away(self):
        assert 'filterwarnings = ["error"]' in (ROOT / "pyproject.toml").read_text()
        folders = ["optax_introspect", "experiments", "examples", "tests"]
        sources = [path for folder in folders for path in (ROOT / folder).rglob("*.py") if path != Path(__file__)]
        filters = re.compile(r"(?:filterwarnings|simplefilter)\(\s*[^)]*\)|catch_warnings\(|-W\s*\w+|PYTHONWARNINGS")
        found = [text for path in sources for text in filters.findall(path.read_text())]
        # A filter that lets warnings pass names one category, which is none of those about what is deprecated.
        allowed = re.compile(
            r'simplefilter\("error"\)|filterwarnings\(.*:[\w.]*(Unraisable\w+|Resource)Warning"\s*\)', re.S
        )
        assert [text for text in found if not allowed.fullmatch(text)] == []
