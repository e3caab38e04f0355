"""Steps that the kernels of the DDF operator share."""

import triton
import triton.language as tl


@triton.jit
def load(pointer, mask, ACC: tl.constexpr):
    """The values at `pointer`, 0 where masked, in the dtype of the sums."""
    return to_sums(tl.load(pointer, mask=mask, other=0.0), ACC)


@triton.jit
def to_sums(value, ACC: tl.constexpr):
    """`value` in the dtype of the sums.

    A bfloat16 is the upper half of a float32. Saying so costs one instruction an element, where the conversion of the
    compiler costs one and a half (SASS of sm_90).
    """
    if value.dtype == tl.bfloat16 and ACC == tl.float32:
        return (value.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    else:
        return value.to(ACC)


@triton.jit
def affine_of(affine, channel, channels, channel_ok):
    """Scale and shift of some channels, of float32 (2, C): what a batch normalization amounts to."""
    scale = tl.load(affine + channel, mask=channel_ok, other=1.0)
    shift = tl.load(affine + channels + channel, mask=channel_ok, other=0.0)
    return scale, shift


@triton.jit
def activate(value, scale, shift):
    """relu(value * scale + shift), of pixels x channels; NaN stays NaN, as in PyTorch.

    Scale and shift are of channels, or of the shape of `value`.
    """
    return tl.maximum(normalize(value, scale, shift), 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def normalize(value, scale, shift):
    """value * scale + shift, of pixels x channels. Scale and shift as in `activate`."""
    if len(scale.shape) == 1:
        scale, shift = scale[None, :], shift[None, :]
    return tl.fma(value, tl.broadcast_to(scale, value.shape), tl.broadcast_to(shift, value.shape))


@triton.jit
def load_activated(pointer, mask, scale, shift, ACC: tl.constexpr):
    """`load` and `activate`, 0 where masked: padding comes behind the ReLU, which would make relu(shift) of a zero.

    So a masked value is the infinity that becomes minus infinity and then 0, which saves selecting one afterwards.
    `scale` must not be 0.
    """
    below = tl.where(scale > 0.0, float("-inf"), float("inf")).to(pointer.dtype.element_ty)
    if len(below.shape) == 1:
        below = below[None, :]
    value = tl.load(pointer, mask=mask, other=tl.broadcast_to(below, pointer.shape))
    return activate(to_sums(value, ACC), scale, shift)


@triton.jit
def store_moments(moments, part, channel, channels, channel_ok, count, mean, squares):
    """Writes those of one part; the count, which all channels have in common, with channel 0."""
    target = moments + part * (2 * channels + 4) + channel
    tl.store(target, mean, mask=channel_ok)
    tl.store(target + channels, squares, mask=channel_ok)
    tl.store(target + 2 * channels, tl.broadcast_to(count, mean.shape), mask=channel == 0)


@triton.jit
def true_affine_of(statistics, channel, channels, channel_ok):
    """Scale and shift as they are, for a ReLU's mask: `affine_of` has a scale that is never 0."""
    scale = tl.load(statistics + 2 * channels + channel, mask=channel_ok, other=1.0)
    return scale, tl.load(statistics + channels + channel, mask=channel_ok, other=0.0)


@triton.jit
def before_relu(grad, value, scale, shift, mask):
    """The gradient of value * scale + shift, of that of its ReLU: 0 where that is 0, or masked. NaN is let through.

    Scale and shift are of channels.
    """
    return tl.where(mask & ~(normalize(value, scale, shift) <= 0.0), grad, 0.0)


@triton.jit
def rows_of(first, rows, channel, channels, channel_ok, ROWS: tl.constexpr):
    """Offsets of ROWS rows from row `first` on, and which of their elements exist."""
    row = first + tl.arange(0, ROWS).to(tl.int64)
    return row[:, None] * channels + channel[None, :], (row < rows)[:, None] & channel_ok[None, :]


@triton.jit
def part_of(channels, BLOCK_CHANNELS: tl.constexpr):
    """The part of a program, its channels, and which of them exist. Tiles of channels vary fastest."""
    channel_tiles = tl.cdiv(channels, BLOCK_CHANNELS)
    channel = tl.program_id(0) % channel_tiles * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    return (tl.program_id(0) // channel_tiles).to(tl.int64), channel, channel < channels


@triton.jit
def store_normalized(
    x, residual, y, offset, mask, scale, shift, RELU: tl.constexpr, RESIDUAL: tl.constexpr
):  # fmt: skip
    """y = [relu](x * scale + shift [+ residual]) at some offsets; NaN stays NaN."""
    value = normalize(load(x + offset, mask, tl.float32), scale, shift)
    if RESIDUAL:
        value += load(residual + offset, mask, tl.float32)
    if RELU:
        value = tl.maximum(value, 0.0, propagate_nan=tl.PropagateNan.ALL)
    tl.store(y + offset, value.to(y.dtype.element_ty), mask=mask)


@triton.jit
def block_positions(
    first,
    block_rows,
    block_columns,
    BLOCKS: tl.constexpr,
    BLOCK_Y: tl.constexpr,
    BLOCK_X: tl.constexpr,
    STEP: tl.constexpr,
    INT64: tl.constexpr,
):
    """Row and column of the first pixel of BLOCKS blocks from number `first` on, and which of them exist.

    The pixels of a block stand STEP apart. The blocks between them follow one another.
    """
    block = first + tl.arange(0, BLOCKS)
    block_ok = block < block_rows * block_columns
    block_row, block_column = block // block_columns, block % block_columns
    row = block_row // STEP * (STEP * BLOCK_Y) + block_row % STEP
    column = block_column // STEP * (STEP * BLOCK_X) + block_column % STEP
    if INT64:
        row = row.to(tl.int64)
        column = column.to(tl.int64)
    return row, column, block_ok


@triton.jit
def channels_of(first, head, head_channels, BLOCK_CHANNELS: tl.constexpr, INT64: tl.constexpr):
    """BLOCK_CHANNELS channels of a head from its channel `first` on, and which of them exist."""
    channel_in_head = first + tl.arange(0, BLOCK_CHANNELS)
    channel_ok = channel_in_head < head_channels
    channel = head * head_channels + channel_in_head
    if INT64:
        channel = channel.to(tl.int64)
    return channel, channel_ok


@triton.jit
def zeros(COUNT: tl.constexpr, BLOCKS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr, ACC: tl.constexpr):
    """A tuple of tiles of zeros, which is how a program holds several accumulators."""
    tiles = ()
    for _ in tl.static_range(COUNT):
        tiles = tiles + (tl.zeros((BLOCKS, BLOCK_CHANNELS), ACC),)
    return tiles


@triton.jit
def replace(items, INDEX: tl.constexpr, item):
    """The tuple `items` with one item replaced."""
    return items[:INDEX] + (item,) + items[INDEX + 1 :]


@triton.jit
def multiply_accumulate(
    sums, INDEX: tl.constexpr, value, f, s, MULTIPLY: tl.constexpr, HAS_CHANNEL: tl.constexpr, HAS_SPATIAL: tl.constexpr
):
    """The tuple `sums` with value * (f combined with s) added to one item, a tile of pixels x channels.

    f (channels) or s (pixels) may be absent. The fused multiply-add is spelled out, because Triton's default for fusing
    the two changes with its version.
    """
    total = sums[INDEX]
    if HAS_CHANNEL and HAS_SPATIAL:
        if MULTIPLY:
            total = tl.fma(value * s[:, None], f[None, :], total)
        else:
            total = tl.fma(value, s[:, None] + f[None, :], total)
    elif HAS_CHANNEL:
        total = tl.fma(value, tl.broadcast_to(f[None, :], value.shape), total)
    else:
        total = tl.fma(value, tl.broadcast_to(s[:, None], value.shape), total)
    return replace(sums, INDEX, total)
