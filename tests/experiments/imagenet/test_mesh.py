import json
import os
import subprocess
import sys

import filelock
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from experiments.imagenet.mesh import check_batch_size, device_mesh, shardings, spec

EIGHT = AbstractMesh((8,), ("data",), axis_types=(AxisType.Auto,))
PROGRAM = "tests.experiments.imagenet.programs.on_devices"


class TestSpec:
    @pytest.mark.parametrize(
        ("shape", "expected"),
        [
            ((11, 11, 3, 96), PartitionSpec(None, None, None, "data")),
            ((3, 3, 384, 256), PartitionSpec(None, None, "data")),
            ((4096, 4096), PartitionSpec(None, "data")),
            ((9216, 4096), PartitionSpec("data")),
            ((4096, 1000), PartitionSpec("data")),
            ((1001, 4096), PartitionSpec(None, "data")),
            ((1000, 96), PartitionSpec("data")),
            ((999, 97), PartitionSpec()),  # nothing that eight divide
            ((4096,), PartitionSpec()),  # too small
            ((), PartitionSpec()),
        ],
    )
    def test_the_largest_dimension_that_can_be(self, shape, expected):
        assert spec(shape, 8) == expected

    def test_one_device_has_all(self):
        assert spec((4096, 4096), 1) == PartitionSpec()


class TestShardings:
    def test_what_has_one_shape_lies_in_one_place(self):
        tree = jax.eval_shape(lambda: {"weights": jnp.zeros((256, 128)), "momentum": (jnp.zeros((256, 128)), 1)})
        shared = shardings(tree, EIGHT, fsdp=True)
        assert shared["weights"] == shared["momentum"][0]
        assert shared["weights"].spec == PartitionSpec("data")
        assert shared["momentum"][1].spec == PartitionSpec()

    def test_without_shares(self):
        (everywhere,) = jax.tree.leaves(shardings([jnp.zeros((256, 128))], EIGHT, fsdp=False))
        assert everywhere.spec == PartitionSpec()


class TestBatchSize:
    @pytest.mark.parametrize("batch_size", [0, 4, 12])
    def test_devices_that_do_not_divide_it(self, batch_size):
        message = f"batch_size must be a multiple of the number of devices, 8, .*; got {batch_size}"
        with pytest.raises(ValueError, match=message):
            check_batch_size(batch_size, EIGHT)

    def test_devices_that_do(self):
        check_batch_size(128, EIGHT)
        check_batch_size(1, device_mesh())


def printed(workdir):
    """Returns what the program for eight devices prints."""
    finished = subprocess.run(
        [sys.executable, "-W", "error", "-m", PROGRAM, str(workdir)],
        env=os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


@pytest.fixture(scope="module")
def on_eight(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("devices")
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return json.loads(printed(workdir))
    # Once for all workers, in the folder that they share.
    result = tmp_path_factory.getbasetemp().parent / "on-eight-devices.json"
    with filelock.FileLock(f"{result}.lock"):
        if not result.exists():
            result.write_text(printed(workdir))
    return json.loads(result.read_text())


class TestEightDevices:
    def test_losses_are_those_of_one_device(self, on_eight):
        one = on_eight["one"]
        assert len(one) == 14
        for layout in ("data", "fsdp, then two"):
            assert on_eight[layout].keys() == one.keys()
            np.testing.assert_allclose([*on_eight[layout].values()], [*one.values()], rtol=1e-4)

    @pytest.mark.parametrize("layout", ["", ", fsdp"])
    def test_an_idle_step_communicates_as_without_jumps(self, on_eight, layout):
        plain, jumping = on_eight[f"plain{layout}"], on_eight[f"network{layout}"]
        assert plain["else"] == {}  # no conditionals that communicate
        assert jumping["always"] == plain["always"]

    def test_a_jump_communicates_nothing_where_all_have_the_weights(self, on_eight):
        assert on_eight["network"]["else"] == {}

    def test_a_jump_communicates_whether_the_forecast_is_finite(self, on_eight):
        # The largest magnitude of each of the three arrays that are shared.
        assert on_eight["network, fsdp"]["else"] == {"all-reduce f32[]": 3}

    def test_shared_weights_are_gathered(self, on_eight):
        assert not any("gather" in name for name in on_eight["plain"]["always"])
        gathered = {name: n for name, n in on_eight["plain, fsdp"]["always"].items() if "gather" in name}
        assert gathered == {"all-gather f32[192,96]": 1, "all-gather f32[96,10]": 2}

    @pytest.mark.parametrize("layout", ["", ", fsdp"])
    def test_snapshots_lie_where_their_parameters_lie(self, on_eight, layout):
        shared = "P('data',)" if layout else "P()"
        for found in on_eight[f"network{layout}"]["shardings"]:
            assert len(found["snapshots"]) == 4
            assert all(snapshot == found["params"] for snapshot in found["snapshots"])
            assert [[192, 96], shared] in found["params"]
