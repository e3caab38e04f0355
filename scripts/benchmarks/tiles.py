#!/usr/bin/env python
"""Compare the launch policy of the Triton kernels with alternatives on a GPU, for the large 3x3 layers of ResNet50.

    python scripts/benchmarks/tiles.py --output runs/tiles                     # what fits in 55 seconds
    python scripts/benchmarks/tiles.py --limit 600 --only ddf_forward_kernel --shapes 64,56,1
    python scripts/benchmarks/tiles.py --dry-run                               # the list of variants, without a GPU

Inputs are bfloat16, channels_last. "us" are microseconds of the device with a cold L2 cache: of the call, with the
second stage of its sums, which is what matters, and of the kernel alone. Of the kernel alone are GB/s and "% of floor":
each tensor it is given moved once, partial sums included, at the rate of a large copy. The policy's tiles come first,
then what differs in one choice, then in two: a limit cuts off what tells least. Other processes compile ahead into
Triton's cache, so that a second run gets further. Results that differ from the policy's are a FAILED row.

Exit code 0: measured; 1: a tile of the policy failed or was not reached; 2: bad arguments, or no CUDA device.
"""

import time

START = time.monotonic()  # the limit includes the seconds that imports take

import argparse
import contextlib
import itertools
import math
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run from a checkout without `pip install`

import torch
import triton

from ddfnet.ops.compile_worker import pretend_device
from ddfnet.ops.ddf import tiling
from ddfnet.ops.ddf import triton as triton_launch
from ddfnet.ops.ddf.arguments import Arguments, Needed
from ddfnet.ops.ddf_layer import triton as layer_launch
from ddfnet.ops.ddf_layer.arguments import Settings
from ddfnet.utils.cli import at_least
from scripts.benchmarks import common as bench
from scripts.benchmarks import measure

SHAPES = ((64, 56, 1), (128, 28, 1), (256, 14, 1), (128, 56, 2))  # channels, height and width, stride
SIZES = {"sizes": ["constant", "argument"]}
PIXELS = {"block": [(1, 1), (1, 2), (2, 2), (1, 4), (2, 4)], "blocks": [8, 16], "warps": [2, 4, 8]} | SIZES
SUMS = {"block": [(1, 1), (1, 2), (2, 2)], "blocks": [4, 8, 16], "channels": [64, 128], "warps": [1, 2, 4]} | SIZES
BRANCH = {"pixels": [32, 64, 128], "channels": [64, 128], "warps": [2, 4, 8]}
LOGITS = {"pixels": [32, 64, 128, 256], "warps": [1, 2, 4]}
CHOICES: dict[str, dict[str, list]] = {
    **{"ddf_forward_kernel": PIXELS, "ddf_backward_x_kernel": PIXELS},
    "ddf_backward_filters_kernel": {**SUMS, "chunk": [64, 128, 256, 784], "rows": [1, 3]},
    **{"spatial_filters_kernel": BRANCH, "spatial_filters_backward_kernel": LOGITS},
    # A layer's gradient of x: written once, or by the operator's kernel and this one, one after the other.
    **{"layer_backward_x": PIXELS, "spatial_filters_backward_x_kernel": BRANCH},
}
ORDER = list(CHOICES)
LOGITS_OF_PIXEL = 9  # in place of channels, of the kernel that has none
OF_X = ("ddf_backward_x_kernel", "layer_backward_x")  # the same kernel
TABLE = bench.Table({"kernel": 36, "variant": 77, "us": 7, "kernel us": 9, "GB/s": 6, "% of floor": 10, "/ policy": 8})
MAX_ERROR = 1e-2  # relative L2
Launch = tuple[Any, tuple[int], tuple, dict[str, Any]]  # kernel, grid, arguments, constants with warps and stages


class Variant(NamedTuple):
    """All choices for a kernel and a shape (B, C, size, stride), and those that are not the policy's."""

    kernel: str
    shape: tuple[int, ...]
    choices: dict[str, Any]
    changes: dict[str, Any]
    grid: int | str = ""
    failed: str = ""  # why it cannot be launched


