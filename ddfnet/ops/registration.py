"""How the operators are registered with `torch.library`, and where they run on Triton."""

import importlib.util
import os
from collections.abc import Callable

import torch
from torch import Tensor

_HAS_TRITON = importlib.util.find_spec("triton") is not None  # absent on macOS and Windows
# Triton's interpreter runs the kernels on CPU tensors. It reads this variable when the kernels are imported.
_INTERPRETED = _HAS_TRITON and os.environ.get("TRITON_INTERPRET") == "1"


def runs_on_triton(x: Tensor) -> bool:
    """Whether operators on `x` launch Triton kernels: on CUDA, and on the CPU in Triton's interpreter."""
    return _HAS_TRITON and (x.device.type == "cuda" or (_INTERPRETED and x.device.type == "cpu"))


def define_op(name: str, implementation: Callable) -> torch.library.CustomOpDef:
    """Register `implementation` as the op `name`, which mutates none of its arguments.

    As a `triton_op`, because torch.compile looks inside those: the CPU formulation is fused by Inductor, the Triton
    launches are seen and not hidden behind an opaque call. The interpreter touches the data of its arguments, which
    tracing has not got: there the ops have to be opaque.
    """
    define = torch.library.custom_op if _INTERPRETED else torch.library.triton_op
    return define(name, implementation, mutates_args=())
