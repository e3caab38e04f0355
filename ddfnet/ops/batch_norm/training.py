"""Batch normalization in training, with the sum and the ReLU that follow it, as one operator.

Apart, the end of a residual block makes 19 passes over its map: 8 of the normalization, 6 of the sum with its gradient,
5 of the ReLU. This makes 11: one for the moments of x, three for y; backward, four for sums, which write the gradient
of the residual on their way, and three for the gradient of x, which read that. Only Triton has it; elsewhere the layers
are called one by one.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ddfnet.ops.batch_norm import reference
from ddfnet.ops.batch_norm.arguments import MEAN, STATISTICS, VARIANCE, TrainedNorm
from ddfnet.ops.common import (
    DECOMPOSITIONS,
    accumulator_dtype,
    autocast_off,
    define_op,
    empty,
    is_plain,
    runs_on_triton,
)


def batch_norm_trained(
    x: Tensor, norm: TrainedNorm, residual: Tensor | None, relu: bool, update: Callable[[Tensor, Tensor], None]
) -> Tensor:
    """[relu](norm(x) [+ residual]), (B, C, H, W), as x. Rounded to the dtype of x once. Differentiable once.

    Args:
        x: (B, C, H, W), for which `fusible` holds; more than one pixel.
        norm: in any float dtype.
        residual: as x.
        relu: always with a residual.
        update: gets mean and unbiased variance of x, (C,) in float32, without a gradient. Before anything is saved for
            the gradient: gradient checkpointing ends what it runs again with the last tensor saved, and the layers
            have updated their statistics by then. (Afterwards where the call has to pass the dispatcher.)
    """
    tensors = (x, norm.weight, norm.bias, residual)
    if is_plain(*tensors):
        return _Trained.apply(*tensors, norm.eps, relu, update)[0]
    y, statistics = _batch_norm_trained(*tensors, norm.eps, relu)
    update(statistics[MEAN], statistics[VARIANCE])
    return y


def plain_batch_norm_trained(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, eps: float, relu: bool
) -> tuple[Tensor, Tensor]:
    """The definition, in PyTorch: y and the statistics, for `ddfnet::batch_norm_trained`'s arguments."""
    statistics = reference.batch_statistics(x, weight, bias, eps)
    return reference.normalized(x, statistics, residual, relu).to(x.dtype), statistics


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, eps: float, relu: bool
) -> tuple[Tensor, Tensor]:
    if residual is not None and not relu:
        raise ValueError("batch_norm_trained: a residual without a ReLU, whose output the gradient is made from")
    with autocast_off(x):
        if not runs_on_triton(x):
            y, statistics = plain_batch_norm_trained(x, weight, bias, residual, eps, relu)
            return y.contiguous(memory_format=torch.channels_last), statistics
        from ddfnet.ops.batch_norm import triton  # imports the kernels, which a run on the CPU does not need

        return triton.forward(x, TrainedNorm(weight, bias, eps), residual, relu)


def _backward(
    grad_y: Tensor, x: Tensor, y: Tensor | None, statistics: Tensor, relu: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, weight, bias and residual, those of maps in the dtype of x, the others as they are summed.

    y, the output, is given where there was a residual; else the last is empty.
    """
    with autocast_off(x):
        if runs_on_triton(x):
            from ddfnet.ops.batch_norm import triton

            grad_x, of_norm, grad_residual = triton.backward(grad_y, x, y, statistics, relu)
        else:
            behind = grad_y.to(statistics.dtype)
            if relu:
                output = reference.normalized(x, statistics, None, True) if y is None else y
                behind = reference.before_relu(grad_y, output, statistics.dtype)
            grad_x, of_norm = reference.batch_norm_backward(behind, x, statistics)
            grad_x, behind = (
                grad.to(x.dtype).contiguous(memory_format=torch.channels_last) for grad in (grad_x, behind)
            )
            grad_residual = None if y is None else behind
    return grad_x, *of_norm, x.new_empty(0) if grad_residual is None else grad_residual


_batch_norm_trained = define_op("ddfnet::batch_norm_trained", _forward)
_batch_norm_trained_backward = define_op("ddfnet::batch_norm_trained_backward", _backward)
DECOMPOSITIONS[torch.ops.ddfnet.batch_norm_trained.default] = plain_batch_norm_trained


@_batch_norm_trained.register_fake
def _(x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    statistics = x.new_empty((STATISTICS, x.shape[1]), dtype=accumulator_dtype(x))
    return empty(x, x.shape, torch.channels_last), statistics


@_batch_norm_trained_backward.register_fake
def _(grad_y: Tensor, x: Tensor, y: Tensor | None, *_: Any) -> tuple[Tensor, ...]:
    of_norm = (x.new_empty(x.shape[1], dtype=accumulator_dtype(x)) for _ in range(2))
    grad_x, like = empty(x, x.shape, torch.channels_last), x.new_empty(0)
    return grad_x, *of_norm, like if y is None else empty(x, x.shape, torch.channels_last)


def _save_for_backward(ctx: Any, inputs: Sequence, output: tuple) -> None:
    x, weight, bias, residual, _, ctx.relu = inputs
    y, statistics = output
    ctx.mark_non_differentiable(statistics)
    ctx.save_for_backward(x, None if residual is None else y, statistics)
    ctx.dtypes = weight.dtype, bias.dtype
    ctx.set_materialize_grads(False)  # zeros for the statistics, a launch


def _first_order(ctx: Any, grad_y: Tensor | None, _: Tensor | None) -> tuple:
    needed = ctx.needs_input_grad[:4]
    if grad_y is None:
        return (None,) * 6
    saved = ctx.saved_tensors
    direct = not torch.is_grad_enabled() and is_plain(grad_y, *saved)
    backward: Any = _backward if direct else _batch_norm_trained_backward
    grad_x, *of_norm, grad_residual = backward(grad_y, *saved, ctx.relu)
    of_norm = (grad.to(dtype) for grad, dtype in zip(of_norm, ctx.dtypes, strict=True))
    grads = (grad_x, *of_norm, grad_residual)
    return *(grad if need else None for grad, need in zip(grads, needed, strict=True)), None, None


def _no_second_order(ctx: Any, *_: Tensor | None) -> tuple:
    raise RuntimeError("the fused batch normalization has no second-order gradients: build with fused_norms='none'")


class _Trained(torch.autograd.Function):
    """The registered op without the dispatcher, for `is_plain` calls."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        *arguments, update = inputs
        y, statistics = _forward(*arguments)
        update(statistics[MEAN], statistics[VARIANCE])
        _save_for_backward(ctx, arguments, (y, statistics))
        return y, statistics

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple:
        return *_first_order(ctx, *grads), None


_batch_norm_trained.register_autograd(_first_order, setup_context=_save_for_backward)
_batch_norm_trained_backward.register_autograd(_no_second_order)
