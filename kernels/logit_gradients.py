"""The gradients of the spatial branch's logits, in the kernel that makes those of its filters: of 3x3 taps.

A program with all channels has the gradients of the 2 x 9 values of each block's two pixels. Of the eight lanes that
share a block, each gets two taps of one pixel, in tiles (2, blocks, 4, 2): i, block, j, pixel for tap 4 * i + j. So the
sums over taps cross four lanes, in two steps. The ninth tap, in (1, blocks, 4, 2), all four have.
"""

import triton
import triton.language as tl
from ddfnet.kernels.common import load
from ddfnet.kernels.tiles import columns, last_sums, stacked


@triton.jit
def first_taps():
    """The first eight taps, by number."""
    return 4 * tl.arange(0, 2)[:, None, None, None] + tl.arange(0, 4)[None, None, :, None]


@triton.jit
def pixels_of(blocks, STEP: tl.constexpr):
    """The numbers of the pixels in the map, and which there are, both (1, blocks, 4, 2)."""
    row, column, block_ok, out_height, out_width = blocks
    second = (tl.arange(0, 2)[None, None, None, :] == 1) & (tl.arange(0, 4)[None, None, :, None] >= 0)
    row, column, block_ok = row[None, :, None, None], column[None, :, None, None], block_ok[None, :, None, None]
    # A choice hides from the compiler that two are neighbors: it would give a thread both, of one tap, for one access.
    pixel = tl.where(second, row * out_width + column + STEP, row * out_width + column)
    last = tl.where(second, column + STEP, column)
    return pixel, block_ok & (row < out_height) & (last < out_width)


@triton.jit
def load_normalized(
    spatial_filter, inverse_std, tap_stride, column_stride, blocks, STEP: tl.constexpr, ACC: tl.constexpr
):
    """The spatial filter of the first eight taps and of the ninth, and the inverse standard deviations."""
    pixel, ok = pixels_of(blocks, STEP)
    filters = spatial_filter + pixel * column_stride
    first = load(filters + first_taps() * tap_stride, ok, ACC)
    ninth = load(filters + 8 * tap_stride, ok, ACC)
    return first, ninth, load(inverse_std + pixel, ok, ACC)


@triton.jit
def weights_of(first):
    """The filters of the first eight taps as 16 tiles (blocks, 1): for each tap of both pixels.

    Halves of the taps come last: a thread has both, and of two tiles taken apart first there would be two exchanges.
    """
    mixed = columns(first.permute((1, 2, 3, 0)).reshape(first.shape[1], 16))
    weights = ()
    for tap in tl.static_range(8):
        weights = weights + (mixed[tap % 4 * 4 + tap // 4], mixed[tap % 4 * 4 + 2 + tap // 4])
    return weights


@triton.jit
def sums_over_taps(first, ninth):
    """Of a pixel, (1, blocks, 1, 2)."""
    return tl.sum(tl.sum(first, axis=0), axis=1)[None, :, None, :] + ninth


@triton.jit
def store_logit_gradients(grad_logits, all_pixels, alpha, totals, filters, bias_sums, blocks, STEP: tl.constexpr):
    """Stores the gradients of the logits, and adds them to `bias_sums`.

    With z the normalized logits and g the gradient of z, which is alpha times the sums of the rows of `totals`:
    grad_logits = (g - mean(g) - z * sum(g*z) / 8) / std.
    """
    BLOCKS: tl.constexpr = totals[0].shape[0]
    WIDTH: tl.constexpr = totals[0].shape[1]
    rows = stacked(totals, 0, 16).reshape(BLOCKS, 2, 8, WIDTH).permute((1, 0, 2, 3))
    grads = last_sums(rows.reshape(2 * BLOCKS, 8, WIDTH)).reshape(2, BLOCKS, 4, 2)
    # The ninth tap's two rows: after a step each lane keeps that of its own pixel.
    one = tl.sum(totals[16].reshape(BLOCKS, WIDTH // 2, 2), axis=2)[:, :, None]
    two = tl.sum(totals[17].reshape(BLOCKS, WIDTH // 2, 2), axis=2)[:, :, None]
    ninth = tl.sum(tl.where(tl.arange(0, 2)[None, None, :] == 1, two, one), axis=1)[None, :, None, :]

    first_filters, ninth_filter, inverse = filters
    total = sums_over_taps(grads, ninth)
    along = sums_over_taps(grads * first_filters, ninth * ninth_filter)
    scale = alpha * inverse
    shift = total * scale * (-1.0 / 9)
    slope = along * inverse * (-1.0 / (8 * alpha))
    pixel, ok = pixels_of(blocks, STEP)
    target = grad_logits + pixel
    sums = ()
    for i in tl.static_range(2):
        g = tl.broadcast_to(grads if i == 0 else ninth, filters[i].shape)
        value = tl.fma(g, tl.broadcast_to(scale, g.shape), tl.broadcast_to(shift, g.shape))
        value = tl.fma(filters[i], tl.broadcast_to(slope, g.shape), value)
        sums = sums + (bias_sums[i] + value,)
        if i == 0:
            tap, store_ok = first_taps(), ok
        else:
            tap, store_ok = 8, ok & (tl.arange(0, 4)[None, None, :, None] == 0)
        places = target + tl.cast(tap, tl.int64) * all_pixels
        tl.store(places, value.to(grad_logits.dtype.element_ty), mask=store_ok)
    return sums


@triton.jit
def store_bias_sums(bias_partials, bias_sums):
    """Their sums over pixels: nine."""
    tl.store(bias_partials + first_taps().reshape(2, 4), tl.sum(tl.sum(bias_sums[0], axis=3), axis=1))
    lane = tl.arange(0, 4)[None, :]
    tl.store(bias_partials + 8 + 0 * lane, tl.sum(tl.sum(bias_sums[1], axis=3), axis=1), mask=lane == 0)
