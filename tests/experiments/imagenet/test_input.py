import itertools
import re

import jax
import numpy as np
import pytest

from experiments.imagenet import input as module
from experiments.imagenet.input import evaluation_batches, normalise, training_batches
from experiments.imagenet.photographs import photographs
from experiments.imagenet.sources import open_source

from .made_images import encoded, gradient, make_folder, plain

TRAINING = {"image_size": 16, "batch_size": 8, "seed": 3, "start": 0}
EVALUATION = {"image_size": 16, "batch_size": 8}


class Images:
    """A source of images in memory; an image of `None` cannot be decoded, an error is raised."""

    classes = 1000
    description = "images in memory"

    def __init__(self, images, labels=None):
        self.images, self.labels = images, labels or list(range(len(images)))
        self.reads = []

    def __len__(self):
        return len(self.images)

    def __getitem__(self, number):
        self.reads.append(number)
        image = self.images[number]
        if isinstance(image, Exception):
            raise image
        return {"image": image or b"broken", "label": self.labels[number], "name": f"image {number}"}


def numbered(count, broken=()):
    return Images([None if number in broken else plain(number, size=(4, 4)) for number in range(count)])


def take(count, source, **options):
    batches = training_batches(source, **TRAINING | options)
    taken = list(itertools.islice(batches, count))
    batches.close()
    return taken


def labels(batches):
    return [int(label) for batch in batches for label in batch["label"]]


