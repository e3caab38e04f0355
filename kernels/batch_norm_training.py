"""Kernels of batch normalization in training, where the layer is one operator with those around it.

They read a channels_last map as a matrix of (rows, C), one row a pixel of any image. `parts` of the rows are summed by
one program each and then added up in a fixed order: no atomics.

Moments: float32 (parts, 2*C + 4), of each part the mean of its rows and the sum of their squared deviations from it,
which can be merged without loss where sums of squares would cancel; then their number, and three values that nobody
reads, so that parts start on 16 bytes.
Statistics: float32 (6, C), the scale and shift to activate x by (`affine_of`), then the true scale, which may be 0, the
mean, 1 / sqrt(variance + epsilon), and the unbiased variance.
"""

import triton
import triton.language as tl
from ddfnet.kernels.common import (
    activate,
    before_relu,
    load,
    part_of,
    rows_of,
    store_moments,
    store_normalized,
    true_affine_of,
)


@triton.jit
def batch_norm_moments_kernel(
    x, moments, rows, channels,
    ITERATIONS: tl.constexpr, ROWS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
):  # fmt: skip
    """Moments of x, of which one program has ITERATIONS x ROWS rows and BLOCK_CHANNELS channels.

    It adds up deviations from the mean of its first ROWS rows, so that no large mean swallows them.
    """
    part, channel, channel_ok = part_of(channels, BLOCK_CHANNELS)
    first = part * (ITERATIONS * ROWS)
    offset, mask = rows_of(first, rows, channel, channels, channel_ok, ROWS)
    center = tl.sum(load(x + offset, mask, tl.float32), axis=0) / tl.minimum(rows - first, ROWS)
    sums = tl.zeros((ROWS, BLOCK_CHANNELS), tl.float32)
    squares = tl.zeros((ROWS, BLOCK_CHANNELS), tl.float32)
    for iteration in range(ITERATIONS):
        offset, mask = rows_of(first + iteration * ROWS, rows, channel, channels, channel_ok, ROWS)
        deviation = tl.where(mask, load(x + offset, mask, tl.float32) - center[None, :], 0.0)
        sums += deviation
        squares += deviation * deviation
    count = tl.minimum(rows - first, ITERATIONS * ROWS).to(tl.float32)
    total = tl.sum(sums, axis=0)
    squares = tl.maximum(tl.sum(squares, axis=0) - total * total / count, 0.0, propagate_nan=tl.PropagateNan.ALL)
    store_moments(moments, part, channel, channels, channel_ok, count, center + total / count, squares)


