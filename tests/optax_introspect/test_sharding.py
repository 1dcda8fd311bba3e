"""Sharded weights, in one process and in two: snapshots sharded as the weights, and the weights of one device."""

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
        [sys.executable, "-m", "tests.optax_introspect.sharded", str(process), str(processes), *address],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def passed(*programs):
    """What each has checked; a program that fails fails the test."""
    try:
        results = [program.communicate(timeout=300) for program in programs]
    finally:
        for program in programs:
            program.kill()
    for program, (output, errors) in zip(programs, results, strict=True):
        assert program.returncode == 0, output + errors
    return [re.findall("^passed: (.*)$", output, re.MULTILINE) for output, _ in results]


@pytest.mark.slow
def test_on_eight_simulated_devices():
    (lines,) = passed(start(0, 1))
    kinds = [f"{kind} Auto" for kind in ("fractions", "network", "refused")]
    assert lines == [*kinds, "fractions Explicit", "nnx", "3 of Optax"]


@pytest.mark.slow
def test_two_processes():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    first, second = passed(*(start(process, 2, address) for process in range(2)))
    assert first == ["fractions Auto", "refused Auto"]
    assert second == []
