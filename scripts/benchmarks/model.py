#!/usr/bin/env python
"""Measure training and inference of models: images per second and peak memory, one after the other in one run.

    python scripts/benchmarks/model.py                                     # ddf_mul_resnet50, resnet50 and resnet101
    python scripts/benchmarks/model.py --batch 256 --output runs/model     # writes benchmark_model.json, .md and .png
    python scripts/benchmarks/model.py --models ddf_mul_resnet50 resnet50 --modes eager --torch-profile 3 --output runs/p
    python scripts/benchmarks/model.py --device cpu --models ddf_mul_resnet14_32px --modes eager --image-size 32

MODELS are names that timm knows, those of ddfnet included. A training step is forward, cross-entropy, backward and a
step of SGD with momentum, on random images and labels that are on the device already: no data loading, no transfer.
Images per second are of the median step. Ratios are to `--baseline` in the same mode. Peak memory is in excess of what
was in use before the model was built, and leaves out the first steps; on a CPU it is resident memory (Linux only),
that of the compiler included. Compile time is how much longer the first step takes than the median one, with empty
caches. A model that fails is a FAILED row.

Exit code 0: measured; 1: every model failed; 2: bad arguments.
"""

import argparse
import gc
import itertools
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run from a checkout without `pip install`

import timm
import torch
import torch.nn.functional as F
from torch import nn

import ddfnet  # noqa: F401  (registers its models)
from scripts.benchmarks import common as bench

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
FORMATS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
CLASSES = 1000
PARTS = ("train", "inference")
COLUMNS = {
    "model": 22,
    "mode": 8,
    "train img/s": 11,
    "MiB": 9,
    "ratio": 6,
    "compile s": 9,
    "infer img/s": 11,
    "MiB ": 9,
    "ratio ": 6,
}
WIDTHS = list(COLUMNS.values())


def time_steps(step: Callable[[], Any], device: torch.device, warmup: int, steps: int) -> dict[str, Any]:
    """Median and quantiles of a step in milliseconds, the first step's, and the peak memory of the measured ones.

    On CUDA the steps follow each other without waiting, as in training, and are told apart by events.
    """
    _, first = bench.first_call(step, device)
    for _ in range(warmup - 1):
        step()
    bench.start_memory(device)
    if device.type == "cuda":
        events = [torch.cuda.Event(enable_timing=True) for _ in range(steps + 1)]
        events[0].record()
        for event in events[1:]:
            step()
            event.record()
        torch.cuda.synchronize(device)
        times = [a.elapsed_time(b) for a, b in itertools.pairwise(events)]
    else:
        times = []
        for _ in range(steps):
            start = time.perf_counter()
            step()
            times.append(1e3 * (time.perf_counter() - start))
    return {**bench.summary(times), "first_ms": first, "peak_bytes": bench.peak_memory(device)}


