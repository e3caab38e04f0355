"""Decoding: the bytes of an image file to RGB pixels."""

import io
import warnings

import numpy as np
from PIL import Image, UnidentifiedImageError


def open_rgb(data: bytes) -> Image.Image:
    """Decodes an image file to RGB, as timm does: `convert("RGB")`, EXIF orientation ignored.

    One exception to timm: 16-bit gray keeps its upper 8 bits; Pillow alone clips it, which leaves a white image.
    Whatever Pillow raises for bytes that cannot be decoded, truncated ones too, is for `decode_error`.
    """
    # Pillow warns of odd metadata (EXIF, palette transparency), which changes no pixel; its decompression-bomb warning
    # is of another category and stays.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
        image: Image.Image = Image.open(io.BytesIO(data))
        image.load()
        if is_16_bit_gray(image):
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        return image if image.mode == "RGB" else image.convert("RGB")


def is_16_bit_gray(image: Image.Image) -> bool:
    """True for 16-bit gray images. Some formats and versions of Pillow open them as 32-bit "I"."""
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))


def decode_error(error: Exception) -> str:
    """One-line reason, without the path, for an image that could not be read or decoded."""
    if isinstance(error, UnidentifiedImageError):
        reason = "not an image, or its header is damaged"
    else:
        reason = str(getattr(error, "strerror", None) or error)
    return " ".join(f"{type(error).__name__}: {reason}".split())
