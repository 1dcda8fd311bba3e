import json
import math
import re
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
import pytest

from experiments.forecasters import FORECASTERS
from experiments.imagenet.records import ALEXNET_1, INCEPTION_V1
from experiments.scale import costs as module
from experiments.scale import scale
from experiments.scale.costs import H100, POINTS, TPU_V5E, Costs
from experiments.scale.measured import Measured, weights_by_form
from experiments.scale.networks import NETWORKS_AT_SCALE, Network, of_module, resnet_50, total, transformer_7b
from experiments.scale.page import page, seconds, sections, size
from optax_introspect import introspect, plan

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "results"
BY_NAME = {network.name: network for network in NETWORKS_AT_SCALE}


def weights(shapes):
    return sum(math.prod(shape) for shape in shapes)


def network(*shapes, dtype="float32", chips=1, jump_steps=(3000, 4000, 5000)):
    return Network("small", lambda: list(shapes), dtype, chips, 10_000, jump_steps, "made up")


class TestNetworks:
    # AlexNet in two groups and GoogLeNet with its heads as in Caffe, ResNet-50 as in torchvision, Llama 2 7B.
    @pytest.mark.parametrize(
        ("name", "published", "arrays"),
        [
            ("AlexNet", 60_965_224, 16),
            ("Inception", 13_378_280, 128),
            ("ResNet-50", 25_557_032, 161),
            ("7 B transformer", 6_738_415_616, 291),
        ],
    )
    def test_weights_and_arrays_are_the_published_ones(self, name, published, arrays):
        assert total(BY_NAME[name].arrays) == published
        assert len(BY_NAME[name].arrays) == arrays

    def test_resnet_50_has_53_convolutions(self):
        shapes = resnet_50()
        kernels = [shape for shape in shapes if len(shape) == 4]
        assert len(kernels) == 53
        assert sum(shape[0] == 3 for shape in kernels) == 16
        assert weights(kernels) == 23_454_912
        assert weights(resnet_50(classes=10)) == 25_557_032 - 990 * 2049

    def test_a_small_transformer(self):
        # Two embeddings, the last norm; a layer of four square matrices, three to and from `hidden`, and two norms.
        assert weights(transformer_7b(width=4, layers=1, hidden=6, vocabulary=10)) == 2 * 40 + 4 + 4 * 16 + 3 * 24 + 8

    def test_alexnet_and_inception_jump_as_the_paper_has_it(self):
        assert BY_NAME["AlexNet"].jump_steps == (120_000, 130_000, 144_000, 160_000)
        assert BY_NAME["Inception"].jump_steps == (200_000, 400_000, 600_000)
        assert BY_NAME["AlexNet"].steps == ALEXNET_1.steps
        assert BY_NAME["Inception"].steps == INCEPTION_V1.steps

    @pytest.mark.parametrize("points", POINTS.values(), ids=POINTS)
    def test_the_second_schedule_of_inception_takes_as_many_slots(self, points):
        first, second = (plan(arm.jump_steps, points) for arm in INCEPTION_V1.arms[1:])
        assert first.num_buffers == second.num_buffers
        assert len(first.captures) == len(second.captures)

    def test_resnet_jumps_at_the_fractions_of_alexnet(self):
        ours, theirs = BY_NAME["ResNet-50"], BY_NAME["AlexNet"]
        assert [t / ours.steps for t in ours.jump_steps] == [t / theirs.steps for t in theirs.jump_steps]

    def test_small_arrays_lie_on_every_chip_and_others_in_pieces(self):
        found = network((4096, 11_008), (11_008, 4096), (4096,), (32_000, 4096), chips=64).arrays_on_a_chip
        assert [leaf.shape for leaf in found] == [(4096, 172), (172, 4096), (4096,), (500, 4096)]

    def test_pieces_of_the_transformer_add_up(self):
        transformer = BY_NAME["7 B transformer"]
        norms = 65 * 4096
        assert 64 * (total(transformer.arrays_on_a_chip) - norms) + norms == total(transformer.arrays)

    def test_shapes_of_a_module_are_those_of_its_parameters(self):
        assert sorted(of_module("MNIST_3")) == sorted([(784, 256), (256,), (256, 256), (256,), (256, 10), (10,)])


