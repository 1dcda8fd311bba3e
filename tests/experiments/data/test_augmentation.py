import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.data import AUGMENTATIONS, standardise

COUNT = 20000


def coordinates(count=COUNT):
    """Images that show in every pixel its row and its column, from 1 on, and a third value that is never 0."""
    rows, columns = np.mgrid[1:33, 1:33]
    image = np.stack([rows, columns, np.full((32, 32), 7)], axis=-1).astype(np.uint8)
    return np.broadcast_to(image, (count, 32, 32, 3)).copy()


def augmented(name, count=COUNT, seed=0):
    return AUGMENTATIONS[name].augmented(coordinates(count), np.random.default_rng(seed))


def is_flipped(crops):
    return crops[:, 12, 12, 1] > crops[:, 12, 13, 1]


def unflipped(crops):
    crops = crops.copy()
    crops[is_flipped(crops)] = crops[is_flipped(crops), :, ::-1]
    return crops


def assert_uniform(counts, total):
    """Checks that counts are within five standard deviations of equal shares."""
    expected = total / counts.size
    assert np.abs(counts - expected).max() < 5 * np.sqrt(expected)


class TestCrop24:
    def test_crops_are_squares_of_the_image_as_they_were(self):
        crops = augmented("crop-24")
        assert crops.dtype == np.uint8
        assert crops.shape == (COUNT, 24, 24, 3)
        image = coordinates(1)[0]
        for crop in unflipped(crops[:500]):
            top, left = crop[0, 0, :2].astype(int) - 1
            np.testing.assert_array_equal(crop, image[top : top + 24, left : left + 24])

    def test_every_square_is_as_likely(self):
        tops, lefts = unflipped(augmented("crop-24"))[:, 0, 0, :2].astype(int).T - 1
        assert (tops.min(), tops.max(), lefts.min(), lefts.max()) == (0, 8, 0, 8)
        assert_uniform(np.histogram2d(tops, lefts, bins=np.arange(10))[0], COUNT)

    def test_half_are_flipped_wherever_the_crop_is(self):
        crops = augmented("crop-24")
        flipped = is_flipped(crops)
        assert_uniform(np.bincount(flipped), COUNT)
        tops, lefts = unflipped(crops)[:, 0, 0, :2].astype(int).T - 1
        assert_uniform(np.bincount(tops[flipped], minlength=9), flipped.sum())
        assert_uniform(np.bincount(lefts[flipped], minlength=9), flipped.sum())

    def test_neighbours_are_independent(self):
        crops = augmented("crop-24")
        flipped, tops = is_flipped(crops), crops[:, 0, 0, 0]
        for values in (flipped, tops):
            correlation = np.corrcoef(values[:-1], values[1:])[0, 1]
            assert abs(correlation) < 5 / np.sqrt(COUNT)

    def test_evaluation_is_the_central_crop(self):
        images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)
        np.testing.assert_array_equal(AUGMENTATIONS["crop-24"].evaluated(images), images[:, 4:28, 4:28])

    def test_images_are_left_as_they_were(self):
        for augmentation in AUGMENTATIONS.values():
            images = coordinates(50)
            augmentation.augmented(images, np.random.default_rng(0))
            np.testing.assert_array_equal(images, coordinates(50))


class TestPad4:
    def test_images_are_moved_into_black(self):
        crops = augmented("pad-4", count=500)
        assert crops.shape == (500, 32, 32, 3)
        padded = np.zeros((40, 40, 3), np.uint8)
        padded[4:-4, 4:-4] = coordinates(1)[0]
        for crop in unflipped(crops):
            top, left = crop[12, 12, :2].astype(int) - 9
            np.testing.assert_array_equal(crop, padded[top : top + 32, left : left + 32])

    def test_every_move_is_as_likely(self):
        crops = augmented("pad-4")
        tops, lefts = unflipped(crops)[:, 12, 12, :2].astype(int).T - 9
        assert (tops.min(), tops.max(), lefts.min(), lefts.max()) == (0, 8, 0, 8)
        assert_uniform(np.histogram2d(tops, lefts, bins=np.arange(10))[0], COUNT)
        assert_uniform(np.bincount(is_flipped(crops)), COUNT)

    def test_evaluation_is_the_whole_image(self):
        images = coordinates(3)
        np.testing.assert_array_equal(AUGMENTATIONS["pad-4"].evaluated(images), images)


