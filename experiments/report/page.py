"""The report as Markdown and as one page of HTML, from the same blocks."""

import dataclasses
import re
from collections.abc import Sequence
from importlib import resources

import jinja2
import markupsafe

from ..table import EXPERIMENTS
from . import verdicts
from .advice import advice
from .blocks import Block, Claim, Figure, Section, Table, Text
from .results import Results
from .sections import sections
from .sections.rates import EXPERIMENTS as RATES
from .sections.rates import answer, headline_table
from .wording import count, listed, spaced

TITLE = "The paper's experiments, run again"
_DATA = {"mnist": "MNIST", "cifar10": "CIFAR-10"}
# What the verdicts stand for is told by a sign too, not by colour alone.
SIGNS = {"reproduced": "✓", "partly": "◐", "contradicted": "✗", "open": "…"}


@dataclasses.dataclass(frozen=True)
class Report:
    """All of the report.

    Attributes:
      introduction: what this is, and from what.
      verdicts: the claims of the paper.
      headline_words: tuned plain against tuned jumps.
      headline: the same as a table.
      advice: when to use jumps, and when not.
      answers: what the paper doesn't ask.
      sections: the rest.
      rules: how verdicts are made.
    """

    introduction: Sequence[str]
    verdicts: Sequence[tuple[Section, Claim]]
    headline_words: Sequence[str]
    headline: Table
    advice: str
    answers: Sequence[tuple[Section, Claim]]
    sections: Sequence[Section]
    rules: Sequence[str]

    @property
    def figures(self) -> list[Figure]:
        """All figures."""
        return [block for section in self.sections for block in section.blocks if isinstance(block, Figure)]


def make(results: Results, command: str) -> Report:
    """Returns the report on all complete runs.

    Args:
      results: the runs.
      command: what made it.
    """
    parts = sections(results)
    found = [(section, claim) for section in parts for claim in section.claims]
    return Report(
        introduction=_introduction(results, command),
        verdicts=[(section, claim) for section, claim in found if claim.keyword],
        headline_words=[claim.told for optimizer in RATES if (claim := answer(results, optimizer))],
        headline=headline_table(results),
        advice=advice(results),
        answers=[(section, claim) for section, claim in found if not claim.keyword],
        sections=parts,
        rules=verdicts.RULES,
    )


def _introduction(results: Results, command: str) -> list[str]:
    told = [
        "Sinha et al., *Introspection: Accelerating Neural Network Training by Learning Weight Evolution* (ICLR 2017), "
        "replace all weights of a network at a few *jump steps* by the forecast of a tiny network. Here its "
        "experiments on MNIST and CIFAR-10 are run again, beside what it does not ask. All arms of a seed have the "
        "same start, batches and dropout, and those with jumps are one with *plain* up to the first. *Network* is the "
        "paper's, as this package ships it. Test accuracy picks the best step for all arms alike.",
        f"This page was made by `{command}`.",
    ]
    headers = [run.header for run in results.runs.values()]
    if not headers:
        return [*told, f"No run is complete yet in `{results.folder}`."]
    images = {EXPERIMENTS[key[0]].data: run.header["images"] for key, run in results.runs.items()}
    dead = sum(run.end != "complete" for run in results.runs.values())
    told.append(
        f"From {spaced(len(headers))} complete runs, of which {dead} became non-finite; {_platforms(results)}; "
        f"{'; '.join(f'{_DATA[name]}: {images[name]}' for name in _DATA if name in images)}."
    )
    if results.orphans:
        names = listed(["/".join(map(str, key)) for key in results.orphans])
        told.append(f"Left out: {count(len(results.orphans), 'run')} without the run that they branched from: {names}.")
    return told


def _platforms(results: Results) -> str:
    """Says what the runs were trained on, and with what; of several, also which experiments, but for the most."""
    machines: dict[str, set[str]] = {}
    experiments: dict[str, set[str]] = {}
    for (experiment, _, _), run in sorted(results.runs.items()):
        versions = ", ".join(f"{name} {version}" for name, version in run.header["versions"].items())
        machines.setdefault(versions, set()).add(run.header["machine"])
        experiments.setdefault(versions, set()).add(experiment)
    fewest_first = sorted(machines, key=lambda versions: len(experiments[versions]))
    told = [f"{listed(sorted(experiments[versions]))} on " for versions in fewest_first[:-1]]
    told.append("all others on " if told else "on ")
    return "; ".join(
        f"{which}{listed(sorted(machines[versions]))} ({versions})"
        for which, versions in zip(told, fewest_first, strict=True)
    )


