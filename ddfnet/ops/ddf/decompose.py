"""The operators as pure expressions of PyTorch's own, for exporters that know nothing of ours.

    table = {**torch.export.default_decompositions(), **DECOMPOSITIONS}
    program = torch.export.export(network.eval(), (x,)).run_decompositions(table)

leaves no node of `ddfnet` in the program. What exports a program calls this after its mutations were taken out, so that
nothing here may work in place, as `eager` does. It broadcasts the filters of a head where the reference repeats
them for each channel, which a runtime would have to write out. For inference: the backward ops have no such formula.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ddfnet.ops.common import accumulator_dtype, output_size
from ddfnet.ops.ddf import autograd  # noqa: F401  the ops have to exist
from ddfnet.ops.spatial_filters.autograd import plain_spatial_filters


def plain_ddf(
    x: Tensor,
    channel_filter: Tensor | None,
    spatial_filter: Tensor | None,
    kernel_size: int,
    stride: int,
    dilation: int,
    multiply: bool,
    scale: int,
) -> Tensor:
    """`ddfnet::ddf`, with its arguments: y (B, C, Ho * scale, Wo * scale) in the dtype of x."""
    if scale == 1:
        return _filtered(x, channel_filter, spatial_filter, kernel_size, stride, dilation, multiply)
    phases = []
    for phase in range(scale * scale):
        channel = None if channel_filter is None else channel_filter[:, phase]
        spatial = None if spatial_filter is None else spatial_filter.chunk(scale * scale, 1)[phase]
        phases.append(_filtered(x, channel, spatial, kernel_size, 1, dilation, multiply))
    return F.pixel_shuffle(torch.stack(phases, 2).flatten(1, 2), scale)


def _filtered(
    x: Tensor,
    channel_filter: Tensor | None,
    spatial_filter: Tensor | None,
    kernel_size: int,
    stride: int,
    dilation: int,
    multiply: bool,
) -> Tensor:
    """The sum over the taps, on (B, G, C/G, H, W), where broadcasting gives each channel the filter of its head."""
    dtype, area = accumulator_dtype(x), kernel_size * kernel_size
    height, width = output_size(x, stride)
    heads = 1 if spatial_filter is None else spatial_filter.shape[1] // area
    padded = F.pad(x.to(dtype), (kernel_size // 2 * dilation,) * 4).unflatten(1, (heads, -1))
    if channel_filter is not None:
        channel_filter = channel_filter.to(dtype).flatten(2).unflatten(1, (heads, -1))
    if spatial_filter is not None:
        spatial_filter = spatial_filter.to(dtype).unflatten(1, (heads, area))
    total = None
    for tap in range(area):
        row, column = tap // kernel_size * dilation, tap % kernel_size * dilation
        rows = slice(row, row + (height - 1) * stride + 1, stride)
        window = padded[..., rows, column : column + (width - 1) * stride + 1 : stride]
        channel = None if channel_filter is None else channel_filter[..., tap, None, None]
        spatial = None if spatial_filter is None else spatial_filter[:, :, tap, None]
        if channel is None or spatial is None:
            term = window * (spatial if channel is None else channel)
        else:
            term = window * channel * spatial if multiply else window * (channel + spatial)
        total = term if total is None else total + term
    return total.flatten(1, 2).to(x.dtype)


DECOMPOSITIONS = {
    torch.ops.ddfnet.ddf.default: plain_ddf,
    torch.ops.ddfnet.spatial_filters.default: plain_spatial_filters,
}
