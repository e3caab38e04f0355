"""The DDF operators in plain PyTorch: shifted multiply-accumulates, forward and explicit backward, no unfold buffer.

This is what runs on the CPU (eager, and fused by torch.compile) and wherever Triton is not available. Arithmetic is in
float32 (float64 for float64 inputs) whatever the dtype of the tensors. Tensors are viewed as (B, G, C/G, H, W), so that
at each tap the channel filter is (B, G, C/G, 1, 1) and the spatial filter (B, G, 1, Ho, Wo): broadcasting does the
rest. Upsampling is one such pass for each phase, on its own pixels of y.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ddfnet.ops.ddf.arguments import Arguments, Needed


def forward(args: Arguments) -> Tensor:
    """y (B, C, Ho * scale, Wo * scale) in the dtype and memory format of x."""
    if args.scale > 1:
        y = args.empty_output()
        for phase in range(args.phases):
            _pixels(y, phase, args.scale).copy_(forward(args.phase(phase)))
        return y
    windows = _windows(_padded(args, args.x, args.memory_format), args, args.stride)
    return _sum_of_products(args, args.filter_size, zip(windows, _channel_taps(args), _spatial_taps(args), strict=True))


def backward(grad_y: Tensor, args: Arguments, needed: Needed) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, channel filter and spatial filter in their dtypes; an empty tensor for each one not needed."""
    if args.scale > 1:
        return _backward_up(grad_y, args, needed)
    grad_x, grad_channel, grad_spatial = (args.x.new_empty(0) for _ in needed)
    if needed.x:
        grad_x = _backward_x(grad_y, args)
    if needed.channel or needed.spatial:
        windows = _windows(_padded(args, args.x, args.memory_format), args, args.stride)
        grad_y = grad_y.to(args.accumulator).contiguous(memory_format=args.memory_format).unflatten(1, (args.heads, -1))
        channel_sums, spatial_sums = [], []
        for window, channel, spatial in zip(windows, _channel_taps(args), _spatial_taps(args), strict=True):
            correlation = grad_y * window
            if needed.channel:
                channel_sums.append((correlation * spatial if args.product else correlation).sum((3, 4)))
            if needed.spatial:
                weighted = correlation * channel if args.product else correlation
                spatial_sums.append(weighted.sum(2) if args.heads == 1 else _sum_heads(weighted))
        if needed.channel:
            grad_channel = torch.stack(channel_sums, -1).view(args.channel_filter.shape).to(args.channel_filter.dtype)
        if needed.spatial:
            grad_spatial = torch.stack(spatial_sums, 2).view(args.spatial_filter.shape).to(args.spatial_filter.dtype)
    return grad_x, grad_channel, grad_spatial


def _backward_x(grad_y: Tensor, args: Arguments) -> Tensor:
    """The forward pass with the taps mirrored, over grad_y and spatial filter laid out on the grid of x.

    Gathering beats scattering into shifted windows: no padded result to cut out, and torch.compile fuses it.
    With a stride the grid has zeros between the output pixels, which are multiplied in vain.
    """
    windows = _windows(_padded(args, grad_y, args.memory_format, args.stride), args, 1)
    spatial_taps: list[Tensor | None] = [None] * args.area
    if args.spatial_filter is not None:
        # what window t shows is met by the mirrored tap: of the weights there, those of that tap count
        spatial_windows = _windows(_padded(args, args.spatial_filter, torch.contiguous_format, args.stride), args, 1)
        spatial_taps = [window[:, :, args.area - 1 - tap, None] for tap, window in enumerate(spatial_windows)]
    return _sum_of_products(
        args, args.x.shape[2:], zip(windows, reversed(_channel_taps(args)), spatial_taps, strict=True)
    )


def _backward_up(grad_y: Tensor, args: Arguments, needed: Needed) -> tuple[Tensor, Tensor, Tensor]:
    # x in the dtype of the sums, so that its gradients of the phases are not rounded before they are added
    wide = args._replace(x=args.x.to(args.accumulator))
    grad_x, channel_grads, spatial_grads = args.x.new_empty(0), [], []
    for phase in range(args.phases):
        phase_x, phase_channel, phase_spatial = backward(_pixels(grad_y, phase, args.scale), wide.phase(phase), needed)
        if needed.x:
            grad_x = phase_x if phase == 0 else grad_x.add_(phase_x)
        channel_grads.append(phase_channel)
        spatial_grads.append(phase_spatial)
    grad_channel = torch.stack(channel_grads, 1) if needed.channel else args.x.new_empty(0)
    grad_spatial = torch.cat(spatial_grads, 1) if needed.spatial else args.x.new_empty(0)
    return grad_x.to(args.x.dtype), grad_channel, grad_spatial


