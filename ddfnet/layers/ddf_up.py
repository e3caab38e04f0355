"""The DDF-Up layer: upsampling with filters predicted from the input, or from a guidance feature."""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddfnet.layers.checks import (
    check_at_least,
    check_choice,
    check_divides,
    check_input,
    check_int,
    check_kernel_size,
    check_odd,
    check_scale,
    describe,
)
from ddfnet.layers.ddf import channel_branch
from ddfnet.layers.filter_norm import normalization_layer
from ddfnet.layers.tracing import TracedAsLeaf
from ddfnet.ops.common import autocast
from ddfnet.ops.ddf import ddf_up


class DDFUp(TracedAsLeaf):
    """DDF upsampling (Zhou et al., CVPR 2021, section 6): scale * scale pairs of branches, one for each phase.

    The phases of a pixel are the output pixels it becomes. Each pair of branches is that of `DDF`: spatial filters, one
    per pixel of x and head, and channel filters, one per channel, from the globally pooled x. The spatial filters are
    predicted by a depthwise and a 1x1 convolution of x (plain mode) or by a 1x1 convolution of a guidance feature
    (joint mode). `ddfnet.ddf_up` combines and applies them. Parameter names are those of the official `DDFUpPack`,
    whose state_dict loads strictly. That code pads the depthwise convolution with kernel_size // 2; here its padding is
    that of its own size.

    Args:
        channels: C, input and output channels.
        scale: the upscale factor, an int of 2 or more.
        kernel_size: k, odd.
        heads: number of spatial filters; channel c uses filter c // (C / heads).
        squeeze_ratio: the channel branches have int(C * squeeze_ratio) hidden channels.
        combine: `mul` or `add`, how the two filters are combined.
        guidance_channels: those of the guidance (joint mode), or None (plain mode).
        depthwise_kernel_size: of plain mode's depthwise convolutions, odd; without effect in joint mode.
        normalization, nonlinearity: see `DDF`.
        dilation: of the filters that are applied, in pixels of x; not of the depthwise convolutions.

    Shape:
        x (B, C, H, W) -> (B, C, H * scale, W * scale), same memory format. Guidance: (B, guidance_channels, H, W) or
        (B, guidance_channels, H * scale, W * scale). The larger one is not resized: each output pixel has the
        filters that its own guidance pixel predicts.

    Raises:
        ValueError, TypeError: when built: an argument that does not fit; when called: an input or a guidance that does
            not fit, is missing or was not asked for. The message names it.
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
        check_int("heads", heads)
        check_divides("heads", heads, channels)
        check_choice("combine", combine, ("mul", "add"))
        if guidance_channels is not None and guidance_channels < 1:
            raise ValueError(f"guidance_channels: got {guidance_channels}, expected at least 1, or None for plain mode")
        check_odd("depthwise_kernel_size", depthwise_kernel_size)
        check_at_least("dilation", dilation)
        self.channels, self.scale, self.kernel_size, self.heads = channels, scale, kernel_size, heads
        self.combine, self.guidance_channels, self.dilation = combine, guidance_channels, dilation
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        options: dict[str, Any] = {"normalization": normalization, "nonlinearity": nonlinearity, **factory}

        def spatial_branch() -> nn.Sequential:
            predict = nn.Sequential(
                nn.Conv2d(guidance_channels or channels, heads * kernel_size**2, 1, **factory),
                normalization_layer(channels=heads, kernel_size=kernel_size, kind="spatial", **options),
            )
            if guidance_channels is not None:
                return predict
            size = depthwise_kernel_size
            depthwise = nn.Conv2d(channels, channels, size, padding=size // 2, groups=channels, **factory)
            return nn.Sequential(depthwise, predict)

        self.spatial_branch = nn.ModuleList(spatial_branch() for _ in range(scale**2))
        self.channel_branch = nn.ModuleList(
            channel_branch(channels, kernel_size, squeeze_ratio=squeeze_ratio, **options) for _ in range(scale**2)
        )

    def forward(self, x: Tensor, guidance: Tensor | None = None) -> Tensor:
        if (node := self.traced(x, guidance)) is not None:
            return node
        self._check_inputs(x, guidance)
        x, guidance = autocast(x), autocast(guidance)  # once, and not in each branch
        spatial_filter, channel_filter = self.predict_filters(x, guidance)
        scale, dilation, combine = self.scale, self.dilation, self.combine
        return ddf_up(x, channel_filter, spatial_filter, scale=scale, dilation=dilation, combine=combine)

    def predict_filters(self, x: Tensor, guidance: Tensor | None) -> tuple[Tensor, Tensor]:
        """Spatial filters (B, scale^2 * heads * k^2, H, W) and channel filters (B, scale^2, C, k, k)."""
        pooled = F.adaptive_avg_pool2d(x, 1)
        sources = self._sources(x, guidance)
        spatial_filter = torch.cat([b(source) for b, source in zip(self.spatial_branch, sources, strict=True)], 1)
        # x is pooled once; the pooling layer of each branch has nothing left to do
        channel_filter = torch.stack([branch(pooled) for branch in self.channel_branch], 1)
        size = (x.shape[0], self.scale**2, self.channels, self.kernel_size, self.kernel_size)
        return spatial_filter, channel_filter.reshape(size)

    def _sources(self, x: Tensor, guidance: Tensor | None) -> list[Tensor]:
        """The input of each spatial branch, at the size of x."""
        if guidance is None or guidance.shape[2:] == x.shape[2:]:
            return [x if guidance is None else guidance] * self.scale**2
        s = self.scale
        return [guidance[:, :, a::s, e::s] for a in range(s) for e in range(s)]

    def _check_inputs(self, x: Tensor, guidance: Tensor | None) -> None:
        check_input(x, self.channels)
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
        return describe(self, "scale", "kernel_size", "dilation", "heads", "combine", "guidance_channels")