def measure(name: str, mode: str, arguments: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Figures of a model in a mode: parameters, and for training and inference images per second, MiB and times.

    Raises:
        ValueError: the loss is not finite.
    """
    torch.manual_seed(0)
    torch.compiler.reset()
    before = bench.start_memory(device)
    memory_format, dtype = FORMATS[arguments.memory_format], DTYPES[arguments.dtype]
    model = timm.create_model(name, num_classes=CLASSES).to(device, memory_format=memory_format)
    images = torch.randn(arguments.batch, 3, arguments.image_size, arguments.image_size, device=device)
    images = images.contiguous(memory_format=memory_format)
    labels = torch.randint(CLASSES, (arguments.batch,), device=device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    network = torch.compile(model, dynamic=False) if mode == "compiled" else model
    losses: list[torch.Tensor] = []  # the last one; reading it waits for the device

    def autocast() -> torch.autocast:
        return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)

    def train() -> None:
        with autocast():
            loss = F.cross_entropy(network(images), labels)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        losses[:] = [loss.detach()]

    def infer() -> None:
        with torch.no_grad(), autocast():
            network(images)

    figures: dict[str, Any] = {"parameters": sum(p.numel() for p in model.parameters())}
    model.train()
    figures["train"] = _part(train, before, arguments, device)
    if not losses[0].isfinite():
        raise ValueError(f"the loss is {losses[0].item()}")
    if arguments.torch_profile:
        figures["kernels"] = profile(train, arguments, device, arguments.output / f"trace_{name}_{mode}.json")
    _drop_training_state(model, optimizer)
    model.eval()
    figures["inference"] = _part(infer, before, arguments, device)
    return figures


def _part(
    step: Callable[[], None], before: int | None, arguments: argparse.Namespace, device: torch.device
) -> dict[str, Any]:
    figures = time_steps(step, device, arguments.warmup, arguments.steps)
    peak = figures.pop("peak_bytes")
    figures["images_per_second"] = 1e3 * arguments.batch / figures["median_ms"]
    figures["peak_mib"] = bench.excess_mib(before, peak)
    figures["compile_s"] = max(figures["first_ms"] - figures["median_ms"], 0) / 1e3
    return figures


def _drop_training_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Gradients and momenta are no part of the memory of inference."""
    optimizer.zero_grad(set_to_none=True)
    optimizer.state.clear()
    for parameter in model.parameters():
        parameter.requires_grad_(False)


def profile(
    step: Callable[[], None], arguments: argparse.Namespace, device: torch.device, path: Path
) -> list[dict[str, Any]]:
    """Write a Chrome trace of some steps; the 15 kernels (on a CPU: operators) that take the most time."""
    cuda = device.type == "cuda"
    activities = [torch.profiler.ProfilerActivity.CPU] + [torch.profiler.ProfilerActivity.CUDA] * cuda
    with torch.profiler.profile(activities=activities) as profiler:
        for _ in range(arguments.torch_profile):
            step()
        bench.synchronize(device)
    profiler.export_chrome_trace(str(path))
    kind = torch.autograd.DeviceType.CUDA if cuda else torch.autograd.DeviceType.CPU
    kernels = [
        {
            "name": event.key,
            "calls": event.count / arguments.torch_profile,
            "ms": (event.self_device_time_total if cuda else event.self_cpu_time_total) / 1e3 / arguments.torch_profile,
        }
        for event in profiler.key_averages()
        if event.device_type == kind
    ]
    return sorted(kernels, key=lambda kernel: -kernel["ms"])[:15]


def run_all(arguments: argparse.Namespace, device: torch.device, report: dict[str, Any]) -> None:
    """Fill `report["rows"]`, one model in one mode at a time, and say how it goes."""
    for mode in arguments.modes:
        for name in arguments.models:
            row: dict[str, Any] = {"model": name, "mode": mode}
            print(f"{name}, {mode} ...", end=" ", flush=True)
            try:
                row |= measure(name, mode, arguments, device)
                print(f"{bench.number(row['train']['images_per_second'])} images/s in training", flush=True)
            except Exception as error:
                row["failed"] = bench.reason(error)
                print("FAILED", flush=True)
            for kernel in row.get("kernels", []):
                print(f"  {bench.number(kernel['ms']):>8} ms  {kernel['calls']:6.1f} x  {kernel['name'][:90]}")
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()
            report["rows"].append(row)
            if arguments.output:
                bench.write_json(arguments.output / "benchmark_model.json", report)


def add_ratios(rows: list[dict[str, Any]], baseline: str) -> None:
    """`ratio` of images per second to the baseline in the same mode, where both were measured."""
    for row in rows:
        same = [r for r in rows if r["model"] == baseline and r["mode"] == row["mode"] and "failed" not in r]
        for part in PARTS:
            if same and "failed" not in row:
                row[part]["ratio"] = row[part]["images_per_second"] / same[0][part]["images_per_second"]


def line(row: dict[str, Any]) -> str:
    """A row of the table, 120 columns at most."""
    head = [row["model"], row["mode"]]
    if "failed" in row:
        return bench.table_row([*head, f"FAILED: {row['failed']}"], WIDTHS)
    cells = []
    for part in PARTS:
        figures = row[part]
        cells += [
            bench.number(figures["images_per_second"]),
            bench.number(figures["peak_mib"], decimals=1),
            bench.number(figures.get("ratio"), decimals=2),
        ]
        if part == "train":
            cells.append(bench.number(figures["compile_s"], decimals=1) if row["mode"] == "compiled" else "-")
    return bench.table_row([*head, *cells], WIDTHS)


def save(folder: Path, report: dict[str, Any], lines: list[str]) -> None:
    """benchmark_model.json, .md and, where matplotlib is installed, .png in the folder."""
    bench.write_json(folder / "benchmark_model.json", report)
    bench.write_markdown(folder / "benchmark_model.md", "DDF models", report["environment"], lines)
    rows = [row for row in report["rows"] if "failed" not in row]
    models, modes = (list(dict.fromkeys(row[key] for row in rows)) for key in ("model", "mode"))
    found = {(row["model"], row["mode"]): row for row in rows}
    panels = {
        title: {
            mode: [found[model, mode][part][key] if (model, mode) in found else None for model in models]
            for mode in modes
        }
        for title, part, key in (
            ("training, images/s", "train", "images_per_second"),
            ("training, peak MiB", "train", "peak_mib"),
            ("inference, images/s", "inference", "images_per_second"),
        )
    }
    if rows:
        bench.bar_chart(folder / "benchmark_model.png", panels, models, log=False)


def make_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["ddf_mul_resnet50", "resnet50", "resnet101"], metavar="MODEL")
    parser.add_argument("--modes", nargs="+", choices=("eager", "compiled"), default=["eager", "compiled"])
    parser.add_argument("--baseline", default="resnet50", metavar="MODEL", help="of the ratios (default: %(default)s)")
    cuda = torch.cuda.is_available()
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if cuda else "cpu", help="default: CUDA")
    parser.add_argument("--batch", type=int, help="images per step (default: 128 on CUDA, 4 on a CPU)")
    parser.add_argument("--image-size", type=int, help="in pixels (default: 224 on CUDA, 64 on a CPU)")
    parser.add_argument("--dtype", choices=DTYPES, help="of autocast (default: bf16 on CUDA, fp32 on a CPU)")
    parser.add_argument("--memory-format", choices=FORMATS, default="channels_last", help="default: %(default)s")
    parser.add_argument("--steps", type=int, help="to measure (default: 50 on CUDA, 5 on a CPU)")
    parser.add_argument("--warmup", type=int, help="steps before (default: 20 on CUDA, 2 on a CPU)")
    parser.add_argument("--threads", type=int, help="of a CPU (default: PyTorch's)")
    parser.add_argument("--torch-profile", type=int, default=0, metavar="N", help="trace N training steps of each")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="write benchmark_model.json, .md and .png here")
    return parser


