"""Pairs of a tap and a pixel of a block: their values of the spatial filter, and the sums of its gradient."""

import triton
import triton.language as tl
from ddfnet.kernels.common import load
from ddfnet.kernels.tiles import columns, row_sums


@triton.jit
def pairs_of(
    blocks, FIRST: tl.constexpr, COUNT: tl.constexpr, BLOCK_Y: tl.constexpr, BLOCK_X: tl.constexpr, STEP: tl.constexpr
):
    """COUNT pairs of a tap and a pixel of a block, from number FIRST on: the tap (1, COUNT), the number of the pixel in
    the map and whether there is such a pixel, both (B, COUNT)."""
    row, column, block_ok, out_height, out_width = blocks
    pair = FIRST + tl.arange(0, COUNT)[None, :]
    y = row[:, None] + pair // BLOCK_X % BLOCK_Y * STEP
    x = column[:, None] + pair % BLOCK_X * STEP
    return pair // (BLOCK_Y * BLOCK_X), y * out_width + x, block_ok[:, None] & (y < out_height) & (x < out_width)


@triton.jit
def load_weights(
    spatial_filter,
    tap_stride,
    column_stride,
    blocks,
    FIRST: tl.constexpr,
    COUNT: tl.constexpr,
    BLOCK_Y: tl.constexpr,
    BLOCK_X: tl.constexpr,
    STEP: tl.constexpr,
    ACC: tl.constexpr,
):
    """The spatial filter of COUNT pairs of a tap and a pixel of a block, a tile (B, 1) each.

    Lanes that share a pixel need the same ones. Each loads some, and they exchange them: 16 with one barrier.
    """
    SIZE: tl.constexpr = 16 if COUNT >= 16 else 8 if COUNT >= 8 else 4 if COUNT >= 4 else 1
    tap, pixel, ok = pairs_of(blocks, FIRST, SIZE, BLOCK_Y, BLOCK_X, STEP)
    weights = columns(load(spatial_filter + (tap * tap_stride + pixel * column_stride), ok, ACC))
    if COUNT > SIZE:
        more = load_weights(
            spatial_filter, tap_stride, column_stride, blocks, FIRST + SIZE, COUNT - SIZE, BLOCK_Y, BLOCK_X, STEP, ACC
        )
        weights = weights + more
    return weights


@triton.jit
def store_sums(
    spatial_partials,
    out_pixels,
    totals,
    blocks,
    FIRST: tl.constexpr,
    COUNT: tl.constexpr,
    BLOCK_Y: tl.constexpr,
    BLOCK_X: tl.constexpr,
    STEP: tl.constexpr,
):
    """Stores the sums of the rows of `totals`, a tile for each pair of a tap and a pixel, from number FIRST on."""
    SHARED: tl.constexpr = totals[0].shape[1] > 1
    SIZE: tl.constexpr = 1 if not SHARED else 16 if COUNT >= 16 else 8 if COUNT >= 8 else 4 if COUNT >= 4 else 1
    tap, pixel, ok = pairs_of(blocks, FIRST, SIZE, BLOCK_Y, BLOCK_X, STEP)
    sums = row_sums(totals, FIRST, SIZE).to(spatial_partials.dtype.element_ty)
    tl.store(spatial_partials + (tap * out_pixels + pixel), sums, mask=ok)
    if COUNT > SIZE:
        store_sums(spatial_partials, out_pixels, totals, blocks, FIRST + SIZE, COUNT - SIZE, BLOCK_Y, BLOCK_X, STEP)
