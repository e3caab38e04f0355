"""`ddf` on CUDA against its definition in float64: options, layer shapes, odd strides and addresses, repeatability."""

import pytest
import torch
from covering import covering_cases
from ddf_cases import FORMATS, TOLERANCE, present
from gpu_cases import (
    DRY_RUN,
    DTYPES,
    arguments,
    assert_same_bits,
    case_id,
    check,
    poisoned_memory,
    random_like,
    random_tensor,
    to_device,
    unaligned,
)

from ddfnet import ddf
from ddfnet.ops.ddf import ddf_reference

pytestmark = pytest.mark.gpu

FACTORS = {
    "kernel_size": (1, 3, 5, 7),
    "stride": (1, 2, 3),
    "dilation": (1, 2, 3, 9),
    "heads": (1, 2),
    "combine": ("mul", "add"),
    "filters": ("both", "channel", "spatial"),
    "dtype": tuple(DTYPES),
    "format": tuple(FORMATS),
    "channels": (1, 8, 24, 64, 72, 96),
}
# the two kernel sizes and strides that networks use, in each precision and format of training
COMMON = [
    {
        **{"kernel_size": 3, "stride": stride, "dilation": 1, "heads": heads, "combine": combine, "filters": "both"},
        **{"dtype": dtype, "format": "channels_last", "channels": 64},
    }
    for stride in (1, 2)
    for heads, combine in ((1, "mul"), (1, "add"), (2, "mul"))
    for dtype in ("bf16", "fp32")
]
PAIRS = [*covering_cases(FACTORS, 2, seed=0), *covering_cases(FACTORS, 2, seed=1)]
CASES = list({case_id(case): case for case in [*PAIRS, *COMMON]}.values())


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_options(case):
    heads = case["heads"] if case["channels"] % case["heads"] == 0 else 1
    height, width = (13, 11) if case["dilation"] < 3 else (17, 23)
    memory_format = FORMATS[case["format"]]
    inputs = arguments(
        2, case["channels"], height, width, kernel_size=case["kernel_size"], heads=heads, stride=case["stride"],
        filters=case["filters"], dtype=DTYPES[case["dtype"]], memory_format=memory_format,
    )  # fmt: skip
    options = {key: case[key] for key in ("kernel_size", "stride", "dilation", "combine")}
    y, grad_x, *_ = check(inputs, **options)
    assert y.is_contiguous(memory_format=memory_format)
    assert grad_x.is_contiguous(memory_format=memory_format)


LAYERS = [(64, 56, 1), (128, 56, 2), (128, 28, 1), (256, 28, 2), (256, 14, 1), (512, 14, 2), (512, 7, 1)]


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize(("channels", "size", "stride"), LAYERS)
def test_layers_of_resnet50(channels, size, stride, dtype):
    for memory_format in FORMATS.values() if channels == 128 else (torch.channels_last,):
        inputs = arguments(
            2, channels, size, size, stride=stride, dtype=DTYPES[dtype], memory_format=memory_format
        )  # fmt: skip
        check(inputs, stride=stride)


def test_filters_in_float32_for_bfloat16_images():
    """As under autocast: each gradient has the dtype of its tensor and its accuracy."""
    for filters in ("both", "channel"):
        options = {"filters": filters, "dtype": torch.bfloat16, "filter_dtype": torch.float32}
        check(arguments(2, 64, 14, 14, memory_format=torch.channels_last, **options))


def test_batch_of_256():
    """More programs than fit at once; the definition runs in float32 on one chunk after the other."""
    batch, channels, size, chunk = (256, 64, 56, 32) if not DRY_RUN else (5, 8, 6, 2)
    shapes = ((batch, channels, size, size), (batch, channels, 3, 3), (batch, 9, size, size))
    formats = (torch.channels_last, torch.contiguous_format, torch.channels_last)
    inputs = [
        random_tensor(shape, torch.bfloat16, seed=i, memory_format=f).requires_grad_()
        for i, (shape, f) in enumerate(zip(shapes, formats, strict=True))
    ]
    grad_y = random_tensor(shapes[0], torch.bfloat16, seed=3, memory_format=torch.channels_last)
    with poisoned_memory():
        y = ddf(*inputs)
        actual = [y.detach(), *torch.autograd.grad(y, inputs, grad_y)]
    for first in range(0, batch, chunk):
        part = slice(first, first + chunk)
        singles = [tensor[part].detach().float().requires_grad_() for tensor in inputs]
        exact = ddf_reference(*singles)
        exact = [exact.detach(), *torch.autograd.grad(exact, singles, grad_y[part].float())]
        for name, a, e in zip(("y", "grad_x", "grad_channel", "grad_spatial"), actual, exact, strict=True):
            error = (a[part].float() - e).norm() / e.norm()
            assert error <= TOLERANCE[torch.bfloat16], (name, first)


