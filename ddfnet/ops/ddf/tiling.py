"""Launch policy of the Triton kernels: what one program computes, from shapes alone.

A fixed rule and no autotuning: winners of a race differ between ranks and runs (and with them the last bits of sums),
tuning breaks CUDA graphs, and the first step would take minutes. The rule follows from counts of machine instructions
and registers, which `scripts/dev/compile_matrix.py` makes without a GPU; `kernels/README.md` gives the arithmetic.
It never looks at the batch, so that an image has the same result in every batch.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

_MAX_BLOCK_CHANNELS = 64  # one 128-byte line of half-precision channels; 8 lanes of 16 bytes
_CHUNK_PIXELS = 256  # output pixels that one program of the filter kernel sums before it writes a partial sum
_MAX_STATIC_SHAPES = 32
_static_shapes: set[tuple[int, int, int]] = set()


@dataclass(frozen=True)
class Tile:
    """What one program computes: `blocks` blocks of `block_y` x `block_x` pixels, `block_channels` channels.

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

    @property
    def elements_per_thread(self) -> int:
        """Accumulators of a thread of the forward kernel and of the one for grad_x."""
        elements = self.blocks * self.block_y * self.block_x * self.block_channels * self.phases
        return elements // (32 * self.warps)


def forward_tile(
    head_channels: int, height: int, width: int, kernel_size: int, stride: int, dilation: int, scale: int, wide: bool
) -> Tile:
    """For `ddf_forward_kernel`, height and width being those of the spatial filter.

    `wide`: channels lie next to each other in memory (channels_last).
    """
    if scale > 1:  # a program's outputs are the phases of one input pixel, which all meet the same inputs
        block_y, block_x, tap_rows = 1, 1, 1
        phases = max(n for n in (1, 2, 3, 4) if scale * scale % n == 0)
    else:
        block_y, block_x, tap_rows = _neighbors(height, width, kernel_size, stride, dilation, wide)
        phases = 1
    block_channels = _power_of_two(head_channels, _MAX_BLOCK_CHANNELS if wide else 16)
    # 8 accumulators a thread for each output of a block
    blocks = max(_MAX_BLOCK_CHANNELS * 16 // block_channels, 1)
    return _fit(Tile(block_y, block_x, blocks, block_channels, tap_rows, 4, phases), height, width)


def backward_x_tile(
    head_channels: int, height: int, width: int, kernel_size: int, stride: int, dilation: int, scale: int, wide: bool
) -> Tile:
    """For `ddf_backward_x_kernel`, height and width being those of x."""
    if scale > 1 and not wide:  # pixels of a phase are `scale` apart: loads of single values, which blocks only add to
        block_y, block_x, tap_rows = 1, 1, kernel_size if kernel_size <= 3 else 1
    elif stride == 1:
        block_y, block_x, tap_rows = _neighbors(height, width, kernel_size, stride, dilation, wide)
    elif stride <= 3 and kernel_size <= 7:  # blocks of stride x stride pixels: each tap meets known ones of them
        block_y, block_x, tap_rows = stride, stride, kernel_size
    else:
        block_y, block_x, tap_rows = 1, 1, 1
    block_channels = _power_of_two(head_channels, _MAX_BLOCK_CHANNELS if wide else 16)
    elements = 512 if block_y * block_x > 4 else 1024
    blocks = max(elements // block_channels, 1)
    return _fit(Tile(block_y, block_x, blocks, block_channels, tap_rows, elements // 256), height, width)


def backward_filters_tile(
    head_channels: int, height: int, width: int, kernel_size: int, stride: int, dilation: int, wide: bool, itemsize: int
) -> Tile:
    """For `ddf_backward_filters_kernel`, height and width being those of the spatial filter, itemsize that of x.

    Each thread holds an accumulator per tap and element, all nine taps of a 3x3 filter or one row of a larger one, of
    one 16-byte load. Registers are what is short, so that pixels share few loads. One warp: sums over channels then
    need no shared memory and no barrier.
    """
    tap_rows = kernel_size if kernel_size <= 3 else 1
    step = dilation if stride == 1 else 1
    if wide:
        block_y, block_x = (1, 1) if kernel_size <= 3 else (1, 2)
        elements = 32 * max(16 // itemsize, 2)
    else:
        block_y, block_x = (2, 1) if kernel_size <= 3 and itemsize <= 4 else (1, 1)
        elements = 128 if itemsize <= 4 else 64
    if not _worth_blocking(height, width, block_y, block_x, step):
        block_y, block_x = 1, 1
    while tap_rows * kernel_size * elements > 72 * 32 and elements > 32:
        elements //= 2
    block_channels = min(_power_of_two(head_channels, _MAX_BLOCK_CHANNELS if wide else 4), elements)
    blocks = elements // block_channels
    return _fit(Tile(block_y, block_x, blocks, block_channels, tap_rows, 1), height, width)


def backward_spatial_tile(head_channels: int, height: int, width: int, kernel_size: int, itemsize: int) -> Tile:
    """For `ddf_backward_spatial_kernel`, height and width being those of the spatial filter, itemsize that of x."""
    tap_rows = kernel_size if kernel_size <= 3 else 1
    elements = 128 if itemsize <= 4 else 64
    while tap_rows * kernel_size * elements > 72 * 32 and elements > 32:
        elements //= 2
    block_channels = _power_of_two(head_channels, 4)
    return _fit(Tile(1, 1, elements // block_channels, block_channels, tap_rows, 1), height, width)


def filter_iterations(tile: Tile, height: int, width: int) -> int:
    """Steps of one program of `ddf_backward_filters_kernel`, each over `tile.blocks` blocks."""
    pixels = tile.blocks * tile.block_y * tile.block_x
    return max(min(_CHUNK_PIXELS, height * width) // pixels, 1)


def block_count(tile: Tile, height: int, width: int, stride: int, dilation: int) -> int:
    """Blocks that cover a map, as the kernels count them: neighbors of a block may stand `dilation` apart."""
    step = dilation if stride == 1 and tile.block_y * tile.block_x > 1 else 1
    return cdiv(height, step * tile.block_y) * step * (cdiv(width, step * tile.block_x) * step)


def static_shape(x: Tensor, head_channels: int) -> tuple[int, int, int]:
    """(H, W, channels of a head) as constants to compile into the kernels; zeros for those to pass as arguments.

    As constants, offsets become part of the load instructions: a quarter fewer instructions. But each shape is then
    compiled for itself, some seconds, so the first shapes of a process get it and later ones share general kernels:
    a detector sees thousands. Symbolic sizes (torch.compile with dynamic shapes) always take the general ones. The
    channels are few different numbers, and constant in all cases: the layout of a program, and with it the order of
    its sums, depends on how many there are.
    """
    height, width = x.shape[2:]
    channels = 0 if isinstance(head_channels, torch.SymInt) else head_channels
    if channels == 0 or isinstance(height, torch.SymInt) or isinstance(width, torch.SymInt):
        return 0, 0, channels
    sizes = (height, width, channels)
    if sizes not in _static_shapes and len(_static_shapes) < _MAX_STATIC_SHAPES:
        _static_shapes.add(sizes)
    return sizes if sizes in _static_shapes else (0, 0, channels)


def _neighbors(
    height: int, width: int, kernel_size: int, stride: int, dilation: int, wide: bool
) -> tuple[int, int, int]:
    """Block height, block width and tap rows of a kernel whose neighboring outputs meet common inputs."""
    if kernel_size <= 3:  # 2x2 outputs meet 16 inputs, where each alone would load its 9
        block_y, block_x, tap_rows = 2, 2 if wide else 1, kernel_size
    else:  # unrolling 25 or 49 taps takes all registers; a row of 4 outputs shares nearly as many loads
        block_y, block_x, tap_rows = 1, 4 if wide else 1, 1
    step = dilation if stride == 1 else 1
    if stride >= kernel_size or not _worth_blocking(height, width, block_y, block_x, step):
        block_y, block_x = 1, 1
    return block_y, block_x, tap_rows


def _worth_blocking(height: int, width: int, block_y: int, block_x: int, step: int) -> bool:
    """Whether blocks of neighbors `step` apart cover the map without wasting half of the work."""
    rows = cdiv(height, step * block_y) * step * block_y
    columns = cdiv(width, step * block_x) * step * block_x
    return rows * columns < 2 * height * width


def _fit(tile: Tile, height: int, width: int) -> Tile:
    """The same tile with no more blocks than the map has, but at least one element a thread."""
    needed = cdiv(height, tile.block_y) * cdiv(width, tile.block_x)
    least = max(32 * tile.warps // tile.block_channels, 1)
    blocks = max(_power_of_two(needed, tile.blocks), min(least, tile.blocks))
    warps = max(min(tile.warps, blocks * tile.block_channels // 32), 1)
    return Tile(tile.block_y, tile.block_x, blocks, tile.block_channels, tile.tap_rows, warps, tile.phases)


def cdiv(numerator: int, denominator: int) -> int:
    """Division rounded up; unlike `triton.cdiv` also for symbolic sizes."""
    return (numerator + denominator - 1) // denominator


def _power_of_two(at_least: int, at_most: int) -> int:
    """The smallest power of two >= at_least, but no more than at_most, which is one itself."""
    block = 1
    while block < at_least and block < at_most:
        block *= 2
    return block
