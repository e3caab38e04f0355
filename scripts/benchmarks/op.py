#!/usr/bin/env python
"""Measure the DDF operator beside what could replace it: time and peak memory, forward and forward + backward.

    python scripts/benchmarks/op.py                                      # the 3x3 layers of ResNet50; batch 256 on CUDA
    python scripts/benchmarks/op.py --shapes all --output runs/op        # and the shapes of the paper's tables 2 and A
    python scripts/benchmarks/op.py --shapes 8,64,56,56 --shapes 8,128,56,56,2 --device cpu --threads 2
    python scripts/benchmarks/op.py --shapes table2 --only "ddf,unfold" --dtype fp32 --memory-format contiguous
    python scripts/benchmarks/op.py --up --output runs/up                # the upsampling operator, ddf_up

Implementations: ddf, ddf compiled (torch.compile), unfold and unfold compiled (F.unfold times both filters, plain
autograd), shifted compiled (torch.compile of ddfnet.ops.ddf_reference), depthwise conv and dense conv (static filters).
With --up: ddf_up, ddf_up compiled, ddf + shuffle (scale^2 ddf, interleaved), nearest, bilinear, transposed conv, and
conv + shuffle.

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
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run from a checkout without `pip install`

import torch
from torch import Tensor

from scripts.benchmarks import common as bench
from scripts.benchmarks.op_cases import (
    DDF,
    DDF_UP,
    RESNET50,
    Case,
    Implementation,
    floor_bytes,
    make_inputs,
    parse_shape,
    preset,
)

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
FORMATS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
MAX_ERROR = 2e-2  # relative L2; bfloat16 sums in another order differ by less than 1e-2
COLUMNS = {
    "shape": 16,
    "implementation": 16,
    "fwd ms": 8,
    "fwd+bwd ms": 10,
    "% of floor": 10,
    "fwd MiB": 9,
    "f+b MiB": 9,
    "time / ours'": 13,
}
WIDTHS = list(COLUMNS.values())


# --- the measurement --------------------------------------------------------------------------------------------------


def measure(
    implementation: Implementation,
    case: Case,
    inputs: tuple[Tensor, ...],
    grad_y: Tensor,
    expected: list[Tensor] | None,
    budget: float | None,
) -> tuple[dict[str, Any], list[Tensor]]:
    """Figures of an implementation, and its output and gradients.

    Args:
        implementation: what to measure.
        case: the shape.
        inputs: of `make_inputs`.
        grad_y: the gradient of the output.
        expected: output and gradients of ours, or None where there are none to compare with.
        budget: seconds for each timing; None: compute the results only.

    Raises:
        ValueError: a result that differs from ours, or is not finite.
    """
    device = inputs[0].device
    torch.compiler.reset()  # what was compiled for another shape would make this one's sizes symbolic
    function, arguments = implementation.make(case, inputs)
    if implementation.compiled:
        function = torch.compile(function, dynamic=False)

    def forward() -> Tensor:
        with torch.no_grad():
            return function(*arguments)

    def forward_backward() -> tuple[Tensor, ...]:
        y = function(*arguments)
        return y, *torch.autograd.grad(y, arguments, grad_y)

    y, first_forward = bench.first_call(forward, device)
    results, first_both = bench.first_call(forward_backward, device)
    results = [result.detach() for result in results]
    if y.shape != grad_y.shape:
        raise ValueError(f"the output has shape {tuple(y.shape)}, not {tuple(grad_y.shape)}")
    figures: dict[str, Any] = {"first_forward_ms": first_forward, "first_forward_backward_ms": first_both}
    if implementation.exact and expected is not None:
        errors = {"forward": relative_error(y, expected[0])}
        names = ("y", "grad_x", "grad_channel_filter", "grad_spatial_filter")
        errors |= {name: relative_error(a, b) for name, a, b in zip(names, results, expected, strict=True)}
        figures["error"] = max(errors.values())
        for name, error in errors.items():
            if not error <= MAX_ERROR:
                raise ValueError(f"wrong result: {name} differs from ours by {error:.2g}")
    elif not all(bool(result.isfinite().all()) for result in results):
        raise ValueError("a result is not finite")
    if budget is not None:
        figures["forward"] = bench.time_call(forward, device, budget)
        figures["forward_backward"] = bench.time_call(forward_backward, device, budget)
        for name, call in (("forward", forward), ("forward_backward", forward_backward)):
            figures[f"{name}_mib"], figures[f"{name}_resident_mib"] = bench.call_memory(call, device)
    return figures, results


def relative_error(result: Tensor, expected: Tensor) -> float:
    """||result - expected|| / ||expected||, in float64, an image at a time to save memory."""
    difference = total = 0.0
    for a, b in zip(result.detach(), expected.detach(), strict=True):
        b = b.double()
        difference += float((a.double() - b).square().sum())
        total += float(b.square().sum())
    return math.sqrt(difference / total) if total else math.inf


def run_case(
    case: Case, table: dict[str, Implementation], only: list[str], budget: float, device: torch.device, copy_rate: float
) -> Iterator[dict[str, Any]]:
    """Rows of one shape, as they are measured; a failure is a row with `failed`. Ours always runs, as the reference."""
    torch.manual_seed(0)
    try:
        inputs = make_inputs(case, device)
        grad_y = torch.randn(case.batch, case.channels, *case.output_size, dtype=case.dtype, device=device)
        grad_y = grad_y.contiguous(memory_format=case.memory_format)
    except Exception as error:  # out of memory
        for name in only:
            yield {"shape": case.name, "implementation": name, "count": case.count, "failed": bench.reason(error)}
        return
    forward_bytes, both_bytes = floor_bytes(case, inputs)
    floors = {"forward_ms": 1e3 * forward_bytes / copy_rate, "forward_backward_ms": 1e3 * both_bytes / copy_rate}
    expected, ours = None, None
    for name, implementation in table.items():
        is_ours = name == next(iter(table))
        if name not in only and not is_ours:
            continue
        row: dict[str, Any] = {"shape": case.name, "implementation": name, "count": case.count}
        row |= {"floor_forward_bytes": forward_bytes, "floor_forward_backward_bytes": both_bytes}
        try:
            figures, results = measure(implementation, case, inputs, grad_y, expected, budget if name in only else None)
            row |= figures
        except Exception as error:
            row["failed"] = bench.reason(error)
            results = None
        if is_ours:
            expected, ours = results, row
        del results
        if device.type == "cuda":
            torch.cuda.empty_cache()
        if "forward" in row and "failed" not in row:
            for key in ("forward", "forward_backward"):
                if is_ours:
                    row[f"floor_{key}_ms"] = floors[f"{key}_ms"]
                    row[f"floor_{key}_percent"] = 100 * floors[f"{key}_ms"] / row[key]["median_ms"]
                if ours is not None and key in ours and "failed" not in ours:
                    row[f"{key}_to_ours"] = row[key]["median_ms"] / ours[key]["median_ms"]
        if name in only or "failed" in row:
            yield row


# --- reports ----------------------------------------------------------------------------------------------------------


def cells(row: dict[str, Any]) -> list[str]:
    """A row of the table, without the columns of a failed one."""
    if "failed" in row:
        return [row["shape"], row["implementation"], f"FAILED: {row['failed']}"]
    pairs = [
        [bench.number(row.get(key.format(part)), decimals=decimals) for part in ("forward", "forward_backward")]
        for key, decimals in (("floor_{}_percent", 1), ("{}_to_ours", 2))
    ]
    percent, ratio = (" / ".join(pair) if pair != ["-", "-"] else "-" for pair in pairs)
    return [
        row["shape"],
        row["implementation"],
        bench.number(row["forward"]["median_ms"]),
        bench.number(row["forward_backward"]["median_ms"]),
        percent,
        bench.number(row["forward_mib"], decimals=1),
        bench.number(row["forward_backward_mib"], decimals=1),
        ratio,
    ]


def summary_lines(report: dict[str, Any], ours: str) -> list[str]:
    """What goes below the table: latency of the first calls, sums over a network."""
    lines = ["", f"First calls of {ours}, compilation included, ms: forward, then forward + backward"]
    for row in report["rows"]:
        if row["implementation"] == ours and "first_forward_ms" in row:
            figures = (bench.number(row[f"first_{key}_ms"]) for key in ("forward", "forward_backward"))
            lines.append(f"- {row['shape']}: {' + '.join(figures)}")
    if report["totals"]:
        lines += ["", f"All {sum(n for *_, n in RESNET50)} layers, ms: forward, and forward + backward"]
    for name, total in report["totals"].items():
        figures = (bench.number(total[f"{key}_ms"]) for key in ("forward", "forward_backward"))
        lines.append(f"- {name}: {' and '.join(figures)}")
    return lines


def totals(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Milliseconds of all layers of the network, per implementation, where each shape was measured."""
    counted = [row for row in rows if row["count"]]
    shapes = {row["shape"] for row in counted}
    result = {}
    for name in dict.fromkeys(row["implementation"] for row in counted):
        own = [row for row in counted if row["implementation"] == name and "failed" not in row]
        if len({row["shape"] for row in own}) == len(shapes) == len(RESNET50):
            result[name] = {
                f"{key}_ms": sum(row["count"] * row[key]["median_ms"] for row in own)
                for key in ("forward", "forward_backward")
            }
    return result


