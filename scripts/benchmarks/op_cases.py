"""What `benchmark_op.py` measures: shapes, formulations of the operators, and what could replace them."""

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run from a checkout without `pip install`

import torch
import torch.nn.functional as F
from torch import Tensor

from ddfnet.ops.ddf import ddf, ddf_reference, ddf_up

Made = tuple[Callable[..., Tensor], tuple[Tensor, ...]]  # a function and its arguments
# channels, size, stride and number of the 3x3 layers of ResNet50
STAGES_1_TO_3 = ((64, 56, 1, 3), (128, 56, 2, 1), (128, 28, 1, 3), (256, 28, 2, 1), (256, 14, 1, 5))
RESNET50 = (*STAGES_1_TO_3, (512, 14, 2, 1), (512, 7, 1, 2))


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


@dataclass(frozen=True)
class Implementation:
    """`make(case, inputs)` returns the function to time and its arguments, all of which get gradients.

    `exact`: it computes what ours computes, of the same arguments.
    """

    make: Callable[[Case, tuple[Tensor, ...]], Made]
    exact: bool = True
    compiled: bool = False


def unfold_ddf(x: Tensor, channel_filter: Tensor, spatial_filter: Tensor, stride: int, combine: str) -> Tensor:
    """DDF as most reimplementations write it: every k x k window as a column, B*C*k*k*Ho*Wo elements."""
    batch, channels, height, width = x.shape
    k = channel_filter.shape[-1]
    out_height, out_width = (height - 1) // stride + 1, (width - 1) // stride + 1
    columns = F.unfold(x, k, padding=k // 2, stride=stride).view(batch, channels, k * k, -1)
    channelwise = channel_filter.to(x.dtype).view(batch, channels, k * k, 1)
    pixelwise = spatial_filter.view(batch, 1, k * k, -1)
    if combine == "mul":
        columns = columns * channelwise * pixelwise
    else:
        columns = columns * (channelwise + pixelwise)
    return columns.sum(2).view(batch, channels, out_height, out_width)


def shuffled_ddf(x: Tensor, channel_filter: Tensor, spatial_filter: Tensor, scale: int, combine: str) -> Tensor:
    """DDF-Up by scale^2 calls of ddf, whose outputs are interleaved."""
    phases = zip(channel_filter.unbind(1), spatial_filter.chunk(scale * scale, dim=1), strict=True)
    outputs = [ddf(x, c, s, combine=combine) for c, s in phases]
    return F.pixel_shuffle(torch.stack(outputs, dim=2).flatten(1, 2), scale)


def _ours(case: Case, inputs: tuple[Tensor, ...]) -> Made:
    return partial(ddf, stride=case.stride, combine=case.combine), inputs


def _unfold(case: Case, inputs: tuple[Tensor, ...]) -> Made:
    return partial(unfold_ddf, stride=case.stride, combine=case.combine), inputs


def _shifted(case: Case, inputs: tuple[Tensor, ...]) -> Made:
    return partial(ddf_reference, stride=case.stride, combine=case.combine), inputs


def _up(case: Case, inputs: tuple[Tensor, ...]) -> Made:
    return partial(ddf_up, scale=case.scale, combine=case.combine), inputs


def _shuffled(case: Case, inputs: tuple[Tensor, ...]) -> Made:
    return partial(shuffled_ddf, scale=case.scale, combine=case.combine), inputs


def _weight(case: Case, x: Tensor, *shape: int) -> Tensor:
    weight = torch.randn(shape, dtype=case.dtype, device=x.device) / math.sqrt(math.prod(shape[1:]))
    return weight.contiguous(memory_format=case.memory_format).requires_grad_()


def _conv(case: Case, inputs: tuple[Tensor, ...], *, groups: int = 1) -> Made:
    k, channels = case.kernel_size, case.channels
    weight = _weight(case, inputs[0], channels, channels // groups, k, k)
    return partial(F.conv2d, stride=case.stride, padding=k // 2, groups=groups), (inputs[0], weight)


def _depthwise(case: Case, inputs: tuple[Tensor, ...]) -> Made:
    return _conv(case, inputs, groups=case.channels)


def _interpolate(case: Case, inputs: tuple[Tensor, ...], *, mode: str) -> Made:
    return partial(F.interpolate, scale_factor=case.scale, mode=mode), inputs[:1]


def _transposed(case: Case, inputs: tuple[Tensor, ...]) -> Made:
    k, scale = 2 * case.scale, case.scale  # each output pixel sees 2 x 2 inputs, and no checkerboard
    weight = _weight(case, inputs[0], case.channels, case.channels, k, k)
    padding, more = (scale + 1) // 2, scale % 2
    return lambda x, w: F.conv_transpose2d(x, w, stride=scale, padding=padding, output_padding=more), (
        inputs[0],
        weight,
    )


def _conv_shuffle(case: Case, inputs: tuple[Tensor, ...]) -> Made:
    k, scale = case.kernel_size, case.scale
    weight = _weight(case, inputs[0], case.channels * scale**2, case.channels, k, k)
    return lambda x, w: F.pixel_shuffle(F.conv2d(x, w, padding=k // 2), scale), (inputs[0], weight)


# The first one is ours: the others are compared with it.
DDF = {
    "ddf": Implementation(_ours),
    "ddf compiled": Implementation(_ours, compiled=True),
    "unfold": Implementation(_unfold),
    "unfold compiled": Implementation(_unfold, compiled=True),
    "shifted compiled": Implementation(_shifted, compiled=True),
    "depthwise conv": Implementation(_depthwise, exact=False),
    "dense conv": Implementation(_conv, exact=False),
}
DDF_UP = {
    "ddf_up": Implementation(_up),
    "ddf_up compiled": Implementation(_up, compiled=True),
    "ddf + shuffle": Implementation(_shuffled),
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


def floor_bytes(case: Case, inputs: tuple[Tensor, ...]) -> tuple[int, int]:
    """Bytes that forward, and forward + backward, have to move at least: every tensor once."""
    x, *_ = inputs
    arguments = sum(t.numel() * t.element_size() for t in inputs)
    y = case.batch * case.channels * math.prod(case.output_size) * x.element_size()
    return arguments + y, (arguments + y) + (y + arguments + arguments)


def preset(name: str, batch: int) -> list[Case]:
    presets = {
        "resnet50": [Case(batch, c, n, n, stride=s, count=count) for c, n, s, count in RESNET50],
        "table2": [Case(2, 256, 200, 300)],
        "tableA": [Case(32, 256, n, n) for n in (7, 14, 28, 56, 112, 224)],
        "upsample": [Case(2, 256, *size) for size in ((25, 38), (50, 75), (100, 150))],  # of a 800 x 1200 image
    }
    presets["all"] = presets["resnet50"] + presets["table2"] + presets["tableA"]
    return presets.get(name, [])


def parse_shape(text: str) -> Case:
    try:
        sizes = [int(part) for part in text.split(",")]
    except ValueError:
        sizes = []
    if len(sizes) not in (4, 5) or min(sizes) < 1:
        raise ValueError(
            f"--shapes {text}: give resnet50, table2, tableA, upsample, all, or B,C,H,W[,stride] above zero"
        )
    return Case(*sizes)
