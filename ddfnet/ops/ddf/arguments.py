"""What `ddf` accepts: every message names the argument, what was got, and what was expected."""

import math

import torch
from torch import Tensor

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_arguments(
    x: Tensor,
    channel_filter: Tensor | None,
    spatial_filter: Tensor | None,
    *,
    stride: int,
    dilation: int,
    combine: str,
    kernel_size: int | None,
    scale: int | None = None,
) -> int:
    """Raise ValueError or TypeError for what `ddf` cannot compute; return the kernel size k.

    `scale` is that of `ddf_up`, and None for `ddf`.
    """
    if combine not in ("mul", "add"):
        raise ValueError(f'combine: got {combine!r}, expected "mul" or "add"')
    _check_positive_int("stride", stride)
    _check_positive_int("dilation", dilation)
    _check_tensor("x", x, "(B, C, H, W)", x)
    if scale is None:
        phases, sizes = 1, f"stride {stride}"
        channel_axes, spatial_axes = "(B, C, k, k)", "(B, G*k*k, ceil(H/stride), ceil(W/stride))"
    else:
        _check_positive_int("scale", scale)
        if scale < 2:
            raise ValueError(f"scale: got {scale}, expected at least 2; ddf filters without upsampling")
        phases, sizes = scale * scale, f"scale {scale}"
        channel_axes, spatial_axes = "(B, scale*scale, C, k, k)", "(B, scale*scale*G*k*k, H, W)"
    if channel_filter is None and spatial_filter is None:
        raise ValueError("channel_filter and spatial_filter: both are None, expected at least one filter")
    if channel_filter is not None:
        _check_tensor("channel_filter", channel_filter, channel_axes, x)
    if spatial_filter is not None:
        _check_tensor("spatial_filter", spatial_filter, spatial_axes, x)
        if spatial_filter.shape[1] % phases:
            raise ValueError(
                f"spatial_filter: got {spatial_filter.shape[1]} channels, expected {spatial_axes}: a multiple of "
                f"scale*scale = {phases}"
            )

    kernel_size = _kernel_size(x, channel_filter, spatial_filter, kernel_size, phases)
    batch, channels, height, width = x.shape
    if channel_filter is not None:
        expected = (batch, *(() if scale is None else (phases,)), channels, kernel_size, kernel_size)
        if tuple(channel_filter.shape) != expected:
            raise ValueError(
                f"channel_filter: got shape {tuple(channel_filter.shape)}, expected {channel_axes} = {expected} "
                f"for x of shape {tuple(x.shape)} and kernel_size {kernel_size}"
            )
    if spatial_filter is not None:
        area = kernel_size * kernel_size
        taps = spatial_filter.shape[1] // phases
        if taps % area != 0 or taps == 0 or channels % (taps // area) != 0:
            raise ValueError(
                f"spatial_filter: got {spatial_filter.shape[1]} channels, expected {spatial_axes} with "
                f"k = {kernel_size} and a number of heads G that divides the {channels} channels of x"
            )
        expected = (batch, taps * phases, (height - 1) // stride + 1, (width - 1) // stride + 1)
        if tuple(spatial_filter.shape) != expected:
            raise ValueError(
                f"spatial_filter: got shape {tuple(spatial_filter.shape)}, expected {spatial_axes} = {expected} "
                f"for x of shape {tuple(x.shape)} and {sizes}"
            )
    return kernel_size


def _kernel_size(
    x: Tensor, channel_filter: Tensor | None, spatial_filter: Tensor | None, kernel_size: int | None, phases: int
) -> int:
    if channel_filter is not None:
        inferred = channel_filter.shape[-1]
        if kernel_size is not None and kernel_size != inferred:
            raise ValueError(
                f"kernel_size: got {kernel_size}, but channel_filter of shape {tuple(channel_filter.shape)} "
                f"has k = {inferred}"
            )
        if inferred % 2 == 0:
            raise ValueError(
                f"channel_filter: got k = {inferred} (shape {tuple(channel_filter.shape)}), expected odd k"
            )
        return inferred
    if kernel_size is not None:
        _check_positive_int("kernel_size", kernel_size)
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size: got {kernel_size}, expected an odd number")
        return kernel_size

    taps = spatial_filter.shape[1] // phases
    root = math.isqrt(int(taps))
    if root > 1 and root % 2 == 1 and root * root == taps:
        return root  # one head
    candidates = [k for k in range(3, root + 1, 2) if taps % (k * k) == 0 and x.shape[1] % (taps // (k * k)) == 0]
    if len(candidates) != 1:
        found = f"k = {' or '.join(map(str, candidates))} would fit" if candidates else "no odd k >= 3 fits"
        axis = "G*k*k" if phases == 1 else "scale*scale*G*k*k"
        raise ValueError(
            f"kernel_size: cannot be inferred from spatial_filter with {spatial_filter.shape[1]} channels and x with "
            f"{x.shape[1]} channels ({found} {axis} with G dividing C); pass kernel_size"
        )
    return candidates[0]


def _check_positive_int(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        raise TypeError(f"{name}: got {value!r} of type {type(value).__name__}, expected an int")
    if value < 1:
        raise ValueError(f"{name}: got {value}, expected at least 1")


def _check_tensor(name: str, tensor: Tensor, shape: str, x: Tensor) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: got {type(tensor).__name__}, expected a tensor of shape {shape}")
    if tensor.dim() != shape.count(",") + 1:
        raise ValueError(f"{name}: got {tensor.dim()} dimensions (shape {tuple(tensor.shape)}), expected {shape}")
    if tensor.dtype not in _DTYPES:
        raise TypeError(f"{name}: got dtype {tensor.dtype}, expected float16, bfloat16, float32 or float64")
    if tensor.device != x.device:
        raise ValueError(f"{name}: got device {tensor.device}, expected that of x, {x.device}")
