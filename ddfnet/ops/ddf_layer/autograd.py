"""The DDF layer as one operator: both filter branches, their normalization, and `ddf`.

As separate layers the branches read x twice, pass some ten times over the logits, add two gradients of the size of x,
and launch 52 kernels in a training step; this launches 15, or 16 with more than nine logits. Only Triton has it;
elsewhere the layers are called one by one, and `plain_ddf_layer`, which defines it, is what exporters get.
"""

from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from ddfnet.ops.common import (
    DECOMPOSITIONS,
    accumulator_dtype,
    autocast_off,
    define_op,
    empty,
    is_plain,
    output_size,
    runs_on_triton,
    std_mean,
)
from ddfnet.ops.ddf_layer.arguments import (
    Activations,
    Settings,
    Weights,
    empty_activations,
    empty_weight_gradients,
    given_weights,
    gradients_like,
    split,
)

Shape = tuple[int, ...]


def ddf_layer(x: Tensor, weights: Weights, settings: Settings) -> Tensor:
    """y (B, C, ceil(H/stride), ceil(W/stride)) of a `DDF` layer, in the dtype and memory format of x.

    Args:
        x: (B, C, H, W), for which `fusible` holds.
        weights, settings: see there. Sums and filters are in float32; only the spatial filter is rounded to the dtype
            of x.

    Differentiable once.
    """
    if is_plain(x, *weights):
        return _Layer.apply(x, *weights, *settings)
    return _ddf_layer(x, *weights, *settings)[0]


