"""From the bytes of an image file to pixels."""

import contextlib
import io
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
from PIL import Image

from .crops import Box

MAX_PIXELS = 1024**3 // 4 // 3  # what Pillow decodes without warning of a decompression bomb; 256 MiB as RGB

# A JPEG is decoded smaller only as long as it is still at least this many times too large: then no pixel value of the
# result moves by more than 1 of 255 on average. With less, the result would be sharper than the bilinear filter's.
_MARGIN = 2
_JPEG_START = b"\xff\xd8\xff"
_PNG_START = b"\x89PNG\r\n\x1a\n"


class UndecodableError(ValueError):
    """An image file is broken, or not an image at all."""


def decode(content: bytes, crop: Callable[[int, int], Box], image_size: int) -> npt.NDArray[np.uint8]:
    """Returns a part of an image, resized with antialiasing.

    Whatever the name of its file, the content may be JPEG (RGB, grey or CMYK) or PNG (also with a palette, with 16
    bits, or with an alpha channel, which is dropped). The orientation in the metadata is ignored, as is usual for
    ImageNet. A large JPEG is decoded at 1/2, 1/4 or 1/8 of its size where that makes no difference to speak of.

    Args:
      content: of the image file.
      crop: from the width and height of the image to the part wanted.
      image_size: width and height of the result.

    Returns:
      uint8 `[image_size, image_size, 3]`, RGB.

    Raises:
      UndecodableError: if the file is empty, truncated, corrupt, in another format, or has more than `MAX_PIXELS`.
    """
    if not content:
        raise UndecodableError("an empty file")
    if content.startswith(_JPEG_START):
        content = _essential_jpeg(content)
    elif content.startswith(_PNG_START):
        content = _essential_png(content)
    else:
        raise UndecodableError(f"neither JPEG nor PNG: it begins with {content[:8]!r}")
    with _broken_is_undecodable():
        image = Image.open(io.BytesIO(content), formats=("JPEG", "PNG"))
    box = crop(*image.size)
    with _broken_is_undecodable(), image:
        return _resized(image, box, image_size)


@contextlib.contextmanager
def _broken_is_undecodable() -> Iterator[None]:
    """Turns whatever Pillow raises for a broken file into one error; its parsers raise a dozen kinds of them."""
    try:
        yield
    except MemoryError:
        raise  # the machine is to blame, not the file
    except Exception as error:
        raise UndecodableError(f"{type(error).__name__}: {error}") from error


def _resized(image: Image.Image, box: Box, image_size: int) -> npt.NDArray[np.uint8]:
    ratio = min(box[2] - box[0], box[3] - box[1]) / image_size
    if divisor := next((divisor for divisor in (8, 4, 2) if ratio >= _MARGIN * divisor), 0):
        # Formats other than JPEG cannot be decoded smaller, and return None.
        width, height = image.size
        if image.draft(None, (width // divisor, height // divisor)) is not None:
            left, top, right, bottom = (side / divisor for side in box)
            box = left, top, right, bottom
    resized = _as_rgb(image).resize((image_size, image_size), Image.Resampling.BILINEAR, box)
    return np.asarray(resized)


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "I;16":  # for which `convert` would clip instead of scale
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image if image.mode == "RGB" else image.convert("RGB")


def _essential_jpeg(content: bytes) -> bytes:
    """Returns the file without its metadata, which Pillow would parse, and warn of if they are broken."""
    kept, at = [content[:2]], 2
    while (at := content.find(b"\xff", at)) >= 0 and at + 4 <= len(content):
        marker = content[at + 1]
        if marker in (0x00, 0xFF):  # junk or padding
            at += 1
        elif marker == 0x01 or 0xD0 <= marker <= 0xD9:  # without a length
            at += 2
        elif marker == 0xDA:  # from here on pixels
            return b"".join([*kept, content[at:]])
        else:
            end = at + 2 + int.from_bytes(content[at + 2 : at + 4])
            segment = content[at:end]
            if (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)) or marker == 0xDE:
                _check_size(width=int.from_bytes(segment[7:9]), height=int.from_bytes(segment[5:7]))
            # APP0 (JFIF) and APP14 (Adobe) say what the colours mean; the other APPs and comments are metadata.
            if not (0xE0 < marker < 0xEE or marker in (0xEF, 0xFE)):
                kept.append(segment)
            at = end
    raise UndecodableError("truncated before its first pixel")


def _essential_png(content: bytes) -> bytes:
    """Returns the file with only its critical chunks: those whose name begins with a capital letter."""
    kept, at = [content[:8]], 8
    while at + 8 <= len(content):
        end = at + 12 + int.from_bytes(content[at : at + 4])  # length, name, data, checksum
        name = content[at + 4 : at + 8]
        if name == b"IHDR":
            _check_size(*(int.from_bytes(content[at + side : at + side + 4]) for side in (8, 12)))
        if name[:1].isupper():
            kept.append(content[at:end])
        at = end
    return b"".join(kept)


def _check_size(width: int, height: int) -> None:
    if not 0 < width * height <= MAX_PIXELS:
        raise UndecodableError(f"an image of {width} x {height} pixels; 1 to {MAX_PIXELS} pixels are decoded")
