"""Compiles a training step for an H100 without having one, and prints what an idle step does there.

It needs XLA's compiler for GPUs, but neither a GPU nor its driver:

  pip install optax-introspect jax-cuda12-plugin jax-cuda12-pjrt nvidia-cuda-nvcc-cu12 nvidia-nvjitlink-cu12

with the plugins in the version of jaxlib. Then `python docs/scripts/compile_for_gpu.py`.
"""

import re
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from optax_introspect import introspect, nesterov

# What XLA has to know of an H100. Conditionals get into the CUDA graph only with a driver of version 12.3 or newer.
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 shared_memory_per_core: 233472
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128 block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535 block_dim_limit_z: 65535 memory_bandwidth: 3352320000000 l2_cache_size: 52428800
  clock_rate_ghz: 1.98 device_memory_size: 84942979072 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 minor: 0 } registers_per_core_limit: 65536 registers_per_block_limit: 65536
  driver_version: "12.8.0" runtime_version: "12.8.0" compile_time_toolkit_version: "12.8.0"
}
platform_name: "CUDA" dnn_version_info { major: 9 minor: 8 } runtime_version { major: 12 minor: 8 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
SHAPES = [(512, 512), (512,)] * 7  # 14 arrays, as many as a small convolutional network has


def compile_step(tx: optax.GradientTransformation, device: Any) -> tuple[Any, list[str]]:
    """Compiles an update with given gradients; returns it, and what it runs one after the other: graphs and kernels."""

    def on_device(leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=SingleDeviceSharding(device))

    def step(params: Any, state: Any, gradients: Any) -> Any:
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    params = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in SHAPES]
    arguments = jax.tree.map(on_device, (params, jax.eval_shape(tx.init, params), params))
    lowered = jax.jit(step, donate_argnums=(0, 1)).lower(*arguments)
    with tempfile.TemporaryDirectory() as folder:
        compiled = lowered.compile(compiler_options={"xla_dump_to": folder, "xla_dump_hlo_as_text": True})
        (thunks,) = Path(folder).glob("*jit_step.thunk_sequence_after_thunk_passes.txt")
        return compiled, re.findall(r"^\d+: k(\w+)", thunks.read_text(), re.MULTILINE)


def always_run(text: str) -> str:
    """Returns the computations of a compiled program that run in every step: all but the branches of conditionals."""
    bodies = dict(re.findall(r"^(?:ENTRY )?%?([\w.\-]+) [^\n]*\{\n(.*?)\n\}", text, re.MULTILINE | re.DOTALL))
    found, waiting = [], re.findall(r"^ENTRY %?([\w.\-]+)", text, re.MULTILINE)
    while waiting:
        found.append(bodies[waiting.pop()])
        waiting += re.findall(r"(?:calls|to_apply|body|condition)=%?([\w.\-]+)", found[-1])
    return "\n".join(found)


def main() -> None:
    """Prints what there is in a step of the base optimizer and of two forecasters."""
    jax.config.update("jax_platforms", "cpu")
    jax.devices()  # finds the plugin
    topology = topologies.get_topology_desc("h100", platform="cuda", target_config=H100, topology="1x1x1")
    device = np.array(topology.devices).reshape(-1)[0]
    base = optax.adam(1e-3)
    for name, tx in {
        "Adam alone": base,
        "with the default predictor": optax.chain(base, introspect((3000, 4000, 5000))),
        "with nesterov(20)": optax.chain(base, introspect(range(19, 10_000, 20), nesterov(20))),
    }.items():
        compiled, thunks = compile_step(tx, device)
        program = always_run(compiled.as_text())
        # The finite check reduces weights; what looks a step up in the plan reduces truth values.
        of_weights = r"= \(?b?f\d+\[[^\n]* {}\("
        outside = [thunk for thunk in thunks if thunk != "CommandBuffer"]
        print(f"{name}, every step:")
        print(f"  conditionals: {program.count(' conditional(')}, kernels beside them: {program.count(' fusion(')}")
        print(f"  reductions over weights beside them: {len(re.findall(of_weights.format('reduce'), program))}")
        print(f"  copies of weights beside them: {len(re.findall(of_weights.format('copy'), program))}")
        print(f"  outside the CUDA graph: {', '.join(outside) or 'nothing'}")
        print(f"  temporaries: {compiled.memory_analysis().temp_size_in_bytes / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
