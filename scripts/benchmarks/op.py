#!/usr/bin/env python
"""Measure the DDF operator beside what could replace it: time and peak memory, forward and forward + backward.

    python scripts/benchmarks/op.py                                      # the 3x3 layers of ResNet50; batch 256 on CUDA
    python scripts/benchmarks/op.py --shapes all --output runs/op        # and the shapes of the paper's tables 2 and A
    python scripts/benchmarks/op.py --shapes 8,64,56,56 --shapes 8,128,56,56,2 --device cpu --threads 2
    python scripts/benchmarks/op.py --up --output runs/up                # the upsampling operator, ddf_up

Implementations: ddf, ddf compiled (torch.compile), unfold and unfold compiled (F.unfold times both filters, plain
autograd), shifted compiled (torch.compile of ddfnet.ops.ddf.ddf_reference), depthwise conv and dense conv (static
filters). With --up: ddf_up, ddf_up compiled, ddf + shuffle (scale^2 ddf, interleaved), nearest, bilinear, transposed
conv, and conv + shuffle.

Those that compute the same as ddf are compared with it first, gradients included: a relative L2 error above 2 % is a
FAILED row, and so is an exception. Forward is without gradients. Times on CUDA are those of the device, with a cold L2
cache; launches are left out (`host_ms` of the JSON). "% of floor" is the time that the bytes read and written take at
the measured rate of a large copy, divided by the time taken: forward reads x and filters and writes y; backward reads
grad_y, x and filters and writes their gradients. What fits in a CPU's caches can be above 100 %. Peak memory is that of
tensors in excess of the inputs; the JSON has the resident memory of a CPU as well (Linux only), which is more by what
the C library keeps of what is freed.

Exit code 0: measured; 1: ddf itself failed, or interrupted (what was measured is written); 2: bad arguments.
"""

import argparse
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run from a checkout without `pip install`

import torch
from torch import Tensor

from ddfnet.utils.cli import HelpFormatter, at_least
from scripts.benchmarks import common as bench
from scripts.benchmarks import measure
from scripts.benchmarks.op_cases import DDF, DDF_UP, PARTS, Case, Implementation, floor_bytes, make_inputs, named_cases

MAX_ERROR = 2e-2  # relative L2; bfloat16 sums in another order differ by less than 1e-2
TABLE = bench.Table(
    {"shape": 16, "implementation": 16, "fwd ms": 8, "fwd+bwd ms": 10}
    | {"% of floor": 10, "fwd MiB": 9, "f+b MiB": 9, "time / ddf's": 13}
)


