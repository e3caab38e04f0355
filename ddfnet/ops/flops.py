"""FLOPs of the operators, for `torch.utils.flop_counter.FlopCounterMode` (registered when ddfnet is imported).

As for convolutions there: one multiplication and one addition per tap and output. Combining the two filters is not
counted, and neither are normalisation and pooling.
"""

from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

import ddfnet.ops.ddf
import ddfnet.ops.spatial_filters  # noqa: F401  both define the ops

Shape = tuple[int, ...]


@register_flop_formula(torch.ops.ddfnet.ddf)
def _ddf(
    x: Shape, channel_filter: Shape | None, spatial_filter: Shape | None, kernel_size: int, *_: Any, out_shape: Shape
) -> int:
    return 2 * prod(out_shape) * kernel_size**2


@register_flop_formula(torch.ops.ddfnet.ddf_backward)
def _ddf_backward(
    grad_y: Shape,
    x: Shape,
    channel_filter: Shape | None,
    spatial_filter: Shape | None,
    kernel_size: int,
    *settings: Any,
    out_shape: Any,
) -> int:
    gradients = sum(settings[-3:])  # need_x, need_channel, need_spatial
    return gradients * 2 * prod(grad_y) * kernel_size**2


@register_flop_formula(torch.ops.ddfnet.spatial_filters)
def _spatial_filters(x: Shape, weight: Shape, *_: Any, out_shape: tuple[Shape, ...]) -> int:
    batch, _, height, width = out_shape[0]
    return 2 * batch * height * width * prod(weight)


@register_flop_formula(torch.ops.ddfnet.spatial_filters_backward)
def _spatial_filters_backward(
    grad_filter: Shape, grad_pooled: Shape, x: Shape, weight: Shape, *_: Any, out_shape: Any
) -> int:
    batch, _, height, width = grad_filter
    return 2 * 2 * batch * height * width * prod(weight)  # of x and of the weight, both always computed
