"""The page of the last figures: one section for each check, of which any can be made anew by itself."""

import importlib.metadata
import platform
from pathlib import Path
from typing import NamedTuple

PACKAGES = ("jax", "jaxlib", "optax", "flax", "orbax-checkpoint", "tensorstore", "numpy")
HEAD = """# Endurance

What took too long for the test suite, with its last figures. `python -m tests.endurance` does all of it and writes this
page; `--only NAME` makes one section anew. A short version of each check is in `tests/faults`, and runs with the tests.
"""


class Section(NamedTuple):
    """A part of the page.

    Attributes:
      title: its heading.
      text: what is below it.
      violations: what must not be, in words.
    """

    title: str
    text: str
    violations: list[str]

    def __str__(self) -> str:
        listed = "".join(f"- {violation}\n" for violation in self.violations)
        return f"## {self.title}\n\n{self.text.strip()}\n" + (f"\n**Violations:**\n\n{listed}" if listed else "")


def write(path: Path, made: list[Section], titles: list[str]) -> None:
    """Writes the sections into the page, and leaves those that were not made as they are there.

    Args:
      path: the page.
      made: the sections that were made.
      titles: of all sections that the page may have, in order.
    """
    sections = {}
    if path.exists():
        for text in f"\n{path.read_text()}".split("\n## ")[1:]:
            sections[text.partition("\n")[0]] = f"## {text.strip()}\n"
    sections |= {section.title: str(section) for section in made}
    path.write_text("\n".join([HEAD, *(sections[title] for title in titles if title in sections)]))


def table(head: list[str], rows: list[list[object]]) -> str:
    """Returns a table in Markdown; all columns but the first are of numbers."""
    lines = [head, ["---", *(["---:"] * (len(head) - 1))], *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def made_with(seed: int, command: str) -> str:
    """Returns what figures depend on."""
    versions = ", ".join(f"{package} {importlib.metadata.version(package)}" for package in PACKAGES)
    return f"`{command}`; seed {seed}; Python {platform.python_version()}, {versions}."
