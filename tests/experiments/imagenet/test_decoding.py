import io
import re
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from experiments.imagenet import decoding
from experiments.imagenet.crops import central_crop
from experiments.imagenet.decoding import UndecodableError, decode
from experiments.imagenet.photographs import photographs

from .made_images import encoded, gradient

WIDTH, HEIGHT = 90, 60


def whole(width, height):
    return 0, 0, width, height


def decoded(content, image_size=30, crop=whole):
    image = decode(content, crop, image_size)
    assert image.dtype == np.uint8
    assert image.shape == (image_size, image_size, 3)
    return image.astype(int)


def expected(image, image_size=30):
    return np.asarray(image.convert("RGB").resize((image_size, image_size), Image.Resampling.BILINEAR)).astype(int)


def segment(marker, content):
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


def with_segments(jpeg, *segments):
    return jpeg[:2] + b"".join(segments) + jpeg[2:]


def chunk(name, content):
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png_of(width, height, depth, colour, rows, *more):
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(more) + data + chunk(b"IEND", b"")


class TestKindsOfFiles:
    @pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"optimize": True}], ids=str)
    def test_jpeg(self, options):
        image = gradient(WIDTH, HEIGHT)
        assert np.abs(decoded(encoded(image, quality=95, **options)) - expected(image)).max() <= 4

    def test_grey_jpeg(self):
        image = gradient(WIDTH, HEIGHT).convert("L")
        found = decoded(encoded(image, quality=95))
        assert np.abs(found - expected(image)).max() <= 3
        assert (found[..., 0] == found[..., 1]).all()

    def test_cmyk_jpeg(self):
        image = gradient(WIDTH, HEIGHT)
        assert np.abs(decoded(encoded(image.convert("CMYK"), quality=95)) - expected(image)).max() <= 6

    @pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "1"])
    def test_png(self, mode):
        image = gradient(WIDTH, HEIGHT).convert(mode)
        np.testing.assert_array_equal(decoded(encoded(image, "PNG")), expected(image))

    @pytest.mark.parametrize("transparency", [None, 3, bytes(range(200))], ids=["opaque", "one colour", "alphas"])
    def test_png_with_a_palette(self, transparency):
        image = gradient(WIDTH, HEIGHT).quantize(200)
        options = {} if transparency is None else {"transparency": transparency}
        np.testing.assert_array_equal(decoded(encoded(image, "PNG", **options)), expected(image))

    def test_alpha_is_dropped(self):
        image = gradient(WIDTH, HEIGHT)
        opaque = decoded(encoded(image, "PNG"))
        image.putalpha(0)
        np.testing.assert_array_equal(decoded(encoded(image, "PNG")), opaque)

    def test_16_bit_grey_png_is_scaled_and_not_clipped(self):
        values = np.linspace(0, 65535, WIDTH * HEIGHT).reshape(HEIGHT, WIDTH).astype(np.uint16)
        content = png_of(WIDTH, HEIGHT, 16, 0, [row.astype(">u2").tobytes() for row in values])
        np.testing.assert_array_equal(decoded(content), expected(Image.fromarray((values >> 8).astype(np.uint8))))

    def test_16_bit_colour_png(self):
        pixels = np.asarray(gradient(WIDTH, HEIGHT))
        rows = [(row.astype(">u2") * 257).tobytes() for row in pixels]
        np.testing.assert_array_equal(decoded(png_of(WIDTH, HEIGHT, 16, 2, rows)), expected(gradient(WIDTH, HEIGHT)))

    def test_orientation_of_exif_is_ignored(self):
        exif = Image.Exif()
        exif[0x0112] = 6
        image = gradient(WIDTH, HEIGHT)
        turned = decoded(encoded(image, quality=95, exif=exif))
        np.testing.assert_array_equal(turned, decoded(encoded(image, quality=95)))

    @pytest.mark.parametrize(
        "metadata",
        [
            segment(0xE1, b"Exif\0\0MM\0\x2a\0\0\0\x08\0\x05\x01\x1a\0\x05\0\0\0\x01\xff\xff\xff\xf0"),
            segment(0xE1, b"Exif\0\0" + b"\xff" * 40),
            segment(0xE2, b"MPF\0MM\0\x2a\xff\xff\xff\xff"),
            segment(0xE2, b"ICC_PROFILE\0"),
            segment(0xED, b"Photoshop 3.0\0" + b"8BIM\x03\xed"),
            segment(0xFE, b"a comment"),
        ],
        ids=["exif", "exif 2", "mpf", "icc", "photoshop", "comment"],
    )
    def test_broken_metadata_is_not_even_read(self, metadata):
        jpeg = encoded(gradient(WIDTH, HEIGHT), quality=95)
        np.testing.assert_array_equal(decoded(with_segments(jpeg, metadata)), decoded(jpeg))

    def test_junk_between_the_segments_of_a_jpeg_is_passed_over(self):
        jpeg = encoded(gradient(WIDTH, HEIGHT), quality=95)
        at = jpeg.index(b"\xff\xdb")
        changed = jpeg[:at] + b"\x00junk\xff\x00\xff\xff\xff\xd0" + jpeg[at:]
        np.testing.assert_array_equal(decoded(changed), decoded(jpeg))

    def test_broken_metadata_of_png_is_not_even_read(self):
        rows = [row.tobytes() for row in np.asarray(gradient(WIDTH, HEIGHT))]
        metadata = [chunk(b"acTL", b"\0" * 8), chunk(b"iCCP", b"no"), b"\0\0\0\2tEXtxx....", chunk(b"tRNS", b"x")]
        content = png_of(WIDTH, HEIGHT, 8, 2, rows, *metadata)
        np.testing.assert_array_equal(decoded(content), expected(gradient(WIDTH, HEIGHT)))

    def test_colours_of_an_adobe_jpeg_are_kept(self):
        image = gradient(WIDTH, HEIGHT)
        content = encoded(image, quality=95, keep_rgb=True)
        assert b"JFIF" not in content or b"Adobe" in content
        assert np.abs(decoded(content) - expected(image)).max() <= 4


