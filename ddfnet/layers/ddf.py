"""The DDF layer: filters predicted from the input, then applied to it."""

from typing import Literal

import torch
from torch import Tensor, nn

from ddfnet.layers.filter_norm import FilterNorm, check_kernel_size
from ddfnet.ops import ddf


class DDF(nn.Module):
    """Decoupled dynamic filter: a drop-in for a k x k convolution with equal input and output channels.

    A 1x1 convolution predicts one k x k filter per pixel and head (spatial branch); global average pooling and two
    1x1 convolutions predict one per channel (channel branch). Both are normalised and combined by `ddfnet.ddf`
    (Zhou et al., CVPR 2021, eq. 2 and figure 3). Parameter names are those of the official `DDFPack`, whose
    state_dict loads strictly.

    Args:
        channels: C, input and output channels.
        kernel_size: k, odd.
        stride, dilation: as for `nn.Conv2d`; the padding is dilation * (k // 2).
        heads: number of spatial filters; channel c uses filter c // (C / heads).
        squeeze_ratio: sigma; the channel branch has int(C * sigma) hidden channels.
        combine: `mul` or `add`, how the two filters meet.
        nonlinearity: what follows the layer, for the gain of the filter normalisation.

    Shape:
        (B, C, H, W) -> (B, C, ceil(H / stride), ceil(W / stride)), same memory format.

    Raises:
        ValueError: an even kernel size or 1, heads that do not divide the channels, a squeeze ratio that leaves no
            hidden channel, or an unknown combine.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int = 3,
        *,
        stride: int = 1,
        dilation: int = 1,
        heads: int = 1,
        squeeze_ratio: float = 0.2,
        combine: Literal["mul", "add"] = "mul",
        nonlinearity: str = "relu",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if heads < 1 or channels % heads:
            raise ValueError(f"heads must divide the channels: got {heads} heads for {channels} channels")
        if combine not in ("mul", "add"):
            raise ValueError(f"combine must be 'mul' or 'add', got {combine!r}")
        hidden = int(channels * squeeze_ratio)
        if hidden < 1:
            raise ValueError(
                f"squeeze_ratio={squeeze_ratio} leaves no hidden channel of {channels}: "
                f"give at least {1 / channels:.3g}"
            )
        check_kernel_size(kernel_size)
        self.channels, self.kernel_size, self.heads = channels, kernel_size, heads
        self.stride, self.dilation, self.combine = stride, dilation, combine
        factory = {"device": device, "dtype": dtype}
        taps = kernel_size**2
        self.spatial_branch = nn.Sequential(
            nn.Conv2d(channels, heads * taps, 1, stride=stride, **factory),
            FilterNorm(heads, kernel_size, "spatial", nonlinearity=nonlinearity),
        )
        self.channel_branch = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, hidden, 1, **factory),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, channels * taps, 1, **factory),
            FilterNorm(channels, kernel_size, "channel", nonlinearity=nonlinearity, **factory),
        )

    def forward(self, x: Tensor) -> Tensor:
        channel_filter = self.channel_branch(x).view(-1, self.channels, self.kernel_size, self.kernel_size)
        spatial_filter = self.spatial_branch(x)
        return ddf(x, channel_filter, spatial_filter, stride=self.stride, dilation=self.dilation, combine=self.combine)

    def extra_repr(self) -> str:
        return (
            f"{self.channels}, kernel_size={self.kernel_size}, stride={self.stride}, dilation={self.dilation}, "
            f"heads={self.heads}, combine={self.combine!r}"
        )
