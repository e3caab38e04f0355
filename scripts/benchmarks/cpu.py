#!/usr/bin/env python
"""Measure the operator and DDF-ResNet50 on a CPU beside their peers: CPU and wall seconds, interleaved, medians.

    python scripts/benchmarks/cpu.py op --output results                       # 1 and 2 threads, batch 1, 8 and 32
    python scripts/benchmarks/cpu.py inference --threads 1 --batch 8 --output results
    python scripts/benchmarks/cpu.py training --batch 8 --output results
    python scripts/benchmarks/cpu.py inference --runtimes eager folded onnxruntime openvino --output results

    op         ddf, native and in PyTorch, at the four 3x3 shapes of ResNet50, channels_last; oneDNN's depthwise and
               dense convolutions; involution and CARAFE by ddf and as published; forward, and forward + backward
    inference  ddf_mul_resnet50 and resnet50: eager, with batch normalization folded, compiled, in onnxruntime and
               OpenVINO
    training   the same two, eager: forward, cross-entropy, backward, SGD

All of one setting are called in turn, and the median of the rounds counts: what else the machine does meets all alike.
CPU seconds are those of all threads of the process. bf16 is autocast; for op, the dtype of the tensors. --output adds
to the rows that an earlier call with the same folder wrote. Freed memory is kept for the next tensor, as train.py and
eval.py have it on a CPU (DDFNET_MALLOC=0: as the C library has it). Exit code 2: bad arguments.
"""

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run from a checkout without `pip install`

import torch

from ddfnet.utils.cli import HelpFormatter, at_least
from ddfnet.utils.environment import package_version
from ddfnet.utils.memory import keep_freed_memory
from scripts.benchmarks import common as bench
from scripts.benchmarks import cpu_cases as cases
from scripts.benchmarks import measure

RUNTIMES = ("eager", "folded", "compiled", "onnxruntime", "openvino")
TABLE = bench.Table({"setting": 46, "what": 42, "wall ms": 9, "CPU ms": 9, "wall / first's": 14})


def interleaved(calls: dict[str, cases.Call], budget: float, rounds: int) -> dict[str, dict[str, float]]:
    """Medians of wall and CPU milliseconds of each call, and of its first one; calls take turns.

    Short calls are repeated within a turn. At least three rounds, at most `rounds`, and no more after `budget` seconds.
    """
    first, repeats = {}, {}
    for name, call in calls.items():
        first[name] = measure.first_call(call, torch.device("cpu"))[1]
        repeats[name] = max(1, int(10 / max(measure.first_call(call, torch.device("cpu"))[1], 0.01)))
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    start = time.perf_counter()
    for done in range(rounds):
        if done >= 3 and time.perf_counter() - start > budget:
            break
        for name, call in calls.items():
            wall, cpu = time.perf_counter(), time.process_time()
            for _ in range(repeats[name]):
                call()
            took = time.perf_counter() - wall, time.process_time() - cpu
            samples[name].append((1e3 * took[0] / repeats[name], 1e3 * took[1] / repeats[name]))
    return {
        name: {
            "wall_ms": statistics.median(wall for wall, _ in taken),
            "cpu_ms": statistics.median(cpu for _, cpu in taken),
            "first_ms": first[name],
            "rounds": len(taken),
        }
        for name, taken in samples.items()
    }


def measure_op(arguments: argparse.Namespace, threads: int, batch: int, dtype: str) -> list[dict[str, Any]]:
    """Rows of one setting. ValueError where a published formulation computes something else than ddf."""
    rows = []
    for stage, (channels, size) in cases.SHAPES.items():
        calls = cases.operator_calls(batch, channels, size, bench.DTYPES[dtype])
        for name, reference in cases.SAME.items():
            a, b = (cases.forward(*calls[key])().float() for key in (name, reference))
            if not (error := measure.relative_error(a, b)) <= 2e-2:
                raise ValueError(f"{name} differs from {reference} by {error:.2g}")
        for part in (cases.forward, cases.forward_backward):
            timed_calls = {name: part(*call) for name, call in calls.items()}
            timed_calls[cases.PYTORCH_PATH] = cases.in_pytorch(timed_calls[cases.PYTORCH_PATH])
            timed = interleaved(timed_calls, arguments.budget, arguments.rounds)
            setting = f"{part.__name__} {stage}, {threads} thr, batch {batch}, {dtype}"
            rows += [{"setting": setting, "what": name, **figures} for name, figures in timed.items()]
    return rows


