"""Decoding: the bytes of an image file to RGB pixels, by the fastest decoder that is installed."""

import importlib
import io
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any, Literal

import numpy as np
from PIL import Image, UnidentifiedImageError

from ddfnet.data.jpeg import Box, Header, ends_at_once, is_turned, read_header
from ddfnet.utils.errors import ConfigError

DecoderName = Literal["auto", "simplejpeg", "torchcodec", "pillow"]

_END = b"\xff\xd9"


class Decoder:
    """Decodes image files: `decoder(data)` -> RGB, uint8 (H, W, 3).

    Pixels, and what is accepted, are the same with all backends. They are offered plain JPEGs that end where they
    should, and whatever one of them refuses or merely warns of, Pillow decides: see `open_rgb`, whose rules and errors
    apply. A JPEG that is cut off is an error, one with damage in the middle is not, as Pillow has it.

    Args:
        name: a backend; auto: the first one installed of simplejpeg, torchcodec and Pillow, from fast to slow.

    Raises:
        ConfigError: the backend is not installed.
    """

    def __init__(self, name: DecoderName = "auto") -> None:
        self.name = _installed(name)

    def __call__(self, data: bytes | bytearray) -> np.ndarray:
        header = self._header(data)
        if header is not None:
            try:
                return _BACKENDS[self.name](data, header, strict=True)
            except Exception:  # each backend has errors of its own
                pass
        return np.array(open_rgb(data))

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
            return Image.open(io.BytesIO(data)).size

    def _header(self, data: bytes | bytearray) -> Header | None:
        """The header of a JPEG that a backend can be asked for."""
        if self.name == "pillow" or not data.endswith(_END):
            return None
        try:
            header = read_header(data)
        except ValueError:
            return None
        fits = header.width * header.height <= (Image.MAX_IMAGE_PIXELS or np.inf)
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


def open_rgb(data: bytes | bytearray) -> Image.Image:
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