@dataclass
class Run:
    """All that the cases have in common."""

    device: torch.device
    table: dict[str, Implementation]  # all of them, the reference first
    names: list[str]  # those to time
    budget: float  # seconds of each timing
    copy_rate: float  # bytes per second, for the floors

    @property
    def reference(self) -> str:
        """The implementation that the others are compared with: ddf or ddf_up."""
        return next(iter(self.table))

    def rows(self, case: Case) -> Iterator[dict[str, Any]]:
        """Rows of one shape, as they are measured; a failure is a row with `failed`. The reference always runs."""
        torch.manual_seed(0)
        try:
            inputs = make_inputs(case, self.device)
            grad_y = torch.randn(case.batch, case.channels, *case.output_size, dtype=case.dtype, device=self.device)
            grad_y = grad_y.contiguous(memory_format=case.memory_format)
        except Exception as error:  # out of memory
            for name in self.names:
                yield {"shape": case.name, "implementation": name, "count": case.count, "failed": bench.reason(error)}
            return
        floors = floor_bytes(inputs, grad_y)
        expected, reference = None, {}
        for name in (name for name in self.table if name in (*self.names, self.reference)):
            row: dict[str, Any] = {"shape": case.name, "implementation": name, "count": case.count}
            row |= {f"floor_{part}_bytes": floor for part, floor in floors.items()}
            try:
                results = self.measure(row, case, inputs, grad_y, expected)
            except Exception as error:
                row["failed"], results = bench.reason(error), None
            if name == self.reference:
                expected, reference = results, row
            del results
            torch.cuda.empty_cache()
            for part in PARTS if name in self.names and "failed" not in row else ():
                if name == self.reference:
                    row[f"floor_{part}_ms"] = 1e3 * floors[part] / self.copy_rate
                    row[f"floor_{part}_percent"] = 100 * row[f"floor_{part}_ms"] / row[part]["median_ms"]
                if part in reference and "failed" not in reference:
                    row[f"{part}_to_ours"] = row[part]["median_ms"] / reference[part]["median_ms"]
            if name in self.names or "failed" in row:
                yield row

    def measure(
        self, row: dict[str, Any], case: Case, inputs: tuple[Tensor, ...], grad_y: Tensor, expected: list[Tensor] | None
    ) -> list[Tensor]:
        """Puts the figures of an implementation into its row, and returns its output and gradients.

        ValueError for a result that is not finite, or differs from `expected`: those of the reference, if any.
        """
        torch.compiler.reset()  # what was compiled for another shape would make this one's sizes symbolic
        implementation = self.table[row["implementation"]]
        function, arguments = implementation.make(case, inputs)
        if implementation.compiled:
            function = torch.compile(function, dynamic=False)

        def forward() -> Tensor:
            with torch.no_grad():
                return function(*arguments)

        def forward_backward() -> tuple[Tensor, ...]:
            y = function(*arguments)
            return y, *torch.autograd.grad(y, arguments, grad_y)

        y, row["first_forward_ms"] = measure.first_call(forward, self.device)
        results, row["first_forward_backward_ms"] = measure.first_call(forward_backward, self.device)
        results = [result.detach() for result in results]
        if y.shape != grad_y.shape:
            raise ValueError(f"the output has shape {tuple(y.shape)}, not {tuple(grad_y.shape)}")
        if implementation.exact and expected is not None:
            names = ("forward", "y", "grad_x", "grad_channel_filter", "grad_spatial_filter")
            pairs = zip(names, (y, *results), (expected[0], *expected), strict=True)
            errors = {name: measure.relative_error(a, b) for name, a, b in pairs}
            row["error"] = max(errors.values())
            for name, error in errors.items():
                if not error <= MAX_ERROR:
                    raise ValueError(f"wrong result: {name} differs from {self.reference} by {error:.2g}")
        elif not all(bool(result.isfinite().all()) for result in results):
            raise ValueError("a result is not finite")
        if row["implementation"] in self.names:
            calls = dict(zip(PARTS, (forward, forward_backward), strict=True))
            row |= {part: measure.time_call(call, self.device, self.budget) for part, call in calls.items()}
            for part, call in calls.items():
                row[f"{part}_mib"], row[f"{part}_resident_mib"] = measure.call_memory(call, self.device)
        return results


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    head = [row["shape"], row["implementation"]]
    if "failed" in row:
        return TABLE.row(head, row["failed"])
    percents = [bench.number(row.get(f"floor_{part}_percent"), decimals=1) for part in PARTS]
    ratios = [bench.number(row.get(f"{part}_to_ours"), decimals=2) for part in PARTS]
    percent, ratio = (" / ".join(pair) if pair != ["-", "-"] else "-" for pair in (percents, ratios))
    times = [bench.number(row[part]["median_ms"]) for part in PARTS]
    return TABLE.row([*head, *times, percent, *(bench.number(row[f"{part}_mib"], decimals=1) for part in PARTS), ratio])


