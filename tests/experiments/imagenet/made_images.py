"""Image files made for tests."""

import io

import numpy as np
from PIL import Image


def encoded(image, kind="JPEG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def gradient(width, height):
    """An image in which red tells the column, green the row, both from 0 to 255."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = np.linspace(0, 255, width)
    pixels[..., 1] = np.linspace(0, 255, height)[:, None]
    return Image.fromarray(pixels)


def plain(red, green=0, blue=0, size=(40, 30)):
    return encoded(Image.new("RGB", size, (red, green, blue)), quality=95)


def make_folder(data, counts, splits=("train", "val")):
    """Writes `{class: number of images}` for each split; the blue of an image is its number in the class."""
    for split in splits:
        for label, (name, count) in enumerate(counts.items()):
            folder = data / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                (folder / f"{number:03}.JPEG").write_bytes(plain(40 * label, 0, 10 * number))
    return data
