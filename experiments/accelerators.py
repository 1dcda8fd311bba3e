"""What a step becomes on a TPU and on a GPU: compiled for them, without having one."""

import dataclasses
import importlib.metadata
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from rich.console import Console

from optax_introspect import introspect

JUMP_STEPS = (3000, 4000, 5000)
ARRAYS, SHAPE = 6, (1024, 8192)

# What XLA has to know of an H100 to compile for it.
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 shared_memory_per_core: 233472
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128 block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535 block_dim_limit_z: 65535 memory_bandwidth: 3352320000000 l2_cache_size: 52428800
  clock_rate_ghz: 1.98 device_memory_size: 84942979072 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 minor: 0 } registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA" dnn_version_info { major: 9 minor: 8 } runtime_version { major: 12 minor: 8 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


@dataclasses.dataclass(frozen=True)
class Target:
    """A machine to compile for.

    Attributes:
      name: what it is called.
      package: what has to be installed for it.
      describe: returns its topology.
      host_memory: whether JAX knows of the memory of its host without the device.
    """

    name: str
    package: str
    describe: Callable[[], Any]
    host_memory: bool


TARGETS = (
    Target(
        "TPU v5e, 4 chips, each array in 4 pieces",
        "libtpu",
        lambda: topologies.get_topology_desc("v5e:2x2", platform="tpu"),
        host_memory=True,
    ),
    Target(
        "GPU, one H100",
        "jax-cuda12-plugin",
        lambda: topologies.get_topology_desc("h100", platform="cuda", target_config=H100, topology="1x1x1"),
        host_memory=False,
    ),
)


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What a compiled step is like.

    Attributes:
      target: what it is compiled for.
      case: what of.
      temporaries: in bytes, on one device.
      idle_copies: arrays of weights that a step copies at which nothing happens, within the memory of the device.
      idle_staged: arrays that such a step moves into or out of the memory on the chip.
      idle_host_moves: arrays that such a step moves from or to the memory of the host.
      collectives: the operations between devices, and how many of each.
      jump_kernels: kernels of the branch with the forecasts, for each array.
    """

    target: str
    case: str
    temporaries: int
    idle_copies: int
    idle_staged: int
    idle_host_moves: int
    collectives: dict[str, int]
    jump_kernels: float


CASES: dict[str, tuple[bool, Any, dict[str, Any]]] = {
    "Adam alone": (False, jnp.float32, {}),
    "float32": (True, jnp.float32, {}),
    "bfloat16": (True, jnp.bfloat16, {}),
    "float32, bfloat16 snapshots": (True, jnp.float32, {"snapshot_dtype": jnp.bfloat16}),
    "float32, snapshots in the memory of the host": (True, jnp.float32, {"memory_kind": "pinned_host"}),
}


def accelerators(output: Path = Path("runs/accelerators")) -> None:
    """Compiles a step for a TPU and a GPU that need not be there, and looks at the result; takes a minute.

    Needs libtpu and jax-cuda12-plugin, as by the extra `accelerators`; a target whose package is missing is left out.

    Args:
      output: the folder that gets accelerators.json and README.md.
    """
    jax.config.update("jax_platforms", "cpu")
    jax.devices()  # finds the plugins
    console = Console()
    rows = []
    for target in TARGETS:
        try:
            importlib.metadata.version(target.package)
        except importlib.metadata.PackageNotFoundError:
            console.print(f"{target.name} left out: {target.package} is not installed")
            continue
        devices = np.array(target.describe().devices)
        for case, (jumps, dtype, options) in CASES.items():
            if "memory_kind" in options and not target.host_memory:
                continue
            with console.status(f"{target.name}: {case}"):
                rows.append(inspect(target.name, case, compile_for(devices, dtype, options if jumps else None)))
            console.print(rows[-1])
    if not rows:
        raise ValueError(f"nothing to compile for: install one of {', '.join(t.package for t in TARGETS)}")
    output.mkdir(parents=True, exist_ok=True)
    written = json.dumps([dataclasses.asdict(row) for row in rows], indent=1)
    (output / "accelerators.json").write_text(written + "\n")
    (output / "README.md").write_text(report(rows))


def compile_for(devices: np.ndarray, dtype: Any, options: dict[str, Any] | None) -> Any:
    """Returns the compiled update of Adam, with jumps if there are options for them."""
    mesh = Mesh(devices.reshape(-1), ("x",))
    sharded, replicated = NamedSharding(mesh, PartitionSpec("x")), NamedSharding(mesh, PartitionSpec())
    params = [jax.ShapeDtypeStruct(SHAPE, dtype, sharding=sharded)] * ARRAYS
    tx = optax.adam(1e-3)
    if options is not None:
        tx = optax.chain(tx, introspect(JUMP_STEPS, **options))
    state = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharded if leaf.ndim else replicated),
        jax.eval_shape(tx.init, params),
    )
    if options and "memory_kind" in options:
        *moved, last = state[-1].snapshots
        host = sharded.with_memory_kind(options["memory_kind"])
        moved = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=host), moved)
        state = (*state[:-1], state[-1]._replace(snapshots=(*moved, last)))

    def update(gradients: Any, params: Any, state: Any) -> Any:
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    return jax.jit(update, donate_argnums=(1, 2)).lower(params, params, state).compile()


def inspect(target: str, case: str, compiled: Any) -> Compiled:
    """Reads out of a compiled step what matters."""
    text = compiled.as_text()
    found = re.findall(r"\b(all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?\(", text)
    bodies = dict(re.findall(r"^%([\w.\-]+) \([^\n]*\{\n(.*?)\n\}", text, re.MULTILINE | re.DOTALL))
    entry = text[text.index("ENTRY") :]

    def branches(body: str) -> list[tuple[str, str]]:
        pairs = re.findall(r"branch_computations=\{%([\w.\-]+), %([\w.\-]+)\}", body)
        return [(bodies[nothing], bodies[something]) for nothing, something in pairs]

    def kernels(body: str) -> int:
        return len(re.findall(r" fusion\(", body)) + sum(kernels(something) for _, something in branches(body))

    idle = "\n".join([entry, *(nothing for nothing, _ in branches(entry))])
    # A memory other than the device's own is named by its number: 1 is that on the chip, 5 that of the host.
    copies = re.findall(r"= \(?\w+\[\d+,\d+\][^\n]* copy(?:-start)?\(", idle)
    return Compiled(
        target=target,
        case=case,
        temporaries=compiled.memory_analysis().temp_size_in_bytes,
        idle_copies=sum("S(1)" not in copy and "S(5)" not in copy for copy in copies),
        idle_staged=sum("S(1)" in copy for copy in copies),
        idle_host_moves=sum("S(5)" in copy for copy in copies),
        collectives={name: found.count(name) for name in sorted(set(found))},
        jump_kernels=max((kernels(something) for _, something in branches(entry)), default=0) / ARRAYS,
    )


def report(rows: list[Compiled]) -> str:
    """Returns what was found as Markdown."""
    versions = ", ".join(
        f"{name} {importlib.metadata.version(name)}"
        for name in ("jax", "jaxlib", *(target.package for target in TARGETS))
        if _is_installed(name)
    )
    size = np.prod(SHAPE) / 1e6
    table = [
        f"| {r.target} | {r.case} | {r.temporaries / 1e6:.1f} MB "
        f"| {r.idle_copies} | {r.idle_staged} | {r.idle_host_moves} "
        f"| {', '.join(f'{count} {name}' for name, count in r.collectives.items()) or 'none'} | {r.jump_kernels:.1f} |"
        for r in rows
    ]
    return "\n".join(
        [
            "# Compiled for a TPU and a GPU",
            "",
            "`python -m experiments accelerators --output results/accelerators`",
            "",
            f"The update of Adam over {ARRAYS} arrays of {size:.1f} M weights, alone and with jumps at 3000, 4000 and",
            "5000, compiled by XLA without such a device: memory and structure are those of the real program; times",
            "aren't known.",
            "",
            f"{versions}.",
            "",
            "| compiled for | weights | temporaries, on a device | arrays copied when idle | staged on the chip "
            "| from or to the host | collectives | kernels of a jump, for each array |",
            "| --- | --- | ---: | ---: | ---: | ---: | --- | ---: |",
            *table,
            "",
            "The one collective is the check that all forecasts are finite. On the TPU XLA stages more arrays on the",
            "chip than for Adam alone; whether that costs time isn't known. On the GPU a jump keeps some arrays in",
            "between: no more for more arrays, but as large as the largest of them.",
            "",
        ]
    )


def _is_installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