def assert_equal(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for name, array in one.items():
            assert array.dtype == other[name].dtype
            np.testing.assert_array_equal(array, other[name], strict=True)


def joined(parts):
    """The batches of all processes, put together as one process would have got them."""
    return [
        {
            name: sum(arrays) if name == "skipped" else np.concatenate(arrays)
            for name, arrays in ((name, [part[name] for part in batch]) for name in batch[0])
        }
        for batch in zip(*parts, strict=True)
    ]


@pytest.fixture(scope="module")
def real():
    return open_source(photographs(), "train")


class TestTrainingBatches:
    def test_shapes_and_dtypes(self, real):
        for batch in take(3, real):
            assert {name: (array.shape, array.dtype) for name, array in batch.items()} == {
                "image": ((8, 16, 16, 3), np.uint8),
                "label": ((8,), np.int32),
                "weight": ((8,), np.float32),
                "skipped": ((), np.int32),
            }
            assert (batch["weight"] == 1).all()
            assert batch["skipped"] == 0

    def test_every_epoch_is_another_permutation_of_all_examples(self):
        found = labels(take(25, numbered(20)))  # 200 examples: 10 epochs
        epochs = [found[begin : begin + 20] for begin in range(0, 200, 20)]
        for epoch in epochs:
            assert sorted(epoch) == list(range(20))
        assert len({tuple(epoch) for epoch in epochs}) == 10

    def test_images_belong_to_their_labels(self):
        for batch in take(5, numbered(20)):
            red = batch["image"][..., 0].astype(int)
            np.testing.assert_allclose(red, np.broadcast_to(batch["label"][:, None, None], red.shape), atol=3)

    def test_is_decided_by_the_seed(self, real):
        first = take(3, real)
        assert_equal(take(3, real), first)
        other = take(3, real, seed=4)
        assert labels(first) != labels(other)

    def test_seeds_that_follow_each_other_have_no_permutations_in_common(self):
        epochs = {}
        for seed in range(5):
            found = labels(take(10, numbered(16), seed=seed))
            epochs |= {(seed, begin): tuple(found[begin : begin + 16]) for begin in range(0, 80, 16)}
        assert len(set(epochs.values())) == 25

    def test_permutations_are_even(self):
        permutations = np.array([module._permutation(8, 3, epoch) for epoch in range(800)])
        counts = np.array([np.bincount(place, minlength=8) for place in permutations.T])
        assert np.abs(counts - 100).max() < 50  # 5 standard deviations

    @pytest.mark.parametrize("start", [1, 2, 3, 7])  # in the middle, at the end and in the next of the epochs
    def test_resumes_anywhere(self, real, start):
        assert_equal(take(3, real, start=start), take(start + 3, real)[start:])

    def test_starts_far_into_a_run(self):
        source = numbered(20)
        take(1, source, start=1_500_000)
        assert len(source.reads) < 8 * 20

    @pytest.mark.parametrize("processes", [2, 4, 8])
    def test_processes_get_equal_parts_of_the_same_batches(self, real, processes):
        parts = [take(4, real, process_index=index, process_count=processes) for index in range(processes)]
        assert all(len(batch["label"]) == 8 // processes for part in parts for batch in part)
        assert_equal(joined(parts), take(4, real))

    def test_resumes_with_another_number_of_processes(self, real):
        parts = [take(2, real, start=3, process_index=index, process_count=4) for index in range(4)]
        assert_equal(joined(parts), take(5, real)[3:])

    @pytest.mark.parametrize("cpus", [1, 64, None])
    def test_threads_change_nothing(self, real, cpus, monkeypatch):
        expected = take(3, real)
        monkeypatch.setattr("os.cpu_count", lambda: cpus)
        assert_equal(take(3, real), expected)

    def test_every_other_image_is_flipped(self):
        # In this image red grows from left to right, whatever the crop.
        source = Images([encoded(gradient(64, 64), "PNG")])
        images = np.concatenate([batch["image"] for batch in take(50, source)]).astype(int)
        flipped = images[:, 8, 0, 0] > images[:, 8, -1, 0]
        assert 160 < flipped.sum() < 240  # of 400: 4 standard deviations

    def test_crops_are_random_and_those_of_the_augmentation(self):
        source = Images([encoded(gradient(256, 256), "PNG")])
        for augmentation, low, high in (("resized-crop", 0.25, 1.0), ("alexnet", 0.8, 0.9)):
            images = np.concatenate([batch["image"] for batch in take(20, source, augmentation=augmentation)])
            height = (images[:, -1, 8, 1].astype(int) - images[:, 0, 8, 1]) / 255 * 16 / 15
            assert low - 0.03 < height.min() < height.max() < high + 0.03
            assert len({image.tobytes() for image in images}) > 0.5 * min(len(images), 2 * 3 * 3)

    def test_a_batch_may_be_larger_than_the_source(self):
        (batch,) = take(1, numbered(3))
        assert sorted(batch["label"][:6]) == [0, 0, 1, 1, 2, 2]


class TestEvaluationBatches:
    def test_every_example_once_in_order_and_the_rest_has_no_weight(self, real):
        batches = list(evaluation_batches(real, **EVALUATION))
        assert len(batches) == 3
        weight = np.concatenate([batch["weight"] for batch in batches])
        np.testing.assert_array_equal(weight, np.float32([1] * 20 + [0] * 4))
        assert labels(batches)[:20] == [real[number]["label"] for number in range(20)]
        assert not batches[-1]["image"][4:].any()
        assert {name: array.dtype for name, array in batches[-1].items()} == {
            "image": np.uint8,
            "label": np.int32,
            "weight": np.float32,
            "skipped": np.int32,
        }

    def test_images_are_the_middle_of_the_resized_ones(self):
        (batch,) = evaluation_batches(Images([encoded(gradient(320, 256), "PNG")]), image_size=224, batch_size=1)
        resized = np.asarray(gradient(320, 256))
        np.testing.assert_allclose(batch["image"][0].astype(int), resized[16:240, 48:272].astype(int), atol=1)

    def test_is_the_same_every_time(self, real):
        assert_equal(list(evaluation_batches(real, **EVALUATION)), list(evaluation_batches(real, **EVALUATION)))

    @pytest.mark.parametrize("processes", [2, 4, 8])
    def test_processes_get_the_same_number_of_batches(self, real, processes):
        parts = [
            list(evaluation_batches(real, **EVALUATION, process_index=index, process_count=processes))
            for index in range(processes)
        ]
        assert {len(part) for part in parts} == {3}
        assert_equal(joined(parts), list(evaluation_batches(real, **EVALUATION)))

    def test_a_process_may_get_nothing_but_padding(self):
        (batch,) = evaluation_batches(numbered(3), **EVALUATION, process_index=1, process_count=2)
        assert batch["weight"].tolist() == [0, 0, 0, 0]

    def test_no_padding_if_the_last_batch_is_full(self):
        batches = list(evaluation_batches(numbered(16), **EVALUATION))
        assert [batch["weight"].sum() for batch in batches] == [8, 8]


class TestBrokenExamples:
    def test_is_replaced_by_the_next_one_of_the_source_and_counted(self):
        sound, broken = take(10, numbered(20)), take(10, numbered(20, broken=(4, 5, 19)))
        for expected, found in zip(sound, broken, strict=True):
            replaced = [{4: 6, 5: 6, 19: 0}.get(label, label) for label in expected["label"].tolist()]
            assert found["label"].tolist() == replaced
            assert found["skipped"] == np.isin(expected["label"], (4, 5, 19)).sum()
            assert (found["weight"] == 1).all()
            red = found["image"][:, 8, 8, 0].astype(int)
            np.testing.assert_allclose(red, replaced, atol=3)

    def test_other_examples_stay_as_they_are(self, real):
        images = [real[number]["image"] for number in range(20)]
        expected = take(3, Images(images))
        found = take(3, Images([None if number == 7 else image for number, image in enumerate(images)]))
        same = np.concatenate([batch["label"] for batch in expected]) != 7
        for name in ("image", "label"):
            one, other = (np.concatenate([batch[name] for batch in batches]) for batches in (found, expected))
            np.testing.assert_array_equal(one[same], other[same])
        assert not same.all()

    def test_processes_agree_about_replacements(self):
        source = numbered(20, broken=(1, 2, 3, 11))
        parts = [take(5, source, process_index=index, process_count=4) for index in range(4)]
        assert_equal(joined(parts), take(5, source))

    def test_does_not_count_in_an_evaluation(self):
        batches = list(evaluation_batches(numbered(10, broken=(0, 9)), **EVALUATION))
        assert [batch["weight"].tolist() for batch in batches] == [[0] + [1] * 7, [1, 0] + [0] * 6]
        assert [int(batch["skipped"]) for batch in batches] == [1, 1]

    def test_a_file_that_cannot_be_read_is_treated_alike(self):
        source = numbered(20)
        source.images[4] = PermissionError("no permission")
        assert sum(int(batch["skipped"]) for batch in take(5, source)) == 2
        assert 4 not in labels(take(5, source))

    @pytest.mark.parametrize("batches", ["training", "evaluation"])
    def test_a_hundred_in_a_row_are_an_error(self, batches):
        source = numbered(150, broken=range(150))
        iterator = training_batches(source, **TRAINING) if batches == "training" else None
        iterator = iterator or evaluation_batches(source, **EVALUATION)
        message = r"images in memory: 100 examples in a row could not be decoded; the first: image \d+: neither JPEG"
        with pytest.raises(ValueError, match=message):
            next(iterator)

    def test_ninety_nine_are_not(self):
        (batch,) = evaluation_batches(numbered(101, broken=range(99)), image_size=4, batch_size=101)
        assert batch["skipped"] == 99
        assert batch["weight"].sum() == 2

    def test_a_small_source_without_any_sound_example(self):
        source = Images([OSError("cannot read /data/x.JPEG"), None])
        message = "2 examples in a row could not be decoded; the first: (cannot read /data/x.JPEG|image 1: neither)"
        with pytest.raises(ValueError, match=message):
            take(1, source)

    @pytest.mark.parametrize("label", [-1, 1000])
    def test_a_label_out_of_range(self, label):
        source = numbered(3)
        source.labels[1] = label
        message = f"images in memory: image 1 has the label {label}, not one of 0 to 999"
        with pytest.raises(ValueError, match=message):
            take(1, source)
        with pytest.raises(ValueError, match=message):
            list(evaluation_batches(source, **EVALUATION))

    def test_a_folder_with_all_kinds_of_broken_files(self, tmp_path):
        folder = make_folder(tmp_path, {"a": 9, "b": 4})
        jpeg = (folder / "train" / "a" / "000.JPEG").read_bytes()
        for number, content in enumerate([b"", jpeg[:20], jpeg[: len(jpeg) // 2], b"<html>", jpeg[:-2]]):
            (folder / "train" / "a" / f"{number:03}.JPEG").write_bytes(content)
        (batch,) = evaluation_batches(open_source(folder, "train"), image_size=8, batch_size=13)
        assert batch["skipped"] == 5
        assert batch["weight"].tolist() == [0] * 5 + [1] * 8


class TestBadArguments:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"image_size": 0}, "image_size must be at least 1, got 0"),
            ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
            ({"process_count": 0}, "process_count must be at least 1, got 0"),
            ({"process_index": 1}, "process_index must be between 0 and 0, got 1"),
            ({"process_index": -1, "process_count": 4}, "process_index must be between 0 and 3, got -1"),
            ({"workers": -1}, "workers must not be negative, got -1"),
            ({"process_count": 3}, "a batch of 8 examples cannot be divided equally by 3 processes"),
        ],
        ids=str,
    )
    def test_are_refused_by_both(self, options, message):
        with pytest.raises(ValueError, match=re.escape(message)):
            training_batches(numbered(3), **TRAINING | options)
        with pytest.raises(ValueError, match=re.escape(message)):
            evaluation_batches(numbered(3), **EVALUATION | options)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"seed": -1}, "seed must not be negative, got -1"),
            ({"start": -5}, "start must not be negative, got -5"),
            ({"augmentation": "cutout"}, "augmentation must be one of resized-crop, alexnet, got 'cutout'"),
        ],
        ids=str,
    )
    def test_are_refused_by_training(self, options, message):
        with pytest.raises(ValueError, match=re.escape(message)):
            training_batches(numbered(3), **TRAINING | options)

    def test_an_empty_source(self):
        with pytest.raises(ValueError, match="images in memory: there are no examples"):
            training_batches(Images([]), **TRAINING)
        with pytest.raises(ValueError, match="images in memory: there are no examples"):
            evaluation_batches(Images([]), **EVALUATION)


class TestNormalise:
    def test_takes_out_mean_and_standard_deviation(self):
        images = np.arange(2 * 3 * 4 * 3, dtype=np.uint8).reshape(2, 3, 4, 3)
        expected = (images / 255 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
        found = jax.jit(normalise)(images)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=1e-5)

    def test_photographs_become_about_standard(self, real):
        batch = next(evaluation_batches(real, image_size=64, batch_size=20))
        found = np.asarray(normalise(batch["image"]))
        assert np.abs(found.mean((0, 1, 2))).max() < 0.4
        assert np.abs(found.std((0, 1, 2)) - 1).max() < 0.4
