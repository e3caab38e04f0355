"""Launches of the Triton kernels: layouts, grids, offset widths, second stage of the reductions.

"Dense" arguments are laid out as the kernels read them (`_dense`).
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ddfnet.kernels.ddf_backward_filters import ddf_backward_filters_kernel
from ddfnet.kernels.ddf_backward_spatial import ddf_backward_spatial_kernel
from ddfnet.kernels.ddf_backward_x import ddf_backward_x_kernel
from ddfnet.kernels.ddf_forward import ddf_forward_kernel
from ddfnet.ops.common import cdiv, empty, launch, memory_format_of
from ddfnet.ops.ddf import tiling
from ddfnet.ops.ddf.arguments import Arguments, Needed

_INT32_ELEMENTS = 2**31


def forward(args: Arguments) -> Tensor:
    """y (B, C, Ho * scale, Wo * scale) in the dtype and memory format of x."""
    return forward_dense(_dense(args)) if args.x.numel() else args.empty_output()


def forward_dense(
    args: Arguments, x_affine: Tensor | None = None, y_affine: Tensor | None = None, y_moments: Tensor | None = None
) -> Tensor:
    """The same of dense arguments, with ReLUs of affine maps around it: float32 (2, C), scale and shift, or None.

    y = relu(ddf(relu(x * scale + shift)) * scale + shift), the padding being zeros of what `ddf` filters. `y_moments`,
    float32 (`forward_parts`, 2*C + 4), gets those of y.
    """
    y = args.empty_output()
    tile = tiling.forward_tile(args)
    unused = args.x
    _launch(
        ddf_forward_kernel,
        _block_programs(tile, args, *args.filter_size) * (args.phases // tile.phases),
        tile,
        args,
        (args.x, *_filters(args), y, *(unused if t is None else t for t in (x_affine, y_affine, y_moments))),
        PHASES=tile.phases,
        ACTIVATE_X=x_affine is not None,
        ACTIVATE_Y=y_affine is not None,
        MOMENTS=y_moments is not None,
        **_weights(args),
    )
    return y


def forward_parts(args: Arguments) -> int:
    """Programs of the forward pass that have pixels of one channel: parts of the sums over y."""
    tile = tiling.forward_tile(args)
    return args.x.shape[0] * cdiv(tiling.block_count(tile, args, *args.filter_size), tile.blocks)


def backward(grad_y: Tensor, args: Arguments, needed: Needed) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, channel filter and spatial filter in their dtypes; an empty tensor for each one not needed."""
    if args.x.numel() == 0:
        return args.zero_gradients(needed)
    grad_y, dense = aligned(grad_y, args.memory_format), _dense(args)
    grad_x, grad_channel, grad_spatial = (args.x.new_empty(0) for _ in needed)
    if needed.x:
        grad_x = backward_x(grad_y, dense)
    if needed.spatial and not args.channels_last:
        grad_spatial = _backward_spatial(grad_y, dense)
        needed = needed._replace(spatial=False)
    if needed.channel or needed.spatial:
        grad_channel, grads = _backward_filters(grad_y, dense, args, needed)
        grad_spatial = grads if needed.spatial else grad_spatial
    return grad_x, grad_channel, grad_spatial


class Branch(NamedTuple):
    """What a DDF layer's other ways add to the gradient of x, which is channels_last (B, C, H, W).

    grad_logits: (G*k*k, B*H*W), in the dtype of x, of the logits of the spatial filter; 0 off the grid of the stride.
    weight: contiguous (G*k*k, C, ...), which made the logits of x. grad_pooled: float32 (B, C), of the average of x.
    """

    grad_logits: Tensor
    weight: Tensor
    grad_pooled: Tensor


def backward_x(
    grad_y: Tensor,
    args: Arguments,
    branch: Branch | None = None,
    x_statistics: Tensor | None = None,
    norm_partials: Tensor | None = None,
) -> Tensor:
    """The gradient of x; grad_y in its memory format, dense arguments. With `branch`, that of the layer.

    With x_statistics, float32 (6, C), as well, it is brought before the ReLU of a batch normalization in training, and
    norm_partials, float32 (`backward_x_parts`, 2, C), get the sums that the normalization's gradient needs.
    """
    grad_x = empty(args.x, args.x.shape, args.memory_format)
    tile = tiling.backward_x_tile(args)
    logits, pixels = (0, 0) if branch is None else branch.grad_logits.shape
    more: tuple[Tensor | None, ...] = branch or (None,) * 3
    more += (None,) * 3 if x_statistics is None else (args.x, x_statistics, norm_partials)
    tensors = (grad_y, *_filters(args), grad_x, *(grad_y if tensor is None else tensor for tensor in more))
    _launch(
        ddf_backward_x_kernel,
        _block_programs(tile, args, *args.x.shape[2:]),
        tile,
        args,
        tensors,
        pixels,
        LOGITS=logits,
        ACTIVATE_X=x_statistics is not None,
        **_weights(args),
    )
    return grad_x


