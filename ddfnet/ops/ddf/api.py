"""The public operators: arguments checked, autocast applied, then the registered op."""

from torch import Tensor

from ddfnet.ops.common import autocast
from ddfnet.ops.ddf import autograd
from ddfnet.ops.ddf.arguments import check_arguments


def ddf(
    x: Tensor,
    channel_filter: Tensor | None,
    spatial_filter: Tensor | None,
    *,
    stride: int = 1,
    dilation: int = 1,
    combine: str = "mul",
    kernel_size: int | None = None,
) -> Tensor:
    """Decoupled dynamic filter (Zhou et al., CVPR 2021, eq. 3): each pixel of each channel has a filter of its own.

    `y[b,c,i,j] = sum over taps (u,v) of x[b, c, i*s+(u-r)*d, j*s+(v-r)*d] * (F_ch[b,c,u,v] (*|+) F_sp[b,g(c),u,v,i,j])`
    with s the stride, d the dilation, r = (k-1)/2, zero padding, and g(c) = c // (C/G) the head of channel c.

    Sums are taken in float32 (float64 for float64 `x`), whatever the dtype of the filters. `y` has the dtype of `x`,
    and its memory format: channels_last for channels_last `x`, contiguous for everything else. Differentiable to any
    order; gradients are bitwise reproducible. Works under torch.compile(fullgraph=True) and torch.export.

    Under autocast, `x` and `spatial_filter` are cast to the autocast dtype (float64 is left alone), and so is `y`;
    `channel_filter` keeps its dtype.

    Args:
        x: (B, C, H, W), float16, bfloat16, float32 or float64. B may be 0.
        channel_filter: (B, C, k, k), k odd. None: only the spatial filter acts (involution, CARAFE).
        spatial_filter: (B, G*k*k, ceil(H/stride), ceil(W/stride)), where G heads divide C; channel (g*k + u)*k + v
            holds tap (u, v) of head g. None: only the channel filter acts (dynamic depthwise convolution).
        stride: step between the centers of neighboring windows, in input pixels.
        dilation: distance between neighboring taps, in input pixels.
        combine: "mul" or "add": how the two filters become one. Without effect if one is None.
        kernel_size: k. Needed only if `channel_filter` is None and k cannot be inferred from the channels of
            `spatial_filter` (an odd square is one head; otherwise the only odd k >= 3 that leaves G dividing C).

    Returns:
        y: (B, C, ceil(H/stride), ceil(W/stride)).

    Raises:
        ValueError: a shape, a device or a value that does not fit; the message names the argument.
        TypeError: an argument of the wrong type, or a tensor that is not of a floating dtype.
    """
    kernel_size = check_arguments(x, channel_filter, spatial_filter, kernel_size, stride, dilation, combine)
    x, spatial_filter = autocast(x), autocast(spatial_filter)
    return autograd.call(x, channel_filter, spatial_filter, kernel_size, stride, dilation, combine == "mul", 1)


def ddf_up(
    x: Tensor,
    channel_filter: Tensor | None,
    spatial_filter: Tensor | None,
    *,
    scale: int,
    dilation: int = 1,
    combine: str = "mul",
    kernel_size: int | None = None,
) -> Tensor:
    """DDF upsampling (Zhou et al., CVPR 2021, section 6): scale * scale filters, one for each output pixel.

    With phase p = a*scale + e the position of an output pixel within a pixel of x,
    `y[b,c, i*scale+a, j*scale+e] = sum over taps (u,v) of x[b, c, i+(u-r)*d, j+(v-r)*d] * F[b,p,c,u,v,i,j]`
    with F the two filters of phase p combined. The result is written where it belongs: no stack of scale * scale
    outputs, no pixel shuffle.

    All else is as for `ddf`: sums in float32, memory format, autocast, gradients, torch.compile, errors.

    Args:
        x: (B, C, H, W), float16, bfloat16, float32 or float64. B may be 0.
        channel_filter: (B, scale*scale, C, k, k), k odd, or None.
        spatial_filter: (B, scale*scale*G*k*k, H, W), or None; channel ((p*G + g)*k + u)*k + v holds tap (u, v) of head
            g of phase p.
        scale: the upscale factor, an int of 2 or more.
        dilation: distance between neighboring taps, in pixels of x.
        combine: "mul" or "add": how the two filters become one. Without effect if one is None.
        kernel_size: k. Needed only if `channel_filter` is None and k cannot be inferred, as for `ddf`.

    Returns:
        y: (B, C, H*scale, W*scale).

    Raises:
        ValueError, TypeError: as for `ddf`.
    """
    kernel_size = check_arguments(x, channel_filter, spatial_filter, kernel_size, 1, dilation, combine, scale)
    x, spatial_filter = autocast(x), autocast(spatial_filter)
    return autograd.call(x, channel_filter, spatial_filter, kernel_size, 1, dilation, combine == "mul", scale)
