"""Cases for Triton's interpreter; run by test_interpreter.py in a process of their own, not collected by name.

The public function on CPU tensors goes through the same launches and kernels as on CUDA. Uninitialised memory is NaN,
so that an element that no kernel writes shows in the relative error.
"""

import pytest
import torch
from ddf_cases import FORMATS, TOLERANCE, evaluate, expected, make_inputs, relative_error

from ddfnet.kernels import ddf_forward
from ddfnet.ops import ddf, ddf_reference, triton_launch

# The interpreter truncates float32 to bfloat16, where the GPU rounds.
TOLERANCE = {**TOLERANCE, torch.bfloat16: 5e-3}


@pytest.fixture(autouse=True, scope="module")
def _poison():
    torch.use_deterministic_algorithms(True)  # fills uninitialised memory with NaN
    assert torch.empty(4).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def launches(monkeypatch):
    """The names of the kernels launched, in order."""
    names = []
    launch = triton_launch._launch

    def record(kernel, *arguments, **constants):
        names.append(kernel.fn.__name__)
        launch(kernel, *arguments, **constants)

    monkeypatch.setattr(triton_launch, "_launch", record)
    return names


def check(inputs, **options):
    dtype = inputs[0].dtype
    actual, exact = evaluate(ddf, inputs, **options), expected(inputs, **options)
    for name, a, e in zip(("y", "gradient 1", "gradient 2", "gradient 3"), actual, exact, strict=False):
        assert relative_error(a, e) <= TOLERANCE[dtype], name
    return actual


def test_the_interpreter_is_what_runs(launches):
    assert type(ddf_forward.ddf_forward_kernel).__name__ == "InterpretedFunction"
    check(make_inputs(1, 16))
    assert launches == ["ddf_forward_kernel", "ddf_backward_x_kernel", "ddf_backward_filters_kernel"]


OPTIONS = [
    # kernel_size, stride, dilation, heads, combine, filters, memory format, dtype
    (3, 1, 1, 1, "mul", "both", "channels_last", torch.float32),
    (3, 1, 1, 1, "mul", "both", "contiguous", torch.float32),
    (3, 1, 1, 1, "add", "both", "channels_last", torch.float32),
    (3, 2, 1, 1, "mul", "both", "channels_last", torch.float32),
    (3, 2, 1, 1, "add", "both", "contiguous", torch.float32),
    (3, 1, 2, 1, "mul", "both", "channels_last", torch.float32),
    (3, 2, 3, 1, "mul", "both", "contiguous", torch.float32),
    (3, 3, 1, 1, "mul", "both", "channels_last", torch.float32),
    (3, 1, 1, 2, "mul", "both", "channels_last", torch.float32),
    (3, 2, 2, 2, "add", "both", "contiguous", torch.float32),
    (3, 1, 1, 1, "mul", "channel", "channels_last", torch.float32),
    (3, 2, 1, 1, "add", "channel", "contiguous", torch.float32),
    (3, 1, 1, 1, "add", "spatial", "channels_last", torch.float32),
    (3, 2, 1, 2, "mul", "spatial", "contiguous", torch.float32),
    (1, 1, 1, 1, "mul", "both", "channels_last", torch.float32),
    (5, 1, 1, 1, "mul", "both", "channels_last", torch.float32),
    (5, 2, 2, 2, "add", "both", "contiguous", torch.float32),
    (7, 1, 1, 1, "mul", "both", "channels_last", torch.float32),
    (3, 1, 1, 1, "mul", "both", "channels_last", torch.float16),
    (3, 2, 1, 2, "add", "both", "contiguous", torch.float16),
    (3, 1, 1, 1, "mul", "both", "channels_last", torch.bfloat16),
    (3, 2, 1, 1, "add", "both", "contiguous", torch.bfloat16),
    (3, 1, 1, 1, "mul", "both", "channels_last", torch.float64),
    (3, 2, 1, 2, "add", "both", "contiguous", torch.float64),
]


@pytest.mark.parametrize(
    ("kernel_size", "stride", "dilation", "heads", "combine", "filters", "memory_format", "dtype"), OPTIONS
)
def test_options(kernel_size, stride, dilation, heads, combine, filters, memory_format, dtype):
    inputs = make_inputs(
        1, 12, 7, 5, kernel_size=kernel_size, heads=heads, stride=stride, filters=filters, dtype=dtype,
        memory_format=FORMATS[memory_format],
    )  # fmt: skip
    y, grad_x, *_ = check(inputs, stride=stride, dilation=dilation, combine=combine, kernel_size=kernel_size)
    assert y.is_contiguous(memory_format=FORMATS[memory_format])
    assert grad_x.stride() == inputs[0].stride()