def save(folder: Path, report: dict[str, Any], lines: list[str]) -> None:
    """benchmark_op.json, .md and, where matplotlib is installed, .png in the folder."""
    bench.write_json(folder / "benchmark_op.json", report)
    bench.write_markdown(folder / "benchmark_op.md", "DDF operator", report["environment"], lines)
    rows = [row for row in report["rows"] if "failed" not in row]
    shapes, names = (list(dict.fromkeys(row[key] for row in rows)) for key in ("shape", "implementation"))
    found = {(row["shape"], row["implementation"]): row for row in rows}
    panels = {}
    for title, value in (
        ("forward, ms", lambda row: row["forward"]["median_ms"]),
        ("forward + backward, ms", lambda row: row["forward_backward"]["median_ms"]),
        ("peak memory of forward + backward, MiB", lambda row: row["forward_backward_mib"]),
    ):
        panels[title] = {
            name: [value(found[shape, name]) if (shape, name) in found else None for shape in shapes] for name in names
        }
    if rows:
        bench.bar_chart(folder / "benchmark_op.png", panels, shapes, log=True)


# --- the command line -------------------------------------------------------------------------------------------------


def make_cases(arguments: argparse.Namespace, device: torch.device) -> list[Case]:
    """Cases of --shapes.

    Raises:
        ValueError: a shape that is not one, or does not go with --up.
    """
    up = arguments.up or "upsample" in arguments.shapes
    cases: list[Case] = []
    for name in arguments.shapes or (["upsample"] if up else ["resnet50"]):
        presets = preset(name, 256 if device.type == "cuda" else 8)
        if presets:
            cases += [replace(case, batch=arguments.batch or case.batch) for case in presets]
        else:
            cases.append(parse_shape(name))
        if up and (name in ("resnet50", "table2", "tableA", "all") or cases[-1].stride > 1):
            raise ValueError(f"--shapes {name} does not go with the upsampling operator: give upsample or B,C,H,W")
    settings = {
        "kernel_size": arguments.kernel_size,
        "combine": arguments.combine,
        "scale": arguments.scale if up else 1,
        "dtype": DTYPES[arguments.dtype],
        "memory_format": FORMATS[arguments.memory_format],
    }
    return [replace(case, **settings) for case in cases]


