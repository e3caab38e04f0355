"""Color operations and 3 x 3 and blurring filters on many images at once, with Pillow's pixels.

Each takes images uint8 (N, H, W, 3) and a value per image, float32 (N,), used or not; and returns uint8.
Pillow cuts fractions off when it blends, and rounds when it filters.
"""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ddfnet.data.policy.table import Op

_GRAY = (19595, 38470, 7471)  # Rec. 601 luma times 2^16


_RAMP = np.arange(256)


def value_tables(codes: np.ndarray, values: np.ndarray) -> np.ndarray:
    """What becomes of each value under operations that do not depend on the image (`BY_VALUE`): uint8 (N, 256)."""
    tables = np.empty((len(codes), 256), np.uint8)
    for row, code, value in zip(tables, codes, values, strict=True):
        row[:] = BY_VALUE[Op(int(code))](value)
    return tables


BY_VALUE: dict[Op, Callable[[float], np.ndarray]] = {
    Op.INVERT: lambda value: 255 - _RAMP,
    Op.POSTERIZE: lambda bits: _RAMP - _RAMP % 2 ** (8 - int(bits)),
    Op.SOLARIZE: lambda threshold: np.where(threshold > _RAMP, _RAMP, 255 - _RAMP),
    Op.SOLARIZE_ADD: lambda add: np.where(_RAMP < 128, np.minimum(_RAMP + int(add), 255), _RAMP),
    Op.BRIGHTNESS: lambda factor: np.clip(_RAMP.astype(np.float32) * np.float32(factor), 0, 255).astype(np.uint8),
}


def look_up(pixels: Tensor, tables: Tensor) -> Tensor:
    """Replaces each value by its entry in the table of its image, (N, 256), or of its channel, (N, 3, 256)."""
    first = torch.arange(0, tables.numel(), 256, dtype=torch.int32, device=pixels.device).view(len(pixels), 1, 1, -1)
    return tables.to(torch.uint8).flatten().index_select(0, (pixels + first).flatten()).view_as(pixels)


def contrast(pixels: Tensor, factor: Tensor) -> Tensor:
    gray = _gray(pixels)
    mean = gray.flatten(1).sum(1, dtype=torch.int64).double() / gray[0].numel()
    return _blend(_per_image((mean + 0.5).floor().float()), pixels, factor)


def color(pixels: Tensor, factor: Tensor) -> Tensor:
    return _blend(_gray(pixels).float(), pixels, factor)


def autocontrast(pixels: Tensor, value: Tensor) -> Tensor:
    low, high = (v.double() for v in torch.aminmax(pixels.flatten(1, 2).transpose(1, 2).contiguous(), dim=2))
    scale = torch.full_like(low, 255.0) / (high - low).clamp(min=1)  # `255.0 / x` would be 255 times a rounded 1 / x
    levels = torch.arange(256, dtype=torch.float64, device=pixels.device)
    stretched = (levels * scale[..., None] - (low * scale)[..., None]).trunc().clamp(0, 255)
    return look_up(pixels, torch.where((high > low)[..., None], stretched, levels))


def equalize(pixels: Tensor, value: Tensor) -> Tensor:
    n = len(pixels)
    channels = torch.arange(3 * n, device=pixels.device).view(n, 1, 1, 3) * 256
    counts = torch.zeros(n * 3 * 256, dtype=torch.int32, device=pixels.device)
    places = (pixels + channels).flatten()
    # Not bincount, which would wait for the device.
    counts = counts.scatter_add_(0, places, counts.new_ones(1).expand(len(places))).view(n, 3, 256)
    present = counts > 0
    highest = 255 - present.flip(2).int().argmax(2, keepdim=True)
    step = (counts.sum(2, keepdim=True) - counts.gather(2, highest)) // 255
    below = F.pad(counts.cumsum(2), (1, 0))[..., :256]
    flattened = ((step // 2 + below) // step.clamp(min=1)).clamp(max=255)
    levels = torch.arange(256, device=pixels.device)
    return look_up(pixels, torch.where(step > 0, flattened, levels))


def sharpness(pixels: Tensor, factor: Tensor) -> Tensor:
    _, h, w, _ = pixels.shape
    smooth = pixels
    if min(h, w) >= 3:
        x = pixels.short()
        rows = x[:, :-2] + x[:, 1:-1] + x[:, 2:]
        total = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:] + 4 * x[:, 1:-1, 1:-1]
        smooth = pixels.clone()  # the border stays
        smooth[:, 1:-1, 1:-1] = ((2 * total + 13) // 26).to(torch.uint8)
    return _blend(smooth.float(), pixels, factor)


def gaussian_blur(pixels: Tensor, sigma: Tensor) -> Tensor:
    """Three box filters along each axis (Gwosdek et al., SSVM 2011), in fixed point and rounded each time.

    A box reaches `radius` pixels, and with the weight of `radius`'s fraction one more: at most 2 up to sigma = 2.
    """
    variance = sigma * sigma / 3
    whole = ((torch.sqrt(12.0 * variance.double() + 1.0).float() - 1.0) / 2.0).floor()
    part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1) * (whole + 1)))
    weight = (torch.full_like(whole, 2**24) / ((whole + part) * 2 + 1)).long()
    edge = (2**24 - (2 * whole.long() + 1) * weight) // 2
    inner = torch.where(whole > 0, weight, edge)  # of the pixels beside the middle one
    outer = torch.where(whole > 0, edge, 0)
    middle, inner, outer = (_per_image(v) for v in (weight, inner, outer))
    x = pixels.long()
    for axis in (2, 2, 2, 1, 1, 1):
        length = x.shape[axis]
        at = torch.arange(-2, length + 2, device=pixels.device).clamp(0, length - 1)
        p = x.index_select(axis, at)
        far2, far1, here, near1, near2 = (p.narrow(axis, i, length) for i in range(5))
        x = (here * middle + (far1 + near1) * inner + (far2 + near2) * outer + 2**23) >> 24
    return x.to(torch.uint8)


def _per_image(value: Tensor) -> Tensor:
    return value.view(-1, 1, 1, 1)


def _gray(pixels: Tensor) -> Tensor:
    """int32 (N, H, W, 1)."""
    red, green, blue = (channel.int() * weight for channel, weight in zip(pixels.split(1, 3), _GRAY, strict=True))
    return (red + green + blue + 0x8000) >> 16


def _blend(degenerate: Tensor, pixels: Tensor, factor: Tensor) -> Tensor:
    """From the degenerate image (0) to the image (1) and beyond; float32 like Pillow, which cuts the fraction off."""
    difference = (pixels - degenerate).mul_(_per_image(factor))
    return difference.add_(degenerate).clamp_(0, 255).to(torch.uint8)
