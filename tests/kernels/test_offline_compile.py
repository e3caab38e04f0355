"""Every kernel compiles for sm_80 and sm_90 without a GPU: within the resources, without spills, without atomics."""

import importlib.util
import os
import re

import pytest

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter replaces the compiler", allow_module_level=True)

from ddfnet.kernels.ddf_backward import ddf_backward_filters_kernel, ddf_backward_x_kernel
from ddfnet.kernels.ddf_forward import ddf_forward_kernel
from offline import SHARED_LIMIT, compile_for, missing_tools

from ddfnet.ops import triton_launch

if missing_tools():
    pytest.skip(missing_tools(), allow_module_level=True)

KERNELS = {
    "forward": ddf_forward_kernel,
    "backward_x": ddf_backward_x_kernel,
    "backward_filters": ddf_backward_filters_kernel,
}
POINTERS = ("x", "y", "grad_y", "grad_x", "channel_filter", "spatial_filter")
PARTIALS = ("channel_partials", "spatial_partials")


def compile_variant(
    name,
    arch,
    folder,
    *,
    dtype="bf16",
    kernel_size=3,
    stride=1,
    multiply=True,
    channel=True,
    spatial=True,
    channels_last=True,
    int64=False,
    ones=("heads",),
    divisible=("head_channels", "height", "width", "out_height", "out_width"),
):
    """`ones`: the sizes equal to 1, which the launcher turns into constants; `divisible`: the multiples of 16."""
    kernel = KERNELS[name]
    constants = dict(
        KERNEL_SIZE=kernel_size,
        STRIDE=stride,
        DILATION=1,
        MULTIPLY=multiply,
        HAS_CHANNEL=channel,
        HAS_SPATIAL=spatial,
        PRODUCT=multiply and channel and spatial,
        NEED_CHANNEL=channel,
        NEED_SPATIAL=spatial,
        CHANNELS_LAST=channels_last,
        INT64=int64,
        BLOCK_PIXELS=triton_launch._block_pixels(56 * 56, 64),
        BLOCK_CHANNELS=64,
        # planar spatial filter
        spatial_pixel_stride=1,
        **dict.fromkeys(ones, 1),
    )
    constants = {key: value for key, value in constants.items() if key in kernel.arg_names}
    partial = "*fp64" if dtype == "fp64" else "*fp32"
    types = dict.fromkeys(kernel.arg_names, "i32")
    types |= dict.fromkeys(POINTERS, f"*{dtype}") | dict.fromkeys(PARTIALS, partial)
    return compile_for(
        kernel,
        types=types,
        constants=constants,
        divisible=divisible,
        arch=arch,
        folder=folder,
        **triton_launch._OPTIONS,
    )


# A few variants that between them take every branch of every kernel.
VARIANTS = {
    "bf16": {},
    "fp16 add stride 2": {"dtype": "fp16", "multiply": False, "stride": 2},
    "fp32 contiguous": {"dtype": "fp32", "channels_last": False},
    "fp32 no channel filter, 64-bit offsets": {"dtype": "fp32", "channel": False, "int64": True},
    "bf16 no spatial filter, one pixel": {
        "spatial": False,
        "ones": ("heads", "channels", "height", "width", "out_height", "out_width"),
    },
}
CASES = [(name, 90, variant) for name in KERNELS for variant in VARIANTS]
CASES += [(name, 80, "bf16") for name in KERNELS]


@pytest.mark.parametrize(("name", "arch", "variant"), CASES)
def test_compiles_within_limits(name, arch, variant, tmp_path):
    resources = compile_variant(name, arch, tmp_path, **VARIANTS[variant])
    assert resources.local == 0, "spills to local memory"
    assert resources.stack == 0, "spills to the stack"
    assert resources.shared <= SHARED_LIMIT[arch]
    assert resources.registers * resources.threads <= 65536
    atomics = re.findall(r"\b(?:atom|red)\.[\w.]+", resources.ptx)
    assert not atomics, "an atomic addition makes results depend on timing"


@pytest.mark.parametrize("name", KERNELS)
def test_float64_compiles(name, tmp_path):
    resources = compile_variant(name, 90, tmp_path, dtype="fp64")
    assert "fma.rn.f64" in resources.ptx
    assert "fma.rn.f32" not in resources.ptx, "arithmetic in single precision"


@pytest.mark.parametrize("name", KERNELS)
def test_channels_last_half_precision_is_read_and_fused(name, tmp_path):
    """With a multiple of 16 channels: 16 bytes a load, and multiply and add in one instruction."""
    ptx = compile_variant(name, 90, tmp_path).ptx
    assert re.search(r"ld\.global\.v4\.b32", ptx)
    assert "fma.rn.f32" in ptx
    assert not re.search(r"\badd\.(rn\.)?f32", ptx) or name == "backward_filters"  # that one reduces


def test_channels_last_without_that_multiple_still_compiles(tmp_path):
    resources = compile_variant("forward", 90, tmp_path, divisible=())
    assert resources.stack == 0