@torch.library.custom_op("ddfnet::sum_heads", mutates_args=())
def _sum_heads(weighted: Tensor) -> Tensor:
    """(B, G, C/G, H, W) -> (B, G, H, W), the sum over the channels of each head, hidden from torch.compile.

    Inductor (torch 2.15) compiles this sum, for several heads in channels_last, into code that writes past the end of
    each row whose width is no multiple of the vector width.
    """
    return weighted.sum(2)


@_sum_heads.register_fake
def _(weighted: Tensor) -> Tensor:
    return torch.empty_like(weighted.sum(2))


def _sum_of_products(args: Arguments, size: Sequence[int], terms: Iterable[tuple[Tensor, Any, Any]]) -> Tensor:
    """(B, C, *size), the sum of window * (channel factor combined with spatial factor); a factor may be absent."""
    total = torch.empty(
        (*args.x.shape[:2], *size), dtype=args.accumulator, device=args.x.device, memory_format=args.memory_format
    )
    total = total.zero_().unflatten(1, (args.heads, -1))
    for window, channel, spatial in terms:
        if args.product:
            total = _addcmul(total, window * channel, spatial)
        else:  # w * (f + g) = w * f + w * g: two passes, but no temporary of the size of x
            for factor in (channel, spatial):
                if factor is not None:
                    total = _addcmul(total, window, factor)
    return total.flatten(1, 2).to(args.x.dtype)


def _addcmul(total: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """total + a * b. In place, unless torch.compile fuses the whole chain, which it does for pure expressions only."""
    return torch.addcmul(total, a, b) if torch.compiler.is_compiling() else total.addcmul_(a, b)


def _padded(args: Arguments, tensor: Tensor, memory_format: torch.memory_format, step: int = 1) -> Tensor:
    """`tensor` on every `step`-th pixel of a zero map of the size of x, inside a border of zeros; (B, G, ...)."""
    padding = args.kernel_size // 2 * args.dilation
    if step == 1:
        out = F.pad(tensor.to(args.accumulator).contiguous(memory_format=memory_format), (padding,) * 4)
    else:
        height, width = args.x.shape[2:]
        size = (*tensor.shape[:2], height + 2 * padding, width + 2 * padding)
        out = torch.empty(size, dtype=args.accumulator, device=tensor.device, memory_format=memory_format).zero_()
        out[..., padding : padding + height : step, padding : padding + width : step].copy_(tensor)
    return out.unflatten(1, (args.heads, -1))


def _channel_taps(args: Arguments) -> list[Tensor | None]:
    """For each tap (B, G, C/G, 1, 1), or None."""
    if args.channel_filter is None:
        return [None] * args.area
    taps = args.channel_filter.to(args.accumulator).flatten(2).unflatten(1, (args.heads, -1)).unbind(-1)
    return [tap[..., None, None] for tap in taps]


def _spatial_taps(args: Arguments) -> list[Tensor | None]:
    """For each tap (B, G, 1, Ho, Wo), or None; planar, so that a tap is read as one contiguous map."""
    if args.spatial_filter is None:
        return [None] * args.area
    taps = args.spatial_filter.to(args.accumulator).contiguous().unflatten(1, (args.heads, args.area)).unbind(2)
    return [tap[:, :, None] for tap in taps]


def _windows(padded: Tensor, args: Arguments, stride: int) -> list[Tensor]:
    """For each tap a view (..., Ho, Wo) of a padded map: what this tap meets in the window of each output pixel."""
    border = (args.kernel_size - 1) * args.dilation
    # so that size - border is the size without its padding, and the slices have ceil(size / stride) elements
    height, width = padded.shape[-2] - border, padded.shape[-1] - border
    starts = range(0, border + 1, args.dilation)
    rows = [padded[..., row : row + height : stride, :] for row in starts]
    return [view[..., column : column + width : stride] for view in rows for column in starts]


def _pixels(y: Tensor, phase: int, scale: int) -> Tensor:
    """The pixels (i * scale + a, j * scale + e) of y, where phase = a * scale + e."""
    return y[..., phase // scale :: scale, phase % scale :: scale]
