"""Launches of the DDF layer between batch normalizations with ReLUs, in training."""

from typing import Any

import torch
from torch import Tensor

from ddfnet.kernels.batch_norm_training import (
    batch_norm_backward_kernel,
    batch_norm_merge_kernel,
    batch_norm_moments_kernel,
    batch_norm_relu_backward_sums_kernel,
    batch_norm_relu_kernel,
)
from ddfnet.ops.common import cdiv, empty, launch
from ddfnet.ops.ddf import triton as operator
from ddfnet.ops.ddf_layer import triton as layer
from ddfnet.ops.ddf_layer import triton_channel as channel_branch
from ddfnet.ops.ddf_layer.arguments import STATISTICS, Activations, NormState, Settings, TrainedNorm, Weights

_CHANNELS = 64  # of a program, and rows below: 16 elements a thread
_ROWS = 32
_ITERATIONS = 16  # steps of a program that sums over rows
_GROUP = 128  # parts that one program merges, so that no program walks over thousands


def forward(
    x: Tensor, before: TrainedNorm, weights: Weights, after: TrainedNorm, settings: Settings
) -> tuple[Tensor, NormState, Activations]:
    """z = relu(after(layer(relu(before(x))))), and what backward needs."""
    x = operator.aligned(x, torch.channels_last)
    x_statistics = _statistics(_moments(x), before)
    activations = layer.predict_filters(x, weights, settings, x_statistics)
    arguments = layer.operator_arguments(x, activations, settings)
    moments = empty_moments(x, operator.forward_parts(arguments))
    y = operator.forward_dense(arguments, x_statistics, y_moments=moments)
    y_statistics = _statistics(moments, after)
    z = empty(y, y.shape, torch.channels_last)
    _launch(batch_norm_relu_kernel, y, (y, y_statistics, z))
    return z, NormState(y, x_statistics, y_statistics), activations


def backward(
    grad_z: Tensor, x: Tensor, weights: Weights, state: NormState, activations: Activations, settings: Settings
) -> tuple[Tensor, tuple[Tensor, Tensor], tuple[Tensor, ...], tuple[Tensor, Tensor]]:
    """Gradients of x, of weight and bias of the first normalization, of the layer's weights, and of the second's."""
    x, y = (operator.aligned(tensor, torch.channels_last) for tensor in (x, state.y))
    grad_z = operator.aligned(grad_z, torch.channels_last)
    partials = x.new_empty((_parts(y), 2, y.shape[1]), dtype=torch.float32)
    tensors: tuple[Tensor, ...] = (grad_z, y, state.y_statistics, partials)
    _launch(batch_norm_relu_backward_sums_kernel, y, tensors, ITERATIONS=_ITERATIONS)
    y_sums = partials.sum(0)
    grad_y = empty(y, y.shape, torch.channels_last)
    y_weight = y.new_empty(y.shape[1], dtype=torch.float32)
    tensors = (grad_z, y, state.y_statistics, y_sums, grad_y, y_weight, y, y)
    _launch(batch_norm_backward_kernel, y, tensors, ITERATIONS=1, RELU=True, **_logits(0))

    arguments = layer.operator_arguments(x, activations, settings)
    grad_logits, bias_partials, of_channel = layer.backward_filters(
        grad_y, arguments, weights, activations, settings, state.x_statistics
    )
    branch = operator.Branch(grad_logits, weights.spatial.contiguous(), of_channel.pooled)
    between, x_partials = layer.backward_x(grad_y, arguments, branch, settings, state.x_statistics)
    x_sums = x_partials.sum(0)  # type: ignore[union-attr]  # there are some
    grad_x = empty(x, x.shape, torch.channels_last)
    logits = grad_logits.shape[0]
    weight_partials = x.new_empty((_parts(x), logits, x.shape[1]), dtype=torch.float32)
    x_weight = torch.empty_like(y_weight)
    tensors = (between, x, state.x_statistics, x_sums, grad_x, x_weight, grad_logits, weight_partials)
    _launch(batch_norm_backward_kernel, x, tensors, ITERATIONS=_ITERATIONS, RELU=False, **_logits(logits))
    grads = (weight_partials.sum(0), bias_partials.sum(0), *channel_branch.weight_gradients(of_channel, activations))
    return grad_x, (x_weight, x_sums[0]), grads, (y_weight, y_sums[0])


def _logits(count: int) -> dict[str, int]:
    """Constants of `batch_norm_backward_kernel`: a matrix product has at least 16 rows."""
    return {"LOGITS": count, "PADDED_LOGITS": max(16, 1 << (count - 1).bit_length())}


def _moments(x: Tensor) -> Tensor:
    """Of x."""
    moments = empty_moments(x, _parts(x))
    _launch(batch_norm_moments_kernel, x, (x, moments), ITERATIONS=_ITERATIONS)
    return moments


def empty_moments(x: Tensor, parts: int) -> Tensor:
    """For those of parts of x, or of y of as many channels, as `batch_norm_training.py` has them."""
    return x.new_empty((parts, 2 * x.shape[1] + 4), dtype=torch.float32)


def _statistics(moments: Tensor, norm: TrainedNorm) -> Tensor:
    """Float32 (6, C)."""
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


def _parts(x: Tensor) -> int:
    return cdiv(x.shape[0] * x.shape[2] * x.shape[3], _ROWS * _ITERATIONS)


def _launch(kernel: Any, x: Tensor, tensors: tuple[Tensor, ...], **constants: Any) -> None:
    """For all rows and channels of x, its pixels and channels."""
    channels, rows = x.shape[1], x.shape[0] * x.shape[2] * x.shape[3]
    programs = cdiv(rows, _ROWS * constants.get("ITERATIONS", 1)) * cdiv(channels, _CHANNELS)
    launch(
        kernel,
        (programs,),
        *tensors,
        rows,
        channels,
        **constants,
        ROWS=_ROWS,
        BLOCK_CHANNELS=_CHANNELS,
        num_warps=4,
        num_stages=1,
    )
