"""Kernels compile without a GPU: within the resources, without spills or atomics, with wide loads. A quick subset.

The whole matrix is `python scripts/dev/compile_matrix.py`.
"""

import functools
import importlib.metadata
import importlib.util
import os
import re
from unittest import mock

import pytest
import torch

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter replaces the compiler", allow_module_level=True)

from ddfnet.ops.ddf import tiling
from scripts.dev import compile_matrix
from scripts.dev.offline_compile import (
    SHARED_LIMIT,
    compile_launch,
    missing_tools,
    record_launches,
    record_layer,
    record_trained,
)
from scripts.dev.offline_lower import lower_launch, ttir_of

if missing_tools():
    pytest.skip(missing_tools(), allow_module_level=True)

CASES = [(kernel, 90, variant) for variant in compile_matrix.QUICK_VARIANTS for kernel in variant.record()]
BRANCH, BRANCH_FP32 = compile_matrix.Branch(), compile_matrix.Branch("fp32", 3, 2)
CASES += [(kernel, 90, BRANCH_FP32) for kernel in BRANCH_FP32.record()]
CASES += [(kernel, 80, BRANCH) for kernel in BRANCH.record()]
CASES += [(kernel, 90, variant) for variant, kernel in compile_matrix.MANY_LOGITS]
BETWEEN = compile_matrix.Between()
CASES += [(kernel, arch, BETWEEN) for kernel in BETWEEN.record() for arch in (80, 90)]
TRAINED = compile_matrix.Trained()
CASES += [(kernel, 90, TRAINED) for kernel in TRAINED.record()]
FILTERS = "ddf_backward_filters_kernel"
CASES += [(FILTERS, 100, TRAINED)]  # where registers are shortest
CASES += [(kernel, 90, variant) for variant in compile_matrix.QUICK_NORMS for kernel in variant.record()]
FAST_KERNELS = compile_matrix.KERNELS[:3]  # those of channels_last tensors
# Of the others sm_80 has variants above, sm_100 one here, and all in the slow tests.
CASES += [(FILTERS, arch, compile_matrix.Variant()) for arch in (80, 100)]
HALF = next(variant for variant in compile_matrix.QUICK_VARIANTS if variant.dtype == "fp16")  # the quickest to compile
CASES += [(kernel, 100, HALF) for kernel in FAST_KERNELS if kernel != FILTERS]
FAST = (2, 64, 56, 56)
# kernels/README.md says what this version makes of the same sources.
TRITON_3_6 = importlib.metadata.version("triton").startswith("3.6.")


# Pixels with nothing in common, for what is the same of each pixel of a block: a block of eight takes Triton eight
# times as long, or more.
SINGLE = (2, 64, 2, 2)


@functools.cache
def compile_once(job):
    """As `compile_job`: what several tests look at is taken apart once."""
    return compile_matrix.compile_job(job)


@pytest.mark.parametrize(("kernel", "arch", "variant"), CASES, ids=str)
def test_compiles_within_limits(kernel, arch, variant):
    compiled = compile_launch(variant.record()[kernel], arch)
    assert not compiled.faults(arch)
    assert arch != 80 or compiled.shared <= SHARED_LIMIT[86]  # which has the same instructions and less memory


OTHERS = [
    (kernel, variant)
    for variant in (compile_matrix.Variant(), compile_matrix.Variant(dtype="fp64"), *compile_matrix.QUICK_BRANCHES)
    for kernel in variant.record()
]


@pytest.mark.slow
@pytest.mark.parametrize("arch", [80, 86, 89, 100])
@pytest.mark.parametrize(("kernel", "variant"), OTHERS, ids=str)
def test_all_of_a_layer_compile_within_limits_everywhere(kernel, variant, arch):
    assert not compile_launch(variant.record()[kernel], arch).faults(arch)


@pytest.mark.parametrize("kernel", FAST_KERNELS)
def test_half_precision_channels_last_makes_wide_accesses_and_each_once(kernel):
    """x, grad_y, channel filter, y and grad_x: all but the spatial filter and its gradient, one value a pixel.

    The filter kernel loads 16 of the 18 values of the spatial filter of a block once for the lanes that share it: two a
    lane, which are neighbors."""
    launch = record_launches(FAST, dtype=torch.bfloat16)[kernel]
    compiled = compile_launch(launch, 90)
    loads = {name: count for name, count in compiled.instructions.items() if name.startswith("LDG")}
    narrow = {name: count for name, count in loads.items() if not name.endswith(".128")}
    taps, outputs = 9, launch.constants["BLOCK_Y"] * launch.constants["BLOCK_X"]
    if kernel == FILTERS:
        assert outputs == 2
        wide = 12 + 2 + 2 * taps  # the 3x4 values of x that a block of 1x2 meets, grad_y, eight channels of the filter
        assert narrow == {"LDG.E": 1, "LDG.E.U16": 2}
    else:
        assert outputs == 8
        assert narrow.pop("LDG.E.64") == 24  # four channels of the 4x6 values that a block of 2x4 meets
        wide = taps  # four channels of the filter
        assert narrow == {"LDG.E.U16": taps * outputs}
    assert loads["LDG.E.128"] == wide
    stores = {name: count for name, count in compiled.instructions.items() if name.startswith("STG")}
    if kernel != FILTERS:
        assert stores == {"STG.E.64": outputs}


