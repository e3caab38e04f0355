"""The DDF layer: filters predicted from the input, then applied to it."""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from ddfnet.layers.as_convolution import explains_arguments
from ddfnet.layers.checks import (
    check_at_least,
    check_choice,
    check_divides,
    check_input,
    check_int,
    check_kernel_size,
    describe,
)
from ddfnet.layers.filter_norm import FilterNorm, normalization_layer
from ddfnet.layers.tracing import TracedAsLeaf
from ddfnet.ops.common import autocast
from ddfnet.ops.ddf import ddf
from ddfnet.ops.ddf_layer.arguments import Settings, Weights, fusible
from ddfnet.ops.ddf_layer.autograd import ddf_layer

_CHANNEL_LAYERS = (nn.AdaptiveAvgPool2d, nn.Conv2d, nn.ReLU, nn.Conv2d, FilterNorm)
_FUSED_LAYERS = (nn.Conv2d, FilterNorm, *_CHANNEL_LAYERS)


class DDF(TracedAsLeaf):
    """Decoupled dynamic filter: a drop-in for a k x k convolution with equal input and output channels.

    A 1x1 convolution predicts one k x k filter per pixel and head (spatial branch); global average pooling and two
    1x1 convolutions predict one per channel (channel branch). Both are normalized and combined by `ddfnet.ddf`
    (Zhou et al., CVPR 2021, eq. 2 and figure 3). Parameter names are those of the official `DDFPack`, whose
    state_dict loads strictly.

    Args:
        channels: C, input and output channels.
        kernel_size: k, odd.
        stride, dilation: as for `nn.Conv2d`; the padding is dilation * (k // 2).
        heads: number of spatial filters; channel c uses filter c // (C / heads).
        squeeze_ratio: sigma; the channel branch has int(C * sigma) hidden channels. None: 0.2.
        combine: `mul` or `add`, how the two filters are combined.
        filters: `both`, or only the `spatial` or the `channel` ones (table 3); the absent branch is None, and
            `combine` has nothing to act on.
        normalization: of the predicted filters: `filter` (`FilterNorm`), or the baselines of table 3, `batch`
            and `sigmoid`. `batch` normalizes the channel filters over the images alone: training needs at least two.
        nonlinearity: what follows the layer, for the gain of the filter normalization.
        fused_filters: on CUDA, run the whole layer as one operator where that applies: channels_last in half precision,
            or in float32 with one head of 3x3 taps. Same parameters, and the same numbers but for rounding: the
            operator keeps in float32 what the layers round to the dtype of x. It has no second-order gradients. Also
            an attribute, to switch it later.

    Shape:
        (B, C, H, W) -> (B, C, ceil(H / stride), ceil(W / stride)), same memory format.

    Raises:
        ValueError, TypeError: an argument that does not fit, such as heads that do not divide the channels, a squeeze
            ratio that leaves no hidden channel, or either of them without its branch; the message names it.
    """

    @explains_arguments
    def __init__(
        self,
        channels: int,
        kernel_size: int = 3,
        *,
        stride: int = 1,
        dilation: int = 1,
        heads: int = 1,
        squeeze_ratio: float | None = None,
        combine: Literal["mul", "add"] = "mul",
        filters: Literal["both", "spatial", "channel"] = "both",
        normalization: Literal["filter", "batch", "sigmoid"] = "filter",
        nonlinearity: str = "relu",
        fused_filters: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("channels", channels), ("stride", stride), ("dilation", dilation), ("heads", heads)):
            check_int(name, value)
            check_at_least(name, value)
        check_divides("heads", heads, channels)
        check_choice("combine", combine, ("mul", "add"))
        check_choice("filters", filters, ("both", "spatial", "channel"))
        if filters == "channel" and heads > 1:
            raise ValueError(f"heads share spatial filters, and filters='channel' has none: got {heads} heads")
        if filters == "spatial" and squeeze_ratio is not None:
            raise ValueError(f"filters='spatial' has no channel branch to squeeze: got squeeze_ratio={squeeze_ratio}")
        check_kernel_size(kernel_size)
        self.channels, self.kernel_size, self.heads = channels, kernel_size, heads
        self.stride, self.dilation, self.combine, self.fused_filters = stride, dilation, combine, fused_filters
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        norm: dict[str, Any] = {"normalization": normalization, "nonlinearity": nonlinearity, **factory}
        self.spatial_branch: Any = None
        self.channel_branch: Any = None
        if filters != "channel":
            self.spatial_branch = nn.Sequential(
                nn.Conv2d(channels, heads * kernel_size**2, 1, stride=stride, **factory),
                normalization_layer(channels=heads, kernel_size=kernel_size, kind="spatial", **norm),
            )
        if filters != "spatial":
            ratio = 0.2 if squeeze_ratio is None else squeeze_ratio
            self.channel_branch = channel_branch(channels, kernel_size, squeeze_ratio=ratio, **norm)

    def forward(self, x: Tensor) -> Tensor:
        if (node := self.traced(x)) is not None:
            return node
        check_input(x, self.channels)
        k, cast = self.kernel_size, autocast(x)
        if self.is_fused(cast):
            return ddf_layer(cast, *self.operands())
        channel_filter: Tensor | None = self.channel_branch(x) if self.channel_branch is not None else None
        spatial_filter: Tensor | None = self.spatial_branch(x) if self.spatial_branch is not None else None
        if channel_filter is not None:
            channel_filter = channel_filter.view(-1, self.channels, k, k)
        stride, dilation, combine = self.stride, self.dilation, self.combine
        return ddf(x, channel_filter, spatial_filter, stride=stride, dilation=dilation, combine=combine, kernel_size=k)

    def is_fused(self, x: Tensor) -> bool:
        """Whether one operator computes the layer for x, which has the dtype of the autocast region it is in."""
        applies = self.fused_filters and fusible(x, self.kernel_size, self.heads)
        return applies and self._is_as_built() and self._fits(x)

    def operands(self) -> tuple[Weights, Settings]:
        """The layer as that operator takes it."""
        (conv, norm), (_, squeeze, _, excite, channel_norm) = self.spatial_branch, self.channel_branch
        weights = (conv.weight, conv.bias, squeeze.weight, squeeze.bias, excite.weight, excite.bias, channel_norm.std)
        multiply = self.combine == "mul"
        settings = Settings(self.kernel_size, self.stride, self.dilation, self.heads, multiply, norm.std)
        return Weights(*weights), settings

    def _fits(self, x: Tensor) -> bool:
        """Whether the weights have the dtype of x, or autocast allows others, as the separate layers ask for."""
        return torch.is_autocast_enabled(x.device.type) or self.spatial_branch[0].weight.dtype == x.dtype

    def _is_as_built(self) -> bool:
        """Whether no layer that the operator replaces is another (ablations, quantized, adapted), patched or hooked."""
        if self.channel_branch is None or self.spatial_branch is None or nn.modules.module._has_any_global_hook():
            return False
        layers = (*self.spatial_branch, *self.channel_branch)
        if tuple(map(type, layers)) != _FUSED_LAYERS:
            return False
        conv, norm, pool, squeeze, _, excite, channel_norm = layers
        if (norm.kind, channel_norm.kind) != ("spatial", "channel") or pool.output_size not in (1, (1, 1)):
            return False
        strides = zip((conv, squeeze, excite), (self.stride, 1, 1), strict=True)
        if not all(_is_pointwise(layer, stride) for layer, stride in strides):
            return False
        return not any(map(is_watched, (*layers, self.spatial_branch, self.channel_branch)))

    def extra_repr(self) -> str:
        text = describe(self, "kernel_size", "stride", "dilation")
        if self.channel_branch is None:
            return f"{text}, heads={self.heads}, filters='spatial'"
        if self.spatial_branch is None:
            return f"{text}, filters='channel'"
        return f"{text}, heads={self.heads}, combine={self.combine!r}"


