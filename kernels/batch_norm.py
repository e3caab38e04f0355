"""Kernels of batch normalization in inference, where it is one operator with what stands around it."""

import triton
import triton.language as tl
from ddfnet.kernels.common import part_of, rows_of, store_normalized


@triton.jit
def running_affine(weight, bias, mean, variance, epsilon, channel, channel_ok):
    """Scale and shift of some channels: weight / sqrt(variance + epsilon), bias - mean * scale. Of any float dtype."""
    spread = tl.load(variance + channel, mask=channel_ok, other=1.0).to(tl.float32) + epsilon
    scale = tl.load(weight + channel, mask=channel_ok, other=0.0).to(tl.float32) / tl.sqrt_rn(spread)
    center = tl.load(mean + channel, mask=channel_ok, other=0.0).to(tl.float32)
    return scale, tl.load(bias + channel, mask=channel_ok, other=0.0).to(tl.float32) - center * scale


@triton.jit
def batch_norm_affine_kernel(
    x_weight, x_bias, x_mean, x_variance, y_weight, y_bias, y_mean, y_variance, affines, channels, x_epsilon, y_epsilon,
    BLOCK_CHANNELS: tl.constexpr,
):  # fmt: skip
    """Scale and shift of two batch normalizations.

    A scale of 0 becomes the smallest normal number, because `load_activated` lets an infinity through the map.

    The first eight: (C,), any float dtype. affines: float32 (2, 2, C), scale and shift of x, then of y. One program has
    BLOCK_CHANNELS channels of both.
    """
    channel = tl.program_id(0) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    channel_ok = channel < channels
    for index in tl.static_range(2):
        weight, bias, mean, variance, epsilon = x_weight, x_bias, x_mean, x_variance, x_epsilon
        if index == 1:
            weight, bias, mean, variance, epsilon = y_weight, y_bias, y_mean, y_variance, y_epsilon
        scale, shift = running_affine(weight, bias, mean, variance, epsilon, channel, channel_ok)
        scale = tl.where(scale == 0.0, 1.1754943508222875e-38, scale)
        target = affines + index * 2 * channels + channel
        tl.store(target, scale, mask=channel_ok)
        tl.store(target + channels, shift, mask=channel_ok)


@triton.jit
def batch_norm_kernel(
    x, weight, bias, mean, variance, residual, y, rows, channels, epsilon,
    RELU: tl.constexpr, RESIDUAL: tl.constexpr,
    ITERATIONS: tl.constexpr, ROWS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
):  # fmt: skip
    """y = [relu](x * scale + shift [+ residual]), of ITERATIONS x ROWS rows and BLOCK_CHANNELS channels.

    Maps are matrices of (rows, C), as in `batch_norm_training.py`. Each program makes scale and shift of its channels
    anew: that is a launch less. They take as many instructions as all else of ROWS rows, hence several of those.
    """
    part, channel, channel_ok = part_of(channels, BLOCK_CHANNELS)
    scale, shift = running_affine(weight, bias, mean, variance, epsilon, channel, channel_ok)
    for iteration in range(ITERATIONS):
        first = (part * ITERATIONS + iteration) * ROWS
        offset, mask = rows_of(first, rows, channel, channels, channel_ok, ROWS)
        store_normalized(x, residual, y, offset, mask, scale, shift, RELU, RESIDUAL)