@pytest.mark.parametrize("arch", [80, 90, 100])
def test_filter_kernel_exchanges_sums_of_many_taps_at_once(arch):
    """16 values of the spatial filter and 16 sums over lanes by one each, where each value took a shuffle or three."""
    compiled, per_output = compile_once((compile_matrix.Variant(), FILTERS, arch))
    assert per_output < 50  # 43 to 48, with the version of Triton
    assert compiled.count("SHFL") < 20
    assert compiled.spills == 0


def test_filter_kernel_exchanges_nothing_where_lanes_share_no_pixel():
    """Of contiguous tensors: each lane loads the spatial filter at its own pixels."""
    launch = record_launches(FAST, dtype=torch.float32, channels_last=False)[FILTERS]
    compiled = compile_launch(launch, 90)
    assert compiled.count("STS") == compiled.count("BAR") == 0


def test_normalizing_in_the_kernels_takes_few_instructions():
    """3 of x are loaded for each output: a multiply-add and a maximum for each, two more for y, and no selection."""
    apart = compile_once((compile_matrix.Variant(), "ddf_forward_kernel", 90))
    within = compile_once((BETWEEN, "ddf_forward_kernel", 90))
    assert within[1] - apart[1] < 9
    assert within[0].registers <= 100
    branch, between = (compile_once((v, "spatial_filters_kernel", 90))[0] for v in (BRANCH, BETWEEN))
    assert between.registers <= branch.registers + 16 * TRITON_3_6  # else the compiler computes the normalized x twice


def test_writing_the_gradient_of_x_once_takes_few_instructions():
    """15 for the nine logits, 9 of them multiply-adds; 13 for the mask and the sums of a normalization. A kernel
    that did so apart had 35, and another pass over memory."""
    variants = (compile_matrix.Variant(), TRAINED)
    apart, together = (compile_once((variant, "ddf_backward_x_kernel", 90)) for variant in variants)
    assert 9 + 4 < together[1] - apart[1] < 32
    assert together[0].registers <= 128
    assert together[0].spills == 0


def test_gradients_of_logits_by_the_filter_kernel_take_few_instructions():
    """Two for each output and no barrier, where another kernel had as many as four, and three passes over filters."""
    at_once = compile_once((TRAINED, FILTERS, 90))
    with mock.patch.object(tiling, "logits_at_once", return_value=False):
        apart = compile_matrix.compile_job((TRAINED, FILTERS, 90))
    assert 1 < at_once[1] - apart[1] < (11 if TRITON_3_6 else 3)
    assert at_once[0].count("BAR") == apart[0].count("BAR") + 2 * TRITON_3_6
    assert at_once[0].spills <= 11 * TRITON_3_6  # 9, where few are no fault


def test_many_channels_do_not_make_the_kernel_of_the_logits_longer():
    """Their partial sums are read in a loop: unrolled, a thousand channels took ten times as long to compile."""
    options = {"dtype": torch.bfloat16, "kernel_size": 3, "stride": 1, "heads": 1}
    recorded = [record_layer((2, channels, 14, 14), **options) for channels in (256, 1024)]
    few, many = (launches["spatial_filters_backward_kernel"] for launches in recorded)
    assert (few.constants["PARTIALS"], many.constants["PARTIALS"]) == (4, 16)
    few, many = (sum(compile_launch(launch, 90).instructions.values()) for launch in (few, many))
    assert many < 1.1 * few


@pytest.mark.parametrize("kernel", ["batch_norm_merge_kernel", "batch_norm_backward_kernel"])
def test_first_launches_in_training_compile_within_limits(kernel):
    """Those of the kernels that are launched with other constants later: which the cases above have."""
    options = {"dtype": torch.bfloat16, "kernel_size": 3, "stride": 1, "heads": 1}
    first, last = (record_trained((32, 64, 56, 56), **options, first=first)[kernel] for first in (True, False))
    assert first.constants != last.constants
    assert not compile_launch(first, 90).faults(90)


def test_alignment_is_what_makes_loads_wide(monkeypatch):
    """The check above can fail: without the launcher's promise of aligned pointers, no load is wide."""
    launch = compile_matrix.Norm().record()["batch_norm_apply_kernel"]  # a small one
    assert compile_launch(launch, 90).count("LDG", ".128")
    original = compile_launch.__globals__["ASTSource"]

    def unaligned(**arguments):
        return original(**{**arguments, "attrs": {}})

    monkeypatch.setitem(compile_launch.__globals__, "ASTSource", unaligned)
    assert compile_launch(launch, 90).count("LDG", ".128") == 0


