"""Launch policy of the Triton kernels: what one program computes, from shapes alone.

A fixed rule and no autotuning: winners of a race differ between ranks and runs (and with them the last bits of sums),
tuning breaks CUDA graphs, and the first step would take minutes. For 3x3 filters of channels_last tensors the rule was
chosen by measuring on an H200, in bfloat16 (`docs/results/2026-11-27-h200.md`); elsewhere it follows from counts of
machine instructions and registers, which `scripts/dev/compile_matrix.py` makes without a GPU.
It never looks at the batch, so that the operator gives an image the same result in every batch.
"""

from dataclasses import dataclass, replace

import torch

from ddfnet.ops.common import cdiv
from ddfnet.ops.ddf.arguments import Arguments

_MAX_BLOCK_CHANNELS = 64  # one 128-byte line of half-precision channels; 8 lanes of 16 bytes
_CHUNK_PIXELS = 128  # output pixels that one program of the filter kernel sums before it writes a partial sum
_MAX_STATIC_SHAPES = 32
_static_shapes: set[tuple[int, int, int]] = set()


@dataclass(frozen=True)
class Tile:
    """The work of one program: `blocks` blocks of `block_y` x `block_x` pixels, `block_channels` channels.

    Attributes:
        tap_rows: rows of taps unrolled together. All of them, or one: then a loop runs over the rows.
        warps: warps of a program.
        phases: of `ddf_up`, computed by one program of the forward kernel.
    """

    block_y: int
    block_x: int
    blocks: int
    block_channels: int
    tap_rows: int
    warps: int
    phases: int = 1