class TestCosts:
    def test_points_are_those_of_the_forecasters(self):
        assert POINTS["predictor"] == FORECASTERS["introspection"]().points
        assert POINTS["two-point 1.3"] == FORECASTERS["two-point-1.3"]().points

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    @pytest.mark.parametrize("snapshot_dtype", [None, "bfloat16"])
    @pytest.mark.parametrize("forecaster", POINTS)
    def test_bytes_are_those_of_the_optimizer_state(self, dtype, snapshot_dtype, forecaster):
        cost = Costs(network((30, 20), (20,), dtype=dtype), forecaster, snapshot_dtype)
        key = {"predictor": "introspection", "two-point 1.3": "two-point-1.3"}[forecaster]
        tx = introspect((3000, 4000, 5000), FORECASTERS[key](), snapshot_dtype=snapshot_dtype)
        state = optax.chain(optax.adam(1e-3), tx).init([jnp.zeros((30, 20), dtype), jnp.zeros(20, dtype)])
        assert cost.snapshot_bytes == sum(leaf.nbytes for leaf in jax.tree.leaves(state[-1].snapshots))
        assert cost.adam_bytes == sum(leaf.nbytes for leaf in jax.tree.leaves(state[0]))
        assert cost.slot_bytes == sum(leaf.nbytes for leaf in jax.tree.leaves(state[-1].snapshots[-1]))
        assert cost.slot_bytes + cost.host_bytes == cost.snapshot_bytes
        assert cost.weight_bytes == 620 * jnp.dtype(dtype).itemsize

    @pytest.mark.parametrize(
        ("dtype", "snapshot_dtype", "forecaster", "capture", "jump"),
        [
            # Weights, then snapshots: one written; with w_0 read for a difference, one more.
            ("float32", None, "predictor", 4 + 4, 4 + 3 * 4 + 4 + 4),
            ("float32", "bfloat16", "predictor", 4 + 2 + 2, 4 + 3 * 2 + 2 + 2),
            ("bfloat16", None, "predictor", 2 + 2, 2 + 3 * 2 + 2 + 2),
            ("float32", None, "two-point 1.3", 4 + 4, 4 + 4 + 4 + 4),
            ("float32", "bfloat16", "two-point 1.3", 4 + 2, 4 + 2 + 2 + 2),
        ],
    )
    def test_bytes_moved_for_a_weight(self, dtype, snapshot_dtype, forecaster, capture, jump):
        cost = Costs(network((1000,), dtype=dtype), forecaster, snapshot_dtype)
        assert (cost.capture_bytes, cost.jump_bytes) == (1000 * capture, 1000 * jump)
        captures = {"predictor": 7, "two-point 1.3": 3}[forecaster]
        assert cost.all_bytes == 1000 * (captures * capture + 3 * jump)
        assert cost.in_updates_of_adam(cost.all_bytes) == cost.all_bytes / (7000 * jnp.dtype(dtype).itemsize)

    def test_with_one_slot_nothing_lies_with_the_host(self):
        cost = Costs(BY_NAME["7 B transformer"], "two-point 1.3")
        assert cost.plan.num_buffers == 1
        assert cost.host_bytes == 0

    def test_cases_are_those_that_were_compiled(self):
        compiled = {row["case"] for row in json.loads((RESULTS / "accelerators" / "accelerators.json").read_text())}
        assert Costs(network((2,)), "predictor").case in compiled
        assert Costs(network((2,)), "predictor", "bfloat16").case in compiled
        assert Costs(network((2,), dtype="bfloat16"), "predictor").case in compiled


@pytest.fixture
def results(tmp_path):
    for name in ("benchmark/benchmark.json", "accelerators/accelerators.json"):
        (tmp_path / name).parent.mkdir()
        shutil.copy(RESULTS / name, tmp_path / name)
    return tmp_path


