"""Filter normalization as an operator, `ddfnet::filter_norm`, with gradients of any order.

As single operations of PyTorch it passes some ten times over the logits, in forward and backward each, and reducing
nine neighbors in memory is slow. On the CPU native code makes one pass, and only the logits are kept for backward.
"""

from typing import Any

import torch
from torch import Tensor

from ddfnet.ops.common import DECOMPOSITIONS, accumulator_dtype, define_native_op, is_plain, memory_format_of, std_mean
from ddfnet.ops.filter_norm import native

_EPSILON = 1e-10


def filter_norm(logits: Tensor, groups: int, alpha: Tensor | float) -> Tensor:
    """`alpha * (f - mean(f)) / (std(f) + 1e-10)` over the taps f of each filter, with the unbiased std.

    In float32 at least: in float16 the 1e-10 would be 0, and equal logits would give NaN.

    Args:
        logits: (B, groups * taps, H, W), floating.
        groups: filters per image and pixel.
        alpha: a number, or a tensor (groups * taps,).

    Returns:
        The shape of the logits; in their dtype, or with a tensor of alpha in float32 (float64 for float64 logits).
    """
    constant, tensor = (1.0, alpha) if isinstance(alpha, Tensor) else (alpha, None)
    if logits.device.type == "cpu":
        call = _FilterNorm.apply if is_plain(logits, tensor) else _filter_norm
        return call(logits, tensor, constant, groups)
    return plain_filter_norm(logits, tensor, constant, groups)


def plain_filter_norm(logits: Tensor, alpha: Tensor | None, constant: float, groups: int) -> Tensor:
    """The definition, in PyTorch."""
    work = logits.to(accumulator_dtype(logits))
    taps = work.unflatten(1, (groups, -1))
    std, mean = std_mean(taps)
    normal = ((taps - mean) / (std + _EPSILON)).flatten(1, 2)
    if alpha is None:
        return (normal * constant).to(logits.dtype)
    return normal * alpha.to(normal.dtype).view(1, -1, 1, 1)


def plain_backward(
    grad: Tensor, logits: Tensor, alpha: Tensor | None, constant: float, groups: int
) -> tuple[Tensor, Tensor | None]:
    """Gradients of logits and alpha, in their dtypes, for that of the filters; differentiable itself."""
    work = logits.to(accumulator_dtype(logits))
    taps, grad = work.unflatten(1, (groups, -1)), grad.to(work.dtype)
    std, mean = std_mean(taps)
    inverse = 1 / (std + _EPSILON)
    normal = (taps - mean) * inverse
    weighted = grad * (constant if alpha is None else alpha.to(work.dtype).view(1, -1, 1, 1))
    weighted = weighted.unflatten(1, (groups, -1))
    # where all logits are equal std has no derivative: 0, as in PyTorch
    direction = (taps - mean) / ((taps.shape[2] - 1) * torch.where(std == 0, torch.inf, std))
    along = (weighted * normal).sum(2, keepdim=True)
    grad_logits = (weighted - weighted.mean(2, keepdim=True) - along * direction) * inverse
    grad_alpha = None if alpha is None else (grad * normal.flatten(1, 2)).sum((0, 2, 3)).to(alpha.dtype)
    return grad_logits.flatten(1, 2).to(logits.dtype), grad_alpha


def _dtype(logits: Tensor, alpha: Tensor | None) -> torch.dtype:
    """Of the filters."""
    return logits.dtype if alpha is None else accumulator_dtype(logits)


def _forward(logits: Tensor, alpha: Tensor | None, constant: float, groups: int) -> Tensor:
    if native.is_usable(logits, alpha):
        return native.forward(logits, alpha, constant, groups, _dtype(logits, alpha))
    filters = plain_filter_norm(logits, alpha, constant, groups)
    return filters.contiguous(memory_format=memory_format_of(logits))


