"""Shapes, formulations of the operators, and what could replace them: everything that `op.py` measures."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ddfnet.ops.ddf import ddf, ddf_reference, ddf_up

Made = tuple[Callable[..., Tensor], tuple[Tensor, ...]]  # a function and its arguments
PARTS = ("forward", "forward_backward")
# channels, size, stride and number of the 3x3 layers of ResNet50
RESNET50 = (
    (64, 56, 1, 3), (128, 56, 2, 1), (128, 28, 1, 3), (256, 28, 2, 1), (256, 14, 1, 5), (512, 14, 2, 1), (512, 7, 1, 2),
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One shape. `count`: how many layers of the network have it, None outside; `scale`: above 1 for ddf_up."""

    batch: int
    channels: int
    height: int
    width: int
    stride: int = 1
    count: int | None = None
    kernel_size: int = 3
    combine: str = "mul"
    scale: int = 1
    dtype: torch.dtype = torch.float32
    memory_format: torch.memory_format = torch.channels_last

    @property
    def name(self) -> str:
        sizes = (self.batch, self.channels, self.height, self.width, *([self.stride] if self.stride > 1 else []))
        return ",".join(map(str, sizes))

    @property
    def output_size(self) -> tuple[int, int]:
        """Height and width of y."""
        return tuple(((n - 1) // self.stride + 1) * self.scale for n in (self.height, self.width))

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of ddf or ddf_up beside the tensors."""
        size = {"scale": self.scale} if self.scale > 1 else {"stride": self.stride}
        return {**size, "combine": self.combine}


@dataclass(frozen=True)
class Implementation:
    """`make(case, inputs)` returns the function to time and its arguments, all of which get gradients.

    `exact`: it computes what ddf computes, of the same arguments.
    """

    make: Callable[[Case, tuple[Tensor, ...]], Made]
    exact: bool = True
    compiled: bool = False


def unfold_ddf(x: Tensor, channel_filter: Tensor, spatial_filter: Tensor, stride: int, combine: str) -> Tensor:
    """DDF as most reimplementations write it: every k x k window as a column, B*C*k*k*Ho*Wo elements."""
    batch, channels = x.shape[:2]
    k, out_size = channel_filter.shape[-1], spatial_filter.shape[-2:]
    columns = F.unfold(x, k, padding=k // 2, stride=stride).view(batch, channels, k * k, -1)
    channelwise = channel_filter.to(x.dtype).view(batch, channels, k * k, 1)
    pixelwise = spatial_filter.view(batch, 1, k * k, -1)
    columns = columns * channelwise * pixelwise if combine == "mul" else columns * (channelwise + pixelwise)
    return columns.sum(2).view(batch, channels, *out_size)


def shuffled_ddf(x: Tensor, channel_filter: Tensor, spatial_filter: Tensor, scale: int, combine: str) -> Tensor:
    """DDF-Up by scale^2 calls of ddf, whose outputs are interleaved."""
    phases = zip(channel_filter.unbind(1), spatial_filter.chunk(scale * scale, dim=1), strict=True)
    outputs = [ddf(x, c, s, combine=combine) for c, s in phases]
    return F.pixel_shuffle(torch.stack(outputs, dim=2).flatten(1, 2), scale)


def _weight(case: Case, x: Tensor, *shape: int) -> tuple[Tensor, Tensor]:
    weight = torch.randn(shape, dtype=case.dtype, device=x.device) / math.sqrt(math.prod(shape[1:]))
    return x, weight.contiguous(memory_format=case.memory_format).requires_grad_()


def _conv(case: Case, inputs: tuple[Tensor, ...], *, depthwise: bool = False) -> Made:
    k, groups = case.kernel_size, case.channels if depthwise else 1
    tensors = _weight(case, inputs[0], case.channels, case.channels // groups, k, k)
    return partial(F.conv2d, stride=case.stride, padding=k // 2, groups=groups), tensors


def _interpolate(case: Case, inputs: tuple[Tensor, ...], *, mode: str) -> Made:
    return partial(F.interpolate, scale_factor=case.scale, mode=mode), inputs[:1]


def _transposed(case: Case, inputs: tuple[Tensor, ...]) -> Made:
    k, scale = 2 * case.scale, case.scale  # each output pixel sees 2 x 2 inputs, and no checkerboard
    tensors = _weight(case, inputs[0], case.channels, case.channels, k, k)
    return partial(F.conv_transpose2d, stride=scale, padding=(scale + 1) // 2, output_padding=scale % 2), tensors


def _conv_shuffle(case: Case, inputs: tuple[Tensor, ...]) -> Made:
    k, scale = case.kernel_size, case.scale
    tensors = _weight(case, inputs[0], case.channels * scale**2, case.channels, k, k)
    return lambda x, w: F.pixel_shuffle(F.conv2d(x, w, padding=k // 2), scale), tensors


def _of_filters(function: Callable[[], Callable[..., Tensor]], *, compiled: bool = False) -> Implementation:
    return Implementation(lambda case, inputs: (partial(function(), **case.options), inputs), compiled=compiled)


# The others are compared with the first one.
DDF = {
    "ddf": _of_filters(lambda: ddf),
    "ddf compiled": _of_filters(lambda: ddf, compiled=True),
    "unfold": _of_filters(lambda: unfold_ddf),
    "unfold compiled": _of_filters(lambda: unfold_ddf, compiled=True),
    "shifted compiled": _of_filters(lambda: ddf_reference, compiled=True),
    "depthwise conv": Implementation(partial(_conv, depthwise=True), exact=False),
    "dense conv": Implementation(_conv, exact=False),
}
DDF_UP = {
    "ddf_up": _of_filters(lambda: ddf_up),
    "ddf_up compiled": _of_filters(lambda: ddf_up, compiled=True),
    "ddf + shuffle": _of_filters(lambda: shuffled_ddf),
    "nearest": Implementation(partial(_interpolate, mode="nearest"), exact=False),
    "bilinear": Implementation(partial(_interpolate, mode="bilinear"), exact=False),
    "transposed conv": Implementation(_transposed, exact=False),
    "conv + shuffle": Implementation(_conv_shuffle, exact=False),
}


def make_inputs(case: Case, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """x, channel filter and spatial filter, random, with gradients. The channel filter is float32, as in the layer."""
    x = torch.randn(case.batch, case.channels, case.height, case.width, dtype=case.dtype, device=device)
    taps, phases = case.kernel_size**2, [case.scale**2] if case.scale > 1 else []
    size = [n // case.scale for n in case.output_size]
    channel_filter = torch.randn(case.batch, *phases, case.channels, case.kernel_size, case.kernel_size, device=device)
    spatial_filter = torch.randn(case.batch, taps * case.scale**2, *size, dtype=case.dtype, device=device)
    x = x.contiguous(memory_format=case.memory_format)
    return x.requires_grad_(), channel_filter.requires_grad_(), spatial_filter.requires_grad_()


def floor_bytes(inputs: tuple[Tensor, ...], y: Tensor) -> dict[str, int]:
    """Bytes that each of `PARTS` has to move at least: every tensor once. `y`: an output or its gradient."""
    given, result = sum(t.numel() * t.element_size() for t in inputs), y.numel() * y.element_size()
    return {"forward": given + result, "forward_backward": (given + result) + (result + given + given)}


def named_cases(name: str, batch: int) -> list[Case]:
    """Cases of a name, or the one of B,C,H,W[,stride]; ValueError for what is neither."""
    presets = {
        "resnet50": [Case(batch, c, n, n, stride=s, count=count) for c, n, s, count in RESNET50],
        "table2": [Case(2, 256, 200, 300)],
        "tableA": [Case(32, 256, n, n) for n in (7, 14, 28, 56, 112, 224)],
        "upsample": [Case(2, 256, *size) for size in ((25, 38), (50, 75), (100, 150))],  # of a 800 x 1200 image
    }
    presets["all"] = presets["resnet50"] + presets["table2"] + presets["tableA"]
    if name in presets:
        return presets[name]
    sizes = [int(part) if part.isdecimal() else 0 for part in name.split(",")]
    if len(sizes) not in (4, 5) or min(sizes) < 1:
        raise ValueError(f"--shapes {name}: give {', '.join(presets)}, or B,C,H,W[,stride] above zero")
    return [Case(*sizes)]
