"""An image file as Pillow opens it: not larger than a limit, and in levels of 8 bits."""

import io
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

import numpy as np
from PIL import Image, features

MAX_PIXELS = 178_956_970
"""Width times height of the largest image that is read, unless `data.max_pixels` says otherwise; it is Pillow's."""

_AVIF = (b"ftypavif", b"ftypavis")
_lock = threading.Lock()  # Pillow's own limit is a global


class ImageTooLargeError(ValueError):
    """An image has more pixels than are read; nothing says that it is damaged."""


def load_image(data: bytes | bytearray, max_pixels: float = MAX_PIXELS) -> Image.Image:
    """Opens and decodes an image file.

    Pillow warns of odd metadata (EXIF, palette transparency), which changes no pixel, and of large images, for which
    there is a limit here: both warnings are not shown.

    Args:
        data: the file.
        max_pixels: most pixels, width times height, that are decoded.

    Raises:
        ImageTooLargeError: it has more.
        Exception: whatever Pillow raises for bytes that cannot be decoded, truncated ones too.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            image: Image.Image = Image.open(io.BytesIO(data))
            _check_size(image, max_pixels)
            image.load()
        except Image.DecompressionBombError:
            with _without_limit_of_pillow():
                image = Image.open(io.BytesIO(data))
                _check_size(image, max_pixels)
                image.load()
        except Image.UnidentifiedImageError:
            if bytes(data[4:12]) in _AVIF and not features.check("avif"):
                raise ValueError("it is AVIF, which this Pillow cannot read: pip install -U pillow") from None
            raise
    return image


def image_size(data: bytes | bytearray | BinaryIO) -> tuple[int, int]:
    """Width and height in pixels by the header alone, however large; whatever Pillow raises where there is none."""
    return open_header(data).size


def open_header(data: bytes | bytearray | BinaryIO) -> Image.Image:
    """An image of which the header alone is read, however large; whatever Pillow raises where there is none."""
    with _without_limit_of_pillow():
        return Image.open(io.BytesIO(data) if isinstance(data, bytes | bytearray) else data)


def as_8_bit(image: Image.Image) -> Image.Image:
    """The image with levels of 8 bits, where it is gray of more.

    16 bits keep the upper 8; Pillow alone clips them, which leaves a white image. 32 bits have no range that all agree
    on, and are not guessed: whole numbers from 0 to 255 are levels as they are, and other numbers from 0 to 1 are
    fractions of 255.

    Raises:
        ValueError: 32-bit values of another range, or NaN.
    """
    if is_16_bit_gray(image):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode not in ("I", "F"):
        return image
    values = np.asarray(image)
    low, high = values.min(), values.max()  # NaN where there is one
    whole = image.mode == "I" or bool((values == np.round(values)).all())
    if whole and low >= 0 and (high > 1 or image.mode == "I") and high <= 255:
        return Image.fromarray(values.astype(np.uint8))
    if image.mode == "F" and low >= 0 and high <= 1:
        return Image.fromarray(np.rint(values * 255).astype(np.uint8))
    kind = "whole numbers" if image.mode == "I" else "floating-point numbers"
    raise ValueError(
        f"32-bit {kind} from {low:g} to {high:g}, which have no agreed range: write the image with 8 or 16 bits, or as "
        "fractions from 0 to 1"
    )


def is_16_bit_gray(image: Image.Image) -> bool:
    """True for 16-bit gray images. Some formats and versions of Pillow open them as 32-bit "I"."""
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))


def _check_size(image: Image.Image, max_pixels: float) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise ImageTooLargeError(
            f"{width} x {height} pixels are more than the {max_pixels:,.0f} of data.max_pixels (--max-pixels): raise "
            "it, or shrink the image"
        )


@contextmanager
def _without_limit_of_pillow() -> Iterator[None]:
    with _lock, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before
