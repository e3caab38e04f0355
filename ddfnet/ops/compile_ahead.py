"""Compiles all Triton kernels of a network in parallel processes, before its first step would do so one by one.

A network has some thirty kernels for an input size, of which each takes seconds. Which ones a call launches is recorded
by running it on fake tensors; other processes then compile them into Triton's cache on disk, where the launches find
them. With `torch.compile` this is of no use: Inductor compiles its own copies, in parallel as well.
"""

import contextlib
import json
import logging
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.hooks import RemovableHandle

from ddfnet.ops.common import OPS, recorded_launches
from ddfnet.ops.compile_process import one_process_at_a_time, run_group, worker_count
from ddfnet.utils.text import plural

_TIMEOUT = 900  # seconds, with waiting: the other processes of a run may be in a collective, which ends after 1800
logger = logging.getLogger("ddfnet")


def compile_ahead(model: nn.Module, *, log: Callable[[str], None] = logger.info) -> RemovableHandle:
    """Makes the first call of `model` on CUDA compile the kernels that it and its backward pass need, in parallel.

        model = ddfnet.create_model("ddf_mul_resnet50").cuda().to(memory_format=torch.channels_last)
        ddfnet.compile_ahead(model)

    There is nothing to say about sizes or dtypes: they are those of the call. The first call in training mode and the
    first one in evaluation mode do so, later ones cost nothing. Kernels that are in Triton's cache (`TRITON_CACHE_DIR`)
    already are left alone. Of several processes that share a cache one compiles and the others wait for it. Numbers do
    not change, nor do PyTorch's and Python's random generators. Whatever goes wrong is one warning, and the kernels are
    then compiled by the launches as ever.

    Args:
        model: any module, compiled ones (`torch.compile`) excepted: the call is made once on fake tensors, so that
            what its `forward` does besides computing (counting its calls, say) happens once more.
        log: gets one line about what was compiled, if anything was, and one when it begins to wait for another process.

    Returns:
        A handle to take this back (`remove()`), which `with` does at the end of its block.
    """
    seen: set[bool] = set()

    def before_call(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if module.training not in seen and not torch.compiler.is_compiling():
            seen.add(module.training)  # first: the call on fake tensors comes here too
            if (device := _device(args, kwargs)).type == "cuda":
                _compile(module, args, kwargs, device, log)
        if len(seen) == 2:
            handle.remove()

    handle = model.register_forward_pre_hook(before_call, with_kwargs=True)
    return handle


def _device(args: tuple, kwargs: dict[str, Any]) -> torch.device:
    return next((t.device for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)), torch.device("cpu"))


def _compile(
    model: nn.Module, args: tuple, kwargs: dict[str, Any], device: torch.device, log: Callable[[str], None]
) -> None:
    workers = worker_count()
    if workers < 2:
        return
    began = time.perf_counter()
    try:
        jobs = record_jobs(model, args, kwargs, device)
        with torch.cuda.device(device):
            count = compile_jobs(jobs, workers, log)
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        logger.warning(f"kernels are compiled in the first step, not before it: {type(error).__name__}: {reason}")
        return
    if count:
        mode = "training" if model.training else "evaluation"
        seconds = time.perf_counter() - began
        used = plural(min(workers, count), "process", "processes")
        log(f"compiled {plural(count, 'Triton kernel')} for {mode}: {seconds:.0f} s, {used}")


def record_jobs(model: nn.Module, args: tuple, kwargs: dict[str, Any], device: torch.device) -> "list[Any]":
    """The kernels (`compile_worker.Job`) of a call of `model` and, where gradients are on, of its backward pass, if all
    tensors were on `device`."""
    from ddfnet.ops.compile_worker import Job  # imports Triton, which not every system has

    jobs: dict[Job, None] = {}

    def record(kernel: Any, arguments: tuple, options: dict[str, Any]) -> None:
        values = tuple(str(v.dtype).removeprefix("torch.") if isinstance(v, Tensor) else v for v in arguments)
        jobs[Job(kernel.fn.__module__, kernel.fn.__name__, values, tuple(options.items()))] = None

    def shadow(tensor: Tensor) -> Tensor:
        strides, requires_grad = tensor.stride(), grad and tensor.requires_grad
        return torch.empty_strided(
            tensor.shape, strides, dtype=tensor.dtype, device=device, requires_grad=requires_grad
        )

    grad = torch.is_grad_enabled()
    with (
        torch.inference_mode(False),
        torch.set_grad_enabled(grad),
        _same_random_numbers(),
        _local_batch_norm(),
        recorded_launches(record),
        FakeTensorMode(allow_non_fake_inputs=True),
        _Bodies(grad),
    ):
        state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        state, args, kwargs = tree_map_only(Tensor, shadow, (state, args, kwargs))
        functional_call(model, state, args, kwargs)
    return list(jobs)


