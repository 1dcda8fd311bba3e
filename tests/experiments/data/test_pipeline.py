import grain
import jax
import numpy as np
import pytest

from experiments.data import AUGMENTATIONS, Images, training_batches
from experiments.data.pipeline import batches_of
from experiments.training import Task

from ..tiny import SMALL_MLP

COUNT = 23
PER_EPOCH = 5  # batches of 4: three images are left out


def numbered(count=COUNT, size=32):
    """Images that show their number in every pixel, which is their label, too."""
    labels = np.arange(count, dtype=np.uint8)
    images = np.broadcast_to(labels[:, None, None, None], (count, size, size, 3)).copy()
    return Images("cifar10", "numbered", images, labels, images[:5], labels[:5])


def noise(count=COUNT):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (count, 32, 32, 3), np.uint8), rng.integers(0, 10, count, np.uint8)
    return Images("cifar10", "noise", images, labels, images[:5], labels[:5])


def assert_same(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        jax.tree.map(np.testing.assert_array_equal, one, other)


def labels_of(batches, epoch):
    steps = range(epoch * PER_EPOCH, (epoch + 1) * PER_EPOCH)
    return np.concatenate([batches[step][1] for step in steps])


class TestEpochs:
    @pytest.mark.parametrize("augmentation", AUGMENTATIONS)
    def test_every_image_is_met_once_an_epoch(self, augmentation):
        batches = training_batches(numbered(count=20), 4, seed=3, augmentation=augmentation)
        for epoch in range(3):
            assert sorted(labels_of(batches, epoch)) == list(range(20))

    def test_incomplete_last_batch_is_left_out(self):
        batches = training_batches(numbered(), 4, seed=3)
        left_out = set()
        for epoch in range(30):
            labels = labels_of(batches, epoch)
            assert len(set(labels)) == 20
            left_out |= set(range(COUNT)) - set(labels)
        assert left_out == set(range(COUNT))  # others in every epoch

    def test_epochs_and_seeds_are_different_permutations(self):
        orders = [labels_of(training_batches(numbered(), 4, seed), epoch) for seed in range(3) for epoch in range(3)]
        assert len({tuple(order) for order in orders}) == 9

    def test_permutations_are_those_of_a_task(self):
        images = noise()
        task = Task(SMALL_MLP, images, 4, 7)
        batches = training_batches(images, 4, seed=7, augmentation="none")
        assert_same([batches[step] for step in range(12)], [task.batch(step) for step in range(12)])

    def test_images_belong_to_their_labels(self):
        for augmentation in ("none", "crop-24"):
            images, labels = training_batches(numbered(), 4, seed=0, augmentation=augmentation)[11]
            np.testing.assert_array_equal(images, np.broadcast_to(labels[:, None, None, None], images.shape))


class TestPosition:
    def test_batches_are_a_function_of_seed_and_step(self):
        images = noise()
        once = training_batches(images, 4, seed=5)
        expected = [once[step] for step in range(12)]
        again = training_batches(images, 4, seed=5)
        assert_same([again[step] for step in reversed(range(12))][::-1], expected)
        assert_same([again[np.int32(7)]], [expected[7]])
        assert not np.array_equal(training_batches(images, 4, seed=6)[0][0], expected[0][0])

    def test_far_steps_are_reached_at_once(self):
        batches = training_batches(noise(), 4, seed=5)
        assert_same([batches[10**9]], [training_batches(noise(), 4, seed=5)[10**9]])
        assert len(batches) > 10**9

    def test_crops_and_flips_are_drawn_anew_every_epoch(self):
        rng = np.random.default_rng(0)
        image = rng.integers(0, 256, (1, 32, 32, 3), np.uint8)
        one = Images("cifar10", "one", image, np.zeros(1, np.uint8), image, np.zeros(1, np.uint8))
        batches = training_batches(one, 1, seed=0)
        assert len({batches[step][0].tobytes() for step in range(50)}) > 35

    def test_batches_can_be_written_to(self):
        images = noise()
        for augmentation in AUGMENTATIONS:
            batches = training_batches(images, 4, seed=5, augmentation=augmentation)
            expected = jax.tree.map(np.copy, batches[0])
            for array in batches[0]:
                array[:] = 0
            assert_same([batches[0]], [expected])

    @pytest.mark.parametrize("options", [grain.ReadOptions(0, 0), grain.ReadOptions(2, 4)], ids=["read", "read ahead"])
    def test_iterator_resumes_in_the_middle_of_an_epoch(self, options):
        batches = training_batches(noise(), 4, seed=5)
        expected = [batches[step] for step in range(14)]
        iterator = iter(batches.to_iter_dataset(options))
        before = [next(iterator) for _ in range(8)]  # one epoch and three batches of the next
        state = iterator.get_state()
        after = [next(iterator) for _ in range(6)]
        assert_same(before + after, expected)

        restored = iter(training_batches(noise(), 4, seed=5).to_iter_dataset(options))
        restored.set_state(state)
        assert_same([next(restored) for _ in range(6)], expected[8:])
        iterator.set_state(state)  # and in the same iterator, back
        assert_same([next(iterator) for _ in range(6)], expected[8:])
        assert state == {"next_index": 8}

    def test_slices_are_parts_of_the_training(self):
        batches = training_batches(noise(), 4, seed=5)
        assert_same(list(batches[3:9]), [batches[step] for step in range(3, 9)])


class TestArguments:
    @pytest.mark.parametrize("batch_size", [0, -1, COUNT + 1])
    def test_batch_size_is_checked(self, batch_size):
        message = f"batch_size must be from 1 to {COUNT}, the number of training images, got {batch_size}"
        with pytest.raises(ValueError, match=message):
            training_batches(noise(), batch_size, seed=0)

    def test_seed_is_checked(self):
        with pytest.raises(ValueError, match="seed must not be negative, got -1"):
            training_batches(noise(), 4, seed=-1)

    def test_augmentation_is_checked(self):
        message = "augmentation must be one of none, crop-24, pad-4, got 'crop-28'"
        with pytest.raises(ValueError, match=message):
            training_batches(noise(), 4, seed=0, augmentation="crop-28")

    def test_size_of_images_is_checked(self):
        message = r"images must be of shape \[n, 32, 32, channels\], found \[23, 28, 28, 3\]"
        with pytest.raises(ValueError, match=message):
            training_batches(numbered(size=28), 4, seed=0)
        grey = Images("mnist", "grey", *([np.zeros((9, 32, 32), np.uint8), np.zeros(9, np.uint8)] * 2))
        with pytest.raises(ValueError, match=r"found \[9, 32, 32\]"):
            training_batches(grey, 4, seed=0)

    def test_negative_step_is_an_error(self):
        batches = training_batches(noise(), 4, seed=0)
        with pytest.raises(IndexError, match="a step must not be negative, got -1"):
            batches[-1]


def test_generators_never_meet_those_of_permutations():
    """Were both seeded alike, crops and flips of some step would follow the order of some epoch."""
    drawn = []
    batches = batches_of(noise(), 4, 9, lambda images, generator: drawn.append(generator.integers(2**63)) or images)
    for step in range(100):
        batches[step]
    permuting = [np.random.default_rng([9, epoch]).integers(2**63) for epoch in range(100)]
    assert len({*drawn, *permuting}) == 200
