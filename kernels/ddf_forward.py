"""Forward kernel of the DDF operators, `ddf` and `ddf_up`."""

import triton
import triton.language as tl
from ddfnet.kernels.common import (
    activate,
    affine_of,
    block_positions,
    channels_of,
    load,
    load_activated,
    multiply_accumulate,
    replace,
    store_moments,
    to_sums,
    zeros,
)


@triton.jit
def ddf_forward_kernel(
    x,
    channel_filter,
    spatial_filter,
    y,
    x_affine,
    y_affine,
    y_moments,
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
    PHASES: tl.constexpr,
    TAP_ROWS: tl.constexpr,
    ACTIVATE_X: tl.constexpr,
    ACTIVATE_Y: tl.constexpr,
    MOMENTS: tl.constexpr,
):
    """y[b,c,phase,p] = sum over taps t of x[b,c,p+t] * weight[b,c,phase,t,p], where, with g(c) the head of channel c,
    weight[b,c,phase,t,p] = channel_filter[b,phase,t,c] (*|+) spatial_filter[b,phase,g(c),t,p].

    `ddf` has one phase; `ddf_up` has SCALE * SCALE of them, phase (a, e) of pixel (i, j) being pixel
    (i * SCALE + a, j * SCALE + e) of y. p runs over the pixels of the spatial filter, (ceil(H/STRIDE), ceil(W/STRIDE)).

    One program computes BLOCKS blocks of BLOCK_Y x BLOCK_X pixels, in PHASES phases, for BLOCK_CHANNELS channels of one
    head of one image. Each thread owns whole blocks: a value of x that several outputs of a block meet is loaded once.
    The source loads it for each of them, with the same constants in its address, and the compiler merges equal loads.

    x, y: both channels_last or both contiguous. channel_filter: contiguous (B, phases, k*k, C), accumulator dtype.
    spatial_filter: contiguous or channels_last (B, phases*G*k*k, Ho, Wo). An absent filter (HAS_* false) is not read.
    HEIGHT, WIDTH, HEAD_CHANNELS: the sizes as constants, or 0 to take the arguments: constants save address arithmetic.
    INT64: offsets inside one image need 64 bits; offsets between images always have them.
    ACTIVATE_X: x is relu(x * scale + shift), with x_affine (2, C) in float32; the zeros of the padding are not.
    ACTIVATE_Y: y is relu(y * scale + shift), likewise: the batch normalizations around the operator. An affine that is
    not used is not read.
    MOMENTS, of `ddf` only: y_moments are those of y as `batch_norm_training.py` has them, a part being what one program
    has of each channel: float32 (B * programs for one head and channel tile of an image, 2*C + 4).
    """
    ACC: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    AREA: tl.constexpr = KERNEL_SIZE * KERNEL_SIZE
    RADIUS: tl.constexpr = KERNEL_SIZE // 2
    # With a dilation, neighbors of a block stand DILATION apart: those are the pixels that meet the same values of x.
    STEP: tl.constexpr = DILATION if STRIDE == 1 and BLOCK_Y * BLOCK_X > 1 else 1
    height = HEIGHT if HEIGHT > 0 else height
    width = WIDTH if WIDTH > 0 else width
    head_channels = HEAD_CHANNELS if HEAD_CHANNELS > 0 else head_channels
    out_height, out_width = (height - 1) // STRIDE + 1, (width - 1) // STRIDE + 1
    channels = head_channels * heads
    block_rows = tl.cdiv(out_height, STEP * BLOCK_Y) * STEP
    block_columns = tl.cdiv(out_width, STEP * BLOCK_X) * STEP
    channel_tiles = tl.cdiv(head_channels, BLOCK_CHANNELS)
    block_tiles = tl.cdiv(block_rows * block_columns, BLOCKS)

    # channel tiles vary fastest: those of one pixel block share its spatial filter
    program = tl.program_id(0)
    tile, program = program % channel_tiles, program // channel_tiles
    first_phase, program = program % (SCALE * SCALE // PHASES) * PHASES, program // (SCALE * SCALE // PHASES)
    head, program = program % heads, program // heads
    block_tile = program % block_tiles
    image = (program // block_tiles).to(tl.int64)

    row, column, block_ok = block_positions(
        block_tile * BLOCKS, block_rows, block_columns, BLOCKS, BLOCK_Y, BLOCK_X, STEP, INT64
    )
    channel, channel_ok = channels_of(tile * BLOCK_CHANNELS, head, head_channels, BLOCK_CHANNELS, INT64)
    if INT64:
        first_phase = first_phase.to(tl.int64)
        head = head.to(tl.int64)

    channel_stride = 1 if CHANNELS_LAST else height * width
    column_stride = channels if CHANNELS_LAST else 1
    if INT64:
        column_stride = tl.cast(column_stride, tl.int64)
    row_stride = width * column_stride
    x += image * height * width * channels
    x_block = x + (row * STRIDE * row_stride + column * STRIDE * column_stride)[:, None]
    x_block += (channel * channel_stride)[None, :]
    tap_stride = 1 if SPATIAL_CHANNELS_LAST else out_height * out_width
    filter_column_stride = SCALE * SCALE * heads * AREA if SPATIAL_CHANNELS_LAST else 1
    spatial_filter += image * (SCALE * SCALE * heads * AREA) * out_height * out_width
    spatial_block = spatial_filter + (row * out_width + column) * filter_column_stride
    channel_filter += image * (SCALE * SCALE * AREA) * channels + channel

    if ACTIVATE_X:
        x_scale, x_shift = affine_of(x_affine, channel, channels, channel_ok)
    sums = zeros(PHASES * BLOCK_Y * BLOCK_X, BLOCKS, BLOCK_CHANNELS, ACC)
    for outer in range(KERNEL_SIZE // TAP_ROWS):
        for inner in tl.static_range(TAP_ROWS):
            u = outer * TAP_ROWS + inner
            for v in tl.static_range(KERNEL_SIZE):
                for i in tl.static_range(PHASES):
                    f = 0.0
                    s = 0.0
                    if HAS_CHANNEL:
                        channel_tap = ((first_phase + i) * AREA + u * KERNEL_SIZE + v) * channels
                        f = load(channel_filter + channel_tap, channel_ok, ACC)
                    for oy in tl.static_range(BLOCK_Y):
                        for ox in tl.static_range(BLOCK_X):
                            out_row = row + oy * STEP
                            out_column = column + ox * STEP
                            ok = block_ok & (out_row < out_height) & (out_column < out_width)
                            dy = oy * STEP * STRIDE + (u - RADIUS) * DILATION
                            dx = ox * STEP * STRIDE + (v - RADIUS) * DILATION
                            in_row = row * STRIDE + dy
                            in_column = column * STRIDE + dx
                            inside = block_ok & (in_row >= 0) & (in_row < height)
                            inside = inside & ((in_column >= 0) & (in_column < width))
                            x_tap = x_block + dy * row_stride + dx * column_stride
                            x_ok = inside[:, None] & channel_ok[None, :]
                            if ACTIVATE_X:
                                value = load_activated(x_tap, x_ok, x_scale, x_shift, ACC)
                            else:
                                value = load(x_tap, x_ok, ACC)
                            if HAS_SPATIAL:
                                tap = ((first_phase + i) * heads + head) * AREA + u * KERNEL_SIZE + v
                                offset = (oy * STEP * out_width + ox * STEP) * filter_column_stride
                                s = load(spatial_block + tap * tap_stride + offset, ok, ACC)
                            sums = multiply_accumulate(
                                sums, (i * BLOCK_Y + oy) * BLOCK_X + ox, value, f, s, MULTIPLY, HAS_CHANNEL, HAS_SPATIAL
                            )

    if not CHANNELS_LAST:
        channel_stride = out_height * out_width * (SCALE * SCALE)
    row_stride = out_width * SCALE * column_stride
    y += image * channels * out_height * out_width * (SCALE * SCALE)
    y_block = y + (row * SCALE * row_stride + column * SCALE * column_stride)[:, None]
    y_block += (channel * channel_stride)[None, :]
    if ACTIVATE_Y:
        y_scale, y_shift = affine_of(y_affine, channel, channels, channel_ok)
    for i in tl.static_range(PHASES):
        phase = first_phase + i
        for oy in tl.static_range(BLOCK_Y):
            for ox in tl.static_range(BLOCK_X):
                ok = block_ok & (row + oy * STEP < out_height) & (column + ox * STEP < out_width)
                dy = oy * STEP * SCALE + phase // SCALE
                dx = ox * STEP * SCALE + phase % SCALE
                value = sums[(i * BLOCK_Y + oy) * BLOCK_X + ox]
                if ACTIVATE_Y:
                    value = activate(value, y_scale, y_shift)
                value = value.to(y.dtype.element_ty)
                mask = ok[:, None] & channel_ok[None, :]
                tl.store(y_block + dy * row_stride + dx * column_stride, value, mask=mask)
                if MOMENTS:  # of what was stored, that is, rounded
                    sums = replace(sums, (i * BLOCK_Y + oy) * BLOCK_X + ox, to_sums(value, ACC))

    if MOMENTS:
        counts = tl.zeros((BLOCKS,), ACC)
        total = tl.zeros((BLOCKS, BLOCK_CHANNELS), ACC)
        for oy in tl.static_range(BLOCK_Y):
            for ox in tl.static_range(BLOCK_X):
                ok = block_ok & (row + oy * STEP < out_height) & (column + ox * STEP < out_width)
                counts += ok.to(ACC)
                total += tl.where(ok[:, None], sums[oy * BLOCK_X + ox], 0.0)
        count = tl.sum(counts, axis=0)
        mean = tl.sum(total, axis=0) / tl.maximum(count, 1.0)
        squares = tl.zeros((BLOCKS, BLOCK_CHANNELS), ACC)
        for oy in tl.static_range(BLOCK_Y):
            for ox in tl.static_range(BLOCK_X):
                ok = block_ok & (row + oy * STEP < out_height) & (column + ox * STEP < out_width)
                deviation = tl.where(ok[:, None], sums[oy * BLOCK_X + ox] - mean[None, :], 0.0)
                squares += deviation * deviation
        part = image * block_tiles + block_tile
        store_moments(y_moments, part, channel, channels, channel_ok, count, mean, tl.sum(squares, axis=0))
