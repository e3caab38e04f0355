"""Shared by the benchmarks: options, a record of the machine, time, peak memory, copy rate, tables and files."""

import argparse
import contextlib
import ctypes
import datetime
import itertools
import json
import math
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler writes lines of its own otherwise; read by the import

import torch

from ddfnet.utils import environment as facts
from ddfnet.utils.cli import at_least
from ddfnet.utils.files import write_json, write_text

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
FORMATS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
MIB = 2**20
_FLUSH_BYTES = 256 * MIB  # more than the L2 cache of any GPU: writing so much evicts all else


def add_options(parser: argparse.ArgumentParser, files: str) -> None:
    """The options of what runs on a CPU and on CUDA; `prepare` reads them. `files`: name of those written."""
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=("cuda", "cpu"), default=default, help="default: CUDA")
    parser.add_argument("--dtype", choices=DTYPES, help="default: bf16 on CUDA, fp32 on a CPU")
    parser.add_argument("--memory-format", choices=FORMATS, default="channels_last", help="default: %(default)s")
    parser.add_argument("--threads", type=at_least(1), help="of a CPU (default: PyTorch's)")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help=f"write {files}.json, .md and .png here")


def prepare(arguments: argparse.Namespace) -> torch.device:
    """Device, threads, dtype of the device and a writable output folder.

    Raises:
        ValueError, OSError: there is no such device, or the folder cannot be written.
    """
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


def environment(device: torch.device) -> dict[str, Any]:
    """All that figures depend on: machine, versions, commit, command line. `load` is that of the last minute."""
    known = facts.environment()
    record = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(["python", *sys.argv]),
        "git": known["git"],
        "cpu": facts.cpu_name(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "python": known["python"],
        **{name: known["packages"][name] for name in ("torch", "triton")},
    }
    if device.type == "cuda":
        record |= {"gpu": torch.cuda.get_device_name(device), "driver": None, "cuda": known["cuda"]}
        record["cudnn"] = torch.backends.cudnn.version()
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            record["driver"] = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
    return record


def title(environment: dict[str, Any]) -> str:
    """The machine in a few words."""
    machine = environment.get("gpu") or f"{environment['cpu']}, {environment['threads']} threads"
    return f"{machine}, PyTorch {environment['torch']}"


def copy_rate(device: torch.device, budget: float) -> float:
    """Bytes per second, read and written, that the device moves in a large copy (1 GiB on CUDA, 256 MiB on a CPU)."""
    source = torch.empty((256 if device.type == "cuda" else 64) * MIB, device=device).uniform_()
    target = torch.empty_like(source)
    fastest = time_call(lambda: target.copy_(source), device, budget)["min_ms"]
    return 2 * source.numel() * source.element_size() / (1e-3 * fastest)


@contextlib.contextmanager
def fresh_compiler_caches() -> Iterator[None]:
    """Caches of Triton and Inductor in an empty folder, so that the time of a first call includes compilation."""
    with tempfile.TemporaryDirectory(prefix="ddfnet-benchmark-", ignore_cleanup_errors=True) as folder:
        names = ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")
        with mock.patch.dict(os.environ, {name: str(Path(folder, name)) for name in names}):
            yield


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


def number(value: float | None, decimals: int = 4) -> str:
    """Three significant digits, but at most so many decimals, and no exponent; "-" for None."""
    if value is None:
        return "-"
    wanted = 2 - math.floor(math.log10(abs(value))) if value else 0
    return f"{value:,.{min(max(wanted, 0), decimals)}f}"


def reason(error: Exception) -> str:
    """An exception in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return ": ".join([type(error).__name__, *lines[:1]])


class Table:
    """A Markdown table that is printed line by line: two columns flush left, the others right, of fixed widths."""

    def __init__(self, columns: dict[str, int]) -> None:
        widths = self.widths = list(columns.values())
        rules = ["-" * w if i < 2 else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
        self.head = f"{self.row([name.strip() for name in columns])}\n{self.row(rules)}"

    def row(self, cells: Sequence[str], failed: str = "") -> str:
        """A line. `failed`: the reason, in place of all cells but the first two."""
        pairs = zip(cells, self.widths, strict=not failed)
        padded = [cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(pairs)]
        if failed:
            rest = sum(self.widths[2:]) + 3 * len(self.widths[3:])
            text = f"FAILED: {failed.replace('|', '/')}"
            padded.append(text.ljust(rest) if len(text) <= rest else f"{text[: rest - 3]}...")
        return f"| {' | '.join(padded)} |"


def save(folder: Path, name: str, heading: str, report: dict[str, Any], lines: Sequence[str]) -> None:
    """NAME.json of a report, and NAME.md: heading, command, machine and the lines."""
    write_json(folder / f"{name}.json", report)
    record = report["environment"]
    machine = ", ".join(f"{key} {value}" for key, value in record.items() if key != "command" and value is not None)
    page = ["# " + heading, "", f"`{record['command']}`", "", machine, "", *lines, ""]
    write_text(folder / f"{name}.md", "\n".join(page))


def bar_chart(
    path: Path, rows: list[dict[str, Any]], by: tuple[str, str], panels: dict[str, Callable[[Any], Any]], log: bool
) -> None:
    """Bars of the rows that did not fail, as a PNG. Without rows or without matplotlib nothing is written.

    Args:
        by: keys of a row: the group of bars that it belongs to, and the bar in each group.
        panels: title of each panel, and the height of a row's bar (None: no bar).
        log: logarithmic heights.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    measured = {tuple(row[key] for key in by): row for row in rows if "failed" not in row}
    if not measured:
        return
    groups, bars = (list(dict.fromkeys(keys)) for keys in zip(*measured, strict=True))
    width = 0.84 / len(bars)
    figure = Figure(figsize=(max(9, 1.6 * len(groups) + 3), 3.2 * len(panels)), dpi=120, layout="constrained")
    for axes, (name, height) in zip(figure.subplots(len(panels), squeeze=False)[:, 0], panels.items(), strict=True):
        for i, bar in enumerate(bars):
            heights = {j: height(measured[group, bar]) for j, group in enumerate(groups) if (group, bar) in measured}
            positions = [j + (i - (len(bars) - 1) / 2) * width for j in heights]
            axes.bar(positions, [value or math.nan for value in heights.values()], width, label=bar)
        axes.set_title(name, fontsize=10, loc="left")
        axes.set_xticks(range(len(groups)), groups, fontsize=8)
        axes.set_yscale("log" if log and any(map(height, measured.values())) else "linear")
        axes.spines[["top", "right"]].set_visible(False)
        handles = axes.get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper center", frameon=False, fontsize=8, ncols=4)
    figure.savefig(path)