@pytest.mark.parametrize("combine", ["mul", "add"])
def test_gradcheck(combine):
    options = {"stride": 2, "combine": combine}
    shape = {"heads": 2, "stride": 2, "dtype": torch.float64, "memory_format": torch.channels_last}
    inputs = arguments(1, 4, 4, 3, **shape)
    assert torch.autograd.gradcheck(lambda *tensors: ddf(*tensors, **options), inputs)
    inputs = arguments(1, 2, 3, 3, **shape)
    assert torch.autograd.gradgradcheck(lambda *tensors: ddf(*tensors, **options), inputs, fast_mode=True)


@pytest.mark.parametrize(("dtype", "format_name"), [("bf16", "channels_last"), ("fp32", "contiguous")])
@pytest.mark.parametrize("stride", [1, 2])
def test_the_same_bits_every_time(stride, dtype, format_name):
    batch, size = (32, 56) if not DRY_RUN else (2, 9)
    inputs = arguments(
        batch, 96, size, size, stride=stride, dtype=DTYPES[dtype], memory_format=FORMATS[format_name]
    )  # fmt: skip
    grad_y = None
    first = None
    for _ in range(10):
        y = ddf(*inputs, stride=stride)
        grad_y = random_like(y.detach()) if grad_y is None else grad_y
        results = [y.detach(), *torch.autograd.grad(y, inputs, grad_y)]
        first = results if first is None else first
        assert_same_bits(results, first)


@pytest.mark.parametrize("format_name", FORMATS)
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_addresses_that_are_no_multiples_of_16(dtype, format_name):
    inputs = arguments(2, 64, 14, 14, dtype=DTYPES[dtype], memory_format=FORMATS[format_name])

    def make_grad(y, dtype):
        return unaligned(random_like(y, dtype=dtype))

    check([unaligned(tensor) for tensor in inputs], make_grad=make_grad)
    for i in range(3):  # each alone: a kernel may look at the address of one pointer for all
        check([unaligned(tensor) if i == j else tensor for j, tensor in enumerate(inputs)])


@pytest.mark.parametrize("format_name", FORMATS)
def test_strided_inputs_and_gradients(format_name):
    x, channel, spatial = arguments(2, 24, 11, 11, memory_format=FORMATS[format_name])
    check(to_device([x.transpose(2, 3), channel.transpose(2, 3), spatial.transpose(2, 3)]))

    def every_second(tensor):
        wide = torch.zeros(*tensor.shape[:-1], 2 * tensor.shape[-1], dtype=tensor.dtype, device=tensor.device)
        wide[..., ::2] = tensor.detach()
        return wide[..., ::2]

    strided = [every_second(tensor).requires_grad_() for tensor in (x, channel, spatial)]
    check(strided, make_grad=lambda y, dtype: every_second(random_like(y, dtype=dtype)))
    check([x, channel, spatial], make_grad=lambda y, dtype: random_like(y, dtype=dtype).transpose(2, 3))


@pytest.mark.parametrize("format_name", FORMATS)
def test_gradients_without_strides(format_name):
    """`y.sum().backward()` gives one number expanded to the shape of y."""
    inputs = arguments(2, 24, 9, 7, memory_format=FORMATS[format_name])
    check(inputs, make_grad=lambda y, dtype: torch.ones((), dtype=dtype, device=y.device).expand(y.shape))
    check(inputs, make_grad=lambda y, dtype: random_like(y[:, :, :1, :1], dtype=dtype).expand(y.shape))
    y = ddf(*inputs)
    assert_same_bits(
        torch.autograd.grad(y.sum(), inputs, retain_graph=True), torch.autograd.grad(y, inputs, torch.ones_like(y))
    )


@pytest.mark.parametrize(
    "needed", [(True, False, False), (False, True, False), (False, False, True), (True, False, True)]
)
def test_gradients_not_needed_change_nothing(needed):
    inputs = arguments(2, 72, 14, 14, dtype=torch.bfloat16, memory_format=torch.channels_last)
    y = ddf(*inputs)
    grad_y = random_like(y.detach())
    full = torch.autograd.grad(y, inputs, grad_y)
    for tensor, wanted in zip(inputs, needed, strict=True):
        tensor.requires_grad_(wanted)
    with poisoned_memory():
        ddf(*inputs).backward(grad_y)
    for tensor, gradient, wanted in zip(inputs, full, needed, strict=True):
        assert (tensor.grad is not None) == wanted
        if wanted:
            assert torch.equal(tensor.grad, gradient)


@pytest.mark.parametrize("filters", ["both", "spatial"])
def test_empty_batch(filters):
    inputs = present(arguments(0, 8, filters=filters))
    y = ddf(inputs[0], inputs[1] if filters == "both" else None, inputs[-1])
    grads = torch.autograd.grad(y.sum(), inputs)
    assert y.shape == inputs[0].shape
    assert [grad.shape for grad in grads] == [tensor.shape for tensor in inputs]
