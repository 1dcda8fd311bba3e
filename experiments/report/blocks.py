"""What a page consists of, whichever way it is rendered.

Texts may have `code`, **bold** and *emphasis* in Markdown's way, and nothing else of it.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from .. import figures
from .verdicts import Keyword


@dataclasses.dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclasses.dataclass(frozen=True)
class Table:
    """A table; the first column is of names, the others are of numbers unless `words` says how many are not."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    words: int = 1


@dataclasses.dataclass(frozen=True)
class Figure:
    """A figure.

    Attributes:
      name: of its file, without the suffix.
      caption: what it shows.
      png: the file.
      svg: the same as an element of a page.
    """

    name: str
    caption: str
    png: bytes
    svg: str

    @property
    def title(self) -> str:
        """The first sentence of the caption, for those who don't see the figure."""
        return self.caption.split(". ")[0].removesuffix(".")


Block = Text | Table | Figure


@dataclasses.dataclass(frozen=True)
class Claim:
    """What comes out about one claim of the paper, or one question that it doesn't ask.

    Attributes:
      claim: what is claimed, or asked.
      words: the verdict, or the answer, in a sentence or two.
      keyword: the verdict; None for what the paper doesn't claim.
      seeds: how many seeds it is from, of how many.
    """

    claim: str
    words: str
    keyword: Keyword | None = None
    seeds: str = ""

    @property
    def told(self) -> str:
        """All of it in one line."""
        verdict = f" **{self.keyword}**." if self.keyword else ""
        mark = "" if self.claim.endswith(("?", ")")) else ":"
        behind = f" ({self.seeds})" if self.seeds else ""
        return f"*{self.claim[0].upper()}{self.claim[1:]}*{mark}{verdict} {self.words}{behind}"


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
      title: its heading.
      question: what it is to answer.
      commands: what makes its runs.
      progress: how many of its runs are complete.
      paper: what the paper reports.
      choices: what was chosen, and why.
      claims: what comes out.
      blocks: figures and tables.
    """

    title: str
    question: str
    commands: Sequence[str]
    progress: str
    paper: str
    choices: str
    claims: Sequence[Claim]
    blocks: Sequence[Block]

    @property
    def anchor(self) -> str:
        """What links to it end with, as GitHub makes it from the heading."""
        kept = "".join(c for c in self.title.lower() if c.isalnum() or c in " -_")
        return kept.replace(" ", "-")


class Sketch:
    """A figure while it is drawn.

    Attributes:
      axes: to draw into, row after row.
      figure: the block, once it is drawn.
    """

    def __init__(self, axes: list[Any]):
        self.axes = axes
        self.figure: Figure

    def hide(self, used: int) -> None:
        """Removes the axes after the first few."""
        for ax in self.axes[used:]:
            ax.remove()


@contextmanager
def sketch(name: str, caption: str, columns: int, **options: Any) -> Iterator[Sketch]:
    """Yields a figure to draw into; it is finished afterwards.

    Args:
      name: of its file, without the suffix.
      caption: what it shows.
      columns: how many axes stand beside each other.
      **options: passed on to `figures.drawing`.
    """
    with figures.drawing(columns, **options) as (drawn, axes):
        sketched = Sketch(axes)
        yield sketched
        png = figures.png(drawn, dpi=110)
        drawn.set_layout_engine("none")  # it is laid out now, which takes longer than the drawing
        sketched.figure = Figure(name, caption, png, figures.svg(drawn, name))
