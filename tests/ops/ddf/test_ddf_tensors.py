"""What comes out of `ddf` besides the numbers: strides, dtypes, which gradients; and what it refuses."""

import itertools

import pytest
import torch
from ddf_cases import FORMATS, evaluate, make_inputs

from ddfnet.ops.ddf import ddf

pytestmark = pytest.mark.usefixtures("each_path")


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_format_out_is_memory_format_in(name, stride, dtype):
    memory_format = FORMATS[name]
    inputs = make_inputs(2, 4, 6, 7, stride=stride, dtype=dtype, memory_format=memory_format)
    y, grad_x, *_ = evaluate(ddf, inputs, stride=stride)
    assert y.stride() == torch.empty(y.shape).contiguous(memory_format=memory_format).stride()
    assert grad_x.stride() == inputs[0].stride()


def test_other_strides_come_out_contiguous():
    x, channel, spatial = make_inputs(2, 4, 6, 6, requires_grad=False)
    x = x.permute(0, 1, 3, 2)
    assert not x.is_contiguous()
    y = ddf(x, channel, spatial)
    assert y.is_contiguous()
    torch.testing.assert_close(y, ddf(x.contiguous(), channel, spatial), rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(2, 1, 5, 4), (2, 8, 1, 1), (1, 1, 1, 1), (2, 1, 1, 6)])
@pytest.mark.parametrize("name", FORMATS)
def test_a_tensor_in_both_formats_at_once(shape, name):
    """One channel or one pixel: the fake implementation must take the same decision as the real one."""
    inputs = make_inputs(*shape, requires_grad=False)
    inputs = [inputs[0].contiguous(memory_format=FORMATS[name]), *inputs[1:]]
    arguments = (*inputs, 3, 1, 1, True, 1)
    torch.library.opcheck(torch.ops.ddfnet.ddf.default, arguments, test_utils=("test_schema", "test_faketensor"))


