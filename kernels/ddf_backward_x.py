"""Backward kernel of the DDF operators for the gradient of x."""

import triton
import triton.language as tl
from ddfnet.kernels.common import (
    before_relu,
    block_positions,
    channels_of,
    load,
    multiply_accumulate,
    replace,
    true_affine_of,
    zeros,
)


@triton.jit(do_not_specialize=["pixels"])
def ddf_backward_x_kernel(
    grad_y,
    channel_filter,
    spatial_filter,
    grad_x,
    grad_logits,
    weight,
    grad_pooled,
    x,
    x_statistics,
    norm_partials,
    height,
    width,
    head_channels,
    heads,
    pixels,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    HEAD_CHANNELS: tl.constexpr,
    KERNEL_SIZE: tl.constexpr,
    STRIDE: tl.constexpr,
    DILATION: tl.constexpr,
    SCALE: tl.constexpr,
    MULTIPLY: tl.constexpr,
    HAS_CHANNEL: tl.constexpr,
    HAS_SPATIAL: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    SPATIAL_CHANNELS_LAST: tl.constexpr,
    INT64: tl.constexpr,
    BLOCK_Y: tl.constexpr,
    BLOCK_X: tl.constexpr,
    BLOCKS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    TAP_ROWS: tl.constexpr,
    LOGITS: tl.constexpr,
    ACTIVATE_X: tl.constexpr,
):
    """grad_x[b,c,q] = sum over phases and taps t of grad_y[b,c,phase,p] * weight[b,c,phase,t,p], where p meets q by t.

    The transpose of `ddf_forward_kernel`, written as a gather: one program sums what reaches BLOCKS blocks of
    BLOCK_Y x BLOCK_X input pixels, so that each element is written once, in a fixed order of additions.

    Output pixel p meets input pixel q with tap (u, v) if p * STRIDE = q - ((u, v) - RADIUS) * DILATION. When the
    sides of a block are multiples of the stride, which taps meet anything is known at compile time for each pixel of
    the block: with k = 3 and stride 2, nine taps for the four pixels of a block instead of 36.

    Layouts and flags are those of `ddf_forward_kernel`; grad_y and grad_x are in the memory format of x. If SCALE > 1,
    STRIDE is 1.

    With LOGITS, which is not 0 for a DDF layer's operator, its gradient is the sum of three, and written once:
    grad_x[b,c,q] += sum over logits t of grad_logits[t,b,q] * weight[t,c] + grad_pooled[b,c] / (H * W).
    grad_logits: (LOGITS, B*H*W), of `spatial_filters_backward_kernel`; pixels: B*H*W. weight: (LOGITS, C), any float
    dtype. grad_pooled: float32 (B, C).

    With ACTIVATE_X as well, the layer had relu(x * scale + shift), a batch normalization in training, of x_statistics
    (see `batch_norm_training.py`): grad_x becomes that behind the normalization, 0 where the ReLU let nothing through.
    x: as grad_x. norm_partials: float32 (B * programs for one channel of an image, 2, C), what the normalization's
    gradient needs of each program, the sums of grad_x and of grad_x * (x - mean).
    What is not used is not read or written.
    """
    ACC: tl.constexpr = tl.float64 if grad_y.dtype.element_ty == tl.float64 else tl.float32
    AREA: tl.constexpr = KERNEL_SIZE * KERNEL_SIZE
    RADIUS: tl.constexpr = KERNEL_SIZE // 2
    STEP: tl.constexpr = DILATION if STRIDE == 1 and BLOCK_Y * BLOCK_X > 1 else 1  # as in the forward kernel
    ALIGNED: tl.constexpr = BLOCK_Y % STRIDE == 0 and BLOCK_X % STRIDE == 0
    height = HEIGHT if HEIGHT > 0 else height
    width = WIDTH if WIDTH > 0 else width
    head_channels = HEAD_CHANNELS if HEAD_CHANNELS > 0 else head_channels
    out_height, out_width = (height - 1) // STRIDE + 1, (width - 1) // STRIDE + 1
    channels = head_channels * heads
    block_rows = tl.cdiv(height, STEP * BLOCK_Y) * STEP
    block_columns = tl.cdiv(width, STEP * BLOCK_X) * STEP
    channel_tiles = tl.cdiv(head_channels, BLOCK_CHANNELS)
    block_tiles = tl.cdiv(block_rows * block_columns, BLOCKS)

    program = tl.program_id(0)
    tile, program = program % channel_tiles, program // channel_tiles
    head, program = program % heads, program // heads
    block_tile = program % block_tiles
    image = (program // block_tiles).to(tl.int64)

    row, column, block_ok = block_positions(
        block_tile * BLOCKS, block_rows, block_columns, BLOCKS, BLOCK_Y, BLOCK_X, STEP, INT64
    )
    channel, channel_ok = channels_of(tile * BLOCK_CHANNELS, head, head_channels, BLOCK_CHANNELS, INT64)
    if INT64:
        head = head.to(tl.int64)

    channel_stride = 1 if CHANNELS_LAST else out_height * out_width * (SCALE * SCALE)
    column_stride = channels if CHANNELS_LAST else 1
    if INT64:
        column_stride = tl.cast(column_stride, tl.int64)
    row_stride = out_width * SCALE * column_stride
    grad_y += image * channels * out_height * out_width * (SCALE * SCALE)
    origin_row = row // STRIDE if ALIGNED else row * 0
    origin_column = column // STRIDE if ALIGNED else column * 0
    y_block = grad_y + (origin_row * SCALE * row_stride + origin_column * SCALE * column_stride)[:, None]
    y_block += (channel * channel_stride)[None, :]
    tap_stride = 1 if SPATIAL_CHANNELS_LAST else out_height * out_width
    filter_column_stride = SCALE * SCALE * heads * AREA if SPATIAL_CHANNELS_LAST else 1
    spatial_filter += image * (SCALE * SCALE * heads * AREA) * out_height * out_width
    spatial_block = spatial_filter + (origin_row * out_width + origin_column) * filter_column_stride
    channel_filter += image * (SCALE * SCALE * AREA) * channels + channel

    sums = zeros(BLOCK_Y * BLOCK_X, BLOCKS, BLOCK_CHANNELS, ACC)
    if LOGITS > 0:  # where the sums start, rather than one more addition
        pooled = load(grad_pooled + image * channels + channel, channel_ok, ACC) / (height * width)
        for i in tl.static_range(BLOCK_Y * BLOCK_X):
            sums = replace(sums, i, tl.broadcast_to(pooled[None, :], (BLOCKS, BLOCK_CHANNELS)))
    for phase in range(SCALE * SCALE):
        for outer in range(KERNEL_SIZE // TAP_ROWS):
            for inner in tl.static_range(TAP_ROWS):
                u = outer * TAP_ROWS + inner
                for v in tl.static_range(KERNEL_SIZE):
                    f = 0.0
                    s = 0.0
                    if HAS_CHANNEL:
                        channel_tap = (phase * AREA + u * KERNEL_SIZE + v) * channels
                        f = load(channel_filter + channel_tap, channel_ok, ACC)
                    for oy in tl.static_range(BLOCK_Y):
                        for ox in tl.static_range(BLOCK_X):
                            if (
                                STRIDE == 1
                                or not ALIGNED
                                or (
                                    (oy * STEP - (inner - RADIUS) * DILATION) % STRIDE == 0
                                    and (ox * STEP - (v - RADIUS) * DILATION) % STRIDE == 0
                                )
                            ):
                                # the output pixel relative to the origin, times the stride
                                dy = oy * STEP - (u - RADIUS) * DILATION
                                dx = ox * STEP - (v - RADIUS) * DILATION
                                if ALIGNED:
                                    dy = dy // STRIDE
                                    dx = dx // STRIDE
                                    meets = block_ok
                                else:
                                    meets = block_ok & ((row + dy) % STRIDE == 0) & ((column + dx) % STRIDE == 0)
                                    # a negative position is masked before its quotient is used
                                    meets = meets & (row + dy >= 0) & (column + dx >= 0)
                                    dy = (row + dy) // STRIDE
                                    dx = (column + dx) // STRIDE
                                out_row = origin_row + dy
                                out_column = origin_column + dx
                                meets = meets & (out_row >= 0) & (out_row < out_height)
                                meets = meets & ((out_column >= 0) & (out_column < out_width))
                                y_row = dy * SCALE + phase // SCALE
                                y_column = dx * SCALE + phase % SCALE
                                y_offset = y_row * row_stride + y_column * column_stride
                                if not ALIGNED:
                                    y_offset = y_offset[:, None]
                                value = load(y_block + y_offset, meets[:, None] & channel_ok[None, :], ACC)
                                if HAS_SPATIAL:
                                    tap = (phase * heads + head) * AREA + u * KERNEL_SIZE + v
                                    pixel = (dy * out_width + dx) * filter_column_stride
                                    s = load(spatial_block + tap * tap_stride + pixel, meets, ACC)
                                sums = multiply_accumulate(
                                    sums, oy * BLOCK_X + ox, value, f, s, MULTIPLY, HAS_CHANNEL, HAS_SPATIAL
                                )

    if LOGITS > 0:  # after the taps: before them, these would be more values to hold on to
        pixels = tl.cast(pixels, tl.int64)
        logit_block = grad_logits + image * height * width + (row * width + column)
        for logit in tl.static_range(LOGITS):
            w = load(weight + logit * channels + channel, channel_ok, ACC)
            w = tl.broadcast_to(w[None, :], (BLOCKS, BLOCK_CHANNELS))
            for oy in tl.static_range(BLOCK_Y):
                for ox in tl.static_range(BLOCK_X):
                    # with a stride, pixels off its grid have none: known here, or zeros in memory
                    if not ALIGNED or (oy % STRIDE == 0 and ox % STRIDE == 0):
                        ok = block_ok & (row + oy * STEP < height) & (column + ox * STEP < width)
                        g = load(logit_block + (oy * STEP * width + ox * STEP), ok, ACC)
                        sums = multiply_accumulate(sums, oy * BLOCK_X + ox, w, 0.0, g, MULTIPLY, False, True)
            logit_block += pixels

    if not CHANNELS_LAST:
        channel_stride = height * width
    grad_x += image * channels * height * width
    pixel = (row * width + column)[:, None] * column_stride
    channel_offset = (channel * channel_stride)[None, :]
    if ACTIVATE_X:
        scale, shift = true_affine_of(x_statistics, channel, channels, channel_ok)
        center = tl.load(x_statistics + 3 * channels + channel, mask=channel_ok, other=0.0)
        x += image * channels * height * width
        value_block = x + pixel + channel_offset
        total = tl.zeros((BLOCKS, BLOCK_CHANNELS), ACC)
        along = tl.zeros((BLOCKS, BLOCK_CHANNELS), ACC)
        for oy in tl.static_range(BLOCK_Y):
            for ox in tl.static_range(BLOCK_X):
                ok = block_ok & (row + oy * STEP < height) & (column + ox * STEP < width)
                mask = ok[:, None] & channel_ok[None, :]
                value = load(value_block + (oy * STEP * width + ox * STEP) * column_stride, mask, ACC)
                grad = before_relu(sums[oy * BLOCK_X + ox], value, scale, shift, mask)
                total += grad
                along += grad * (value - center[None, :])
                sums = replace(sums, oy * BLOCK_X + ox, grad)
        target = norm_partials + (image * block_tiles + block_tile) * 2 * channels + channel
        tl.store(target, tl.sum(total, axis=0), mask=channel_ok)
        tl.store(target + channels, tl.sum(along, axis=0), mask=channel_ok)
    x_block = grad_x + pixel + channel_offset
    for oy in tl.static_range(BLOCK_Y):
        for ox in tl.static_range(BLOCK_X):
            ok = block_ok & (row + oy * STEP < height) & (column + ox * STEP < width)
            tl.store(
                x_block + (oy * STEP * width + ox * STEP) * column_stride,
                sums[oy * BLOCK_X + ox].to(grad_x.dtype.element_ty),
                mask=ok[:, None] & channel_ok[None, :],
            )
