"""Launches of the kernels of the spatial branch."""

import torch
from torch import Tensor

from ddfnet.kernels.spatial_filters import spatial_filters_backward_kernel, spatial_filters_kernel
from ddfnet.ops.ddf.tiling import cdiv
from ddfnet.ops.ddf.triton import launch
from ddfnet.ops.spatial_filters.autograd import padded_area, padded_heads

_BLOCK_PIXELS = 64
_BLOCK_CHANNELS = 64


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, kernel_size: int, heads: int, stride: int, alpha: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Filters in the dtype of x, float32 averages (B, C), float32 inverse standard deviations (B, G, Ho, Wo)."""
    x = x.contiguous(memory_format=torch.channels_last)
    batch, channels, height, width = x.shape
    size = ((height - 1) // stride + 1, (width - 1) // stride + 1)
    tiles = cdiv(height * width, _BLOCK_PIXELS)
    filters = torch.empty((batch, heads * kernel_size**2, *size), dtype=x.dtype, device=x.device)
    inverse_std = torch.empty((batch, heads, *size), dtype=torch.float32, device=x.device)
    partials = torch.empty((batch, tiles, channels), dtype=torch.float32, device=x.device)
    weight = weight.reshape(weight.shape[0], channels).contiguous()
    launch(
        spatial_filters_kernel,
        (batch * tiles,),
        x,
        weight,
        weight if bias is None else bias.contiguous(),
        filters,
        inverse_std,
        partials,
        channels,
        height,
        width,
        alpha,
        HAS_BIAS=bias is not None,
        **_constants(kernel_size, heads, stride),
        num_warps=4,
        num_stages=2,
    )
    return filters, partials.sum(1) / (height * width), inverse_std


def backward(
    grad_filter: Tensor,
    grad_pooled: Tensor,
    x: Tensor,
    weight: Tensor,
    spatial_filter: Tensor,
    inverse_std: Tensor,
    kernel_size: int,
    heads: int,
    stride: int,
    alpha: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x and weight in their dtypes, and of the bias in float32."""
    x = x.contiguous(memory_format=torch.channels_last)
    batch, channels, height, width = x.shape
    columns = padded_heads(heads) * padded_area(kernel_size)
    grad_x = torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    grad_logits = torch.empty((batch, height * width, columns), dtype=x.dtype, device=x.device)
    flat_weight = weight.reshape(weight.shape[0], channels).contiguous()
    launch(
        spatial_filters_backward_kernel,
        (batch * cdiv(height * width, _BLOCK_PIXELS),),
        grad_filter.contiguous(),
        grad_pooled.contiguous(),
        flat_weight,
        spatial_filter,
        inverse_std,
        grad_x,
        grad_logits,
        channels,
        height,
        width,
        alpha,
        **_constants(kernel_size, heads, stride),
        num_warps=4,
        num_stages=1,
    )
    # Long sums over pixels: a matrix product, which splits them over the GPU. x is a matrix already: pixels x channels.
    grad_logits = grad_logits.view(-1, columns)
    grad_weight = grad_logits.t() @ x.permute(0, 2, 3, 1).reshape(-1, channels)
    taps = (heads, kernel_size**2)
    grad_weight = grad_weight.unflatten(0, (-1, padded_area(kernel_size)))[: taps[0], : taps[1]]
    grad_bias = grad_logits.sum(0, dtype=torch.float32).unflatten(0, (-1, padded_area(kernel_size)))
    return (grad_x, grad_weight.reshape(weight.shape).to(weight.dtype), grad_bias[: taps[0], : taps[1]].reshape(-1))


def _constants(kernel_size: int, heads: int, stride: int) -> dict[str, int]:
    return {
        "HEADS": heads,
        "AREA": kernel_size**2,
        "STRIDE": stride,
        "PADDED_HEADS": padded_heads(heads),
        "PADDED_AREA": padded_area(kernel_size),
        "BLOCK_PIXELS": _BLOCK_PIXELS,
        "BLOCK_CHANNELS": _BLOCK_CHANNELS,
    }
