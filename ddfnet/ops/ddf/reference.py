"""The definitions of the DDF operators, written to be read. Every other implementation is compared with them."""

import torch
import torch.nn.functional as F
from torch import Tensor


def ddf_reference(
    x: Tensor,
    channel_filter: Tensor | None,
    spatial_filter: Tensor | None,
    *,
    stride: int = 1,
    dilation: int = 1,
    combine: str = "mul",
    kernel_size: int | None = None,
) -> Tensor:
    """Decoupled dynamic filter (DDF, CVPR 2021, eq. 3) as a loop over the taps, in the dtype of `x`.

    Slow, differentiable by autograd, and without checks of its arguments: use `ddfnet.ddf` in a network.

    Args:
        x: (B, C, H, W).
        channel_filter: (B, C, k, k), or None.
        spatial_filter: (B, G*k*k, ceil(H/stride), ceil(W/stride)), or None.
        stride, dilation, combine: as for `ddfnet.ddf`.
        kernel_size: k; needed only when there is no channel filter and G is above 1.

    Returns:
        y: (B, C, ceil(H/stride), ceil(W/stride)).
    """
    batch, channels, height, width = x.shape
    if kernel_size is None:
        kernel_size = channel_filter.shape[-1] if channel_filter is not None else round(spatial_filter.shape[1] ** 0.5)
    out_height, out_width = (height - 1) // stride + 1, (width - 1) // stride + 1
    padding = kernel_size // 2 * dilation
    x_padded = F.pad(x, (padding, padding, padding, padding))

    y = torch.zeros(batch, channels, out_height, out_width, dtype=x.dtype, device=x.device)
    for u in range(kernel_size):
        for v in range(kernel_size):
            rows = slice(u * dilation, u * dilation + (out_height - 1) * stride + 1, stride)
            columns = slice(v * dilation, v * dilation + (out_width - 1) * stride + 1, stride)
            factors = []
            if channel_filter is not None:
                factors.append(channel_filter[:, :, u, v, None, None])
            if spatial_filter is not None:
                taps = spatial_filter.reshape(batch, -1, kernel_size, kernel_size, out_height, out_width)
                # (B, G, Ho, Wo) -> (B, C, Ho, Wo): neighboring channels share a head
                factors.append(taps[:, :, u, v].repeat_interleave(channels // taps.shape[1], dim=1))
            if len(factors) == 1:
                weight = factors[0]
            else:
                weight = factors[0] * factors[1] if combine == "mul" else factors[0] + factors[1]
            y = y + x_padded[:, :, rows, columns] * weight.to(x.dtype)
    return y


def ddf_up_reference(
    x: Tensor,
    channel_filter: Tensor | None,
    spatial_filter: Tensor | None,
    *,
    scale: int,
    dilation: int = 1,
    combine: str = "mul",
    kernel_size: int | None = None,
) -> Tensor:
    """DDF upsampling (DDF, CVPR 2021, section 6): a DDF for each phase, its results interleaved.

    Args:
        x: (B, C, H, W).
        channel_filter: (B, scale*scale, C, k, k), or None.
        spatial_filter: (B, scale*scale*G*k*k, H, W), or None.
        scale: the upscale factor; phase a*scale + e is output pixel (a, e) of the scale*scale of a pixel of x.
        dilation, combine, kernel_size: as for `ddf_reference`.

    Returns:
        y: (B, C, H*scale, W*scale).
    """
    phases = []
    for phase in range(scale * scale):
        channel = None if channel_filter is None else channel_filter[:, phase]
        spatial = None if spatial_filter is None else spatial_filter.chunk(scale * scale, dim=1)[phase]
        phases.append(ddf_reference(x, channel, spatial, dilation=dilation, combine=combine, kernel_size=kernel_size))
    return F.pixel_shuffle(torch.stack(phases, dim=2).flatten(1, 2), scale)
