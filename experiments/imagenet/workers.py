"""Batches made ahead of time, in threads or in processes of their own."""

import multiprocessing
import os
import signal
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import grain
import numpy as np
import numpy.typing as npt
from absl import flags

Batch = dict[str, npt.NDArray[Any]]

_MAX_THREADS = 16


class BatchesAhead(Iterator[Batch]):
    """Yields batches in their order, with as many in the making as there are processors.

    Threads and processes end when the iterator is exhausted, closed, or no longer referred to. What processes make
    comes through shared memory (`/dev/shm`, which containers may limit): each needs room for four batches.
    """

    def __init__(self, batches: grain.MapDataset[Batch], workers: int) -> None:
        """Takes batches with random access, and how many processes make them: without any, threads of this one do."""
        threads = max(1, min(_MAX_THREADS, (os.cpu_count() or 1) // max(1, workers)))
        dataset = batches.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads))
        if workers:
            if not flags.FLAGS.is_parsed():  # Grain refuses to start workers before, but its defaults are right
                flags.FLAGS.mark_as_parsed()
            dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers), _prepare_worker)
        self._iterator = iter(dataset)
        # Unlike `__del__`, it is also called at the end of the program, while closing is still possible.
        self._close = weakref.finalize(self, self._iterator.close)

    def __next__(self) -> Batch:
        if not self._close.alive:
            raise StopIteration
        try:
            # Copies, since arrays from workers lie in shared memory, which is scarce and has a lifetime of its own.
            return {name: np.array(array) for name, array in next(self._iterator).items()}
        except BaseException:
            self._close()
            raise

    def close(self) -> None:
        """Ends threads and processes; there are no batches after that."""
        self._close()


def _prepare_worker(index: int, count: int) -> None:
    """Leaves it to the main process when a worker ends, however the main process itself ends."""
    # Schedulers and terminals send these signals to all processes at once, and the main one still needs a batch for the
    # step that it is in.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if parent := multiprocessing.parent_process():

        def end_with_parent() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=end_with_parent, daemon=True).start()
