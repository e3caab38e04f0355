"""torch.compile finds out once what a kernel writes, and not at every launch that it traces.

For each launch PyTorch has Triton translate the kernel, and walks over the result to see which arguments are written:
in one process, in each of several passes. A DDF-ResNet50 traces 112 launches of 32 different kernels.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch._higher_order_ops.triton_kernel_wrap as tracing
from torch import Tensor

# Constants of kernels in whose place they may take arguments: of sizes, it does not depend what is written.
_SIZES = {"HEIGHT", "WIDTH", "HEAD_CHANNELS"}


def remember_written_arguments() -> None:
    """Puts a memory before PyTorch's analysis, for the kernels of this package; others are analyzed as ever."""
    for name in ("identify_accessed_tensors", "identify_mutated_tensors"):  # of 2.14, and of 2.11
        if (analyze := getattr(tracing, name, None)) and not hasattr(analyze, "__wrapped__"):
            setattr(tracing, name, _remembered(analyze))


def _remembered(analyze: Callable[..., Any]) -> Callable[..., Any]:
    known: dict[Any, Any] = {}

    @functools.wraps(analyze)
    def remembered(kernel: Any, kwargs: dict[str, Any], *others: Any) -> Any:
        function = kernel
        while hasattr(function, "fn"):  # in an autotuner of its own for each launch, which holds the number of warps
            function = function.fn
        own = (getattr(function, "__module__", None) or "").startswith("ddfnet.kernels.")
        if not own or any(others):  # others: descriptors, which no kernel here takes
            return analyze(kernel, kwargs, *others)
        try:
            key = function, tuple((name, _kind(name, value)) for name, value in sorted(kwargs.items()))
            if key not in known:
                known[key] = analyze(kernel, kwargs, *others)
            return known[key]
        except TypeError:  # something has no hash
            return analyze(kernel, kwargs, *others)

    return remembered


def _kind(name: str, value: Any) -> Any:
    """What decides of an argument: of a tensor its dtype, of numbers known only to a launch nothing, else the value."""
    if isinstance(value, Tensor):
        return value.dtype
    if hasattr(value, "get_dtype"):  # Inductor's
        return value.get_dtype()
    if name in _SIZES or (name.islower() and not isinstance(value, bool)):
        return None
    return type(value), value
