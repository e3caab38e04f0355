"""Kernels of the DDF layer's spatial branch: 1x1 convolution, filter normalization and global pooling in one pass."""

import triton
import triton.language as tl
from ddfnet.kernels.common import activate, affine_of, before_relu, load, true_affine_of


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


@triton.jit
def spatial_filters_backward_kernel(
    grad_partials,
    grad_pooled,
    weight,
    spatial_filter,
    inverse_std,
    grad_x,
    grad_logits,
    x,
    x_statistics,
    norm_partials,
    channels,
    height,
    width,
    alpha,
    HEADS: tl.constexpr,
    AREA: tl.constexpr,
    STRIDE: tl.constexpr,
    PARTIALS: tl.constexpr,
    ACTIVATE_X: tl.constexpr,
    PADDED_HEADS: tl.constexpr,
    PADDED_AREA: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """Adds to grad_x what comes from the filters and the pool, and gives the gradients of the logits; for BLOCK_PIXELS
    pixels of one image.

    With z the normalized logits and g the gradient of z, which is alpha times the sum of the partial sums:
    grad_logits = (g - mean(g) - z * sum(g*z) / (AREA-1)) / std,
    grad_x[b,p,c] += sum over taps of grad_logits[p,t] * weight[t,c] + grad_pooled[b,c] / pixels.

    grad_partials: contiguous (B, PARTIALS, G*AREA, Ho, Wo), of the gradient of spatial_filter, which is contiguous
    (B, G*AREA, Ho, Wo). grad_pooled: float32 (B, C).
    grad_x: channels_last. grad_logits: (B, H*W, PADDED_HEADS*PADDED_AREA) in the dtype of x, 0 for padded taps and for
    pixels off the grid of the stride; a matrix product makes the gradients of weight and bias of it.

    With ACTIVATE_X the layer had relu(x * scale + shift), a batch normalization in training, of x_statistics (see
    `batch_norm_training.py`). This is the last kernel that adds to grad_x: it becomes that behind the normalization,
    0 where the ReLU let nothing through. norm_partials: float32 (B * tiles, 2, C), what the normalization's gradient
    needs of each program, the sums of grad_x and of grad_x * (x - mean). They are not read or written otherwise.
    """
    pixels = height * width
    tiles = tl.cdiv(pixels, BLOCK_PIXELS)
    program = tl.program_id(0)
    tile = program % tiles
    image = (program // tiles).to(tl.int64)
    pixel = tile * BLOCK_PIXELS + tl.arange(0, BLOCK_PIXELS)
    pixel_ok = pixel < pixels
    tap, tap_ok, row_of_weight = padded_taps(HEADS, AREA, PADDED_HEADS, PADDED_AREA)

    on_grid, out_pixel, out_pixels = pixels_on_grid(pixel, pixel_ok, height, width, STRIDE)
    offset = image * (HEADS * AREA) * out_pixels + row_of_weight[None, :] * out_pixels + out_pixel[:, None]
    mask = on_grid[:, None] & tap_ok[None, :]
    partial_size = tl.cast(HEADS * AREA * out_pixels, tl.int64)
    grad_partials += image * (PARTIALS - 1) * partial_size + offset
    grad = tl.load(grad_partials, mask=mask, other=0.0).to(tl.float32)
    for partial in tl.static_range(1, PARTIALS):
        grad += tl.load(grad_partials + partial * partial_size, mask=mask, other=0.0).to(tl.float32)
    grad *= alpha
    normal = tl.load(spatial_filter + offset, mask=mask, other=0.0).to(tl.float32) / alpha
    each_head = tl.arange(0, PADDED_HEADS).to(tl.int64)
    head_mask = on_grid[:, None] & (each_head < HEADS)[None, :]
    std_block = inverse_std + (image * HEADS + each_head[None, :]) * out_pixels + out_pixel[:, None]
    inverse = tl.load(std_block, mask=head_mask, other=0.0)
    grad = tl.reshape(grad, (BLOCK_PIXELS, PADDED_HEADS, PADDED_AREA))
    normal = tl.reshape(normal, (BLOCK_PIXELS, PADDED_HEADS, PADDED_AREA))
    mean = tl.sum(grad, axis=2) / AREA
    along = tl.sum(grad * normal, axis=2) / (AREA - 1)
    grad = (grad - mean[:, :, None] - normal * along[:, :, None]) * inverse[:, :, None]
    grad = tl.reshape(grad, (BLOCK_PIXELS, PADDED_HEADS * PADDED_AREA))
    grad = tl.where(mask, grad, 0.0).to(grad_logits.dtype.element_ty)
    logit_offset = (image * pixels + pixel)[:, None] * (PADDED_HEADS * PADDED_AREA) + tap[None, :]
    tl.store(grad_logits + logit_offset, grad, mask=tl.broadcast_to(pixel_ok[:, None], grad.shape))

    grad_x += image * pixels * channels
    grad_pooled += image * channels
    for first in range(0, channels, BLOCK_CHANNELS):
        channel = first + tl.arange(0, BLOCK_CHANNELS)
        channel_ok = channel < channels
        w_mask = tap_ok[:, None] & channel_ok[None, :]
        w = tl.load(weight + row_of_weight[:, None] * channels + channel[None, :], mask=w_mask, other=0.0)
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