def make_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--shapes",
        action="append",
        default=[],
        help="resnet50, table2, tableA, upsample, all, or B,C,H,W[,stride]; repeatable (default: resnet50)",
    )
    parser.add_argument("--up", action="store_true", help="measure the upsampling operator (default shapes: upsample)")
    parser.add_argument("--scale", type=int, default=2, help="of the upsampling (default: %(default)s)")
    cuda = torch.cuda.is_available()
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if cuda else "cpu", help="default: CUDA")
    parser.add_argument("--dtype", choices=DTYPES, help="default: bf16 on CUDA, fp32 on a CPU")
    parser.add_argument("--memory-format", choices=FORMATS, default="channels_last", help="default: %(default)s")
    parser.add_argument("--kernel-size", type=int, default=3, metavar="K", help="odd (default: %(default)s)")
    parser.add_argument("--batch", type=int, help="replaces the batch of the named shapes")
    parser.add_argument("--combine", choices=("mul", "add"), default="mul", help="default: %(default)s")
    parser.add_argument("--threads", type=int, help="of a CPU (default: PyTorch's)")
    parser.add_argument("--budget", type=float, default=1.0, metavar="SECONDS", help="of each timing (default: 1)")
    parser.add_argument("--only", metavar="NAME,NAME", help="these implementations only")
    parser.add_argument("--skip-compiled", action="store_true", help="leave out what torch.compile takes long for")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="write benchmark_op.json, .md and .png here")
    return parser


