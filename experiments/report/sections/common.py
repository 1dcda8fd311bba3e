"""What all sections have in common: the command, what is complete, the paper's figures and what was chosen."""

from collections.abc import Sequence

from ...networks import INITIAL_WEIGHTS
from ...records import Training
from ...table import EXPERIMENTS, Experiment
from ..blocks import Block, Claim, Section, Text
from ..results import Results


def section(
    results: Results,
    title: str,
    names: Sequence[str],
    claims: Sequence[Claim],
    blocks: Sequence[Block],
    question: str | None = None,
) -> Section:
    """Returns a section on some experiments; of what is missing it says how to make it.

    Args:
      results: all complete runs.
      title: its heading.
      names: the experiments that it shows.
      claims: what comes out.
      blocks: figures and tables.
      question: what it is to answer; by default, what the first of the experiments is.
    """
    records = [EXPERIMENTS[name] for name in names]
    progress = {name: results.progress(name) for name in names}
    hints = []
    for record in records:
        done, foreseen = progress[record.name]
        makes = f"`{command(results, record.name)}` makes"
        if not done:
            minutes = f"in about {record.minutes} minutes on two CPU cores"
            hints.append(Text(f"No run of `{record.name}` is complete yet: {makes} them, {minutes}."))
        elif done < foreseen:
            hints.append(Text(f"Of the runs of `{record.name}` {done} of {foreseen} are complete: {makes} the rest."))
    return Section(
        title=title,
        question=question or records[0].question,
        commands=[command(results, name) for name in names],
        progress=", ".join(f"{name} {done} of {foreseen}" for name, (done, foreseen) in progress.items()),
        paper="; ".join(dict.fromkeys(record.paper.text for record in records if record.paper)),
        choices=" ".join(dict.fromkeys(text for record in records for text in _chosen(record))),
        claims=claims,
        blocks=[*blocks, *hints],
    )


def _chosen(record: Experiment) -> list[str]:
    """Returns how the network of an experiment starts, and what else was chosen, in sentences."""
    start = [f"{record.network} starts with {INITIAL_WEIGHTS[record.network]}."] if isinstance(record, Training) else []
    return [*start, record.choices] if record.choices else start


def command(results: Results, name: str) -> str:
    """Returns what makes the runs of an experiment."""
    return f"python -m experiments run {name} --workdir {results.folder}"