def markdown(report: Report) -> str:
    """Returns the report as Markdown; figures are in the folder `figures` beside it."""
    lines = [f"# {TITLE}", ""]
    for text in report.introduction:
        lines += [text, ""]
    lines += ["## Verdicts", "", *_markdown_table(_claims_table(report.verdicts, True), _linked(report.verdicts)), ""]
    lines += ["## Tuned plain against tuned jumps", ""]
    for text in report.headline_words:
        lines += [text, ""]
    lines += [*_markdown_table(report.headline), ""]
    lines += ["## When to use jumps, and when not", "", report.advice, ""]
    if report.answers:
        lines += ["## What the paper does not ask", ""]
        lines += [*_markdown_table(_claims_table(report.answers, False), _linked(report.answers)), ""]
    lines += ["## How verdicts are made", ""]
    for text in report.rules:
        lines += [text, ""]
    for section in report.sections:
        lines += [f"## {section.title}", "", f"**{section.question}**", ""]
        lines += ["```sh", *section.commands, "```", "", f"Runs complete: {section.progress}.", ""]
        for name, text in (("The paper", section.paper), ("Chosen", section.choices)):
            if text:
                lines += [f"{name}: {_sentence(text)}", ""]
        for claim in section.claims:
            lines += [f"- {claim.told}"]
        lines += [""] if section.claims else []
        for block in section.blocks:
            lines += [*_markdown_block(block), ""]
    return "\n".join(lines)


def _claims_table(claims: Sequence[tuple[Section, Claim]], with_verdict: bool) -> Table:
    if with_verdict:
        rows = [
            [section.title, claim.claim, f"{SIGNS[claim.keyword or 'open']} {claim.keyword}", claim.words, claim.seeds]
            for section, claim in claims
        ]
        return Table(("experiment", "the paper's claim", "verdict", "here", "seeds"), rows, words=5)
    rows = [[section.title, claim.claim, claim.words, claim.seeds] for section, claim in claims]
    return Table(("section", "question", "answer", "seeds"), rows, words=4)


def _linked(claims: Sequence[tuple[Section, Claim]]) -> list[str]:
    return [section.anchor for section, _ in claims]


def _markdown_block(block: Block) -> list[str]:
    if isinstance(block, Text):
        return [block.text]
    if isinstance(block, Table):
        return _markdown_table(block)
    return [f"![{block.title}](figures/{block.name}.png)", "", f"*{block.caption}*"]


def _markdown_table(table: Table, anchors: Sequence[str] = ()) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    marks = ["---" if i < table.words else "---:" for i in range(len(table.columns))]
    rows = [list(row) for row in table.rows]
    for row, anchor in zip(rows, anchors, strict=False):
        row[0] = f"[{row[0]}](#{anchor})"
    return [line(table.columns), line(marks), *map(line, rows), *(["", table.caption] if table.caption else [])]


def html(report: Report) -> str:
    """Returns the report as one page without anything from elsewhere."""
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters["rich"] = _rich
    environment.filters["sentence"] = _sentence
    environment.filters["kind"] = lambda block: type(block).__name__
    template = resources.files(__package__).joinpath("report.html.j2").read_text(encoding="utf-8")
    return environment.from_string(template).render(
        title=TITLE,
        report=report,
        verdict_table=_claims_table(report.verdicts, True),
        verdict_links=_linked(report.verdicts),
        answer_table=_claims_table(report.answers, False),
        answer_links=_linked(report.answers),
    )


def _rich(text: str) -> markupsafe.Markup:
    """Returns a text with its marks as HTML."""
    safe = str(markupsafe.escape(text))
    for mark, tag in ((r"`([^`]+)`", "code"), (r"\*\*([^*]+)\*\*", "strong"), (r"\*([^*]+)\*", "em")):
        safe = re.sub(mark, rf"<{tag}>\1</{tag}>", safe)
    return markupsafe.Markup(safe)


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + ("" if text.endswith(".") else ".")