class TestMeasured:
    def test_figures_are_those_of_the_page(self):
        measured = Measured.read(RESULTS)
        text = (RESULTS / "benchmark.md").read_text()
        assert f"| jump, 10 M weights | {measured.fast[10_000_000]:.3g} ns a weight |" in text
        assert f"| jump, 100 M weights | {measured.fast[100_000_000]:.3g} ns a weight |" in text
        stream = measured.stream[10_000_000]
        assert f"| reading four arrays and writing one, 10 M weights | {stream:.3g} ns a weight |" in text
        assert f"arrays of 50 000 weights | {measured.compact:.3g} ns a weight |" in text
        assert measured.temporaries["float32"] == pytest.approx(16, rel=1e-3)

    def test_arrays_are_evaluated_as_in_a_jump(self):
        many = [jax.ShapeDtypeStruct((100_000 + i,), jnp.float32) for i in range(25)]
        small = jax.ShapeDtypeStruct((50_000,), jnp.float32)
        large = jax.ShapeDtypeStruct((1 << 20,), jnp.float32)
        assert weights_by_form([small]) == (0, 50_000)
        assert weights_by_form(many) == (total(many) - 100_000, 100_000)
        assert weights_by_form([*many, large, small]) == (total(many[2:]) + (1 << 20), total(many[:2]) + 50_000)

    def test_times_are_of_the_nearest_number_of_weights(self):
        measured = Measured({10: 1.0, 100_000_000: 3.0}, {10: 0.5, 100_000_000: 0.7}, 100.0, {})
        arrays = [jax.ShapeDtypeStruct((2_000_000,), jnp.float32), jax.ShapeDtypeStruct((1000,), jnp.float32)]
        assert measured.jump_seconds(arrays) == pytest.approx(2_000_000 * 3e-9 + 1000 * 100e-9)
        assert measured.stream_seconds(arrays) == pytest.approx(2_001_000 * 0.7e-9)

    @pytest.mark.parametrize(
        ("name", "command"),
        [("benchmark", "benchmark --sections jumps"), ("accelerators", "accelerators")],
    )
    def test_a_missing_or_broken_file(self, results, name, command):
        path = results / name / f"{name}.json"
        path.write_text("[1,")
        with pytest.raises(ValueError, match=rf"{name}.json is not JSON \(.*\); `python -m experiments {command}`"):
            Measured.read(results)
        path.unlink()
        with pytest.raises(
            FileNotFoundError, match=rf"{name}.json is missing; `python -m experiments {command}` makes"
        ):
            scale(results / "out", results)
        assert not (results / "out").exists()

    def test_a_figure_that_was_not_measured(self, results):
        path = results / "benchmark" / "benchmark.json"
        rows = json.loads(path.read_text())
        rows["jumps"] = [row for row in rows["jumps"] if "50 000" not in row["what"]]
        path.write_text(json.dumps(rows))
        with pytest.raises(
            ValueError, match="has no figures of a jump, 1000 columns, arrays of 50 000 weights; `python"
        ):
            Measured.read(results)
        path.write_text("{}")
        with pytest.raises(ValueError, match="has no figures of a jump; `python -m experiments benchmark"):
            Measured.read(results)
        shutil.copy(RESULTS / "benchmark" / "benchmark.json", path)
        (results / "accelerators" / "accelerators.json").write_text("[]")
        with pytest.raises(
            ValueError, match="has no figures of an H100; `python -m experiments accelerators` makes them"
        ):
            Measured.read(results)