def is_watched(layer: nn.Module) -> bool:
    """Whether a call of it has more to do than its class says: it has hooks of its own, or a patched `forward`."""
    return bool(
        layer._forward_hooks
        or layer._forward_pre_hooks
        or layer._backward_hooks
        or layer._backward_pre_hooks
        or "forward" in vars(layer)
    )


def _is_pointwise(layer: nn.Conv2d, stride: int) -> bool:
    return (layer.kernel_size, layer.stride, layer.groups, layer.padding) == ((1, 1), (stride, stride), 1, (0, 0))


def channel_branch(
    channels: int,
    kernel_size: int,
    *,
    squeeze_ratio: float,
    normalization: Literal["filter", "batch", "sigmoid"],
    nonlinearity: str,
    **factory: Any,
) -> nn.Sequential:
    """The layers that predict the channel filters: (B, C, H, W) -> (B, C*k*k, 1, 1). `factory`: device and dtype.

    Raises:
        ValueError: a squeeze ratio that leaves no hidden channel.
        TypeError: one that is no number.
    """
    if isinstance(squeeze_ratio, bool) or not isinstance(squeeze_ratio, int | float):
        raise TypeError(f"squeeze_ratio must be a number, got {squeeze_ratio!r}")
    hidden = int(channels * squeeze_ratio)
    if hidden < 1:
        raise ValueError(f"squeeze_ratio={squeeze_ratio} leaves no hidden channel: give at least {1 / channels:.3g}")
    return nn.Sequential(
        nn.AdaptiveAvgPool2d(1),
        nn.Conv2d(channels, hidden, 1, **factory),
        nn.ReLU(inplace=True),
        nn.Conv2d(hidden, channels * kernel_size**2, 1, **factory),
        normalization_layer(normalization, channels, kernel_size, "channel", nonlinearity=nonlinearity, **factory),
    )
