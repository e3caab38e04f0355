"""Forward kernel of the DDF operator."""

import triton
import triton.language as tl


@triton.jit
def ddf_forward_kernel(
    x,
    channel_filter,
    spatial_filter,
    y,
    head_channels,
    height,
    width,
    out_height,
    out_width,
    heads,
    spatial_batch_stride,
    spatial_tap_stride,
    spatial_pixel_stride,
    KERNEL_SIZE: tl.constexpr,
    STRIDE: tl.constexpr,
    DILATION: tl.constexpr,
    MULTIPLY: tl.constexpr,
    HAS_CHANNEL: tl.constexpr,
    HAS_SPATIAL: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    INT64: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """y[b,c,p] = sum over taps t of x[b,c,p+t] * (channel_filter[b,c,t] (*|+) spatial_filter[b,g(c),t,p]).

    One program computes BLOCK_PIXELS flattened output pixels x BLOCK_CHANNELS channels of one head of one image. The
    grid is flat: channel tiles vary fastest, because the tiles of one pixel block share its spatial filter.

    x, y: both channels_last or both contiguous. channel_filter: contiguous (B, C, k, k). spatial_filter: either format
    of (B, G*k*k, Ho, Wo), described by three strides. An absent filter (HAS_* false) is not read; pass any pointer.
    INT64: offsets inside one image need 64 bits; offsets between images always have them.
    """
    ACC: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    AREA: tl.constexpr = KERNEL_SIZE * KERNEL_SIZE
    RADIUS: tl.constexpr = KERNEL_SIZE // 2
    in_pixels = height * width
    out_pixels = out_height * out_width
    channels = head_channels * heads
    channel_tiles = tl.cdiv(head_channels, BLOCK_CHANNELS)
    pixel_tiles = tl.cdiv(out_pixels, BLOCK_PIXELS)

    program = tl.program_id(0)
    tile = program % channel_tiles
    program = program // channel_tiles
    head = program % heads
    program = program // heads
    pixel_tile = program % pixel_tiles
    image = (program // pixel_tiles).to(tl.int64)

    channel_in_head = tile * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    channel_ok = channel_in_head < head_channels
    channel = head * head_channels + channel_in_head
    pixel = pixel_tile * BLOCK_PIXELS + tl.arange(0, BLOCK_PIXELS)
    pixel_ok = pixel < out_pixels
    row = pixel // out_width * STRIDE
    column = pixel % out_width * STRIDE
    if INT64:
        channel = channel.to(tl.int64)
        pixel = pixel.to(tl.int64)
        row = row.to(tl.int64)
        head = head.to(tl.int64)
        spatial_tap_stride = tl.cast(spatial_tap_stride, tl.int64)
        spatial_pixel_stride = tl.cast(spatial_pixel_stride, tl.int64)

    x += image * channels * in_pixels
    y += image * channels * out_pixels
    channel_filter += (image * channels + channel) * AREA
    spatial_filter += image * spatial_batch_stride + head * AREA * spatial_tap_stride + pixel * spatial_pixel_stride
    if CHANNELS_LAST:
        x_channel = channel
        y_offset = pixel[:, None] * channels + channel[None, :]
    else:
        x_channel = channel * in_pixels
        y_offset = pixel[:, None] + channel[None, :] * out_pixels

    acc = tl.zeros((BLOCK_PIXELS, BLOCK_CHANNELS), ACC)
    for u in range(KERNEL_SIZE):
        for v in tl.static_range(KERNEL_SIZE):
            in_row = row + (u - RADIUS) * DILATION
            in_column = column + (v - RADIUS) * DILATION
            inside = pixel_ok & (in_row >= 0) & (in_row < height) & (in_column >= 0) & (in_column < width)
            in_pixel = in_row * width + in_column
            if CHANNELS_LAST:
                in_pixel = in_pixel * channels
            value = tl.load(
                x + in_pixel[:, None] + x_channel[None, :], mask=inside[:, None] & channel_ok[None, :], other=0.0
            ).to(ACC)
            if HAS_CHANNEL:
                f = tl.load(channel_filter + u * KERNEL_SIZE + v, mask=channel_ok, other=0.0).to(ACC)[None, :]
            if HAS_SPATIAL:
                tap_offset = (u * KERNEL_SIZE + v) * spatial_tap_stride
                s = tl.load(spatial_filter + tap_offset, mask=pixel_ok, other=0.0).to(ACC)[:, None]
            if HAS_CHANNEL and HAS_SPATIAL:
                if MULTIPLY:
                    acc = tl.fma(value * s, f, acc)
                else:
                    acc = tl.fma(value, s + f, acc)
            elif HAS_CHANNEL:
                acc = tl.fma(value, f, acc)
            else:
                acc = tl.fma(value, s, acc)
    tl.store(y + y_offset, acc.to(y.dtype.element_ty), mask=pixel_ok[:, None] & channel_ok[None, :])
