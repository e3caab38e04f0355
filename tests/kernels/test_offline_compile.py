"""Kernels compile without a GPU: within the resources, without spills or atomics, with wide loads. A quick subset.

The whole matrix is `python scripts/compile_matrix.py`.
"""

import importlib.util
import os
import sys

import pytest
import torch

from tests.conftest import ROOT

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter replaces the compiler", allow_module_level=True)

sys.path.insert(0, str(ROOT / "scripts"))
import compile_matrix
from offline_compile import compile_launch, missing_tools, record_launches

sys.path.pop(0)

if missing_tools():
    pytest.skip(missing_tools(), allow_module_level=True)

CASES = [(kernel, 90, variant) for kernel in compile_matrix.KERNELS for variant in compile_matrix.quick_variants()]
CASES += [(kernel, 90, compile_matrix.Branch("fp32", 3, 2)) for kernel in compile_matrix.BRANCH_KERNELS]
CASES += [(kernel, 80, compile_matrix.Branch()) for kernel in compile_matrix.BRANCH_KERNELS]
CASES += [(kernel, arch, compile_matrix.Variant()) for kernel in compile_matrix.KERNELS for arch in (80, 86, 89, 100)]
FAST = (2, 64, 56, 56)


@pytest.mark.parametrize(("kernel", "arch", "variant"), CASES, ids=str)
def test_compiles_within_limits(kernel, arch, variant):
    compiled, _ = compile_matrix.compile_variant(variant, kernel, arch)
    assert not compiled.faults(arch)


@pytest.mark.parametrize("kernel", compile_matrix.KERNELS)
def test_half_precision_channels_last_moves_16_bytes_at_a_time(kernel):
    """x, grad_y, channel filter, y and grad_x: all but the spatial filter and its gradient, one value a pixel."""
    launch = record_launches(FAST, dtype=torch.bfloat16)[kernel]
    compiled = compile_launch(launch, 90)
    loads = {name: count for name, count in compiled.instructions.items() if name.startswith("LDG")}
    narrow = {name: count for name, count in loads.items() if not name.endswith(".128")}
    taps, outputs = 9, launch.constants["BLOCK_Y"] * launch.constants["BLOCK_X"]
    if kernel == "ddf_backward_filters_kernel":
        assert outputs == 1
        assert narrow.pop("LDG.E.64") == taps  # a lane reads two channels of the filter; the warp exchanges them
        inputs = taps + 1  # x for each tap, and grad_y
    else:
        assert outputs == 4
        inputs = 16 + 2 * taps  # the 4x4 values that a block of 2x2 meets, each loaded once, and the channel filter
    assert narrow == {"LDG.E.U16": taps * outputs}
    assert loads["LDG.E.128"] == inputs
    stores = {name: count for name, count in compiled.instructions.items() if name.startswith("STG")}
    if kernel != "ddf_backward_filters_kernel":
        assert stores == {"STG.E.128": outputs}


def test_alignment_is_what_makes_loads_wide(monkeypatch):
    """The check above can fail: without the launcher's promise of aligned pointers, no load is wide."""
    launch = record_launches(FAST, dtype=torch.bfloat16)["ddf_forward_kernel"]
    original = compile_launch.__globals__["ASTSource"]

    def unaligned(**arguments):
        return original(**{**arguments, "attrs": {}})

    monkeypatch.setitem(compile_launch.__globals__, "ASTSource", unaligned)
    assert compile_launch(launch, 90).wide("LDG") == 0


@pytest.mark.parametrize("kernel", compile_matrix.KERNELS)
def test_multiply_and_add_are_one_instruction_whatever_the_default(kernel):
    launch = record_launches(FAST, dtype=torch.bfloat16)[kernel]
    for fusion in (True, False):
        counts = compile_launch(launch, 90, enable_fp_fusion=fusion).instructions
        fused = sum(count for name, count in counts.items() if name.startswith("FFMA"))
        assert fused >= 9 * launch.elements_per_thread


@pytest.mark.parametrize("kernel", compile_matrix.KERNELS)
def test_float64_is_computed_in_float64(kernel):
    compiled = compile_launch(record_launches((1, 32, 8, 8), dtype=torch.float64)[kernel], 90)
    assert not compiled.faults(90)
    assert "fma.rn.f64" in compiled.ptx
    assert "fma.rn.f32" not in compiled.ptx, "arithmetic in single precision"


@pytest.mark.parametrize("channels", [1, 3, 20])
def test_channels_that_are_no_multiple_of_anything_still_compile(channels):
    for launch in record_launches((1, channels, 9, 7)).values():
        assert not compile_launch(launch, 90).faults(90)


def test_a_fault_is_reported():
    """A tile far too large: the report must name the spills."""
    launch = record_launches(FAST, dtype=torch.float32)["ddf_forward_kernel"]
    launch.constants["BLOCKS"] = 256
    assert any("spill" in fault for fault in compile_launch(launch, 90).faults(90))


def test_the_command_line(capsys):
    assert compile_matrix.main(["--quick", "--archs", "90", "--kernels", "ddf_forward_kernel"]) == 0
    assert "6 of 6 within limits" in capsys.readouterr().out
