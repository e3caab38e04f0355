"""The DDF operators: the public functions, and their registration with `torch.library`.

Two ops are registered, `ddfnet::ddf` and `ddfnet::ddf_backward`; `ddf` calls them with scale 1, `ddf_up` with more.
Each picks its implementation in its body: Triton kernels on CUDA, plain PyTorch everywhere else.
"""

import torch
from torch import Tensor

from ddfnet.ops import torch_impl, torch_upsampling
from ddfnet.ops.arguments import check_arguments
from ddfnet.ops.layout import memory_format_of, output_size
from ddfnet.ops.registration import define_op, runs_on_triton


def ddf(
    x: Tensor,
    channel_filter: Tensor | None,
    spatial_filter: Tensor | None,
    *,
    stride: int = 1,
    dilation: int = 1,
    combine: str = "mul",
    kernel_size: int | None = None,
) -> Tensor:
    """Decoupled dynamic filter (Zhou et al., CVPR 2021, eq. 3): each pixel of each channel has a filter of its own.

    `y[b,c,i,j] = sum over taps (u,v) of x[b, c, i*s+(u-r)*d, j*s+(v-r)*d] * (F_ch[b,c,u,v] (*|+) F_sp[b,g(c),u,v,i,j])`
    with s the stride, d the dilation, r = (k-1)/2, zero padding, and g(c) = c // (C/G) the head of channel c.

    Sums are taken in float32 (float64 for float64 `x`), whatever the dtype of the filters. `y` has the dtype of `x`,
    and its memory format: channels_last for channels_last `x`, contiguous for everything else. Differentiable to any
    order; gradients are bitwise reproducible. Works under torch.compile(fullgraph=True) and torch.export.

    Under autocast, `x` and `spatial_filter` are cast to the autocast dtype (float64 is left alone), and so is `y`;
    `channel_filter` keeps its dtype.

    Args:
        x: (B, C, H, W), float16, bfloat16, float32 or float64. B may be 0.
        channel_filter: (B, C, k, k), k odd. None: only the spatial filter acts (involution, CARAFE).
        spatial_filter: (B, G*k*k, ceil(H/stride), ceil(W/stride)), where G heads divide C; channel (g*k + u)*k + v
            holds tap (u, v) of head g. None: only the channel filter acts (dynamic depthwise convolution).
        stride: step between the centres of neighbouring windows, in input pixels.
        dilation: distance between neighbouring taps, in input pixels.
        combine: "mul" or "add": how the two filters become one. Without effect if one is None.
        kernel_size: k. Needed only if `channel_filter` is None and k cannot be inferred from the channels of
            `spatial_filter` (an odd square is one head; otherwise the only odd k >= 3 that leaves G dividing C).

    Returns:
        y: (B, C, ceil(H/stride), ceil(W/stride)).

    Raises:
        ValueError: a shape, a device or a value that does not fit; the message names the argument.
        TypeError: an argument of the wrong type, or a tensor that is not of a floating dtype.
    """
    kernel_size = check_arguments(
        x,
        channel_filter,
        spatial_filter,
        stride=stride,
        dilation=dilation,
        combine=combine,
        kernel_size=kernel_size,
    )
    x, spatial_filter = autocast(x), autocast(spatial_filter)
    return _ddf(x, channel_filter, spatial_filter, kernel_size, stride, dilation, combine == "mul", 1)


def ddf_up(
    x: Tensor,
    channel_filter: Tensor | None,
    spatial_filter: Tensor | None,
    *,
    scale: int,
    dilation: int = 1,
    combine: str = "mul",
    kernel_size: int | None = None,
) -> Tensor:
    """DDF upsampling (Zhou et al., CVPR 2021, section 6): scale * scale filters, one for each new pixel.

    With phase p = a*scale + e the place of a new pixel within an old one,
    `y[b,c, i*scale+a, j*scale+e] = sum over taps (u,v) of x[b, c, i+(u-r)*d, j+(v-r)*d] * F[b,p,c,u,v,i,j]`
    with F the two filters of phase p combined. The result is written where it belongs: no stack of scale * scale
    outputs, no pixel shuffle.

    All else is as for `ddf`: sums in float32, memory format, autocast, gradients, torch.compile, errors.

    Args:
        x: (B, C, H, W), float16, bfloat16, float32 or float64. B may be 0.
        channel_filter: (B, scale*scale, C, k, k), k odd, or None.
        spatial_filter: (B, scale*scale*G*k*k, H, W), or None; channel ((p*G + g)*k + u)*k + v holds tap (u, v) of head
            g of phase p.
        scale: how many new pixels an old one becomes along each axis; 2 or more.
        dilation: distance between neighbouring taps, in pixels of x.
        combine: "mul" or "add": how the two filters become one. Without effect if one is None.
        kernel_size: k. Needed only if `channel_filter` is None and k cannot be inferred, as for `ddf`.

    Returns:
        y: (B, C, H*scale, W*scale).

    Raises:
        ValueError, TypeError: as for `ddf`.
    """
    kernel_size = check_arguments(
        x,
        channel_filter,
        spatial_filter,
        stride=1,
        dilation=dilation,
        combine=combine,
        kernel_size=kernel_size,
        scale=scale,
    )
    x, spatial_filter = autocast(x), autocast(spatial_filter)
    return _ddf(x, channel_filter, spatial_filter, kernel_size, 1, dilation, combine == "mul", scale)


