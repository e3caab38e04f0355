"""Convolutions with one filter set per sample: CondConv (Yang et al., 2019) and WeightNet (Ma et al., 2020)."""

from typing import Any

import torch
from timm.layers import CondConv2d
from torch import Tensor, nn

from ddfnet.layers.checks import check_at_least, check_kernel_size, describe
from ddfnet.layers.tracing import TracedAsLeaf
from ddfnet.ops.common import memory_format_of
from ddfnet.ops.ddf import ddf


class DepthwiseCondConv(TracedAsLeaf):
    """Depthwise CondConv (Yang et al., "CondConv", NeurIPS 2019, section 3).

    Each sample is filtered with a weighted sum of learned depthwise filters, the experts. The weights are the sigmoid
    of a linear function of the globally averaged input. `ddfnet.ddf` applies the sum, with no spatial filter.

    Args:
        channels: C, input and output channels.
        kernel_size: k, odd.
        stride, dilation: as for `nn.Conv2d`; the padding is dilation * (k // 2).
        experts: filters in the sum.

    Shape:
        (B, C, H, W) -> (B, C, ceil(H / stride), ceil(W / stride)), same memory format.

    Raises:
        ValueError: a kernel size that is even or 1, or fewer than one expert.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int = 3,
        *,
        stride: int = 1,
        dilation: int = 1,
        experts: int = 8,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_kernel_size(kernel_size)
        check_at_least("experts", experts)
        self.channels, self.kernel_size, self.stride, self.dilation = channels, kernel_size, stride, dilation
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.routing = nn.Linear(channels, experts, **factory)
        self.experts = nn.Parameter(torch.empty(experts, channels, kernel_size, kernel_size, **factory))
        # as nn.Conv2d starts a depthwise filter: 1 / sqrt(fan_in), and the fan-in is k * k
        nn.init.uniform_(self.experts, -1 / kernel_size, 1 / kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        if (node := self.traced(x)) is not None:
            return node
        routing = self.routing(x.mean((2, 3))).sigmoid()
        filters = (routing @ self.experts.flatten(1)).unflatten(1, self.experts.shape[1:])
        return ddf(x, filters, None, stride=self.stride, dilation=self.dilation)

    def extra_repr(self) -> str:
        return f"{describe(self, 'kernel_size', 'stride', 'dilation')}, experts={self.experts.shape[0]}"


class DepthwiseWeightNet(TracedAsLeaf):
    """Depthwise WeightNet (Ma et al., "WeightNet", ECCV 2020, section 3, with M / G = 1).

    Global average pooling, two 1x1 convolutions C -> max(16, C // reduction) -> C, a sigmoid and a grouped 1x1
    convolution C -> C*k*k predict one filter per channel and sample: each filter is a learned one, scaled by a number
    between 0 and 1. `ddfnet.ddf` applies them, with no spatial filter. As in the authors' code, the first two
    convolutions have biases, the grouped one has none, and nothing stands between the first two.

    Args:
        channels: C, input and output channels.
        kernel_size: k, odd.
        stride, dilation: as for `nn.Conv2d`; the padding is dilation * (k // 2).
        reduction: the branch has max(16, C // reduction) hidden channels.

    Shape:
        (B, C, H, W) -> (B, C, ceil(H / stride), ceil(W / stride)), same memory format.

    Raises:
        ValueError: a kernel size that is even or 1, or a reduction below 1.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int = 3,
        *,
        stride: int = 1,
        dilation: int = 1,
        reduction: int = 16,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_kernel_size(kernel_size)
        check_at_least("reduction", reduction)
        self.channels, self.kernel_size, self.stride, self.dilation = channels, kernel_size, stride, dilation
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        hidden = max(16, channels // reduction)
        self.filter_branch = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, hidden, 1, **factory),
            nn.Conv2d(hidden, channels, 1, **factory),
            nn.Sigmoid(),
            nn.Conv2d(channels, channels * kernel_size**2, 1, groups=channels, bias=False, **factory),
        )

    def forward(self, x: Tensor) -> Tensor:
        if (node := self.traced(x)) is not None:
            return node
        filters = self.filter_branch(x).view(-1, self.channels, self.kernel_size, self.kernel_size)
        return ddf(x, filters, None, stride=self.stride, dilation=self.dilation)

    def extra_repr(self) -> str:
        return describe(self, "kernel_size", "stride", "dilation")


class CondConv(TracedAsLeaf):
    """CondConv (Yang et al., "CondConv", NeurIPS 2019, section 3): timm's `CondConv2d` with its routing.

    A dense convolution: `ddfnet.ddf`, which sums over no channels, has no part in it.

    Args:
        in_channels, out_channels: as for `nn.Conv2d`.
        kernel_size: k, odd.
        stride, dilation: as for `nn.Conv2d`; the padding is dilation * (k // 2).
        experts: convolutions in the weighted sum.

    Shape:
        (B, in_channels, H, W) -> (B, out_channels, ceil(H / stride), ceil(W / stride)), same memory format.

    Raises:
        ValueError: a kernel size that is even or 1, or fewer than one expert.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        *,
        stride: int = 1,
        dilation: int = 1,
        experts: int = 8,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_kernel_size(kernel_size)
        check_at_least("experts", experts)
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.routing = nn.Linear(in_channels, experts, **factory)
        self.conv = CondConv2d(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding=dilation * (kernel_size // 2),  # timm's own choice depends on the stride, and on 3 is another
            dilation=dilation,
            num_experts=experts,
            **factory,
        )

    def forward(self, x: Tensor) -> Tensor:
        if (node := self.traced(x)) is not None:
            return node
        routing = self.routing(x.mean((2, 3))).sigmoid()
        # timm's convolution puts the samples side by side as channels, so its output is never channels_last
        return self.conv(x, routing).contiguous(memory_format=memory_format_of(x))
