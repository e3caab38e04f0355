"""Kernels of the DDF layer's spatial branch: 1x1 convolution, filter normalization and global pooling in one pass."""

import triton
import triton.language as tl
from ddfnet.kernels.common import activate, affine_of, before_relu, load, replace, true_affine_of


@triton.jit
def padded_taps(HEADS: tl.constexpr, AREA: tl.constexpr, PADDED_HEADS: tl.constexpr, PADDED_AREA: tl.constexpr):
    """Columns of the matrix products, one for each tap of each head: which of them exist, and their rows of weight."""
    tap = tl.arange(0, PADDED_HEADS * PADDED_AREA)
    head = tap // PADDED_AREA
    tap_ok = (tap % PADDED_AREA < AREA) & (head < HEADS)
    return tap, tap_ok, (head * AREA + tap % PADDED_AREA).to(tl.int64)


@triton.jit
def pixels_on_grid(pixel, pixel_ok, height, width, STRIDE: tl.constexpr):
    """Which pixels of x have filters, their pixels of the spatial filter, and how many of those there are."""
    row, column = pixel // width, pixel % width
    out_height, out_width = (height - 1) // STRIDE + 1, (width - 1) // STRIDE + 1
    on_grid = pixel_ok & (row % STRIDE == 0) & (column % STRIDE == 0)
    return on_grid, row // STRIDE * out_width + column // STRIDE, out_height * out_width


