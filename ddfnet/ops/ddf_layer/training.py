"""The DDF layer and the batch normalizations and ReLUs around it as one operator, in training.

As the layers one by one, with the same statistics and gradients but for rounding, and fewer passes over memory: x is
normalized where the layer's kernels load it, in both directions; the kernel that writes y sums it up for the second
normalization, and the one that adds the last of the gradient behind the first normalization sums that up. Only Triton
has it; elsewhere the layers are called one by one, and `plain_ddf_layer_trained`, which defines it, is what exporters
get.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from ddfnet.ops.batch_norm import reference
from ddfnet.ops.batch_norm.arguments import MEAN, STATISTICS, VARIANCE, TrainedNorm
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
from ddfnet.ops.ddf_layer.arguments import (
    Activations,
    NormState,
    Settings,
    Weights,
    empty_activations,
    empty_weight_gradients,
    given_weights,
    gradients_like,
    split,
)
from ddfnet.ops.ddf_layer.autograd import Shape, layer_flops, no_second_order, plain_ddf_layer, plain_ddf_layer_backward

Moments = tuple[Tensor, Tensor]

_NORMS = 4  # weights and biases of the normalizations, which come before those of the layer


def ddf_layer_trained(
    x: Tensor,
    before: TrainedNorm,
    weights: Weights,
    after: TrainedNorm,
    settings: Settings,
    update: Callable[[Moments, Moments], None],
) -> Tensor:
    """relu(after(layer(relu(before(x))))), (B, C, ceil(H/stride), ceil(W/stride)), as x.

    Args:
        x: (B, C, H, W), for which `fusible` holds; more than one pixel, and so has the output.
        before, after: in any float dtype.
        weights, settings: see there.
        update: gets of each normalization the mean and the unbiased variance of its input, (C,) in float32 and without
            a gradient; when, see `batch_norm_trained`.

    The modules around the layer round to the dtype of x; here that is done to y and the result alone, and to the inputs
    of the spatial branch's matrix product. Differentiable once.
    """
    tensors = (x, *before[:2], *after[:2], *weights)
    options = (before.eps, after.eps, *settings)
    if is_plain(*tensors):
        return _Trained.apply(*tensors, *options, update)
    z, _, x_statistics, y_statistics, *_ = _ddf_layer_trained(*tensors, *options)
    update(_moments(x_statistics), _moments(y_statistics))
    return z


def _moments(statistics: Tensor) -> Moments:
    return statistics[MEAN], statistics[VARIANCE]


def plain_ddf_layer_trained(x: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    """The definition, in PyTorch: z, y, statistics and activations, for `ddfnet::ddf_layer_trained`'s arguments."""
    weights, (x_eps, y_eps, *settings) = split(arguments[_NORMS:])
    x_weight, x_bias, y_weight, y_bias = arguments[:_NORMS]
    x_statistics = reference.batch_statistics(x, x_weight, x_bias, x_eps)
    y, spatial_filter, *activations = plain_ddf_layer(_activated(x, x_statistics), *weights, *settings)
    y, spatial_filter = y.to(x.dtype), spatial_filter.to(x.dtype)
    y_statistics = reference.batch_statistics(y, y_weight, y_bias, y_eps)
    return _activated(y, y_statistics).to(x.dtype), y, x_statistics, y_statistics, spatial_filter, *activations


def _activated(x: Tensor, statistics: Tensor) -> Tensor:
    """ReLU behind batch normalization, in the dtype of the sums."""
    return reference.normalized(x, statistics, None, relu=True)


