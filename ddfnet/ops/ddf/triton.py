"""Launches of the Triton kernels: layouts, grids, offset widths, second stage of the reductions."""

import contextlib
from typing import Any

import torch
from torch import Tensor
from torch.library import wrap_triton

from ddfnet.kernels.ddf_backward_filters import ddf_backward_filters_kernel
from ddfnet.kernels.ddf_backward_spatial import ddf_backward_spatial_kernel
from ddfnet.kernels.ddf_backward_x import ddf_backward_x_kernel
from ddfnet.kernels.ddf_forward import ddf_forward_kernel
from ddfnet.ops.common import accumulator_dtype, memory_format_of, output_size
from ddfnet.ops.ddf.tiling import (
    Tile,
    backward_filters_tile,
    backward_spatial_tile,
    backward_x_tile,
    block_count,
    cdiv,
    filter_iterations,
    forward_tile,
    static_shape,
)

_INT32_ELEMENTS = 2**31


def forward(
    x: Tensor,
    channel_filter: Tensor | None,
    spatial_filter: Tensor | None,
    kernel_size: int,
    stride: int,
    dilation: int,
    multiply: bool,
    scale: int,
) -> Tensor:
    """y (B, C, Ho * scale, Wo * scale) in the dtype and memory format of x."""
    memory_format = memory_format_of(x)
    height, width = output_size(x, stride)
    size = (*x.shape[:2], height * scale, width * scale)
    y = torch.empty(size, dtype=x.dtype, device=x.device, memory_format=memory_format)
    if y.numel() == 0:
        return y
    x = _aligned(x, memory_format)
    heads = _heads(spatial_filter, kernel_size, scale)
    head_channels = x.shape[1] // heads
    wide = memory_format == torch.channels_last
    tile = forward_tile(head_channels, height, width, kernel_size, stride, dilation, scale, wide)
    channel_filter, spatial_filter = _dense_filters(x, channel_filter, spatial_filter, scale)
    programs = _block_programs(tile, head_channels, height, width, stride, dilation) * heads * x.shape[0]
    _launch(
        ddf_forward_kernel,
        (programs * (scale * scale // tile.phases),),
        tile,
        x,
        x if channel_filter is None else channel_filter,
        x if spatial_filter is None else spatial_filter,
        y,
        *x.shape[2:],
        head_channels,
        heads,
        MULTIPLY=multiply,
        HAS_CHANNEL=channel_filter is not None,
        HAS_SPATIAL=spatial_filter is not None,
        PHASES=tile.phases,
        **_constants(x, y, spatial_filter, head_channels, kernel_size, stride, dilation, scale),
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
    scale: int,
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

    x = _aligned(x, memory_format)
    grad_y = _aligned(grad_y, memory_format)
    dense_channel, dense_spatial = _dense_filters(x, channel_filter, spatial_filter, scale)
    settings = (kernel_size, stride, dilation, multiply, scale)
    if need_x:
        grad_x = _backward_x(grad_y, x, dense_channel, dense_spatial, *settings)
    tensors = (grad_y, x, dense_channel, dense_spatial)
    if need_spatial and memory_format == torch.contiguous_format:
        grad_spatial = _backward_spatial(*tensors, *settings, spatial_filter)
        need_spatial = False
    if need_channel or need_spatial:
        like = channel_filter if need_channel else None, spatial_filter if need_spatial else None
        grad_channel, grads = _backward_filters(*tensors, *settings, *like)
        grad_spatial = grads if need_spatial else grad_spatial
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
    scale: int,
) -> Tensor:
    memory_format = memory_format_of(x)
    height, width = x.shape[2:]
    grad_x = torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=memory_format)
    heads = _heads(spatial_filter, kernel_size, scale)
    head_channels = x.shape[1] // heads
    wide = memory_format == torch.channels_last
    tile = backward_x_tile(head_channels, height, width, kernel_size, stride, dilation, scale, wide)
    _launch(
        ddf_backward_x_kernel,
        (_block_programs(tile, head_channels, height, width, stride, dilation) * heads * x.shape[0],),
        tile,
        grad_y,
        x if channel_filter is None else channel_filter,
        x if spatial_filter is None else spatial_filter,
        grad_x,
        height,
        width,
        head_channels,
        heads,
        MULTIPLY=multiply,
        HAS_CHANNEL=channel_filter is not None,
        HAS_SPATIAL=spatial_filter is not None,
        **_constants(x, grad_y, spatial_filter, head_channels, kernel_size, stride, dilation, scale),
    )
    return grad_x


def _backward_spatial(
    grad_y: Tensor,
    x: Tensor,
    channel_filter: Tensor | None,
    spatial_filter: Tensor,
    kernel_size: int,
    stride: int,
    dilation: int,
    multiply: bool,
    scale: int,
    spatial_like: Tensor,
) -> Tensor:
    """`spatial_like`: the spatial filter as it was given."""
    height, width = output_size(x, stride)
    heads = _heads(spatial_filter, kernel_size, scale)
    head_channels = x.shape[1] // heads
    grad_spatial = torch.empty_like(spatial_like, memory_format=torch.contiguous_format)
    tile = backward_spatial_tile(head_channels, height, width, kernel_size, x.element_size())
    programs = cdiv(height * width, tile.blocks) * (kernel_size // tile.tap_rows) * (scale * scale) * heads
    _launch(
        ddf_backward_spatial_kernel,
        (programs * x.shape[0],),
        tile,
        grad_y,
        x,
        x if channel_filter is None else channel_filter,
        grad_spatial,
        *x.shape[2:],
        head_channels,
        heads,
        PRODUCT=multiply and channel_filter is not None,
        **_constants(x, grad_y, spatial_filter, head_channels, kernel_size, stride, dilation, scale),
    )
    return grad_spatial


def _backward_filters(
    grad_y: Tensor,
    x: Tensor,
    channel_filter: Tensor | None,
    spatial_filter: Tensor | None,
    kernel_size: int,
    stride: int,
    dilation: int,
    multiply: bool,
    scale: int,
    channel_like: Tensor | None,
    spatial_like: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """`channel_like`, `spatial_like`: the filters as they were given; None for a gradient that is not needed."""
    batch, channels = x.shape[:2]
    height, width = output_size(x, stride)
    heads = _heads(spatial_filter, kernel_size, scale)
    head_channels = channels // heads
    wide = memory_format_of(x) == torch.channels_last
    tile = backward_filters_tile(head_channels, height, width, kernel_size, stride, dilation, wide, x.element_size())
    iterations = filter_iterations(tile, height, width)
    chunks = cdiv(block_count(tile, height, width, stride, dilation), tile.blocks * iterations)
    channel_tiles = cdiv(head_channels, tile.block_channels)
    area = kernel_size * kernel_size
    channel_partials = spatial_partials = x.new_empty(0)
    if channel_like is not None:
        size = (batch, chunks, scale * scale, area, channels)
        channel_partials = torch.empty(size, dtype=accumulator_dtype(x), device=x.device)
    if spatial_like is not None:
        # with a single tile of channels this is the gradient already
        dtype = spatial_like.dtype if channel_tiles == 1 else accumulator_dtype(x)
        size = (batch, channel_tiles, *spatial_like.shape[1:])
        spatial_partials = torch.empty(size, dtype=dtype, device=x.device)
    _launch(
        ddf_backward_filters_kernel,
        (batch * heads * channel_tiles * (scale * scale) * (kernel_size // tile.tap_rows) * chunks,),
        tile,
        grad_y,
        x,
        x if channel_filter is None else channel_filter,
        x if spatial_filter is None else spatial_filter,
        channel_partials,
        spatial_partials,
        *x.shape[2:],
        head_channels,
        heads,
        iterations,
        PRODUCT=multiply and channel_filter is not None and spatial_filter is not None,
        NEED_CHANNEL=channel_like is not None,
        NEED_SPATIAL=spatial_like is not None,
        **_constants(x, grad_y, spatial_filter, head_channels, kernel_size, stride, dilation, scale),
    )
    grad_channel, grad_spatial = x.new_empty(0), x.new_empty(0)
    if channel_like is not None:
        sums = _sum_partials(channel_partials).transpose(2, 3)  # (B, phases, C, k*k)
        grad_channel = torch.empty_like(channel_like, memory_format=torch.contiguous_format)
        grad_channel.copy_(sums.reshape(channel_like.shape))
        del sums, channel_partials  # before more is allocated
    if spatial_like is not None:
        grad_spatial = _sum_partials(spatial_partials)
        del spatial_partials
        grad_spatial = grad_spatial.to(spatial_like.dtype)
    return grad_channel, grad_spatial


def tile_constants(tile: Tile) -> dict[str, int]:
    """The constants of every kernel that describe what one program computes."""
    return {
        "BLOCK_Y": tile.block_y,
        "BLOCK_X": tile.block_x,
        "BLOCKS": tile.blocks,
        "BLOCK_CHANNELS": tile.block_channels,
        "TAP_ROWS": tile.tap_rows,
    }


def _launch(kernel: Any, grid: tuple[int], tile: Tile, *arguments: Any, **constants: Any) -> None:
    # one stage: nothing is pipelined through shared memory
    launch(kernel, grid, *arguments, num_warps=tile.warps, num_stages=1, **tile_constants(tile), **constants)


def launch(kernel: Any, grid: tuple[int], *arguments: Any, num_warps: int, num_stages: int, **constants: Any) -> None:
    """Launch `kernel` on the device of its first argument, or record the launch where torch.compile traces it."""
    device = arguments[0].device
    if device.type == "cpu":  # the interpreter, which some versions of torch cannot wrap
        kernel[grid](*arguments, **constants)
        return
    # Triton launches on the current device. A trace is no launch, and whoever runs it selects the device.
    on_device = contextlib.nullcontext() if torch.compiler.is_compiling() else torch.cuda.device(device)
    with on_device:
        wrap_triton(kernel)[grid](*arguments, **constants, num_warps=num_warps, num_stages=num_stages)


def _constants(
    x: Tensor,
    y: Tensor,
    spatial_filter: Tensor | None,
    head_channels: int,
    kernel_size: int,
    stride: int,
    dilation: int,
    scale: int,
) -> dict[str, Any]:
    """What all three kernels are compiled for."""
    height, width, static_channels = static_shape(x, head_channels)
    tensors = (x, y) if spatial_filter is None else (x, y, spatial_filter)
    return {
        "HEIGHT": height,
        "WIDTH": width,
        "HEAD_CHANNELS": static_channels,
        "KERNEL_SIZE": kernel_size,
        "STRIDE": stride,
        "DILATION": dilation,
        "SCALE": scale,
        "CHANNELS_LAST": memory_format_of(x) == torch.channels_last,
        "SPATIAL_CHANNELS_LAST": spatial_filter is not None and memory_format_of(spatial_filter) == torch.channels_last,
        # whether an offset inside one image can pass 2^31; the offset of an image is always 64 bits wide
        "INT64": any(tensor.shape[1] * tensor.shape[2] * tensor.shape[3] >= _INT32_ELEMENTS for tensor in tensors),
    }


def _block_programs(tile: Tile, head_channels: int, height: int, width: int, stride: int, dilation: int) -> int:
    """Programs for all pixels and channels of one head of one image."""
    blocks = block_count(tile, height, width, stride, dilation)
    return cdiv(blocks, tile.blocks) * cdiv(head_channels, tile.block_channels)


def _heads(spatial_filter: Tensor | None, kernel_size: int, scale: int) -> int:
    return 1 if spatial_filter is None else spatial_filter.shape[1] // (scale * scale * kernel_size * kernel_size)


def _aligned(tensor: Tensor, memory_format: torch.memory_format) -> Tensor:
    """Dense, and starting on 16 bytes: Triton would read a view that does not with 2-byte loads."""
    tensor = tensor.contiguous(memory_format=memory_format)
    if tensor.storage_offset() * tensor.element_size() % 16 != 0:
        tensor = tensor.clone(memory_format=memory_format)
    return tensor


def _dense_filters(
    x: Tensor, channel_filter: Tensor | None, spatial_filter: Tensor | None, scale: int
) -> tuple[Tensor | None, Tensor | None]:
    """The channel filter as (B, phases, k*k, C) in the dtype of the sums; the spatial filter in either memory format.

    The channel filter is small. With channels last and no conversion to do, a thread reads the weights of its eight
    channels with two loads a tap.
    """
    if channel_filter is not None:
        taps = channel_filter.reshape(x.shape[0], scale * scale, x.shape[1], -1).transpose(2, 3)
        channel_filter = taps.to(accumulator_dtype(x)).contiguous()
    if spatial_filter is not None:
        spatial_filter = spatial_filter.contiguous(memory_format=memory_format_of(spatial_filter))
    return channel_filter, spatial_filter


def _sum_partials(partials: Tensor) -> Tensor:
    return partials.squeeze(1) if partials.shape[1] == 1 else partials.sum(1)
