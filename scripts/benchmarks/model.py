#!/usr/bin/env python
"""Measure training and inference of models: images per second and peak memory, one after the other in one run.

    python scripts/benchmarks/model.py                                     # ddf_mul_resnet50, resnet50 and resnet101
    python scripts/benchmarks/model.py --batch 256 --output runs/model     # writes benchmark_model.json, .md and .png
    python scripts/benchmarks/model.py --models ddf_mul_resnet50 resnet50 --modes eager --torch-profile 3 --output out
    python scripts/benchmarks/model.py --modes eager graph reduced --batch 1       # where the host is the bottleneck
    python scripts/benchmarks/model.py --device cpu --models ddf_mul_resnet14_32px --modes eager --image-size 32

MODELS are names that timm knows, those of ddfnet included; `name:option=value,option=value` gives a model options, for
example ddf_mul_resnet50:fused_norms=none. A training step is forward, cross-entropy, backward and a
step of SGD with momentum, on random images and labels that are on the device already: no data loading, no transfer.
Modes: eager; compiled, by `torch.compile`; graph, the eager step as one CUDA graph; reduced,
`torch.compile(mode="reduce-overhead")`, which makes CUDA graphs of what it compiled. The last two need CUDA, and are
left out without it. They pay where the host takes longer to launch a step than the device to compute it: small
batches. Images per second are of the median step. Ratios are to `--baseline` in the same mode. Peak memory is in
excess of what was in use before the model was built, and leaves out the first steps; on a CPU it is resident memory
(Linux only), that of the compiler included. Compile time is how much longer the first step takes than the median one,
with empty caches. A model that fails is a FAILED row.

Exit code 0: measured; 1: every model failed; 2: bad arguments.
"""

import argparse
import gc
import itertools
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run from a checkout without `pip install`

import timm
import torch
import torch.nn.functional as F
import yaml

import ddfnet  # registers its models
from ddfnet.utils.cli import HelpFormatter, at_least
from scripts.benchmarks import common as bench
from scripts.benchmarks import measure

CLASSES = 1000
COMPILED = {"compiled": None, "reduced": "reduce-overhead"}  # modes of torch.compile
MODES = ("eager", "compiled", "graph", "reduced")
TABLE = bench.Table(
    {"model": 22, "mode": 8, "train img/s": 11, "MiB": 9, "ratio": 6, "compile s": 9}
    | {"infer img/s": 11, "MiB ": 9, "ratio ": 6}
)


def parse_model(text: str) -> tuple[str, dict[str, Any]]:
    """Name and options of a model given as `name:option=value,option=value`; ValueError if it is not."""
    name, colon, rest = text.partition(":")
    pairs = [pair.partition("=") for pair in rest.split(",")] if colon else []
    if not all(key and equals and value for key, equals, value in pairs):
        raise ValueError(f"{text}: expected name:option=value,option=value")
    return name, {key: yaml.safe_load(value) for key, _, value in pairs}


