"""DDF upsampling in plain PyTorch: one pass of `eager` for each phase, each writing its own pixels of y."""

import torch
from torch import Tensor

from ddfnet.ops.common import accumulator_dtype, memory_format_of
from ddfnet.ops.ddf import eager


def forward(
    x: Tensor,
    channel_filter: Tensor | None,
    spatial_filter: Tensor | None,
    kernel_size: int,
    dilation: int,
    multiply: bool,
    scale: int,
) -> Tensor:
    """y (B, C, H * scale, W * scale) in the dtype and memory format of x."""
    size = (*x.shape[:2], x.shape[2] * scale, x.shape[3] * scale)
    y = torch.empty(size, dtype=x.dtype, device=x.device, memory_format=memory_format_of(x))
    for phase in range(scale * scale):
        filters = _of_phase(channel_filter, spatial_filter, phase, scale)
        _pixels(y, phase, scale).copy_(eager.forward(x, *filters, kernel_size, 1, dilation, multiply))
    return y


def backward(
    grad_y: Tensor,
    x: Tensor,
    channel_filter: Tensor | None,
    spatial_filter: Tensor | None,
    kernel_size: int,
    dilation: int,
    multiply: bool,
    scale: int,
    need_x: bool,
    need_channel: bool,
    need_spatial: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, channel filter and spatial filter in their dtypes; an empty tensor for each one not needed."""
    grad_x, grad_channel, grad_spatial = x.new_empty(0), x.new_empty(0), x.new_empty(0)
    # in the dtype of the sums, so that the gradients of the phases are not rounded before they are added
    wide_x = x.to(accumulator_dtype(x))
    channel_grads, spatial_grads = [], []
    for phase in range(scale * scale):
        phase_x, phase_channel, phase_spatial = eager.backward(
            _pixels(grad_y, phase, scale),
            wide_x,
            *_of_phase(channel_filter, spatial_filter, phase, scale),
            kernel_size,
            1,
            dilation,
            multiply,
            need_x,
            need_channel,
            need_spatial,
        )
        if need_x:
            grad_x = phase_x if phase == 0 else grad_x.add_(phase_x)
        channel_grads.append(phase_channel)
        spatial_grads.append(phase_spatial)
    if need_x:
        grad_x = grad_x.to(x.dtype)
    if need_channel:
        grad_channel = torch.stack(channel_grads, 1)
    if need_spatial:
        grad_spatial = torch.cat(spatial_grads, 1)
    return grad_x, grad_channel, grad_spatial


def _pixels(y: Tensor, phase: int, scale: int) -> Tensor:
    """The pixels (i * scale + a, j * scale + e) of y, where phase = a * scale + e."""
    return y[..., phase // scale :: scale, phase % scale :: scale]


def _of_phase(
    channel_filter: Tensor | None, spatial_filter: Tensor | None, phase: int, scale: int
) -> tuple[Tensor | None, Tensor | None]:
    channel = None if channel_filter is None else channel_filter[:, phase]
    spatial = None if spatial_filter is None else spatial_filter.unflatten(1, (scale * scale, -1))[:, phase]
    return channel, spatial