class _Bodies(TorchDispatchMode):
    """Runs the bodies of this package's ops, which launch kernels, where fake tensors would only ask for shapes; and,
    if asked to, also that of each op's gradient with respect to all of its arguments."""

    def __init__(self, grad: bool) -> None:
        super().__init__()
        self.grad = grad

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        op = OPS.get(func.name())
        if op is None:
            return func(*args, **(kwargs or {}))
        with self:
            output = op._init_fn(*args)
            if self.grad:
                self.grad = False
                context = _Context(args)
                op._setup_context_fn(context, args, output)
                op._backward_fn(context, *(output if isinstance(output, tuple) else (output,)))
                self.grad = True
        return output


class _Context:
    """What autograd gives an op to keep things for its gradient: autograd itself does not run without a GPU."""

    def __init__(self, args: tuple) -> None:
        self.needs_input_grad = [isinstance(value, Tensor) for value in args]
        self.saved_tensors: tuple = ()

    def save_for_backward(self, *tensors: Tensor | None) -> None:
        self.saved_tensors = tensors

    def mark_non_differentiable(self, *_: Tensor) -> None: ...

    def set_materialize_grads(self, _: bool) -> None: ...


@contextlib.contextmanager
def _same_random_numbers() -> Iterator[None]:
    """After it, random generators are where they were; on a GPU, fake tensors draw nothing."""
    state = random.getstate()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(state)


@contextlib.contextmanager
def _local_batch_norm() -> Iterator[None]:
    """Within, synchronized batch norms do without the other processes."""
    forward = nn.SyncBatchNorm.forward
    nn.SyncBatchNorm.forward = nn.BatchNorm2d.forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.SyncBatchNorm.forward = forward  # type: ignore[method-assign]


def compile_jobs(jobs: "list[Any]", workers: int, log: Callable[[str], None]) -> int:
    """Compiles those that the cache lacks, unless it is a single one; how many.

    Raises:
        RuntimeError: a kernel could not be compiled, or it took too long. What was compiled is in the cache.
    """
    import triton

    if triton.knobs.compilation.always_compile or len(missing(jobs)) < 2:
        return 0
    deadline = time.monotonic() + _TIMEOUT
    with one_process_at_a_time(Path(triton.knobs.cache.dir) / "ddfnet.lock", deadline, log):
        absent = missing(jobs)  # another process may have compiled them meanwhile
        if not absent:
            return 0
        target = triton.runtime.driver.active.get_current_target()
        request = {"target": [target.backend, target.arch, target.warp_size], "workers": min(workers, len(absent))}
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)  # as of this process
        try:
            code, errors = run_group(
                [sys.executable, "-m", "ddfnet.ops.compile_worker"],
                json.dumps({**request, "jobs": absent[::-1]}),  # those of the backward pass take longest
                {**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""},
                deadline - time.monotonic(),
            )
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"not done after {_TIMEOUT} s") from None
    if code:
        raise RuntimeError(errors.strip()[-300:] or f"the compiling process ended with {code}")
    return len(absent)


class _Missing(Exception):
    """Of the cache's key that is its argument."""


def missing(jobs: "list[Any]") -> "list[Any]":
    """Those of which the cache holds no code, each code once. The others are loaded, for the current device."""
    from triton import knobs
    from triton.runtime.cache import FileCacheManager

    class Probe(knobs.cache.manager_class or FileCacheManager):  # type: ignore[misc]
        def __init__(self, key: str, *rest: Any, **options: Any) -> None:
            super().__init__(key, *rest, **options)
            self.probed = key

        def get_group(self, filename: str) -> Any:
            group = super().get_group(filename)
            if not group:  # Triton would compile next
                raise _Missing(self.probed)
            return group

    absent: dict[str, Any] = {}
    with knobs.cache.scope():
        knobs.cache.manager_class = Probe
        for job in jobs:
            try:
                job.warm_up()
            except _Missing as key:
                absent.setdefault(str(key), job)
    return list(absent.values())
