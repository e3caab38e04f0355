"""`ddf` against the definition in float64: every option, dtype and memory format, forward and backward."""

import itertools

import pytest
import torch
from ddf_cases import FORMATS, TOLERANCE, evaluate, expected, make_inputs, present, relative_error

from ddfnet.ops.ddf import ddf, ddf_reference

pytestmark = pytest.mark.usefixtures("each_path")

FILTERS = ("both", "channel", "spatial")


def check(inputs, tolerance, **options):
    for name, actual, exact in zip(
        ("y", "first gradient", "second gradient", "third gradient"),
        evaluate(ddf, inputs, **options),
        expected(inputs, **options),
        strict=False,
    ):
        assert relative_error(actual, exact) <= tolerance, name


@pytest.mark.parametrize("kernel_size", [1, 3, 5, 7])
@pytest.mark.parametrize("combine", ["mul", "add"])
@pytest.mark.parametrize("filters", FILTERS)
def test_every_option_in_float64(kernel_size, combine, filters):
    for stride, dilation, heads, (height, width), memory_format in itertools.product(
        (1, 2), (1, 2), (1, 2), ((7, 5), (6, 8)), FORMATS.values()
    ):
        inputs = make_inputs(
            2, 4, height, width, kernel_size=kernel_size, heads=heads, stride=stride, filters=filters,
            dtype=torch.float64, memory_format=memory_format,
        )  # fmt: skip
        options = {"stride": stride, "dilation": dilation, "combine": combine, "kernel_size": kernel_size}
        check(inputs, TOLERANCE[torch.float64], **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("combine", ["mul", "add"])
@pytest.mark.parametrize("memory_format", FORMATS)
def test_dtypes(dtype, combine, memory_format):
    for filters, stride in itertools.product(FILTERS, (1, 2)):
        inputs = make_inputs(
            2, 16, 9, 11, heads=2, stride=stride, filters=filters, dtype=dtype, memory_format=FORMATS[memory_format]
        )
        check(inputs, TOLERANCE[dtype], stride=stride, combine=combine, kernel_size=3)


def test_half_precision_sums_in_float32():
    """4096 + 1 + 1 + ... in float16 stays 4096: only a wider accumulator gets there."""
    x = torch.ones(1, 1, 5, 5, dtype=torch.float16)
    channel = torch.ones(1, 1, 5, 5, dtype=torch.float16)
    channel[0, 0, 0, 0] = 4096
    assert ddf(x, channel, None)[0, 0, 2, 2].item() == 4096 + 24


@pytest.mark.parametrize("filter_dtype", [torch.float32, torch.float64])
def test_filters_of_another_dtype(filter_dtype):
    inputs = make_inputs(2, 8, dtype=torch.bfloat16, filter_dtype=filter_dtype)
    y, grad_x, grad_channel, grad_spatial = evaluate(ddf, inputs)
    assert (y.dtype, grad_x.dtype) == (torch.bfloat16, torch.bfloat16)
    assert (grad_channel.dtype, grad_spatial.dtype) == (filter_dtype, filter_dtype)
    exact = expected(inputs)
    assert relative_error(y, exact[0]) <= TOLERANCE[torch.bfloat16]
    assert relative_error(grad_channel, exact[2]) <= TOLERANCE[torch.float32]
    assert relative_error(grad_spatial, exact[3]) <= TOLERANCE[torch.float32]


def test_wide_dilation_and_a_map_smaller_than_the_kernel():
    for height, width, dilation, kernel_size in ((3, 2, 8, 3), (1, 1, 1, 5), (2, 9, 3, 7)):
        inputs = make_inputs(1, 4, height, width, kernel_size=kernel_size, dtype=torch.float64)
        check(inputs, TOLERANCE[torch.float64], dilation=dilation)


def test_one_head_for_each_channel():
    check(make_inputs(2, 6, heads=6, dtype=torch.float64), TOLERANCE[torch.float64])


def test_non_contiguous_inputs():
    x, channel, spatial = make_inputs(2, 4, 6, 6, dtype=torch.float64, requires_grad=False)
    inputs = [
        torch.randn(2, 4, 6, 12, dtype=torch.float64)[..., ::2].requires_grad_(),
        channel.transpose(2, 3).detach().requires_grad_(),
        spatial.transpose(2, 3).detach().requires_grad_(),
    ]
    check(inputs, TOLERANCE[torch.float64])
    expanded = [x[:1].expand(2, -1, -1, -1).requires_grad_(), channel.requires_grad_(), spatial.requires_grad_()]
    check(expanded, TOLERANCE[torch.float64])


@pytest.mark.parametrize("combine", ["mul", "add"])
@pytest.mark.parametrize("filters", FILTERS)
@pytest.mark.parametrize(("stride", "heads", "kernel_size"), [(1, 1, 3), (2, 2, 3), (1, 2, 1)])
def test_first_and_second_order_gradients(combine, filters, stride, heads, kernel_size):
    x, channel, spatial = make_inputs(
        1, 2, 4, 3, kernel_size=kernel_size, heads=heads, stride=stride, filters=filters, dtype=torch.float64
    )

    def function(*tensors):
        tensors = list(tensors)
        arguments = [None if t is None else tensors.pop(0) for t in (x, channel, spatial)]
        return ddf(*arguments, stride=stride, combine=combine, kernel_size=kernel_size)

    inputs = present((x, channel, spatial))
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.parametrize("needed", list(itertools.product((False, True), repeat=3))[1:])
def test_second_order_of_a_part_of_the_inputs(needed):
    inputs = make_inputs(1, 2, 3, 4, dtype=torch.float64, requires_grad=False)
    for tensor, wanted in zip(inputs, needed, strict=True):
        tensor.requires_grad_(wanted)
    assert torch.autograd.gradgradcheck(ddf, inputs)


def test_third_order():
    """A gradient penalty on a gradient penalty: the double backward is itself made of the two ops."""
    x, channel, spatial = make_inputs(1, 2, 4, 4, dtype=torch.float64)

    def third(function):
        total = function(x, channel, spatial).pow(2).sum()
        for _ in range(2):
            total = sum(g.pow(2).sum() for g in torch.autograd.grad(total, (x, channel, spatial), create_graph=True))
        return torch.autograd.grad(total, (x, channel, spatial))

    for actual, exact in zip(third(ddf), third(ddf_reference), strict=True):
        torch.testing.assert_close(actual, exact)
