"""Eager calls skip PyTorch's dispatcher: what only the dispatcher understands must still go through it."""

import pytest
import torch
from ddf_cases import FORMATS, make_inputs
from torch.autograd.functional import jacobian
from torch.utils._python_dispatch import TorchDispatchMode

from ddfnet.ops.common import is_plain
from ddfnet.ops.ddf import ddf, ddf_reference, ddf_up

REGISTERED = torch.ops.ddfnet.ddf.default


def registered(x, channel_filter, spatial_filter):
    return REGISTERED(x, channel_filter, spatial_filter, 3, 1, 1, True, 1)


@pytest.mark.parametrize("function", [ddf, registered])
@pytest.mark.parametrize("memory_format", FORMATS)
def test_outputs_may_be_modified_in_place(function, memory_format):
    """As an inplace ReLU or a residual sum does."""
    inputs = make_inputs(2, 4, memory_format=FORMATS[memory_format])
    y = function(*inputs)
    plain = torch.autograd.grad(torch.relu(y + 1).sum(), inputs)
    y = function(*inputs)
    y += 1
    for a, b in zip(torch.autograd.grad(torch.relu_(y).sum(), inputs), plain, strict=True):
        torch.testing.assert_close(a, b)


def test_upsampled_outputs_may_be_modified_in_place():
    x = torch.randn(1, 4, 3, 5).to(memory_format=torch.channels_last).requires_grad_()
    ddf_up(x, None, torch.randn(1, 36, 3, 5), scale=2).relu_().sum().backward()
    assert x.grad.isfinite().all()


def test_features_of_a_frozen_network_may_be_modified_in_place():
    x, channel_filter, spatial_filter = make_inputs(2, 4, memory_format=torch.channels_last, requires_grad=False)
    with torch.no_grad():
        y = ddf(x, channel_filter, spatial_filter)
    y += torch.ones(4, 1, 1, requires_grad=True)
    y.sum().backward()


def test_tensors_that_carry_their_sign_as_a_flag():
    inputs = make_inputs(2, 4, requires_grad=False)
    for index in range(3):
        flagged, negative = list(inputs), list(inputs)
        flagged[index], negative[index] = torch._neg_view(inputs[index]), -inputs[index]
        assert not is_plain(*flagged)
        torch.testing.assert_close(ddf(*flagged), ddf_reference(*negative))


def test_zeros_without_memory():
    x, channel_filter, spatial_filter = make_inputs(2, 4)
    zero = torch._efficientzerotensor(x.shape)
    assert not is_plain(zero)
    with torch.no_grad():
        assert ddf(zero, channel_filter, spatial_filter).eq(0).all()
    y = ddf(x, channel_filter, spatial_filter)
    assert all(
        grad.eq(0).all() for grad in torch.autograd.grad(y, (x, channel_filter), torch._efficientzerotensor(y.shape))
    )


def test_batches_of_gradients():
    inputs = [tensor.detach().double() for tensor in make_inputs(1, 2, 3, 3)]
    for index in range(3):
        by_row, at_once = (jacobian(ddf, tuple(inputs), vectorize=vectorize)[index] for vectorize in (False, True))
        torch.testing.assert_close(at_once, by_row)
    leaves = [tensor.requires_grad_() for tensor in inputs]
    y = ddf(*leaves)
    directions = torch.randn(3, *y.shape, dtype=torch.float64)
    batched = torch.autograd.grad(y, leaves, directions, is_grads_batched=True, retain_graph=True)
    for number, direction in enumerate(directions):
        for grad, many in zip(torch.autograd.grad(y, leaves, direction, retain_graph=True), batched, strict=True):
            torch.testing.assert_close(many[number], grad)


class Wrapper(torch.Tensor):
    """A tensor without memory of its own, which answers with plain ones, as quantized weights do."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype, strides=inner.stride())

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        def unwrap(value):
            return value.inner if isinstance(value, cls) else value

        return func(*map(unwrap, args), **(kwargs or {}))


def test_subclasses_are_asked_in_both_directions():
    x, channel_filter, spatial_filter = make_inputs(2, 4)
    wrapped = Wrapper(channel_filter.detach())
    y = ddf(x, wrapped, spatial_filter)
    grads = torch.autograd.grad(y.sum(), (x, spatial_filter))
    y = ddf(x, channel_filter.detach(), spatial_filter)
    for a, b in zip(grads, torch.autograd.grad(y.sum(), (x, spatial_filter)), strict=True):
        torch.testing.assert_close(a, b)


def test_modes_traces_and_profilers_see_the_registered_op():
    inputs = make_inputs(2, 4, requires_grad=False)
    assert is_plain(*inputs)

    class Names(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.seen = []

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.seen.append(str(func))
            return func(*args, **(kwargs or {}))

    with Names() as mode:
        assert not is_plain()
        ddf(*inputs)
    assert "ddfnet.ddf.default" in mode.seen
    with torch.profiler.profile() as profiler:
        assert not is_plain()
        ddf(*inputs)
    assert "ddfnet::ddf" in {event.key for event in profiler.key_averages()}
    with torch.device("cpu"):  # a mode of functions
        assert not is_plain()
    assert not is_plain(torch.empty(1, device="meta"))
    torch.testing.assert_close(torch.vmap(ddf)(*(tensor.unsqueeze(1) for tensor in inputs)).squeeze(1), ddf(*inputs))
