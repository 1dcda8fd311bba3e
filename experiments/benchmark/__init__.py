"""What the library costs: ratios against a baseline in the same process."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from .histories import fitting, recording
from .jump import jumps
from .layers import both_forms
from .page import machine, page
from .rows import Row
from .steps import billion, compilation, idle_steps, scanned_steps, states

SECTIONS: dict[str, Callable[[int], list[Row]]] = {
    "idle-steps": idle_steps,
    "scanned-steps": scanned_steps,
    "jumps": jumps,
    "compilation": compilation,
    "states": states,
    "billion": billion,
    "recording": recording,
    "fitting": fitting,
    "layers": both_forms,
}


def benchmark(
    output: Path = Path("runs/benchmark"), repetitions: int = 40, sections: Sequence[str] = tuple(SECTIONS)
) -> None:
    """Measures what steps, jumps, compilation, recording, fitting and the layers of the experiments' networks cost.

    It takes half an hour on two cores that do nothing else.

    Every section is written down as soon as it is measured; those measured before stay as they are, and without any to
    be measured the page is only made anew.

    Args:
      output: the folder that gets benchmark.md, and a folder benchmark with the figures and benchmark.json.
      repetitions: of every measurement; slow ones are repeated less.
      sections: which to measure: idle-steps, scanned-steps, jumps, compilation, states, billion, recording, fitting,
        layers.
    """
    if unknown := [name for name in sections if name not in SECTIONS]:
        raise ValueError(f"unknown sections {unknown}; known are {list(SECTIONS)}")
    if repetitions < 1:
        raise ValueError(f"repetitions must be a positive integer; got {repetitions}")
    console = Console()
    folder = output / "benchmark"
    folder.mkdir(parents=True, exist_ok=True)
    written = folder / "benchmark.json"
    measured: dict[str, list[Row]] = {}
    if written.exists():
        measured = {name: [Row(**row) for row in rows] for name, rows in json.loads(written.read_text()).items()}
    command = f"python -m experiments benchmark --repetitions {repetitions}"
    for name in sections:
        with console.status(name):
            measured[name] = SECTIONS[name](repetitions)
        for r in measured[name]:
            console.print(f"{r.what}: {r.median:.3g} {r.unit} ({r.low:.3g} to {r.high:.3g}) {r.note}", highlight=False)
        rows = {name: [dataclasses.asdict(r) for r in measured[name]] for name in SECTIONS if name in measured}
        written.write_text(json.dumps(rows, indent=1) + "\n")
    everything = [r for name in SECTIONS for r in measured.get(name, [])]
    (output / "benchmark.md").write_text(page(everything, folder, command))
    console.print(f"Wrote benchmark.md and the folder benchmark to {output}. {machine()}")
