"""The commands `list` and `run`: which experiments there are, and running them, a process for each core."""

import concurrent.futures
import contextlib
import dataclasses
import functools
import importlib.metadata
import multiprocessing
import os
import queue
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import absl.logging
import jax
import tyro
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text

from . import results, runs
from ._config import Experiment, Study
from .data import load
from .imagenet import ImageNet
from .language import Language
from .language_evolution import Evolution
from .registry import EXPERIMENTS
from .runs import Context, Run, TrainingRun
from .studies import Movement, Predictors
from .training import StoppedError

WORKDIR = Path("runs")


def list_experiments(workdir: Path = WORKDIR, results_dir: Path = results.FOLDER) -> None:
    """Lists the experiments: what each asks, its runs, how long it takes, and what of it is measured.

    Args:
      workdir: the work folder, whose complete runs are counted.
      results_dir: the folder of results.
    """
    numbers = (Column(name, justify="right", no_wrap=True) for name in ("runs", "done", "minutes"))
    table = Table("name, and what it asks", *numbers, "measured", box=box.SIMPLE)
    for name, experiment in EXPERIMENTS.items():
        done = sum(1 for _ in (workdir / name).glob("*/*/result.json"))
        count = str(len(_runs(experiment, _arms(experiment))))
        words = Text.assemble((name, "bold"), f"  {experiment.title}\n", (experiment.question, "dim"), "\n")
        table.add_row(words, count, str(done), str(experiment.minutes or ""), state_of(experiment, results_dir))
    Console().print(table)


def state_of(experiment: Study, folder: Path) -> str:
    """Returns what is measured of an experiment, in words."""
    versions = {
        results.read(name, folder).version
        for name in (experiment.name, f"{experiment.name}-v0.1")
        if name in results.names(folder)
    }
    if versions:
        return f"in version {' and '.join(sorted(versions))}"
    return "needs data and hardware" if experiment.minutes is None else "not yet"


def run(
    names: Annotated[tuple[str, ...], tyro.conf.Positional],
    arms: tuple[str, ...] = (),
    seeds: tuple[int, ...] = (),
    steps: int | None = None,
    workdir: Path = WORKDIR,
    results_dir: Annotated[Path | None, tyro.conf.arg(name="results")] = None,
    minutes: float | None = None,
    processes: int | None = None,
    data_dir: Path | None = None,
) -> None:
    """Runs experiments, and goes on where an earlier call stopped or was killed.

    Arms of one seed have the same start, batches and dropout. Complete runs are not run again. A run that diverges ends
    with an evaluation that is not finite. `python -m experiments list` says what there is and how long it takes.

    Args:
      names: the experiments, or `all`.
      arms: only these arms.
      seeds: only these seeds.
      steps: fewer steps; that is another experiment, which needs a work folder of its own.
      workdir: the work folder.
      results_dir: folder of results that complete runs are added to, such as `results`, which `report` reads.
      minutes: stop after so many minutes; the same command goes on later.
      processes: number of runs at a time, each on a core of its own; by default one for every core.
      data_dir: a folder with the original files of the data set.
    """
    chosen = choose(names, arms, seeds, steps)
    if results_dir is not None and steps is not None:
        raise ValueError(f"steps must not be given with results, which are of whole runs; got {steps}")
    for name, value in {"processes": processes, "minutes": minutes}.items():
        if value is not None and not value > 0:
            raise ValueError(f"{name} must be more than 0; got {value}")
    execute(chosen, workdir, results_dir, minutes, processes, data_dir)


def choose(names: Sequence[str], arms: Sequence[str], seeds: Sequence[int], steps: int | None) -> list[Run]:
    """Returns the runs that were asked for.

    Raises:
      ValueError: a name, arm or seed is not known, or a run has fewer steps than its last jump.
    """
    known = [name for name, experiment in EXPERIMENTS.items() if not isinstance(experiment, ImageNet)]
    if not names or not set(names) <= {*known, "all"}:
        alone = "; alexnet_1 and inception_v1 are run alone, with --data" if set(names) & EXPERIMENTS.keys() else ""
        raise ValueError(f"names must be of {', '.join(known)}, or all; got {', '.join(names) or 'none'}{alone}")
    chosen: list[Run] = []
    experiments = [EXPERIMENTS[name] for name in (known if "all" in names else dict.fromkeys(names))]
    known_arms = dict.fromkeys(arm.name for e in experiments for arm in _arms(e))
    if unknown := [arm for arm in arms if arm not in known_arms]:
        raise ValueError(f"arms must be of {', '.join(known_arms)}; got {', '.join(unknown)}")
    for experiment in experiments:
        own = tuple(arm for arm in _arms(experiment) if not arms or arm.name in arms)
        if steps is not None:
            own = tuple(_shortened(experiment, arm, steps) for arm in own)
        chosen += [run for run in _runs(experiment, own) if not seeds or run.seed in seeds]
    if not chosen:
        raise ValueError(f"seeds must be those of an arm of {', '.join(names)}; got {list(seeds)}")
    return chosen


