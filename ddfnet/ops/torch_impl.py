"""The DDF operator in plain PyTorch: forward and explicit backward as shifted multiply-accumulates, without an unfold buffer.

This is what runs on the CPU (eager, and fused by torch.compile) and wherever Triton is not available. The arithmetic is
float32 (float64 for float64 inputs) whatever the dtype of the tensors. Tensors are viewed as (B, G, C/G, H, W), so that
the channel filter is (B, G, C/G, 1, 1) and the spatial filter (B, G, 1, Ho, Wo) at each tap: broadcasting does the rest.
The arguments are those of the ops in `ddf.py`, already checked there.
"""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from ddfnet.ops.layout import accumulator_dtype, memory_format_of, output_size


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
    terms = (
        (x_padded[..., rows, columns], channel_taps[tap], spatial_taps[tap])
        for tap, (rows, columns) in enumerate(_windows(height, width, kernel_size, stride, dilation))
    )
    _multiply_accumulate(y.zero_().unflatten(1, (heads, -1)), terms, multiply)
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
        for tap, (rows, columns) in enumerate(_windows(*grad_y.shape[3:], kernel_size, stride, dilation)):
            correlation = grad_y * x_padded[..., rows, columns]
            if need_channel:
                channel_sums.append((correlation * spatial_taps[tap] if product else correlation).sum((3, 4)))
            if need_spatial:
                spatial_sums.append((correlation * channel_taps[tap] if product else correlation).sum(2))
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

    Gathering beats scattering into shifted windows: it writes each sum in place once per tap, and torch.compile fuses it.
    With a stride the grid has zeros between the output pixels, which are multiplied in vain.
    """
    height, width = x.shape[2:]
    area = kernel_size * kernel_size
    heads = _heads(spatial_filter, area)
    padding = kernel_size // 2 * dilation
    dtype = accumulator_dtype(x)

    grad_x = torch.empty(x.shape, dtype=dtype, device=x.device, memory_format=memory_format_of(x))
    grid = _embed(grad_y, dtype, memory_format_of(x), padding, height, width, stride).unflatten(1, (heads, -1))
    if spatial_filter is not None:
        spatial_filter = _embed(spatial_filter, dtype, torch.contiguous_format, padding, height, width, stride)
    channel_taps = _channel_taps(channel_filter, dtype, heads, area)
    spatial_taps = _spatial_taps(spatial_filter, dtype, heads, area)
    terms = (
        (
            grid[..., rows, columns],
            channel_taps[area - 1 - mirrored],
            None if spatial_filter is None else spatial_taps[area - 1 - mirrored][..., rows, columns],
        )
        for mirrored, (rows, columns) in enumerate(_windows(height, width, kernel_size, 1, dilation))
    )
    _multiply_accumulate(grad_x.zero_().unflatten(1, (heads, -1)), terms, multiply)
    return grad_x.to(x.dtype)


def _multiply_accumulate(
    out: Tensor, terms: Iterable[tuple[Tensor, Tensor | None, Tensor | None]], multiply: bool
) -> None:
    """Add window * (channel factor combined with spatial factor) to `out` for each term; a factor may be absent."""
    for window, channel, spatial in terms:
        if multiply and channel is not None and spatial is not None:
            out.addcmul_(window * channel, spatial)
        else:  # w * (f + g) = w * f + w * g: two passes, but no temporary of the size of x
            for factor in (channel, spatial):
                if factor is not None:
                    out.addcmul_(window, factor)


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


def _windows(
    height: int, width: int, kernel_size: int, stride: int, dilation: int
) -> Iterator[tuple[slice, slice]]:
    """For each tap the rows and columns of a padded map that it meets in windows centred on height x width pixels."""
    for tap in range(kernel_size * kernel_size):
        top, left = tap // kernel_size * dilation, tap % kernel_size * dilation
        yield (
            slice(top, top + (height - 1) * stride + 1, stride),
            slice(left, left + (width - 1) * stride + 1, stride),
        )
