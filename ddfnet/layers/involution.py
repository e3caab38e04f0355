"""Involution: filters predicted at each pixel, shared by groups of channels (Li et al., CVPR 2021)."""

from typing import Any

import torch
from torch import Tensor, nn

from ddfnet.layers.as_convolution import explains_arguments
from ddfnet.layers.checks import check_divides, check_kernel_size, check_reduction, describe
from ddfnet.layers.tracing import TracedAsLeaf
from ddfnet.ops.ddf import ddf


class Involution(TracedAsLeaf):
    """Involution (Li et al., "Involution: Inverting the Inherence of Convolution", CVPR 2021, section 3).

    A 1x1 convolution to channels / reduction, batch normalization, ReLU and a second 1x1 convolution predict one
    k x k filter per pixel and group of channels; `ddfnet.ddf` applies them, with no channel filter. At stride s they
    are predicted from the input averaged over s x s pixels.

    Args:
        channels: C, input and output channels.
        kernel_size: k, odd.
        stride, dilation: as for `nn.Conv2d`; the padding is dilation * (k // 2).
        group_channels: channels that share a filter; C / group_channels filters per pixel.
        reduction: the filter branch has C // reduction hidden channels.

    Shape:
        (B, C, H, W) -> (B, C, ceil(H / stride), ceil(W / stride)), same memory format.

    Raises:
        ValueError: a kernel size that is even or 1, group channels that do not divide the channels, or a reduction
            that leaves no hidden channel.
    """

    @explains_arguments
    def __init__(
        self,
        channels: int,
        kernel_size: int = 7,
        *,
        stride: int = 1,
        dilation: int = 1,
        group_channels: int = 16,
        reduction: int = 4,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_kernel_size(kernel_size)
        check_divides("group_channels", group_channels, channels)
        check_reduction(reduction, channels)
        self.channels, self.kernel_size, self.heads = channels, kernel_size, channels // group_channels
        self.stride, self.dilation = stride, dilation
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        hidden = channels // reduction
        self.filter_branch = nn.Sequential(
            # ceil_mode: an odd size needs a filter for its last, partly covered window as well
            nn.AvgPool2d(stride, ceil_mode=True) if stride > 1 else nn.Identity(),
            nn.Conv2d(channels, hidden, 1, bias=False, **factory),
            nn.BatchNorm2d(hidden, **factory),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, self.heads * kernel_size**2, 1, **factory),
        )

    def forward(self, x: Tensor) -> Tensor:
        if (node := self.traced(x)) is not None:
            return node
        filters = self.filter_branch(x)
        return ddf(x, None, filters, kernel_size=self.kernel_size, stride=self.stride, dilation=self.dilation)

    def extra_repr(self) -> str:
        return describe(self, "kernel_size", "stride", "dilation", "heads")
