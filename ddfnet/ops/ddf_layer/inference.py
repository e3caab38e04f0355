"""The DDF layer and the batch normalizations and ReLUs around it as one operator, for inference.

Apart, the four passes around the layer move more bytes than the layer itself. Here the kernels normalize x where they
load it and y where they store it. Only Triton has it, and it has no gradient; elsewhere the layers are called one by
one, and `plain_ddf_layer_between`, which defines it, is what exporters get.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from ddfnet.ops.batch_norm import reference
from ddfnet.ops.batch_norm.arguments import BatchNorm
from ddfnet.ops.common import (
    DECOMPOSITIONS,
    accumulator_dtype,
    autocast_off,
    define_op,
    empty,
    is_plain,
    output_size,
    runs_on_triton,
)
from ddfnet.ops.ddf_layer.arguments import Settings, Weights, split
from ddfnet.ops.ddf_layer.autograd import layer_flops, plain_ddf_layer


def ddf_layer_between(x: Tensor, before: BatchNorm, weights: Weights, after: BatchNorm, settings: Settings) -> Tensor:
    """relu(after(layer(relu(before(x))))) without a gradient, (B, C, ceil(H/stride), ceil(W/stride)), as x.

    Args:
        x: (B, C, H, W), for which `fusible` holds.
        before, after: with the statistics of training; in any float dtype.
        weights, settings: see there.

    What the modules around the layer would round to the dtype of x stays in float32, but for the spatial branch's
    matrix product, which has inputs in that dtype as ever.
    """
    tensors = (x, *before[:4], *after[:4], *weights)
    call: Any = _forward if is_plain(*tensors) else _ddf_layer_between
    return call(*tensors, before.eps, after.eps, *settings)


def plain_ddf_layer_between(x: Tensor, *arguments: Any) -> Tensor:
    """The definition, in PyTorch, for `ddfnet::ddf_layer_between`'s arguments."""
    weights, (x_eps, y_eps, *settings) = split(arguments[8:])
    before, after = BatchNorm._make((*arguments[:4], x_eps)), BatchNorm._make((*arguments[4:8], y_eps))
    y, *_ = plain_ddf_layer(_activated(x, before), *weights, *settings)
    return _activated(y, after).to(x.dtype)


def _activated(x: Tensor, norm: BatchNorm) -> Tensor:
    """ReLU behind batch normalization, in the dtype of the sums."""
    return reference.normalized(x, reference.running_affine(norm, accumulator_dtype(x)), None, relu=True)


def _forward(
    x: Tensor,
    x_weight: Tensor,
    x_bias: Tensor,
    x_mean: Tensor,
    x_variance: Tensor,
    y_weight: Tensor,
    y_bias: Tensor,
    y_mean: Tensor,
    y_variance: Tensor,
    spatial: Tensor,
    spatial_bias: Tensor | None,
    squeeze: Tensor,
    squeeze_bias: Tensor | None,
    excite: Tensor,
    excite_bias: Tensor | None,
    channel_alpha: Tensor,
    x_eps: float,
    y_eps: float,
    kernel_size: int,
    stride: int,
    dilation: int,
    heads: int,
    multiply: bool,
    alpha: float,
) -> Tensor:
    before = BatchNorm(x_weight, x_bias, x_mean, x_variance, x_eps)
    after = BatchNorm(y_weight, y_bias, y_mean, y_variance, y_eps)
    weights = Weights(spatial, spatial_bias, squeeze, squeeze_bias, excite, excite_bias, channel_alpha)
    settings = Settings(kernel_size, stride, dilation, heads, multiply, alpha)
    with autocast_off(x):
        if not runs_on_triton(x):
            options = (x_eps, y_eps, *settings)
            y = plain_ddf_layer_between(x, *before[:4], *after[:4], *weights, *options)
            return y.contiguous(memory_format=torch.channels_last)
        from ddfnet.ops.ddf_layer import triton  # imports the kernels, which a run on the CPU does not need

        return triton.forward_between(x, before, weights, after, settings)


_ddf_layer_between = define_op("ddfnet::ddf_layer_between", _forward)
DECOMPOSITIONS[torch.ops.ddfnet.ddf_layer_between.default] = plain_ddf_layer_between


@_ddf_layer_between.register_fake
def _(x: Tensor, *arguments: Any) -> Tensor:
    stride = arguments[-5]
    return empty(x, (*x.shape[:2], *output_size(x, stride)), torch.channels_last)


@register_flop_formula(torch.ops.ddfnet.ddf_layer_between)
def _(x: tuple, *arguments: Any, out_shape: Any) -> int:
    spatial, _, squeeze, _, excite = arguments[8:13]
    return sum(layer_flops(x, spatial, squeeze, excite, out_shape))
