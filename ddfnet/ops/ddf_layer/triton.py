"""Launches of the DDF layer: its spatial branch, and with the channel branch and the operator the whole; gradients."""

from typing import Any

import torch
from torch import Tensor

from ddfnet.kernels.batch_norm import batch_norm_affine_kernel
from ddfnet.kernels.spatial_filters import (
    spatial_filters_backward_kernel,
    spatial_filters_backward_x_kernel,
    spatial_filters_kernel,
)
from ddfnet.ops.batch_norm.arguments import BatchNorm
from ddfnet.ops.common import cdiv, launch, output_size
from ddfnet.ops.ddf import tiling
from ddfnet.ops.ddf import triton as operator
from ddfnet.ops.ddf.arguments import Arguments, Needed
from ddfnet.ops.ddf_layer import triton_channel as channel_branch
from ddfnet.ops.ddf_layer.arguments import Activations, Settings, Weights, padded_area, padded_heads
from ddfnet.ops.ddf_layer.triton_channel import ChannelGradients

_BLOCK_PIXELS = 64
_BLOCK_CHANNELS = 64
_AFFINE_CHANNELS = 128


def forward(
    x: Tensor, weights: Weights, settings: Settings, x_affine: Tensor | None = None, y_affine: Tensor | None = None
) -> tuple[Tensor, Activations]:
    """y, and what backward needs; with affine maps and ReLUs around the layer, see `forward_dense` of the operator."""
    x = operator.aligned(x, torch.channels_last)
    activations = predict_filters(x, weights, settings, x_affine)
    return operator.forward_dense(operator_arguments(x, activations, settings), x_affine, y_affine), activations


def predict_filters(x: Tensor, weights: Weights, settings: Settings, x_affine: Tensor | None = None) -> Activations:
    """Both branches."""
    filters, inverse_std, partials = spatial_filters(x, weights.spatial, weights.spatial_bias, settings, x_affine)
    return Activations(filters, inverse_std, *channel_branch.predict(partials, weights, settings))


def forward_between(x: Tensor, before: BatchNorm, weights: Weights, after: BatchNorm, settings: Settings) -> Tensor:
    """y of the layer between two batch normalizations with ReLUs, for inference."""
    channels = x.shape[1]
    affines = x.new_empty((2, 2, channels), dtype=torch.float32)
    launch(
        batch_norm_affine_kernel,
        (cdiv(channels, _AFFINE_CHANNELS),),
        *(tensor.contiguous() for tensor in (*before[:4], *after[:4])),
        *(affines, channels, before.eps, after.eps),
        BLOCK_CHANNELS=_AFFINE_CHANNELS,
        num_warps=4,
        num_stages=1,
    )
    return forward(x, weights, settings, *affines)[0]


