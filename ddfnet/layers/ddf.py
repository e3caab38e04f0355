"""The DDF layer: filters predicted from the input, then applied to it."""

from typing import Literal

import torch
from torch import Tensor, nn

from ddfnet.layers.filter_norm import FilterNorm, check_kernel_size
from ddfnet.ops import ddf
from ddfnet.ops.ddf import autocast
from ddfnet.ops.spatial_filters import fusible, spatial_filters


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
        fused_filters: on CUDA, predict the spatial filters and pool x in one kernel where that applies: channels_last
            in half precision, or in float32 with one head of 3x3 taps. Same parameters, and the same numbers but for
            rounding: the kernel keeps in float32 what the layers round to the dtype of x. It has no second-order
            gradients. Also an attribute, to switch it later.

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
        fused_filters: bool = True,
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
        self.stride, self.dilation, self.combine, self.fused_filters = stride, dilation, combine, fused_filters
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
        cast = autocast(x)
        if self.fused_filters and fusible(cast, self.kernel_size, self.heads) and not self._is_customised():
            conv, norm = self.spatial_branch
            spatial_filter, pooled = spatial_filters(
                cast,
                conv.weight,
                conv.bias,
                kernel_size=self.kernel_size,
                heads=self.heads,
                stride=self.stride,
                alpha=norm.std,
            )
            x = cast  # what the kernel saved for backward is what the operator saves
            channel_filter = pooled[..., None, None].to(x.dtype)
            for layer in list(self.channel_branch)[1:]:
                channel_filter = layer(channel_filter)
        else:
            channel_filter = self.channel_branch(x)
            spatial_filter = self.spatial_branch(x)
        channel_filter = channel_filter.view(-1, self.channels, self.kernel_size, self.kernel_size)
        return ddf(x, channel_filter, spatial_filter, stride=self.stride, dilation=self.dilation, combine=self.combine)

    def _is_customised(self) -> bool:
        """Whether the layers that the fused kernel replaces were exchanged or hooked (quantised, adapted, counted)."""
        pool, conv, norm = self.channel_branch[0], *self.spatial_branch
        replaced = type(conv) is not nn.Conv2d or type(norm) is not FilterNorm or type(pool) is not nn.AdaptiveAvgPool2d
        return replaced or any(
            layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks
            for layer in (pool, conv, norm, self.spatial_branch, self.channel_branch)
        )

    def extra_repr(self) -> str:
        return (
            f"{self.channels}, kernel_size={self.kernel_size}, stride={self.stride}, dilation={self.dilation}, "
            f"heads={self.heads}, combine={self.combine!r}"
        )
