"""What the benchmarks share: a record of the machine, time, peak memory, copy rate, tables and files."""

import argparse
import contextlib
import ctypes
import datetime
import itertools
import json
import math
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler writes lines of its own otherwise; read by the import

import torch

MIB = 2**20
_FLUSH_BYTES = 256 * MIB  # more than the L2 cache of any GPU: writing so much evicts all else


def environment(device: torch.device) -> dict[str, Any]:
    """What the figures depend on: machine, versions, commit, command line. `load` is that of the last minute."""
    with contextlib.suppress(ImportError):
        import triton
    record = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(["python", *sys.argv]),
        "git": _output("git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"),
        "cpu": _field("/proc/cpuinfo", "model name") or platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": triton.__version__ if "triton" in sys.modules else None,
    }
    if device.type == "cuda":
        record["gpu"] = torch.cuda.get_device_name(device)
        record["driver"] = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        record |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    return record


def _output(*command: str) -> str | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _field(path: str, name: str) -> str | None:
    with contextlib.suppress(OSError):
        for line in Path(path).read_text().splitlines():
            if line.partition(":")[0].strip() == name:
                return line.partition(":")[2].strip()
    return None


def synchronize(device: torch.device) -> None:
    """Wait until the device has nothing to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def first_call(call: Callable[[], Any], device: torch.device) -> tuple[Any, float]:
    """Result of a call, and the milliseconds until the device was done with it."""
    start = time.perf_counter()
    result = call()
    synchronize(device)
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
    """Between events, behind writes that evict the L2 cache and last longer than the host takes to launch the call.

    Were they shorter, the time of a small operator would be that of its launches, which a network hides.
    """
    flush = torch.empty(_FLUSH_BYTES, dtype=torch.int8, device="cuda")
    both, hosts, flushes = [], [], []  # seconds of the call, of its launch, of a flush
    for _ in range(6):
        torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        hosts.append(time.perf_counter() - start)
        torch.cuda.synchronize()
        both.append(time.perf_counter() - start)
        flushes.append(1e-3 * first_call(flush.zero_, flush.device)[1])
    host, flush_time = sorted(hosts)[2], min(flushes)
    count = min(math.ceil(1.5 * host / flush_time), 100)
    repeats = min(max(int(budget / (sorted(both)[2] + count * flush_time)), 3), 1000)
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
    for start_event, end_event in events:
        for _ in range(count):
            flush.zero_()
        start_event.record()
        call()
        end_event.record()
    torch.cuda.synchronize()
    return {**summary([a.elapsed_time(b) for a, b in events]), "host_ms": 1e3 * host}


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


def start_memory(device: torch.device) -> int | None:
    """Bytes in use now; from here on `peak_memory` counts. None where the system does not tell (CPU, not Linux)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)  # freed memory that the C library keeps would be used again unseen
    try:
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM, the peak, is the resident memory of now
    except OSError:
        return None
    return peak_memory(device)