@pytest.mark.parametrize("memory_format", FORMATS)
def test_several_images_channel_tiles_and_chunks(memory_format, monkeypatch):
    """More than 64 channels and more pixels than a chunk: both reductions have a second stage."""
    monkeypatch.setattr(triton_launch, "_CHUNK_TILES", 2)
    check(make_inputs(2, 72, 9, 10, memory_format=FORMATS[memory_format]))


@pytest.mark.parametrize("memory_format", FORMATS)
def test_64_bit_offsets(memory_format, monkeypatch):
    monkeypatch.setattr(triton_launch, "_INT32_ELEMENTS", 1)
    check(make_inputs(2, 6, 5, 7, heads=2, stride=2, memory_format=FORMATS[memory_format]), stride=2)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 1, 3, 4), (1, 5, 1, 1), (1, 3, 2, 1)])
def test_small_shapes(shape):
    check(make_inputs(*shape))


def test_formats_of_x_and_spatial_filter_are_independent():
    x, channel, spatial = make_inputs(1, 8, 6, 7, memory_format=torch.channels_last)
    _, _, planar = make_inputs(1, 8, 6, 7)
    check((x, channel, planar))
    check((x.detach().contiguous().requires_grad_(), channel, spatial))


def test_strided_inputs_and_gradients():
    x, channel, spatial = make_inputs(1, 8, 6, 6, dtype=torch.float64, requires_grad=False)
    inputs = [tensor.transpose(2, 3).detach().requires_grad_() for tensor in (x, channel, spatial)]
    check(inputs)
    y = ddf(*inputs)
    ones = torch.autograd.grad(y, inputs, torch.ones_like(y), retain_graph=True)
    for a, b in zip(torch.autograd.grad(y.sum(), inputs), ones, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("needed", "backward"),
    [
        ((True, False, False), ["ddf_backward_x_kernel"]),
        ((False, True, False), ["ddf_backward_filters_kernel"]),
        ((False, False, True), ["ddf_backward_filters_kernel"]),
        ((True, False, True), ["ddf_backward_x_kernel", "ddf_backward_filters_kernel"]),
    ],
)
def test_kernels_of_gradients_not_needed_are_not_launched(needed, backward, launches):
    inputs = make_inputs(1, 8)
    full = evaluate(ddf, inputs)[1:]
    launches.clear()
    for tensor, wanted in zip(inputs, needed, strict=True):
        tensor.requires_grad_(wanted)
    y = ddf(*inputs)
    grad_y = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(y.dtype)
    y.backward(grad_y)
    assert launches == ["ddf_forward_kernel", *backward]
    for tensor, gradient, wanted in zip(inputs, full, needed, strict=True):
        assert (tensor.grad is not None) == wanted
        if wanted:
            assert torch.equal(tensor.grad, gradient)


def test_the_same_bits_every_time():
    inputs = make_inputs(2, 8, 6, 6)
    for a, b in zip(evaluate(ddf, inputs), evaluate(ddf, inputs), strict=True):
        assert torch.equal(a, b)


def test_empty_batch_launches_nothing(launches):
    inputs = make_inputs(0, 8)
    _, *grads = evaluate(ddf, inputs)
    assert launches == []
    assert [grad.shape for grad in grads] == [tensor.shape for tensor in inputs]
    with_taps = make_inputs(0, 8, filters="spatial")
    assert evaluate(ddf, with_taps)[2].shape == with_taps[2].shape


def test_second_order():
    inputs = make_inputs(1, 2, 3, 3, dtype=torch.float64)
    directions = [torch.randn_like(tensor) for tensor in inputs]

    def second(function):
        y = function(*inputs)
        grads = torch.autograd.grad(y, inputs, y.detach().cos(), create_graph=True)
        return torch.autograd.grad(grads, inputs, directions)

    for actual, exact in zip(second(ddf), second(ddf_reference), strict=True):
        torch.testing.assert_close(actual, exact)


def test_opcheck():
    inputs = make_inputs(1, 4, 3, 3)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.ddfnet.ddf.default, (*inputs, 3, 1, 1, True), test_utils=tests)