class TestTable:
    @pytest.mark.parametrize(("name", "size"), [("none", 32), ("crop-24", 24), ("pad-4", 32)])
    def test_sizes(self, name, size):
        augmentation = AUGMENTATIONS[name]
        assert augmentation.image_size == size
        assert augmented(name, 3).shape == (3, size, size, 3)
        assert augmentation.evaluated(coordinates(3)).shape == (3, size, size, 3)

    def test_none_changes_nothing(self):
        np.testing.assert_array_equal(augmented("none", 3), coordinates(3))
        np.testing.assert_array_equal(AUGMENTATIONS["none"].evaluated(coordinates(3)), coordinates(3))

    @pytest.mark.parametrize("name", AUGMENTATIONS)
    def test_what_a_network_gets_is_standardised(self, name):
        images = augmented(name, 3)
        np.testing.assert_array_equal(AUGMENTATIONS[name].prepared(images), standardise(images))

    @pytest.mark.parametrize("name", ["crop-24", "pad-4"])
    def test_generator_decides(self, name):
        once, again, other = (augmented(name, 50, seed) for seed in (1, 1, 2))
        np.testing.assert_array_equal(once, again)
        assert not np.array_equal(once, other)


def reference(images):
    """Standardises in float64, one image after the other."""
    results = []
    for image in np.asarray(images, np.float64):
        results.append((image - image.mean()) / max(image.std(), 1 / np.sqrt(image.size)))
    return np.stack(results)


class TestStandardise:
    @pytest.mark.parametrize("how", [standardise, jax.jit(standardise)], ids=["plain", "jit"])
    def test_like_numpy(self, how):
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (6, 24, 24, 3), np.uint8)
        images[1] //= 50  # few values
        images[2] = 250 + images[2] // 128  # a large mean and a small deviation
        found = how(images)
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, reference(images), atol=2e-5)
        np.testing.assert_allclose(np.mean(found, (1, 2, 3)), 0, atol=1e-4)
        np.testing.assert_allclose(np.std(found, (1, 2, 3)), 1, atol=1e-4)

    def test_image_of_one_colour_becomes_zero(self):
        images = np.zeros((3, 24, 24, 3), np.uint8)
        images[1], images[2] = 255, 77
        np.testing.assert_array_equal(standardise(images), np.zeros(images.shape))

    def test_deviation_is_at_least_that_of_one_level_in_one_value(self):
        images = np.zeros((1, 24, 24, 3), np.uint8)
        images[0, 3, 4, 1] = 1
        # (1 - 1/n) / max(sqrt((1 - 1/n)/n), 1/sqrt(n)) is sqrt(n) (1 - 1/n), less than without the bound.
        n = images.size
        found = standardise(images)
        np.testing.assert_allclose(found[0, 3, 4, 1], np.sqrt(n) * (1 - 1 / n), rtol=1e-6)
        np.testing.assert_allclose(found, reference(images), atol=1e-5)

    def test_images_do_not_matter_to_each_other(self):
        images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
        images[1] //= 9
        apart = jnp.concatenate([standardise(image[None]) for image in images])
        np.testing.assert_allclose(standardise(images), apart, atol=1e-5)
        np.testing.assert_allclose(standardise(images[1]), apart[1], atol=1e-5)

    def test_low_precision_is_computed_in_float32(self):
        images = jnp.asarray(np.random.default_rng(0).integers(0, 256, (2, 24, 24, 3)), jnp.bfloat16)
        found = standardise(images)
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, reference(images), atol=2e-5)
