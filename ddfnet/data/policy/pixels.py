"""Color operations and 3 x 3 and blurring filters on many images at once, with Pillow's pixels.

Each takes images uint8 (N, H, W, 3) and, where it has one, a value per image, float32 (N,); and returns uint8.
Pillow cuts fractions off when it blends, and rounds when it filters.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

_GRAY = (19595, 38470, 7471)  # Rec. 601 luma times 2^16


def invert(pixels: Tensor, value: Tensor) -> Tensor:
    return 255 - pixels


def posterize(pixels: Tensor, bits: Tensor) -> Tensor:
    step = 2 ** (8 - bits.int())
    return pixels - (pixels.int() % _per_image(step)).to(torch.uint8)


def solarize(pixels: Tensor, threshold: Tensor) -> Tensor:
    return torch.where(pixels < _per_image(threshold), pixels, 255 - pixels)


def solarize_add(pixels: Tensor, add: Tensor) -> Tensor:
    raised = (pixels + _per_image(add.short())).clamp(max=255).to(torch.uint8)
    return torch.where(pixels < 128, raised, pixels)


def brightness(pixels: Tensor, factor: Tensor) -> Tensor:
    return _blend(torch.zeros((), device=pixels.device), pixels, factor)


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
    return _look_up(pixels, torch.where((high > low)[..., None], stretched, levels))


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
    return _look_up(pixels, torch.where(step > 0, flattened, levels))


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


def _look_up(pixels: Tensor, tables: Tensor) -> Tensor:
    """Replaces each value by its entry in the table (N, 3, 256) of its image and channel."""
    n = len(pixels)
    first = torch.arange(3 * n, dtype=torch.int32, device=pixels.device).view(n, 1, 1, 3) * 256
    return tables.to(torch.uint8).flatten().index_select(0, (pixels + first).flatten()).view_as(pixels)