@triton.jit
def batch_norm_merge_kernel(
    moments, weight, bias, merged, parts, channels, epsilon,
    FINISH: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
):  # fmt: skip
    """Moments of each GROUP of parts; with FINISH, of one group with all of them, the statistics instead.

    merged: moments of the groups, or the statistics. weight, bias: (C,), any float dtype, read for the latter only.
    """
    group, channel, channel_ok = part_of(channels, BLOCK_CHANNELS)
    count = 0.0
    mean = tl.zeros((BLOCK_CHANNELS,), tl.float32)
    squares = tl.zeros((BLOCK_CHANNELS,), tl.float32)
    for step in range(GROUP // ROWS):
        part = group * GROUP + step * ROWS + tl.arange(0, ROWS)
        mask = (part < parts)[:, None] & channel_ok[None, :]
        first = moments + part[:, None] * (2 * channels + 4)
        source = first + channel[None, :]
        counts = tl.load(first + 2 * channels, mask=(part < parts)[:, None], other=0.0)
        means = tl.load(source, mask=mask, other=0.0)
        more = tl.sum(tl.sum(counts, axis=1), axis=0)
        center = tl.sum(counts * means, axis=0) / tl.maximum(more, 1.0)
        deviation = means - center[None, :]
        within = tl.load(source + channels, mask=mask, other=0.0) + counts * deviation * deviation
        total = tl.maximum(count + more, 1.0)
        apart = center - mean
        squares += tl.sum(within, axis=0) + apart * apart * count * more / total
        mean += apart * more / total
        count += more
    if FINISH:
        inverse = 1.0 / tl.sqrt_rn(squares / tl.maximum(count, 1.0) + epsilon)
        scale = tl.load(weight + channel, mask=channel_ok, other=0.0).to(tl.float32) * inverse
        shift = tl.load(bias + channel, mask=channel_ok, other=0.0).to(tl.float32) - mean * scale
        target = merged + channel
        # as in `batch_norm_affine_kernel`
        tl.store(target, tl.where(scale == 0.0, 1.1754943508222875e-38, scale), mask=channel_ok)
        tl.store(target + channels, shift, mask=channel_ok)
        tl.store(target + 2 * channels, scale, mask=channel_ok)
        tl.store(target + 3 * channels, mean, mask=channel_ok)
        tl.store(target + 4 * channels, inverse, mask=channel_ok)
        tl.store(target + 5 * channels, squares / tl.maximum(count - 1.0, 1.0), mask=channel_ok)
    else:
        store_moments(merged, group, channel, channels, channel_ok, count, mean, squares)


@triton.jit
def batch_norm_apply_kernel(
    x, statistics, residual, y, rows, channels,
    RELU: tl.constexpr, RESIDUAL: tl.constexpr, ROWS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
):  # fmt: skip
    """y = [relu](x * scale + shift [+ residual]), of ROWS rows and BLOCK_CHANNELS channels."""
    part, channel, channel_ok = part_of(channels, BLOCK_CHANNELS)
    scale, shift = true_affine_of(statistics, channel, channels, channel_ok)
    offset, mask = rows_of(part * ROWS, rows, channel, channels, channel_ok, ROWS)
    store_normalized(x, residual, y, offset, mask, scale, shift, RELU, RESIDUAL)


@triton.jit
def batch_norm_backward_sums_kernel(
    grad_y, x, y, statistics, grad_residual, partials, rows, channels,
    RELU: tl.constexpr, RESIDUAL: tl.constexpr,
    ITERATIONS: tl.constexpr, ROWS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
):  # fmt: skip
    """Of each part the sums of g and of g * (x - mean), with g the gradient behind the normalization.

    That is grad_y; with RELU where y = relu(x * scale + shift) let something through; with RESIDUAL where y =
    relu(x * scale + shift + residual) did, which y is read for. Then g is the gradient of the residual as well, and
    written, so that the kernel that makes grad_x reads it and not both grad_y and y.

    partials: float32 (parts, 2, C). One program has ITERATIONS x ROWS rows and BLOCK_CHANNELS channels.
    """
    part, channel, channel_ok = part_of(channels, BLOCK_CHANNELS)
    scale, shift = true_affine_of(statistics, channel, channels, channel_ok)
    mean = tl.load(statistics + 3 * channels + channel, mask=channel_ok, other=0.0)
    sums = tl.zeros((ROWS, BLOCK_CHANNELS), tl.float32)
    along = tl.zeros((ROWS, BLOCK_CHANNELS), tl.float32)
    for iteration in range(ITERATIONS):
        first = (part * ITERATIONS + iteration) * ROWS
        offset, mask = rows_of(first, rows, channel, channels, channel_ok, ROWS)
        value = load(x + offset, mask, tl.float32)
        grad = load(grad_y + offset, mask, tl.float32)
        if RESIDUAL:
            grad = tl.where(load(y + offset, mask, tl.float32) <= 0.0, 0.0, grad)
            tl.store(grad_residual + offset, grad.to(grad_residual.dtype.element_ty), mask=mask)
        elif RELU:
            grad = before_relu(grad, value, scale, shift, mask)
        sums += grad
        along += grad * (value - mean[None, :])
    target = partials + part * 2 * channels + channel
    tl.store(target, tl.sum(sums, axis=0), mask=channel_ok)
    tl.store(target + channels, tl.sum(along, axis=0), mask=channel_ok)


@triton.jit
def batch_norm_backward_kernel(
    grad_y, x, statistics, sums, grad_x, grad_weight, grad_logits, weight_partials, rows, channels,
    RELU: tl.constexpr, LOGITS: tl.constexpr, PADDED_LOGITS: tl.constexpr,
    ITERATIONS: tl.constexpr, ROWS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
):  # fmt: skip
    """grad_x = scale * (g - mean(g) - normal * mean(g * normal)), with normal = (x - mean) / deviation and g the
    gradient behind the normalization: grad_y, or with RELU what it is before the ReLU that follows.

    With LOGITS, which is not 0 for the normalization before the layer, x is read for another gradient as well:
    weight_partials[part,t,c] = sum over rows of grad_logits[t,row] * relu(x * scale + shift), that of the weight of the
    layer's spatial branch, as a product rounded to the dtype of x.

    sums: float32 (2, C), of g and of g * (x - mean). grad_weight: float32 (C,), of the weight of the normalization,
    written by the programs of the first part. grad_logits: (LOGITS, rows), in the dtype of x. weight_partials: float32
    (parts, LOGITS, C).
    One program has ITERATIONS x ROWS rows and BLOCK_CHANNELS channels.
    """
    part, channel, channel_ok = part_of(channels, BLOCK_CHANNELS)
    scale, shift = true_affine_of(statistics, channel, channels, channel_ok)
    mean = tl.load(statistics + 3 * channels + channel, mask=channel_ok, other=0.0)
    inverse = tl.load(statistics + 4 * channels + channel, mask=channel_ok, other=0.0)
    along = tl.load(sums + channels + channel, mask=channel_ok, other=0.0)
    tl.store(grad_weight + channel, along * inverse, mask=channel_ok & (part == 0))
    along = along / rows * inverse * inverse
    average = tl.load(sums + channel, mask=channel_ok, other=0.0) / rows
    if LOGITS > 0:
        logit = tl.arange(0, PADDED_LOGITS)
        logit_ok = logit < LOGITS
        logit_block = grad_logits + logit.to(tl.int64)[:, None] * rows
        total = tl.zeros((PADDED_LOGITS, BLOCK_CHANNELS), tl.float32)
    for iteration in range(ITERATIONS):
        first = (part * ITERATIONS + iteration) * ROWS
        offset, mask = rows_of(first, rows, channel, channels, channel_ok, ROWS)
        value = load(x + offset, mask, tl.float32)
        grad = load(grad_y + offset, mask, tl.float32)
        if RELU:
            grad = before_relu(grad, value, scale, shift, mask)
        grad = (grad - average[None, :] - (value - mean[None, :]) * along[None, :]) * scale[None, :]
        tl.store(grad_x + offset, grad.to(grad_x.dtype.element_ty), mask=mask)
        if LOGITS > 0:
            row = first + tl.arange(0, ROWS)
            logits_mask = logit_ok[:, None] & (row < rows)[None, :]
            logits = tl.load(logit_block + row[None, :], mask=logits_mask, other=0.0)
            value = tl.where(mask, activate(value, scale, shift), 0.0).to(x.dtype.element_ty)
            total = tl.dot(logits, value, total, input_precision="ieee")
    if LOGITS > 0:
        target = weight_partials + part * LOGITS * channels + logit[:, None] * channels + channel[None, :]
        tl.store(target, total, mask=logit_ok[:, None] & channel_ok[None, :])