def _backward(
    grad: Tensor, logits: Tensor, alpha: Tensor | None, constant: float, groups: int
) -> tuple[Tensor, Tensor]:
    if native.is_usable(logits, alpha, grad):
        grad_logits, grad_alpha = native.backward(grad, logits, alpha, constant, groups)
    else:
        grad_logits, grad_alpha = plain_backward(grad, logits, alpha, constant, groups)
        grad_logits = grad_logits.contiguous(memory_format=memory_format_of(logits))
    return grad_logits, logits.new_empty(0) if grad_alpha is None else grad_alpha


def _fake_forward(logits: Tensor, alpha: Tensor | None, constant: float, groups: int) -> Tensor:
    return torch.empty_like(logits, dtype=_dtype(logits, alpha), memory_format=memory_format_of(logits))


def _fake_backward(
    grad: Tensor, logits: Tensor, alpha: Tensor | None, constant: float, groups: int
) -> tuple[Tensor, Tensor]:
    grad_logits = torch.empty_like(logits, memory_format=memory_format_of(logits))
    contiguous = torch.contiguous_format
    return grad_logits, logits.new_empty(0) if alpha is None else torch.empty_like(alpha, memory_format=contiguous)


_filter_norm = define_native_op("ddfnet::filter_norm", _forward, _fake_forward, native.exists)
_filter_norm_backward = define_native_op("ddfnet::filter_norm_backward", _backward, _fake_backward, native.exists)
DECOMPOSITIONS[torch.ops.ddfnet.filter_norm.default] = plain_filter_norm


def _save_for_backward(ctx: Any, inputs: tuple, output: Tensor) -> None:
    logits, alpha, *ctx.settings = inputs
    ctx.save_for_backward(logits, alpha)


def _first_order(ctx: Any, grad: Tensor) -> tuple:
    logits, alpha = ctx.saved_tensors
    # a graph of gradients needs the registered op, which has gradients itself
    backward = _backward if not torch.is_grad_enabled() and is_plain(grad, logits, alpha) else _filter_norm_backward
    grad_logits, grad_alpha = backward(grad, logits, alpha, *ctx.settings)
    return grad_logits, None if alpha is None else grad_alpha, None, None


class _FilterNorm(torch.autograd.Function):
    """The registered op without the dispatcher, for `is_plain` calls."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        filters = _forward(*inputs)
        _save_for_backward(ctx, inputs, filters)
        return filters

    backward = staticmethod(_first_order)


def _save_for_double_backward(ctx: Any, inputs: tuple, output: tuple) -> None:
    *tensors, ctx.constant, ctx.groups = inputs
    ctx.save_for_backward(*tensors)


def _second_order(ctx: Any, *directions: Tensor) -> tuple:
    """Gradients of the formula of the first ones, by PyTorch."""
    any_order = torch.is_grad_enabled()
    with torch.enable_grad():
        # The gradient may itself be made of the logits: asked for by these names, that way to them is left out.
        aliases: Any = [None if tensor is None else tensor.view_as(tensor) for tensor in ctx.saved_tensors]
        grad, logits, alpha = aliases
        pairs = zip((grad, logits, alpha), ctx.needs_input_grad, strict=False)
        needed = [tensor for tensor, need in pairs if need]
        outputs = plain_backward(grad, logits, alpha, ctx.constant, ctx.groups)
        # without alpha the second one is a placeholder; with it, it does not depend on alpha
        results = zip(outputs, directions, strict=True)
        totals = [(out * direction).sum() for out, direction in results if out is not None and out.requires_grad]
        found = iter(torch.autograd.grad(totals, needed, create_graph=any_order, allow_unused=True))
    return *(next(found) if need else None for need in ctx.needs_input_grad[:3]), None, None


_filter_norm.register_autograd(_first_order, setup_context=_save_for_backward)
_filter_norm_backward.register_autograd(_second_order, setup_context=_save_for_double_backward)
