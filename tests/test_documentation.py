"""The guide and the README: their code runs and prints what they show, and their links and figures hold."""

import contextlib
import io
import re
import runpy
from pathlib import Path

import pytest

import optax_introspect

ROOT = Path(__file__).parents[1]
GUIDE = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("docs/*.md"))
PAGES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", *GUIDE]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)


def text(page):
    return (ROOT / page).read_text()


def run(page):
    """Runs the Python blocks of a page in order; each must print what the block without a language after it shows."""
    namespace, printed = {}, ""
    for language, block in FENCE.findall(text(page)):
        if language == "python":
            assert printed == "", f"{page} doesn't show what is printed: {printed}"
            with contextlib.redirect_stdout(io.StringIO()) as output:
                exec(compile(block, page, "exec"), namespace)
            printed = output.getvalue()
        elif language == "":
            assert printed == block
            printed = ""
    assert printed == "", f"{page} doesn't show what is printed: {printed}"


@pytest.mark.parametrize(
    "page",
    ["README.md", *(pytest.param(page, marks=pytest.mark.slow) for page in GUIDE if "```python\n" in text(page))],
)
def test_code_prints_what_the_page_shows(page):
    run(page)


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ("```python\nprint(1)\n```\n\n```\n2\n```\n", "assert"),
        ("```python\nprint(1)\n```\n", "doesn't show"),
        ("```python\n1 / 0\n```\n", "division"),
    ],
)
def test_a_wrong_page_is_noticed(page, message, tmp_path):
    (tmp_path / "page.md").write_text(page)
    with pytest.raises((AssertionError, ZeroDivisionError), match=message):
        run(tmp_path / "page.md")


@pytest.mark.parametrize("page", [*PAGES, "results/README.md"])
def test_links_lead_somewhere(page):
    for target, _, heading in re.findall(r"\]\(([^)#\s]*)(#([^)\s]+))?\)", text(page)):
        if not target.startswith("http"):
            file = (ROOT / page).parent / target if target else ROOT / page
            assert file.exists(), target
            # As GitHub makes anchors of headings.
            headings = re.findall(r"^#+ (.*)$", file.read_text(), re.M) if heading else []
            anchors = [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in headings]
            assert not heading or heading in anchors, heading


@pytest.mark.parametrize("page", ["README.md", *GUIDE])
def test_intervals_stand_in_the_report_and_one_to_a_sentence(page):
    interval = r"\[[+\u2212]?[\d.]+, [+\u2212]?[\d.]+\]"  # with the minus sign of the report
    figure = rf"(?:[+\u2212][\d.]+ )?{interval}"
    prose, report = re.sub(r"\s+", " ", FENCE.sub("", text(page))), text("results/README.md")
    assert [found for found in re.findall(figure, prose) if found not in report] == []
    sentences = re.split(r"[.:;|]\s", prose)
    assert [sentence for sentence in sentences if len(re.findall(interval, sentence)) > 1] == []


def test_the_reference_has_every_public_name():
    listed = re.findall(r"^\.\. auto(?:function|class):: (\w+)(?:\(\))?$", text("docs/api.rst"), re.M)
    assert sorted(listed) == sorted(optax_introspect.__all__)


def test_every_page_is_in_the_contents():
    contents = text("docs/index.md").split()
    assert [page for page in GUIDE if page != "docs/index.md" and Path(page).stem not in contents] == []


@pytest.mark.slow
def test_the_picture_is_drawn(tmp_path):
    runpy.run_path(str(ROOT / "docs" / "scripts" / "draw_jump.py"))["main"](tmp_path / "jump.png")
    assert (tmp_path / "jump.png").read_bytes().startswith(b"\x89PNG")
