"""The filters that layers predict for an input, for pages and figures."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ddfnet.layers.carafe import CARAFE
from ddfnet.layers.ddf import DDF
from ddfnet.layers.ddf_up import DDFUp
from ddfnet.layers.involution import Involution


@dataclass(frozen=True)
class LayerFilters:
    """What a layer did with one image; float32 on the CPU.

    `y[c, p]` is the sum over the taps t of `x[c, window of p, t]` times the filter of (c, p), t, which is
    `channel * spatial` or `channel + spatial`, or the one of the two there is. Channel c belongs to head c // (C / G).
    """

    name: str
    kind: str  # the class of the layer
    kernel_size: int
    stride: int
    dilation: int
    scale: int  # upscale factor; 1 for layers that do not upsample
    combine: str
    spatial: Tensor  # (scale^2, G, k*k, H, W); H x W is the size of x, divided by the stride
    channel: Tensor | None  # (scale^2, C, k*k)
    x: Tensor  # input (C, H, W)
    y: Tensor  # output (C, ceil(H / stride) * scale, ceil(W / stride) * scale)


def spatial_layers(network: nn.Module) -> dict[str, nn.Module]:
    """The layers of a network that predict a filter for every pixel, by name."""
    layers = {n: m for n, m in network.named_modules() if isinstance(m, DDF | DDFUp | CARAFE | Involution)}
    return {n: m for n, m in layers.items() if not (isinstance(m, DDF) and m.spatial_branch is None)}


def inspect_layers(network: nn.Module, run: Callable[[], Any], names: list[str] | None = None) -> list[LayerFilters]:
    """Calls `run`, which passes one image through the network, and returns what each layer did, in the order of the
    calls; a layer that is called several times is there as often. `names`: of `spatial_layers` (None: all)."""
    seen: list[LayerFilters] = []
    layers = spatial_layers(network)
    handles = [
        layers[name].register_forward_hook(_Recorder(name, seen)) for name in (layers if names is None else names)
    ]
    try:
        with torch.inference_mode():
            run()
    finally:
        for handle in handles:
            handle.remove()
    return seen


def batch_filters(network: nn.Module, run: Callable[[], Any], names: list[str]) -> dict[str, dict[str, Tensor]]:
    """Calls `run`, which passes a batch through the network, and returns all spatial and channel filters of some of the
    `spatial_layers`: by layer, `spatial` and, where it has them, `channel`, one-dimensional float32 on the CPU."""
    seen: dict[str, dict[str, Tensor]] = {}

    def recorder(name: str) -> Callable[..., None]:
        def record(layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            spatial, channel = _filters(layer, *inputs)
            seen[name] = {"spatial": _kept(spatial).flatten()}
            if channel is not None:
                seen[name]["channel"] = _kept(channel).flatten()

        return record

    layers = spatial_layers(network)
    handles = [layers[name].register_forward_hook(recorder(name)) for name in names]
    try:
        with torch.inference_mode():
            run()
    finally:
        for handle in handles:
            handle.remove()
    return seen


class _Recorder:
    """A hook, which also makes the network call the layer by itself and not fused with what is around it."""

    def __init__(self, name: str, seen: list[LayerFilters]) -> None:
        self.name, self.seen = name, seen

    def __call__(self, layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        x = inputs[0]
        spatial, channel = _filters(layer, *inputs)
        k, scale = layer.kernel_size, getattr(layer, "scale", 1)
        heads = layer.groups if isinstance(layer, CARAFE) else layer.heads
        self.seen.append(
            LayerFilters(
                self.name,
                type(layer).__name__,
                k,
                stride=getattr(layer, "stride", 1),
                dilation=getattr(layer, "dilation", 1),
                scale=scale,
                combine=getattr(layer, "combine", "mul"),
                spatial=_kept(spatial[0].unflatten(0, (scale**2, heads, k * k))),
                channel=None if channel is None else _kept(channel[0].reshape(scale**2, x.shape[1], k * k)),
                x=_kept(x[0]),
                y=_kept(output[0]),
            )
        )


def _kept(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float32, copy=True)  # the network may write over its own tensors


def _filters(layer: Any, x: Tensor, guidance: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """Spatial and channel filters of a layer for an input, as its operator takes them."""
    if isinstance(layer, DDF):
        return layer.spatial_branch(x), None if layer.channel_branch is None else layer.channel_branch(x)
    if isinstance(layer, DDFUp):
        return layer.predict_filters(x, guidance)
    if isinstance(layer, CARAFE):
        return layer.predict_filters(x), None
    return layer.filter_branch(x), None
