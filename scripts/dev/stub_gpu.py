"""A GPU that runs nothing, for the host's part of a launch: operators take CUDA's way with tensors on the CPU.

Triton compiles for the given architecture, finds its code in the cache and launches it, all for real, into a driver
that does nothing. Results mean nothing.
"""

import sys
from collections import Counter
from types import SimpleNamespace
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget


def install(arch: int = 90) -> Counter:
    """From now on and for good in this process; counts launches by kernel in what it returns."""
    import ddfnet  # noqa: F401  its operators

    launches: Counter = Counter()

    class Launcher:
        def __init__(self, src: Any, metadata: Any) -> None:
            self.name = src.fn.__name__

        def __call__(self, *_: Any) -> None:
            launches[self.name] += 1

    properties = {"max_shared_mem": 232448, "multiprocessor_count": 132}
    utils = {
        "load_binary": lambda name, kernel, shared, device: (1, 1, 64, 0, 1024),
        "get_device_properties": lambda device: properties,
    }
    driver = {
        "get_current_target": lambda: GPUTarget("cuda", arch, 32),
        "get_current_device": lambda: 0,
        "get_current_stream": lambda device: 0,
        "launcher_cls": Launcher,
        "utils": SimpleNamespace(**utils),
    }
    triton.runtime.driver.set_active(SimpleNamespace(**driver))
    torch.cuda.current_device = lambda: None  # the index of the CPU: the current device, then

    def on_cpu_too(x: Tensor) -> bool:
        return x.device.type in ("cpu", "cuda")

    for name, module in list(sys.modules.items()):
        if name.startswith("ddfnet.ops") and hasattr(module, "runs_on_triton"):
            module.runs_on_triton = on_cpu_too  # type: ignore[attr-defined]
    return launches