class TestCrop:
    def test_is_given_the_size_and_gives_the_part(self):
        image = gradient(256, 128)
        sizes = []

        def crop(width, height):
            sizes.append((width, height))
            return 64, 32, 96, 64

        found = decoded(encoded(image, "PNG"), 32, crop)
        np.testing.assert_array_equal(found, np.asarray(image)[32:64, 64:96])
        assert sizes == [(256, 128)]

    def test_error_of_the_crop_is_not_one_of_the_file(self):
        def crop(width, height):
            raise KeyError("mine")

        with pytest.raises(KeyError, match="mine"):
            decode(encoded(gradient(8, 8)), crop, 8)

    @pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1)], ids=str)
    def test_thin_images(self, size):
        content = encoded(Image.new("RGB", size, (200, 100, 50)), "PNG")
        found = decoded(content, 16, lambda width, height: central_crop(width, height, 16))
        assert (found == (200, 100, 50)).all()


class TestReducedSize:
    @pytest.mark.parametrize("size", [(1000, 700), (1001, 701), (1007, 703), (799, 1203)], ids=str)
    @pytest.mark.parametrize("image_size", [20, 50, 100, 200])
    def test_is_the_same_part_of_the_image(self, size, image_size):
        # In this image colour is place: a part shifted by one pixel of the result would differ by more than this.
        content = encoded(gradient(*size), quality=95, subsampling=0)
        box = (100, 101, 603, 599)
        found = decoded(content, image_size, lambda *_: box)
        reference = gradient(*size).resize((image_size, image_size), Image.Resampling.BILINEAR, box)
        difference = found - np.asarray(reference).astype(int)
        assert np.abs(difference[..., :2]).max() <= 4
        assert np.abs(difference[..., :2].mean((0, 1))).max() <= 0.75

    def test_is_used_for_large_images_only(self, monkeypatch):
        calls = []
        draft = Image.Image.draft
        jpeg = type(Image.open(io.BytesIO(encoded(gradient(8, 8)))))
        original = jpeg.draft
        assert original is not draft
        monkeypatch.setattr(jpeg, "draft", lambda self, mode, size: calls.append(size) or original(self, mode, size))
        content = encoded(gradient(640, 320))
        for image_size in (200, 81, 80, 41, 40, 21, 20, 5):
            decoded(content, image_size)
        assert calls == [(320, 160), (320, 160), (160, 80), (160, 80), (80, 40), (80, 40)]

    def test_hardly_changes_photographs(self):
        for path in sorted(photographs().glob("train/*/*")):
            content = path.read_bytes()
            for image_size in (32, 64, 128):
                found = decoded(content, image_size, lambda w, h, size=image_size: central_crop(w, h, size))
                image = Image.open(io.BytesIO(content))
                box = central_crop(*image.size, image_size)
                full = np.asarray(image.resize((image_size, image_size), Image.Resampling.BILINEAR, box))
                assert np.abs(found - full).mean() < 1.5