def test_gradient_of_y_in_any_strides():
    inputs = make_inputs(2, 4, 6, 6, memory_format=torch.channels_last, dtype=torch.float64)
    grad_y = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    one = torch.autograd.grad(ddf(*inputs), inputs, grad_y)
    other = torch.autograd.grad(ddf(*inputs), inputs, grad_y.contiguous(memory_format=torch.channels_last))
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    ones = torch.autograd.grad(ddf(*inputs), inputs, torch.ones_like(grad_y))
    zero_stride = torch.autograd.grad(ddf(*inputs).sum(), inputs)
    for a, b in zip(zero_stride, ones, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("needed", list(itertools.product((False, True), repeat=3)))
@pytest.mark.parametrize("combine", ["mul", "add"])
def test_only_needed_gradients(needed, combine):
    inputs = make_inputs(requires_grad=False)
    full = [tensor.clone().requires_grad_() for tensor in inputs]
    for tensor, wanted in zip(inputs, needed, strict=True):
        tensor.requires_grad_(wanted)
    y = ddf(*inputs, combine=combine)
    assert y.requires_grad == any(needed)
    if not any(needed):
        return
    y.sum().backward()
    ddf(*full, combine=combine).sum().backward()
    for tensor, reference, wanted in zip(inputs, full, needed, strict=True):
        assert (tensor.grad is not None) == wanted
        if wanted:
            torch.testing.assert_close(tensor.grad, reference.grad, rtol=0, atol=0)


def test_backward_skips_the_work_of_gradients_not_needed():
    x, channel, spatial = make_inputs(requires_grad=False)
    grads = torch.ops.ddfnet.ddf_backward(torch.ones_like(x), x, channel, spatial, 3, 1, 1, True, 1, False, True, False)
    assert [grad.numel() for grad in grads] == [0, channel.numel(), 0]


@pytest.mark.parametrize("filters", ["both", "channel", "spatial"])
def test_empty_batch(filters):
    inputs = make_inputs(0, 4, 6, 5, filters=filters, stride=2)
    y, *grads = evaluate(ddf, inputs, stride=2)
    assert y.shape == (0, 4, 3, 3)
    assert [grad.shape for grad in grads] == [tensor.shape for tensor in inputs if tensor is not None]


@pytest.mark.parametrize("autocast_dtype", [torch.bfloat16, torch.float16])
def test_autocast(autocast_dtype):
    inputs = make_inputs(2, 4)
    with torch.autocast("cpu", dtype=autocast_dtype):
        y, *grads = evaluate(ddf, inputs)
    assert y.dtype == autocast_dtype
    assert [grad.dtype for grad in grads] == [torch.float32] * 3
    x, channel, spatial = inputs
    torch.testing.assert_close(y, ddf(x.to(autocast_dtype), channel, spatial.to(autocast_dtype)), rtol=0, atol=0)
    # rounding the channel filter too would have changed the result
    assert not torch.equal(y, ddf(x.to(autocast_dtype), channel.to(autocast_dtype), spatial.to(autocast_dtype)))


def test_autocast_leaves_float64_alone():
    inputs = make_inputs(dtype=torch.float64, requires_grad=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(ddf(*inputs), ddf(*inputs))
        assert ddf(*inputs).dtype == torch.float64


@pytest.mark.parametrize(
    ("channels", "taps", "kernel_size"),
    [
        (8, 9, 3),  # an odd square is one head
        (8, 25, 5),
        (8, 225, 15),
        (8, 18, 3),  # two heads
        (8, 50, 5),
        (7, 7 * 49, 7),
    ],
)
def test_kernel_size_is_inferred_from_the_spatial_filter(channels, taps, kernel_size):
    x, spatial = torch.randn(1, channels, 4, 4), torch.randn(1, taps, 4, 4)
    assert torch.equal(ddf(x, None, spatial), ddf(x, None, spatial, kernel_size=kernel_size))


@pytest.mark.parametrize(
    ("channels", "taps", "message"),
    [
        (50, 450, r"kernel_size: cannot be inferred.*450 channels.*k = 3 or 15 would fit"),  # 50 x 3x3 or 2 x 15x15
        (8, 4, r"kernel_size: cannot be inferred.*4 channels.*no odd k"),
        (8, 27, r"kernel_size: cannot be inferred.*27 channels"),  # three heads do not divide eight channels
        (8, 1, r"kernel_size: cannot be inferred.*1 channels"),
    ],
)
def test_kernel_size_that_cannot_be_inferred(channels, taps, message):
    with pytest.raises(ValueError, match=message):
        ddf(torch.randn(1, channels, 4, 4), None, torch.randn(1, taps, 4, 4))


X, CHANNEL, SPATIAL = torch.zeros(2, 4, 6, 5), torch.zeros(2, 4, 3, 3), torch.zeros(2, 9, 6, 5)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((X, None, None), {}, ValueError, "channel_filter and spatial_filter: both are None"),
        (([1.0], CHANNEL, SPATIAL), {}, TypeError, "x: got list, expected a tensor"),
        ((X[0], CHANNEL, SPATIAL), {}, ValueError, r"x: got 3 dimensions \(shape \(4, 6, 5\)\)"),
        ((X.int(), CHANNEL, SPATIAL), {}, TypeError, "x: got dtype torch.int32, expected float16"),
        ((X, CHANNEL.flatten(2), SPATIAL), {}, ValueError, "channel_filter: got 3 dimensions"),
        ((X, CHANNEL.cfloat(), SPATIAL), {}, TypeError, "channel_filter: got dtype torch.complex64"),
        ((X, CHANNEL.to("meta"), SPATIAL), {}, ValueError, "channel_filter: got device meta, expected.*cpu"),
        ((X, CHANNEL[:1], SPATIAL), {}, ValueError, r"channel_filter: got shape \(1, 4, 3, 3\).*\(2, 4, 3, 3\)"),
        ((X, torch.zeros(2, 4, 3, 5), SPATIAL), {}, ValueError, r"channel_filter: got shape \(2, 4, 3, 5\)"),
        ((X, torch.zeros(2, 4, 2, 2), SPATIAL), {}, ValueError, "channel_filter: got k = 2.*expected odd"),
        ((X, CHANNEL, SPATIAL.bool()), {}, TypeError, "spatial_filter: got dtype torch.bool"),
        ((X, CHANNEL, SPATIAL[:, :8]), {}, ValueError, "spatial_filter: got 8 channels, expected.*k = 3"),
        ((X, CHANNEL, torch.zeros(2, 27, 6, 5)), {}, ValueError, "spatial_filter: got 27 channels.*divides the 4"),
        ((X, CHANNEL, torch.zeros(2, 25, 6, 5)), {}, ValueError, "spatial_filter: got 25 channels"),
        ((X, CHANNEL, SPATIAL), {"stride": 2}, ValueError, r"spatial_filter: got shape.*= \(2, 9, 3, 3\).*stride 2"),
        ((X, CHANNEL, SPATIAL[:1]), {}, ValueError, r"spatial_filter: got shape \(1, 9, 6, 5\)"),
        ((X, CHANNEL, SPATIAL), {"combine": "sum"}, ValueError, "combine: got 'sum', expected \"mul\" or \"add\""),
        ((X, CHANNEL, SPATIAL), {"stride": 0}, ValueError, "stride: got 0, expected at least 1"),
        ((X, CHANNEL, SPATIAL), {"stride": 1.0}, TypeError, "stride: got 1.0 of type float, expected an int"),
        ((X, CHANNEL, SPATIAL), {"dilation": -1}, ValueError, "dilation: got -1, expected at least 1"),
        ((X, CHANNEL, SPATIAL), {"kernel_size": 5}, ValueError, "kernel_size: got 5, but channel_filter.*k = 3"),
        ((X, None, SPATIAL), {"kernel_size": 4}, ValueError, "kernel_size: got 4, expected an odd number"),
        ((X, None, SPATIAL), {"kernel_size": 0}, ValueError, "kernel_size: got 0, expected at least 1"),
    ],
)  # fmt: skip
def test_errors_name_the_argument(arguments, options, error, message):
    with pytest.raises(error, match=message):
        ddf(*arguments, **options)
