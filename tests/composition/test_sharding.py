"""Sharded parameters, in one process and in several: snapshots as their parameters, the weights of one device."""

import os
import re
import socket
import subprocess
import sys

import pytest


def start(process, processes, *address):
    environment = {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={8 // processes}",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "tests.composition.sharded", str(process), str(processes), *address],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def outputs(programs):
    """What each has checked; a program that fails fails the test."""
    try:
        results = [program.communicate(timeout=300) for program in programs]
    finally:
        for program in programs:
            program.kill()
    for program, (output, errors) in zip(programs, results, strict=True):
        assert program.returncode == 0, output + errors
    return [re.findall("^passed: (.*)$", output, re.MULTILINE) for output, _ in results]


def test_every_mix_of_shardings_on_simulated_devices():
    (lines,) = outputs([start(0, 1)])
    mixes = [
        *("replicated", "1-d", "2-d", "replicated, 1-d", "replicated, 2-d", "1-d, 2-d"),
        "replicated, 1-d, 2-d",
    ]
    checked = [*(f"polynomial: {mix}" for mix in mixes), "network"]
    expected = [f"{axis_type} {what}" for what in checked for axis_type in ("Auto", "Explicit")]
    assert lines == [*expected, "Auto noise", "Auto refused"]


@pytest.mark.parametrize("processes", [2, 4])
def test_several_processes(processes):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    lines, *others = outputs([start(process, processes, address) for process in range(processes)])
    what = "polynomial: replicated, 1-d, 2-d"
    assert lines == [f"Auto {what}", f"Explicit {what}", "Auto refused"]
    assert others == [[]] * (processes - 1)
