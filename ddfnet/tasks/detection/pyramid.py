"""The feature pyramid (Lin et al., "Feature Pyramid Networks for Object Detection", CVPR 2017), its upsampling by name.

The names are the rows of table 6 of the DDF paper (Zhou et al., CVPR 2021).
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from ddfnet.layers.carafe import CARAFE
from ddfnet.layers.ddf_up import DDFUp


class PixelShuffleUp(nn.Sequential):
    """A 3x3 convolution to four times the channels, of which each four become 2 x 2 pixels (Shi et al., CVPR 2016)."""

    def __init__(self, channels: int) -> None:
        super().__init__(nn.Conv2d(channels, 4 * channels, 3, padding=1), nn.PixelShuffle(2))


UPSAMPLERS: dict[str, Callable[[int], nn.Module]] = {
    "nearest": lambda channels: nn.Upsample(scale_factor=2, mode="nearest"),
    "bilinear": lambda channels: nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
    "deconv": lambda channels: nn.ConvTranspose2d(channels, channels, 3, stride=2, padding=1, output_padding=1),
    "pixelshuffle": PixelShuffleUp,
    "carafe": lambda channels: CARAFE(channels, 2),
    "ddfup": lambda channels: DDFUp(channels, 2),
}


def upsampler(name: str, channels: int) -> nn.Module:
    """A module (B, channels, H, W) -> (B, channels, 2 H, 2 W).

    Multiply-adds per low-resolution pixel at 256 channels: nearest 0, deconv 589,824, pixelshuffle 2,359,296, carafe
    99,584, ddfup 27,648 and its channel branch once per image. ValueError for an unknown name.
    """
    if name not in UPSAMPLERS:
        raise ValueError(f"upsampling: got {name!r}, expected one of {', '.join(UPSAMPLERS)}")
    module = UPSAMPLERS[name](channels)
    if name in ("deconv", "pixelshuffle"):  # the others bring their own start
        _initialize(module)
    return module


class FeaturePyramid(nn.Module):
    """Levels of a backbone, finest first, brought to one width and summed from the coarsest down.

    Each level passes a 1x1 convolution and gets the upsampled sum of the coarser ones added; a 3x3 convolution of the
    sum is the output. One level more takes every second pixel of the coarsest output, as in torchvision's pyramid.
    Each step down has an upsampler of its own. Weights start as in torchvision.

    A level need not be twice as large as the next: strided layers round an odd size up (25 -> 13), and the upsampled
    level (26) is then cut at the bottom and right. Pixel (i, j) of the coarser level stems from (2i, 2j) of the finer
    one, so a cut keeps them together, while a resize to 25 would shift the whole level.

    Args:
        in_channels: of the backbone's levels, finest first.
        channels: of all levels of the pyramid.
        upsampling: see `upsampler`.

    Shape:
        n tensors (B, in_channels[i], H_i, W_i) -> ordered dictionary of n + 1 tensors (B, channels, H_i, W_i) under
        "0", "1", ..., "pool", the names that torchvision's detectors look for.

    Raises:
        ValueError: when built: no level, or an unknown upsampling. When called: another number of levels, or a level
            more than twice as large as the next.
    """

    def __init__(self, in_channels: Sequence[int], channels: int = 256, upsampling: str = "nearest") -> None:
        super().__init__()
        if not in_channels:
            raise ValueError("in_channels: got no level, expected at least one")
        self.lateral = nn.ModuleList(nn.Conv2d(width, channels, 1) for width in in_channels)
        self.output = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in in_channels)
        for convolutions in (self.lateral, self.output):
            _initialize(convolutions)
        self.upsample = nn.ModuleList(upsampler(upsampling, channels) for _ in in_channels[1:])

    def forward(self, levels: Sequence[Tensor]) -> OrderedDict[str, Tensor]:
        if len(levels) != len(self.lateral):
            raise ValueError(f"levels: got {len(levels)}, expected {len(self.lateral)}, finest first")
        sums = [lateral(level) for lateral, level in zip(self.lateral, levels, strict=True)]
        for i in range(len(sums) - 2, -1, -1):
            sums[i] = sums[i] + _cut(self.upsample[i](sums[i + 1]), sums[i])
        outputs = [conv(level) for conv, level in zip(self.output, sums, strict=True)]
        names = [*map(str, range(len(outputs))), "pool"]
        return OrderedDict(zip(names, [*outputs, F.max_pool2d(outputs[-1], 1, stride=2)], strict=True))


def _cut(upsampled: Tensor, finer: Tensor) -> Tensor:
    """The top left part of the size of the finer level."""
    (high, wide), (height, width) = upsampled.shape[2:], finer.shape[2:]
    if not (0 <= high - height <= 1 and 0 <= wide - width <= 1):
        raise ValueError(
            f"levels: got one of {height} x {width} pixels before one of {high // 2} x {wide // 2}, expected it to be "
            "twice as large, or a pixel less where that is odd"
        )
    return upsampled[..., :height, :width]


def _initialize(module: nn.Module) -> None:
    for m in module.modules():
        if isinstance(m, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_uniform_(m.weight, a=1)
            if m.bias is not None:
                nn.init.zeros_(m.bias)
