"""Launches of the Triton kernels: layouts, tile sizes, grids, offset widths, second stage of the reductions."""

import contextlib
from typing import Any

import torch
from torch import Tensor
from torch.library import wrap_triton

from ddfnet.kernels.ddf_backward import ddf_backward_filters_kernel, ddf_backward_x_kernel
from ddfnet.kernels.ddf_forward import ddf_forward_kernel
from ddfnet.ops.layout import accumulator_dtype, memory_format_of, output_size

_MAX_BLOCK_CHANNELS = 64  # one 128-byte line of half-precision channels
_BLOCK_ELEMENTS = 2048  # 16 accumulators for each thread of 4 warps; with 32, some variants spill
_CHUNK_TILES = 16  # at most this many pixel tiles that one program of the filter kernel sums before it writes a partial
# One stage: the loads of a tap are not pipelined through shared memory.
_OPTIONS = {"num_warps": 4, "num_stages": 1}
_INT32_ELEMENTS = 2**31


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
    memory_format = memory_format_of(x)
    height, width = output_size(x, stride)
    y = torch.empty((*x.shape[:2], height, width), dtype=x.dtype, device=x.device, memory_format=memory_format)
    if y.numel() == 0:
        return y
    x = x.contiguous(memory_format=memory_format)
    channel_filter, spatial_filter = _dense_filters(channel_filter, spatial_filter)
    heads, block_channels, channel_tiles = _channel_blocks(x, spatial_filter, kernel_size)
    block_pixels = _block_pixels(height * width, block_channels)
    grid = (_cdiv(height * width, block_pixels) * heads * channel_tiles * x.shape[0],)
    _launch(
        ddf_forward_kernel,
        grid,
        x,
        x if channel_filter is None else channel_filter,
        x if spatial_filter is None else spatial_filter,
        y,
        x.shape[1] // heads,
        *x.shape[2:],
        height,
        width,
        heads,
        *_spatial_strides(spatial_filter),
        KERNEL_SIZE=kernel_size,
        STRIDE=stride,
        DILATION=dilation,
        MULTIPLY=multiply,
        HAS_CHANNEL=channel_filter is not None,
        HAS_SPATIAL=spatial_filter is not None,
        CHANNELS_LAST=memory_format == torch.channels_last,
        INT64=_needs_int64(x, y, spatial_filter),
        BLOCK_PIXELS=block_pixels,
        BLOCK_CHANNELS=block_channels,
    )
    return y


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
    memory_format = memory_format_of(x)
    grad_x, grad_channel, grad_spatial = x.new_empty(0), x.new_empty(0), x.new_empty(0)
    if x.numel() == 0:
        if need_x:
            grad_x = torch.empty_like(x, memory_format=memory_format)
        if need_channel:
            grad_channel = torch.zeros_like(channel_filter, memory_format=torch.contiguous_format)
        if need_spatial:
            grad_spatial = torch.zeros_like(spatial_filter, memory_format=torch.contiguous_format)
        return grad_x, grad_channel, grad_spatial

    x = x.contiguous(memory_format=memory_format)
    grad_y = grad_y.contiguous(memory_format=memory_format)
    channel_filter, spatial_filter = _dense_filters(channel_filter, spatial_filter)
    settings = (kernel_size, stride, dilation, multiply)
    if need_x:
        grad_x = _backward_x(grad_y, x, channel_filter, spatial_filter, *settings)
    if need_channel or need_spatial:
        grad_channel, grad_spatial = _backward_filters(
            grad_y, x, channel_filter, spatial_filter, *settings, need_channel, need_spatial
        )
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
    memory_format = memory_format_of(x)
    grad_x = torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=memory_format)
    heads, block_channels, channel_tiles = _channel_blocks(x, spatial_filter, kernel_size)
    pixels = x.shape[2] * x.shape[3]
    block_pixels = _block_pixels(pixels, block_channels)
    grid = (_cdiv(pixels, block_pixels) * heads * channel_tiles * x.shape[0],)
    _launch(
        ddf_backward_x_kernel,
        grid,
        grad_y,
        x if channel_filter is None else channel_filter,
        x if spatial_filter is None else spatial_filter,
        grad_x,
        x.shape[1] // heads,
        *x.shape[2:],
        *grad_y.shape[2:],
        heads,
        *_spatial_strides(spatial_filter),
        KERNEL_SIZE=kernel_size,
        STRIDE=stride,
        DILATION=dilation,
        MULTIPLY=multiply,
        HAS_CHANNEL=channel_filter is not None,
        HAS_SPATIAL=spatial_filter is not None,
        CHANNELS_LAST=memory_format == torch.channels_last,
        INT64=_needs_int64(x, grad_y, spatial_filter),
        BLOCK_PIXELS=block_pixels,
        BLOCK_CHANNELS=block_channels,
    )
    return grad_x


