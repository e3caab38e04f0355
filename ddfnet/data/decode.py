"""Decoding: the bytes of an image file to RGB pixels, by the fastest decoder that is installed."""

import importlib
import io
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any, Literal

import numpy as np
from PIL import Image, UnidentifiedImageError

from ddfnet.data.jpeg import Header, is_turned, read_header
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

    def __call__(self, data: bytes) -> np.ndarray:
        decode = _BACKENDS.get(self.name)
        if decode is not None and data.endswith(_END):
            try:
                header = read_header(data)
                if header.plain and header.width * header.height <= (Image.MAX_IMAGE_PIXELS or np.inf):
                    return decode(data, header)
            except Exception:  # not a JPEG, damaged, or more than this backend can do: each has errors of its own
                pass
        return np.array(open_rgb(data))

    def size(self, data: bytes) -> tuple[int, int]:
        """Width and height in pixels, from the header alone; what Pillow raises where it is none of an image."""
        try:
            header = read_header(data)
            return header.width, header.height
        except ValueError:
            return Image.open(io.BytesIO(data)).size


def _simplejpeg(data: bytes, _: Header) -> np.ndarray:
    # strict: a warning of libjpeg's is an error.
    return _module("simplejpeg").decode_jpeg(data, "RGB", strict=True)


def _torchcodec(data: bytes, header: Header) -> np.ndarray:
    if is_turned(data, header):
        raise ValueError("torchcodec would turn it")
    return _module("torchcodec.decoders").decode_jpeg(data, mode="RGB").permute(1, 2, 0).numpy()


_BACKENDS: dict[str, Callable[[bytes, Header], np.ndarray]] = {"simplejpeg": _simplejpeg, "torchcodec": _torchcodec}


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
        return _BACKENDS[backend](file.getvalue(), read_header(file.getvalue())).shape == (8, 8, 3)
    except Exception:
        return False


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