def run_model(name: str, mode: str, arguments: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Parameters of a model, and for training and inference in a mode images per second, MiB and times.

    ValueError if the loss is not finite.
    """
    torch.manual_seed(0)
    torch.compiler.reset()
    before = measure.start_memory(device)
    memory_format, dtype = bench.FORMATS[arguments.memory_format], bench.DTYPES[arguments.dtype]
    architecture, options = parse_model(name)
    model = timm.create_model(architecture, num_classes=CLASSES, **options).to(device, memory_format=memory_format)
    images = torch.randn(arguments.batch, 3, arguments.image_size, arguments.image_size, device=device)
    images = images.contiguous(memory_format=memory_format)
    labels = torch.randint(CLASSES, (arguments.batch,), device=device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    network: Callable[..., Any] = model
    if mode in COMPILED:
        network = torch.compile(model, dynamic=False, mode=COMPILED[mode])
    else:
        ddfnet.compile_ahead(model, log=print)
    autocast = torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
    losses: list[torch.Tensor] = []  # the last one; reading it waits for the device

    def train() -> None:
        torch.compiler.cudagraph_mark_step_begin()  # of interest to mode `reduced` alone
        with autocast:
            loss = F.cross_entropy(network(images), labels)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        losses[:] = [loss.detach()]

    def infer() -> None:
        torch.compiler.cudagraph_mark_step_begin()
        with torch.no_grad(), autocast:
            network(images)

    def steps(step: Callable[[], None]) -> dict[str, Any]:
        if mode == "graph":
            step, capture = measure.first_call(partial(graphed, step), device)
        else:
            capture = 0.0
        _, first = measure.first_call(step, device)
        first += capture
        for _ in range(arguments.warmup - 1):
            step()
        measure.start_memory(device)
        figures = measure.time_steps(step, device, arguments.steps) | {"first_ms": first}
        figures["images_per_second"] = 1e3 * arguments.batch / figures["median_ms"]
        figures["peak_mib"] = measure.peak_memory(device, before)
        figures["compile_s"] = max(first - figures["median_ms"], 0) / 1e3
        return figures

    figures: dict[str, Any] = {"parameters": sum(p.numel() for p in model.parameters())}
    model.train()
    figures["train"] = steps(train)
    if not losses[0].isfinite():
        raise ValueError(f"the loss is {losses[0].item()}")
    if arguments.torch_profile:
        path = arguments.output / f"trace_{name.replace(':', '_')}_{mode}.json"
        figures["kernels"], figures["train"]["profile"] = profile(train, arguments.torch_profile, device, path)
    optimizer.state.clear()  # momenta and gradients are no part of the memory of inference
    model.zero_grad(set_to_none=True)
    model.requires_grad_(False).eval()
    figures["inference"] = steps(infer)
    return figures


def graphed(step: Callable[[], None]) -> Callable[[], None]:
    """Replays of the step, recorded as a CUDA graph: same tensors, one launch."""
    stream, current = torch.cuda.Stream(), torch.cuda.current_stream()
    stream.wait_stream(current)
    with torch.cuda.stream(stream):  # what a first step allocates and compiles must not be recorded
        for _ in range(3):
            step()
    current.wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def profile(
    step: Callable[[], None], steps: int, device: torch.device, path: Path
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Write a Chrome trace of some steps; the 15 kernels (on a CPU: operators) that take the most time, and of all of
    them milliseconds and launches in a step: where a step takes longer, the device waited for the host."""
    cuda = device.type == "cuda"
    activities = [torch.profiler.ProfilerActivity.CPU] + [torch.profiler.ProfilerActivity.CUDA] * cuda
    with torch.profiler.profile(activities=activities) as profiler:
        measure.first_call(lambda: [step() for _ in range(steps)], device)
    profiler.export_chrome_trace(str(path))
    kernels = []
    for event in profiler.key_averages():
        if event.device_type == getattr(torch.autograd.DeviceType, device.type.upper()):
            microseconds = event.self_device_time_total if cuda else event.self_cpu_time_total
            kernels.append({"name": event.key, "calls": event.count / steps, "ms": microseconds / 1e3 / steps})
    in_all = {"device_ms": sum(k["ms"] for k in kernels), "launches": sum(k["calls"] for k in kernels)}
    return sorted(kernels, key=lambda kernel: -kernel["ms"])[:15], in_all


def run_all(arguments: argparse.Namespace, device: torch.device, report: dict[str, Any]) -> None:
    """Fill `report["rows"]`, one model in one mode at a time, and say how it goes."""
    for mode, name in itertools.product(arguments.modes, arguments.models):
        row: dict[str, Any] = {"model": name, "mode": mode}
        print(f"{name}, {mode} ...", end=" ", flush=True)
        try:
            row |= run_model(name, mode, arguments, device)
            print(f"{bench.number(row['train']['images_per_second'])} images/s in training", flush=True)
        except Exception as error:
            row["failed"] = bench.reason(error)
            print("FAILED", flush=True)
        if "profile" in row.get("train", {}):
            found = row["train"]["profile"]
            print(f"  a training step: {found['device_ms']:.1f} ms in {found['launches']:.0f} kernels, ", end="")
            print(f"{row['train']['median_ms']:.1f} ms in all")
        for kernel in row.get("kernels", []):
            print(f"  {bench.number(kernel['ms']):>8} ms  {kernel['calls']:6.1f} x  {kernel['name'][:90]}")
        gc.collect()
        torch.cuda.empty_cache()
        report["rows"].append(row)
        if arguments.output:
            bench.write_json(arguments.output / "benchmark_model.json", report)


def add_ratios(rows: list[dict[str, Any]], baseline: str) -> None:
    """`ratio` of images per second to the baseline in the same mode, where both were measured."""
    measured = [row for row in rows if "failed" not in row]
    baselines = {row["mode"]: row for row in measured if row["model"] == baseline}
    for row in measured:
        for part in ("train", "inference") if row["mode"] in baselines else ():
            rate = baselines[row["mode"]][part]["images_per_second"]
            row[part]["ratio"] = row[part]["images_per_second"] / rate


def line(row: dict[str, Any]) -> str:
    """A row of the table, 120 columns at most."""
    head = [row["model"], row["mode"]]
    if "failed" in row:
        return TABLE.row(head, row["failed"])
    decimals = {"images_per_second": 4, "peak_mib": 1, "ratio": 2}
    train, inference = ([bench.number(row[p].get(k), n) for k, n in decimals.items()] for p in ("train", "inference"))
    seconds = bench.number(row["train"]["compile_s"], decimals=1) if row["mode"] != "eager" else "-"
    return TABLE.row([*head, *train, seconds, *inference])


def parse_arguments(argv: list[str] | None) -> tuple[argparse.Namespace, torch.device]:
    """The options, with the defaults of the device."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    add = parser.add_argument
    add("--models", nargs="+", default=["ddf_mul_resnet50", "resnet50", "resnet101"], metavar="MODEL")
    add("--modes", nargs="+", choices=MODES, metavar="MODE", default=["eager", "compiled"], help="default: %(default)s")
    add("--baseline", default="resnet50", metavar="MODEL", help="of the ratios (default: %(default)s)")
    add("--batch", type=at_least(1), help="images per step (default: 128 on CUDA, 4 on a CPU)")
    add("--image-size", type=at_least(1), help="in pixels (default: 224 on CUDA, 64 on a CPU)")
    add("--steps", type=at_least(1), help="to measure (default: 50 on CUDA, 5 on a CPU)")
    add("--warmup", type=at_least(1), help="steps before (default: 20 on CUDA, 2 on a CPU)")
    add("--torch-profile", type=at_least(0), default=0, metavar="N", help="trace N training steps of each")
    bench.add_options(parser, "benchmark_model")
    arguments = parser.parse_args(argv)
    for name, on_cuda, on_cpu in (("batch", 128, 4), ("image_size", 224, 64), ("steps", 50, 5), ("warmup", 20, 2)):
        if getattr(arguments, name) is None:
            setattr(arguments, name, on_cuda if arguments.device == "cuda" else on_cpu)
    if arguments.device == "cpu" and (left_out := [mode for mode in arguments.modes if mode in ("graph", "reduced")]):
        print(f"left out, as they need CUDA: {', '.join(left_out)}")
        arguments.modes = [mode for mode in arguments.modes if mode not in left_out]
    for text in arguments.models:
        try:
            name, _ = parse_model(text)
        except ValueError as error:
            parser.error(f"--models {error}")
        if not timm.is_model(name):
            parser.error(f"--models {name}: timm knows no such model")
    if arguments.torch_profile and not arguments.output:
        parser.error("--torch-profile writes traces: give their folder with --output")
    return arguments, bench.prepare(parser, arguments)


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    arguments, device = parse_arguments(argv)
    settings = {key: getattr(arguments, key) for key in ("batch", "image_size", "dtype", "memory_format", "steps")}
    report: dict[str, Any] = {"environment": bench.environment(device), "settings": settings, "rows": []}
    print(bench.title(report["environment"]), *(f"{key} {value}" for key, value in settings.items()), sep=", ")
    try:
        with measure.fresh_compiler_caches(arguments.keep_caches), measure.memory_limit(device):
            run_all(arguments, device, report)
    except KeyboardInterrupt:
        report["interrupted"] = True
        print("\nInterrupted: the rest was not measured.")
    add_ratios(report["rows"], arguments.baseline)
    lines = [TABLE.head, *map(line, report["rows"])]
    print("\n".join(["", *lines]))
    panels = {
        "training, images/s": lambda row: row["train"]["images_per_second"],
        "training, peak MiB": lambda row: row["train"]["peak_mib"],
        "inference, images/s": lambda row: row["inference"]["images_per_second"],
    }
    chart = {"by": ("model", "mode"), "panels": panels, "log": False}
    bench.save(arguments.output, "benchmark_model", "DDF models", report, lines, **chart)
    return int(all("failed" in row for row in report["rows"]) or "interrupted" in report)


if __name__ == "__main__":
    sys.exit(main())