def forward_tile(args: Arguments) -> Tile:
    """For `ddf_forward_kernel`."""
    height, width = args.filter_size
    phases = max(n for n in (1, 2, 3, 4) if args.phases % n == 0)
    if args.scale > 1:  # a program's outputs are the phases of one input pixel, which all meet the same inputs
        block_y, block_x, tap_rows = 1, 1, 1
    else:
        block_y, block_x, tap_rows = _neighbors(args, height, width)
    block_channels = _power_of_two(args.head_channels, _MAX_BLOCK_CHANNELS if args.channels_last else 16)
    blocks = max(_elements_of_outputs(args, block_y * block_x) // block_channels, 1)
    return _fit(Tile(block_y, block_x, blocks, block_channels, tap_rows, 4, phases), height, width)


def backward_x_tile(args: Arguments) -> Tile:
    """For `ddf_backward_x_kernel`."""
    height, width = args.x.shape[2:]
    if args.scale > 1 and not args.channels_last:
        # pixels of a phase are `scale` apart: loads of single values, which blocks only add to
        block_y, block_x, tap_rows = 1, 1, _unrolled_rows(args)
    elif args.stride == 1:
        block_y, block_x, tap_rows = _neighbors(args, height, width)
    elif (
        args.stride <= 3 and args.kernel_size <= 7
    ):  # blocks of stride x stride pixels: each tap meets known ones of them
        block_y, block_x, tap_rows = args.stride, args.stride, args.kernel_size
    else:
        block_y, block_x, tap_rows = 1, 1, 1
    block_channels = _power_of_two(args.head_channels, _MAX_BLOCK_CHANNELS if args.channels_last else 16)
    if args.stride == 2 and args.kernel_size <= 3 and args.channels_last:
        block_x, elements, warps = 4, 1024, 4
    elif args.stride == 1:
        elements, warps = _elements_of_outputs(args, block_y * block_x), 4
    else:
        elements = 512 if block_y * block_x > 4 else 1024
        warps = elements // 256
    return _fit(
        Tile(block_y, block_x, max(elements // block_channels, 1), block_channels, tap_rows, warps), height, width
    )


def backward_x_at_once(args: Arguments) -> bool:
    """Whether `ddf_backward_x_kernel` also adds what comes from a layer's logits, or another kernel does afterwards.

    Each logit of a pixel is a multiply-add for each of its channels: with loads 15 instructions an element for the nine
    logits of a 3x3 filter, by their number half the time that it takes to write and read the element once more. The 25
    of a 5x5 filter would take as long as that, and of many heads a matrix product is better. Never measured.
    """
    return args.heads * args.area <= 9


def backward_filters_tile(args: Arguments) -> Tile:
    """For `ddf_backward_filters_kernel`.

    Each thread holds an accumulator per tap and element, all nine taps of a 3x3 filter or one row of a larger one, of
    one 16-byte load. Registers are what is short, so that pixels share few loads. One warp: sums over channels then
    need no shared memory and no barrier.
    """
    height, width = args.filter_size
    itemsize = args.x.element_size()
    if args.channels_last:
        block_y, block_x = 1, 2
        elements = _elements_of_taps(args, 32 * max(16 // itemsize, 2))
    else:
        block_y, block_x = (2, 1) if args.kernel_size <= 3 and itemsize <= 4 else (1, 1)
        elements = _elements_of_taps(args, 128 if itemsize <= 4 else 64)
    if not _worth_blocking(args, height, width, block_y, block_x):
        block_y, block_x = 1, 1
    block_channels = min(_power_of_two(args.head_channels, _MAX_BLOCK_CHANNELS if args.channels_last else 4), elements)
    return _fit(
        Tile(block_y, block_x, elements // block_channels, block_channels, _unrolled_rows(args), 1), height, width
    )


def logits_at_once(args: Arguments, activated: bool) -> bool:
    """Whether `ddf_backward_filters_kernel` also makes the gradients of a layer's logits, or another kernel does from
    that of the spatial filter.

    A program has to have all channels of its pixels, and all taps, and eight lanes two pixels in common. Only of an x
    that is activated on load, in half precision: else the kernel has few enough registers for 12 warps on a
    multiprocessor, and would have 8 to 11. With fewer channels it spills (`kernels/README.md`).
    """
    tile = backward_filters_tile(args)
    return (
        activated
        and args.x.element_size() == 2
        and args.channels_last
        and args.product
        and (args.kernel_size, args.stride, args.scale) == (3, 1, 1)
        and (tile.block_y, tile.block_x) == (1, 2)
        and 32 < args.head_channels <= tile.block_channels
        and args.head_channels % 8 == 0
    )


def backward_spatial_tile(args: Arguments) -> Tile:
    """For `ddf_backward_spatial_kernel`."""
    elements = _elements_of_taps(args, 128 if args.x.element_size() <= 4 else 64)
    block_channels = _power_of_two(args.head_channels, 4)
    return _fit(Tile(1, 1, elements // block_channels, block_channels, _unrolled_rows(args), 1), *args.filter_size)


def filter_iterations(tile: Tile, args: Arguments) -> int:
    """Steps of one program of `ddf_backward_filters_kernel`, each over `tile.blocks` blocks."""
    height, width = args.filter_size
    return max(min(_CHUNK_PIXELS, height * width) // (tile.blocks * tile.block_y * tile.block_x), 1)


def block_count(tile: Tile, args: Arguments, height: int, width: int) -> int:
    """Blocks that cover a map, as the kernels count them: neighbors of a block may stand `dilation` apart."""
    step = args.dilation if args.stride == 1 and tile.block_y * tile.block_x > 1 else 1
    return cdiv(height, step * tile.block_y) * step * (cdiv(width, step * tile.block_x) * step)


def static_shape(args: Arguments) -> tuple[int, int, int]:
    """(H, W, channels of a head) as constants to compile into the kernels; zeros for those to pass as arguments.

    As constants, offsets become part of the load instructions: a quarter fewer instructions. But each shape is then
    compiled for itself, some seconds, so the first shapes of a process get it and later ones share general kernels:
    a detector sees thousands. Symbolic sizes (torch.compile with dynamic shapes) always take the general ones. The
    channels are few different numbers, and constant in all cases: for channels_last the layout of a program, and with
    it the order of its sums, then is the same for both. For contiguous tensors it differs.
    """
    height, width = args.x.shape[2:]
    channels = 0 if isinstance(args.head_channels, torch.SymInt) else args.head_channels
    if channels == 0 or isinstance(height, torch.SymInt) or isinstance(width, torch.SymInt):
        return 0, 0, channels
    sizes = (height, width, channels)
    if sizes not in _static_shapes and len(_static_shapes) < _MAX_STATIC_SHAPES:
        _static_shapes.add(sizes)
    return sizes if sizes in _static_shapes else (0, 0, channels)


def _neighbors(args: Arguments, height: int, width: int) -> tuple[int, int, int]:
    """Block height, block width and tap rows of a kernel whose neighboring outputs meet common inputs."""
    if args.kernel_size <= 3 and args.channels_last:  # 2x4 outputs meet 24 inputs, where each alone would load its 9
        block_y, block_x = (2, 4) if args.stride == 1 else (1, 4)
    elif args.kernel_size <= 3:
        block_y, block_x = 2, 1
    else:  # unrolling 25 or 49 taps takes all registers; a row of 4 outputs shares nearly as many loads
        block_y, block_x = 1, 4 if args.channels_last else 1
    if args.stride >= args.kernel_size or not _worth_blocking(args, height, width, block_y, block_x):
        block_y, block_x = 1, 1
    return block_y, block_x, _unrolled_rows(args)


def _elements_of_outputs(args: Arguments, block: int) -> int:
    """Elements of a program of 4 warps with `block` outputs for each: 4 or 8 of them a thread."""
    return 512 if args.channels_last and args.kernel_size <= 3 and block >= 4 else 1024


def _unrolled_rows(args: Arguments) -> int:
    """Rows of taps unrolled together: those of a 3x3 filter are few enough."""
    return args.kernel_size if args.kernel_size <= 3 else 1


def _elements_of_taps(args: Arguments, most: int) -> int:
    """At most so many elements of a program with an accumulator for each of the unrolled taps: 72 of them a thread."""
    elements = most
    while _unrolled_rows(args) * args.kernel_size * elements > 72 * 32 and elements > 32:
        elements //= 2
    return elements


def _worth_blocking(args: Arguments, height: int, width: int, block_y: int, block_x: int) -> bool:
    """Whether such blocks of neighbors cover the map without wasting half of the work."""
    step = args.dilation if args.stride == 1 else 1
    rows = cdiv(height, step * block_y) * step * block_y
    columns = cdiv(width, step * block_x) * step * block_x
    return rows * columns < 2 * height * width


def _fit(tile: Tile, height: int, width: int) -> Tile:
    """The same tile with no more blocks than the map has, but at least one element a thread."""
    needed = cdiv(height, tile.block_y) * cdiv(width, tile.block_x)
    least = max(32 * tile.warps // tile.block_channels, 1)
    blocks = max(_power_of_two(needed, tile.blocks), min(least, tile.blocks))
    warps = max(min(tile.warps, blocks * tile.block_channels // 32), 1)
    fits = (blocks, warps) == (tile.blocks, tile.warps)
    return tile if fits else replace(tile, blocks=blocks, warps=warps)


def _power_of_two(at_least: int, at_most: int) -> int:
    """The smallest power of two >= at_least, but no more than at_most, which is one itself."""
    block = 1
    while block < at_least and block < at_most:
        block *= 2
    return block