def totals(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Milliseconds of all layers of ResNet50, per implementation that was measured on each of their shapes."""
    counted = [row for row in rows if row["count"]]
    result = {}
    for name in dict.fromkeys(row["implementation"] for row in counted):
        own = [row for row in counted if row["implementation"] == name and "failed" not in row]
        if len({row["shape"] for row in own}) == len(named_cases("resnet50", 1)):
            result[name] = {f"{part}_ms": sum(row["count"] * row[part]["median_ms"] for row in own) for part in PARTS}
    return result


def summary_lines(report: dict[str, Any], reference: str) -> list[str]:
    """Lines below the table: latency of the first calls, sums over a network."""

    def figures(values: dict[str, Any], key: str, between: str) -> str:
        return between.join(bench.number(values[key.format(part)]) for part in PARTS)

    lines = ["", f"First calls of {reference}, compilation included, ms: forward, then forward + backward"]
    for row in report["rows"]:
        if row["implementation"] == reference and "first_forward_ms" in row:
            lines.append(f"- {row['shape']}: {figures(row, 'first_{}_ms', ' + ')}")
    if report["totals"]:
        layers = sum(case.count for case in named_cases("resnet50", 1))
        lines += ["", f"All {layers} layers, ms: forward, and forward + backward"]
    return lines + [f"- {name}: {figures(total, '{}_ms', ' and ')}" for name, total in report["totals"].items()]


def make_cases(arguments: argparse.Namespace) -> list[Case]:
    """Cases of --shapes; ValueError for one that is no shape, or does not go with --up."""
    up = arguments.up or "upsample" in arguments.shapes
    cases: list[Case] = []
    for name in arguments.shapes or ["upsample" if up else "resnet50"]:
        named = named_cases(name, 256 if arguments.device == "cuda" else 8)
        if up and (name in ("resnet50", "table2", "tableA", "all") or named[0].stride > 1):
            raise ValueError(f"--shapes {name} does not go with the upsampling operator: give upsample or B,C,H,W")
        batch = None if "," in name else arguments.batch
        cases += [replace(case, batch=batch or case.batch) for case in named]
    settings = {"kernel_size": arguments.kernel_size, "combine": arguments.combine}
    settings |= {"scale": arguments.scale if up else 1, "dtype": bench.DTYPES[arguments.dtype]}
    settings |= {"memory_format": bench.FORMATS[arguments.memory_format]}
    return [replace(case, **settings) for case in cases]


def make_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    add = parser.add_argument
    shapes = "resnet50, table2, tableA, upsample, all, or B,C,H,W[,stride]; repeatable (default: resnet50)"
    add("--shapes", action="append", default=[], help=shapes)
    add("--up", action="store_true", help="measure the upsampling operator (default shapes: upsample)")
    add("--scale", type=at_least(2), default=2, help="of the upsampling (default: %(default)s)")
    add("--kernel-size", type=at_least(1), default=3, metavar="K", help="odd (default: %(default)s)")
    add("--batch", type=at_least(1), help="replaces the batch of the named shapes")
    add("--combine", choices=("mul", "add"), default="mul", help="default: %(default)s")
    add("--budget", type=float, default=1.0, metavar="SECONDS", help="of each timing (default: 1)")
    add("--only", metavar="NAME,NAME", help="these implementations only")
    add("--skip-compiled", action="store_true", help="leave out what torch.compile takes long for")
    bench.add_options(parser, "benchmark_op")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = make_parser()
    arguments = parser.parse_args(argv)
    if arguments.kernel_size % 2 == 0:
        parser.error(f"--kernel-size must be odd, not {arguments.kernel_size}")
    if not 0 < arguments.budget < math.inf:
        parser.error(f"--budget must be above zero, not {arguments.budget}")
    device = bench.prepare(parser, arguments)
    try:
        cases = make_cases(arguments)
    except ValueError as error:
        parser.error(str(error))
    table = DDF_UP if cases[0].scale > 1 else DDF
    names = [name.strip() for name in arguments.only.split(",")] if arguments.only else list(table)
    for name in set(names) - set(table):
        parser.error(f"--only {name}: choose from {', '.join(table)}")
    names = [name for name in names if not (arguments.skip_compiled and table[name].compiled)]
    with measure.fresh_compiler_caches(arguments.keep_caches), measure.memory_limit(device):
        rate = measure.copy_rate(device, min(arguments.budget, 1.0))
        return _measure_all(Run(device, table, names, arguments.budget, rate), cases, arguments)


def _measure_all(run: Run, cases: list[Case], arguments: argparse.Namespace) -> int:
    settings = {key: str(getattr(cases[0], key)) for key in ("kernel_size", "combine", "scale")}
    settings |= {"dtype": arguments.dtype, "memory_format": arguments.memory_format, "budget_s": run.budget}
    report: dict[str, Any] = {"environment": bench.environment(run.device), "settings": settings}
    report |= {"copy_bytes_per_second": run.copy_rate, "rows": [], "totals": {}}
    rate = f"copy {run.copy_rate / 1e9:,.0f} GB/s"
    print(bench.title(report["environment"]), arguments.dtype, arguments.memory_format, rate, sep=", ")
    print(TABLE.head, flush=True)
    lines = [TABLE.head]
    try:
        for case in cases:
            for row in run.rows(case):
                report["rows"].append(row)
                lines.append(line(row))
                print(lines[-1], flush=True)
                if arguments.output:  # after every row: a machine that runs out of memory leaves what was measured
                    bench.write_json(arguments.output / "benchmark_op.json", report)
    except KeyboardInterrupt:
        report["interrupted"] = True
        lines.append("Interrupted: the rest was not measured.")
        print(lines[-1])
    report["totals"] = totals(report["rows"])
    below = summary_lines(report, run.reference)
    print("\n".join(below))
    panels = {
        "forward, ms": lambda row: row["forward"]["median_ms"],
        "forward + backward, ms": lambda row: row["forward_backward"]["median_ms"],
        "peak memory of forward + backward, MiB": lambda row: row["forward_backward_mib"],
    }
    chart = {"by": ("shape", "implementation"), "panels": panels, "log": True}
    bench.save(arguments.output, "benchmark_op", "DDF operator", report, lines + below, **chart)
    failed = any("failed" in row and row["implementation"] == run.reference for row in report["rows"])
    return int(failed or "interrupted" in report)


if __name__ == "__main__":
    sys.exit(main())