@triton.jit
def spatial_filters_kernel(
    x,
    weight,
    bias,
    spatial_filter,
    inverse_std,
    pool_partials,
    x_affine,
    channels,
    height,
    width,
    alpha,
    HEADS: tl.constexpr,
    AREA: tl.constexpr,
    STRIDE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ACTIVATE_X: tl.constexpr,
    PADDED_HEADS: tl.constexpr,
    PADDED_AREA: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """Of BLOCK_PIXELS pixels of one image: the normalized filters, and the sum over those pixels of each channel.

    logits[p,g,t] = bias[g,t] + sum over c of x[b,p,c] * weight[g,t,c]
    inverse_std[b,g,p] = 1 / (standard deviation over t of logits[p,g,t] + 1e-10)
    spatial_filter[b,g,t,p] = alpha * (logits[p,g,t] - mean over t) * inverse_std[b,g,p]
    pool_partials[b,tile,c] = sum over the pixels p of the tile of x[b,p,c] / (H * W)

    x is read once, and it is nearly all that is read or written. With a stride, every pixel is pooled but only those on
    the grid of the stride have filters. The taps are padded to powers of two, as tensor cores ask for.

    With ACTIVATE_X, x is relu(x * scale + shift) as in `ddf_forward_kernel`, for the matrix product rounded to the
    dtype of x. In half precision the pool then is a matrix product as well, with a row of ones: as a sum it needs
    registers or half as many instructions again (SASS of sm_90).

    x: channels_last (B, C, H, W), float16, bfloat16 or float32. weight: (G*AREA, C), bias: (G*AREA,), any float dtype.
    spatial_filter: contiguous (B, G*AREA, Ho, Wo); inverse_std: float32 (B, G, Ho, Wo); pool_partials: float32.
    """
    pixels = height * width
    tiles = tl.cdiv(pixels, BLOCK_PIXELS)
    program = tl.program_id(0)
    tile = program % tiles
    image = (program // tiles).to(tl.int64)
    pixel = tile * BLOCK_PIXELS + tl.arange(0, BLOCK_PIXELS)
    pixel_ok = pixel < pixels
    POOL_BY_PRODUCT: tl.constexpr = ACTIVATE_X and x.dtype.element_ty != tl.float32
    _, tap_ok, row_of_weight = padded_taps(HEADS, AREA, PADDED_HEADS, PADDED_AREA)

    x += image * pixels * channels
    pool_partials += (image * tiles + tile) * channels
    logits = tl.zeros((BLOCK_PIXELS, PADDED_HEADS * PADDED_AREA), tl.float32)
    if POOL_BY_PRODUCT:
        row = tl.arange(0, 16)  # the fewest of a matrix product; all but one are not used
        ones = tl.where((row == 0)[:, None] & pixel_ok[None, :], 1.0, 0.0).to(x.dtype.element_ty)
    for first in range(0, channels, BLOCK_CHANNELS):
        channel = first + tl.arange(0, BLOCK_CHANNELS)
        channel_ok = channel < channels
        x_mask = pixel_ok[:, None] & channel_ok[None, :]
        x_block = x + pixel.to(tl.int64)[:, None] * channels + channel[None, :]
        if ACTIVATE_X:
            scale, shift = affine_of(x_affine, channel, channels, channel_ok)
            wide = activate(load(x_block, x_mask, tl.float32), scale, shift)
            # Chosen before the rounding, or the compiler computes all of this twice, in the layouts of both uses.
            wide = tl.where(pixel_ok[:, None], wide, 0.0)
            value = wide.to(x.dtype.element_ty)
        else:
            value = tl.load(x_block, mask=x_mask, other=0.0)
            wide = value.to(tl.float32)
        w_mask = tap_ok[None, :] & channel_ok[:, None]
        w = tl.load(weight + row_of_weight[None, :] * channels + channel[:, None], mask=w_mask, other=0.0)
        logits = tl.dot(value, w.to(value.dtype), logits, input_precision="ieee")
        if POOL_BY_PRODUCT:
            pooled = tl.dot(ones, value) / pixels
            pool_mask = (row == 0)[:, None] & channel_ok[None, :]
            tl.store(pool_partials + tl.broadcast_to(channel[None, :], pooled.shape), pooled, mask=pool_mask)
        else:
            tl.store(pool_partials + channel, tl.sum(wide, axis=0) / pixels, mask=channel_ok)
    if HAS_BIAS:
        logits += tl.load(bias + row_of_weight, mask=tap_ok, other=0.0).to(tl.float32)[None, :]

    taps = tl.reshape(logits, (BLOCK_PIXELS, PADDED_HEADS, PADDED_AREA))
    valid = tl.reshape(tl.broadcast_to(tap_ok[None, :], logits.shape), taps.shape)
    mean = tl.sum(tl.where(valid, taps, 0.0), axis=2) / AREA
    centered = tl.where(valid, taps - mean[:, :, None], 0.0)
    variance = tl.sum(centered * centered, axis=2) / (AREA - 1)
    inverse = 1.0 / (tl.sqrt(variance) + 1e-10)
    filters = tl.reshape(centered * inverse[:, :, None] * alpha, logits.shape)

    on_grid, out_pixel, out_pixels = pixels_on_grid(pixel, pixel_ok, height, width, STRIDE)
    spatial_filter += image * (HEADS * AREA) * out_pixels
    mask = on_grid[:, None] & tap_ok[None, :]
    filter_block = spatial_filter + row_of_weight[None, :] * out_pixels + out_pixel[:, None]
    tl.store(filter_block, filters.to(spatial_filter.dtype.element_ty), mask=mask)
    each_head = tl.arange(0, PADDED_HEADS).to(tl.int64)
    inverse_std += image * HEADS * out_pixels
    head_mask = on_grid[:, None] & (each_head < HEADS)[None, :]
    tl.store(inverse_std + each_head[None, :] * out_pixels + out_pixel[:, None], inverse, mask=head_mask)


@triton.jit(do_not_specialize=["all_pixels"])
def spatial_filters_backward_kernel(
    grad_partials,
    spatial_filter,
    inverse_std,
    grad_logits,
    bias_partials,
    height,
    width,
    all_pixels,
    alpha,
    HEADS: tl.constexpr,
    AREA: tl.constexpr,
    STRIDE: tl.constexpr,
    PARTIALS: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr,
):
    """The gradients of the logits, of which the other gradients of the spatial branch are made; for BLOCK_PIXELS pixels
    and one head of an image.

    With z the normalized logits and g the gradient of z, which is alpha times the sum of the partial sums:
    grad_logits = (g - mean(g) - z * sum(g*z) / (AREA-1)) / std.
    A thread has all taps of its pixels: their sums cross no lanes.

    grad_partials: contiguous (B, PARTIALS, G*AREA, Ho, Wo), of the gradient of spatial_filter, which is contiguous
    (B, G*AREA, Ho, Wo). grad_logits: (G*AREA, B*H*W) in the dtype of x, 0 for pixels off the grid of the stride;
    all_pixels: B*H*W. bias_partials: float32 (B * tiles, G*AREA), the sums of each program's pixels.
    """
    pixels = height * width
    tiles = tl.cdiv(pixels, BLOCK_PIXELS)
    program = tl.program_id(0)
    head, program = program % HEADS, program // HEADS
    tile = program % tiles
    image = (program // tiles).to(tl.int64)
    pixel = tile * BLOCK_PIXELS + tl.arange(0, BLOCK_PIXELS)
    pixel_ok = pixel < pixels
    on_grid, out_pixel, out_pixels = pixels_on_grid(pixel, pixel_ok, height, width, STRIDE)

    grad_partials += (image * PARTIALS * HEADS + head) * AREA * out_pixels
    spatial_filter += (image * HEADS + head) * AREA * out_pixels
    inverse = load(inverse_std + (image * HEADS + head) * out_pixels + out_pixel, on_grid, tl.float32)
    grads = ()
    for _ in tl.static_range(AREA):
        grads = grads + (tl.zeros((BLOCK_PIXELS,), tl.float32),)
    for partial in range(PARTIALS):  # not unrolled: a thousand channels have 16, and compiling takes long enough
        part = grad_partials + tl.cast(partial * HEADS * AREA, tl.int64) * out_pixels + out_pixel
        for tap in tl.static_range(AREA):
            grad = load(part + tl.cast(tap, tl.int64) * out_pixels, on_grid, tl.float32)
            grads = replace(grads, tap, grads[tap] + grad)
    filters = ()
    total = tl.zeros((BLOCK_PIXELS,), tl.float32)
    along = tl.zeros((BLOCK_PIXELS,), tl.float32)
    for tap in tl.static_range(AREA):
        value = load(spatial_filter + tl.cast(tap, tl.int64) * out_pixels + out_pixel, on_grid, tl.float32)
        total += grads[tap]
        along += grads[tap] * value
        filters = filters + (value,)

    mean = total / AREA
    scale = alpha * inverse
    slope = along * inverse / (alpha * (AREA - 1))
    grad_logits += tl.cast(head * AREA, tl.int64) * all_pixels + image * pixels
    bias_partials += (image * tiles + tile) * (HEADS * AREA) + head * AREA
    for tap in tl.static_range(AREA):
        value = (grads[tap] - mean) * scale - filters[tap] * slope
        target = grad_logits + tl.cast(tap, tl.int64) * all_pixels + pixel
        tl.store(target, value.to(grad_logits.dtype.element_ty), mask=pixel_ok)
        tl.store(bias_partials + tap, tl.sum(value, axis=0))


@triton.jit(do_not_specialize=["all_pixels"])
def spatial_filters_backward_x_kernel(
    grad_logits,
    weight,
    grad_pooled,
    grad_x,
    x,
    x_statistics,
    norm_partials,
    channels,
    height,
    width,
    all_pixels,
    HEADS: tl.constexpr,
    AREA: tl.constexpr,
    ACTIVATE_X: tl.constexpr,
    PADDED_HEADS: tl.constexpr,
    PADDED_AREA: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """Adds to grad_x what comes from the filters and the pool; for BLOCK_PIXELS pixels of one image.

    grad_x[b,p,c] += sum over logits of grad_logits[t,b,p] * weight[t,c] + grad_pooled[b,c] / pixels.
    For where `ddf_backward_x_kernel` would not do so: of many logits this is a matrix product. Arguments and ACTIVATE_X
    as there, norm_partials: float32 (B * tiles, 2, C).
    """
    pixels = height * width
    tiles = tl.cdiv(pixels, BLOCK_PIXELS)
    program = tl.program_id(0)
    tile = program % tiles
    image = (program // tiles).to(tl.int64)
    pixel = tile * BLOCK_PIXELS + tl.arange(0, BLOCK_PIXELS)
    pixel_ok = pixel < pixels
    _, tap_ok, logit = padded_taps(HEADS, AREA, PADDED_HEADS, PADDED_AREA)
    logit_block = grad_logits + logit[None, :] * all_pixels + (image * pixels + pixel)[:, None]
    grad = tl.load(logit_block, mask=pixel_ok[:, None] & tap_ok[None, :], other=0.0)

    grad_x += image * pixels * channels
    grad_pooled += image * channels
    for first in range(0, channels, BLOCK_CHANNELS):
        channel = first + tl.arange(0, BLOCK_CHANNELS)
        channel_ok = channel < channels
        w_mask = tap_ok[:, None] & channel_ok[None, :]
        w = tl.load(weight + logit[:, None] * channels + channel[None, :], mask=w_mask, other=0.0)
        total = tl.dot(grad, w.to(grad.dtype), input_precision="ieee")
        total += tl.load(grad_pooled + channel, mask=channel_ok, other=0.0)[None, :] / pixels
        x_mask = pixel_ok[:, None] & channel_ok[None, :]
        x_offset = pixel.to(tl.int64)[:, None] * channels + channel[None, :]
        x_block = grad_x + x_offset
        total += tl.load(x_block, mask=x_mask, other=0.0).to(tl.float32)
        if ACTIVATE_X:
            scale, shift = true_affine_of(x_statistics, channel, channels, channel_ok)
            center = tl.load(x_statistics + 3 * channels + channel, mask=channel_ok, other=0.0)
            value = load(x + image * pixels * channels + x_offset, x_mask, tl.float32)
            # Rounded before the mask: only that passes from the layout of the product to that of memory.
            total = total.to(grad_x.dtype.element_ty).to(tl.float32)
            total = before_relu(total, value, scale, shift, x_mask)
            target = norm_partials + (image * tiles + tile) * 2 * channels + channel
            tl.store(target, tl.sum(total, axis=0), mask=channel_ok)
            tl.store(target + channels, tl.sum(total * (value - center[None, :]), axis=0), mask=channel_ok)
        tl.store(x_block, total.to(grad_x.dtype.element_ty), mask=x_mask)
