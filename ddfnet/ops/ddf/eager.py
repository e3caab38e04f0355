"""The DDF operator in plain PyTorch: shifted multiply-accumulates, forward and explicit backward, no unfold buffer.

This is what runs on the CPU (eager, and fused by torch.compile) and wherever Triton is not available. Arithmetic is in
float32 (float64 for float64 inputs) whatever the dtype of the tensors. Tensors are viewed as (B, G, C/G, H, W), so that
at each tap the channel filter is (B, G, C/G, 1, 1) and the spatial filter (B, G, 1, Ho, Wo): broadcasting does the
rest. The arguments are those of the ops in `ddf.py`, already checked there.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from ddfnet.ops.common import accumulator_dtype, memory_format_of, output_size


def forward(
    x: Tensor,
    channel_filter: Tensor | None,
    spatial_filter: Tensor | None,
    kernel_size: int,
    stride: int,
    dilation: int,
    multiply: bool,
) -> Tensor:
    """y (B, C, Ho, Wo) in the dtype and memory format of x."""
    height, width = output_size(x, stride)
    area = kernel_size * kernel_size
    heads = _heads(spatial_filter, area)
    padding = kernel_size // 2 * dilation
    dtype = accumulator_dtype(x)

    y = torch.empty((*x.shape[:2], height, width), dtype=dtype, device=x.device, memory_format=memory_format_of(x))
    x_padded = _embed(x, dtype, memory_format_of(x), padding, *x.shape[2:]).unflatten(1, (heads, -1))
    channel_taps = _channel_taps(channel_filter, dtype, heads, area)
    spatial_taps = _spatial_taps(spatial_filter, dtype, heads, area)
    windows = _windows(x_padded, kernel_size, stride, dilation)
    terms = zip(windows, channel_taps, spatial_taps, strict=True)
    y = _multiply_accumulate(y.zero_().unflatten(1, (heads, -1)), terms, multiply).flatten(1, 2)
    return y.to(x.dtype)


def backward(
    grad_y: Tensor,
    x: Tensor,
    channel_filter: Tensor | None,
    spatial_filter: Tensor | None,
    kernel_size: int,
    stride: int,
    dilation: int,
    multiply: bool,
    need_x: bool,
    need_channel: bool,
    need_spatial: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, channel filter and spatial filter in their dtypes; an empty tensor for each one not needed."""
    grad_x, grad_channel, grad_spatial = x.new_empty(0), x.new_empty(0), x.new_empty(0)
    if need_x:
        grad_x = _backward_x(grad_y, x, channel_filter, spatial_filter, kernel_size, stride, dilation, multiply)
    if need_channel or need_spatial:
        area = kernel_size * kernel_size
        heads = _heads(spatial_filter, area)
        dtype = accumulator_dtype(x)
        padding = kernel_size // 2 * dilation
        x_padded = _embed(x, dtype, memory_format_of(x), padding, *x.shape[2:]).unflatten(1, (heads, -1))
        grad_y = grad_y.to(dtype).contiguous(memory_format=memory_format_of(x)).unflatten(1, (heads, -1))
        product = multiply and channel_filter is not None and spatial_filter is not None
        channel_taps = _channel_taps(channel_filter, dtype, heads, area)
        spatial_taps = _spatial_taps(spatial_filter, dtype, heads, area)

        channel_sums, spatial_sums = [], []
        windows = _windows(x_padded, kernel_size, stride, dilation)
        for window, channel, spatial in zip(windows, channel_taps, spatial_taps, strict=True):
            correlation = grad_y * window
            if need_channel:
                channel_sums.append((correlation * spatial if product else correlation).sum((3, 4)))
            if need_spatial:
                weighted = correlation * channel if product else correlation
                spatial_sums.append(weighted.sum(2) if heads == 1 else _sum_heads(weighted))
        if need_channel:
            grad_channel = torch.stack(channel_sums, -1).view(channel_filter.shape).to(channel_filter.dtype)
        if need_spatial:
            grad_spatial = torch.stack(spatial_sums, 2).view(spatial_filter.shape).to(spatial_filter.dtype)
    return grad_x, grad_channel, grad_spatial


