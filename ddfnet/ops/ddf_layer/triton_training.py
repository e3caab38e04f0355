"""Launches of the DDF layer between batch normalizations with ReLUs, in training."""

import torch
from torch import Tensor

from ddfnet.kernels.batch_norm_training import batch_norm_backward_kernel
from ddfnet.ops.batch_norm import triton as norm
from ddfnet.ops.batch_norm.arguments import TrainedNorm
from ddfnet.ops.common import empty
from ddfnet.ops.ddf import triton as operator
from ddfnet.ops.ddf_layer import triton as layer
from ddfnet.ops.ddf_layer import triton_channel as channel_branch
from ddfnet.ops.ddf_layer.arguments import Activations, NormState, Settings, Weights


def forward(
    x: Tensor, before: TrainedNorm, weights: Weights, after: TrainedNorm, settings: Settings
) -> tuple[Tensor, NormState, Activations]:
    """z = relu(after(layer(relu(before(x))))), and what backward needs."""
    x = operator.aligned(x, torch.channels_last)
    x_statistics = norm.merge(norm.moments(x), before)
    activations = layer.predict_filters(x, weights, settings, x_statistics)
    arguments = layer.operator_arguments(x, activations, settings)
    moments = norm.empty_moments(x, operator.forward_parts(arguments))
    y = operator.forward_dense(arguments, x_statistics, y_moments=moments)
    y_statistics = norm.merge(moments, after)
    z = norm.apply(y, y_statistics, None, relu=True)
    return z, NormState(y, x_statistics, y_statistics), activations


def backward(
    grad_z: Tensor, x: Tensor, weights: Weights, state: NormState, activations: Activations, settings: Settings
) -> tuple[Tensor, tuple[Tensor, Tensor], tuple[Tensor, ...], tuple[Tensor, Tensor]]:
    """Gradients of x, of weight and bias of the first normalization, of the layer's weights, and of the second's."""
    x = operator.aligned(x, torch.channels_last)
    grad_y, of_y, _ = norm.backward(grad_z, state.y, None, state.y_statistics, relu=True)

    arguments = layer.operator_arguments(x, activations, settings)
    grad_logits, bias_partials, of_channel = layer.backward_filters(
        grad_y, arguments, weights, activations, settings, state.x_statistics
    )
    branch = operator.Branch(grad_logits, weights.spatial.contiguous(), of_channel.pooled)
    between, x_partials = layer.backward_x(grad_y, arguments, branch, settings, state.x_statistics)
    x_sums = x_partials.sum(0)  # type: ignore[union-attr]  # there are some
    grad_x = empty(x, x.shape, torch.channels_last)
    logits = grad_logits.shape[0]
    weight_partials = x.new_empty((norm.parts(x), logits, x.shape[1]), dtype=torch.float32)
    x_weight = torch.empty_like(of_y[0])
    tensors = (between, x, state.x_statistics, x_sums, grad_x, x_weight, grad_logits, weight_partials)
    # a matrix product has at least 16 rows
    constants = {"LOGITS": logits, "PADDED_LOGITS": max(16, 1 << (logits - 1).bit_length())}
    norm.launch_rows(batch_norm_backward_kernel, x, tensors, RELU=False, ITERATIONS=norm.ITERATIONS, **constants)
    grads = (weight_partials.sum(0), bias_partials.sum(0), *channel_branch.weight_gradients(of_channel, activations))
    return grad_x, (x_weight, x_sums[0]), grads, of_y