def _backward_filters(
    grad_y: Tensor,
    x: Tensor,
    channel_filter: Tensor | None,
    spatial_filter: Tensor | None,
    kernel_size: int,
    stride: int,
    dilation: int,
    multiply: bool,
    need_channel: bool,
    need_spatial: bool,
) -> tuple[Tensor, Tensor]:
    batch, channels = x.shape[:2]
    heads, block_channels, channel_tiles = _channel_blocks(x, spatial_filter, kernel_size)
    pixels = grad_y.shape[2] * grad_y.shape[3]
    block_pixels = _block_pixels(pixels, block_channels)
    tiles = min(_CHUNK_TILES, _cdiv(pixels, block_pixels))
    chunks = _cdiv(pixels, block_pixels * tiles)
    channel_partials = spatial_partials = x.new_empty(0)
    if need_channel:
        size = (chunks, batch, channels, kernel_size, kernel_size)
        channel_partials = torch.empty(size, dtype=accumulator_dtype(x), device=x.device)
    if need_spatial:
        size = (channel_tiles, *spatial_filter.shape)
        spatial_partials = torch.empty(size, dtype=accumulator_dtype(x), device=x.device)
    _launch(
        ddf_backward_filters_kernel,
        (chunks * heads * channel_tiles * batch,),
        grad_y,
        x,
        x if channel_filter is None else channel_filter,
        x if spatial_filter is None else spatial_filter,
        channel_partials,
        spatial_partials,
        batch,
        channels // heads,
        *x.shape[2:],
        *grad_y.shape[2:],
        heads,
        *_spatial_strides(spatial_filter),
        tiles,
        KERNEL_SIZE=kernel_size,
        STRIDE=stride,
        DILATION=dilation,
        PRODUCT=multiply and channel_filter is not None and spatial_filter is not None,
        NEED_CHANNEL=need_channel,
        NEED_SPATIAL=need_spatial,
        CHANNELS_LAST=memory_format_of(x) == torch.channels_last,
        INT64=_needs_int64(x, grad_y, spatial_filter),
        BLOCK_PIXELS=block_pixels,
        BLOCK_CHANNELS=block_channels,
    )
    grad_channel, grad_spatial = x.new_empty(0), x.new_empty(0)
    if need_channel:
        grad_channel = _sum_partials(channel_partials).to(channel_filter.dtype)
    if need_spatial:
        grad_spatial = _sum_partials(spatial_partials).to(spatial_filter.dtype)
    return grad_channel, grad_spatial


def _launch(kernel: Any, grid: tuple[int], *arguments: Any, **constants: Any) -> None:
    device = arguments[0].device
    if device.type == "cpu":  # the interpreter, which some versions of torch cannot wrap
        kernel[grid](*arguments, **constants)
        return
    # Triton launches on the current device. A trace is no launch, and whoever runs it selects the device.
    on_device = contextlib.nullcontext() if torch.compiler.is_compiling() else torch.cuda.device(device)
    with on_device:
        wrap_triton(kernel)[grid](*arguments, **constants, **_OPTIONS)


def _dense_filters(channel_filter: Tensor | None, spatial_filter: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """The channel filter contiguous, the spatial filter in either memory format: the kernels take strides for it."""
    if channel_filter is not None:
        channel_filter = channel_filter.contiguous()
    if spatial_filter is not None:
        spatial_filter = spatial_filter.contiguous(memory_format=memory_format_of(spatial_filter))
    return channel_filter, spatial_filter


def _spatial_strides(spatial_filter: Tensor | None) -> tuple[int, int, int]:
    """Batch, tap and pixel stride of a dense spatial filter, from its shape: strides of axes of size 1 mean nothing."""
    if spatial_filter is None:
        return 0, 0, 0
    _, taps, height, width = spatial_filter.shape
    if memory_format_of(spatial_filter) == torch.channels_last:
        return taps * height * width, 1, taps
    return taps * height * width, height * width, 1


def _channel_blocks(x: Tensor, spatial_filter: Tensor | None, kernel_size: int) -> tuple[int, int, int]:
    """Heads, channels in a tile, and tiles in a head: a tile never crosses from one head into the next."""
    heads = 1 if spatial_filter is None else spatial_filter.shape[1] // (kernel_size * kernel_size)
    head_channels = x.shape[1] // heads
    block_channels = _power_of_two(head_channels, _MAX_BLOCK_CHANNELS)
    return heads, block_channels, _cdiv(head_channels, block_channels)


def _block_pixels(pixels: int, block_channels: int) -> int:
    return _power_of_two(pixels, min(_BLOCK_ELEMENTS // block_channels, 256))


def _power_of_two(at_least: int, at_most: int) -> int:
    """The smallest power of two >= at_least, but no more than at_most, which is one itself."""
    block = 1
    while block < at_least and block < at_most:
        block *= 2
    return block


def _cdiv(numerator: int, denominator: int) -> int:
    return (numerator + denominator - 1) // denominator  # triton.cdiv, but also for symbolic sizes


def _needs_int64(x: Tensor, y: Tensor, spatial_filter: Tensor | None) -> bool:
    """Whether an offset inside one image can pass 2^31; the offset of an image is always 64 bits wide."""
    tensors = (x, y) if spatial_filter is None else (x, y, spatial_filter)
    return any(tensor.shape[1] * tensor.shape[2] * tensor.shape[3] >= _INT32_ELEMENTS for tensor in tensors)


def _sum_partials(partials: Tensor) -> Tensor:
    return partials.squeeze(0) if partials.shape[0] == 1 else partials.sum(0)
