"""The native code on the CPU: numbers in every layout, gradients, and tracing."""

import pytest
import torch
from ddf_cases import FORMATS, TOLERANCE, evaluate, expected, make_inputs, present, relative_error
from torch._subclasses.functional_tensor import FunctionalTensor, FunctionalTensorMode

from ddfnet.ops.ddf import ddf, ddf_up, eager, native
from ddfnet.ops.ddf.arguments import Arguments, Needed

# Vectors hold 4 to 16 channels; maps of 24 columns and more are read where they are, if they can be.
CASES = [
    {"channels": 32, "width": 30},
    {"channels": 48, "width": 7, "combine": "add"},
    {"channels": 24, "width": 27, "heads": 3},
    {"channels": 64, "heads": 4, "width": 26, "height": 12},
    {"channels": 32, "width": 27, "filters": "channel"},
    {"channels": 32, "width": 27, "filters": "spatial", "heads": 2},
    {"channels": 16, "width": 31, "stride": 2},
    {"channels": 20, "width": 9, "stride": 3, "heads": 2, "combine": "add"},
    {"channels": 16, "width": 50, "kernel_size": 5},
    {"channels": 33, "width": 12, "kernel_size": 5, "stride": 2, "dilation": 2},
    {"channels": 16, "width": 75, "kernel_size": 7, "height": 5},
    {"channels": 16, "width": 10, "kernel_size": 7, "stride": 2},
    {"channels": 16, "width": 12, "kernel_size": 9, "filters": "spatial"},
    {"channels": 32, "width": 50, "dilation": 2, "combine": "add"},
    {"channels": 16, "width": 6, "dilation": 9},
    {"channels": 16, "width": 26, "kernel_size": 1, "stride": 2},
    {"channels": 32, "width": 70, "height": 40, "batch": 1},
    {"channels": 32, "width": 26, "height": 5, "scale": 2},
    {"channels": 16, "width": 7, "height": 5, "scale": 3, "heads": 2, "combine": "add"},
    {"channels": 24, "width": 8, "height": 6, "scale": 2, "kernel_size": 5, "filters": "spatial"},
]


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_numbers_against_the_definition(built, case, memory_format, monkeypatch):
    monkeypatch.setattr(eager, "forward", None)  # it is the native code that runs
    monkeypatch.setattr(eager, "backward", None)
    options = {key: case[key] for key in ("stride", "dilation", "scale", "combine") if key in case}
    options["kernel_size"] = case.get("kernel_size", 3)
    shape = {key: value for key, value in case.items() if key not in ("dilation", "combine")}
    shape["memory_format"] = FORMATS[memory_format]
    function = ddf_up if "scale" in case else ddf
    for dtype, filter_dtype in (
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.float32),
    ):
        inputs = make_inputs(**shape, dtype=dtype, filter_dtype=filter_dtype)
        pairs = zip(evaluate(function, inputs, **options), expected(inputs, **options), strict=True)
        for index, (actual, exact) in enumerate(pairs):
            assert relative_error(actual, exact) <= TOLERANCE[actual.dtype], (dtype, index)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_number_of_a_half_precision(built, dtype):
    """Read, multiplied in float32 and rounded to the nearest as PyTorch does it: all 65,536, subnormals and NaN too."""
    x = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype).view(1, 64, 32, 32)
    for factor in (1.0, 0.37, 3e-5, 1e5):
        channel = torch.full((1, 64, 1, 1), factor)
        for memory_format in FORMATS.values():
            y = ddf(x.contiguous(memory_format=memory_format), channel, None)
            exact = (x.float() * channel).to(dtype)
            torch.testing.assert_close(y, exact, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("width", [9, 30])
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("poisoned", [0, 1, 2])
def test_nan_and_inf_go_where_they_go_in_pytorch(built, width, memory_format, poisoned):
    inputs = make_inputs(2, 32, 6, width, memory_format=FORMATS[memory_format], requires_grad=False)
    values = inputs[poisoned].permute(*reversed(range(4)))
    values[1, 1, 3, 0], values[-1, -1, 1, 1], values[2, 0, 0, 0] = float("nan"), float("inf"), -float("inf")
    args = Arguments(*inputs, 3, 1, 1, True, 1)
    grad_y = torch.randn_like(inputs[0])
    for a, b in zip(
        (native.forward(args), *native.backward(grad_y, args, Needed(True, True, True))),
        (eager.forward(args), *eager.backward(grad_y, args, Needed(True, True, True))),
        strict=True,
    ):
        torch.testing.assert_close(a, b, equal_nan=True, rtol=1e-4, atol=1e-4)
    assert native.forward(args).isnan().any()


def test_tensors_in_any_strides_and_at_any_address(built):
    x, channel, spatial = make_inputs(2, 32, 6, 28, memory_format=torch.channels_last, requires_grad=False)
    exact = ddf(x, channel, spatial)
    shifted = torch.empty(x.numel() + 1)[1:].view(2, 6, 28, 32).permute(0, 3, 1, 2).copy_(x)
    for filters in (
        (channel.transpose(2, 3).contiguous().transpose(2, 3), spatial.contiguous()),
        (channel.to(memory_format=torch.channels_last), torch.cat([spatial, spatial], 1)[:, 9:]),
        (channel, torch.stack([spatial, spatial], 4)[..., 0]),
    ):
        for moved in (x, shifted, x.contiguous(), torch.cat([x, x], 1)[:, 32:]):
            assert torch.equal(ddf(moved, *filters), exact)
    expanded = spatial[:1].expand(2, -1, -1, -1)
    assert torch.equal(ddf(x, channel, expanded), ddf(x, channel, expanded.contiguous()))


def test_tensors_whose_memory_does_not_hold_their_values(built):
    _, channel, spatial = make_inputs(2, 8, 6, 7)
    negated = torch.randn(2, 8, 6, 7, dtype=torch.complex64).conj().imag
    zero = torch._efficientzerotensor((2, 8, 6, 7))
    assert negated.is_neg()
    for x in (negated, zero):
        y, expected = ddf(x, channel, spatial), ddf(x.clone().resolve_neg(), channel, spatial)
        assert torch.equal(y, expected)
        grad_y = torch.randn(2, 8, 6, 7)
        for a, b in zip(
            torch.autograd.grad(y, (channel, spatial), grad_y),
            torch.autograd.grad(expected, (channel, spatial), grad_y),
            strict=True,
        ):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize(("stride", "memory_format"), [(1, "channels_last"), (2, "contiguous")])
def test_gradcheck_with_whole_vectors(built, stride, memory_format):
    inputs = make_inputs(1, 9, 3, 4, stride=stride, dtype=torch.float64, memory_format=FORMATS[memory_format], heads=1)
    assert torch.autograd.gradcheck(lambda *tensors: ddf(*tensors, stride=stride), inputs)


def test_opcheck(built):
    for memory_format in FORMATS.values():
        inputs = make_inputs(2, 32, 5, 25, memory_format=memory_format)
        settings, tests = (3, 1, 1, True, 1), ("test_schema", "test_faketensor", "test_autograd_registration")
        torch.library.opcheck(torch.ops.ddfnet.ddf.default, (*inputs, *settings), test_utils=tests)
        arguments = (torch.randn_like(inputs[0]), *inputs, *settings, True, True, True)
        torch.library.opcheck(torch.ops.ddfnet.ddf_backward.default, arguments, test_utils=tests)


@pytest.mark.parametrize("case", [{}, {"stride": 2}, {"scale": 2}, {"filters": "spatial", "heads": 2}], ids=str)
@pytest.mark.parametrize("memory_format", FORMATS)
def test_the_same_bits_for_any_number_of_threads(built, threads, case, memory_format):
    inputs = make_inputs(8, 64, 48, 40, memory_format=FORMATS[memory_format], **case)  # work for several threads
    options = {key: case[key] for key in ("stride", "scale") if key in case}
    function = ddf_up if "scale" in case else ddf
    threads(1)
    once = evaluate(function, inputs, kernel_size=3, **options)
    for count in (1, 2, 3, 7):
        threads(count)
        for a, b in zip(evaluate(function, inputs, kernel_size=3, **options), once, strict=True):
            assert torch.equal(a, b)


def test_tracing_never_meets_native_code(built):
    inputs = make_inputs(2, 16, requires_grad=False)
    assert native.is_usable(Arguments(*inputs, 3, 1, 1, True, 1))
    with torch._subclasses.FakeTensorMode() as mode:
        fake = [mode.from_tensor(tensor) for tensor in inputs]
    assert not native.is_usable(Arguments(*fake, 3, 1, 1, True, 1))
    assert not native.is_usable(Arguments(*(tensor.to("meta") for tensor in inputs), 3, 1, 1, True, 1))
    with FunctionalTensorMode():
        wrapped = [FunctionalTensor.to_functional(tensor) for tensor in inputs]
        assert not native.is_usable(Arguments(*wrapped, 3, 1, 1, True, 1))


def test_gradients_of_a_frozen_part(built):
    """Each subset of gradients is that of the whole, bit for bit."""
    inputs = make_inputs(2, 32, 7, 9, memory_format=torch.channels_last, requires_grad=False)
    args, grad_y = Arguments(*inputs, 3, 1, 1, True, 1), torch.randn_like(inputs[0])
    whole = native.backward(grad_y, args, Needed(True, True, True))
    for bits in range(1, 8):
        needed = Needed(*(bool(bits & 1 << i) for i in range(3)))
        for grad, full, need in zip(native.backward(grad_y, args, needed), whole, needed, strict=True):
            assert torch.equal(grad, full) if need else grad.numel() == 0
    assert len(present(whole)) == 3