def execute(
    chosen: Sequence[Run],
    workdir: Path,
    results_dir: Path | None = None,
    minutes: float | None = None,
    processes: int | None = None,
    data_dir: Path | None = None,
) -> bool:
    """Does what is not done yet of some runs, and adds them to results; returns whether all are complete.

    Raises:
      ValueError: the work folder holds runs of other settings, the results are of another version, or runs failed; all
        others are complete then.
      BlockingIOError: another command works on the folder.
    """
    console = Console()
    deadline = None if minutes is None else time.time() + 60 * minutes
    context = Context(workdir, functools.cache(lambda name: load(name, data_dir)), deadline)
    with runs.locked(workdir, "another command works on"):
        if results_dir is not None:
            _check_versions({run.experiment.name for run in chosen}, results_dir)
        for name in dict.fromkeys(run.experiment.data for run in chosen):
            console.print(f"{name}: {context.data(name).source}")
        stopped = False
        # Other experiments may need the predictors.
        for first in (True, False):
            phase = [run for run in chosen if isinstance(run.experiment, Predictors) == first]
            for run in phase:
                run.check(context)
            left = [run for run in phase if not run.is_complete(context)]
            if left and not stopped:
                # The longest first, so that no core is idle for long at the end.
                left.sort(key=lambda run: -run.steps)
                stopped = _run_all(left, context, processes, data_dir, console)
        if results_dir is not None:
            for name in dict.fromkeys(run.experiment.name for run in chosen):
                complete = [run for run in chosen if run.experiment.name == name and run.is_complete(context)]
                if complete:
                    runs.append(complete, context, results_dir)
    console.print("Stopped: the same command goes on." if stopped else f"Complete: {len(chosen)} runs in {workdir}")
    return not stopped


def _runs(experiment: Study, arms: Sequence[Any]) -> list[Run]:
    """Returns the runs of some arms of an experiment, one for each seed."""
    if isinstance(experiment, Predictors | Movement | Language | Evolution):
        return experiment.runs(tuple(arms))
    if isinstance(experiment, Experiment):
        return [TrainingRun(experiment, arm, seed) for arm in arms for seed in range(arm.seeds)]
    return []


def _arms(experiment: Study) -> Sequence[Any]:
    arms: Sequence[Any] = getattr(experiment, "arms", ())
    return arms


def _shortened(experiment: Study, arm: Any, steps: int) -> Any:
    if not isinstance(experiment, Experiment):
        raise ValueError(f"steps of {experiment.name} can't be changed; got {steps}")
    steps = min(arm.steps, steps)
    jumps, last = arm.jump_steps, max(arm.jump_steps, default=0)
    if isinstance(jumps, range):  # at even intervals: as many as there is room for, but one at least
        jumps, last = range(jumps.start, steps, jumps.step), jumps.start
    if steps <= last:
        raise ValueError(
            f"steps must be more than the last jump of {arm.name} of {experiment.name}, {last}; got {steps}"
        )
    return dataclasses.replace(arm, steps=steps, jump_steps=jumps)


def _check_versions(names: set[str], folder: Path) -> None:
    version = importlib.metadata.version("optax-introspect")
    for name in sorted(names & set(results.names(folder))):
        if (found := results.read(name, folder).version) != version:
            raise ValueError(
                f"results must be of version {version}; {folder / name} is of {found}: rename its files, {name}*, to "
                f"{name}-v{found}*, or give another folder"
            )


def _run_all(
    left: Sequence[Run], context: Context, processes: int | None, data_dir: Path | None, console: Console
) -> bool:
    """Does runs in processes of their own, and shows how far they are; returns whether the time was up."""
    spawn = multiprocessing.get_context("spawn")
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    processes = min(processes or len(cores), len(left))
    free_cores, news = spawn.SimpleQueue(), spawn.Queue()
    for i in range(processes):
        free_cores.put(cores[i % len(cores)])
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    )  # fmt: skip
    stopped, failed = False, []
    with (
        Progress(*columns, console=console, speed_estimate_period=600) as progress,
        concurrent.futures.ProcessPoolExecutor(
            processes, spawn, _begin_worker, (free_cores, news, context.workdir, context.deadline, data_dir)
        ) as pool,
    ):
        everything = progress.add_task("all", total=sum(run.steps for run in left))
        bars = [progress.add_task(run.name, total=run.steps, visible=False) for run in left]
        waiting = {pool.submit(_work, i, run): i for i, run in enumerate(left)}
        while waiting:
            done, _ = concurrent.futures.wait(waiting, timeout=0.5, return_when="FIRST_COMPLETED")
            with contextlib.suppress(queue.Empty):
                while True:
                    i, steps = news.get_nowait()
                    progress.update(bars[i], advance=steps, visible=True)
                    progress.update(everything, advance=steps)
            for future in done:
                i = waiting.pop(future)
                progress.update(bars[i], visible=False)
                try:
                    stopped |= future.result()
                except Exception as error:
                    failed.append(f"{left[i].name}: {error!r}")
    if failed:
        raise ValueError("; ".join(failed))
    return stopped


_worker: tuple[Context, Any]  # of this process: what all runs have in common, and where it tells of its steps


def _begin_worker(free_cores: Any, news: Any, workdir: Path, deadline: float | None, data_dir: Path | None) -> None:
    absl.logging.set_verbosity(absl.logging.ERROR)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if hasattr(os, "sched_setaffinity"):
        _pin(free_cores.get())
    global _worker
    _worker = Context(workdir, functools.cache(lambda name: load(name, data_dir)), deadline), news


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


def _end_with_parent() -> None:
    """Ends this process with the command that started it, so that the next one can go on."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work(number: int, run: Run) -> bool:
    """Does a run in a worker; returns whether it stopped before its end."""
    context, news = _worker
    try:
        run.complete(dataclasses.replace(context, advance=lambda steps: news.put((number, steps))))
    except StoppedError:
        return True
    finally:
        jax.clear_caches()  # programs that are not used again
    return False