def autocast(tensor: Tensor | None) -> Tensor | None:
    """`tensor` in the dtype of the autocast region it is in; float64 is left alone."""
    if tensor is None or tensor.dtype == torch.float64 or tensor.is_meta:  # autocast knows no meta device
        return tensor
    if not torch.is_autocast_enabled(tensor.device.type):
        return tensor
    return tensor.to(torch.get_autocast_dtype(tensor.device.type))


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
    if runs_on_triton(x):
        from ddfnet.ops import triton_launch  # imports the kernels, which a run on the CPU does not need

        return triton_launch.forward(x, channel_filter, spatial_filter, kernel_size, stride, dilation, multiply, scale)
    if scale > 1:
        return torch_upsampling.forward(x, channel_filter, spatial_filter, kernel_size, dilation, multiply, scale)
    return torch_impl.forward(x, channel_filter, spatial_filter, kernel_size, stride, dilation, multiply)


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
    need = (need_x, need_channel, need_spatial)
    if runs_on_triton(x):
        from ddfnet.ops import triton_launch

        settings = (kernel_size, stride, dilation, multiply, scale)
        return triton_launch.backward(grad_y, x, channel_filter, spatial_filter, *settings, *need)
    if scale > 1:
        settings = (kernel_size, dilation, multiply, scale)
        return torch_upsampling.backward(grad_y, x, channel_filter, spatial_filter, *settings, *need)
    settings = (kernel_size, stride, dilation, multiply)
    return torch_impl.backward(grad_y, x, channel_filter, spatial_filter, *settings, *need)


_ddf = define_op("ddfnet::ddf", _forward)
_ddf_backward = define_op("ddfnet::ddf_backward", _backward)


@_ddf.register_fake
def _(
    x: Tensor,
    channel_filter: Tensor | None,
    spatial_filter: Tensor | None,
    kernel_size: int,
    stride: int,
    dilation: int,
    multiply: bool,
    scale: int,
) -> Tensor:
    height, width = output_size(x, stride)
    size = (*x.shape[:2], height * scale, width * scale)
    return torch.empty(size, dtype=x.dtype, device=x.device, memory_format=memory_format_of(x))


@_ddf_backward.register_fake
def _(
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
    return (
        torch.empty_like(x, memory_format=memory_format_of(x)) if need_x else x.new_empty(0),
        torch.empty_like(channel_filter, memory_format=torch.contiguous_format) if need_channel else x.new_empty(0),
        torch.empty_like(spatial_filter, memory_format=torch.contiguous_format) if need_spatial else x.new_empty(0),
    )


def _save_for_backward(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: Tensor) -> None:
    x, channel_filter, spatial_filter, *ctx.settings = inputs
    ctx.save_for_backward(x, channel_filter, spatial_filter)


def _first_order(ctx: torch.autograd.function.FunctionCtx, grad_y: Tensor) -> tuple:
    need = ctx.needs_input_grad[:3]
    grads = _ddf_backward(grad_y, *ctx.saved_tensors, *ctx.settings, *need)
    return *(grad if needed else None for grad, needed in zip(grads, need, strict=True)), None, None, None, None, None


def _save_for_double_backward(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: tuple) -> None:
    grad_y, x, channel_filter, spatial_filter, *settings = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(grad_y, x, channel_filter, spatial_filter)
    ctx.settings, ctx.computed = settings[:5], settings[5:]


def _second_order(ctx: torch.autograd.function.FunctionCtx, *directions: Tensor | None) -> tuple:
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

    need_grad_y, *need = ctx.needs_input_grad[:4]
    totals: list[Tensor | None] = [None, None, None, None]
    for tensors, depends in terms:
        parts: list[Tensor | None] = [_ddf(*tensors, *ctx.settings) if need_grad_y else None]
        wanted = [n and d and t is not None for n, d, t in zip(need, depends, tensors, strict=True)]
        if any(wanted):
            grads = _ddf_backward(grad_y, *tensors, *ctx.settings, *wanted)
            parts += [grad if want else None for grad, want in zip(grads, wanted, strict=True)]
        for i, part in enumerate(parts):
            if part is not None:
                totals[i] = part if totals[i] is None else totals[i] + part
    return *totals, None, None, None, None, None, None, None, None


_ddf.register_autograd(_first_order, setup_context=_save_for_backward)
_ddf_backward.register_autograd(_second_order, setup_context=_save_for_double_backward)