def backward_x_parts(args: Arguments) -> int:
    """Programs of `backward_x` that have pixels of one channel: parts of the sums over the gradient of x."""
    tile = tiling.backward_x_tile(args)
    return args.x.shape[0] * cdiv(tiling.block_count(tile, args, *args.x.shape[2:]), tile.blocks)


def _backward_spatial(grad_y: Tensor, args: Arguments) -> Tensor:
    height, width = args.filter_size
    grad_spatial = torch.empty_like(args.spatial_filter, memory_format=torch.contiguous_format)  # type: ignore[arg-type]
    tile = tiling.backward_spatial_tile(args)
    programs = cdiv(height * width, tile.blocks) * (args.kernel_size // tile.tap_rows) * args.phases
    tensors = (grad_y, args.x, _filters(args)[0], grad_spatial)
    _launch(ddf_backward_spatial_kernel, programs, tile, args, tensors, PRODUCT=args.product)
    return grad_spatial


class Logits(NamedTuple):
    """Of a DDF layer, whose spatial filter is alpha * (logits - mean) * inverse_std, over the taps.

    inverse_std: float32 (B, G, Ho, Wo). For the results: grad_logits (G*k*k, B*H*W) in the dtype of x, and
    bias_partials, float32 (B * `filter_chunks`, G*k*k), parts of their sums.
    """

    inverse_std: Tensor
    grad_logits: Tensor
    bias_partials: Tensor
    alpha: float


def filter_partials(
    grad_y: Tensor, args: Arguments, needed: Needed, x_affine: Tensor | None = None, logits: Logits | None = None
) -> tuple[Tensor, Tensor]:
    """Partial sums of the gradients of the filters, an empty tensor for one not needed; dense arguments, and
    x_affine as in `forward_dense`.

    (B, chunks, phases, k*k, C) in the accumulator dtype, and (B, tiles per head, phases*G*k*k, Ho, Wo): one tile is the
    gradient already, in the dtype of the spatial filter, several are in the accumulator dtype. With `logits`, whose
    results are written instead of the latter, an empty tensor. For `tiling.logits_at_once`.
    """
    batch, channels = args.x.shape[:2]
    tile = tiling.backward_filters_tile(args)
    chunks = filter_chunks(args)
    channel_tiles = cdiv(args.head_channels, tile.block_channels)
    channel_partials = spatial_partials = args.x.new_empty(0)
    if needed.channel:
        channel_partials = args.x.new_empty((batch, chunks, args.phases, args.area, channels), dtype=args.accumulator)
    if needed.spatial and args.spatial_filter is not None and logits is None:
        dtype = args.spatial_filter.dtype if channel_tiles == 1 else args.accumulator
        spatial_partials = args.x.new_empty((batch, channel_tiles, *args.spatial_filter.shape[1:]), dtype=dtype)
    _launch(
        ddf_backward_filters_kernel,
        channel_tiles * args.phases * (args.kernel_size // tile.tap_rows) * chunks,
        tile,
        args,
        (grad_y, args.x, *_filters(args), channel_partials, spatial_partials, args.x if x_affine is None else x_affine),
        tiling.filter_iterations(tile, args),
        *(logits or Logits(args.x, args.x, args.x, 0.0))[:3],
        0 if logits is None else logits.grad_logits.shape[1],
        0.0 if logits is None else logits.alpha,
        ACTIVATE_X=x_affine is not None,
        LOGITS=logits is not None,
        PRODUCT=args.product,
        NEED_CHANNEL=needed.channel,
        NEED_SPATIAL=needed.spatial,
    )
    return channel_partials, spatial_partials


def filter_chunks(args: Arguments) -> int:
    """Programs of `filter_partials` that have one channel of an image: parts of the sums over pixels."""
    tile = tiling.backward_filters_tile(args)
    blocks = tile.blocks * tiling.filter_iterations(tile, args)
    return cdiv(tiling.block_count(tile, args, *args.filter_size), blocks)


def _backward_filters(grad_y: Tensor, args: Arguments, given: Arguments, needed: Needed) -> tuple[Tensor, Tensor]:
    """Gradients of the filters in the shapes and dtypes of the `given` ones, of which `args` has the dense ones."""
    channel_partials, spatial_partials = filter_partials(grad_y, args, needed)
    grad_channel, grad_spatial = args.x.new_empty(0), args.x.new_empty(0)
    if needed.channel and given.channel_filter is not None:
        sums = _sum_partials(channel_partials).transpose(2, 3)  # (B, phases, C, k*k)
        grad_channel = torch.empty_like(given.channel_filter, memory_format=torch.contiguous_format)
        grad_channel.copy_(sums.reshape(given.channel_filter.shape))
        del sums, channel_partials  # before more is allocated
    if needed.spatial and given.spatial_filter is not None:
        grad_spatial = _sum_partials(spatial_partials)
        del spatial_partials
        grad_spatial = grad_spatial.to(given.spatial_filter.dtype)
    return grad_channel, grad_spatial


def _launch(
    kernel: Any,
    programs: int,
    tile: tiling.Tile,
    args: Arguments,
    tensors: tuple[Tensor, ...],
    *more: Any,
    **constants: Any,
) -> None:
    """Launch `kernel` with `programs` for each head of each image; what all kernels are given is added here."""
    height, width, static_channels = tiling.static_shape(args)
    out_height, out_width = args.filter_size
    sizes = (args.x.shape[2] * args.x.shape[3], out_height * out_width * args.phases)  # x and y
    elements = [args.x.shape[1] * size for size in sizes]
    if args.spatial_filter is not None:
        elements.append(args.spatial_filter.shape[1] * out_height * out_width)
    launch(
        kernel,
        (programs * args.heads * args.x.shape[0],),
        *tensors,
        *args.x.shape[2:],
        args.head_channels,
        args.heads,
        *more,
        HEIGHT=height,
        WIDTH=width,
        HEAD_CHANNELS=static_channels,
        KERNEL_SIZE=args.kernel_size,
        STRIDE=args.stride,
        DILATION=args.dilation,
        SCALE=args.scale,
        CHANNELS_LAST=args.channels_last,
        SPATIAL_CHANNELS_LAST=args.spatial_filter is not None
        and memory_format_of(args.spatial_filter) == torch.channels_last,
        # whether an offset inside one image can pass 2^31; the offset of an image is always 64 bits wide
        INT64=any(number >= _INT32_ELEMENTS for number in elements),
        BLOCK_Y=tile.block_y,
        BLOCK_X=tile.block_x,
        BLOCKS=tile.blocks,
        BLOCK_CHANNELS=tile.block_channels,
        TAP_ROWS=tile.tap_rows,
        num_warps=tile.warps,
        num_stages=1,  # nothing is pipelined through shared memory
        **constants,
    )


def _weights(args: Arguments) -> dict[str, bool]:
    """Constants of the kernels that combine the filters."""
    has = {"HAS_CHANNEL": args.channel_filter is not None, "HAS_SPATIAL": args.spatial_filter is not None}
    return {"MULTIPLY": args.multiply, **has}


def _block_programs(tile: tiling.Tile, args: Arguments, height: int, width: int) -> int:
    """Programs for all pixels and channels of one head of one image."""
    blocks = tiling.block_count(tile, args, height, width)
    return cdiv(blocks, tile.blocks) * cdiv(args.head_channels, tile.block_channels)


def _filters(args: Arguments) -> tuple[Tensor, Tensor]:
    """The filters, and x, which is not read, for an absent one."""
    channel = args.x if args.channel_filter is None else args.channel_filter
    return channel, args.x if args.spatial_filter is None else args.spatial_filter


def aligned(tensor: Tensor, memory_format: torch.memory_format) -> Tensor:
    """Dense, and starting on 16 bytes: Triton would read a view that does not with 2-byte loads."""
    tensor = tensor.contiguous(memory_format=memory_format)
    if tensor.storage_offset() * tensor.element_size() % 16 != 0:
        tensor = tensor.clone(memory_format=memory_format)
    return tensor


def _dense(args: Arguments) -> Arguments:
    """x aligned, the channel filter as (B, phases, k*k, C) in the dtype of the sums, the spatial one in either format.

    The channel filter is small. With channels last and no conversion to do, a thread reads the weights of its eight
    channels with two loads a tap.
    """
    channel, spatial = args.channel_filter, args.spatial_filter
    if channel is not None:
        taps = channel.reshape(args.x.shape[0], args.phases, args.x.shape[1], -1).transpose(2, 3)
        channel = taps.to(args.accumulator).contiguous()
    if spatial is not None:
        spatial = spatial.contiguous(memory_format=memory_format_of(spatial))
    return args._replace(x=aligned(args.x, args.memory_format), channel_filter=channel, spatial_filter=spatial)


def _sum_partials(partials: Tensor) -> Tensor:
    return partials.squeeze(1) if partials.shape[1] == 1 else partials.sum(1)
