"""The comparison of tiles without a GPU: its list of variants, its arguments, and its sweep in Triton's interpreter."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch

from tests.conftest import ROOT
from tests.processes import launch_forked

pytest.importorskip("triton")

KERNELS = (
    "ddf_forward_kernel",
    "ddf_backward_x_kernel",
    "ddf_backward_filters_kernel",
    "spatial_filters_kernel",
    "spatial_filters_backward_kernel",
    "layer_backward_x",
    "spatial_filters_backward_x_kernel",
)
SWEEP = """
import sys
from pathlib import Path
import torch
from scripts.benchmarks import tiles
from ddfnet.ops.ddf import tiling
from ddfnet.ops.ddf import triton as triton_launch
from ddfnet.ops.ddf_layer import triton as layer_launch

modules = (layer_launch, triton_launch, tiling)
before = [dict(vars(module)) for module in modules]
static = set(tiling._static_shapes)
lists = [tiles.variants(kernel, (1, 32, 5, 2)) for kernel in tiles.ORDER]
plan = [variant for some in lists for variant in (some[0], some[-1])]
kernel, shape, choices, *_ = lists[0][0]
plan.append(tiles.Variant(kernel, shape, choices, {"blocks": 3}))  # no power of two
plan.append(tiles.Variant(kernel, shape, choices, {}, failed="too many programs"))
calls = []

def timer(call, device, budget):
    call()
    calls.append(budget)
    return {"median_ms": 1.0 / len(calls)}

rows = list(tiles.sweep(plan, torch.device("cpu"), 1e12, timer=timer))
assert [dict(vars(module)) for module in modules] == before
assert tiling._static_shapes == static
call = tiles.calls(shape, "cpu")[kernel]
results = iter([call(), 2 * call()])
tiles.calls = lambda *_: {kernel: lambda: (call(), next(results))[1]}
rows += tiles.sweep([lists[0][0], lists[0][1]], torch.device("cpu"), 1e12, timer=lambda *_: {"median_ms": 1.0})
assert len(list(tiles.sweep(plan, torch.device("cpu"), 1e12, lambda index: index < 0, timer))) == 0
tiles.report(rows, Path(sys.argv[1]), {"environment": {"command": "x"}, "planned": len(plan)})
"""
COMPILE = """
from scripts.benchmarks import tiles
from triton.backends.compiler import GPUTarget
tiles.start_worker(GPUTarget("cuda", 90, 32))
assert len(tiles.compile_variant(tiles.variants("spatial_filters_kernel", (2, 64, 8, 1))[1])) > 20
"""


def run(*command, **environment):
    environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment}
    environment = {name: text for name, text in os.environ.items() if name != "TRITON_INTERPRET"} | environment
    command = [sys.executable, *map(str, command)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def main(monkeypatch, capsys):
    """Calls the script's main function in this process: exit code, stdout and stderr."""
    from scripts.benchmarks import tiles

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["tiles.py", *arguments])
        try:
            code = tiles.main()
        except SystemExit as stop:  # of argparse
            code = stop.code
        return code, *capsys.readouterr()

    return call


def test_a_dry_run_lists_every_kernel_and_shape(main):
    code, output, _ = main("--dry-run")
    assert code == 0
    listed: dict[tuple[str, str], list[str]] = {}
    for line in output.splitlines():
        kernel, shape, rest = line.split(" ", 2)
        assert re.search(r"warps \d+.*grid [1-9]\d*( POLICY)?$", rest)
        listed.setdefault((kernel, shape), []).append(rest)
    shapes = ("256,64,56,1", "256,128,28,1", "256,256,14,1", "256,128,56,2")
    assert set(listed) == {(kernel, shape) for kernel in KERNELS for shape in shapes}
    for lines in listed.values():
        assert len(lines) == len(set(lines)) > 5
        assert [line.endswith("POLICY") for line in lines] == [True] + [False] * (len(lines) - 1)
    forward = listed["ddf_forward_kernel", "256,64,56,1"]
    for choice in ("block 1x1", "block 2x4", "blocks 8", "warps 2", "warps 8", "sizes argument"):
        assert any(choice in line for line in forward)


def test_a_dry_run_of_one_kernel_and_shape(main):
    code, output, _ = main("--dry-run", "--only", "spatial_filters_kernel", "--shapes", "64,8,1", "--batch", "3")
    assert code == 0
    assert {tuple(line.split()[:2]) for line in output.splitlines()} == {("spatial_filters_kernel", "3,64,8,1")}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--only", "ddf"), "--only"),
        (("--shapes", "64,56"), "--shapes"),
        (("--shapes", "64,0,1"), "--shapes"),
        (("--dry-run", "--batch", "0"), "--batch: must be at least 1"),
        (("--dry-run", "--limit", "0"), "--limit: must be at least 1"),
    ],
)
def test_bad_arguments(main, arguments, message):
    code, _, errors = main(*arguments)
    assert code == 2
    assert message in errors


def test_without_cuda():
    result = launch_forked("scripts/benchmarks/tiles.py", variables={"CUDA_VISIBLE_DEVICES": ""})
    assert result.returncode == 2
    assert "no CUDA device" in result.stderr
    assert "Traceback" not in result.stderr


def test_the_sweep_compares_with_the_policy_and_restores_it(tmp_path):
    result = run("-c", SWEEP, tmp_path, TRITON_INTERPRET="1")
    assert result.returncode == 0, result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["benchmark_tiles.json", "benchmark_tiles.md"]
    rows = json.loads((tmp_path / "benchmark_tiles.json").read_text())["rows"]
    assert {row["kernel"] for row in rows} == set(KERNELS)
    failed = sorted(row["failed"] for row in rows if "failed" in row)
    assert len(failed) == 3
    assert "wrong result" in " ".join(failed)
    assert "too many programs" in " ".join(failed)
    for row in rows:
        if "failed" not in row:
            assert row["us"] > 0
            assert row["gb_per_s"] == pytest.approx(row["bytes"] / row["kernel_us"] / 1e3)
            assert row["floor_percent"] == pytest.approx(row["gb_per_s"] / 10)  # the rate is 1000 GB/s
    forward = next(row for row in rows if row["kernel"] == "ddf_forward_kernel" and row.get("bytes"))
    moved = 2 * 32 * 5 * 5 + 4 * 32 * 9 + 2 * 9 * 3 * 3 + 2 * 32 * 3 * 3  # x, both filters, y
    assert forward["bytes"] == moved
    for kernel in KERNELS:
        times = [row["us"] for row in rows if row["kernel"] == kernel and "failed" not in row]
        assert [row["us"] for row in rows if row["kernel"] == kernel and row.get("fastest")] == [min(times)]
    table = (tmp_path / "benchmark_tiles.md").read_text()
    assert table.count("FAILED") == 3
    assert table.count("| * ") == len(KERNELS)


def test_workers_compile_without_a_gpu(tmp_path):
    if torch.version.cuda is None:
        pytest.skip("Triton came without NVIDIA's assembler")
    result = run("-c", COMPILE, TRITON_CACHE_DIR=str(tmp_path), CUDA_VISIBLE_DEVICES="")
    assert result.returncode == 0, result.stderr
    assert list(tmp_path.rglob("*.cubin"))
