"""The commands `list` and `run`: which experiments there are, and training them, a process for each core."""

import concurrent.futures
import contextlib
import dataclasses
import functools
import multiprocessing
import os
import queue
import shutil
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Protocol

import absl.logging
import jax
import tyro
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text

from . import runs
from .data import Images, load
from .fits import Fits, fit_units
from .imagenet.options import resolve
from .imagenet.records import RECORDS as IMAGENET
from .imagenet.train import Outcome, train
from .movement import movement_units
from .records import Training
from .runner import Context, StoppedError, training_units
from .table import EXPERIMENTS, Experiment

WORKDIR = Path("results/runs")  # where the runs of the report are
# Histories and the states that arms branch from.
NEEDED_BYTES = 2_000_000_000


class Unit(Protocol):
    """What one process does at a time."""

    @property
    def name(self) -> str:
        """What is shown of it."""
        ...

    def steps(self, context: Context) -> int:
        """Returns how many steps there are to be made, if none was made yet."""
        ...

    def check(self, context: Context, versions: bool = True) -> None:
        """Raises a ValueError if results that are there already are of other settings (or versions)."""
        ...

    def run(self, context: Context) -> None:
        """Does what is not done yet."""
        ...


@dataclasses.dataclass(frozen=True)
class OnImageNet:
    """For `alexnet_1` and `inception_v1` alone.

    Attributes:
      data: a folder with train/CLASS/*.JPEG and val/CLASS/*.JPEG, or where TFDS prepared imagenet2012.
      fsdp: weights, optimizer state and snapshots are shared among the devices; otherwise all have them.
      bfloat16: the network computes in bfloat16; weights stay float32.
      batch_size: examples a step, on all devices together, instead of the paper's.
      image_size: height and width of the images, instead of those of the network.
      jump_steps: instead of the paper's, in the first arm that jumps unless `--arms` names others.
      workers: processes that decode images, for each process of the run; 0 does it in threads.
      checkpoint_minutes: between two checkpoints.
    """

    data: Path | None = None
    fsdp: bool = False
    bfloat16: bool = False
    batch_size: int | None = None
    image_size: int | None = None
    jump_steps: tuple[int, ...] | None = None
    workers: int = 0
    checkpoint_minutes: float = 10.0


def list_experiments(workdir: Path = WORKDIR) -> None:
    """Lists the experiments: what each asks, its arms and seeds, how long it takes, and how much of it is done.

    Args:
      workdir: the folder whose complete runs are counted.
    """
    numbers = (Column(name, justify="right", no_wrap=True) for name in ("arms", "seeds", "minutes", "done"))
    table = Table("name, and what it asks", *numbers, box=box.SIMPLE)
    for name, experiment in EXPERIMENTS.items():
        expected = [(arm.name, seed) for arm in experiment.arms for seed in _seeds(experiment, arm)]
        done = sum(runs.path_of(workdir, name, arm, seed).exists() for arm, seed in expected)
        table.add_row(
            _name_and(experiment.question, name),
            str(len(experiment.arms)),
            str(len(experiment.seeds)),
            str(experiment.minutes),
            f"{done} of {len(expected)}",
        )
    for name, record in IMAGENET.items():
        done = sum(runs.path_of(workdir, name, arm.name, 0).exists() for arm in record.arms)
        arms = len(record.arms)
        table.add_row(_name_and(record.question, name), str(arms), "1", "days", f"{done} of {arms}")
    table.caption = (
        "minutes: for all of it, on two CPU cores; done: complete runs in the workdir; alexnet_1 and inception_v1 need "
        "--data, a folder with ImageNet"
    )
    Console().print(table)


def _name_and(question: str, name: str) -> Text:
    return Text.assemble((name, "bold"), "\n", (question, "dim"), "\n")