class TestBrokenFiles:
    def test_empty_file(self):
        with pytest.raises(UndecodableError, match="an empty file"):
            decode(b"", whole, 8)

    @pytest.mark.parametrize("content", [b"<html>", b"GIF89a" + b"\0" * 40, b"\xff\xd8", b"\x89PNG"], ids=str)
    def test_other_formats(self, content):
        with pytest.raises(UndecodableError, match=re.escape(f"neither JPEG nor PNG: it begins with {content[:8]!r}")):
            decode(content, whole, 8)

    @pytest.mark.parametrize("kind", ["JPEG", "PNG"])
    @pytest.mark.parametrize("share", [0.0, 0.02, 0.1, 0.5, 0.9, 0.98])
    def test_truncated(self, kind, share):
        content = encoded(Image.effect_noise((WIDTH, HEIGHT), 50).convert("RGB"), kind)
        with pytest.raises(UndecodableError):
            decode(content[: 8 + int(share * (len(content) - 8))], whole, 8)

    def test_truncated_before_the_first_pixel_says_so(self):
        content = encoded(gradient(WIDTH, HEIGHT))
        with pytest.raises(UndecodableError, match="truncated before its first pixel"):
            decode(content[: content.index(b"\xff\xda")], whole, 8)

    def test_message_has_that_of_pillow(self):
        content = encoded(gradient(WIDTH, HEIGHT))
        with pytest.raises(UndecodableError, match=r"OSError: image file is truncated"):
            decode(content[:-200], whole, 8)

    @pytest.mark.parametrize(("width", "height"), [(60000, 60000), (0, 10), (10, 0)], ids=str)
    def test_decompression_bombs_and_empty_images_are_refused(self, width, height):
        message = f"{width} x {height} pixels; 1 to {decoding.MAX_PIXELS} pixels are decoded"
        with pytest.raises(UndecodableError, match=message):
            decode(png_of(width, height, 8, 2, [b"\0" * 3]), whole, 8)
        jpeg = encoded(gradient(8, 8))
        at = jpeg.index(b"\xff\xc0") + 5
        with pytest.raises(UndecodableError, match=message):
            decode(jpeg[:at] + struct.pack(">HH", height, width) + jpeg[at + 4 :], whole, 8)

    def test_limit_is_what_pillow_decodes_without_a_warning(self):
        assert decoding.MAX_PIXELS == Image.MAX_IMAGE_PIXELS

    def test_lack_of_memory_is_not_the_fault_of_the_file(self, monkeypatch):
        def resized(*_):
            raise MemoryError

        monkeypatch.setattr(decoding, "_resized", resized)
        with pytest.raises(MemoryError):
            decode(encoded(gradient(8, 8)), whole, 8)

    @pytest.mark.parametrize(
        "content",
        [
            encoded(gradient(40, 30)),
            encoded(gradient(40, 30), progressive=True),
            encoded(gradient(40, 30).convert("CMYK")),
            encoded(gradient(40, 30), "PNG"),
            encoded(gradient(40, 30).quantize(16), "PNG"),
        ],
        ids=["jpeg", "progressive", "cmyk", "png", "palette"],
    )
    @settings(max_examples=60, deadline=None)
    @given(changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=8))
    def test_any_change_is_decoded_or_refused(self, content, changes):
        changed = bytearray(content)
        for place, value in changes:
            changed[int(place * len(changed))] = value
        try:
            image = decode(bytes(changed), whole, 8)
        except UndecodableError:
            return
        assert image.shape == (8, 8, 3)
