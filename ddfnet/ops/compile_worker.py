"""Compiles kernels into Triton's cache on disk, in a process of its own that needs no GPU and touches none.

`ddfnet/ops/compile_ahead.py` starts it, with a request on its standard input. Forking is safe here: CUDA is never
initialized, and nothing but imports has run before.
"""

import contextlib
import importlib
import json
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.cache import triton_key


class Job(NamedTuple):
    """A kernel, and what a launch would give it: dtypes in place of tensors, other values as they are."""

    module: str
    name: str
    arguments: tuple[Any, ...]  # the name of a dtype, or a number
    options: tuple[tuple[str, Any], ...]  # constants, warps, stages

    def warm_up(self) -> Any:
        """Compiles, or loads from the cache on disk, exactly what the launch is going to ask for."""
        kernel = getattr(importlib.import_module(self.module), self.name)
        arguments = (getattr(torch, value) if isinstance(value, str) else value for value in self.arguments)
        return kernel.warmup(*arguments, grid=(1,), **dict(self.options))


def pretend_device(target: GPUTarget) -> None:
    """Makes Triton compile for `target` without asking a driver."""
    stub = {"get_current_target": lambda: target, "get_current_device": lambda: 0, "get_current_stream": lambda _: 0}
    triton.runtime.driver.set_active(SimpleNamespace(**stub))


def compile_job(job: Job) -> str:
    """Leaves a kernel in the cache; "", or why it could not be compiled."""
    try:
        compiled = job.warm_up()
    except Exception as error:
        return f"{job.name}: {type(error).__name__}: {error}"
    with contextlib.suppress(Exception):  # up to Triton 3.6 a launch needs a piece of C too; later this fails
        from triton.backends.nvidia.driver import CudaLauncher

        CudaLauncher(compiled.src, compiled.metadata)
    return ""


def main() -> int:
    """Reads {"target": [...], "workers": n, "jobs": [...]}; prints failures, and returns the exit code."""
    request = json.load(sys.stdin)
    jobs = [
        Job(module, name, tuple(arguments), tuple(map(tuple, options)))
        for module, name, arguments, options in request["jobs"]
    ]
    pretend_device(GPUTarget(*request["target"]))
    for job in jobs:
        importlib.import_module(job.module)
    triton_key()  # a hash of all of Triton, once and not in each process
    try:  # not multiprocessing.Pool, which waits forever for the job of a process that was killed
        with ProcessPoolExecutor(request["workers"], multiprocessing.get_context("fork")) as pool:
            failures = [failure for failure in pool.map(compile_job, jobs) if failure]
    except BrokenProcessPool:
        failures = ["a compiling process was killed (out of memory?); what was compiled by then is kept"]
    print("\n".join(failures), file=sys.stderr)
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