def _check(arguments: argparse.Namespace) -> tuple[torch.device, list[Case], dict[str, Implementation], list[str]]:
    """Device, cases, implementations and the names of those to measure.

    Raises:
        ValueError: arguments that do not fit.
    """
    for name, least in (("batch", 1), ("scale", 2), ("kernel_size", 1)):
        bench.check_least(arguments, name, least)
    if arguments.kernel_size % 2 == 0:
        raise ValueError(f"--kernel-size must be odd, not {arguments.kernel_size}")
    if not 0 < arguments.budget < math.inf:
        raise ValueError(f"--budget must be above zero, not {arguments.budget}")
    device = bench.prepare(arguments)
    cases = make_cases(arguments, device)
    table = DDF_UP if cases[0].scale > 1 else DDF
    names = [name.strip() for name in arguments.only.split(",")] if arguments.only else list(table)
    for name in names:
        if name not in table:
            raise ValueError(f"--only {name}: choose from {', '.join(table)}")
    if arguments.skip_compiled:
        names = [name for name in names if not table[name].compiled]
    return device, cases, table, names


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    arguments = make_parser().parse_args(argv)
    try:
        device, cases, table, names = _check(arguments)
    except (ValueError, OSError) as error:
        print(f"benchmark_op: {error}", file=sys.stderr)
        return 2
    with bench.fresh_compiler_caches(), bench.memory_limit(device):
        return _run(arguments, device, cases, table, names)


def _run(
    arguments: argparse.Namespace,
    device: torch.device,
    cases: list[Case],
    table: dict[str, Implementation],
    names: list[str],
) -> int:
    environment = bench.environment(device)
    rate = bench.copy_rate(device, min(arguments.budget, 1.0))
    settings = {
        key: str(value) for key, value in asdict(cases[0]).items() if key in ("kernel_size", "combine", "scale")
    }
    settings |= {"dtype": arguments.dtype, "memory_format": arguments.memory_format, "budget_s": arguments.budget}
    print(bench.title(environment), arguments.dtype, arguments.memory_format, f"copy {rate / 1e9:,.0f} GB/s", sep=", ")
    lines = [bench.table_head(list(COLUMNS), WIDTHS)]
    print(lines[0], flush=True)
    report = {"environment": environment, "settings": settings, "copy_bytes_per_second": rate, "rows": [], "totals": {}}
    try:
        for case in cases:
            for row in run_case(case, table, names, arguments.budget, device, rate):
                report["rows"].append(row)
                lines.append(bench.table_row(cells(row), WIDTHS))
                print(lines[-1], flush=True)
                if arguments.output:  # after every row: a machine that runs out of memory leaves what was measured
                    bench.write_json(arguments.output / "benchmark_op.json", report)
    except KeyboardInterrupt:
        report["interrupted"] = True
        lines.append("Interrupted: the rest was not measured.")
        print(lines[-1])
    report["totals"] = totals(report["rows"])
    below = summary_lines(report, next(iter(table)))
    print("\n".join(below))
    if arguments.output:
        save(arguments.output, report, lines + below)
        print(arguments.output)
    failed = any("failed" in row and row["implementation"] == next(iter(table)) for row in report["rows"])
    return int(failed or "interrupted" in report)


if __name__ == "__main__":
    sys.exit(main())
