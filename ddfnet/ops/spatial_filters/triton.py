"""Launches of the kernels of the spatial branch."""

from typing import Any

import torch
from torch import Tensor

from ddfnet.kernels.spatial_filters import spatial_filters_backward_kernel, spatial_filters_kernel
from ddfnet.ops.common import cdiv, launch, output_size
from ddfnet.ops.spatial_filters.autograd import Settings, padded_area, padded_heads

_BLOCK_PIXELS = 64
_BLOCK_CHANNELS = 64


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, settings: Settings) -> tuple[Tensor, Tensor, Tensor]:
    """Filters in the dtype of x, float32 averages (B, C), float32 inverse standard deviations (B, G, Ho, Wo)."""
    x = x.contiguous(memory_format=torch.channels_last)
    batch, channels, height, width = x.shape
    size = output_size(x, settings.stride)
    tiles = cdiv(height * width, _BLOCK_PIXELS)
    filters = x.new_empty((batch, weight.shape[0], *size))
    inverse_std = x.new_empty((batch, settings.heads, *size), dtype=torch.float32)
    partials = x.new_empty((batch, tiles, channels), dtype=torch.float32)
    weight = weight.reshape(-1, channels).contiguous()
    bias_or_any = weight if bias is None else bias.contiguous()
    tensors = (x, weight, bias_or_any, filters, inverse_std, partials)
    _launch(spatial_filters_kernel, batch * tiles, tensors, x, settings, HAS_BIAS=bias is not None, num_stages=2)
    return filters, partials.sum(1) / (height * width), inverse_std


def backward(
    grad_filter: Tensor,
    grad_pooled: Tensor,
    x: Tensor,
    weight: Tensor,
    spatial_filter: Tensor,
    inverse_std: Tensor,
    settings: Settings,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x and weight in their dtypes, and of the bias in float32."""
    x = x.contiguous(memory_format=torch.channels_last)
    batch, channels, height, width = x.shape
    heads, area = settings.heads, padded_area(settings.kernel_size)
    grad_x = torch.empty_like(x, memory_format=torch.channels_last)
    grad_logits = x.new_empty((batch, height * width, padded_heads(heads) * area))
    given = (grad_filter.contiguous(), grad_pooled.contiguous(), weight.reshape(-1, channels).contiguous())
    tensors = (*given, spatial_filter, inverse_std, grad_x, grad_logits)
    programs = batch * cdiv(height * width, _BLOCK_PIXELS)
    _launch(spatial_filters_backward_kernel, programs, tensors, x, settings, num_stages=1)
    # Long sums over pixels: a matrix product, which splits them over the GPU. x is a matrix already: pixels x channels.
    grad_logits = grad_logits.flatten(0, 1)
    grad_weight = grad_logits.t() @ x.permute(0, 2, 3, 1).reshape(-1, channels)
    grad_bias = grad_logits.sum(0, dtype=torch.float32)
    grad_weight, grad_bias = (
        grad.unflatten(0, (-1, area))[:heads, : settings.kernel_size**2] for grad in (grad_weight, grad_bias)
    )
    return grad_x, grad_weight.reshape(weight.shape).to(weight.dtype), grad_bias.reshape(-1)


def _launch(
    kernel: Any, programs: int, tensors: tuple[Tensor, ...], x: Tensor, settings: Settings, **constants: Any
) -> None:
    launch(
        kernel,
        (programs,),
        *tensors,
        *x.shape[1:],
        settings.alpha,
        HEADS=settings.heads,
        AREA=settings.kernel_size**2,
        STRIDE=settings.stride,
        PADDED_HEADS=padded_heads(settings.heads),
        PADDED_AREA=padded_area(settings.kernel_size),
        BLOCK_PIXELS=_BLOCK_PIXELS,
        BLOCK_CHANNELS=_BLOCK_CHANNELS,
        num_warps=4,
        **constants,
    )
