"""Registration of the DDF operators with `torch.library`: implementations, fake ones, gradients of any order, FLOPs.

Two ops are registered, `ddfnet::ddf` and `ddfnet::ddf_backward`; `ddf` calls them with scale 1, `ddf_up` with more.
Each picks its implementation in its body: Triton kernels on CUDA, native code on the CPU, plain PyTorch where there is
neither and where the op is traced. Their signatures are flat, because `torch.library` reads the schema from them.
"""

from math import prod
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from ddfnet.ops.common import define_native_op, is_plain, runs_on_triton
from ddfnet.ops.ddf import eager, native
from ddfnet.ops.ddf.arguments import Arguments, Needed

Shape = tuple[int, ...]


def _implementation(arguments: Arguments, *others: Tensor) -> ModuleType:
    if runs_on_triton(arguments.x):
        from ddfnet.ops.ddf import triton  # imports the kernels, which a run on the CPU does not need

        return triton
    return native if native.is_usable(arguments, *others) else eager


def _forward(
    x: Tensor,
    channel_filter: Tensor | None,
    spatial_filter: Tensor | None,
    kernel_size: int,
    stride: int,
    dilation: int,
    multiply: bool,
    scale: int,
) -> Tensor:
    arguments = Arguments(x, channel_filter, spatial_filter, kernel_size, stride, dilation, multiply, scale)
    return _implementation(arguments).forward(arguments)


def _backward(
    grad_y: Tensor,
    x: Tensor,
    channel_filter: Tensor | None,
    spatial_filter: Tensor | None,
    kernel_size: int,
    stride: int,
    dilation: int,
    multiply: bool,
    scale: int,
    need_x: bool,
    need_channel: bool,
    need_spatial: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    arguments = Arguments(x, channel_filter, spatial_filter, kernel_size, stride, dilation, multiply, scale)
    return _implementation(arguments, grad_y).backward(grad_y, arguments, Needed(need_x, need_channel, need_spatial))


def _fake_forward(*arguments: Any) -> Tensor:
    return Arguments(*arguments).empty_output()


def _fake_backward(grad_y: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    return Arguments(*arguments[:-3]).zero_gradients(Needed(*arguments[-3:]))


ddf_op = define_native_op("ddfnet::ddf", _forward, _fake_forward, native.exists)
ddf_backward_op = define_native_op("ddfnet::ddf_backward", _backward, _fake_backward, native.exists)


def _save_for_backward(ctx: Any, inputs: tuple, output: Tensor) -> None:
    x, channel_filter, spatial_filter, *ctx.settings = inputs
    ctx.save_for_backward(x, channel_filter, spatial_filter)


def _first_order(ctx: Any, grad_y: Tensor) -> tuple:
    needed = ctx.needs_input_grad[:3]
    saved = ctx.saved_tensors
    # a graph of gradients needs the registered op, which has gradients itself
    backward = _backward if not torch.is_grad_enabled() and is_plain(grad_y, *saved) else ddf_backward_op
    grads = backward(grad_y, *saved, *ctx.settings, *needed)
    grads = (grad if need else None for grad, need in zip(grads, needed, strict=True))
    return *grads, *(None for _ in ctx.settings)


def _save_for_double_backward(ctx: Any, inputs: tuple, output: tuple) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:4])  # grad_y, x, channel filter, spatial filter
    ctx.settings, ctx.computed = inputs[4:9], inputs[9:]


def _second_order(ctx: Any, *directions: Tensor | None) -> tuple:
    """Gradients of the scalar <v_x, grad_x> + <v_c, grad_c> + <v_s, grad_s> for three directions v.

    The three gradients are vector-Jacobian products of ddf with grad_y, so that the scalar is <grad_y, J v>. And J v,
    the derivative of ddf along v, is a sum of ddf itself with one argument replaced by its direction: with "add", a
    direction of one filter meets x without the other filter. Hence these two ops serve for every order.
    """
    grad_y, x, c, s = ctx.saved_tensors
    multiply = ctx.settings[3]
    # an output that was not computed is an empty placeholder, whose direction means nothing
    v_x, v_c, v_s = (v if computed else None for v, computed in zip(directions, ctx.computed, strict=True))
    terms = []  # the arguments of each ddf in J v, and which of them depend on x, c and s
    if v_x is not None:
        terms.append(((v_x, c, s), (False, True, True)))
    if v_c is not None:
        terms.append(((x, v_c, s if multiply else None), (True, False, multiply)))
    if v_s is not None:
        terms.append(((x, c if multiply else None, v_s), (True, multiply, False)))

    need_grad_y, *needed = ctx.needs_input_grad[:4]
    totals: list[Tensor | None] = [None, None, None, None]
    for tensors, depends in terms:
        parts: list[Tensor | None] = [ddf_op(*tensors, *ctx.settings) if need_grad_y else None]
        wanted = [n and d and t is not None for n, d, t in zip(needed, depends, tensors, strict=True)]
        if any(wanted):
            grads = ddf_backward_op(grad_y, *tensors, *ctx.settings, *wanted)
            parts += [grad if want else None for grad, want in zip(grads, wanted, strict=True)]
        for i, part in enumerate(parts):
            if part is not None:
                totals[i] = part if totals[i] is None else totals[i] + part
    return *totals, *(None for _ in (*ctx.settings, *ctx.computed))


class _DDF(torch.autograd.Function):
    """The registered op without the dispatcher, for `is_plain` calls."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        y = _forward(*inputs)
        _save_for_backward(ctx, inputs, y)
        return y

    backward = staticmethod(_first_order)


def call(x: Tensor, channel_filter: Tensor | None, spatial_filter: Tensor | None, *settings: Any) -> Tensor:
    """`ddfnet::ddf`, directly where nobody could tell."""
    function = _DDF.apply if is_plain(x, channel_filter, spatial_filter) else ddf_op
    return function(x, channel_filter, spatial_filter, *settings)


ddf_op.register_autograd(_first_order, setup_context=_save_for_backward)
ddf_backward_op.register_autograd(_second_order, setup_context=_save_for_double_backward)


# FLOPs, for torch.utils.flop_counter.FlopCounterMode: one multiplication and one addition per tap and output, as for
# convolutions there. Combining the two filters is not counted, and neither are normalization and pooling.
@register_flop_formula(torch.ops.ddfnet.ddf)
def _(x: Shape, channel_filter: Shape | None, spatial_filter: Shape | None, *settings: Any, out_shape: Shape) -> int:
    return 2 * prod(out_shape) * settings[0] ** 2  # kernel_size


@register_flop_formula(torch.ops.ddfnet.ddf_backward)
def _(grad_y: Shape, *arguments: Any, out_shape: Any) -> int:
    return sum(Needed(*arguments[-3:])) * 2 * prod(grad_y) * Arguments(*arguments[:-3]).kernel_size ** 2
