"""What the DDF layer as one operator is given, and what it keeps for its backward pass."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ddfnet.ops.common import accumulator_dtype, memory_format_of, output_size, runs_on_triton

# Padded taps of all heads together, the columns of one matrix product. In float32, without tensor cores, a product of
# more than 16 columns would take longer than the passes over memory that it saves, and does not fit the registers.
_MAX_PADDED_TAPS = {torch.float16: 128, torch.bfloat16: 128, torch.float32: 16}


class Weights(NamedTuple):
    """Parameters of the two branches: 1x1 convolutions (out, in, 1, 1), their biases or None, and alpha (C*k*k,)."""

    spatial: Tensor
    spatial_bias: Tensor | None
    squeeze: Tensor
    squeeze_bias: Tensor | None
    excite: Tensor
    excite_bias: Tensor | None
    alpha: Tensor


class Settings(NamedTuple):
    """Options of the layer; `alpha` is the standard deviation of the spatial filters."""

    kernel_size: int
    stride: int
    dilation: int
    heads: int
    multiply: bool
    alpha: float


class NormState(NamedTuple):
    """What the backward pass of the layer between batch normalizations in training needs beside x.

    y: of the layer, (B, C, Ho, Wo). x_statistics, y_statistics: float32 (6, C) of x and y, rows as in `batch_norm`.
    """

    y: Tensor
    x_statistics: Tensor
    y_statistics: Tensor


class Activations(NamedTuple):
    """What backward needs beside x.

    spatial_filter: (B, G*k*k, Ho, Wo) in the dtype of x. In float32: inverse_std (B, G, Ho, Wo), pooled (B, C),
    hidden (B, squeezed channels), logits (B, C*k*k), channel_filter (B, k*k, C).
    """

    spatial_filter: Tensor
    inverse_std: Tensor
    pooled: Tensor
    hidden: Tensor
    logits: Tensor
    channel_filter: Tensor


def empty_activations(x: Tensor, weights: Weights, settings: Settings) -> Activations:
    """Contiguous, not written yet."""
    (batch, channels), area, heads = x.shape[:2], settings.kernel_size**2, settings.heads
    size = output_size(x, settings.stride)
    shapes = ((heads, *size), (channels,), (weights.squeeze.shape[0],), (channels * area,), (area, channels))
    wide = (x.new_empty((batch, *shape), dtype=accumulator_dtype(x)) for shape in shapes)
    return Activations(x.new_empty((batch, heads * area, *size)), *wide)


def given_weights(spatial: Tensor, squeeze: Tensor, excite: Tensor, alpha: Tensor) -> Weights:
    """Without the biases, on which no gradient depends."""
    return Weights(spatial, None, squeeze, None, excite, None, alpha)


def empty_weight_gradients(x: Tensor, weights: Weights, spatial: torch.dtype) -> tuple[Tensor, ...]:
    """Not written yet: of all weights as matrices and of their biases, in the dtype of the sums but for the first."""
    wide, grads = accumulator_dtype(x), []
    for weight, dtype in ((weights.spatial, spatial), (weights.squeeze, wide), (weights.excite, wide)):
        grads += [x.new_empty(weight.shape[:2], dtype=dtype), x.new_empty(weight.shape[0], dtype=wide)]
    return *grads, x.new_empty(weights.alpha.shape, dtype=wide)


def gradients_like(
    weights: Iterable[Tensor | None],
    dtypes: Iterable[torch.dtype | None],
    grads: Iterable[Tensor],
    needed: Iterable[bool],
) -> list[Tensor | None]:
    """Those that are needed of parameters with these dtypes; of the weights, not None, in their shapes.

    1x1 convolutions in channels_last have strides for their dimensions of size 1. They mean nothing, but
    DistributedDataParallel compares those of the gradient with them, and warns.
    """
    result: list[Tensor | None] = []
    for weight, dtype, grad, need in zip(weights, dtypes, grads, needed, strict=True):
        if not need or dtype is None:
            result.append(None)
            continue
        grad = grad if grad.dtype == dtype else grad.to(dtype)
        if weight is not None and weight.shape != grad.shape:
            matrix = weight.stride()[:2] == (*grad.shape[1:], 1)
            grad = grad.contiguous().as_strided(weight.shape, weight.stride()) if matrix else grad.reshape(weight.shape)
        result.append(grad)
    return result


def split(arguments: Any) -> tuple[Weights, Any]:
    """The weights at the start of a flat list of arguments, and the rest."""
    count = len(Weights._fields)
    return Weights(*arguments[:count]), arguments[count:]


def fusible(x: Tensor, kernel_size: int, heads: int) -> bool:
    """Whether the fused kernels apply: on Triton, channels_last, at most single precision, not too many taps."""
    return (
        runs_on_triton(x)
        and x.numel() > 0
        and memory_format_of(x) == torch.channels_last
        and padded_heads(heads) * padded_area(kernel_size) <= _MAX_PADDED_TAPS.get(x.dtype, 0)
    )


def padded_area(kernel_size: int) -> int:
    """k*k rounded up to a power of two, 16 at least."""
    return max(16, 1 << (kernel_size**2 - 1).bit_length())


def padded_heads(heads: int) -> int:
    """Heads rounded up to a power of two."""
    return 1 << (heads - 1).bit_length()
