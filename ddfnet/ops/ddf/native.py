"""The DDF operators on a CPU in C: `native.c`, compiled at first use, called with the addresses of the tensors.

Without it (no compiler, Windows, `DDFNET_NATIVE=0`) `eager` computes the same in PyTorch; `cpu_path` says which.
"""

import ctypes
import os
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from ddfnet.ops.ddf.arguments import Arguments, Needed
from ddfnet.ops.native_build import BuildError, load

_TYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
_C_NAMES = {torch.float32: "float", torch.float64: "double"}
_POINTERS = ("x", "channel", "spatial", "grad_y", "y", "grad_x", "grad_channel", "grad_spatial")
_NUMBERS = (
    *("batch", "channels", "height", "width", "rows", "columns"),
    *("kernel", "stride", "dilation", "heads", "scale"),
    *("spatial_step_batch", "spatial_step_tap", "spatial_step_row", "spatial_step_column"),
    *("x_type", "channel_type", "spatial_type", "channels_last", "multiply", "threads"),
)


class _Call(ctypes.Structure):
    """`Call` in native.c."""

    _fields_ = [(name, ctypes.c_void_p) for name in _POINTERS] + [(name, ctypes.c_int64) for name in _NUMBERS]


def cpu_path() -> str:
    """One sentence: which implementation of the DDF operators CPU tensors get in this process, and why."""
    reason = _unavailable(torch.float32)
    if reason is None:
        return "DDF operators on the CPU: native code"
    return f"DDF operators on the CPU: PyTorch, several times slower than native code ({reason})"


def usable(args: Arguments, *others: Tensor) -> bool:
    """Whether the native code can take these tensors: real memory on the CPU, and nobody tracing what is done to it."""
    tensors = [tensor for tensor in (*args[:3], *others) if tensor is not None]
    return (
        all(type(t) in (Tensor, torch.nn.Parameter) and t.is_cpu and t.layout is torch.strided for t in tensors)
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and _unavailable(args.accumulator) is None
    )


def forward(args: Arguments) -> Tensor:
    """y (B, C, Ho * scale, Wo * scale) in the dtype and memory format of x."""
    y = args.empty_output()
    _run(args, y=y)
    return y


def backward(grad_y: Tensor, args: Arguments, needed: Needed) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, channel filter and spatial filter in their dtypes; an empty tensor for each one not needed."""
    if args.x.numel() == 0:
        return args.zero_gradients(needed)
    formats = (args.memory_format, torch.contiguous_format, torch.contiguous_format)
    grads = [
        torch.empty_like(tensor, memory_format=memory_format) if need else args.x.new_empty(0)
        for tensor, memory_format, need in zip(args[:3], formats, needed, strict=True)
    ]
    wanted = (grad if need else None for grad, need in zip(grads, needed, strict=True))
    _run(args, **dict(zip(_POINTERS[5:], wanted, strict=True)), grad_y=grad_y)
    return tuple(grads)


def _run(args: Arguments, **tensors: Tensor | None) -> None:
    if args.x.numel() == 0:
        return
    x = args.x.contiguous(memory_format=args.memory_format)
    channel = None if args.channel_filter is None else args.channel_filter.contiguous()
    tensors |= {"x": x, "channel": channel, "spatial": args.spatial_filter}
    grad_y = tensors.get("grad_y")
    if grad_y is not None:
        tensors["grad_y"] = grad_y.to(x.dtype).contiguous(memory_format=args.memory_format)
    call = _Call(
        **{name: tensor.data_ptr() for name, tensor in tensors.items() if tensor is not None},
        **dict(zip(_NUMBERS[:6], (*x.shape, *args.filter_size), strict=True)),
        kernel=args.kernel_size,
        stride=args.stride,
        dilation=args.dilation,
        heads=args.heads,
        scale=args.scale,
        x_type=_TYPES[x.dtype],
        channels_last=args.channels_last,
        multiply=args.multiply,
        threads=torch.get_num_threads(),
    )
    if channel is not None:
        call.channel_type = _TYPES[channel.dtype]
    if args.spatial_filter is not None:
        call.spatial_type = _TYPES[args.spatial_filter.dtype]
        for name, step in zip(_NUMBERS[11:15], args.spatial_filter.stride(), strict=True):
            setattr(call, name, step)
    if _library(args.accumulator).ddf_run(ctypes.byref(call)) != 0:
        raise MemoryError(f"ddf on the CPU: no memory for the sums of {tuple(x.shape)}")


@cache
def _build(dtype: torch.dtype) -> ctypes.CDLL | str:
    """The library that computes in `dtype`, or why there is none."""
    if os.environ.get("DDFNET_NATIVE", "1") == "0":
        return "DDFNET_NATIVE=0"
    try:
        library = load(Path(__file__).with_suffix(".c"), f"A={_C_NAMES[dtype]}")
    except BuildError as error:
        return str(error)
    library.ddf_run.argtypes = [ctypes.POINTER(_Call)]
    library.ddf_run.restype = ctypes.c_int
    return library


def _unavailable(dtype: torch.dtype) -> str | None:
    built = _build(dtype)
    return built if isinstance(built, str) else None


def _library(dtype: torch.dtype) -> ctypes.CDLL:
    return _build(dtype)