def run(
    names: Annotated[tuple[str, ...], tyro.conf.Positional],
    arms: tuple[str, ...] = (),
    seeds: tuple[int, ...] = (),
    steps: int | None = None,
    workdir: Path = WORKDIR,
    processes: int | None = None,
    minutes: float | None = None,
    data_dir: Path | None = None,
    imagenet: Annotated[OnImageNet, tyro.conf.arg(name="")] = OnImageNet(),
) -> None:
    """Runs experiments, and goes on where an earlier call stopped or was killed; complete runs are not run again.

    Every run is one small file of JSON lines in the workdir: its settings, then loss and accuracy on training and test
    images at even intervals, and the seconds of training. Arms of one seed have the same start, batches and dropout;
    up to their first jump they are trained as one. What is added to an experiment must be of the versions of the rest.
    `python -m experiments list` says what there is and how long it takes, and `python -m experiments report` makes the
    report of what is complete.

    `alexnet_1` and `inception_v1` train on ImageNet, which `--data` names, on all devices of all processes: those that
    the environment of Slurm, a TPU pod or Open MPI tells of. SIGTERM saves, and ends with the status 75. A run that
    diverges is written down as such, and the others go on.

    Args:
      names: the experiments, or `all`; predictors come first, since others use them.
      arms: only these arms, and those that they branch from.
      seeds: only these seeds.
      steps: no more than so many steps; then it is another experiment, which needs a workdir of its own.
      workdir: the folder for results; what it takes to go on is in its folder `.working`.
      processes: how many runs at a time, each on a core of its own; by default one for every core. With a GPU, 1;
        several share it only with XLA_PYTHON_CLIENT_PREALLOCATE=false in the environment.
      minutes: stop cleanly after so many; the same command goes on later.
      data_dir: a folder with the original files of MNIST, of CIFAR-10, or of both, if you have them.
      imagenet: how to train on ImageNet.
    """
    if imagenet != OnImageNet() or not IMAGENET.keys().isdisjoint(names):
        if processes is not None or data_dir is not None:
            given = "processes" if processes is not None else "data_dir"
            raise ValueError(f"{given} is not for ImageNet, which trains on all devices, and whose images --data names")
        _run_imagenet(names, arms, seeds, steps, workdir, minutes, imagenet)
        return
    chosen = choose(names, arms, seeds, steps)
    if steps is not None and workdir == WORKDIR:
        raise ValueError(f"with other steps it is another experiment, which has no place in {WORKDIR}: give --workdir")
    if processes is not None and processes < 1:
        raise ValueError(f"processes must be at least 1; got {processes}")
    if minutes is not None and not minutes > 0:
        raise ValueError(f"minutes must be more than 0; got {minutes}")
    check_workdir(workdir)
    console = Console()
    images = _loader(data_dir)
    for name in dict.fromkeys(experiment.data for experiment, _, _ in chosen):
        console.print(f"{name}: {images(name).source}")
    deadline = None if minutes is None else time.time() + 60 * minutes
    context = Context(workdir, images, deadline)
    stopped = False
    with runs.locked(workdir / ".working"):
        # Others need what the first phase makes.
        for phase in (True, False):
            unfinished: list[Unit] = []
            for experiment, some_arms, some_seeds in chosen:
                if isinstance(experiment, Fits) == phase:
                    units = units_of(experiment, some_arms, some_seeds)
                    left = [unit for unit in units if unit.steps(context) > 0]
                    for unit in units:
                        # What is complete may be from anywhere, unless something is to be compared with it.
                        unit.check(context, versions=bool(left))
                    unfinished += left
            if unfinished:
                # The longest first, so that no core is idle for long at the end.
                unfinished.sort(key=lambda unit: -unit.steps(context))
                stopped = _run_all(unfinished, context, processes, data_dir, console)
            if stopped:
                break
    console.print(f"{'Stopped: the same command goes on.' if stopped else 'Complete.'} Results are in {workdir}")


def _run_imagenet(
    names: Sequence[str],
    arms: Sequence[str],
    seeds: Sequence[int],
    steps: int | None,
    workdir: Path,
    minutes: float | None,
    imagenet: OnImageNet,
) -> None:
    """Trains on ImageNet, one run after the other.

    Raises:
      ValueError: something that cannot be run so; of settings before anything is trained.
      SystemExit: it stopped before its end.
    """
    if others := [name for name in names if name not in IMAGENET]:
        raise ValueError(f"{', '.join(others)} cannot be run with ImageNet; with it go {', '.join(IMAGENET)}, alone")
    if imagenet.data is None:
        raise ValueError(f"{', '.join(names)} needs --data, the folder of ImageNet")
    settings = {name: value for name, value in vars(imagenet).items() if name != "data"}

    def arms_of(name: str) -> Sequence[str | None]:
        if arms:
            return arms
        # With other jump steps, several arms that jump would be one and the same: None is the first of them.
        return [arm.name for arm in IMAGENET[name].arms] if imagenet.jump_steps is None else [None]

    chosen = [
        resolve(IMAGENET[name], arm=arm, seed=seed, steps=steps, minutes=minutes, **settings)
        for name in dict.fromkeys(names)
        for arm in arms_of(name)
        for seed in seeds or (0,)
    ]
    for options in chosen:
        outcome = train(options, imagenet.data, workdir)
        if outcome is not Outcome.COMPLETE:
            sys.exit(outcome)