def _check(arguments: argparse.Namespace) -> torch.device:
    """Fill in the defaults of the device.

    Raises:
        ValueError: arguments that do not fit.
    """
    for name, on_cuda, on_cpu in (("batch", 128, 4), ("image_size", 224, 64), ("steps", 50, 5), ("warmup", 20, 2)):
        if getattr(arguments, name) is None:
            setattr(arguments, name, on_cuda if arguments.device == "cuda" else on_cpu)
        bench.check_least(arguments, name, 1)
    bench.check_least(arguments, "torch_profile", 0)
    for name in arguments.models:
        if not timm.is_model(name):
            raise ValueError(f"--models {name}: timm knows no such model")
    if arguments.torch_profile and not arguments.output:
        raise ValueError("--torch-profile writes traces: give their folder with --output")
    return bench.prepare(arguments)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    arguments = make_parser().parse_args(argv)
    try:
        device = _check(arguments)
    except (ValueError, OSError) as error:
        print(f"benchmark_model: {error}", file=sys.stderr)
        return 2
    environment = bench.environment(device)
    settings = {key: getattr(arguments, key) for key in ("batch", "image_size", "dtype", "memory_format", "steps")}
    print(bench.title(environment), *(f"{key} {value}" for key, value in settings.items()), sep=", ")
    report: dict[str, Any] = {"environment": environment, "settings": settings, "rows": []}
    try:
        with bench.fresh_compiler_caches(), bench.memory_limit(device):
            run_all(arguments, device, report)
    except KeyboardInterrupt:
        report["interrupted"] = True
        print("\nInterrupted: the rest was not measured.")
    add_ratios(report["rows"], arguments.baseline)
    lines = [bench.table_head([name.strip() for name in COLUMNS], WIDTHS), *map(line, report["rows"])]
    print("\n".join(["", *lines]))
    if arguments.output:
        save(arguments.output, report, lines)
        print(arguments.output)
    return int(all("failed" in row for row in report["rows"]) or "interrupted" in report)


if __name__ == "__main__":
    sys.exit(main())
