"""Arrays and images as text inside a page."""

import base64
import io
import math
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

SMALL_IMAGE = 64  # pixels a side; up to here an image is stored without loss and shown pixel by pixel


def pack(values: np.ndarray | Tensor) -> dict[str, Any]:
    """`{"shape", "type", "data"}` for `unpack` of base.js: base64 of little-endian numbers.

    Floating-point numbers become float16 times a power of two, so that the largest is below 2^15: at most 2^-11 of a
    value is lost, or 2^-39 of the largest. Integers become the smallest of uint8, uint16 and uint32.

    Raises:
        ValueError: a negative integer, or one above 32 bits.
    """
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    if array.dtype.kind == "f":
        largest = float(np.max(np.abs(array), initial=0.0, where=np.isfinite(array)))
        scale = 2.0 ** (math.frexp(largest)[1] - 15) if largest else 1.0
        return {"shape": array.shape, "type": "f16", "scale": scale, "data": _base64((array / scale).astype("<f2"))}
    if array.size and (array.min() < 0 or array.max() > 0xFFFFFFFF):
        raise ValueError(f"integers must be in [0, 2^32), got {array.min()} to {array.max()}")
    most = int(array.max(initial=0))
    kind = "u1" if most < 1 << 8 else "u2" if most < 1 << 16 else "u4"
    return {"shape": array.shape, "type": kind, "data": _base64(array.astype(f"<{kind}"))}


def shown_as_rgb(pixels: np.ndarray) -> np.ndarray:
    """Pixels (H, W, C) of any number of channels as (H, W, 3), to be seen: without alpha."""
    return pixels[..., :3] if pixels.shape[2] > 2 else np.repeat(pixels[..., :1], 3, axis=2)


def image_url(pixels: np.ndarray, *, most: int | None = None, quality: int = 80) -> str:
    """A `data:` URL of an image, uint8 (H, W, C): PNG for small ones, JPEG for others.

    Args:
        pixels: the image.
        most: larger images are reduced to this longest side.
        quality: of JPEG.
    """
    image = Image.fromarray(np.ascontiguousarray(shown_as_rgb(pixels)))
    if most is not None and max(image.size) > most:
        image.thumbnail((most, most), Image.Resampling.BOX, reducing_gap=3)
    small = max(image.size) <= SMALL_IMAGE
    file = io.BytesIO()
    image.save(file, **({"format": "PNG"} if small else {"format": "JPEG", "quality": quality}))
    return f"data:image/{'png' if small else 'jpeg'};base64,{base64.b64encode(file.getvalue()).decode()}"


def _base64(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
