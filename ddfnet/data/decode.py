"""Decoding: the bytes of an image file to RGB pixels, by the fastest decoder that is installed."""

import importlib
import io
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any, Literal

import numpy as np
from PIL import Image, UnidentifiedImageError

from ddfnet.data.image_file import MAX_PIXELS, ImageTooLargeError, as_8_bit, image_size, load_image
from ddfnet.data.jpeg import Box, Header, ends_at_once, is_turned, read_header
from ddfnet.utils.errors import ConfigError

DecoderName = Literal["auto", "simplejpeg", "torchcodec", "pillow"]

CHANNELS = {1: "gray", 2: "gray and alpha", 3: "RGB", 4: "RGB and alpha"}
_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
"""What images are read as, by the number of channels of the network's input."""

_END = b"\xff\xd9"


class Decoder:
    """Decodes image files: `decoder(data)` -> uint8 (H, W, channels).

    Pixels, and what is accepted, are the same with all backends. They are offered plain JPEGs that end where they
    should, and whatever one of them refuses or merely warns of, Pillow decides: see `open_rgb`, whose rules and errors
    apply. A JPEG that is cut off is an error, one with damage in the middle is not, as Pillow has it.

    Args:
        name: a backend; auto: the first one installed of simplejpeg, torchcodec and Pillow, from fast to slow.
        max_pixels: most pixels, width times height, of an image that is decoded.
        channels: of `CHANNELS`. All but RGB are read by Pillow: gray is luminance, an image without alpha is opaque.

    Raises:
        ConfigError: the backend is not installed.
    """

    def __init__(self, name: DecoderName = "auto", *, channels: int = 3, max_pixels: float = MAX_PIXELS) -> None:
        self.max_pixels = max_pixels
        self.name, self.channels = _installed(name) if channels == 3 else "pillow", channels

    def __call__(self, data: bytes | bytearray) -> np.ndarray:
        header = self._header(data)
        if header is not None:
            try:
                return _BACKENDS[self.name](data, header, strict=True)
            except Exception:  # each backend has errors of its own
                pass
        pixels = np.array(open_image(data, self.channels, self.max_pixels))
        return pixels if pixels.ndim == 3 else pixels[..., None]

    def crop(self, data: bytes, box_of: Callable[[int, int], Box]) -> tuple[np.ndarray, Box]:
        """An image down to the lower edge of a crop at least, and the crop: what lies below is not decoded.

        A header with a smaller height makes a decoder stop early, and changes no pixel above. Only JPEGs in one scan
        are written from top to bottom.

        Args:
            box_of: (width, height) of the image -> the crop, called once.
        """
        header = self._header(data)
        # With restart markers decoders differ in what damage they step over.
        early = header is not None and header.sequential and not header.interval and self.name in _STOP_EARLY
        if header is None or not early:
            pixels = self(data)
            return pixels, box_of(pixels.shape[1], pixels.shape[0])
        box = box_of(header.width, header.height)
        # One pixel of margin: decoders smooth subsampled color over neighboring pixels.
        rows = -(-(box[3] + 1) // header.mcu[1]) * header.mcu[1]
        if rows <= _WORTHWHILE * header.height and ends_at_once(data, header):
            part = bytearray(data)
            part[header.frame : header.frame + 2] = rows.to_bytes(2, "big")
            try:
                # Not strict: all that is not read is a warning.
                return _BACKENDS[self.name](part, header, strict=False), box
            except Exception:
                pass
        return self(data), box

    def size(self, data: bytes) -> tuple[int, int]:
        """Width and height in pixels, from the header alone; what Pillow raises where it is none of an image."""
        try:
            header = read_header(data)
            return header.width, header.height
        except ValueError:
            return image_size(data)

    def _header(self, data: bytes | bytearray) -> Header | None:
        """The header of a JPEG that a backend can be asked for."""
        if self.name == "pillow" or not data.endswith(_END):
            return None
        try:
            header = read_header(data)
        except ValueError:
            return None
        fits = header.width * header.height <= self.max_pixels
        return header if header.plain and fits else None


def _simplejpeg(data: bytes | bytearray, _: Header, *, strict: bool) -> np.ndarray:
    # strict: a warning of libjpeg's is an error.
    return _module("simplejpeg").decode_jpeg(data, "RGB", strict=strict)


def _torchcodec(data: bytes | bytearray, header: Header, *, strict: bool) -> np.ndarray:
    if is_turned(data, header):
        raise ValueError("torchcodec would turn it")
    return _module("torchcodec.decoders").decode_jpeg(bytes(data), mode="RGB").permute(1, 2, 0).numpy()


_BACKENDS: dict[str, Callable[..., np.ndarray]] = {"simplejpeg": _simplejpeg, "torchcodec": _torchcodec}

_WORTHWHILE = 15 / 16  # looking at the data costs as much as decoding the rest
_STOP_EARLY = ("simplejpeg",)  # torchcodec writes a line to stderr for each such image


@cache
def _module(name: str) -> Any:
    return importlib.import_module(name)


def _installed(name: DecoderName) -> str:
    for backend in (*_BACKENDS, "pillow") if name == "auto" else (name,):
        if backend == "pillow" or _works(backend):
            return backend
    raise ConfigError(f"data.decoder={name} cannot be used: pip install {name}, or set data.decoder=auto")


@cache
def _works(backend: str) -> bool:
    """Whether a backend decodes an image: torchcodec may be there and lack a library of the system's."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG")
    try:
        return _BACKENDS[backend](file.getvalue(), read_header(file.getvalue()), strict=True).shape == (8, 8, 3)
    except Exception:
        return False


def open_rgb(data: bytes | bytearray, max_pixels: float = MAX_PIXELS) -> Image.Image:
    """`open_image` to RGB."""
    return open_image(data, 3, max_pixels)


def open_image(data: bytes | bytearray, channels: int, max_pixels: float = MAX_PIXELS) -> Image.Image:
    """Decodes an image file to L, LA, RGB or RGBA, as timm does: `convert("RGB")`, EXIF orientation ignored.

    One exception to timm: gray of 16 and 32 bits, see `as_8_bit`. Whatever `load_image` raises for bytes that cannot be
    decoded is for `decode_error`.
    """
    image, mode = as_8_bit(load_image(data, max_pixels)), _MODES[channels]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
        if mode.endswith("A") and image.mode not in ("L", "LA", "P", "PA", "RGB", "RGBA"):
            image = image.convert("RGB")  # Pillow converts few modes to those with alpha
        return image if image.mode == mode else image.convert(mode)


def verdict(reason: str) -> str:
    """What an image is that could not be read for the reason of `decode_error`: corrupt, or too large."""
    return "too large" if "data.max_pixels" in reason else "corrupt"


def decode_error(error: Exception) -> str:
    """One-line reason, without the path, for an image that could not be read or decoded."""
    if isinstance(error, UnidentifiedImageError):
        reason = "not an image, or its header is damaged"
    elif isinstance(error, ImageTooLargeError):
        return str(error)
    else:
        reason = str(getattr(error, "strerror", None) or error)
    return " ".join(f"{type(error).__name__}: {reason}".split())
