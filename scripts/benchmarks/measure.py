"""Time of calls and steps, peak memory, copy rate, and the conditions to measure under."""

import contextlib
import ctypes
import itertools
import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler writes lines of its own otherwise; read by the import

import torch
from torch import Tensor

MIB = 2**20
_FLUSH_BYTES = 256 * MIB  # more than the L2 cache of any GPU: writing so much evicts all else
_FLUSH_SECONDS = 2e-4  # at most, on a GPU of 1.3 TB/s or more
_CLOCK = 2e9  # cycles a second; a GPU with a slower clock waits longer, which does no harm


def first_call(call: Callable[[], Any], device: torch.device) -> tuple[Any, float]:
    """Result of a call, and the milliseconds until the device was done with it."""
    start = time.perf_counter()
    result = call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return result, 1e3 * (time.perf_counter() - start)


def time_call(call: Callable[[], Any], device: torch.device, budget: float) -> dict[str, Any]:
    """`summary` of repeated calls after warming up, in about `budget` seconds, three calls at least.

    On CUDA it is what the device takes, with a cold L2 cache; `host_ms` is how long the host takes to launch the call.
    """
    if device.type == "cuda":
        return _time_cuda(call, budget)
    start = time.perf_counter()
    call()
    while time.perf_counter() - start < budget / 5:  # caches, page tables and clocks settle
        call()
    times, start = [], time.perf_counter()
    while len(times) < 3 or (time.perf_counter() - start < budget and len(times) < 1000):
        times.append(first_call(call, device)[1])
    return summary(times)


def _time_cuda(call: Callable[[], Any], budget: float) -> dict[str, Any]:
    """Between events, behind a kernel that waits until the host has launched the call, and a write that evicts the L2
    cache. Without the wait the time of a small operator would be that of its launches, which a network hides.
    """
    flush = torch.empty(_FLUSH_BYTES, dtype=torch.int8, device="cuda")
    both, hosts = [], []  # seconds of the call, of its launch
    for _ in range(6):
        torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        hosts.append(time.perf_counter() - start)
        torch.cuda.synchronize()
        both.append(time.perf_counter() - start)
    host = sorted(hosts)[2]
    repeats = min(max(int(budget / (sorted(both)[2] + 2 * host + _FLUSH_SECONDS)), 3), 1000)
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
    for start_event, end_event in events:
        torch.cuda._sleep(int(2 * host * _CLOCK))  # before the first event
        flush.zero_()
        start_event.record()
        call()
        end_event.record()
    torch.cuda.synchronize()
    return {**summary([a.elapsed_time(b) for a, b in events]), "host_ms": 1e3 * host}


def time_steps(step: Callable[[], Any], device: torch.device, steps: int) -> dict[str, Any]:
    """`summary` of so many steps. On CUDA they follow each other without waiting, as in training."""
    if device.type != "cuda":
        return summary([first_call(step, device)[1] for _ in range(steps)])
    events = [torch.cuda.Event(enable_timing=True) for _ in range(steps + 1)]
    events[0].record()
    for event in events[1:]:
        step()
        event.record()
    torch.cuda.synchronize(device)
    return summary([a.elapsed_time(b) for a, b in itertools.pairwise(events)])


def summary(times: list[float]) -> dict[str, Any]:
    """median_ms, p20_ms, p80_ms, min_ms and the number of repeats of times in milliseconds."""
    at = torch.tensor([0.5, 0.2, 0.8, 0.0], dtype=torch.float64)
    values = torch.tensor(times, dtype=torch.float64).quantile(at).tolist()
    return dict(zip(("median_ms", "p20_ms", "p80_ms", "min_ms"), values, strict=True)) | {"repeats": len(times)}


def copy_rate(device: torch.device, budget: float) -> float:
    """Bytes per second, read and written, that the device moves in a large copy (1 GiB on CUDA, 256 MiB on a CPU)."""
    source = torch.empty((256 if device.type == "cuda" else 64) * MIB, device=device).uniform_()
    target = torch.empty_like(source)
    fastest = time_call(lambda: target.copy_(source), device, budget)["min_ms"]
    return 2 * source.numel() * source.element_size() / (1e-3 * fastest)


@contextlib.contextmanager
def fresh_compiler_caches(keep: bool = False) -> Iterator[None]:
    """Empty caches of Triton and Inductor, so that the time of a first call includes compilation; unless `keep`."""
    with tempfile.TemporaryDirectory(prefix="ddfnet-benchmark-", ignore_cleanup_errors=True) as folder:
        names = () if keep else ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")
        with mock.patch.dict(os.environ, {name: str(Path(folder, name)) for name in names}):
            yield


def relative_error(result: Tensor, expected: Tensor) -> float:
    """||result - expected|| / ||expected||, in float64, an image at a time to save memory."""
    difference = total = 0.0
    for a, b in zip(result.detach(), expected.detach(), strict=True):
        b = b.double()
        difference += float((a.double() - b).square().sum())
        total += float(b.square().sum())
    return math.sqrt(difference / total) if total else math.inf


def _kib(path: str, name: str) -> int | None:
    """A field of a file in /proc; None where the system has none."""
    with contextlib.suppress(OSError):
        for line in Path(path).read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1])
    return None


def start_memory(device: torch.device) -> int | None:
    """Bytes in use now; from here on `peak_memory` counts. None where the system does not tell (CPU, not Linux)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return _peak_bytes(device)
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)  # freed memory that the C library keeps would be used again unseen
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM, the peak, is the resident memory of now
        return _peak_bytes(device)
    return None


def _peak_bytes(device: torch.device) -> int | None:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    kib = _kib("/proc/self/status", "VmHWM")
    return kib and 1024 * kib


def peak_memory(device: torch.device, before: int | None) -> float | None:
    """MiB above `before` at the peak since `start_memory`: allocated tensors on CUDA, resident memory on a CPU."""
    peak = _peak_bytes(device)
    return None if before is None or peak is None else max(peak - before, 0) / MIB


def call_memory(call: Callable[[], Any], device: torch.device) -> tuple[float, float | None]:
    """MiB that a call needs above what is in use before it, its result included: of tensors, and resident.

    On a CPU the second is several times the first where the C library keeps what is freed, and has what libraries
    allocate for themselves. On CUDA it is None.
    """
    call()
    before = start_memory(device)
    call()
    measured = peak_memory(device, before)
    if device.type == "cuda":
        return measured, None
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    with tempfile.TemporaryDirectory() as folder:
        profiler.export_chrome_trace(f"{folder}/trace.json")
        trace = json.loads(Path(folder, "trace.json").read_text())
    changes = [event for event in trace["traceEvents"] if event.get("name") == "[memory]"]
    sizes = [event["args"]["Bytes"] for event in sorted(changes, key=lambda event: event["ts"])]
    return max(itertools.accumulate(sizes), default=0) / MIB, measured


@contextlib.contextmanager
def memory_limit(device: torch.device) -> Iterator[None]:
    """On Linux a CPU tensor that does not fit is an exception, and not the end of the process."""
    kib = _kib("/proc/meminfo", "MemAvailable"), _kib("/proc/self/status", "VmData")
    if device.type != "cpu" or None in kib:
        yield
        return
    import resource

    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (1024 * sum(kib), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)
