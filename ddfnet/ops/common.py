"""Shared by all operators: registration with `torch.library`, launches of Triton kernels, dtypes, memory formats."""

import contextlib
import functools
import importlib.util
import os
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._guards import TracingContext
from torch._subclasses import FakeTensor
from torch.library import wrap_triton

T = TypeVar("T", bound=Tensor | None)
_PLAIN_TYPES = (Tensor, torch.nn.Parameter)
DECOMPOSITIONS: dict[Any, Callable] = {}  # each operator as a pure expression, for `run_decompositions`
OPS: dict[str, Any] = {}  # all that are registered, by name

_HAS_TRITON = importlib.util.find_spec("triton") is not None  # absent on macOS and Windows
# Triton's interpreter runs the kernels on CPU tensors. It reads this variable when the kernels are imported.
_INTERPRETED = _HAS_TRITON and os.environ.get("TRITON_INTERPRET") == "1"
_record_launch: Callable[[Any, tuple, dict[str, Any]], None] | None = None


def runs_on_triton(x: Tensor) -> bool:
    """Whether operators on `x` launch Triton kernels: on CUDA, and on the CPU in Triton's interpreter."""
    return _HAS_TRITON and (x.device.type == "cuda" or (_INTERPRETED and x.device.type == "cpu"))


def define_op(name: str, implementation: Callable) -> Any:
    """Register `implementation` as the op `name`, which mutates none of its arguments.

    As a `triton_op`, because torch.compile looks inside those: the CPU formulation is fused by Inductor, the Triton
    launches are seen and not hidden behind an opaque call. The interpreter touches the data of its arguments, which
    tracing has not got: there the ops have to be opaque.
    """
    define = torch.library.custom_op if _INTERPRETED else torch.library.triton_op
    OPS[name] = define(name, implementation, mutates_args=())
    return OPS[name]


def define_native_op(
    name: str, implementation: Callable, fake: Callable, has_native: Callable[[torch.dtype], bool]
) -> Any:
    """`define_op` for an op that has native code on the CPU, with its fake implementation.

    Native code beats what Inductor makes of the PyTorch formulation, in each call and by far in compilation. So where
    there is any, torch.compile gets an opaque call, of `name` + `_opaque`. Exporters, whose programs have to run
    without this package, look inside the op as ever.

    Args:
        has_native: whether there is native code that takes sums in a dtype.
    """
    opaque = torch.library.custom_op(f"{name}_opaque", implementation, mutates_args=())
    opaque.register_fake(fake)

    @functools.wraps(implementation)
    def choose(first: Tensor, *others: Any) -> Any:
        # torch 2.11 does not say that it compiles while it looks inside an op.
        compiling = torch.compiler.is_compiling() or TracingContext.try_get() is not None
        compiled = compiling and not torch.compiler.is_exporting()
        if compiled and first.device.type == "cpu" and has_native(accumulator_dtype(first)):
            return opaque(first, *others)
        return implementation(first, *others)

    op = define_op(name, choose)
    op.register_fake(fake)
    return op


def launch(kernel: Any, grid: tuple[int], *arguments: Any, num_warps: int, num_stages: int, **constants: Any) -> None:
    """Launch `kernel` on the device of its first argument, or record the launch where torch.compile traces it."""
    if _record_launch is not None and isinstance(arguments[0], FakeTensor):
        _record_launch(kernel, arguments, {**constants, "num_warps": num_warps, "num_stages": num_stages})
        return
    device = arguments[0].device
    if _INTERPRETED and device.type == "cpu":  # which some versions of torch cannot wrap
        kernel[grid](*arguments, **constants)
        return
    # Triton launches on the current device. A trace is no launch, and whoever runs it selects the device.
    current = torch.compiler.is_compiling() or torch.cuda.current_device() == device.index
    # `wrap_triton` is for those who trace; it makes a launch of its own kind, which takes longer
    start = (kernel if is_plain() else wrap_triton(kernel))[grid]
    if current:
        start(*arguments, **constants, num_warps=num_warps, num_stages=num_stages)
    else:
        with torch.cuda.device(device):
            start(*arguments, **constants, num_warps=num_warps, num_stages=num_stages)


@contextlib.contextmanager
def recorded_launches(record: Callable[[Any, tuple, dict[str, Any]], None]) -> Iterator[None]:
    """Within, `record` gets kernel, arguments and options of each launch on fake tensors, which have no data."""
    global _record_launch
    _record_launch, before = record, _record_launch
    try:
        yield
    finally:
        _record_launch = before


