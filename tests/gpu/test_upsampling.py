"""`ddf_up` on CUDA against its definition in float64, and against `ddf`, phase by phase."""

import pytest
import torch
from covering import covering_cases
from ddf_cases import FORMATS, relative_error
from gpu_cases import DTYPES, assert_same_bits, case_id, check, random_like, to_device, tolerance, unaligned

from ddfnet.ops.ddf import ddf, ddf_up, ddf_up_reference

pytestmark = pytest.mark.gpu

FACTORS = {
    "kernel_size": (1, 3, 5),
    "scale": (2, 3, 4),
    "dilation": (1, 2),
    "heads": (1, 2),
    "combine": ("mul", "add"),
    "filters": ("both", "channel", "spatial"),
    "dtype": tuple(DTYPES),
    "format": tuple(FORMATS),
    "channels": (8, 24, 64, 72),
}
CASES = covering_cases(FACTORS, 2)


def arguments(
    batch, channels, height, width, *, scale=2, kernel_size=3, heads=1, filters="both", dtype=torch.float32,
    memory_format=torch.contiguous_format,
):  # fmt: skip
    """x, (B, s*s, C, k, k) and (B, s*s*G*k*k, H, W) with the same numbers on every device."""
    generator = torch.Generator().manual_seed(0)
    phases, area = scale * scale, kernel_size * kernel_size

    def tensor(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    x = tensor(batch, channels, height, width).contiguous(memory_format=memory_format)
    channel = tensor(batch, phases, channels, kernel_size, kernel_size)
    spatial = tensor(batch, phases * heads * area, height, width).contiguous(memory_format=memory_format)
    return to_device([x, channel if filters != "spatial" else None, spatial if filters != "channel" else None])


def check_up(inputs, **options):
    return check(inputs, function=ddf_up, reference=ddf_up_reference, **options)


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_options(case):
    memory_format = FORMATS[case["format"]]
    shared = {"kernel_size": case["kernel_size"], "scale": case["scale"]}
    inputs = arguments(
        2, case["channels"], 9, 7, heads=case["heads"], filters=case["filters"], dtype=DTYPES[case["dtype"]],
        memory_format=memory_format, **shared,
    )  # fmt: skip
    y, grad_x, *_ = check_up(inputs, dilation=case["dilation"], combine=case["combine"], **shared)
    assert y.shape == (2, case["channels"], 9 * case["scale"], 7 * case["scale"])
    assert y.is_contiguous(memory_format=memory_format)
    assert grad_x.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("format_name", FORMATS)
@pytest.mark.parametrize("combine", ["mul", "add"])
def test_each_phase_is_ddf_with_the_filters_of_the_phase(combine, format_name):
    """The definition and the kernels may not share a mistake about the order of the phases: indices are written out."""
    scale, heads, area = 3, 2, 9
    x, channel, spatial = arguments(2, 24, 9, 7, scale=scale, heads=heads, memory_format=FORMATS[format_name])
    y = ddf_up(x, channel, spatial, scale=scale, combine=combine)
    for a in range(scale):
        for e in range(scale):
            phase = a * scale + e
            taps = spatial[:, phase * heads * area : (phase + 1) * heads * area]
            one = ddf(x, channel[:, phase], taps, combine=combine)
            error = relative_error(y[:, :, a::scale, e::scale], one.double())
            assert error <= tolerance("y", y), (a, e)


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_sizes_of_a_feature_pyramid(dtype):
    inputs = arguments(2, 256, 28, 20, dtype=DTYPES[dtype], memory_format=torch.channels_last)
    check_up(inputs, scale=2)


def test_gradcheck():
    inputs = arguments(1, 4, 3, 2, heads=2, dtype=torch.float64, memory_format=torch.channels_last)
    for combine in ("mul", "add"):
        assert torch.autograd.gradcheck(
            lambda *tensors, combine=combine: ddf_up(*tensors, scale=2, combine=combine), inputs, fast_mode=True
        )


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_the_same_bits_every_time(dtype):
    inputs = arguments(4, 72, 28, 28, dtype=DTYPES[dtype], memory_format=torch.channels_last)
    first, grad_y = None, None
    for _ in range(10):
        y = ddf_up(*inputs, scale=2)
        grad_y = random_like(y.detach()) if grad_y is None else grad_y
        results = [y.detach(), *torch.autograd.grad(y, inputs, grad_y)]
        first = results if first is None else first
        assert_same_bits(results, first)


@pytest.mark.parametrize("format_name", FORMATS)
def test_odd_addresses_and_strides(format_name):
    inputs = arguments(2, 64, 9, 9, dtype=torch.bfloat16, memory_format=FORMATS[format_name])
    check_up(
        [unaligned(tensor) for tensor in inputs], scale=2, make_grad=lambda y, dtype: unaligned(random_like(y, dtype))
    )
    check_up(inputs, scale=2, make_grad=lambda y, dtype: random_like(y, dtype).transpose(2, 3))
    check_up(inputs, scale=2, make_grad=lambda y, dtype: torch.ones((), dtype=dtype, device=y.device).expand(y.shape))


def test_compile_without_graph_breaks():
    torch._dynamo.reset()
    inputs = arguments(2, 8, 6, 5)

    def function(*tensors):
        return ddf_up(*tensors, scale=2).relu()

    y, compiled = function(*inputs), torch.compile(function, fullgraph=True)(*inputs)
    torch.testing.assert_close(compiled, y)
    grad_y = random_like(y.detach())
    grads = torch.autograd.grad(compiled, inputs, grad_y), torch.autograd.grad(y, inputs, grad_y)
    torch.testing.assert_close(*grads)