def peak_memory(device: torch.device) -> int | None:
    """Most bytes in use at a time since `start_memory`: allocated tensors on CUDA, resident memory on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    kib = _field("/proc/self/status", "VmHWM")
    return 1024 * int(kib.split()[0]) if kib else None


def excess_mib(before: int | None, peak: int | None) -> float | None:
    """MiB above what was in use before."""
    return None if before is None or peak is None else max(peak - before, 0) / MIB


def call_memory(call: Callable[[], Any], device: torch.device) -> tuple[float, float | None]:
    """MiB that a call needs above what is in use before it, its result included: of tensors, and resident.

    On a CPU the second is several times the first where the C library keeps what is freed, and has what libraries
    allocate for themselves. On CUDA it is None.
    """
    call()
    before = start_memory(device)
    call()
    measured = excess_mib(before, peak_memory(device))
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
    kib = [_field(*place) for place in (("/proc/meminfo", "MemAvailable"), ("/proc/self/status", "VmData"))]
    if device.type != "cpu" or None in kib:
        yield
        return
    import resource

    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (1024 * sum(int(text.split()[0]) for text in kib), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


@contextlib.contextmanager
def fresh_compiler_caches() -> Iterator[None]:
    """Caches of Triton and Inductor in an empty folder, so that the time of a first call includes compilation."""
    names = ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")
    before = {name: os.environ.pop(name) for name in names if name in os.environ}
    with tempfile.TemporaryDirectory(prefix="ddfnet-benchmark-", ignore_cleanup_errors=True) as folder:
        os.environ.update({name: str(Path(folder, name)) for name in names})
        try:
            yield
        finally:
            for name in names:
                del os.environ[name]
            os.environ.update(before)


def number(value: float | None, decimals: int = 4) -> str:
    """Three significant digits, but at most so many decimals, and no exponent; "-" for None."""
    if value is None:
        return "-"
    wanted = 2 - math.floor(math.log10(abs(value))) if value else 0
    return f"{value:,.{min(max(wanted, 0), decimals)}f}"


def table_row(cells: Sequence[str], widths: Sequence[int]) -> str:
    """A line of a Markdown table: two columns flush left, the others right. A third cell of three takes the rest."""
    if len(cells) == 3 < len(widths):  # the reason of a failure
        rest = sum(widths[2:]) + 3 * len(widths[3:])
        text = cells[2].replace("|", "/")
        return f"{table_row(cells[:2], widths[:2])} {text if len(text) <= rest else text[: rest - 3] + '...':<{rest}} |"
    padded = [c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))]
    return f"| {' | '.join(padded)} |"


def table_head(names: Sequence[str], widths: Sequence[int]) -> str:
    """The first two lines of a Markdown table."""
    rules = ["-" * w if i < 2 else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    return table_row(names, widths) + "\n" + table_row(rules, widths)


def reason(error: Exception) -> str:
    """An exception in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return ": ".join([type(error).__name__, *lines[:1]])


def title(environment: dict[str, Any]) -> str:
    """The machine in a few words."""
    machine = environment.get("gpu") or f"{environment['cpu']}, {environment['threads']} threads"
    return f"{machine}, PyTorch {environment['torch']}"


def write_text(path: Path, text: str) -> None:
    """Write a file that is whole or not there, even if the machine stops."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """`write_text` as JSON; a figure that is not finite is an error."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def write_markdown(path: Path, heading: str, environment: dict[str, Any], lines: Sequence[str]) -> None:
    """`write_text` of a page: heading, command, machine and the lines."""
    facts = ", ".join(f"{key} {value}" for key, value in environment.items() if key != "command" and value is not None)
    write_text(path, "\n".join([f"# {heading}", "", f"`{environment['command']}`", "", facts, "", *lines, ""]))


def bar_chart(path: Path, panels: dict[str, dict[str, list[float | None]]], labels: Sequence[str], log: bool) -> None:
    """Grouped bars as a PNG, a panel per quantity and a group per label. Without matplotlib nothing is written."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    figure = Figure(figsize=(max(9, 1.6 * len(labels) + 3), 3.2 * len(panels)), dpi=120, layout="constrained")
    for axes, (name, series) in zip(figure.subplots(len(panels), squeeze=False)[:, 0], panels.items(), strict=True):
        width = 0.84 / len(series)
        for i, (label, values) in enumerate(series.items()):
            places = [j + (i - (len(series) - 1) / 2) * width for j in range(len(values))]
            axes.bar(places, [value or math.nan for value in values], width, label=label)
        axes.set_title(name, fontsize=10, loc="left")
        axes.set_xticks(range(len(labels)), labels, fontsize=8)
        axes.set_yscale("log" if log and any(v for values in series.values() for v in values) else "linear")
        axes.spines[["top", "right"]].set_visible(False)
        handles = axes.get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper center", frameon=False, fontsize=8, ncols=4)
    figure.savefig(path)


def check_least(arguments: argparse.Namespace, name: str, least: int) -> None:
    """Raise ValueError if the option is given and below `least`."""
    value = getattr(arguments, name)
    if value is not None and value < least:
        raise ValueError(f"--{name.replace('_', '-')} must be at least {least}, not {value}")


def prepare(arguments: argparse.Namespace) -> torch.device:
    """Device, threads, defaults of the device and a writable output folder.

    Raises:
        ValueError, OSError: there is no such device, or the folder cannot be written.
    """
    check_least(arguments, "threads", 1)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: PyTorch finds no CUDA device")
    arguments.dtype = arguments.dtype or ("bf16" if arguments.device == "cuda" else "fp32")
    if arguments.output:
        arguments.output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=arguments.output):
            pass
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    torch.backends.cudnn.benchmark = True
    return torch.device(arguments.device)
