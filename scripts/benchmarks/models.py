#!/usr/bin/env python
"""Measure the inference of every model of the package, and of timm's ResNets, on a CPU in one run: images per second.

    python scripts/benchmarks/models.py --output docs/results    # then: python scripts/dev/write_models.py
    python scripts/benchmarks/models.py --models resnet14_32px ddf_mul_resnet14_32px --rounds 3

Random weights, float32, channels_last, eager, each at its usual image size. The models take turns, batch by batch, and
the median of the rounds counts: what else the machine does meets all alike. --output writes models_cpu.json, from which
docs/reference/models.md is made. Exit code 2: bad arguments.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # run from a checkout without `pip install`

import timm
import torch

from ddfnet.utils.cli import HelpFormatter, at_least
from ddfnet.utils.files import write_json
from scripts.benchmarks import common as bench
from scripts.benchmarks.cpu import interleaved
from scripts.benchmarks.cpu_cases import Call
from scripts.dev.write_models import CPU_RESULTS, input_size, listed_models

TABLE = bench.Table({"model": 24, "pixels": 6, "images/s": 9, "wall ms": 9, "CPU ms": 9})


def inference(name: str, batch: int) -> Call:
    """A call that passes a batch through a model."""
    torch.manual_seed(0)
    network = timm.create_model(name).eval().requires_grad_(False).to(memory_format=torch.channels_last)
    size = input_size(name)
    images = torch.randn(batch, 3, size, size).contiguous(memory_format=torch.channels_last)

    def call() -> torch.Tensor:
        with torch.no_grad():
            return network(images)

    return call


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    add = parser.add_argument
    known = listed_models()
    add("--models", nargs="+", choices=known, default=known, metavar="NAME", help="default: all of the table")
    add("--batch", type=at_least(1), default=8, help="images a call (default: %(default)s)")
    add("--threads", type=at_least(1), default=1, help="of PyTorch (default: %(default)s)")
    add("--rounds", type=at_least(3), default=7, help="at most (default: %(default)s)")
    add("--budget", type=float, default=150, metavar="SECONDS", help="for the rounds (default: %(default)s)")
    add("--output", type=bench.writable_folder, metavar="FOLDER", help=f"write {CPU_RESULTS} here")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    arguments = parse_arguments(argv)
    torch.set_num_threads(arguments.threads)
    record = bench.environment(torch.device("cpu"))
    print(bench.title(record), f"batch {arguments.batch}", f"load {record['load']}", sep=", ")
    calls = {name: inference(name, arguments.batch) for name in arguments.models}
    rows: list[dict[str, Any]] = []
    print(TABLE.head)
    for name, taken in interleaved(calls, arguments.budget, arguments.rounds).items():
        speed = 1e3 * arguments.batch / taken["wall_ms"]
        rows.append({"model": name, "image_size": input_size(name), "images_per_second": speed, **taken})
        numbers = map(bench.number, (speed, taken["wall_ms"], taken["cpu_ms"]))
        print(TABLE.row([name, str(input_size(name)), *numbers]))
    if arguments.output:
        report = {"environment": record, "batch": arguments.batch, "threads": arguments.threads, "rows": rows}
        write_json(arguments.output / CPU_RESULTS, report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
