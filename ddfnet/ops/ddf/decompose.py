"""The operator as a pure expression of PyTorch's own, for exporters, which know none of `ddfnet` and call this after
mutations were taken out: nothing here may work in place, as `eager` does. It broadcasts the filters of a head where the
reference repeats them for each channel, which a runtime would have to write out. For inference, without a backward.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ddfnet.ops.common import DECOMPOSITIONS
from ddfnet.ops.ddf import autograd  # noqa: F401  the ops have to exist
from ddfnet.ops.ddf.arguments import Arguments


def plain_ddf(*arguments: Any) -> Tensor:
    """`ddfnet::ddf`, with its arguments: y (B, C, Ho * scale, Wo * scale) in the dtype of x."""
    args = Arguments(*arguments)
    if args.scale == 1:
        return _filtered(args)
    phases = [_filtered(args.phase(phase)) for phase in range(args.phases)]
    return F.pixel_shuffle(torch.stack(phases, 2).flatten(1, 2), args.scale)


def _filtered(args: Arguments) -> Tensor:
    """The sum over the taps, on (B, G, C/G, H, W), where broadcasting gives each channel the filter of its head."""
    height, width = args.filter_size
    padded = F.pad(args.x.to(args.accumulator), (args.kernel_size // 2 * args.dilation,) * 4).unflatten(
        1, (args.heads, -1)
    )
    channel_filter, spatial_filter = args.channel_filter, args.spatial_filter
    if channel_filter is not None:
        channel_filter = channel_filter.to(args.accumulator).flatten(2).unflatten(1, (args.heads, -1))
    if spatial_filter is not None:
        spatial_filter = spatial_filter.to(args.accumulator).unflatten(1, (args.heads, args.area))
    total = None
    for tap in range(args.area):
        row, column = tap // args.kernel_size * args.dilation, tap % args.kernel_size * args.dilation
        rows = slice(row, row + (height - 1) * args.stride + 1, args.stride)
        window = padded[..., rows, column : column + (width - 1) * args.stride + 1 : args.stride]
        channel = None if channel_filter is None else channel_filter[..., tap, None, None]
        spatial = None if spatial_filter is None else spatial_filter[:, :, tap, None]
        if channel is None or spatial is None:
            term = window * (spatial if channel is None else channel)
        else:
            term = window * channel * spatial if args.multiply else window * (channel + spatial)
        total = term if total is None else total + term
    return total.flatten(1, 2).to(args.x.dtype)


DECOMPOSITIONS[torch.ops.ddfnet.ddf.default] = plain_ddf
