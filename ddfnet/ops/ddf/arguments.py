"""Arguments of the DDF operators: what they accept, and what their implementations derive from them.

Every error names the argument, what was got, and what was expected.
"""

import math
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from ddfnet.ops.common import accumulator_dtype, empty, memory_format_of, output_size

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class Needed(NamedTuple):
    """Which gradients are asked for."""

    x: bool
    channel: bool
    spatial: bool


class _Given(NamedTuple):
    x: Tensor
    channel_filter: Tensor | None
    spatial_filter: Tensor | None
    kernel_size: int
    stride: int
    dilation: int
    multiply: bool
    scale: int


class Arguments(_Given):
    """Arguments of the registered op `ddfnet::ddf`, in its order. `ddf` has scale 1, `ddf_up` has stride 1.

    What follows from them is computed once: launches ask for it again and again, while a GPU waits.
    """

    @cached_property
    def area(self) -> int:
        """Taps of a filter."""
        return self.kernel_size * self.kernel_size

    @cached_property
    def phases(self) -> int:
        """Output pixels for each pixel of the spatial filter."""
        return self.scale * self.scale

    @cached_property
    def heads(self) -> int:
        """G, spatial filters per pixel and phase; 1 without a spatial filter."""
        return 1 if self.spatial_filter is None else self.spatial_filter.shape[1] // (self.phases * self.area)

    @cached_property
    def head_channels(self) -> int:
        """Channels that share a spatial filter."""
        return self.x.shape[1] // self.heads

    @cached_property
    def product(self) -> bool:
        """Whether each filter is a factor of the other's gradient."""
        return self.multiply and self.channel_filter is not None and self.spatial_filter is not None

    @cached_property
    def filter_size(self) -> tuple[int, int]:
        """(Ho, Wo), the size of the spatial filter; y is `scale` times as large."""
        return output_size(self.x, self.stride)

    @cached_property
    def memory_format(self) -> torch.memory_format:
        """Of x, y and their gradients."""
        return memory_format_of(self.x)

    @cached_property
    def channels_last(self) -> bool:
        """Whether channels are neighbors in memory."""
        return self.memory_format == torch.channels_last

    @cached_property
    def accumulator(self) -> torch.dtype:
        """In which sums are taken."""
        return accumulator_dtype(self.x)

    def phase(self, index: int) -> "Arguments":
        """The `ddf` that computes phase a * scale + e of `ddf_up`, pixels (i * scale + a, j * scale + e) of y."""
        channel, spatial = self.channel_filter, self.spatial_filter
        channel = None if channel is None else channel[:, index]
        spatial = None if spatial is None else spatial.unflatten(1, (self.phases, -1))[:, index]
        return self._replace(channel_filter=channel, spatial_filter=spatial, scale=1)

    def empty_output(self) -> Tensor:
        """y (B, C, Ho * scale, Wo * scale), not written yet."""
        height, width = self.filter_size
        size = (*self.x.shape[:2], height * self.scale, width * self.scale)
        return empty(self.x, size, self.memory_format)

    def zero_gradients(self, needed: Needed) -> tuple[Tensor, Tensor, Tensor]:
        """Zeros as the gradients of x and the two filters; an empty tensor for each one not needed."""
        formats = (self.memory_format, torch.contiguous_format, torch.contiguous_format)
        x, channel, spatial = (
            torch.zeros_like(tensor, memory_format=memory_format)
            if need and tensor is not None
            else self.x.new_empty(0)
            for tensor, memory_format, need in zip(self[:3], formats, needed, strict=True)
        )
        return x, channel, spatial


def check_arguments(
    x: Tensor,
    channel_filter: Tensor | None,
    spatial_filter: Tensor | None,
    kernel_size: int | None,
    stride: int,
    dilation: int,
    combine: str,
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

    k = _kernel_size(x, channel_filter, spatial_filter, kernel_size, phases)
    batch, channels = x.shape[:2]
    if channel_filter is not None:
        expected = (batch, *(() if scale is None else (phases,)), channels, k, k)
        if tuple(channel_filter.shape) != expected:
            raise ValueError(
                f"channel_filter: got shape {tuple(channel_filter.shape)}, expected {channel_axes} = {expected} "
                f"for x of shape {tuple(x.shape)} and kernel_size {k}"
            )
    if spatial_filter is not None:
        taps = spatial_filter.shape[1] // phases
        if taps % (k * k) != 0 or taps == 0 or channels % (taps // (k * k)) != 0:
            raise ValueError(
                f"spatial_filter: got {spatial_filter.shape[1]} channels, expected {spatial_axes} with "
                f"k = {k} and a number of heads G that divides the {channels} channels of x"
            )
        expected = (batch, taps * phases, *output_size(x, stride))
        if tuple(spatial_filter.shape) != expected:
            raise ValueError(
                f"spatial_filter: got shape {tuple(spatial_filter.shape)}, expected {spatial_axes} = {expected} "
                f"for x of shape {tuple(x.shape)} and {sizes}"
            )
    return k


def _kernel_size(
    x: Tensor, channel_filter: Tensor | None, spatial_filter: Tensor | None, kernel_size: int | None, phases: int
) -> int:
    if channel_filter is not None:
        inferred = channel_filter.shape[-1]
        shape = tuple(channel_filter.shape)
        if kernel_size is not None and kernel_size != inferred:
            raise ValueError(f"kernel_size: got {kernel_size}, but channel_filter of shape {shape} has k = {inferred}")
        if inferred % 2 == 0:
            raise ValueError(f"channel_filter: got k = {inferred} (shape {shape}), expected odd k")
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
        reason = f"k = {' or '.join(map(str, candidates))} would fit" if candidates else "no odd k >= 3 fits"
        axis = "G*k*k" if phases == 1 else "scale*scale*G*k*k"
        raise ValueError(
            f"kernel_size: cannot be inferred from spatial_filter with {spatial_filter.shape[1]} channels and x with "
            f"{x.shape[1]} channels ({reason} {axis} with G dividing C); pass kernel_size"
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
