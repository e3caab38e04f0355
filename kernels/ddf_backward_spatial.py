"""Backward kernel of the DDF operators for the gradient of the spatial filter, of contiguous tensors."""

import triton
import triton.language as tl
from ddfnet.kernels.common import channels_of, load, replace, zeros


@triton.jit
def ddf_backward_spatial_kernel(
    grad_y,
    x,
    channel_filter,
    grad_spatial,
    height,
    width,
    head_channels,
    heads,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    HEAD_CHANNELS: tl.constexpr,
    KERNEL_SIZE: tl.constexpr,
    STRIDE: tl.constexpr,
    DILATION: tl.constexpr,
    SCALE: tl.constexpr,
    PRODUCT: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    SPATIAL_CHANNELS_LAST: tl.constexpr,
    INT64: tl.constexpr,
    BLOCK_Y: tl.constexpr,
    BLOCK_X: tl.constexpr,
    BLOCKS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    TAP_ROWS: tl.constexpr,
):
    """grad_spatial[b,phase,g,t,p] = sum over the channels c of head g of grad_y[b,c,phase,p] * x[b,c,p+t] (* filter).

    `ddf_backward_filters_kernel` sums channels between threads and writes a partial sum for each tile of channels.
    Where neighbors in memory are pixels, tiles have few channels, and those partial sums would be larger than x. So
    here one program walks over all channels of a head, for BLOCKS output pixels of one phase and TAP_ROWS rows of taps.

    grad_spatial: contiguous (B, phases*G*k*k, Ho, Wo) in any dtype, written once; PRODUCT: the channel filter is a
    factor. grad_y and x are contiguous (CHANNELS_LAST is false, the blocks are single pixels); other flags as in
    `ddf_forward_kernel`.
    """
    tl.static_assert(not CHANNELS_LAST and BLOCK_Y == 1 and BLOCK_X == 1)
    ACC: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    AREA: tl.constexpr = KERNEL_SIZE * KERNEL_SIZE
    RADIUS: tl.constexpr = KERNEL_SIZE // 2
    height = HEIGHT if HEIGHT > 0 else height
    width = WIDTH if WIDTH > 0 else width
    head_channels = HEAD_CHANNELS if HEAD_CHANNELS > 0 else head_channels
    out_height, out_width = (height - 1) // STRIDE + 1, (width - 1) // STRIDE + 1
    channels = head_channels * heads
    tiles = tl.cdiv(out_height * out_width, BLOCKS)

    program = tl.program_id(0)
    first_row, program = program % (KERNEL_SIZE // TAP_ROWS) * TAP_ROWS, program // (KERNEL_SIZE // TAP_ROWS)
    phase, program = program % (SCALE * SCALE), program // (SCALE * SCALE)
    head, program = program % heads, program // heads
    pixel = program % tiles * BLOCKS + tl.arange(0, BLOCKS)
    image = (program // tiles).to(tl.int64)

    out_pixels = out_height * out_width
    ok = pixel < out_pixels
    row, column = pixel // out_width, pixel % out_width
    first_tap = (phase * heads + head) * AREA + first_row * KERNEL_SIZE
    if INT64:
        pixel = pixel.to(tl.int64)
        row = row.to(tl.int64)
        column = column.to(tl.int64)
        first_tap = first_tap.to(tl.int64)
        out_pixels = tl.cast(out_pixels, tl.int64)
    in_pixels = height * width
    y_pixels = out_pixels * (SCALE * SCALE)
    y_pixel = (row * SCALE + phase // SCALE) * (out_width * SCALE) + column * SCALE + phase % SCALE
    x += image * channels * in_pixels
    grad_y += image * channels * y_pixels
    channel_filter += image * (SCALE * SCALE * AREA) * channels + (phase * AREA + first_row * KERNEL_SIZE) * channels
    grad_spatial += image * (SCALE * SCALE * heads * AREA) * out_pixels + first_tap * out_pixels + pixel

    sums = zeros(TAP_ROWS * KERNEL_SIZE, BLOCKS, BLOCK_CHANNELS, ACC)
    for first in range(0, head_channels, BLOCK_CHANNELS):
        channel, channel_ok = channels_of(first, head, head_channels, BLOCK_CHANNELS, False)
        wide_channel = channel.to(tl.int64) if INT64 else channel
        y_offset = y_pixel[:, None] + (wide_channel * y_pixels)[None, :]
        value = load(grad_y + y_offset, ok[:, None] & channel_ok[None, :], ACC)
        for u in tl.static_range(TAP_ROWS):
            for v in tl.static_range(KERNEL_SIZE):
                in_row = row * STRIDE + (first_row + u - RADIUS) * DILATION
                in_column = column * STRIDE + (v - RADIUS) * DILATION
                inside = ok & (in_row >= 0) & (in_row < height) & (in_column >= 0) & (in_column < width)
                x_offset = (in_row * width + in_column)[:, None] + (wide_channel * in_pixels)[None, :]
                w = value * load(x + x_offset, inside[:, None] & channel_ok[None, :], ACC)
                if PRODUCT:
                    f = load(channel_filter + (u * KERNEL_SIZE + v) * channels + channel, channel_ok, ACC)
                    total = tl.fma(w, tl.broadcast_to(f[None, :], w.shape), sums[u * KERNEL_SIZE + v])
                else:
                    total = sums[u * KERNEL_SIZE + v] + w
                sums = replace(sums, u * KERNEL_SIZE + v, total)
    for t in tl.static_range(TAP_ROWS * KERNEL_SIZE):
        total = tl.sum(sums[t], axis=1)
        tl.store(grad_spatial + t * out_pixels, total.to(grad_spatial.dtype.element_ty), mask=ok)
