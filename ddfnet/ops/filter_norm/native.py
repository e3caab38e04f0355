"""FilterNorm on a CPU in C: `native.c`, compiled at its first use, called with the addresses of the tensors."""

import ctypes
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from ddfnet.ops.common import accumulator_dtype, memory_format_of
from ddfnet.ops.native_call import TYPES, are_plain, load


class _Call(ctypes.Structure):
    """`Call` in native.c."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("logits", "alpha", "grad", "filters", "grad_logits", "grad_alpha")),
        *((name, ctypes.c_int64) for name in ("batch", "groups", "taps", "pixels")),
        *((name, ctypes.c_int64) for name in ("logits_type", "alpha_type", "filters_type", "channels_last", "threads")),
        ("constant", ctypes.c_double),
    ]


def is_usable(logits: Tensor, alpha: Tensor | None, *others: Tensor) -> bool:
    """Whether the native code can take these tensors."""
    return (
        are_plain(logits, alpha, *others)
        and logits.numel() > 0
        and (alpha is None or logits.shape[2:] == (1, 1))
        and exists(accumulator_dtype(logits))
    )


def exists(accumulator: torch.dtype) -> bool:
    """Whether there is native code that computes in this dtype."""
    return not isinstance(_library(accumulator), str)


def forward(logits: Tensor, alpha: Tensor | None, constant: float, groups: int, dtype: torch.dtype) -> Tensor:
    """The normalized filters, of shape and memory format of the logits, in a dtype."""
    filters = torch.empty_like(logits, dtype=dtype, memory_format=memory_format_of(logits))
    _run(logits, alpha, constant, groups, dtype, filters=filters)
    return filters


def backward(
    grad: Tensor, logits: Tensor, alpha: Tensor | None, constant: float, groups: int
) -> tuple[Tensor, Tensor | None]:
    """Gradients of logits and alpha, in their dtypes. `grad`: of the filters."""
    memory_format = memory_format_of(logits)
    grad = grad.contiguous(memory_format=memory_format)
    grad_logits = torch.empty_like(logits, memory_format=memory_format)
    grad_alpha = None if alpha is None else torch.empty_like(alpha, memory_format=torch.contiguous_format)
    _run(
        logits, alpha, constant, groups, grad.dtype, grad=grad, grad_logits=grad_logits, grad_alpha=grad_alpha
    )  # fmt: skip
    return grad_logits, grad_alpha


def _run(
    logits: Tensor, alpha: Tensor | None, constant: float, groups: int, dtype: torch.dtype, **tensors: Tensor | None
) -> None:
    memory_format = memory_format_of(logits)
    tensors["logits"] = logits.contiguous(memory_format=memory_format)
    tensors["alpha"] = None if alpha is None else alpha.contiguous()
    call = _Call(**{name: tensor.data_ptr() for name, tensor in tensors.items() if tensor is not None})
    batch, channels, height, width = logits.shape
    call.batch, call.groups, call.taps, call.pixels = batch, groups, channels // groups, height * width
    call.logits_type, call.filters_type, call.constant = TYPES[logits.dtype], TYPES[dtype], constant
    call.channels_last, call.threads = memory_format == torch.channels_last, torch.get_num_threads()
    if alpha is not None:
        call.alpha_type = TYPES[alpha.dtype]
    if _library(accumulator_dtype(logits)).filter_norm_run(ctypes.byref(call)) != 0:
        raise MemoryError(f"FilterNorm: no memory to work on logits of shape {tuple(logits.shape)}")


@cache
def _library(accumulator: torch.dtype) -> ctypes.CDLL | str:
    """The library that computes in this dtype, or why there is none."""
    loaded = load([Path(__file__).with_name("native.c")], accumulator)
    if not isinstance(loaded, str):
        loaded.filter_norm_run.argtypes = [ctypes.POINTER(_Call)]
    return loaded
