"""Section 3 of the paper: how much weights change in a training, and on which curves."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import optax

import optax_introspect
from optax_introspect import WeightHistory

from . import runs
from .networks import NETWORKS
from .optimizers import OPTIMIZERS
from .recording import record
from .records import Study
from .runner import Context
from .training import Task

Array = npt.NDArray[Any]

BINS = 100
CURVE_EVERY = 2  # records from one point of a curve to the next


@dataclasses.dataclass(frozen=True)
class Recorded:
    """A training whose weights are recorded.

    Attributes:
      name: what it is called.
      title: what it is called in figures.
      network: a key of `experiments.networks.NETWORKS`.
      optimizer: `"sgd"` or `"adam"`.
      learning_rate: of the optimizer.
      batch_size: examples a step.
      steps: updates.
      every: updates from one record to the next.
      jump_steps: where the other run of it jumps.
      augmentation: a key of `experiments.data.AUGMENTATIONS`, or None.
    """

    name: str
    title: str
    network: str
    optimizer: str
    learning_rate: float
    batch_size: int
    steps: int
    every: int
    jump_steps: tuple[int, ...]
    augmentation: str | None = None

    def settings(self) -> dict[str, Any]:
        """Returns what its histories depend on."""
        names = ("name", "network", "optimizer", "learning_rate", "batch_size")
        augmentation = {} if self.augmentation is None else {"augmentation": self.augmentation}
        return {
            "arm": {name: getattr(self, name) for name in names} | augmentation,
            "steps": [self.steps, self.every],
            "jump_steps": list(self.jump_steps),
        }


@dataclasses.dataclass(frozen=True)
class Movement(Study):
    """An experiment that records trainings, each without and with jumps.

    Attributes:
      recorded: the trainings.
      num_seeds: how often each is made anew.
      images: what they train on, a key of `experiments.data.DATA`.
    """

    recorded: tuple[Recorded, ...]
    num_seeds: int
    images: str = "mnist"

    @property
    def arms(self) -> tuple[Recorded, ...]:
        """The trainings."""
        return self.recorded

    @property
    def seeds(self) -> tuple[int, ...]:
        """Those of the trainings."""
        return tuple(range(self.num_seeds))

    @property
    def data(self) -> str:
        """What they train on, a key of `experiments.data.DATA`."""
        return self.images


@dataclasses.dataclass(frozen=True)
class MovementUnit:
    """What one process does at a time: one training of one seed, without and with jumps."""

    experiment: Movement
    recorded: Recorded
    seed: int

    @property
    def name(self) -> str:
        """What is shown of it."""
        return f"{self.experiment.name}, {self.recorded.name}, seed {self.seed}"

    def steps(self, context: Context) -> int:
        """Returns how many steps there are to be made, if none was made yet."""
        return 0 if self._path(context).exists() else 2 * self.recorded.steps

    def check(self, context: Context, versions: bool = True) -> None:
        """Raises a ValueError if a result that is there already is of other settings (or versions)."""
        if (path := self._path(context)).exists():
            runs.check_header(path, self._header(context), versions)

    def run(self, context: Context) -> None:
        """Trains, records, and keeps what the figures show."""
        folder = runs.working(context.workdir, self.experiment.name, self.recorded.name, self.seed)
        with runs.locked(folder):
            self.check(context)
            if self._path(context).exists():
                return
            r = self.recorded
            base = OPTIMIZERS[r.optimizer](r.learning_rate)
            settings = {k: v for k, v in self._header(context).items() if k != "machine"}
            arms = {"plain": base, "jumps": optax.chain(base, optax_introspect.introspect(r.jump_steps))}
            for arm, tx in arms.items():
                images = context.images(self.experiment.data)
                task = Task(NETWORKS[r.network], images, r.batch_size, self.seed, r.augmentation)
                reported = 0
                for step, _ in record(task, tx, folder / arm, settings, r.steps, r.every):
                    context.advance(step - reported)
                    reported = step
                    context.check_time()
            histories = [WeightHistory.open(folder / arm / "history") for arm in arms]
            journal = runs.Journal(folder / "journal.jsonl", self._header(context), None)
            # Of one seed the curves are shown, of the others they would only take space.
            for line in [*summary(histories[0]), *(curves(*histories) if self.seed == 0 else [])]:
                journal.write(line)
            journal.complete(self._path(context), {"end": "complete"})

    def _header(self, context: Context) -> runs.Line:
        return {
            "experiment": self.experiment.name,
            **self.recorded.settings(),
            "seed": self.seed,
            "images": context.images(self.experiment.data).source.partition(",")[0],
            "versions": runs.versions(),
            "machine": runs.machine(),
        }

    def _path(self, context: Context) -> Any:
        return runs.path_of(context.workdir, self.experiment.name, self.recorded.name, self.seed)


def summary(plain: WeightHistory) -> list[runs.Line]:
    """Returns how much weights change, a line for each measure: its histogram, and which share carries half of it.

    Besides, which share of the weights never moves.
    """
    change = optax_introspect.weight_change(plain)
    lines = [_histogram(name, values) for name, values in change._asdict().items()]
    for name, values in change._asdict().items():
        lines.append({"share_of": name, "share": carrying_half(values), "weights": len(values)})
    return [*lines, {"unmoved": float(np.mean(change.deviation == 0))}]


def curves(plain: WeightHistory, jumps: WeightHistory) -> list[runs.Line]:
    """Returns the curves of one weight from each bin of both histograms, without and with jumps, a line for each."""
    change = optax_introspect.weight_change(plain)._asdict()
    steps = plain.steps.tolist()[::CURVE_EVERY]
    both = [np.stack([history.read(step) for step in steps]) for history in (plain, jumps)]
    lines: list[runs.Line] = []
    for name, values in change.items():
        for weight in _from_bins(values):
            measures = {measure: float(of_all[weight]) for measure, of_all in change.items()}
            without, with_jumps = ([float(f"{x:.5g}") for x in history[:, weight].tolist()] for history in both)
            lines.append({"weight": int(weight), "bins_of": name, **measures, "plain": without, "jumps": with_jumps})
    return [*lines, {"steps": steps}]


def carrying_half(change: Array) -> float:
    """Returns the smallest share of the weights that make half of the sum of all absolute changes."""
    largest_first = np.sort(np.abs(change.astype(np.float64)))[::-1]
    enough = np.searchsorted(np.cumsum(largest_first), largest_first.sum() / 2) + 1
    return float(enough / len(change))


def _histogram(name: str, values: Array) -> runs.Line:
    counts, edges = np.histogram(values, BINS)
    return {"histogram": name, "low": float(edges[0]), "high": float(edges[-1]), "counts": counts.tolist()}


def _from_bins(values: Array) -> Array:
    """Returns a weight of each bin of the histogram of a measure that has any, by one fixed choice."""
    random = np.random.default_rng(0)
    edges = np.histogram_bin_edges(values, BINS)
    bin_of = np.searchsorted(edges[1:-1], values, side="right")  # on an edge, a weight is in the upper bin only
    return np.array([random.choice(np.flatnonzero(bin_of == i)) for i in np.unique(bin_of)])


def movement_units(experiment: Movement, arms: Sequence[Recorded], seeds: Sequence[int]) -> list[MovementUnit]:
    """Returns what there is to do, one training at a time."""
    return [MovementUnit(experiment, recorded, seed) for seed in seeds for recorded in arms]