class TestPage:
    def test_the_page_is_what_the_command_writes(self, tmp_path, capsys):
        scale(tmp_path, RESULTS)
        assert (tmp_path / "scale.md").read_text() == (RESULTS / "scale.md").read_text()
        printed = capsys.readouterr().out
        for title in re.findall("^## (.*)$", (RESULTS / "scale.md").read_text(), re.M):
            assert title in printed
        assert "7 B transformer  predictor, bfloat16" in printed
        assert "…" not in printed

    def test_a_bound_by_hand(self):
        _, memory, bounds, host, _ = sections(Measured.read(RESULTS))
        # AlexNet: 4 bytes a weight; 24 for a jump; 9 slots, of which 8 lie with the host.
        weights = 60_965_224
        row = next(row for row in memory.rows if row[:2] == ("AlexNet", "predictor, float32"))
        assert row[2:7] == ("9", size(36 * weights), size(4 * weights), size(8 * weights + 4), size(4 * weights))
        row = next(row for row in bounds.rows if row[:2] == ("AlexNet", "predictor, float32"))
        assert row[4:6] == (seconds(24 * weights / 3.35e12), seconds(24 * weights / 819e9))
        assert row[6:] == ("9 + 4", f"{(9 * 8 + 4 * 24) / 28:.1f}", f"{4 / 28:.2f}")
        row = next(row for row in host.rows if row[:2] == ("AlexNet", "predictor, float32"))
        assert row[3:5] == (seconds(4 * weights / 64e9), seconds(32 * weights / 64e9))

    def test_every_row_has_a_cell_for_every_column(self):
        for section in sections(Measured.read(RESULTS)):
            assert {len(row) for row in section.rows} == {len(section.columns)}

    def test_lines_are_not_too_long(self):
        text = page(sections(Measured.read(RESULTS)))
        assert [line for line in text.splitlines() if len(line) > 120 and not line.startswith("|")] == []


class TestDocumentation:
    def text(self):
        return re.sub(r"\s+", " ", (ROOT / "docs" / "scaling.md").read_text())

    def test_the_table_is_of_the_page(self):
        rows = [line for line in (ROOT / "docs" / "scaling.md").read_text().splitlines() if line.startswith("|")]
        computed = (RESULTS / "scale.md").read_text().splitlines()
        assert len(rows) == 8
        assert [row for row in rows if row not in computed] == []

    def test_figures_in_the_text_are_of_the_page(self):
        measured, text = Measured.read(RESULTS), self.text()
        alexnet, transformer = (Costs(BY_NAME[name], "predictor") for name in ("AlexNet", "7 B transformer"))
        on_cpu = {name: seconds(measured.jump_seconds(BY_NAME[name].arrays)) for name in list(BY_NAME)[:3]}
        assert (
            f"a jump of AlexNet takes {on_cpu['AlexNet']}, one of Inception {on_cpu['Inception']} and one of ResNet-50 "
            f"{on_cpu['ResNet-50']}."
        ) in text
        assert f"takes {measured.compact / measured.fast[10_000_000]:.0f} times as long for a weight" in text
        assert f"a jump of AlexNet takes an H100 at least {seconds(alexnet.jump_bytes / H100.bandwidth)}" in text
        assert f"with 64 of them, {seconds(transformer.jump_bytes / H100.bandwidth)}." in text
        assert (
            f"as {alexnet.in_updates_of_adam(alexnet.all_bytes):.1f} updates of Adam do, of {300_000:,} steps" in text
        )
        assert f"as many bytes as {alexnet.in_updates_of_adam(alexnet.slot_bytes):.2f} updates of Adam." in text
        assert f"of AlexNet at least {seconds(alexnet.host_bytes / module.HOST_LINK)} at 64 GB/s, of the" in text
        assert f"of the transformer {seconds(transformer.host_bytes / module.HOST_LINK)}." in text
        operations = 6 * total(transformer.network.arrays) * 4e6 / 64
        assert (
            f"little next to forward and backward pass: {seconds(transformer.slot_bytes / H100.bandwidth)} for" in text
        )
        assert f"whose step of 4 M tokens takes an H100 at least {seconds(operations / 989e12)}, at 6" in text

    def test_bandwidths_are_the_published_ones(self):
        assert (H100.bandwidth, TPU_V5E.bandwidth, module.HOST_LINK) == (3.35e12, 819e9, 64e9)


@pytest.mark.parametrize(
    ("number", "text"), [(0.00999, "10 ms"), (9.96e-6, "10 µs"), (0.9996, "1000 ms"), (12.4, "12 s")]
)
def test_times_at_the_edges(number, text):
    assert seconds(number) == text
