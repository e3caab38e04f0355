"""Crops of pixels, resized into rows of a batch.

Two kernels: torch's antialiased one for uint8, four to five times as fast, which writes straight into the batch; and
Pillow's, which is timm's. Both are convolutions with the same filters in fixed point. torch's goes over rows first
always, as Pillow did before version 13 and Pillow-SIMD does, to whose pixels it is equal; see docs/guides/data.md for
the measured distances.
"""

from collections.abc import Callable
from functools import cache
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ddfnet.data.jpeg import Box

Kernel = Literal["torch", "pillow"]
Interpolation = Literal["nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"]

_TORCH_FILTERS = ("bilinear", "bicubic")


def resize_into(
    pixels: np.ndarray,
    box: Box,
    row: Tensor,
    interpolation: Interpolation,
    *,
    kernel: Kernel = "torch",
    hflip: bool = False,
    vflip: bool = False,
) -> None:
    """Writes a crop of an image, resized and then flipped, into a row of a batch.

    Args:
        pixels: uint8 (H, W, C); each channel is resized by itself.
        box: the crop, within the image and not empty.
        row: uint8 (h, w, C), contiguous; gives the size.
        interpolation: with antialiasing, but for nearest. Pillow does those that torch has not.
        kernel: of torch, the flip may come before the resize, which costs nothing: pixels then differ by 1 level at
            most from those of an image that is flipped afterwards.
    """
    left, top, right, bottom = box
    crop = pixels[top:bottom, left:right]
    height, width = row.shape[:2]
    if kernel == "torch" and interpolation in _TORCH_FILTERS:
        if not crop.flags.writeable:  # torch would warn
            crop = crop.copy()
        source = torch.from_numpy(np.ascontiguousarray(crop)) if not hflip else torch.from_numpy(crop).flip(1)
        target = row.permute(2, 0, 1)[None]
        if (bottom - top, right - left) == (height, width):
            row.copy_(source)
        else:
            resize = torch_resize if row.shape[2] == 3 else through_interpolate
            resize(interpolation)(source.permute(2, 0, 1)[None], target)
        if vflip:
            row.copy_(row.flip(0))
        return
    if crop.shape[2] == 3:
        made = _pillow_resize(crop, height, width, interpolation)
    else:  # of RGBA Pillow would multiply the colors by alpha, which may be any fourth channel
        channels = np.moveaxis(crop, 2, 0)
        made = np.stack([_pillow_resize(channel, height, width, interpolation) for channel in channels], axis=2)
    # A copy where it is flipped: torch takes no negative strides.
    row.copy_(torch.from_numpy(np.array(made[:: -1 if vflip else 1, :: -1 if hflip else 1])))


def _pillow_resize(pixels: np.ndarray, height: int, width: int, interpolation: Interpolation) -> np.ndarray:
    image = Image.fromarray(np.ascontiguousarray(pixels))
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling[interpolation.upper()])
    return np.asarray(image)


@cache
def torch_resize(interpolation: Interpolation) -> Callable[[Tensor, Tensor], object]:
    """(source, target), both uint8 (1, 3, H, W) with channels last: writes the resized source into the target.

    The operator that writes into memory it is given has a private name. Where it is missing, or no longer does what
    `interpolate` does, that is called, and its result copied.
    """
    try:
        operator = getattr(torch.ops.aten, f"_upsample_{interpolation}2d_aa").out

        def direct(source: Tensor, target: Tensor) -> object:
            return operator(source, target.shape[-2:], False, None, None, out=target)

        probe = torch.arange(5 * 7 * 3, dtype=torch.uint8).view(5, 7, 3).permute(2, 0, 1)[None]
        made, expected = (torch.empty(4, 3, 3, dtype=torch.uint8).permute(2, 0, 1)[None] for _ in range(2))
        pointer = made.data_ptr()
        direct(probe, made)
        through_interpolate(interpolation)(probe, expected)
        if torch.equal(made, expected) and made.data_ptr() == pointer and made.stride() == expected.stride():
            return direct
    except (AttributeError, RuntimeError, TypeError):
        pass
    return through_interpolate(interpolation)


def through_interpolate(interpolation: Interpolation) -> Callable[[Tensor, Tensor], object]:
    """`torch_resize` by public functions only."""

    def interpolate(source: Tensor, target: Tensor) -> object:
        size = list(target.shape[-2:])
        return target.copy_(F.interpolate(source, size, mode=interpolation, antialias=True, align_corners=False))

    return interpolate


def resized_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """Height and width of an image whose short side is brought to a length, by torchvision's rule."""
    if height <= width:
        return short_side, int(short_side * width / height)
    return int(short_side * height / width), short_side