@contextlib.contextmanager
def applied(changes: dict[str, Any], execute: bool) -> Iterator[list[Launch]]:
    """Within, launches follow the changes and are recorded; they run only if `execute`. The policy is back after it."""
    launches, launch, branch = [], triton_launch.launch, layer_launch

    def intercept(kernel: Any, grid: tuple[int], *arguments: Any, num_warps: int, **constants: Any) -> None:
        launches.append((kernel, grid, arguments, {**constants, "num_warps": changes.get("warps", num_warps)}))
        if execute:
            launch(kernel, grid, *arguments, **launches[-1][3])

    def changed(policy: Callable[..., tiling.Tile], *arguments: Any) -> tiling.Tile:
        tile = policy(*arguments)
        y, x = changes.get("block", (tile.block_y, tile.block_x))
        blocks, channels = changes.get("blocks", tile.blocks), changes.get("channels", tile.block_channels)
        rows = changes.get("rows", tile.tap_rows)
        return replace(tile, block_y=y, block_x=x, blocks=blocks, block_channels=channels, tap_rows=rows)

    names = ("forward_tile", "backward_x_tile", "backward_filters_tile")
    tiles = {name: partial(changed, getattr(tiling, name)) for name in names}
    static = 0 if changes.get("sizes") == "argument" else tiling._MAX_STATIC_SHAPES
    policy = {"_CHUNK_PIXELS": changes.get("chunk", tiling._CHUNK_PIXELS), "_MAX_STATIC_SHAPES": static}
    sizes = {f"_BLOCK_{key.upper()}": changes[key] for key in ("pixels", "channels") if key in changes}
    with (
        mock.patch.object(triton_launch, "launch", intercept),
        mock.patch.multiple(branch, launch=intercept, **sizes),
        mock.patch.multiple(tiling, _static_shapes=set(), **policy, **tiles),  # shapes met before do not decide
    ):
        yield launches


@cache
def calls(shape: tuple[int, ...], device: str) -> dict[str, Callable[[], Any]]:
    """By kernel: the function that launches it for random inputs of this shape, and sums what it left in parts."""
    batch, channels, size, stride = shape
    out = (size - 1) // stride + 1
    torch.manual_seed(0)
    normal = partial(torch.randn, device=device)
    half = partial(normal, dtype=torch.bfloat16)
    x, dy = (half(batch, channels, n, n).contiguous(memory_format=torch.channels_last) for n in (size, out))
    dense = normal(batch, 1, 9, channels)  # as the kernels read it, so that no copy is timed
    filters = (dense.view(batch, 3, 3, channels).permute(0, 3, 1, 2), half(batch, 9, out, out))
    weight, bias = normal(9, channels, 1, 1) / math.sqrt(channels), normal(9)
    grad_filters, inverse_std = half(batch, 1, 9, out, out), normal(batch, 1, out, out).abs() + 0.5
    on_grid = torch.zeros_like(x[:, :1]).expand(9, -1, -1, -1, -1).clone()
    on_grid[..., ::stride, ::stride] = half(9, batch, 1, out, out)
    of_branch = triton_launch.Branch(on_grid.reshape(9, -1), weight, normal(batch, channels))
    given, branch = Arguments(x, *filters, 3, stride, 1, True, 1), Settings(3, stride, 1, 1, True, 0.47)
    read, needed = given._replace(channel_filter=dense), Needed(False, True, True)
    grad_x = torch.zeros_like(x)  # the last kernel adds to it, call by call: no result that can be compared
    logits = (grad_filters, filters[1], inverse_std, x, branch)
    functions = (
        partial(triton_launch.forward, given),
        partial(triton_launch.backward_x, dy, read),
        partial(triton_launch._backward_filters, dy, read, given, needed),
        lambda: _summed(*layer_launch.spatial_filters(x, weight, bias, branch)),
        lambda: _summed_logits(*layer_launch.spatial_logits_backward(*logits)),
        partial(triton_launch.backward_x, dy, read, of_branch),
        lambda: layer_launch.add_branch(grad_x, x, of_branch, branch) or (),
    )
    return dict(zip(ORDER, functions, strict=True))


