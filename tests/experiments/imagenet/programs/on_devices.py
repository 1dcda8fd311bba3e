"""Eight simulated devices: `python -m tests.experiments.imagenet.programs.on_devices WORKDIR`, for `test_mesh.py`.

Prints as JSON what the test looks at.
"""

import collections
import json
import re
import sys
from pathlib import Path

import absl.logging
import jax
from rich.console import Console

from experiments.imagenet import mesh
from experiments.imagenet.feed import on_mesh
from experiments.imagenet.mesh import device_mesh
from experiments.imagenet.train import fit
from experiments.imagenet.wishes import Wishes
from experiments.networks import NETWORKS
from tests.experiments.imagenet import tiny
from tests.experiments.imagenet.several import losses

COLLECTIVES = re.compile(r" = (.*?) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-\w+)(?:-start)?\(")


def trained(workdir, devices, steps, fsdp=False):
    """Returns the loss of every step."""
    options = tiny.options(arm="two-point", steps=steps, fsdp=fsdp)
    fit(options, tiny.feed(), workdir, device_mesh(jax.devices()[:devices]), Console(quiet=True))
    return losses(workdir / "tiny/two-point/seed-0.jsonl")[0]


def step_of(arm, fsdp):
    """Returns the collectives of a compiled training step, always and in jumps, and the shardings around it."""
    devices = device_mesh()
    programs = tiny.programs(devices, tiny.options(arm=arm), fsdp=fsdp)
    state = programs.start()
    batch = on_mesh(next(tiny.feed().training(0)), Wishes(), devices)
    compiled = programs.step.lower(state, batch, 0).compile()
    branches, entry = compiled.as_text().split("\nENTRY ")
    shardings = [described(state)]
    state, _ = compiled(state, batch, 0)
    shardings.append(described(state))
    return {"always": collectives(entry), "else": collectives(branches), "shardings": shardings}


def collectives(text):
    """Returns how often every kind of collective works on every shape; combined ones count as what they combine."""
    found = collections.Counter()
    for shapes, kind in COLLECTIVES.findall(text):
        found.update(f"{kind} {shape}" for shape in re.findall(r"\w+\[[\d,]*\]", shapes))
    return found


def described(state):
    """Returns the sharding of the parameters and, if there are any, of every snapshot."""

    def of_leaves(tree):
        return [(leaf.shape, str(leaf.sharding.spec)) for leaf in jax.tree.leaves(tree)]

    snapshots = getattr(state.opt_state[-1], "snapshots", ())
    return {"params": of_leaves(state.params), "snapshots": [of_leaves(snapshot) for snapshot in snapshots]}


def main(workdir):
    NETWORKS["Tiny"] = tiny.Tiny
    absl.logging.set_verbosity(absl.logging.ERROR)
    assert jax.device_count() == 8
    mesh.SMALLEST_SHARED = 512
    # After 12 steps a checkpoint of eight devices that share the weights goes on on two that don't.
    trained(workdir / "fsdp", 8, 12, fsdp=True)
    result = {
        "one": trained(workdir / "one", 1, 14),
        "data": trained(workdir / "data", 8, 14),
        "fsdp, then two": trained(workdir / "fsdp", 2, 14),
    }
    for fsdp in (False, True):
        for arm in ("plain", "network"):
            result[f"{arm}, fsdp" if fsdp else arm] = step_of(arm, fsdp)
    print(json.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
