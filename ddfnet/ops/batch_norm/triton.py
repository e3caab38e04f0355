"""Launches of batch normalization with the sum and the ReLU that follow it. Maps are channels_last."""

from typing import Any

import torch
from torch import Tensor

from ddfnet.kernels.batch_norm import batch_norm_kernel
from ddfnet.kernels.batch_norm_training import (
    batch_norm_apply_kernel,
    batch_norm_backward_kernel,
    batch_norm_backward_sums_kernel,
    batch_norm_merge_kernel,
    batch_norm_moments_kernel,
)
from ddfnet.ops.batch_norm.arguments import STATISTICS, BatchNorm, TrainedNorm
from ddfnet.ops.common import cdiv, empty, launch
from ddfnet.ops.ddf.triton import aligned

ITERATIONS = 16  # steps of a program that sums over rows
_CHANNELS = 64  # of a program, and rows below: 16 elements a thread
_ROWS = 32
_GROUP = 128  # parts that one program merges, so that no program walks over thousands


def normalize(x: Tensor, norm: BatchNorm, residual: Tensor | None, relu: bool) -> Tensor:
    """[relu](norm(x) [+ residual]) in inference."""
    x, residual, given = _maps(x, residual)
    y = empty(x, x.shape, torch.channels_last)
    affine = tuple(tensor.contiguous() for tensor in norm[:4])
    launch_rows(batch_norm_kernel, x, (x, *affine, residual, y), norm.eps, RELU=relu, RESIDUAL=given, ITERATIONS=4)
    return y


def forward(x: Tensor, norm: TrainedNorm, residual: Tensor | None, relu: bool) -> tuple[Tensor, Tensor]:
    """[relu](norm(x) [+ residual]) in training, and the statistics of x, float32 (6, C)."""
    x = aligned(x, torch.channels_last)
    statistics = merge(moments(x), norm)
    return apply(x, statistics, residual, relu), statistics


def apply(x: Tensor, statistics: Tensor, residual: Tensor | None, relu: bool) -> Tensor:
    """[relu](x * scale + shift [+ residual]) with those of the statistics."""
    x, residual, given = _maps(x, residual)
    y = empty(x, x.shape, torch.channels_last)
    launch_rows(batch_norm_apply_kernel, x, (x, statistics, residual, y), RELU=relu, RESIDUAL=given)
    return y


def backward(
    grad_y: Tensor, x: Tensor, y: Tensor | None, statistics: Tensor, relu: bool
) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor | None]:
    """Gradients of x, of weight and bias in float32, and of the residual, which there is if y is given.

    y, the output, has the ReLU's mask then; without, x has it.
    """
    x, y, given = _maps(x, y)
    grad_y = aligned(grad_y, torch.channels_last)
    channels, single = x.shape[1], torch.float32
    partials = x.new_empty((parts(x), 2, channels), dtype=single)
    behind = empty(x, x.shape, torch.channels_last) if given else grad_y
    tensors: tuple[Tensor, ...] = (grad_y, x, y, statistics, behind, partials)
    launch_rows(batch_norm_backward_sums_kernel, x, tensors, RELU=relu, RESIDUAL=given, ITERATIONS=ITERATIONS)
    sums = partials.sum(0)
    grad_x, grad_weight = empty(x, x.shape, torch.channels_last), x.new_empty(channels, dtype=single)
    tensors = (behind, x, statistics, sums, grad_x, grad_weight, x, x)
    launch_rows(
        batch_norm_backward_kernel, x, tensors, RELU=relu and not given, ITERATIONS=1, LOGITS=0, PADDED_LOGITS=16
    )
    return grad_x, (grad_weight, sums[0]), behind if given else None


def _maps(x: Tensor, other: Tensor | None) -> tuple[Tensor, Tensor, bool]:
    """x and another map as the kernels take them, and whether there is another: if not, x stands in its place."""
    x = aligned(x, torch.channels_last)
    return x, x if other is None else aligned(other, torch.channels_last), other is not None


def moments(x: Tensor) -> Tensor:
    """Of x."""
    result = empty_moments(x, parts(x))
    launch_rows(batch_norm_moments_kernel, x, (x, result), ITERATIONS=ITERATIONS)
    return result


def empty_moments(x: Tensor, parts: int) -> Tensor:
    """For those of parts of x, or of y of as many channels, as `batch_norm_training.py` has them."""
    return x.new_empty((parts, 2 * x.shape[1] + 4), dtype=torch.float32)


def merge(moments: Tensor, norm: TrainedNorm) -> Tensor:
    """The statistics of all parts, float32 (6, C)."""
    channels = norm.weight.shape[0]
    while True:
        parts, group, finish = moments.shape[0], _GROUP, moments.shape[0] <= _GROUP
        groups = cdiv(parts, group)
        merged = moments.new_empty((STATISTICS, channels) if finish else (groups, moments.shape[1]))
        launch(
            batch_norm_merge_kernel,
            (groups * cdiv(channels, _CHANNELS),),
            *(moments, norm.weight.contiguous(), norm.bias.contiguous(), merged, parts, channels, norm.eps),
            FINISH=finish,
            GROUP=group,
            ROWS=_ROWS,
            BLOCK_CHANNELS=_CHANNELS,
            num_warps=4,
            num_stages=1,
        )
        if finish:
            return merged
        moments = merged


def parts(x: Tensor) -> int:
    """How many programs sum over the pixels of x."""
    return cdiv(x.shape[0] * x.shape[2] * x.shape[3], _ROWS * ITERATIONS)


def launch_rows(kernel: Any, x: Tensor, tensors: tuple[Tensor, ...], *numbers: float, **constants: Any) -> None:
    """For all rows and channels of x, its pixels and channels."""
    channels, rows = x.shape[1], x.shape[0] * x.shape[2] * x.shape[3]
    programs = cdiv(rows, _ROWS * constants.get("ITERATIONS", 1)) * cdiv(channels, _CHANNELS)
    launch(
        kernel,
        (programs,),
        *tensors,
        rows,
        channels,
        *numbers,
        **constants,
        ROWS=_ROWS,
        BLOCK_CHANNELS=_CHANNELS,
        num_warps=4,
        num_stages=1,
    )