def _backward_x(
    grad_y: Tensor,
    x: Tensor,
    channel_filter: Tensor | None,
    spatial_filter: Tensor | None,
    kernel_size: int,
    stride: int,
    dilation: int,
    multiply: bool,
) -> Tensor:
    """The forward pass with the taps mirrored, over grad_y and spatial filter laid out on the grid of x.

    Gathering beats scattering into shifted windows: no padded result to cut out, and torch.compile fuses it.
    With a stride the grid has zeros between the output pixels, which are multiplied in vain.
    """
    height, width = x.shape[2:]
    area = kernel_size * kernel_size
    heads = _heads(spatial_filter, area)
    padding = kernel_size // 2 * dilation
    dtype = accumulator_dtype(x)

    grad_x = torch.empty(x.shape, dtype=dtype, device=x.device, memory_format=memory_format_of(x))
    grid = _embed(grad_y, dtype, memory_format_of(x), padding, height, width, stride).unflatten(1, (heads, -1))
    channel_taps = _channel_taps(channel_filter, dtype, heads, area)
    spatial_taps: list[Tensor | None] = [None] * area
    if spatial_filter is not None:
        spatial_grid = _embed(spatial_filter, dtype, torch.contiguous_format, padding, height, width, stride)
        # what window t shows is met by the mirrored tap: of the weights there, those of that tap count
        windows = _windows(spatial_grid.unflatten(1, (heads, area)), kernel_size, 1, dilation)
        spatial_taps = [window[:, :, area - 1 - tap, None] for tap, window in enumerate(windows)]
    terms = zip(_windows(grid, kernel_size, 1, dilation), reversed(channel_taps), spatial_taps, strict=True)
    grad_x = _multiply_accumulate(grad_x.zero_().unflatten(1, (heads, -1)), terms, multiply).flatten(1, 2)
    return grad_x.to(x.dtype)


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


def _multiply_accumulate(
    total: Tensor, terms: Iterable[tuple[Tensor, Tensor | None, Tensor | None]], multiply: bool
) -> Tensor:
    """`total` + the sum of window * (channel factor combined with spatial factor); a factor may be absent."""
    for window, channel, spatial in terms:
        if multiply and channel is not None and spatial is not None:
            total = _addcmul(total, window * channel, spatial)
        else:  # w * (f + g) = w * f + w * g: two passes, but no temporary of the size of x
            for factor in (channel, spatial):
                if factor is not None:
                    total = _addcmul(total, window, factor)
    return total


def _addcmul(total: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """total + a * b. In place, unless torch.compile fuses the whole chain, which it does for pure expressions only."""
    return torch.addcmul(total, a, b) if torch.compiler.is_compiling() else total.addcmul_(a, b)


def _embed(
    tensor: Tensor,
    dtype: torch.dtype,
    memory_format: torch.memory_format,
    padding: int,
    height: int,
    width: int,
    step: int = 1,
) -> Tensor:
    """`tensor` on every `step`-th pixel of a zero (height, width) map, inside a border of `padding` zeros."""
    if step == 1:
        return F.pad(tensor.to(dtype).contiguous(memory_format=memory_format), (padding,) * 4)
    size = (*tensor.shape[:2], height + 2 * padding, width + 2 * padding)
    out = torch.empty(size, dtype=dtype, device=tensor.device, memory_format=memory_format).zero_()
    out[..., padding : padding + height : step, padding : padding + width : step].copy_(tensor)
    return out


def _heads(spatial_filter: Tensor | None, area: int) -> int:
    return 1 if spatial_filter is None else spatial_filter.shape[1] // area


def _channel_taps(channel_filter: Tensor | None, dtype: torch.dtype, heads: int, area: int) -> list[Tensor | None]:
    """For each tap (B, G, C/G, 1, 1), or None."""
    if channel_filter is None:
        return [None] * area
    taps = channel_filter.to(dtype).flatten(2).unflatten(1, (heads, -1)).unbind(-1)
    return [tap[..., None, None] for tap in taps]


def _spatial_taps(spatial_filter: Tensor | None, dtype: torch.dtype, heads: int, area: int) -> list[Tensor | None]:
    """For each tap (B, G, 1, Ho, Wo), or None; planar, so that a tap is read as one contiguous map."""
    if spatial_filter is None:
        return [None] * area
    taps = spatial_filter.to(dtype).contiguous().unflatten(1, (heads, area)).unbind(2)
    return [tap[:, :, None] for tap in taps]


def _windows(padded: Tensor, kernel_size: int, stride: int, dilation: int) -> list[Tensor]:
    """For each tap a view (..., Ho, Wo) of a padded map: what this tap meets in the window of each output pixel."""
    border = (kernel_size - 1) * dilation
    # so that size - border is the size without its padding, and the slices have ceil(size / stride) elements
    height, width = padded.shape[-2] - border, padded.shape[-1] - border
    starts = range(0, border + 1, dilation)
    rows = [padded[..., row : row + height : stride, :] for row in starts]
    return [view[..., column : column + width : stride] for view in rows for column in starts]
