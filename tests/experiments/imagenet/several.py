"""Runs of several processes on this machine."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

MODULE = "tests.experiments.imagenet.programs.one_of_several"
SECONDS = 200  # after which something hangs


class Several:
    """Some processes of one run; to be used in a `with` statement, which ends those that are left."""

    def __init__(self, count, workdir, steps, hold_at=-1, environ=None, layout="replicated"):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        environ = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", **(environ or {})}
        self.processes = []
        for number in range(count):
            own = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(count), "JAX_PROCESS_ID": str(number)}
            self.processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", MODULE, str(workdir), str(steps), str(hold_at), layout],
                    env=environ | own,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
            )
        self.folder = Path(workdir) / ".working/tiny/two-point/seed-0"

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.signal(signal.SIGKILL)
        for process in self.processes:
            process.communicate()

    def signal(self, number, processes=slice(None)):
        for process in self.processes[processes]:
            if process.poll() is None:
                process.send_signal(number)

    def wait_for_checkpoint(self, step):
        """Returns when a checkpoint of a step is whole."""
        end = time.monotonic() + SECONDS
        while not (self.folder / "checkpoints" / str(step)).exists():
            ended = [process for process in self.processes if process.poll() is not None]
            assert not ended, [process.communicate()[0] for process in ended]
            assert time.monotonic() < end, f"no checkpoint of step {step}"
            time.sleep(0.05)

    def wait(self):
        """Returns the exit statuses and what was printed."""
        printed = [process.communicate(timeout=SECONDS)[0] for process in self.processes]
        return [process.returncode for process in self.processes], printed


def losses(journal):
    """Returns the loss of every step, and the scores of every evaluation."""
    lines = [json.loads(line) for line in Path(journal).read_text().splitlines()[1:]]
    return (
        {line["step"]: line["loss"] for line in lines if "loss" in line},
        {line["step"]: (line["top1"], line["validation_loss"]) for line in lines if "top1" in line},
    )
