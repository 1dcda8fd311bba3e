import dataclasses
import time
from pathlib import Path

import jax.numpy as jnp
import pytest

from experiments.imagenet.options import resolve
from experiments.imagenet.records import ALEXNET_1, INCEPTION_V1, RECORDS, Rate
from tests.experiments.imagenet import tiny

EXAMPLES = 1_281_167  # of ImageNet


class TestRecords:
    def test_names(self):
        assert {name: record.name for name, record in RECORDS.items()} == {
            "alexnet_1": "alexnet_1",
            "inception_v1": "inception_v1",
        }

    def test_alexnet_is_the_papers(self):
        assert (ALEXNET_1.batch_size, ALEXNET_1.steps) == (128, 300_000)
        assert (ALEXNET_1.image_size, ALEXNET_1.augmentation) == (227, "alexnet")
        assert ALEXNET_1.arm("introspection").jump_steps == (120_000, 130_000, 144_000, 160_000)
        assert ALEXNET_1.optimizer.rate.steps(EXAMPLES, 128) == 100_000

    def test_inception_is_the_papers(self):
        assert (INCEPTION_V1.batch_size, INCEPTION_V1.steps) == (128, 1_500_000)
        assert (INCEPTION_V1.image_size, INCEPTION_V1.augmentation) == (224, "resized-crop")
        assert [arm.jump_steps for arm in INCEPTION_V1.arms] == [
            (),
            (200_000, 400_000, 600_000),
            (300_000, 600_000, 900_000),
        ]
        # Two epochs of 10 009.1 batches.
        assert INCEPTION_V1.optimizer.rate.steps(EXAMPLES, 128) == 20_018

    @pytest.mark.parametrize("record", RECORDS.values(), ids=RECORDS)
    def test_every_arm_can_be_run(self, record):
        for arm in record.arms:
            chosen = resolve(record, arm=arm.name)
            assert (chosen.forecaster(Path()) is None) == (not arm.jump_steps)

    def test_the_rate_falls_at_least_at_every_step(self):
        assert Rate(0.1, 0.5, 2, "epochs").steps(examples=3, batch_size=128) == 1

    def test_unknown_arm(self):
        with pytest.raises(ValueError, match="alexnet_1 has no arm 'fast'; it has plain, introspection"):
            ALEXNET_1.arm("fast")


class TestResolve:
    def test_the_record_decides(self):
        chosen = resolve(ALEXNET_1)
        assert chosen.record == ALEXNET_1
        assert chosen.arm == ALEXNET_1.arm("introspection")
        assert chosen.dtype is None
        assert chosen.deadline is None

    def test_what_was_asked_for_decides(self):
        chosen = resolve(
            ALEXNET_1, arm="introspection", jump_steps=[4, 9], batch_size=16, steps=20, image_size=67, bfloat16=True
        )
        assert dataclasses.astuple(chosen.record)[:4] == (*dataclasses.astuple(ALEXNET_1)[:3], 67)
        assert (chosen.record.batch_size, chosen.record.steps, chosen.arm.jump_steps) == (16, 20, (4, 9))
        assert chosen.dtype == jnp.bfloat16

    def test_the_time_counts_from_now_on(self):
        before = time.monotonic()
        assert before + 120 <= resolve(ALEXNET_1, minutes=2).deadline <= time.monotonic() + 120

    def test_a_record_without_jumps(self):
        plain = tiny.record(arms=tiny.record().arms[:1])
        assert resolve(plain).arm.name == "plain"

    @pytest.mark.parametrize(
        ("asked", "message"),
        [
            ({"arm": "fast"}, "tiny has no arm 'fast'; it has plain, two-point, network"),
            ({"arm": "plain", "jump_steps": (5,)}, r"the arm plain has no forecaster that could jump at \(5,\)"),
            ({"jump_steps": ()}, "jump_steps must name at least one step; arms without any are plain"),
            ({"batch_size": 0}, "batch_size must be at least 1; got 0"),
            ({"steps": -3}, "steps must be at least 1; got -3"),
            ({"image_size": 0}, "image_size must be at least 1; got 0"),
            ({"minutes": 0.0}, "minutes must be more than 0; got 0.0"),
            ({"minutes": float("nan")}, "minutes must be more than 0; got nan"),
            ({"checkpoint_minutes": -1.0}, "checkpoint_minutes must be at least 0; got -1.0"),
            ({"workers": -1}, "workers must be at least 0; got -1"),
            ({"seed": -1}, "seed must be an integer from 0 to 4294967295; got -1"),
        ],
    )
    def test_what_cannot_be(self, asked, message):
        with pytest.raises(ValueError, match=message):
            resolve(tiny.record(), **asked)


class TestSettings:
    def test_all_that_changes_the_state_is_in_it(self):
        def settings(record=None, examples=80, **asked):
            chosen = resolve(record or tiny.record(), **asked)
            return chosen.settings(10, examples, chosen.forecaster(Path()))

        changed = [
            settings(arm="network"),
            settings(arm="plain"),
            settings(jump_steps=(5, 9)),
            settings(batch_size=16),
            settings(image_size=16),
            settings(seed=1),
            settings(bfloat16=True),
            settings(examples=81),
            settings(tiny.record(auxiliary_weight=0.5)),
            settings(tiny.record(augmentation="alexnet")),
            settings(tiny.record(optimizer=dataclasses.replace(tiny.record().optimizer, weight_decay=5e-4))),
        ]
        assert all(other != settings() for other in changed)

    def test_layout_and_length_are_not(self):
        def settings(**asked):
            chosen = resolve(tiny.record(), **asked)
            return chosen.settings(10, 80, None)

        assert settings(steps=20, fsdp=True, minutes=3, workers=2) == settings()
