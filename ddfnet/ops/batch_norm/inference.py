"""Batch normalization in inference, with the sum and the ReLU that follow it, as one operator.

Apart, the end of a residual block makes seven passes over its map: two of the normalization, three of the sum, two of
the ReLU. This makes three. Only Triton has it, and it has no gradient; elsewhere the layers are called one by one.
"""

from typing import Any

import torch
from torch import Tensor

from ddfnet.ops.batch_norm import reference
from ddfnet.ops.batch_norm.arguments import BatchNorm
from ddfnet.ops.common import (
    DECOMPOSITIONS,
    accumulator_dtype,
    autocast_off,
    define_op,
    empty,
    is_plain,
    runs_on_triton,
)


def batch_norm(x: Tensor, norm: BatchNorm, residual: Tensor | None, relu: bool) -> Tensor:
    """[relu](norm(x) [+ residual]) without a gradient, (B, C, H, W), as x; rounded to the dtype of x once.

    Args:
        x: (B, C, H, W), for which `fusible` holds.
        norm: with the statistics of training; in any float dtype.
        residual: as x.
    """
    tensors = (x, *norm[:4], residual)
    call: Any = _forward if is_plain(*tensors) else _batch_norm
    return call(*tensors, norm.eps, relu)


def plain_batch_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    variance: Tensor,
    residual: Tensor | None,
    eps: float,
    relu: bool,
) -> Tensor:
    """The definition, in PyTorch, for `ddfnet::batch_norm`'s arguments."""
    affine = reference.running_affine(BatchNorm(weight, bias, mean, variance, eps), accumulator_dtype(x))
    return reference.normalized(x, affine, residual, relu).to(x.dtype)


def _forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    variance: Tensor,
    residual: Tensor | None,
    eps: float,
    relu: bool,
) -> Tensor:
    with autocast_off(x):
        if not runs_on_triton(x):
            y = plain_batch_norm(x, weight, bias, mean, variance, residual, eps, relu)
            return y.contiguous(memory_format=torch.channels_last)
        from ddfnet.ops.batch_norm import triton  # imports the kernels, which a run on the CPU does not need

        return triton.normalize(x, BatchNorm(weight, bias, mean, variance, eps), residual, relu)


_batch_norm = define_op("ddfnet::batch_norm", _forward)
DECOMPOSITIONS[torch.ops.ddfnet.batch_norm.default] = plain_batch_norm


@_batch_norm.register_fake
def _(x: Tensor, *_: Any) -> Tensor:
    return empty(x, x.shape, torch.channels_last)
