"""The DDF operators on a CPU in C: `native.c`, compiled at its first use, called with the addresses of the tensors.

Where there is none (no compiler, Windows, `DDFNET_NATIVE=0`) `eager` computes the same in PyTorch: see `cpu_path`.
"""

import ctypes
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from ddfnet.ops.ddf.arguments import Arguments, Needed
from ddfnet.ops.native_call import TYPES, are_plain, load

_SOURCES = [Path(__file__).with_name(name) for name in ("native.c", "native_tiles.h")]


class _Call(ctypes.Structure):
    """`Call` in native.c."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("x", "channel", "spatial", "grad_y")),
        *((name, ctypes.c_void_p) for name in ("y", "grad_x", "grad_channel", "grad_spatial")),
        *((name, ctypes.c_int64) for name in ("batch", "channels", "height", "width", "rows", "columns")),
        *((name, ctypes.c_int64) for name in ("kernel", "stride", "dilation", "heads", "scale")),
        ("spatial_steps", ctypes.c_int64 * 4),
        *((name, ctypes.c_int64) for name in ("x_type", "channel_type", "spatial_type")),
        *((name, ctypes.c_int64) for name in ("channels_last", "multiply", "threads")),
    ]


def cpu_path(*, compiled: bool = False) -> str:
    """One sentence: which implementation of the DDF operators CPU tensors get in this process, and why.

    `compiled`: under torch.compile.
    """
    library = _library(torch.float32)
    if isinstance(library, str):
        how = "fused by torch.compile, " if compiled else ""
        return f"DDF operators on the CPU: in PyTorch, {how}several times slower than native code ({library})"
    return "DDF operators on the CPU: native code"


def is_usable(args: Arguments, *others: Tensor) -> bool:
    """Whether the native code can take these tensors: plain ones in memory, and nobody traces what is done to them."""
    return are_plain(*args[:3], *others) and exists(args.accumulator)


def exists(accumulator: torch.dtype) -> bool:
    """Whether there is native code that computes in this dtype."""
    return not isinstance(_library(accumulator), str)


def forward(args: Arguments) -> Tensor:
    """y (B, C, Ho * scale, Wo * scale) in the dtype and memory format of x."""
    y = args.empty_output()
    if y.numel() > 0:
        _run(args, y=y)
    return y


def backward(grad_y: Tensor, args: Arguments, needed: Needed) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, channel filter and spatial filter in their dtypes; an empty tensor for each one not needed."""
    if args.x.numel() == 0 or not any(needed):
        return args.zero_gradients(needed)
    formats = (args.memory_format, torch.contiguous_format, torch.contiguous_format)
    grad_x, grad_channel, grad_spatial = (
        torch.empty_like(tensor, memory_format=memory_format) if need and tensor is not None else None
        for tensor, memory_format, need in zip(args[:3], formats, needed, strict=True)
    )
    grad_y = grad_y.to(args.x.dtype).contiguous(memory_format=args.memory_format)
    _run(args, grad_y=grad_y, grad_x=grad_x, grad_channel=grad_channel, grad_spatial=grad_spatial)
    empty = args.x.new_empty
    return (
        empty(0) if grad_x is None else grad_x,
        empty(0) if grad_channel is None else grad_channel,
        empty(0) if grad_spatial is None else grad_spatial,
    )


def _run(args: Arguments, **tensors: Tensor | None) -> None:
    tensors["x"] = x = args.x.contiguous(memory_format=args.memory_format)
    tensors["channel"] = None if args.channel_filter is None else args.channel_filter.contiguous()
    tensors["spatial"] = spatial = args.spatial_filter  # in any strides
    call = _Call(**{name: tensor.data_ptr() for name, tensor in tensors.items() if tensor is not None})
    call.batch, call.channels, call.height, call.width = x.shape
    call.rows, call.columns = args.filter_size
    call.kernel, call.stride, call.dilation, call.multiply, call.scale = args[3:]
    call.heads, call.channels_last, call.threads = args.heads, args.channels_last, torch.get_num_threads()
    call.x_type = TYPES[x.dtype]
    if args.channel_filter is not None:
        call.channel_type = TYPES[args.channel_filter.dtype]
    if spatial is not None:
        call.spatial_type, call.spatial_steps = TYPES[spatial.dtype], spatial.stride()
    if _library(args.accumulator).ddf_run(ctypes.byref(call)) != 0:
        raise MemoryError(f"ddf: no memory to work on x of shape {tuple(x.shape)}")


@cache
def _library(accumulator: torch.dtype) -> ctypes.CDLL | str:
    """The library that computes in this dtype, or why there is none."""
    loaded = load(_SOURCES, accumulator)
    if not isinstance(loaded, str):
        loaded.ddf_run.argtypes = [ctypes.POINTER(_Call)]
    return loaded
