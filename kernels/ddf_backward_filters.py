"""Backward kernel of the DDF operators for the gradients of both filters."""

import triton
import triton.language as tl
from ddfnet.kernels.block_pairs import load_weights, store_sums
from ddfnet.kernels.common import affine_of, block_positions, load, load_activated, replace, zeros
from ddfnet.kernels.logit_gradients import load_normalized, store_bias_sums, store_logit_gradients, weights_of
from ddfnet.kernels.tiles import column_sums, strided


@triton.jit
def sum_together(w, f, COUNT: tl.constexpr, PRODUCT: tl.constexpr):
    """w * f, or w alone, of pixels x channels added up over the COUNT channels that a thread has: (B, C / COUNT)."""
    ws = strided(w, COUNT)
    if PRODUCT:
        fs = strided(tl.broadcast_to(f, w.shape), COUNT)
        total = ws[0] * fs[0]
        for i in tl.static_range(1, COUNT):
            total = tl.fma(ws[i], fs[i], total)
    else:
        total = ws[0]
        for i in tl.static_range(1, COUNT):
            total = total + ws[i]
    return total


@triton.jit(do_not_specialize=["all_pixels"])
def ddf_backward_filters_kernel(
    grad_y,
    x,
    channel_filter,
    spatial_filter,
    channel_partials,
    spatial_partials,
    x_affine,
    height,
    width,
    head_channels,
    heads,
    iterations,
    inverse_std,
    grad_logits,
    bias_partials,
    all_pixels,
    alpha,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    HEAD_CHANNELS: tl.constexpr,
    KERNEL_SIZE: tl.constexpr,
    STRIDE: tl.constexpr,
    DILATION: tl.constexpr,
    SCALE: tl.constexpr,
    PRODUCT: tl.constexpr,
    NEED_CHANNEL: tl.constexpr,
    NEED_SPATIAL: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    SPATIAL_CHANNELS_LAST: tl.constexpr,
    INT64: tl.constexpr,
    BLOCK_Y: tl.constexpr,
    BLOCK_X: tl.constexpr,
    BLOCKS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    TAP_ROWS: tl.constexpr,
    ACTIVATE_X: tl.constexpr,
    LOGITS: tl.constexpr,
):
    """Partial sums of both filter gradients; with w[b,c,t,p] = grad_y[b,c,phase,p] * x[b,c,p+t]:

    channel_partials[b,chunk,phase,t,c] = sum over the pixels p of a chunk of w * spatial_filter (or w alone),
    spatial_partials[b,tile,phase,g,t,p] = sum over the channels c of a tile of w * channel_filter (or w alone).

    One program walks over a chunk of `iterations` x BLOCKS blocks of BLOCK_Y x BLOCK_X output pixels of one phase, for
    BLOCK_CHANNELS channels of one head of one image and TAP_ROWS rows of taps. The sums over pixels stay in registers
    on the way, one accumulator a tap. Each partial has one writer and the caller adds them up: no atomics, hence the
    same bits every time.

    PRODUCT: the filters are multiplied, so that each gradient is weighted with the other filter.
    Partials are contiguous: (B, chunks, phases, k*k, C) in the accumulator dtype, and
    (B, tiles per head, phases*G*k*k, Ho, Wo) in any dtype. Layouts and flags are those of `ddf_forward_kernel`.
    x_affine as well: what is filtered, and so multiplied here, is the activated x.

    With LOGITS, for a DDF layer, no gradient of the spatial filter is stored, but that of the logits it was normalized
    from, and sums for their bias: inverse_std to alpha as of `spatial_filters_backward_kernel`, with bias_partials of
    (B * chunks, G*AREA). For one program of all channels, 3x3 taps, stride 1, and blocks of 1 x 2 pixels.
    """
    ACC: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    AREA: tl.constexpr = KERNEL_SIZE * KERNEL_SIZE
    RADIUS: tl.constexpr = KERNEL_SIZE // 2
    STEP: tl.constexpr = DILATION if STRIDE == 1 and BLOCK_Y * BLOCK_X > 1 else 1  # as in the forward kernel
    height = HEIGHT if HEIGHT > 0 else height
    width = WIDTH if WIDTH > 0 else width
    head_channels = HEAD_CHANNELS if HEAD_CHANNELS > 0 else head_channels
    out_height, out_width = (height - 1) // STRIDE + 1, (width - 1) // STRIDE + 1
    channels = head_channels * heads
    block_rows = tl.cdiv(out_height, STEP * BLOCK_Y) * STEP
    block_columns = tl.cdiv(out_width, STEP * BLOCK_X) * STEP
    channel_tiles = tl.cdiv(head_channels, BLOCK_CHANNELS)
    chunks = tl.cdiv(block_rows * block_columns, BLOCKS * iterations)

    program = tl.program_id(0)
    tile, program = program % channel_tiles, program // channel_tiles
    first_row, program = program % (KERNEL_SIZE // TAP_ROWS) * TAP_ROWS, program // (KERNEL_SIZE // TAP_ROWS)
    phase, program = program % (SCALE * SCALE), program // (SCALE * SCALE)
    head, program = program % heads, program // heads
    chunk = program % chunks
    image = (program // chunks).to(tl.int64)

    # channels_of() in place: with the call, sm_90 gets another register count
    channel_in_head = tile * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    channel_ok = channel_in_head < head_channels
    channel = head * head_channels + channel_in_head
    first_tap = phase * AREA + first_row * KERNEL_SIZE
    first_spatial_tap = (phase * heads + head) * AREA + first_row * KERNEL_SIZE
    if INT64:
        channel = channel.to(tl.int64)
        first_tap = first_tap.to(tl.int64)
        first_spatial_tap = first_spatial_tap.to(tl.int64)

    x_channel_stride = 1 if CHANNELS_LAST else height * width
    y_channel_stride = 1 if CHANNELS_LAST else out_height * out_width * (SCALE * SCALE)
    column_stride = channels if CHANNELS_LAST else 1
    out_pixels = out_height * out_width
    if INT64:
        column_stride = tl.cast(column_stride, tl.int64)
        out_pixels = tl.cast(out_pixels, tl.int64)
    x_row_stride = width * column_stride
    y_row_stride = out_width * SCALE * column_stride
    tap_stride = 1 if SPATIAL_CHANNELS_LAST else out_pixels
    filter_column_stride = SCALE * SCALE * heads * AREA if SPATIAL_CHANNELS_LAST else 1
    x += image * height * width * channels + (first_row - RADIUS) * DILATION * x_row_stride
    grad_y += image * channels * out_pixels * (SCALE * SCALE)
    grad_y += phase // SCALE * y_row_stride + phase % SCALE * column_stride
    channel_filter += (image * (SCALE * SCALE * AREA) + first_tap) * channels + channel
    spatial_filter += image * (SCALE * SCALE * heads * AREA) * out_pixels + first_spatial_tap * tap_stride
    channel_partials += ((image * chunks + chunk) * (SCALE * SCALE * AREA) + first_tap) * channels + channel
    spatial_partials += (image * channel_tiles + tile) * (SCALE * SCALE * heads * AREA) * out_pixels
    spatial_partials += first_spatial_tap * out_pixels

    # A lane loads what it needs of the channel filter itself, as part of a tile of pixels x channels; of the spatial
    # filter too, where it has its pixels alone. As a row or a column, loads would be spread over all lanes, and each
    # be exchanged through shared memory, with barriers. (Of several phases they are: sm_100 spills otherwise.)
    pixels_of_block = tl.zeros((BLOCKS, 1), tl.int32)
    channels_of_tile = tl.zeros((1, BLOCK_CHANNELS), tl.int32)
    filter_tile = channel_filter[None, :] + pixels_of_block
    tile_ok = channel_ok[None, :] & (pixels_of_block == 0)

    PAIRS: tl.constexpr = TAP_ROWS * KERNEL_SIZE * BLOCK_Y * BLOCK_X  # of a tap and a pixel of a block
    # Neighboring channels that a thread has, with a program of one warp: of one load, which has 16 bytes at most. Only
    # speed depends on it.
    MULTIPLE: tl.constexpr = (
        8 if HEAD_CHANNELS % 8 == 0 else 4 if HEAD_CHANNELS % 4 == 0 else 2 if HEAD_CHANNELS % 2 == 0 else 1
    )
    MOST: tl.constexpr = min(
        BLOCK_CHANNELS, 128 // x.dtype.element_ty.primitive_bitwidth, max(BLOCKS * BLOCK_CHANNELS // 32, 1)
    )
    TOGETHER: tl.constexpr = min(MULTIPLE, MOST)
    # Several lanes have the same pixel. (Of channels that no load takes together the exchanges spill registers.)
    SHARED: tl.constexpr = CHANNELS_LAST and BLOCK_CHANNELS > TOGETHER and TOGETHER == MOST
    if LOGITS:
        tl.static_assert(SHARED and PRODUCT and NEED_CHANNEL and NEED_SPATIAL and PAIRS == 18 and BLOCK_X == 2)
        tl.static_assert(STRIDE == 1 and SCALE == 1)
        inverse_std += (image * heads + head) * out_pixels
        grad_logits += tl.cast(head * AREA, tl.int64) * all_pixels + image * out_pixels
        bias_partials += ((image * chunks + chunk) * heads + head) * AREA
        bias_sums = (tl.zeros((2, BLOCKS, 4, 2), ACC), tl.zeros((1, BLOCKS, 4, 2), ACC))
    sums = zeros(TAP_ROWS * KERNEL_SIZE if NEED_CHANNEL else 0, BLOCKS, BLOCK_CHANNELS, ACC)
    for iteration in range(iterations):
        first_block = (chunk * iterations + iteration) * BLOCKS
        row, column, block_ok = block_positions(
            first_block, block_rows, block_columns, BLOCKS, BLOCK_Y, BLOCK_X, STEP, INT64
        )
        x_block = x + (row * STRIDE * x_row_stride + column * STRIDE * column_stride)[:, None]
        x_block += (channel * x_channel_stride)[None, :]
        y_block = grad_y + (row * SCALE * y_row_stride + column * SCALE * column_stride)[:, None]
        y_block += (channel * y_channel_stride)[None, :]
        blocks = (row, column, block_ok, out_height, out_width)
        if ACTIVATE_X:
            x_scale, x_shift = affine_of(x_affine, channel[None, :] + pixels_of_block, channels, tile_ok)
        grads = ()
        for oy in tl.static_range(BLOCK_Y):
            for ox in tl.static_range(BLOCK_X):
                ok = block_ok & (row + oy * STEP < out_height) & (column + ox * STEP < out_width)
                y_offset = oy * STEP * SCALE * y_row_stride + ox * STEP * SCALE * column_stride
                grads = grads + (load(y_block + y_offset, ok[:, None] & channel_ok[None, :], ACC),)
        totals = ()
        for u in tl.static_range(TAP_ROWS):
            # The loads of x of a row of taps stand together, those of the first row before the exchange of the spatial
            # filter: the compiler moves none over a barrier, and one would wait for the other. Equal ones become one.
            values = ()
            for v in tl.static_range(KERNEL_SIZE):
                for oy in tl.static_range(BLOCK_Y):
                    for ox in tl.static_range(BLOCK_X):
                        dy = oy * STEP * STRIDE + u * DILATION
                        dx = ox * STEP * STRIDE + (v - RADIUS) * DILATION
                        in_row = row * STRIDE + (first_row - RADIUS) * DILATION + dy
                        in_column = column * STRIDE + dx
                        inside = block_ok & (in_row >= 0) & (in_row < height)
                        inside = inside & ((in_column >= 0) & (in_column < width))
                        x_offset = dy * x_row_stride + dx * column_stride
                        x_ok = inside[:, None] & channel_ok[None, :]
                        if ACTIVATE_X:
                            values = values + (load_activated(x_block + x_offset, x_ok, x_scale, x_shift, ACC),)
                        else:
                            values = values + (load(x_block + x_offset, x_ok, ACC),)
            if PRODUCT and NEED_CHANNEL and SHARED and u == 0:
                FIRST: tl.constexpr = 16 if LOGITS else 0
                weights = load_weights(
                    spatial_filter,
                    tap_stride,
                    filter_column_stride,
                    blocks,
                    FIRST,
                    PAIRS - FIRST,
                    BLOCK_Y,
                    BLOCK_X,
                    STEP,
                    ACC,
                )
                if LOGITS:
                    normalized = load_normalized(
                        spatial_filter, inverse_std, tap_stride, filter_column_stride, blocks, STEP, ACC
                    )
                    weights = weights_of(normalized[0]) + weights
            for v in tl.static_range(KERNEL_SIZE):
                f = 1.0
                if PRODUCT and NEED_SPATIAL:
                    tap = (u * KERNEL_SIZE + v) * channels
                    if CHANNELS_LAST and SCALE == 1:
                        f = load(filter_tile + tap, tile_ok, ACC)
                    else:
                        f = load(channel_filter + tap, channel_ok, ACC)[None, :]
                for oy in tl.static_range(BLOCK_Y):
                    for ox in tl.static_range(BLOCK_X):
                        w = grads[oy * BLOCK_X + ox] * values[(v * BLOCK_Y + oy) * BLOCK_X + ox]
                        if NEED_CHANNEL and PRODUCT:
                            if SHARED:
                                s = weights[((u * KERNEL_SIZE + v) * BLOCK_Y + oy) * BLOCK_X + ox]
                            else:
                                ok = block_ok & (row + oy * STEP < out_height) & (column + ox * STEP < out_width)
                                pixel = row * out_width + column + (oy * STEP * out_width + ox * STEP)
                                offset = (u * KERNEL_SIZE + v) * tap_stride + pixel * filter_column_stride
                                ok = ok[:, None] & (channels_of_tile == 0)
                                s = load(spatial_filter + offset[:, None] + channels_of_tile, ok, ACC)
                            total = tl.fma(w, tl.broadcast_to(s, w.shape), sums[u * KERNEL_SIZE + v])
                            sums = replace(sums, u * KERNEL_SIZE + v, total)
                        elif NEED_CHANNEL:
                            sums = replace(sums, u * KERNEL_SIZE + v, sums[u * KERNEL_SIZE + v] + w)
                        if NEED_SPATIAL:
                            totals = totals + (sum_together(w, f, TOGETHER, PRODUCT),)
        # Exchanged and stored after the last load: the compiler merges and moves no loads across either.
        if LOGITS:
            bias_sums = store_logit_gradients(
                grad_logits, all_pixels, alpha, totals, normalized, bias_sums, blocks, STEP
            )
        elif NEED_SPATIAL:
            store_sums(spatial_partials, out_pixels, totals, blocks, 0, PAIRS, BLOCK_Y, BLOCK_X, STEP)
    if LOGITS:
        store_bias_sums(bias_partials, bias_sums)
    if NEED_CHANNEL:
        for t in tl.static_range(TAP_ROWS * KERNEL_SIZE):
            # An exchange has fewer instructions, but the assembler then takes more registers: with x activated sm_90
            # spills, and with added filters fewer warps run.
            total = column_sums(sums[t]) if SHARED and PRODUCT and not ACTIVATE_X else tl.sum(sums[t], axis=0)
            tl.store(channel_partials + t * channels, total, mask=channel_ok)
