"""Shared by the operators in native code: which tensors it can take, and its libraries, one for each dtype of sums."""

import contextlib
import ctypes
import logging
import multiprocessing
import os
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from ddfnet.ops.native_build import BuildError, load_library

_logger = logging.getLogger("ddfnet")
TYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}  # `Type` in native_types.h
_OPENMP = re.compile(r"lib(gomp|iomp5|omp)[-.].*so.*")
# A forked process has none of PyTorch's threads, and a call would wait for them. Libraries that are loaded at the fork
# see to it themselves.
_forked = multiprocessing.parent_process() is not None
HEADERS = [Path(__file__).with_name(name) for name in ("native_types.h", "native_threads.h")]


def load(sources: Sequence[Path], accumulator: torch.dtype) -> ctypes.CDLL | str:
    """The library that computes in this dtype, or why there is none."""
    if os.environ.get("DDFNET_NATIVE") == "0":
        return "DDFNET_NATIVE=0"
    try:
        library = load_library([*sources, *HEADERS], "A=double" if accumulator == torch.float64 else "A=float")
        if not _forked and (parallel := _parallel()) is not None:
            library.use_parallel(parallel)
        return library
    except BuildError as error:
        _warn(str(error))
        return str(error)


def _note_fork() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)


@cache
def _parallel() -> ctypes.c_void_p | None:
    """The entry to the threads that PyTorch computes with: `GOMP_parallel`, which GNU's, LLVM's and Intel's OpenMP
    have. None where there is no such thing: the native code then starts threads of its own."""
    try:
        names = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "omp" in line}
    except OSError:
        return None
    loaded = {name for name in names if _OPENMP.fullmatch(os.path.basename(name))}
    own = {name for name in loaded if name.startswith(os.path.dirname(torch.__file__))}
    found = own or loaded
    if len(found) != 1:  # of several, which one PyTorch uses is not to be told
        return None
    with contextlib.suppress(OSError, AttributeError):
        return ctypes.cast(ctypes.CDLL(found.pop()).GOMP_parallel, ctypes.c_void_p)
    return None


@cache  # once, for all operators and dtypes
def _warn(reason: str) -> None:
    _logger.warning("no native code for the DDF operators, PyTorch computes them: %s", reason)


def are_plain(*tensors: Tensor | None) -> bool:
    """Whether these are tensors in memory, as they are there, and nobody traces what is done to them.

    PyTorch has tensors of which the memory holds the negative (`is_neg`), or that have none at all since they are zero.
    """
    given = [tensor for tensor in tensors if tensor is not None]
    return all(
        type(t) in (Tensor, torch.nn.Parameter)
        and t.is_cpu
        and t.layout == torch.strided
        and t.dtype in TYPES
        and not t.is_neg()
        and not t._is_zerotensor()
        for t in given
    ) and not (torch.compiler.is_compiling() or torch.jit.is_tracing())
