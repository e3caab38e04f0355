"""DDF-Up-Net: joint depth upsampling with DDF-Up (Zhou et al., CVPR 2021, section 6, figure 6 b, table 7)."""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddfnet.layers.ddf_up import DDFUp

INTERPOLATIONS = ("nearest", "bilinear", "bicubic")


def sampling_phase(factor: int) -> int:
    """Index, in each cell of factor x factor pixels, of the pixel that the low resolution keeps: (factor - 1) // 2.

    Of the two pixels beside the center of the cell the first one, as in the published code of PAC-Net. A pixel i of the
    low resolution therefore stands at i * factor + phase, half a pixel before the center of its cell.
    """
    return (factor - 1) // 2


def interpolate(low: Tensor, factor: int, kind: str) -> Tensor:
    """Upsamples a sampled map, knowing where its samples stand (`sampling_phase`): there it keeps the values.

    (B, C, h, w), floating point -> (B, C, h * factor, w * factor), in the same dtype under autocast too. `kind` is
    `nearest` (the sample of the pixel's own cell), `bilinear`, or `bicubic` (Keys 1981 with a = -0.5, as in MATLAB and
    Pillow; torch has a = -0.75). Beyond the border the outermost samples are repeated.
    """
    if kind not in INTERPOLATIONS:
        raise ValueError(f"kind must be one of {', '.join(INTERPOLATIONS)}, got {kind!r}")
    for axis in (2, 3):
        low = _interpolate_axis(low, factor, kind, axis)
    return low


def _interpolate_axis(low: Tensor, factor: int, kind: str, axis: int) -> Tensor:
    if kind == "nearest":
        return low.repeat_interleave(factor, axis)
    size = low.shape[axis]
    position = torch.arange(size * factor, device=low.device, dtype=low.dtype)
    position = (position - sampling_phase(factor)) / factor
    first = position.floor()
    result = torch.zeros((), device=low.device, dtype=low.dtype)
    for tap in (0, 1) if kind == "bilinear" else (-1, 0, 1, 2):
        weight = _kernel((position - first - tap).abs(), kind)
        source = (first + tap).long().clamp(0, size - 1)
        result = result + low.index_select(axis, source) * weight.view(-1, *[1] * (3 - axis))
    return result


def _kernel(distance: Tensor, kind: str) -> Tensor:
    """Weight of a sample by its distance in samples: below 1 for bilinear, below 2 for bicubic."""
    if kind == "bilinear":
        return 1 - distance
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    return torch.where(distance <= 1, near, far)


def depth_range(low: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest value and span of each image of (B, 1, h, w), as (B, 1, 1, 1) each; a flat image has the span 1."""
    smallest, largest = low.amin((1, 2, 3), keepdim=True), low.amax((1, 2, 3), keepdim=True)
    span = largest - smallest
    return smallest, torch.where(span > 0, span, torch.ones_like(span))


class DDFUpNet(nn.Module):
    """Upsamples a depth map with an image of the full resolution as guidance.

    From the paper: PAC-Net's shape (Su et al., CVPR 2019) with joint DDF-Up in place of PAC's transposed convolutions:
    convolutions encode the low-resolution depth, others the image, log2(factor) joint DDF-Up layers double the
    resolution, convolutions lead to the depth.

    From PAC-Net's published network, which the paper does not say it changes: three, three and two convolutions of 5x5,
    ReLU after all but the last of each part and after each upsampling, 16 guidance channels of its own for every
    upsampling layer, and depth scaled by the smallest and largest value of the low resolution, image by image.

    Our reading or choice:
        - Guidance comes at the resolution of each layer's output, so that every new pixel has filters of its own;
          the coarser ones by averaging (PAC-Net: bilinear). Official DDF-Up knows the input's resolution only.
        - The result is added to the bilinearly interpolated input, and the last convolution starts at zero: DDF-Up's
          normalized filters do not keep a constant, so that a network without it has to learn the identity first
          (on synthetic scenes it was still behind bicubic interpolation when this one was far ahead).
          In bf16, moreover, only the detail is rounded.
        - 3x3 filters, as elsewhere in the paper (PAC-Net: 5x5), normalized for the ReLU behind them (the official
          DDF-Up: linear), with which it learns faster.

    Args:
        factor: of both axes, a power of 2.
        channels: width of the encoders and the upsampling layers.
        guidance_channels: of the guidance of one upsampling layer.
        kernel_size: of the DDF-Up filters, odd.

    Shape:
        low (B, 1, h, w), meters, no missing values; guidance (B, 3, h * factor, w * factor), RGB normalized ->
        (B, 1, h * factor, w * factor), meters, float32 (float64 for float64 input), in whatever precision runs.

    Raises:
        ValueError: when built: factor is no power of 2, or an argument that `DDFUp` refuses. When called: shapes that
            do not fit.
    """

    def __init__(self, factor: int, *, channels: int = 32, guidance_channels: int = 16, kernel_size: int = 3) -> None:
        super().__init__()
        steps = int(math.log2(max(factor, 1)))
        if factor < 2 or 2**steps != factor:
            raise ValueError(f"factor must be a power of 2, at least 2, got {factor}")
        self.factor, self.steps = factor, steps
        self.depth_encoder = _convolutions(1, channels, channels, channels)
        self.guidance_encoder = _convolutions(3, channels, channels, guidance_channels * steps)
        self.upsampling = nn.ModuleList(
            DDFUp(channels, 2, kernel_size, guidance_channels=guidance_channels, nonlinearity="relu")
            for _ in range(steps)
        )
        self.head = _convolutions(channels, channels, 1)
        for parameter in self.head[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, low: Tensor, guidance: Tensor) -> Tensor:
        self._check(low, guidance)
        if low.dtype != torch.float64:
            low = low.float()
        smallest, span = depth_range(low)
        depth = (low - smallest) / span
        features = self.depth_encoder(depth.to(next(self.head.parameters()).dtype))
        for step, guide in enumerate(self.guidance_encoder(guidance).chunk(self.steps, 1), start=1):
            coarser = self.factor // 2**step
            guide = F.avg_pool2d(guide, coarser) if coarser > 1 else guide
            features = F.relu(self.upsampling[step - 1](features, guide))
        detail = self.head(features).to(low.dtype)
        return (interpolate(depth, self.factor, "bilinear") + detail) * span + smallest

    def _check(self, low: Tensor, guidance: Tensor) -> None:
        if low.dim() != 4 or low.shape[1] != 1:
            raise ValueError(f"low: got shape {tuple(low.shape)}, expected (B, 1, h, w)")
        expected = (low.shape[0], 3, low.shape[2] * self.factor, low.shape[3] * self.factor)
        if tuple(guidance.shape) != expected:
            raise ValueError(
                f"guidance: got shape {tuple(guidance.shape)}, expected {expected} for low of shape "
                f"{tuple(low.shape)} and factor {self.factor}; pad both to whole cells"
            )


def _convolutions(*channels: int) -> nn.Sequential:
    """5x5 convolutions from one width to the next, with ReLU between them."""
    layers: list[nn.Module] = []
    for before, after in pairwise(channels):
        layers += [nn.Conv2d(before, after, 5, padding=2), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers[:-1])