def plain_ddf_layer(x: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    """The definition, in PyTorch: y and the activations, for `ddfnet::ddf_layer`'s arguments."""
    weights, (kernel_size, stride, dilation, heads, multiply, alpha) = split(arguments)
    wide, area = accumulator_dtype(x), kernel_size**2
    spatial: Any
    spatial, spatial_bias, squeeze, squeeze_bias, excite, excite_bias, channel_alpha = (
        None if weight is None else weight.to(wide) for weight in weights
    )
    taps = F.conv2d(x.to(wide), spatial, spatial_bias, stride=stride).unflatten(1, (heads, area))
    std, mean = std_mean(taps)
    spatial_filter = ((taps - mean) / (std + 1e-10) * alpha).flatten(1, 2).to(x.dtype).contiguous()
    pooled = x.mean((2, 3), dtype=wide)
    hidden = F.linear(pooled, squeeze.flatten(1), squeeze_bias).relu()
    logits = F.linear(hidden, excite.flatten(1), excite_bias)
    channel_std, channel_mean = std_mean(logits.unflatten(1, (-1, area)))
    channel_filter = ((logits.unflatten(1, (-1, area)) - channel_mean) / (channel_std + 1e-10)).flatten(
        1
    ) * channel_alpha
    channel_filter = channel_filter.view(x.shape[0], x.shape[1], kernel_size, kernel_size)
    y = torch.ops.ddfnet.ddf(x, channel_filter, spatial_filter, kernel_size, stride, dilation, multiply, 1)
    activations = (1 / (std.squeeze(2) + 1e-10), pooled, hidden, logits, channel_filter.flatten(2).transpose(1, 2))
    return y, spatial_filter, *(tensor.contiguous() for tensor in activations)


def _forward(
    x: Tensor,
    spatial: Tensor,
    spatial_bias: Tensor | None,
    squeeze: Tensor,
    squeeze_bias: Tensor | None,
    excite: Tensor,
    excite_bias: Tensor | None,
    channel_alpha: Tensor,
    kernel_size: int,
    stride: int,
    dilation: int,
    heads: int,
    multiply: bool,
    alpha: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    weights = Weights(spatial, spatial_bias, squeeze, squeeze_bias, excite, excite_bias, channel_alpha)
    settings = Settings(kernel_size, stride, dilation, heads, multiply, alpha)
    with autocast_off(x):
        if not runs_on_triton(x):
            return plain_ddf_layer(x, *weights, *settings)  # type: ignore[return-value]
        from ddfnet.ops.ddf_layer import triton  # imports the kernels, which a run on the CPU does not need

        y, activations = triton.forward(x, weights, settings)
        return y, *activations


def _backward(
    grad_y: Tensor,
    x: Tensor,
    spatial: Tensor,
    squeeze: Tensor,
    excite: Tensor,
    channel_alpha: Tensor,
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
    need_x: bool,
    need_weights: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x and of all weights, as matrices as wide as they are summed; empty tensors for those not needed."""
    weights = given_weights(spatial, squeeze, excite, channel_alpha)
    settings = Settings(kernel_size, stride, dilation, heads, multiply, alpha)
    activations = Activations(spatial_filter, inverse_std, pooled, hidden, logits, channel_filter)
    with autocast_off(x):
        if runs_on_triton(x):
            from ddfnet.ops.ddf_layer import triton

            grad_x, grads = triton.backward(grad_y, x, weights, activations, settings, need_x, need_weights)
        else:
            grad_x, grads = plain_ddf_layer_backward(grad_y, x, weights, activations, settings)
            grads = grads[0].to(x.dtype), *grads[1:]
    if not need_x:
        grad_x = x.new_empty(0)
    if not need_weights:
        grads = tuple(x.new_empty(0) for _ in weights)
    return grad_x, *grads  # type: ignore[return-value]


def plain_ddf_layer_backward(
    grad_y: Tensor, x: Tensor, weights: Weights, activations: Activations, settings: Settings
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The gradients by formula, for where a registered op is called without Triton."""
    spatial_filter, inverse_std, pooled, hidden, logits, channel_filter = activations
    k, stride, heads, wide = settings.kernel_size, settings.stride, settings.heads, accumulator_dtype(x)
    spatial, squeeze, excite = (
        weight.flatten(1).to(wide) for weight in (weights.spatial, weights.squeeze, weights.excite)
    )
    channel_filter = channel_filter.transpose(1, 2).unflatten(2, (k, k))
    options = (k, stride, settings.dilation, settings.multiply, 1, True, True, True)
    grad_x, grad_c, grad_s = torch.ops.ddfnet.ddf_backward(grad_y, x, channel_filter, spatial_filter, *options)

    std, mean = std_mean(logits.unflatten(1, (-1, k * k)))
    normal = (logits.unflatten(1, (-1, k * k)) - mean) / (std + 1e-10)
    grad_c = grad_c.flatten(2).to(wide)
    grad_alpha = (grad_c * normal).sum(0).flatten()
    grad_c = _normalization_backward(grad_c * weights.alpha.to(wide).view(-1, k * k), normal, 1 / (std + 1e-10))
    grad_c = grad_c.flatten(1)
    grad_hidden = (grad_c @ excite) * (hidden > 0)
    grad_pooled = grad_hidden @ squeeze

    normal = spatial_filter.to(wide).unflatten(1, (heads, k * k)) / settings.alpha
    grad_s = grad_s.to(wide).unflatten(1, (heads, k * k)) * settings.alpha
    grad_s = _normalization_backward(grad_s, normal, inverse_std.unsqueeze(2)).flatten(1, 2)
    on_grid = (..., slice(None, None, stride), slice(None, None, stride))
    total = grad_x.to(wide) + (grad_pooled / (x.shape[2] * x.shape[3]))[..., None, None]
    total[on_grid] += torch.einsum("btij,tc->bcij", grad_s, spatial)
    grad_spatial = torch.einsum("btij,bcij->tc", grad_s, x[on_grid].to(wide))

    of_spatial = (grad_spatial, grad_s.sum((0, 2, 3)))
    of_channel = (grad_hidden.t() @ pooled, grad_hidden.sum(0), grad_c.t() @ hidden, grad_c.sum(0), grad_alpha)
    return total.to(x.dtype).contiguous(memory_format=torch.channels_last), (*of_spatial, *of_channel)


def _normalization_backward(grad: Tensor, normal: Tensor, inverse_std: Tensor) -> Tensor:
    """Gradient of the logits, from that of their normalization over dimension 2."""
    along = (grad * normal).sum(2, keepdim=True) / (grad.shape[2] - 1)
    return (grad - grad.mean(2, keepdim=True) - normal * along) * inverse_std


_ddf_layer = define_op("ddfnet::ddf_layer", _forward)
_ddf_layer_backward = define_op("ddfnet::ddf_layer_backward", _backward)
DECOMPOSITIONS[torch.ops.ddfnet.ddf_layer.default] = plain_ddf_layer


@_ddf_layer.register_fake
def _(x: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    weights, options = split(arguments)
    settings = Settings(*options)
    y = empty(x, (*x.shape[:2], *output_size(x, settings.stride)), torch.channels_last)
    return y, *empty_activations(x, weights, settings)


@_ddf_layer_backward.register_fake
def _(grad_y: Tensor, x: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    spatial, squeeze, excite, alpha = arguments[:4]
    need_x, need_weights = arguments[-2:]
    grad_x = empty(x, x.shape, torch.channels_last) if need_x else x.new_empty(0)
    if not need_weights:
        return grad_x, *(x.new_empty(0) for _ in Weights._fields)
    weights = given_weights(spatial, squeeze, excite, alpha)
    return grad_x, *empty_weight_gradients(x, weights, x.dtype)


def _save_for_backward(ctx: Any, inputs: tuple, output: tuple) -> None:
    x, *rest = inputs
    weights, ctx.settings = split(rest)
    # of the biases nothing but their dtypes plays a part
    ctx.save_for_backward(x, weights.spatial, weights.squeeze, weights.excite, weights.alpha, *output[1:])
    ctx.dtypes = [None if weight is None else weight.dtype for weight in weights]
    ctx.set_materialize_grads(False)  # zeros for the other outputs, each a launch


def _mark_and_save(ctx: Any, inputs: tuple, output: tuple) -> None:
    ctx.mark_non_differentiable(*output[1:])
    _save_for_backward(ctx, inputs, output)


def _first_order(ctx: Any, grad_y: Tensor | None, *_: Tensor | None) -> tuple:
    if grad_y is None:
        return (None,) * len(ctx.needs_input_grad)
    saved = ctx.saved_tensors
    needed = ctx.needs_input_grad[: 1 + len(Weights._fields)]
    # A graph of gradients needs the registered op, which has a name for those who ask for a second order.
    direct = not torch.is_grad_enabled() and is_plain(grad_y, *saved)
    backward: Any = _backward if direct else _ddf_layer_backward
    grad_x, *grads = backward(grad_y, *saved, *ctx.settings, needed[0], any(needed[1:]))
    of_weights = gradients_like(given_weights(*saved[1:5]), ctx.dtypes, grads, needed[1:])
    return grad_x if needed[0] else None, *of_weights, *(None for _ in ctx.settings)


def no_second_order(ctx: Any, *_: Tensor | None) -> tuple:
    """The gradient of a gradient."""
    raise RuntimeError("the fused layer has no second-order gradients: build DDF(..., fused_filters=False)")


class _Layer(torch.autograd.Function):
    """The registered op without the dispatcher, for `is_plain` calls."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        output = _forward(*inputs)
        _save_for_backward(ctx, inputs, output)
        return output[0]

    backward = staticmethod(_first_order)


_ddf_layer.register_autograd(_first_order, setup_context=_mark_and_save)
_ddf_layer_backward.register_autograd(no_second_order)


# FLOPs, for torch.utils.flop_counter.FlopCounterMode: one multiplication and one addition per tap and output, as for
# convolutions there. Combining the two filters is not counted, and neither are normalization and pooling.
def layer_flops(x: Shape, spatial: Shape, squeeze: Shape, excite: Shape, out: Shape) -> tuple[int, int]:
    """Of the operator, and of the products with weights."""
    pixels = out[0] * prod(out[2:])
    weights = pixels * prod(spatial) + x[0] * (prod(squeeze) + prod(excite))
    return 2 * prod(out) * excite[0] // x[1], 2 * weights


@register_flop_formula(torch.ops.ddfnet.ddf_layer)
def _(x: Shape, spatial: Shape, _: Any, squeeze: Shape, _b: Any, excite: Shape, *_s: Any, out_shape: Any) -> int:
    return sum(layer_flops(x, spatial, squeeze, excite, out_shape[0]))


@register_flop_formula(torch.ops.ddfnet.ddf_layer_backward)
def _(grad_y: Shape, x: Shape, spatial: Shape, squeeze: Shape, excite: Shape, *rest: Any, out_shape: Any) -> int:
    operator, weights = layer_flops(x, spatial, squeeze, excite, grad_y)
    need_x, need_weights = rest[-2:]
    # through the operator and the weights to x, and to each of them
    return (2 + need_x) * operator + (1 + need_weights) * weights