def measure_networks(
    arguments: argparse.Namespace, threads: int, batch: int, dtype: str, scratch: Path
) -> list[dict[str, Any]]:
    """Rows of one setting."""
    how = (batch, arguments.image_size, bench.DTYPES[dtype], threads)
    calls = cases.network_calls(arguments.what, *how, arguments.runtimes, scratch)
    timed = interleaved(calls, arguments.budget, arguments.rounds)
    setting = f"{arguments.what}, {threads} thr, batch {batch}, {dtype}"
    rows = [{"setting": setting, "what": name, **figures} for name, figures in timed.items()]
    for row in rows:
        row["images_per_second"] = 1e3 * batch / row["wall_ms"]
    return rows


def lines(rows: list[dict[str, Any]]) -> list[str]:
    """The table. The last column is against the first row of the setting."""
    first: dict[str, float] = {}
    for row in rows:
        first.setdefault(row["setting"], row["wall_ms"])
    numbers = [
        [bench.number(row["wall_ms"]), bench.number(row["cpu_ms"]), f"{row['wall_ms'] / first[row['setting']]:.2f}"]
        for row in rows
    ]
    pairs = zip(rows, numbers, strict=True)
    return [TABLE.head, *(TABLE.row([row["setting"], row["what"], *cells]) for row, cells in pairs)]


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    add = parser.add_argument
    add("what", choices=("op", "inference", "training"))
    add("--threads", nargs="+", type=at_least(1), default=[1, 2], help="of PyTorch, in turn (default: 1 2)")
    add("--batch", nargs="+", type=at_least(1), default=[1, 8, 32], help="images a call (default: 1 8 32)")
    add("--dtype", nargs="+", choices=("fp32", "bf16"), default=["fp32", "bf16"], help="default: both")
    add("--runtimes", nargs="+", choices=RUNTIMES, metavar="RUNTIME", help="of inference (default: eager folded)")
    add("--image-size", type=at_least(1), help="of networks, in pixels (default: 224)")
    add("--budget", type=float, default=10, metavar="SECONDS", help="of one setting (default: %(default)s)")
    add("--rounds", type=at_least(3), default=25, help="at most (default: %(default)s)")
    add("--scratch", type=bench.writable_folder, help="keep ONNX files here, and use those of an earlier call")
    add("--output", type=bench.writable_folder, metavar="FOLDER", help="write cpu_WHAT.json and .md here")
    arguments = parser.parse_args(argv)
    if arguments.what != "inference" and arguments.runtimes:
        parser.error(f"--runtimes is of inference: leave it out for {arguments.what}")
    if arguments.what == "op" and arguments.image_size:
        parser.error("--image-size is of networks: the operator is measured at ResNet50's sizes; leave it out for op")
    arguments.runtimes = arguments.runtimes or ["eager", "folded"]
    arguments.image_size = arguments.image_size or 224
    for package in ("onnxruntime", "openvino"):
        if package in arguments.runtimes and package_version(package) is None:
            parser.error(f"--runtimes {package}: pip install {package}")
    return arguments


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    arguments = parse_arguments(argv)
    record = bench.environment(torch.device("cpu")) | {"memory_kept": keep_freed_memory()}
    del record["threads"]
    record |= {name: package_version(name) for name in ("onnxruntime", "openvino") if name in arguments.runtimes}
    name = f"cpu_{arguments.what}"
    report: dict[str, Any] = {"environment": record, "commands": [], "rows": []}
    earlier = arguments.output / f"{name}.json" if arguments.output else None
    if earlier is not None and earlier.exists():
        known = json.loads(earlier.read_text())
        report = {**known, "environment": {**known["environment"], **record}}
    report["commands"].append(record["command"])
    print(record["cpu"], f"PyTorch {record['torch']}", f"load {record['load']}", sep=", ")
    with tempfile.TemporaryDirectory() as temporary, measure.fresh_compiler_caches():
        for threads, batch, dtype in itertools.product(arguments.threads, arguments.batch, arguments.dtype):
            torch.set_num_threads(threads)
            if arguments.what == "op":
                rows = measure_op(arguments, threads, batch, dtype)
            else:
                rows = measure_networks(arguments, threads, batch, dtype, arguments.scratch or Path(temporary))
            print("\n".join(lines(rows)), flush=True)
            new = {(row["setting"], row["what"]) for row in rows}
            report["rows"] = [row for row in report["rows"] if (row["setting"], row["what"]) not in new] + rows
            bench.save(arguments.output, name, f"On a CPU: {arguments.what}", report, lines(report["rows"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
