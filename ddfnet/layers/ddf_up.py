"""The DDF-Up layer: upsampling with filters predicted from the input, or from a guidance feature."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddfnet.layers.ddf import channel_branch, check_heads
from ddfnet.layers.filter_norm import check_kernel_size, normalization_layer
from ddfnet.ops.common import autocast
from ddfnet.ops.ddf import ddf_up


class DDFUp(nn.Module):
    """DDF upsampling (Zhou et al., CVPR 2021, section 6): scale * scale pairs of branches, one for each new pixel.

    Each pair is that of `DDF`: spatial filters, one per pixel of x and head, and channel filters, one per channel,
    from the globally pooled x. The spatial filters are predicted by a depthwise and a 1x1 convolution of x (plain
    mode) or by a 1x1 convolution of a guidance feature (joint mode). `ddfnet.ops.ddf_up` combines and applies them.
    Parameter names are those of the official `DDFUpPack`, whose state_dict loads strictly. That code pads the depthwise
    convolution with kernel_size // 2; here its padding is that of its own size.

    Args:
        channels: C, input and output channels.
        scale: how many new pixels an old one becomes along each axis; 2 or more.
        kernel_size: k, odd.
        heads: number of spatial filters; channel c uses filter c // (C / heads).
        squeeze_ratio: the channel branches have int(C * squeeze_ratio) hidden channels.
        combine: `mul` or `add`, how the two filters meet.
        guidance_channels: those of the guidance (joint mode), or None (plain mode).
        depthwise_kernel_size: of plain mode's depthwise convolutions, odd; without effect in joint mode.
        normalization, nonlinearity: see `DDF`.
        dilation: of the filters that are applied, in pixels of x; not of the depthwise convolutions.

    Shape:
        x (B, C, H, W) -> (B, C, H * scale, W * scale), same memory format. Guidance: (B, guidance_channels, H, W) or
        (B, guidance_channels, H * scale, W * scale). The larger one is not resized: each new pixel reads the filters
        that its own guidance pixel predicts.

    Raises:
        ValueError: when built: an even kernel size or 1, heads that do not divide the channels, a squeeze ratio that
            leaves no hidden channel, an unknown combine or normalization, a scale below 2, or another size below 1.
            When called: an input or a guidance that does not fit, is missing or was not asked for.
        TypeError: a scale, kernel size or heads that are no int, or a squeeze ratio that is no number.
    """

    def __init__(
        self,
        channels: int,
        scale: int = 2,
        kernel_size: int = 3,
        *,
        heads: int = 1,
        squeeze_ratio: float = 0.2,
        combine: Literal["mul", "add"] = "mul",
        guidance_channels: int | None = None,
        depthwise_kernel_size: int = 3,
        normalization: Literal["filter", "batch", "sigmoid"] = "filter",
        nonlinearity: str = "linear",
        dilation: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_scale(scale)
        check_kernel_size(kernel_size)
        check_heads(heads, channels)
        if combine not in ("mul", "add"):
            raise ValueError(f"combine must be 'mul' or 'add', got {combine!r}")
        if guidance_channels is not None and guidance_channels < 1:
            raise ValueError(f"guidance_channels: got {guidance_channels}, expected at least 1, or None for plain mode")
        if depthwise_kernel_size < 1 or depthwise_kernel_size % 2 == 0:
            raise ValueError(f"depthwise_kernel_size: got {depthwise_kernel_size}, expected an odd number")
        if dilation < 1:
            raise ValueError(f"dilation: got {dilation}, expected at least 1")
        self.channels, self.scale, self.kernel_size, self.heads = channels, scale, kernel_size, heads
        self.combine, self.guidance_channels, self.dilation = combine, guidance_channels, dilation
        factory = {"device": device, "dtype": dtype}
        options = {"normalization": normalization, "nonlinearity": nonlinearity, **factory}

        def spatial_branch() -> nn.Sequential:
            source = channels if guidance_channels is None else guidance_channels
            predict = nn.Sequential(
                nn.Conv2d(source, heads * kernel_size**2, 1, **factory),
                normalization_layer(channels=heads, kernel_size=kernel_size, kind="spatial", **options),
            )
            if guidance_channels is not None:
                return predict
            size = depthwise_kernel_size
            return nn.Sequential(
                nn.Conv2d(channels, channels, size, padding=size // 2, groups=channels, **factory), predict
            )

        self.spatial_branch = nn.ModuleList(spatial_branch() for _ in range(scale**2))
        self.channel_branch = nn.ModuleList(
            channel_branch(channels, kernel_size, squeeze_ratio=squeeze_ratio, **options) for _ in range(scale**2)
        )

    def forward(self, x: Tensor, guidance: Tensor | None = None) -> Tensor:
        self._check_inputs(x, guidance)
        x, guidance = autocast(x), autocast(guidance)  # once, and not in each branch
        pooled = F.adaptive_avg_pool2d(x, 1)
        sources = self._sources(x, guidance)
        spatial_filter = torch.cat([b(source) for b, source in zip(self.spatial_branch, sources, strict=True)], 1)
        # x is pooled once; the pooling layer of each branch has nothing left to do
        channel_filter = torch.stack([branch(pooled) for branch in self.channel_branch], 1)
        return ddf_up(
            x,
            channel_filter.reshape(x.shape[0], self.scale**2, self.channels, self.kernel_size, self.kernel_size),
            spatial_filter,
            scale=self.scale,
            dilation=self.dilation,
            combine=self.combine,
        )

    def _sources(self, x: Tensor, guidance: Tensor | None) -> list[Tensor]:
        """What each spatial branch reads, at the size of x."""
        if guidance is None or guidance.shape[2:] == x.shape[2:]:
            return [x if guidance is None else guidance] * self.scale**2
        s = self.scale
        return [guidance[:, :, a::s, e::s] for a in range(s) for e in range(s)]

    def _check_inputs(self, x: Tensor, guidance: Tensor | None) -> None:
        if x.dim() != 4 or x.shape[1] != self.channels:
            raise ValueError(f"x: got shape {tuple(x.shape)}, expected (B, {self.channels}, H, W)")
        if self.guidance_channels is None:
            if guidance is None:
                return
            raise ValueError(
                f"guidance: got shape {tuple(guidance.shape)}, expected None in plain mode; build the layer with "
                "guidance_channels to use it"
            )
        low = (x.shape[0], self.guidance_channels, *x.shape[2:])
        high = (*low[:2], x.shape[2] * self.scale, x.shape[3] * self.scale)
        if guidance is None or tuple(guidance.shape) not in (low, high):
            got = "None" if guidance is None else f"shape {tuple(guidance.shape)}"
            raise ValueError(
                f"guidance: got {got}, expected {low} or {high}, for x of shape {tuple(x.shape)} and scale "
                f"{self.scale}; resize it, or build the layer with other guidance_channels (None: needs no guidance)"
            )

    def extra_repr(self) -> str:
        text = f"{self.channels}, scale={self.scale}, kernel_size={self.kernel_size}, dilation={self.dilation}"
        return f"{text}, heads={self.heads}, combine={self.combine!r}, guidance_channels={self.guidance_channels}"


def check_scale(scale: int) -> None:
    """Raises TypeError or ValueError unless this is a number of new pixels along an axis: a whole one, at least 2."""
    if isinstance(scale, bool) or not isinstance(scale, int):
        raise TypeError(f"scale: got {scale!r} of type {type(scale).__name__}, expected an int")
    if scale < 2:
        raise ValueError(f"scale: got {scale}, expected at least 2")
