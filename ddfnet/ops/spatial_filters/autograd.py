"""The spatial branch of the DDF layer as one operator: 1x1 convolution, FilterNorm and global average pooling.

As separate layers these read x twice and pass some ten times over the logits, and in backward add two gradients of the
size of x. On CUDA the operator reads x once; elsewhere it is the plain formula, which also defines it.
"""

from math import prod
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from ddfnet.ops.common import DECOMPOSITIONS, define_op, output_size, runs_on_triton

Shape = tuple[int, ...]

# Padded taps of all heads together, the columns of one matrix product. In float32, without tensor cores, a product of
# more than 16 columns would take longer than the passes over memory that it saves, and does not fit the registers.
_MAX_PADDED_TAPS = {torch.float16: 128, torch.bfloat16: 128, torch.float32: 16}


class Settings(NamedTuple):
    """How the filters are predicted: k, number of heads, stride of the convolution, standard deviation."""

    kernel_size: int
    heads: int
    stride: int
    alpha: float


def fusible(x: Tensor, kernel_size: int, heads: int) -> bool:
    """Whether the fused kernels apply: on Triton, channels_last, at most single precision, not too many taps."""
    return (
        runs_on_triton(x)
        and x.numel() > 0
        and x.is_contiguous(memory_format=torch.channels_last)
        and padded_heads(heads) * padded_area(kernel_size) <= _MAX_PADDED_TAPS.get(x.dtype, 0)
    )


def spatial_filters(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, kernel_size: int, heads: int, stride: int, alpha: float
) -> tuple[Tensor, Tensor]:
    """Spatial filters of a DDF, and the global average of x, from one pass over x.

    Args:
        x: (B, C, H, W), for which `fusible` holds.
        weight: (G*k*k, C, 1, 1) of the 1x1 convolution, of stride `stride`; bias: (G*k*k,), or None.
        alpha: standard deviation of the normalized filters (see `FilterNorm`).

    Returns:
        spatial_filter: contiguous (B, G*k*k, ceil(H/stride), ceil(W/stride)) in the dtype of x. Logits are kept in
            float32, where a convolution in half precision rounds them.
        pooled: float32 (B, C).

    Differentiable once.
    """
    filters, pooled, _ = _spatial_filters(x, weight, bias, kernel_size, heads, stride, alpha)
    return filters, pooled


