"""Processes that do something and may die of it: by themselves, after a while, or at one of their changes to files."""

import contextlib
import functools
import itertools
import logging
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

# What Python tells of before it changes files; TensorStore writes its chunks without telling.
CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "os.link", "os.symlink"}


@functools.cache
def _context() -> Any:
    """Returns what starts processes in which everything is imported already, but nothing has been computed."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([f"{__package__}.{name}" for name in ("works", "judging", "disks")])
    return context


class Child:
    """A process that does something.

    Args:
      do: what it does, a function of a module.
      arguments: of this function.
      last: the number of the change to files that it is killed at; 0 is none.
      cache: a folder of compiled programs, so that not every process has to compile them.
    """

    def __init__(self, do: Callable[..., Any], *arguments: Any, last: int = 0, cache: Path | None = None):
        self.pipe, there = _context().Pipe()
        self._process = _context().Process(target=_do, args=(there, do, arguments, last, cache))
        self._process.start()
        there.close()
        assert self.pipe.recv() == "begun"
        self._began = time.monotonic()

    def is_killed(self, seconds: float | None = None) -> bool:
        """Kills it after so long, if it is not killed by its changes, and returns whether it was killed.

        Raises:
          RuntimeError: it failed by itself.
        """
        # It may have much to say, so this is not waited for with `join`.
        done = self.pipe.poll(seconds)
        if not done:
            self._process.kill()
        self._process.join()
        if self._process.exitcode == -signal.SIGKILL:
            return True
        self.result()
        return False

    def result(self) -> Any:
        """Returns what comes of it.

        Raises:
          RuntimeError: it failed; its traceback is the message.
        """
        try:
            done, result, self.changes = self.pipe.recv()
        except EOFError:
            done, result = False, "it ended without a word"
        self.seconds = time.monotonic() - self._began
        self._process.join()
        if not done or self._process.exitcode != 0:
            raise RuntimeError(f"{result} (exit code {self._process.exitcode})")
        return result

    def stop(self) -> None:
        """Ends it, whatever it does."""
        self._process.kill()
        self._process.join()


def _do(there: Any, do: Callable[..., Any], arguments: Any, last: int, cache: Path | None) -> None:
    if cache is not None:
        jax.config.update("jax_compilation_cache_dir", str(cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    numbers, changes = itertools.count(1), 0

    def hook(event: str, arguments: Any) -> None:
        nonlocal changes
        written = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if (written or event in CHANGES) and str(cache) not in str(arguments[0]):
            changes = next(numbers)
            if changes == last:
                os.kill(os.getpid(), signal.SIGKILL)

    logging.disable(logging.ERROR)  # of what goes wrong here on purpose, Orbax says much
    there.send("begun")
    sys.addaudithook(hook)
    try:
        outcome = True, do(*arguments)
    except BaseException:
        outcome = False, traceback.format_exc()
    with contextlib.suppress(BrokenPipeError):
        there.send((*outcome, changes))