def _norm_backward(grad: Tensor, x: Tensor, statistics: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Gradients of x, and of weight and bias, of the one behind ReLU and normalization; in the dtype of the sums."""
    behind = reference.before_relu(grad, _activated(x, statistics), statistics.dtype)
    return reference.batch_norm_backward(behind, x, statistics)


def _forward(
    x: Tensor,
    x_weight: Tensor,
    x_bias: Tensor,
    y_weight: Tensor,
    y_bias: Tensor,
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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    weights = Weights(spatial, spatial_bias, squeeze, squeeze_bias, excite, excite_bias, channel_alpha)
    settings = Settings(kernel_size, stride, dilation, heads, multiply, alpha)
    with autocast_off(x):
        if not runs_on_triton(x):
            norms = (x_weight, x_bias, y_weight, y_bias)
            z, y, *others = plain_ddf_layer_trained(x, *norms, *weights, x_eps, y_eps, *settings)
            z, y = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (z, y))
            return z, y, *others  # type: ignore[return-value]
        from ddfnet.ops.ddf_layer import triton_training  # imports the kernels, which a run on the CPU does not need

        before, after = TrainedNorm(x_weight, x_bias, x_eps), TrainedNorm(y_weight, y_bias, y_eps)
        z, state, activations = triton_training.forward(x, before, weights, after, settings)
        return z, *state, *activations


def _backward(
    grad_z: Tensor,
    x: Tensor,
    spatial: Tensor,
    squeeze: Tensor,
    excite: Tensor,
    channel_alpha: Tensor,
    y: Tensor,
    x_statistics: Tensor,
    y_statistics: Tensor,
    spatial_filter: Tensor,
    inverse_std: Tensor,
    pooled: Tensor,
    hidden: Tensor,
    logits: Tensor,
    channel_filter: Tensor,
    kernel_size: int,
    stride: int,
    dilation: int,
    heads: int,
    multiply: bool,
    alpha: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """All gradients, in the order of `_forward`'s arguments: that of x in its dtype, the others as they are summed."""
    weights = given_weights(spatial, squeeze, excite, channel_alpha)
    settings = Settings(kernel_size, stride, dilation, heads, multiply, alpha)
    state = NormState(y, x_statistics, y_statistics)
    activations = Activations(spatial_filter, inverse_std, pooled, hidden, logits, channel_filter)
    with autocast_off(x):
        if runs_on_triton(x):
            from ddfnet.ops.ddf_layer import triton_training

            grad_x, of_x, grads, of_y = triton_training.backward(grad_z, x, weights, state, activations, settings)
        else:
            grad_y, of_y = _norm_backward(grad_z, y, y_statistics)
            inputs = (_activated(x, x_statistics), weights, activations, settings)
            between, grads = plain_ddf_layer_backward(grad_y, *inputs)
            grad_x, of_x = _norm_backward(between, x, x_statistics)
            grad_x = grad_x.to(x.dtype).contiguous(memory_format=torch.channels_last)
    return grad_x, *of_x, *of_y, *grads  # type: ignore[return-value]


_ddf_layer_trained = define_op("ddfnet::ddf_layer_trained", _forward)
_ddf_layer_trained_backward = define_op("ddfnet::ddf_layer_trained_backward", _backward)
DECOMPOSITIONS[torch.ops.ddfnet.ddf_layer_trained.default] = plain_ddf_layer_trained


@_ddf_layer_trained.register_fake
def _(x: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    weights, (_, _, *options) = split(arguments[_NORMS:])
    settings, channels = Settings(*options), x.shape[1]
    size = (*x.shape[:2], *output_size(x, settings.stride))
    z, y = (empty(x, size, torch.channels_last) for _ in range(2))
    statistics = (x.new_empty((STATISTICS, channels), dtype=accumulator_dtype(x)) for _ in range(2))
    return z, y, *statistics, *empty_activations(x, weights, settings)


@_ddf_layer_trained_backward.register_fake
def _(grad_z: Tensor, x: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    spatial, squeeze, excite, alpha = arguments[:4]
    wide, channels = accumulator_dtype(x), x.shape[1]
    of_norms = (x.new_empty(channels, dtype=wide) for _ in range(_NORMS))
    weights = given_weights(spatial, squeeze, excite, alpha)
    return empty(x, x.shape, torch.channels_last), *of_norms, *empty_weight_gradients(x, weights, wide)


def _save_for_backward(ctx: Any, inputs: Sequence, output: tuple) -> None:
    x, *rest = inputs
    weights, (_, _, *ctx.settings) = split(rest[_NORMS:])
    ctx.save_for_backward(x, weights.spatial, weights.squeeze, weights.excite, weights.alpha, *output[1:])
    ctx.dtypes = [None if tensor is None else tensor.dtype for tensor in (*rest[:_NORMS], *weights)]
    ctx.set_materialize_grads(False)  # zeros for the other outputs, each a launch


def _mark_and_save(ctx: Any, inputs: tuple, output: tuple) -> None:
    ctx.mark_non_differentiable(*output[1:])
    _save_for_backward(ctx, inputs, output)


def _first_order(ctx: Any, grad_z: Tensor | None, *_: Tensor | None) -> tuple:
    if grad_z is None:
        return (None,) * len(ctx.needs_input_grad)
    saved = ctx.saved_tensors
    direct = not torch.is_grad_enabled() and is_plain(grad_z, *saved)
    backward: Any = _backward if direct else _ddf_layer_trained_backward
    grad_x, *grads = backward(grad_z, *saved, *ctx.settings)
    needed = ctx.needs_input_grad[: 1 + len(ctx.dtypes)]
    weights = (*(None,) * _NORMS, *given_weights(*saved[1:5]))
    of_weights = gradients_like(weights, ctx.dtypes, grads, needed[1:])
    return grad_x if needed[0] else None, *of_weights, None, None, *(None for _ in ctx.settings)


class _Trained(torch.autograd.Function):
    """The registered op without the dispatcher, for `is_plain` calls."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        *arguments, update = inputs
        output = _forward(*arguments)
        z, _, x_statistics, y_statistics, *_ = output
        update(_moments(x_statistics), _moments(y_statistics))
        _save_for_backward(ctx, arguments, output)
        return z

    @staticmethod
    def backward(ctx: Any, grad_z: Tensor | None) -> tuple:
        return *_first_order(ctx, grad_z), None


_ddf_layer_trained.register_autograd(_first_order, setup_context=_mark_and_save)
_ddf_layer_trained_backward.register_autograd(no_second_order)


@register_flop_formula(torch.ops.ddfnet.ddf_layer_trained)
def _(x: Shape, *arguments: Any, out_shape: Any) -> int:
    spatial, _, squeeze, _, excite = arguments[_NORMS : _NORMS + 5]
    return sum(layer_flops(x, spatial, squeeze, excite, out_shape[0]))


@register_flop_formula(torch.ops.ddfnet.ddf_layer_trained_backward)
def _(grad_z: Shape, x: Shape, spatial: Shape, squeeze: Shape, excite: Shape, *_: Any, out_shape: Any) -> int:
    operator, weights = layer_flops(x, spatial, squeeze, excite, grad_z)
    return 3 * operator + 2 * weights