def plain_spatial_filters(
    x: Tensor, weight: Tensor, bias: Tensor | None, kernel_size: int, heads: int, stride: int, alpha: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The definition, in PyTorch: filters, pooled, and the inverse standard deviations (B, G, Ho, Wo)."""
    wide = torch.promote_types(x.dtype, torch.float32)
    logits = F.conv2d(x.to(wide), weight.to(wide), None if bias is None else bias.to(wide), stride=stride)
    taps = logits.unflatten(1, (heads, kernel_size**2))
    std, mean = torch.std_mean(taps, dim=2, keepdim=True)
    filters = ((taps - mean) / (std + 1e-10) * alpha).flatten(1, 2)
    return filters.to(x.dtype).contiguous(), x.mean((2, 3), dtype=wide), 1 / (std.squeeze(2) + 1e-10)


def padded_area(kernel_size: int) -> int:
    """k*k rounded up to a power of two, 16 at least."""
    return max(16, 1 << (kernel_size**2 - 1).bit_length())


def padded_heads(heads: int) -> int:
    """Heads rounded up to a power of two."""
    return 1 << (heads - 1).bit_length()


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, kernel_size: int, heads: int, stride: int, alpha: float
) -> tuple[Tensor, Tensor, Tensor]:
    if runs_on_triton(x):
        from ddfnet.ops.spatial_filters import triton  # imports the kernels, which a run on the CPU does not need

        return triton.forward(x, weight, bias, Settings(kernel_size, heads, stride, alpha))
    return plain_spatial_filters(x, weight, bias, kernel_size, heads, stride, alpha)


def _backward(
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
    if runs_on_triton(x):
        from ddfnet.ops.spatial_filters import triton

        settings = Settings(kernel_size, heads, stride, alpha)
        return triton.backward(grad_filter, grad_pooled, x, weight, spatial_filter, inverse_std, settings)
    wide = inverse_std.dtype
    shape = (heads, kernel_size**2)
    normal = spatial_filter.to(wide).unflatten(1, shape) / alpha
    grad = grad_filter.to(wide).unflatten(1, shape) * alpha
    along = (grad * normal).sum(2, keepdim=True) / (kernel_size**2 - 1)
    grad = ((grad - grad.mean(2, keepdim=True) - normal * along) * inverse_std.unsqueeze(2)).flatten(1, 2)
    back = torch.einsum("btij,tc->bcij", grad, weight.to(wide).flatten(1))
    grad_x = (
        torch.zeros(x.shape, dtype=wide, device=x.device) + (grad_pooled / (x.shape[2] * x.shape[3]))[..., None, None]
    )
    grad_x[..., ::stride, ::stride] += back
    grad_weight = torch.einsum("btij,bcij->tc", grad, x[..., ::stride, ::stride].to(wide)).view(weight.shape)
    grad_x = grad_x.to(x.dtype).contiguous(memory_format=torch.channels_last)
    return grad_x, grad_weight.to(weight.dtype), grad.sum((0, 2, 3))


_spatial_filters = define_op("ddfnet::spatial_filters", _forward)
_spatial_filters_backward = define_op("ddfnet::spatial_filters_backward", _backward)
DECOMPOSITIONS[torch.ops.ddfnet.spatial_filters.default] = plain_spatial_filters


@_spatial_filters.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, *settings: Any) -> tuple[Tensor, Tensor, Tensor]:
    kernel_size, heads, stride, _ = settings
    batch, channels = x.shape[:2]
    size = output_size(x, stride)
    wide = torch.promote_types(x.dtype, torch.float32)
    return (
        x.new_empty((batch, heads * kernel_size**2, *size)),
        x.new_empty((batch, channels), dtype=wide),
        x.new_empty((batch, heads, *size), dtype=wide),
    )


@_spatial_filters_backward.register_fake
def _(
    grad_filter: Tensor,
    grad_pooled: Tensor,
    x: Tensor,
    weight: Tensor,
    spatial_filter: Tensor,
    inverse_std: Tensor,
    *settings: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.empty_like(x, memory_format=torch.channels_last),
        torch.empty_like(weight, memory_format=torch.contiguous_format),
        x.new_empty(weight.shape[0], dtype=inverse_std.dtype),
    )


def _save_for_backward(ctx: Any, inputs: tuple, output: tuple) -> None:
    x, weight, bias, *ctx.settings = inputs
    filters, _, inverse_std = output
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.mark_non_differentiable(inverse_std)
    ctx.save_for_backward(x, weight, filters, inverse_std)


def _first_order(ctx: Any, grad_filter: Tensor, grad_pooled: Tensor, _: Tensor | None) -> tuple:
    grads = _spatial_filters_backward(grad_filter, grad_pooled, *ctx.saved_tensors, *ctx.settings)
    grad_x, grad_weight, grad_bias = grads
    grad_bias = None if ctx.bias_dtype is None else grad_bias.to(ctx.bias_dtype)
    return grad_x, grad_weight, grad_bias, None, None, None, None


def _second_order(ctx: Any, *_: Tensor | None) -> tuple:
    raise RuntimeError("the fused spatial filters have no second-order gradients: build DDF(..., fused_filters=False)")


_spatial_filters.register_autograd(_first_order, setup_context=_save_for_backward)
_spatial_filters_backward.register_autograd(_second_order)


# FLOPs, for torch.utils.flop_counter.FlopCounterMode: one multiplication and one addition per tap and output, as for
# convolutions there. Combining the two filters is not counted, and neither are normalization and pooling.
@register_flop_formula(torch.ops.ddfnet.spatial_filters)
def _(x: Shape, weight: Shape, *_: Any, out_shape: tuple[Shape, ...]) -> int:
    return 2 * prod(out_shape[0]) * weight[1]


@register_flop_formula(torch.ops.ddfnet.spatial_filters_backward)
def _(grad_filter: Shape, grad_pooled: Shape, x: Shape, weight: Shape, *_: Any, out_shape: Any) -> int:
    return 2 * 2 * prod(grad_filter) * weight[1]  # of x and of the weight, both always computed