def choose(
    names: Sequence[str], arms: Sequence[str], seeds: Sequence[int], steps: int | None
) -> list[tuple[Experiment, tuple[Any, ...], tuple[int, ...]]]:
    """Returns the experiments with those of their arms and seeds that were asked for.

    Raises:
      ValueError: something that is not known, with what is, or fewer steps than a jump needs.
    """
    if unknown := [name for name in names if name not in EXPERIMENTS and name != "all"]:
        raise ValueError(f"unknown experiments {', '.join(unknown)}; known are {', '.join(EXPERIMENTS)}, and all")
    if not names:
        raise ValueError(f"name at least one experiment; known are {', '.join(EXPERIMENTS)}, and all")
    experiments = [EXPERIMENTS[name] for name in (EXPERIMENTS if "all" in names else dict.fromkeys(names))]
    known_arms = dict.fromkeys(arm.name for e in experiments for arm in e.arms)
    if unknown := [name for name in arms if name not in known_arms]:
        raise ValueError(f"unknown arms {', '.join(unknown)}; {_names(experiments)} have {', '.join(known_arms)}")
    known_seeds = sorted({seed for e in experiments for seed in e.seeds})
    if strange := [seed for seed in seeds if seed not in known_seeds]:
        raise ValueError(f"unknown seeds {strange}; {_names(experiments)} have {known_seeds}")
    chosen = []
    for experiment in experiments:
        some_arms = tuple(arm for arm in experiment.arms if not arms or arm.name in arms)
        some_seeds = tuple(seed for seed in experiment.seeds if not seeds or seed in seeds)
        if steps is not None:
            if not isinstance(experiment, Training):
                raise ValueError(f"{experiment.name} cannot be run with other steps")
            experiment, some_arms = _with_steps(experiment, {arm.name for arm in some_arms}, steps)
        chosen.append((experiment, some_arms, some_seeds))
    foreseen = {f"{arm.name} of {e.name}": _seeds(e, arm) for e, some_arms, _ in chosen for arm in some_arms}
    if seeds and not any(set(seeds) & set(those) for those in foreseen.values()):
        there = "; ".join(f"{name} has {list(those)}" for name, those in foreseen.items())
        raise ValueError(f"there is no run of seeds {list(seeds)}: {there}")
    return chosen


def _with_steps(experiment: Training, names: set[str], steps: int) -> tuple[Training, tuple[Any, ...]]:
    last = max((arm.jump_steps[-1] for arm in experiment.arms if arm.jump_steps and arm.name in names), default=0)
    if steps <= last:
        raise ValueError(f"steps must be more than the last jump step of {experiment.name}, {last}; got {steps}")
    shorter = tuple(
        dataclasses.replace(arm, steps=min(arm.steps, steps))
        for arm in experiment.arms
        if steps > max(arm.jump_steps, default=0)
    )
    return dataclasses.replace(experiment, arms=shorter), tuple(arm for arm in shorter if arm.name in names)


def check_workdir(workdir: Path) -> None:
    """Raises an OSError if nothing can be written there."""
    workdir.mkdir(parents=True, exist_ok=True)
    if not os.access(workdir, os.W_OK | os.X_OK):
        raise PermissionError(f"workdir {workdir} cannot be written to")
    if (free := shutil.disk_usage(workdir).free) < NEEDED_BYTES:
        raise OSError(f"workdir {workdir} has {free / 1e9:.1f} GB of space; {NEEDED_BYTES / 1e9:.0f} GB may be needed")


def units_of(experiment: Experiment, arms: tuple[Any, ...], seeds: tuple[int, ...]) -> Sequence[Unit]:
    """Returns what there is to do for some arms and seeds of an experiment."""
    if isinstance(experiment, Training):
        return training_units(experiment, arms, seeds)
    if not seeds:
        return []
    return fit_units(experiment, arms) if isinstance(experiment, Fits) else movement_units(experiment, arms, seeds)