def is_plain(*tensors: Tensor | None) -> bool:
    """Whether a call needs nothing of the dispatcher: no trace, no mode, no transform, no profiler, no subclass.

    Its way through Python costs more than the launches, and a network on a fast GPU waits for it. Where nobody looks at
    the registered op, an `autograd.Function` may do the same.
    """
    return (
        not torch.compiler.is_compiling()
        and not torch.autograd.profiler._is_profiler_enabled
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._len_torch_function_stack() == 0
        and torch._C._functorch.peek_interpreter_stack() is None
        and torch._C._get_tracing_state() is None
        and all(tensor is None or _is_ordinary(tensor) for tensor in tensors)
    )


def _is_ordinary(tensor: Tensor) -> bool:
    """Whether its memory holds its values: not a subclass, not on the meta device, not negated or zero by a flag, and
    not one of a batch that `is_grads_batched` and the vectorized Jacobians hide behind a plain type."""
    hidden = tensor.is_meta or tensor.is_neg() or tensor._is_zerotensor()
    return type(tensor) in _PLAIN_TYPES and not (hidden or torch._C._functorch.is_legacy_batchedtensor(tensor))


def empty(like: Tensor, size: tuple[int, ...] | torch.Size, memory_format: torch.memory_format) -> Tensor:
    """Not written yet, (B, C, H, W), with the dtype and device of `like`.

    Inductor ignores the format of `torch.empty`, and first fills such an output with NaN; not so one with strides. A
    permuted tensor would be a view, which autograd lets nobody modify in place.
    """
    if memory_format == torch.channels_last:
        _, channels, height, width = size
        return like.new_empty_strided(size, (channels * height * width, 1, channels * width, channels))
    return like.new_empty(size)


def cdiv(numerator: int, denominator: int) -> int:
    """Division rounded up; unlike `triton.cdiv` also for symbolic sizes."""
    return (numerator + denominator - 1) // denominator


def accumulator_dtype(x: Tensor) -> torch.dtype:
    """float64 for float64 inputs, float32 for everything else."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def std_mean(taps: Tensor) -> tuple[Tensor, Tensor]:
    """`torch.std_mean` over dimension 2, which stays with size 1, without its warning of an empty batch."""
    if any(isinstance(size, int) and size == 0 for size in taps.shape):  # a symbolic one is not asked
        shape = (*taps.shape[:2], 1, *taps.shape[3:])
        return taps.new_zeros(shape), taps.new_zeros(shape)
    return torch.std_mean(taps, dim=2, keepdim=True)


def memory_format_of(x: Tensor) -> torch.memory_format:
    """channels_last for a tensor that is channels_last only; contiguous for everything else.

    A tensor with one channel or a 1x1 map is both at once and counts as contiguous: the output then has the same
    channel count or map size, so it is both as well. Other strides are copied to contiguous.
    """
    if not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return torch.contiguous_format


def output_size(x: Tensor, stride: int) -> tuple[int, int]:
    """(Ho, Wo) = (ceil(H/stride), ceil(W/stride)), as of the padded convolution of the same stride."""
    return (x.shape[2] - 1) // stride + 1, (x.shape[3] - 1) // stride + 1


def autocast_off(x: Tensor) -> contextlib.AbstractContextManager:
    """For what has chosen its dtypes itself."""
    if x.is_meta or not torch.is_autocast_enabled(x.device.type):
        return contextlib.nullcontext()
    return _disabled_autocast(x.device.type)


@contextlib.contextmanager
def _disabled_autocast(device_type: str) -> Iterator[None]:
    """As `torch.autocast(device_type, enabled=False)` where it is enabled, in a fraction of the host's time."""
    torch.set_autocast_enabled(device_type, False)
    try:
        yield
    finally:
        torch.set_autocast_enabled(device_type, True)


def autocast(tensor: T) -> T:
    """`tensor` in the dtype of the autocast region it is in; float64 is left alone."""
    if tensor is None or tensor.dtype == torch.float64 or tensor.is_meta:  # autocast knows no meta device
        return tensor
    if not torch.is_autocast_enabled(tensor.device.type):
        return tensor
    return tensor.to(torch.get_autocast_dtype(tensor.device.type))  # type: ignore[return-value]