def backward(
    grad_y: Tensor,
    x: Tensor,
    weights: Weights,
    activations: Activations,
    settings: Settings,
    need_x: bool,
    need_weights: bool,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Gradients of x, of the weights and of the biases; what is not needed means nothing.

    The weights' are matrices, and as wide as the products that make them.
    """
    x = operator.aligned(x, torch.channels_last)
    grad_y = operator.aligned(grad_y, torch.channels_last)
    arguments = operator_arguments(x, activations, settings)
    grad_logits, bias_partials, of_channel = backward_filters(grad_y, arguments, weights, activations, settings)
    grad_x = x.new_empty(0)
    if need_x:
        branch = operator.Branch(grad_logits, weights.spatial.contiguous(), of_channel.pooled)
        grad_x, _ = backward_x(grad_y, arguments, branch, settings)
    if not need_weights:
        return grad_x, ()
    # Long sums over pixels: a matrix product, which splits them over the GPU. x is a matrix already: pixels x channels.
    grad_spatial = grad_logits @ x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])
    return grad_x, (grad_spatial, bias_partials.sum(0), *channel_branch.weight_gradients(of_channel, activations))


def backward_filters(
    grad_y: Tensor,
    arguments: Arguments,
    weights: Weights,
    activations: Activations,
    settings: Settings,
    x_affine: Tensor | None = None,
) -> tuple[Tensor, Tensor, ChannelGradients]:
    """As `spatial_logits_backward`: gradients of the logits, parts of their sums; and those of the channel branch."""
    x, inverse_std, needed = arguments.x, activations.inverse_std, Needed(False, True, True)
    logits = None
    if tiling.logits_at_once(arguments, x_affine is not None):
        taps, (batch, _, height, width) = weights.spatial.shape[0], x.shape
        grad_logits = x.new_empty((taps, batch * height * width))
        parts = batch * operator.filter_chunks(arguments)
        bias_partials = x.new_empty((parts, taps), dtype=torch.float32)
        logits = operator.Logits(inverse_std, grad_logits, bias_partials, settings.alpha)
    channel_partials, spatial_partials = operator.filter_partials(grad_y, arguments, needed, x_affine, logits)
    of_channel = channel_branch.backward(channel_partials, weights, activations, settings)
    if logits is not None:
        return logits.grad_logits, logits.bias_partials, of_channel
    return *spatial_logits_backward(spatial_partials, activations.spatial_filter, inverse_std, x, settings), of_channel


def spatial_filters(
    x: Tensor, weight: Tensor, bias: Tensor | None, settings: Settings, x_affine: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Filters in the dtype of x, float32 inverse standard deviations (B, G, Ho, Wo), and float32 (B, parts, C) of the
    average of x.

    With x_affine (2, C), of relu(x * scale + shift).
    """
    batch, channels, height, width = x.shape
    size = output_size(x, settings.stride)
    tiles = cdiv(height * width, _BLOCK_PIXELS)
    filters = x.new_empty((batch, weight.shape[0], *size))
    inverse_std = x.new_empty((batch, settings.heads, *size), dtype=torch.float32)
    partials = x.new_empty((batch, tiles, channels), dtype=torch.float32)
    weight = weight.contiguous()
    bias_or_any = weight if bias is None else bias.contiguous()
    tensors = (x, weight, bias_or_any, filters, inverse_std, partials, x if x_affine is None else x_affine)
    has = {"HAS_BIAS": bias is not None, "ACTIVATE_X": x_affine is not None}
    # 32 channels at a time keep registers, hence warps on a multiprocessor, as they are without the affine map
    policy = {"num_stages": 2} if x_affine is None else {"num_stages": 1, "BLOCK_CHANNELS": 32}
    sizes = (channels, height, width, settings.alpha)
    options = {"STRIDE": settings.stride, "BLOCK_CHANNELS": _BLOCK_CHANNELS, **has, **policy}
    _launch(spatial_filters_kernel, batch * tiles, tensors, sizes, settings, **options)
    return filters, inverse_std, partials


def spatial_logits_backward(
    grad_partials: Tensor, spatial_filter: Tensor, inverse_std: Tensor, x: Tensor, settings: Settings
) -> tuple[Tensor, Tensor]:
    """Gradients of the logits (G*k*k, B*H*W) in the dtype of x, and float32 parts (parts, G*k*k) of their sums.

    grad_partials: (B, partial sums, G*k*k, Ho, Wo) of the gradient of the spatial filter.
    """
    (batch, _, height, width), area = x.shape, settings.kernel_size**2
    block = _BLOCK_PIXELS if settings.kernel_size <= 5 else 32  # of large filters a thread can hold one pixel's taps
    parts, pixels = batch * cdiv(height * width, block), batch * height * width
    grad_logits = x.new_empty((settings.heads * area, pixels))
    bias_partials = x.new_empty((parts, settings.heads * area), dtype=torch.float32)
    launch(
        spatial_filters_backward_kernel,
        (parts * settings.heads,),
        *(grad_partials, spatial_filter, inverse_std, grad_logits, bias_partials),
        *(height, width, pixels, settings.alpha),
        HEADS=settings.heads,
        AREA=area,
        STRIDE=settings.stride,
        PARTIALS=grad_partials.shape[1],
        BLOCK_PIXELS=block,
        num_warps=1,  # whose sums over pixels need no barrier
        num_stages=1,
    )
    return grad_logits, bias_partials


def backward_x(
    grad_y: Tensor,
    arguments: Arguments,
    branch: operator.Branch,
    settings: Settings,
    x_statistics: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The layer's gradient of x. With x_statistics it is brought before the ReLU of a batch normalization, and parts
    (parts, 2, C) of its sums come with it."""
    x, at_once = arguments.x, tiling.backward_x_at_once(arguments)
    partials = None
    if x_statistics is not None:
        parts = operator.backward_x_parts(arguments) if at_once else spatial_tiles(x)
        partials = x.new_empty((parts, 2, x.shape[1]), dtype=torch.float32)
    if at_once:
        return operator.backward_x(grad_y, arguments, branch, x_statistics, partials), partials
    grad_x = operator.backward_x(grad_y, arguments)
    add_branch(grad_x, x, branch, settings, x_statistics, partials)
    return grad_x, partials


def add_branch(
    grad_x: Tensor,
    x: Tensor,
    branch: operator.Branch,
    settings: Settings,
    x_statistics: Tensor | None = None,
    norm_partials: Tensor | None = None,
) -> None:
    """To the gradient of x that the operator wrote: a kernel of its own, with as many parts as `spatial_tiles`."""
    # Without, some tensor that is not written: torch.compile would copy one that is.
    norm = tuple(x if tensor is None else tensor for tensor in (x_statistics, norm_partials))
    # 32 channels at a time as in `spatial_filters`
    options = {"num_stages": 1, "BLOCK_CHANNELS": _BLOCK_CHANNELS if x_statistics is None else 32}
    sizes = (*x.shape[1:], branch.grad_logits.shape[1])
    tensors, activate = (*branch, grad_x, x, *norm), x_statistics is not None
    programs = spatial_tiles(x)
    _launch(spatial_filters_backward_x_kernel, programs, tensors, sizes, settings, ACTIVATE_X=activate, **options)


def spatial_tiles(x: Tensor) -> int:
    """Programs of the spatial branch's kernels."""
    return x.shape[0] * cdiv(x.shape[2] * x.shape[3], _BLOCK_PIXELS)


def operator_arguments(x: Tensor, activations: Activations, settings: Settings) -> Arguments:
    """Of the operator, with the channel filter as its kernels read it."""
    filters = (activations.channel_filter, activations.spatial_filter)
    return Arguments(x, *filters, settings.kernel_size, settings.stride, settings.dilation, settings.multiply, 1)


def _launch(
    kernel: Any, programs: int, tensors: tuple[Any, ...], sizes: tuple[Any, ...], settings: Settings, **constants: Any
) -> None:
    launch(
        kernel,
        (programs,),
        *tensors,
        *sizes,
        HEADS=settings.heads,
        AREA=settings.kernel_size**2,
        PADDED_HEADS=padded_heads(settings.heads),
        PADDED_AREA=padded_area(settings.kernel_size),
        BLOCK_PIXELS=_BLOCK_PIXELS,
        **{"num_warps": 4, **constants},
    )