def _seeds(experiment: Experiment, arm: Any) -> tuple[int, ...]:
    return arm.seeds if isinstance(experiment, Training) else experiment.seeds


def _names(experiments: Sequence[Experiment]) -> str:
    return ", ".join(experiment.name for experiment in experiments)


def _run_all(
    units: Sequence[Unit], context: Context, processes: int | None, data_dir: Path | None, console: Console
) -> bool:
    """Runs units in processes of their own, and shows how far they are; returns whether the time was up."""
    spawn = multiprocessing.get_context("spawn")
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    processes = min(processes or len(cores), len(units))
    free_cores, news = spawn.SimpleQueue(), spawn.Queue()
    for i in range(processes):
        free_cores.put(cores[i % len(cores)])
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    )  # fmt: skip
    stopped = False
    with (
        Progress(*columns, console=console, speed_estimate_period=600) as progress,
        concurrent.futures.ProcessPoolExecutor(
            processes, spawn, _begin_worker, (free_cores, news, context.workdir, context.deadline, data_dir)
        ) as pool,
    ):
        everything = progress.add_task("all", total=sum(unit.steps(context) for unit in units))
        bars = [progress.add_task(unit.name, total=unit.steps(context), visible=False) for unit in units]
        waiting = {pool.submit(_work, i, unit): i for i, unit in enumerate(units)}
        try:
            while waiting:
                done, _ = concurrent.futures.wait(waiting, timeout=0.5, return_when="FIRST_COMPLETED")
                while True:
                    try:
                        i, steps = news.get_nowait()
                    except queue.Empty:
                        break
                    progress.update(bars[i], advance=steps, visible=True)
                    progress.update(everything, advance=steps)
                for future in done:
                    progress.update(bars[waiting.pop(future)], visible=False)
                    stopped |= future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return stopped


def _loader(data_dir: Path | None) -> Callable[[str], Images]:
    """Returns a function from the name of a data set to its images, which are read once, when they are asked for."""
    return functools.cache(lambda name: load(name, data_dir))


_context: Context  # of a worker


def _begin_worker(free_cores: Any, news: Any, workdir: Path, deadline: float | None, data_dir: Path | None) -> None:
    absl.logging.set_verbosity(absl.logging.ERROR)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    if hasattr(os, "sched_setaffinity"):
        _pin(free_cores.get())
    global _context, _news
    _context, _news = Context(workdir, _loader(data_dir), deadline), news


_news: Any  # where a worker tells of its steps


def _pin(core: int) -> None:
    """Keeps this process on a core of its own, unless it trains on an accelerator, which several threads have to feed.

    Two runs on a core each make 1.3 (MNIST_1) to 1.7 times (MNIST_3) the steps of one run on two cores.
    """
    everywhere = os.sched_getaffinity(0)
    # JAX makes as many threads as there are cores when it is first asked for its devices, so not the other way round.
    os.sched_setaffinity(0, {core})
    if jax.default_backend() != "cpu":
        for thread in Path("/proc/self/task").iterdir():
            with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
                os.sched_setaffinity(int(thread.name), everywhere)


def _die_with_parent() -> None:
    """Ends this process when the one that started it is gone, lest it go on where the next `run` wants to."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


class _Teller:
    """Tells of the steps of a unit, about once a second."""

    def __init__(self, number: int):
        self._number = number
        self._untold, self._told_at = 0, time.monotonic()

    def __call__(self, steps: int) -> None:
        self._untold += steps
        if time.monotonic() - self._told_at > 1:
            self.tell()

    def tell(self) -> None:
        """Tells of what was not told yet."""
        if self._untold:
            _news.put((self._number, self._untold))
        self._untold, self._told_at = 0, time.monotonic()


def _work(number: int, unit: Unit) -> bool:
    """Runs a unit in a worker; returns whether it stopped before its end."""
    teller = _Teller(number)
    context = dataclasses.replace(_context, advance=teller)
    try:
        context.check_time()
        unit.run(context)
    except StoppedError:
        return True
    finally:
        teller.tell()
        jax.clear_caches()  # hundreds of programs, none of which is used again
    return False
