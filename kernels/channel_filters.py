"""Kernels of the DDF layer's channel branch: filter normalization of its logits, in the layout the operator reads."""

import triton
import triton.language as tl


@triton.jit
def normalized_taps(logits, AREA: tl.constexpr, tap_ok):
    """Logits (taps, channels) with zero mean over the taps, divided by their standard deviation; and its inverse."""
    mean = tl.sum(logits, axis=0) / AREA
    centered = tl.where(tap_ok[:, None], logits - mean[None, :], 0.0)
    variance = tl.sum(centered * centered, axis=0) / (AREA - 1)
    inverse = 1.0 / (tl.sqrt(variance) + 1e-10)
    return centered * inverse[None, :], inverse


@triton.jit
def channel_filters_kernel(
    logits, alpha, channel_filter, channels, AREA: tl.constexpr, PADDED_AREA: tl.constexpr, BLOCK_CHANNELS: tl.constexpr
):
    """channel_filter[b,t,c] = alpha[c,t] * (logits[b,c,t] - mean over t) / (standard deviation over t + 1e-10).

    logits: float32 (B, C*AREA). alpha: (C*AREA,), any float dtype. channel_filter: float32 (B, AREA, C).
    One program has BLOCK_CHANNELS channels of one image.
    """
    blocks = tl.cdiv(channels, BLOCK_CHANNELS)
    block = tl.program_id(0) % blocks
    image = (tl.program_id(0) // blocks).to(tl.int64)
    channel = block * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    tap = tl.arange(0, PADDED_AREA)
    tap_ok = tap < AREA
    mask = tap_ok[:, None] & (channel < channels)[None, :]
    offset = channel[None, :] * AREA + tap[:, None]
    value = tl.load(logits + image * channels * AREA + offset, mask=mask, other=0.0)
    normal, _ = normalized_taps(value, AREA, tap_ok)
    scale = tl.load(alpha + offset, mask=mask, other=0.0).to(tl.float32)
    target = channel_filter + image * AREA * channels + tap[:, None] * channels + channel[None, :]
    tl.store(target, normal * scale, mask=mask)


@triton.jit
def channel_filters_backward_kernel(
    channel_partials,
    logits,
    alpha,
    grads,
    channels,
    chunks,
    AREA: tl.constexpr,
    PADDED_AREA: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """Gradients of the logits, and those of alpha before they are summed over the images.

    With g[b,c,t] the gradient of channel_filter[b,t,c], the sum of its partial sums over the chunks, and z the
    normalized logits: grads[0,b,c,t] = (g*alpha - mean over t - z * sum(g*alpha*z) / (AREA-1)) / std, and
    grads[1,b,c,t] = g*z.

    channel_partials: float32 (B, chunks, AREA, C). grads: float32 (2, B, C*AREA). The others are those of the forward
    kernel, and so is what a program has. `chunks` is no constant: another map size compiles nothing.
    """
    blocks = tl.cdiv(channels, BLOCK_CHANNELS)
    block = tl.program_id(0) % blocks
    image = (tl.program_id(0) // blocks).to(tl.int64)
    images = (tl.num_programs(0) // blocks).to(tl.int64)
    channel = block * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    tap = tl.arange(0, PADDED_AREA)
    tap_ok = tap < AREA
    mask = tap_ok[:, None] & (channel < channels)[None, :]
    offset = channel[None, :] * AREA + tap[:, None]
    channel_partials += image * chunks * AREA * channels + (tap[:, None] * channels + channel[None, :])
    grad = tl.zeros((PADDED_AREA, BLOCK_CHANNELS), tl.float32)
    for _ in range(chunks):
        grad += tl.load(channel_partials, mask=mask, other=0.0)
        channel_partials += AREA * channels
    value = tl.load(logits + image * channels * AREA + offset, mask=mask, other=0.0)
    normal, inverse = normalized_taps(value, AREA, tap_ok)
    scaled = grad * tl.load(alpha + offset, mask=mask, other=0.0).to(tl.float32)
    mean = tl.sum(scaled, axis=0) / AREA
    along = tl.sum(scaled * normal, axis=0) / (AREA - 1)
    grad_logits = (scaled - mean[None, :] - normal * along[None, :]) * inverse[None, :]
    grads += image * channels * AREA + offset
    tl.store(grads, grad_logits, mask=mask)
    tl.store(grads + images * channels * AREA, grad * normal, mask=mask)
