import numpy as np
import pytest

from experiments.imagenet.crops import AUGMENTATIONS, central_crop, random_crop

SIZES = [(500, 375), (375, 500), (512, 512), (100, 1000), (1000, 100), (7, 5), (1, 1), (1, 5000)]


def crops(augmentation, width, height, image_size=224, n=2000):
    rng = np.random.default_rng(0)
    return np.array([random_crop(augmentation, width, height, image_size, rng) for _ in range(n)])


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
def test_random_crops_lie_inside_the_image_and_are_not_empty(augmentation, size):
    left, top, right, bottom = crops(augmentation, *size, n=200).T
    assert left.min() >= 0
    assert top.min() >= 0
    assert right.max() <= size[0] + 1e-9
    assert bottom.max() <= size[1] + 1e-9
    assert (right > left).all()
    assert (bottom > top).all()


class TestResizedCrop:
    def test_area_and_aspect_ratio_are_those_of_the_paper(self):
        left, top, right, bottom = crops("resized-crop", 2000, 2000).T
        width, height = right - left, bottom - top
        area = width * height / 2000**2
        # Crops that do not fit are drawn again, which takes away only the largest ones.
        assert 0.0795 < area.min() < 0.09
        assert 0.95 < area.max() <= 1
        assert np.quantile(area, 0.25) == pytest.approx(0.08 + 0.92 / 4, abs=0.04)
        ratio = np.log(width / height)
        assert ratio.min() >= np.log(3 / 4) - 0.01
        assert ratio.max() <= np.log(4 / 3) + 0.01
        assert ratio.mean() == pytest.approx(0, abs=0.02)
        assert ratio[area < 0.5].std() == pytest.approx(2 * np.log(4 / 3) / np.sqrt(12), rel=0.05)  # uniform

    def test_place_is_uniform(self):
        left, top, right, bottom = crops("resized-crop", 2000, 2000).T
        for begin, end in ((left, right), (top, bottom)):
            place = begin / (2000 - (end - begin) + 1)
            assert place.mean() == pytest.approx(0.5, abs=0.02)
            assert place.std() == pytest.approx(1 / np.sqrt(12), abs=0.02)

    def test_boxes_end_at_whole_pixels(self):
        boxes = crops("resized-crop", 333, 222, n=50)
        np.testing.assert_array_equal(boxes, boxes.round())

    @pytest.mark.parametrize(
        ("size", "expected"),
        [((100, 4000), (0, 2000 - 200 / 3, 100, 2000 + 200 / 3)), ((4000, 90), (1940, 0, 2060, 90))],
        ids=["tall", "wide"],
    )
    def test_an_image_too_long_for_any_crop_gives_its_middle(self, size, expected):
        # The smallest crop has 8 % of the area: 32000 pixels of 4000 x 100, at most 4/3 as wide as high.
        for box in crops("resized-crop", *size, n=20):
            np.testing.assert_allclose(box, expected)


class TestAlexnetCrop:
    def test_is_a_227_square_of_the_central_256_square_of_the_resized_image(self):
        scale = 480 / 256
        left, top, right, bottom = crops("alexnet", 640, 480, image_size=227).T
        np.testing.assert_allclose(right - left, 227 * scale)
        np.testing.assert_allclose(bottom - top, 227 * scale)
        offsets = np.rint((left - 80) / scale), np.rint(top / scale)
        for offset in offsets:
            assert set(offset) == set(range(30))
        np.testing.assert_allclose(left, 80 + offsets[0] * scale)
        np.testing.assert_allclose(top, offsets[1] * scale)

    def test_keeps_the_proportion_at_another_size(self):
        left, _, right, _ = crops("alexnet", 256, 256, image_size=64, n=200).T
        assert set(np.rint(left / (256 / 72))) == set(range(9))
        np.testing.assert_allclose(right - left, 64 * 256 / 72)


class TestCentralCrop:
    def test_is_224_of_256_of_the_shorter_side(self):
        assert central_crop(500, 400, 224) == (75, 25, 425, 375)
        assert central_crop(400, 500, 224) == (25, 75, 375, 425)

    @pytest.mark.parametrize("size", SIZES, ids=str)
    @pytest.mark.parametrize("image_size", [1, 32, 224, 299])
    def test_lies_in_the_middle_of_the_image(self, size, image_size):
        left, top, right, bottom = central_crop(*size, image_size)
        assert 0 <= left < right <= size[0]
        assert 0 <= top < bottom <= size[1]
        assert (left + right, top + bottom) == pytest.approx(size)
        assert right - left == pytest.approx(bottom - top)