def _summed(filters: torch.Tensor, inverse_std: torch.Tensor, partials: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """With the average of x, whose parts are the tiles."""
    return filters, inverse_std, partials.sum(1)


def _summed_logits(grad_logits: torch.Tensor, partials: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """With their sums, whose parts are the tiles."""
    return grad_logits, partials.sum(0)


def record(kernel: str, shape: tuple[int, ...], changes: dict[str, Any]) -> Launch:
    """The launch of a variant, from meta tensors; ValueError if no GPU could run it."""
    with applied(changes, execute=False) as launches:
        calls(shape, "meta")[kernel]()
    ((_, grid, _, constants),) = launches
    blocks = {name: size for name, size in constants.items() if name.startswith("BLOCK") or name == "num_warps"}
    if any(size < 1 or size & (size - 1) for size in blocks.values()) or not 0 < grid[0] < 2**31:
        raise ValueError(f"sizes that are no powers of two, or too many programs: {blocks}, grid {grid[0]}")
    return launches[0]


def variants(kernel: str, shape: tuple[int, ...]) -> list[Variant]:
    """The policy's own choice, then what differs in one choice, then in two; the most alike in registers first."""
    constants, candidates = record(kernel, shape, {})[3], []
    own = {"block": (constants.get("BLOCK_Y"), constants.get("BLOCK_X")), "blocks": constants.get("BLOCKS")}
    own |= {"pixels": constants.get("BLOCK_PIXELS"), "channels": constants.get("BLOCK_CHANNELS", LOGITS_OF_PIXEL)}
    own |= {"warps": constants["num_warps"], "chunk": tiling._CHUNK_PIXELS, "rows": constants.get("TAP_ROWS")}
    own["sizes"] = "constant" if constants.get("HEIGHT") else "argument"
    own = {name: value for name, value in own.items() if name in CHOICES[kernel] or name == "channels"}
    for values in itertools.product([None], *CHOICES[kernel].values()):
        choices = own | dict(zip(CHOICES[kernel], values[1:], strict=True))
        changes = {name: value for name, value in choices.items() if value != own[name]}
        many, stride = [_elements(kernel, c) for c in (choices, own)], shape[-1]
        most = 128 if "pixels" in CHOICES[kernel] else 16 if kernel == ORDER[2] else 64  # above, registers are spilled
        fits = 2 <= many[0] <= most and (choices["channels"] <= max(own["channels"], shape[1]))
        if kernel in OF_X and changes != {"block": (1, 1)}:  # other blocks gather a stride with masks
            fits = fits and all(n % stride == 0 for n in choices["block"])
        if fits and (len(changes) == 1 or (len(changes) == 2 and "sizes" not in changes)):
            candidates.append((len(changes), abs(math.log2(many[0] / many[1])), choices, changes))
    result, seen = [], []
    for *_, choices, changes in [(0, 0, own, {}), *sorted(candidates, key=lambda item: item[:2])]:
        try:
            _, grid, arguments, constants = record(kernel, shape, changes)
            launch = grid, constants, [a for a in arguments if not isinstance(a, torch.Tensor)]
            if launch not in seen:  # a chunk larger than the map is the map
                result.append(Variant(kernel, shape, choices, changes, grid[0]))
            seen.append(launch)
        except Exception as error:
            result.append(Variant(kernel, shape, choices, changes, failed=bench.reason(error)))
    return result


def _elements(kernel: str, choices: dict[str, Any]) -> float:
    """Accumulators of a thread (of a tap, for the filters), or elements of x in a step of the spatial branch."""
    pixels = choices.get("pixels") or choices["blocks"] * (1 if kernel == ORDER[2] else math.prod(choices["block"]))
    return pixels * choices["channels"] / (32 * choices["warps"])


def start_worker(target: Any) -> None:
    """Make Triton compile for the GPU of the main process without a CUDA context of this one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process ends this one
    pretend_device(target)


def compile_variant(variant: Variant) -> str:
    """Leave the compiled kernel in Triton's cache on disk, where a launch will find it; its hash."""
    kernel, grid, arguments, constants = record(*variant[:2], variant.changes)
    return kernel.warmup(*arguments, grid=grid, **constants).hash


def run_variant(
    row: dict, variant: Variant, device: torch.device, timer: Callable[..., dict], policy: tuple | None
) -> list:
    """Put the figures into the row; the results, which have to be those of the policy (ValueError)."""
    call = calls(variant.shape, device.type)[variant.kernel]
    with applied(variant.changes, execute=True) as launches:
        results = call()
        results = [results] if isinstance(results, torch.Tensor) else list(results)
        (kernel, grid, arguments, constants), *_ = launches
        for result, other in zip(results, policy[0] if policy else results, strict=True):
            error = float((result.float() - other.float()).norm() / other.float().norm())
            if not error < MAX_ERROR:
                raise ValueError(f"wrong result: differs from the policy's by {error:.2g}")
        row["call"] = timer(call, device, 0.02)  # seconds for it
    again = partial(triton_launch.launch, kernel, grid, *arguments, **constants)
    row["kernel_alone"] = timer(again, device, 0.02)
    tensors = {id(a): a.numel() * a.element_size() for a in arguments if isinstance(a, torch.Tensor)}
    row |= {"bytes": sum(tensors.values()), "us": 1e3 * row["call"]["median_ms"]}
    row |= {"kernel_us": 1e3 * row["kernel_alone"]["median_ms"], "to_policy": row["us"] / (policy or (0, row["us"]))[1]}
    row["gb_per_s"] = row["bytes"] / row["kernel_us"] / 1e3
    return results


def sweep(
    plan: Sequence[Variant],
    device: torch.device,
    copy_rate: float,
    wait: Callable[[int], bool] = lambda index: True,
    timer: Callable[..., dict] = measure.time_call,
) -> Iterator[dict[str, Any]]:
    """Rows of the plan in order, until `wait(index)` says that the time is up; a failure is a row with `failed`."""
    policies: dict[tuple, tuple] = {}  # results and microseconds of the policy
    for index, variant in enumerate(plan):
        if not wait(index):
            return
        row = {"kernel": variant.kernel, "shape": ",".join(map(str, variant.shape)), "policy": not variant.changes}
        row |= {"choices": variant.choices, "grid": variant.grid}
        try:
            if variant.failed or (variant.changes and variant[:2] not in policies):
                raise ValueError(variant.failed or "the policy's own tile failed: nothing to compare with")
            results = run_variant(row, variant, device, timer, policies.get(variant[:2]))
            row["floor_percent"] = 1e11 * row["gb_per_s"] / copy_rate
            policies.setdefault(variant[:2], (results, row["us"]))
        except Exception as error:
            row["failed"] = bench.reason(error)
        yield row


def describe(choices: dict[str, Any]) -> str:
    """Choices in a few words."""
    return ", ".join(f"{name} {'x'.join(map(str, v)) if name == 'block' else v}" for name, v in choices.items())


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    name = f"{row['kernel'].removeprefix('ddf_').removesuffix('_kernel')} {row['shape']}"
    star, note = "* " if row.get("fastest") else "", " POLICY" if row["policy"] else ""
    head = [name, star + describe(row["choices"]) + note]
    if "failed" in row:
        return TABLE.row(head, row["failed"])
    decimals = {"us": 1, "kernel_us": 1, "gb_per_s": 0, "floor_percent": 1, "to_policy": 3}
    return TABLE.row([*head, *(bench.number(row[key], n) for key, n in decimals.items())])


def report(rows: list[dict[str, Any]], folder: Path | None, facts: dict[str, Any]) -> list[str]:
    """Table by kernel and shape, the fastest first and with a star; also as benchmark_tiles.json and .md."""
    rows = sorted(rows, key=lambda row: (ORDER.index(row["kernel"]), row["shape"], row.get("us", math.inf)))
    for _, group in itertools.groupby(rows, key=lambda row: (row["kernel"], row["shape"])):
        first = next(group)
        first["fastest"] = "failed" not in first
    lines = [TABLE.head, *map(line, rows)]
    lines += ["", f"{len(rows)} of {facts['planned']} variants; * is the fastest call of a kernel and shape"]
    if folder:
        bench.save(folder, "benchmark_tiles", "Tiles of the Triton kernels", {**facts, "rows": rows}, lines)
    return lines


def _shape(text: str) -> tuple[int, ...]:
    sizes = tuple(int(part) for part in text.split(","))
    if len(sizes) != 3 or min(sizes) < 1:
        raise ValueError(text)
    return sizes


def main() -> int:
    """Measures, or lists with --dry-run; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--only", action="append", choices=ORDER, metavar="KERNEL", help="repeatable; default: all kernels")
    add("--shapes", action="append", type=_shape, metavar="C,H,STRIDE", help="repeatable")
    add("--batch", type=at_least(1), default=256)
    add("--limit", type=at_least(1, float), default=55, metavar="SECONDS", help="measure what is possible in this")
    add("--output", type=bench.writable_folder, metavar="FOLDER", help="gets benchmark_tiles.json and .md")
    add("--dry-run", action="store_true", help="list the variants; needs no GPU")
    arguments = parser.parse_args()
    if not (arguments.dry_run or torch.cuda.is_available()):
        parser.error("PyTorch finds no CUDA device (--dry-run lists the variants without one)")
    shapes = [(arguments.batch, *shape) for shape in dict.fromkeys(arguments.shapes or SHAPES)]
    lists = [variants(kernel, shape) for shape in shapes for kernel in dict.fromkeys(arguments.only or ORDER)]
    if arguments.dry_run:
        for v in itertools.chain(*lists):
            state = f"NOT LAUNCHABLE: {v.failed}" if v.failed else f"grid {v.grid}{'' if v.changes else ' POLICY'}"
            print(v.kernel, ",".join(map(str, v.shape)), describe(v.choices), state)
        return int(any(v.failed for v in itertools.chain(*lists)))

    plan = [v for turn in itertools.zip_longest(*lists) for v in turn if v]  # one of each kernel and shape in turn
    device, rows = torch.device("cuda"), []
    facts = {"environment": bench.environment(device), "planned": len(plan)}
    facts["copy_bytes_per_second"] = rate = measure.copy_rate(device, 0.1)
    print(f"{bench.title(facts['environment'])}: copies {rate / 1e9:,.0f} GB/s; {len(plan)} variants", flush=True)
    target = triton.runtime.driver.active.get_current_target()
    workers = min(max(len(os.sched_getaffinity(0)) - 1, 1), 16)
    with multiprocessing.get_context("spawn").Pool(workers, start_worker, (target,)) as pool:  # ended on the way out
        jobs = [pool.apply_async(compile_variant, (variant,)) for variant in plan]

        def wait(index: int) -> bool:
            jobs[index].wait(max(START + arguments.limit - time.monotonic(), 0))  # its failure shows in the launch too
            return jobs[index].ready() and time.monotonic() < START + arguments.limit

        with contextlib.suppress(KeyboardInterrupt):  # what is measured is still written
            for row in sweep(plan, device, rate, wait):
                rows.append(row)
                print(line(row), flush=True)
    print("\n".join(["", *report(rows, arguments.output, facts)]))
    good = sum(row["policy"] and "failed" not in row for row in rows)
    return int(good < len(lists))


if __name__ == "__main__":
    sys.exit(main())
