"""Launches of the DDF layer's channel branch: average, two matrix products, filter normalization, and their gradients.

All of it is small, so that launches are what it costs. Products with the second weight are PyTorch's. All are in
float32: casts of the weights would take as long.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ddfnet.kernels.channel_filters import channel_filters_backward_kernel, channel_filters_kernel
from ddfnet.kernels.channel_products import (
    channel_squeeze_backward_kernel,
    channel_squeeze_kernel,
    channel_weights_backward_kernel,
)
from ddfnet.ops.common import cdiv, launch
from ddfnet.ops.ddf_layer.arguments import Activations, Settings, Weights, padded_area

_NORM_CHANNELS = 32  # of a program of the normalization: enough programs for a small batch
_CHANNELS = 64  # of a tile of the products, of one image or over images
_HIDDEN = 32
_IMAGES = 32
_TILES = 16  # of pooled pixels, at a time


class ChannelGradients(NamedTuple):
    """Float32 gradients of the channel branch: of pooled (B, C), of hidden (B, squeezed channels), and (2, B, C*k*k) of
    the logits, and of alpha for each image."""

    pooled: Tensor
    hidden: Tensor
    logits_and_alpha: Tensor


def predict(pool_partials: Tensor, weights: Weights, settings: Settings) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pooled, hidden, logits and channel filter as in `Activations`, of (B, parts, C) of the average of x."""
    batch, tiles, channels = pool_partials.shape
    hidden_channels, bias = weights.squeeze.shape[0], weights.squeeze_bias
    pooled, hidden = pool_partials.new_empty((batch, channels)), pool_partials.new_empty((batch, hidden_channels))
    weight = weights.squeeze.contiguous()
    tensors = (pool_partials, weight, weight if bias is None else bias.contiguous(), pooled, hidden)
    sizes, programs = (channels, tiles, hidden_channels), batch * cdiv(hidden_channels, _HIDDEN)
    _launch(
        channel_squeeze_kernel, programs, *tensors, *sizes, HAS_BIAS=bias is not None, BLOCK_TILES=_TILES, **_BLOCKS
    )
    excite_bias = None if weights.excite_bias is None else weights.excite_bias.float()
    logits = F.linear(hidden, _matrix(weights.excite), excite_bias)
    channel_filter = pool_partials.new_empty((batch, settings.kernel_size**2, channels))
    _launch_norm(channel_filters_kernel, (logits, weights.alpha, channel_filter), batch, channels, settings)
    return pooled, hidden, logits, channel_filter


def backward(
    channel_partials: Tensor, weights: Weights, activations: Activations, settings: Settings
) -> ChannelGradients:
    """Of partial sums (B, parts, 1, k*k, C) of the gradient of the channel filter."""
    hidden, logits = activations.hidden, activations.logits
    (batch, hidden_channels), channels = hidden.shape, activations.pooled.shape[1]
    grads = logits.new_empty((2, *logits.shape))
    tensors: tuple[Tensor, ...] = (channel_partials, logits, weights.alpha, grads)
    _launch_norm(channel_filters_backward_kernel, tensors, batch, channels, settings, channel_partials.shape[1])
    grad = grads[0] @ _matrix(weights.excite)
    grad_hidden, grad_pooled = torch.empty_like(hidden), torch.empty_like(activations.pooled)
    weight = weights.squeeze.contiguous()
    programs = batch * cdiv(channels, _CHANNELS)
    tensors = (grad, hidden, weight, grad_hidden, grad_pooled)
    _launch(channel_squeeze_backward_kernel, programs, *tensors, channels, hidden_channels, **_BLOCKS)
    return ChannelGradients(grad_pooled, grad_hidden, grads)


def weight_gradients(of_branch: ChannelGradients, activations: Activations) -> tuple[Tensor, ...]:
    """Float32 gradients of squeeze (squeezed channels, C) and its bias, of excite (C*k*k, squeezed channels) and its
    bias, and of alpha (C*k*k,)."""
    hidden, pooled, grads = activations.hidden, activations.pooled, of_branch.logits_and_alpha
    (batch, hidden_channels), channels, taps = hidden.shape, pooled.shape[1], grads.shape[2]
    squeeze, squeeze_bias = hidden.new_empty((hidden_channels, channels)), hidden.new_empty(hidden_channels)
    excite, excite_bias = hidden.new_empty((taps, hidden_channels)), hidden.new_empty(taps)
    alpha = hidden.new_empty(taps)
    rows, columns = _CHANNELS, _HIDDEN
    programs = cdiv(taps, rows) * cdiv(hidden_channels, columns) + cdiv(hidden_channels, rows) * cdiv(channels, columns)
    _launch(
        channel_weights_backward_kernel,
        programs + cdiv(taps, rows),
        *(grads, hidden, of_branch.hidden, pooled, excite, excite_bias, alpha, squeeze, squeeze_bias),
        *(batch, channels, taps, hidden_channels),
        BLOCK_IMAGES=_IMAGES,
        BLOCK_ROWS=rows,
        BLOCK_COLUMNS=columns,
    )
    return squeeze, squeeze_bias, excite, excite_bias, alpha


_BLOCKS = {"BLOCK_HIDDEN": _HIDDEN, "BLOCK_CHANNELS": _CHANNELS}


def _matrix(weight: Tensor) -> Tensor:
    """A 1x1 convolution's weight as a float32 matrix."""
    return weight.flatten(1).float()


def _launch(kernel: Any, programs: int, *arguments: Any, **constants: Any) -> None:
    launch(kernel, (programs,), *arguments, **constants, num_warps=4, num_stages=1)


def _launch_norm(
    kernel: Any, tensors: tuple[Tensor, ...], batch: int, channels: int, settings: Settings, *sizes: int
) -> None:
    area, padded = settings.kernel_size**2, padded_area(settings.kernel_size)
    constants = {"AREA": area, "PADDED_AREA": padded, "BLOCK_CHANNELS": _NORM_CHANNELS}
    _launch(kernel, batch * cdiv(channels, _NORM_CHANNELS), *tensors, channels, *sizes, **constants)
