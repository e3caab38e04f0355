"""Kernels of the DDF layer's channel branch: its small matrix products, with what stands around them.

Of four products these kernels do not make two: logits = hidden * excitation, and its gradient with respect to hidden,
whose weight is too large to be read for every image. Sums are float32, in a fixed order: no atomics, no TF32.
"""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["tiles", "hidden_channels"])
def channel_squeeze_kernel(
    pool_partials,
    weight,
    bias,
    pooled,
    hidden,
    channels,
    tiles,
    hidden_channels,
    HAS_BIAS: tl.constexpr,
    BLOCK_TILES: tl.constexpr,
    BLOCK_HIDDEN: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """pooled[b,c] = sum over tiles of pool_partials[b,tile,c], and hidden[b,h] = relu(bias[h] + sum over c of
    pooled[b,c] * weight[h,c]).

    pool_partials: float32 (B, tiles, C). weight: (H, C), bias: (H,), any float dtype. pooled: float32 (B, C), hidden:
    float32 (B, H). One program has BLOCK_HIDDEN hidden channels of one image; the first of an image writes pooled.
    """
    blocks = tl.cdiv(hidden_channels, BLOCK_HIDDEN)
    block = tl.program_id(0) % blocks
    image = (tl.program_id(0) // blocks).to(tl.int64)
    row = block * BLOCK_HIDDEN + tl.arange(0, BLOCK_HIDDEN)
    row_ok = row < hidden_channels
    pool_partials += image * tiles * channels
    pooled += image * channels
    products = tl.zeros((BLOCK_HIDDEN, BLOCK_CHANNELS), tl.float32)
    for first in range(0, channels, BLOCK_CHANNELS):
        channel = first + tl.arange(0, BLOCK_CHANNELS)
        channel_ok = channel < channels
        sums = tl.zeros((BLOCK_TILES, BLOCK_CHANNELS), tl.float32)
        for first_tile in range(0, tiles, BLOCK_TILES):
            tile = first_tile + tl.arange(0, BLOCK_TILES)
            mask = (tile < tiles)[:, None] & channel_ok[None, :]
            sums += tl.load(pool_partials + tile[:, None] * channels + channel[None, :], mask=mask, other=0.0)
        average = tl.sum(sums, axis=0)
        tl.store(pooled + channel, average, mask=channel_ok & (block == 0))
        mask = row_ok[:, None] & channel_ok[None, :]
        w = tl.load(weight + row[:, None] * channels + channel[None, :], mask=mask, other=0.0).to(tl.float32)
        products += w * average[None, :]
    total = tl.sum(products, axis=1)
    if HAS_BIAS:
        total += tl.load(bias + row, mask=row_ok, other=0.0).to(tl.float32)
    total = tl.maximum(total, 0.0, propagate_nan=tl.PropagateNan.ALL)
    tl.store(hidden + image * hidden_channels + row, total, mask=row_ok)


@triton.jit(do_not_specialize=["hidden_channels"])
def channel_squeeze_backward_kernel(
    grad,
    hidden,
    weight,
    grad_hidden,
    grad_pooled,
    channels,
    hidden_channels,
    BLOCK_HIDDEN: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """grad_hidden[b,h] = grad[b,h] where hidden[b,h] is not 0, else 0, and grad_pooled[b,c] = sum over h of
    grad_hidden[b,h] * weight[h,c].

    grad, grad_hidden: float32 (B, H). grad_pooled: float32 (B, C). The others are those of the forward kernel. One
    program has BLOCK_CHANNELS channels of one image; the first of an image writes grad_hidden.
    """
    blocks = tl.cdiv(channels, BLOCK_CHANNELS)
    block = tl.program_id(0) % blocks
    image = (tl.program_id(0) // blocks).to(tl.int64)
    channel = block * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    channel_ok = channel < channels
    offset = image * hidden_channels
    products = tl.zeros((BLOCK_HIDDEN, BLOCK_CHANNELS), tl.float32)
    for first in range(0, hidden_channels, BLOCK_HIDDEN):
        row = first + tl.arange(0, BLOCK_HIDDEN)
        row_ok = row < hidden_channels
        active = tl.load(hidden + offset + row, mask=row_ok, other=0.0)
        value = tl.load(grad + offset + row, mask=row_ok, other=0.0)
        value = tl.where(active <= 0.0, 0.0, value)  # NaN lets it through, as in PyTorch
        tl.store(grad_hidden + offset + row, value, mask=row_ok & (block == 0))
        mask = row_ok[:, None] & channel_ok[None, :]
        w = tl.load(weight + row[:, None] * channels + channel[None, :], mask=mask, other=0.0).to(tl.float32)
        products += w * value[:, None]
    tl.store(grad_pooled + image * channels + channel, tl.sum(products, axis=0), mask=channel_ok)


@triton.jit
def product_over_images(
    left, right, product, sums, program, images, rows, columns,
    BLOCK_IMAGES: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    """A tile of product[r,c] = sum over images of left[b,r] * right[b,c]; those of the first columns write sums[r], of
    left[b,r]."""
    column_tiles = tl.cdiv(columns, BLOCK_COLUMNS)
    row = program // column_tiles * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    column = program % column_tiles * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    row_ok, column_ok = row < rows, column < columns
    total = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), tl.float32)
    each = tl.zeros((BLOCK_ROWS, BLOCK_IMAGES), tl.float32)
    for first in range(0, images, BLOCK_IMAGES):
        image = (first + tl.arange(0, BLOCK_IMAGES)).to(tl.int64)
        image_ok = image < images
        mask = row_ok[:, None] & image_ok[None, :]
        a = tl.load(left + image[None, :] * rows + row[:, None], mask=mask, other=0.0)
        mask = image_ok[:, None] & column_ok[None, :]
        b = tl.load(right + image[:, None] * columns + column[None, :], mask=mask, other=0.0)
        total = tl.dot(a, b, total, input_precision="ieee")
        each += a
    target = product + row[:, None] * columns + column[None, :]
    tl.store(target, total, mask=row_ok[:, None] & column_ok[None, :])
    tl.store(sums + row, tl.sum(each, axis=1), mask=row_ok & (program % column_tiles == 0))


@triton.jit(do_not_specialize=["images", "hidden_channels"])
def channel_weights_backward_kernel(
    grads, hidden, grad_hidden, pooled,
    excite, excite_bias, alpha, squeeze, squeeze_bias,
    images, channels, taps, hidden_channels,
    BLOCK_IMAGES: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    """Gradients of all weights of the branch, which are sums over the images.

    grads: float32 (2, B, taps), of the logits and of alpha, for each image. hidden, grad_hidden: float32 (B, H).
    pooled: float32 (B, C). Written, in float32: excite (taps, H), excite_bias (taps,), alpha (taps,), squeeze (H, C),
    squeeze_bias (H,). Programs for tiles of BLOCK_ROWS x BLOCK_COLUMNS of excite, then of squeeze, then for BLOCK_ROWS
    of alpha each.
    """
    of_excite = tl.cdiv(taps, BLOCK_ROWS) * tl.cdiv(hidden_channels, BLOCK_COLUMNS)
    of_squeeze = tl.cdiv(hidden_channels, BLOCK_ROWS) * tl.cdiv(channels, BLOCK_COLUMNS)
    program = tl.program_id(0)
    if program < of_excite:
        product_over_images(
            grads, hidden, excite, excite_bias, program, images, taps, hidden_channels,
            BLOCK_IMAGES, BLOCK_ROWS, BLOCK_COLUMNS,
        )  # fmt: skip
    elif program < of_excite + of_squeeze:
        product_over_images(
            grad_hidden, pooled, squeeze, squeeze_bias, program - of_excite, images, hidden_channels, channels,
            BLOCK_IMAGES, BLOCK_ROWS, BLOCK_COLUMNS,
        )  # fmt: skip
    else:
        tap = (program - of_excite - of_squeeze) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
        tap_ok = tap < taps
        each = tl.zeros((BLOCK_ROWS, BLOCK_IMAGES), tl.float32)
        grads += tl.cast(images, tl.int64) * taps
        for first in range(0, images, BLOCK_IMAGES):
            image = (first + tl.arange(0, BLOCK_IMAGES)).to(tl.int64)
            mask = tap_ok[:, None] & (image < images)[None, :]
            each += tl.load(grads + image[None, :] * taps + tap[:, None], mask=mask, other=0.0)
        tl.store(alpha + tap, tl.sum(each, axis=1), mask=tap_ok)