@pytest.mark.parametrize("kernel", FAST_KERNELS)
def test_multiply_and_add_are_one_instruction_whatever_the_default(kernel):
    launch = record_launches(SINGLE, dtype=torch.bfloat16)[kernel]
    counts = compile_launch(launch, 90, enable_fp_fusion=False).instructions  # the default is True
    fused = sum(count for name, count in counts.items() if name.startswith("FFMA"))
    assert fused >= 9 * launch.elements_per_thread


@pytest.mark.parametrize("kernel", FAST_KERNELS)
def test_float64_is_computed_in_float64(kernel):
    compiled = compile_launch(record_launches((1, 32, 2, 2), dtype=torch.float64)[kernel], 90)
    assert not compiled.faults(90)
    assert "fma.rn.f64" in compiled.ptx
    assert "fma.rn.f32" not in compiled.ptx, "arithmetic in single precision"


OTHERS_SPILL = importlib.metadata.version("triton").startswith(("3.6.", "3.9."))
SPILLS = pytest.mark.xfail(OTHERS_SPILL, reason="spills in the filter kernel, of no multiple of 8", strict=True)


SHAPES = [(1, 1, 2, 2), pytest.param((1, 20, 9, 7), marks=SPILLS)]
SHAPES += [pytest.param((1, channels, 9, 7), marks=pytest.mark.slow) for channels in (1, 3)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_channels_that_are_no_multiple_of_anything_still_compile(shape):
    for launch in record_launches(shape).values():
        assert not compile_launch(launch, 90).faults(90)


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize(
    ("shape", "options"),
    [((1, 8, 16500, 16500), {}), ((1, 2048, 1100, 1100), {"dilation": 1000}), ((1, 2, 17000, 17000), {"scale": 2})],
    ids=str,
)
def test_constant_offsets_of_large_images_do_not_wrap(shape, options, channels_last):
    """Tap and row offsets are constants of the code: as 32-bit numbers those of such images would have wrapped."""
    for launch in record_launches(shape, channels_last=channels_last, **options).values():
        assert launch.constants["INT64"]
        constants = r"arith.constant (?:dense<)?(-?\d+)>? : (?:tensor<[\dx]+x)?i32"
        narrow = re.findall(constants, ttir_of(launch, 90))
        assert narrow
        assert all(abs(int(value)) <= 2**29 for value in narrow), (launch.kernel.fn.__name__, narrow)


def test_kernels_of_large_images_compile_within_limits():
    for launch in record_launches((1, 2048, 1100, 1100), dilation=1000).values():
        assert launch.constants["INT64"]
        assert not compile_launch(launch, 90).faults(90)


def test_memory_of_a_backward_pass_stays_near_its_results():
    """Bytes that the launches allocate beside results: partial sums and the rearranged channel filter."""
    for channels_last in (True, False):
        for shape in ((64, 64, 56, 56), (64, 256, 14, 14)):
            allocated = allocations(shape, channels_last)
            elements = shape[0] * shape[1] * shape[2] * shape[3]
            needed = 2 * (4 * elements + 2 * 2 * 9 * elements // shape[1]) + 4 * 2 * 9 * shape[0] * shape[1]
            assert allocated < 0.12 * needed, (shape, channels_last, allocated / needed)


def allocations(shape, channels_last):
    """Largest sum of bytes of the tensors that a backward kernel is launched with and that are no input or result."""
    largest = 0
    for launch in record_launches(shape, channels_last=channels_last).values():
        extra = [
            launch.arguments[name] for name in ("channel_partials", "spatial_partials") if name in launch.arguments
        ]
        largest = max(largest, sum(tensor.numel() * tensor.element_size() for tensor in extra))
    return largest


def test_a_fault_is_reported():
    """A tile far too large: the report must name the spills."""
    launch = compile_matrix.Norm().record()["batch_norm_backward_sums_kernel"]
    launch.constants["ROWS"] *= 4
    compiled = compile_launch(launch, 90)
    assert compiled.stack > 0
    assert any("spill" in fault for fault in compiled.faults(90))


def test_the_command_line(capsys):
    assert compile_matrix.main(["--quick", "--archs", "90", "--kernels", "batch_norm_kernel"]) == 0
    assert "2 of 2 within limits" in capsys.readouterr().out


@pytest.mark.parametrize(("shape", "stride"), [((2, 64, 56, 56), 1), ((2, 24, 13, 11), 2)], ids=str)
def test_channels_last_sums_have_one_order_for_constant_and_argument_sizes(shape, stride):
    """A shape that comes after the first 32 of a process gets the general kernels, and must give the same bits."""
    compiled = []
    for most in (1000, 0):
        with mock.patch.multiple(tiling, _MAX_STATIC_SHAPES=most, _static_shapes=set()):
            launches = record_launches(shape, stride=stride)
        compiled.append(lower_launch(launches[FILTERS], 90))
    assert compiled[0].sum_layouts
    assert compiled[0].sum_layouts == compiled[1].sum_layouts
