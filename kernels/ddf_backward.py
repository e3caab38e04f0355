"""Backward kernels of the DDF operator: one for grad_x, one for the gradients of both filters.

Layouts and flags are those of `ddf_forward.py`; grad_y and grad_x are in the memory format of x.
"""

import triton
import triton.language as tl


@triton.jit
def ddf_backward_x_kernel(
    grad_y,
    channel_filter,
    spatial_filter,
    grad_x,
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
    """grad_x[b,c,q] = sum over taps t of grad_y[b,c,p] * weight[b,c,t,p], p the output pixel that meets q with tap t.

    One program gathers BLOCK_PIXELS flattened input pixels x BLOCK_CHANNELS channels of one head of one image, so that
    each element is written once and in a fixed order of additions. With a stride some taps meet no output pixel.
    """
    ACC: tl.constexpr = tl.float64 if grad_y.dtype.element_ty == tl.float64 else tl.float32
    AREA: tl.constexpr = KERNEL_SIZE * KERNEL_SIZE
    RADIUS: tl.constexpr = KERNEL_SIZE // 2
    in_pixels = height * width
    out_pixels = out_height * out_width
    channels = head_channels * heads
    channel_tiles = tl.cdiv(head_channels, BLOCK_CHANNELS)
    pixel_tiles = tl.cdiv(in_pixels, BLOCK_PIXELS)

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
    pixel_ok = pixel < in_pixels
    row = pixel // width
    column = pixel % width
    if INT64:
        channel = channel.to(tl.int64)
        pixel = pixel.to(tl.int64)
        row = row.to(tl.int64)
        head = head.to(tl.int64)
        spatial_tap_stride = tl.cast(spatial_tap_stride, tl.int64)
        spatial_pixel_stride = tl.cast(spatial_pixel_stride, tl.int64)

    grad_y += image * channels * out_pixels
    grad_x += image * channels * in_pixels
    channel_filter += (image * channels + channel) * AREA
    spatial_filter += image * spatial_batch_stride + head * AREA * spatial_tap_stride
    if CHANNELS_LAST:
        y_channel = channel
        x_offset = pixel[:, None] * channels + channel[None, :]
    else:
        y_channel = channel * out_pixels
        x_offset = pixel[:, None] + channel[None, :] * in_pixels

    acc = tl.zeros((BLOCK_PIXELS, BLOCK_CHANNELS), ACC)
    for u in range(KERNEL_SIZE):
        for v in tl.static_range(KERNEL_SIZE):
            # row = out_row * STRIDE + (u - RADIUS) * DILATION; a negative quotient is masked before it is used
            strided_row = row - (u - RADIUS) * DILATION
            strided_column = column - (v - RADIUS) * DILATION
            out_row = strided_row // STRIDE
            out_column = strided_column // STRIDE
            meets = pixel_ok & (strided_row >= 0) & (out_row < out_height)
            meets = meets & (strided_column >= 0) & (out_column < out_width)
            if STRIDE > 1:
                meets = meets & (strided_row % STRIDE == 0) & (strided_column % STRIDE == 0)
            out_pixel = out_row * out_width + out_column
            if CHANNELS_LAST:
                y_pixel = out_pixel * channels
            else:
                y_pixel = out_pixel
            value = tl.load(
                grad_y + y_pixel[:, None] + y_channel[None, :], mask=meets[:, None] & channel_ok[None, :], other=0.0
            ).to(ACC)
            if HAS_CHANNEL:
                f = tl.load(channel_filter + u * KERNEL_SIZE + v, mask=channel_ok, other=0.0).to(ACC)[None, :]
            if HAS_SPATIAL:
                tap_offset = (u * KERNEL_SIZE + v) * spatial_tap_stride
                spatial_offset = out_pixel * spatial_pixel_stride
                s = tl.load(spatial_filter + tap_offset + spatial_offset, mask=meets, other=0.0).to(ACC)[:, None]
            if HAS_CHANNEL and HAS_SPATIAL:
                if MULTIPLY:
                    acc = tl.fma(value * s, f, acc)
                else:
                    acc = tl.fma(value, s + f, acc)
            elif HAS_CHANNEL:
                acc = tl.fma(value, f, acc)
            else:
                acc = tl.fma(value, s, acc)
    tl.store(grad_x + x_offset, acc.to(grad_x.dtype.element_ty), mask=pixel_ok[:, None] & channel_ok[None, :])


@triton.jit
def ddf_backward_filters_kernel(
    grad_y,
    x,
    channel_filter,
    spatial_filter,
    channel_partials,
    spatial_partials,
    batch,
    head_channels,
    height,
    width,
    out_height,
    out_width,
    heads,
    spatial_batch_stride,
    spatial_tap_stride,
    spatial_pixel_stride,
    tiles,
    KERNEL_SIZE: tl.constexpr,
    STRIDE: tl.constexpr,
    DILATION: tl.constexpr,
    PRODUCT: tl.constexpr,
    NEED_CHANNEL: tl.constexpr,
    NEED_SPATIAL: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    INT64: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """Partial sums of both filter gradients; with w[b,c,t,p] = grad_y[b,c,p] * x[b,c,p+t]:

    channel_partials[chunk,b,c,t] = sum over the pixels p of a chunk of w * spatial_filter (or w alone),
    spatial_partials[tile,b,g,t,p] = sum over the channels c of a tile of w * channel_filter (or w alone).

    One program takes a chunk of tiles x BLOCK_PIXELS output pixels x BLOCK_CHANNELS channels of one head of one image.
    Each partial is written by one program and the caller adds them up: no atomics, hence the same bits every time.
    PRODUCT: the filters are multiplied, so that each gradient is weighted with the other filter.
    Partials are contiguous, in the accumulator dtype: (chunks, B, C, k, k) and (tiles per head, B, G*k*k, Ho, Wo).
    """
    ACC: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    AREA: tl.constexpr = KERNEL_SIZE * KERNEL_SIZE
    RADIUS: tl.constexpr = KERNEL_SIZE // 2
    in_pixels = height * width
    out_pixels = out_height * out_width
    channels = head_channels * heads
    channel_tiles = tl.cdiv(head_channels, BLOCK_CHANNELS)
    chunks = tl.cdiv(out_pixels, BLOCK_PIXELS * tiles)

    program = tl.program_id(0)
    tile = program % channel_tiles
    program = program // channel_tiles
    head = program % heads
    program = program // heads
    chunk = program % chunks
    image = (program // chunks).to(tl.int64)

    channel_in_head = tile * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    channel_ok = channel_in_head < head_channels
    channel = head * head_channels + channel_in_head
    head_taps = head * AREA
    if INT64:
        channel = channel.to(tl.int64)
        head_taps = head_taps.to(tl.int64)
        out_pixels = tl.cast(out_pixels, tl.int64)
        spatial_tap_stride = tl.cast(spatial_tap_stride, tl.int64)
        spatial_pixel_stride = tl.cast(spatial_pixel_stride, tl.int64)

    grad_y += image * channels * out_pixels
    x += image * channels * in_pixels
    channel_filter += (image * channels + channel) * AREA
    spatial_filter += image * spatial_batch_stride + head_taps * spatial_tap_stride
    channel_partials += ((chunk.to(tl.int64) * batch + image) * channels + channel) * AREA
    spatial_partials += ((tile.to(tl.int64) * batch + image) * heads * AREA + head_taps) * out_pixels
    if CHANNELS_LAST:
        x_channel = channel
        y_channel = channel
    else:
        x_channel = channel * in_pixels
        y_channel = channel * out_pixels

    for u in range(KERNEL_SIZE):
        for v in tl.static_range(KERNEL_SIZE):
            if PRODUCT and NEED_SPATIAL:
                f = tl.load(channel_filter + u * KERNEL_SIZE + v, mask=channel_ok, other=0.0).to(ACC)[None, :]
            acc = tl.zeros((BLOCK_PIXELS, BLOCK_CHANNELS), ACC)
            for step in range(tiles):
                pixel = (chunk * tiles + step) * BLOCK_PIXELS + tl.arange(0, BLOCK_PIXELS)
                pixel_ok = pixel < out_pixels
                in_row = pixel // out_width * STRIDE + (u - RADIUS) * DILATION
                in_column = pixel % out_width * STRIDE + (v - RADIUS) * DILATION
                inside = pixel_ok & (in_row >= 0) & (in_row < height) & (in_column >= 0) & (in_column < width)
                if INT64:
                    pixel = pixel.to(tl.int64)
                    in_row = in_row.to(tl.int64)
                in_pixel = in_row * width + in_column
                if CHANNELS_LAST:
                    x_pixel = in_pixel * channels
                    y_pixel = pixel * channels
                else:
                    x_pixel = in_pixel
                    y_pixel = pixel
                # where x is outside the image the product is 0, so that one mask serves both loads
                mask = inside[:, None] & channel_ok[None, :]
                g = tl.load(grad_y + y_pixel[:, None] + y_channel[None, :], mask=mask, other=0.0).to(ACC)
                w = g * tl.load(x + x_pixel[:, None] + x_channel[None, :], mask=mask, other=0.0).to(ACC)
                tap = u * KERNEL_SIZE + v
                if NEED_CHANNEL:
                    if PRODUCT:
                        spatial_offset = tap * spatial_tap_stride + pixel * spatial_pixel_stride
                        s = tl.load(spatial_filter + spatial_offset, mask=pixel_ok, other=0.0).to(ACC)[:, None]
                        acc = tl.fma(w, s, acc)
                    else:
                        acc += w
                if NEED_SPATIAL:
                    if PRODUCT:
                        w = w * f
                    tl.store(spatial_partials + tap * out_pixels + pixel, tl.sum(w, axis=1), mask=pixel_ok)
            if NEED_CHANNEL:
                tl.store(channel_partials + u * KERNEL_SIZE + v, tl.sum(acc, axis=0), mask=channel_ok)
