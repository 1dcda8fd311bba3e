"""Optax's own test of sharded optimizers on 8 simulated devices, of optimizers that end in `introspect`, at a jump.

`python -m tests.composition.optax_sharding 3` tests every third of them.
"""

import os
import sys
import unittest
from unittest import mock

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import jax
import optax

from tests.composition import optax_own

with optax_own.optimizers_jump(first_step=1, module=optax):
    from optax._src import sharding_test  # makes its optimizers while it is imported

if __name__ == "__main__":
    every = int(sys.argv[1])
    names = [
        name
        for name in unittest.defaultTestLoader.getTestCaseNames(sharding_test.ShardingTest)
        # The former is of something else, without an optimizer; L-BFGS fails by itself with JAX 0.10.
        if not name.startswith("test_microbatch") and "lbfgs" not in name
    ]
    suite = unittest.TestSuite(sharding_test.ShardingTest(name) for name in names[::every])
    # The test asks for JAX 0.7.2 by comparing strings, and so would be skipped for 0.10 and later.
    with mock.patch.object(jax, "__version__", "0.9.0"):
        result = unittest.TextTestRunner().run(suite)
    sys.exit(0 if result.wasSuccessful() and not result.skipped else 1)
