"""One process of a run: `python -m tests.experiments.imagenet.programs.one_of_several WORKDIR STEPS HOLD_AT LAYOUT`.

The layout is `fsdp`, by which nearly all arrays are shared among the processes, or `replicated`. At step `HOLD_AT` it
waits until there is a file `WORKDIR/go`, if ever, so that others can end it there.
"""

import contextlib
import sys
import time
from pathlib import Path

import absl.logging
import jax

from experiments.imagenet import mesh, processes
from experiments.imagenet.train import fit
from experiments.networks import NETWORKS
from tests.experiments.imagenet import tiny


def held(batches, step, hold_at, go):
    with contextlib.closing(batches):
        while True:
            if step == hold_at:
                while not go.exists():
                    time.sleep(0.01)
            yield next(batches)
            step += 1


def main(workdir, steps, hold_at, layout):
    mesh.SMALLEST_SHARED = 512
    NETWORKS["Tiny"] = tiny.Tiny
    absl.logging.set_verbosity(absl.logging.FATAL)
    processes.initialise()
    feed = tiny.feed(process=jax.process_index(), processes=jax.process_count())
    training = feed.training
    feed = feed._replace(training=lambda start: held(training(start), start, int(hold_at), Path(workdir) / "go"))
    options = tiny.options(arm="two-point", steps=int(steps), checkpoint_minutes=0, fsdp=layout == "fsdp")
    outcome = fit(options, feed, Path(workdir), mesh.device_mesh())
    folder = Path(workdir) / ".working/tiny/two-point/seed-0/checkpoints"
    print(f"{outcome.name} after {max(int(path.name) for path in folder.iterdir())}", flush=True)
    sys.exit(outcome)


if __name__ == "__main__":
    main(*sys.argv[1:])
