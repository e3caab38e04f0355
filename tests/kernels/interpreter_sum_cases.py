"""Batch normalization with a sum and a ReLU behind it, in Triton's interpreter; run by test_interpreter.py."""

import copy

import pytest
import torch
import torch.nn.functional as F
from ddf_cases import relative_error
from interpreter_cases import TOLERANCE, _poison, launches, recording  # noqa: F401  fixtures
from interpreter_norm_cases import randomize
from torch import nn

from ddfnet.layers.normalized_sum import normalized_sum
from ddfnet.ops.batch_norm import triton as norm_launch

INFERENCE = ["batch_norm_kernel"]
FORWARD = ["batch_norm_moments_kernel", "batch_norm_merge_kernel", "batch_norm_apply_kernel"]
BACKWARD = ["batch_norm_backward_sums_kernel", "batch_norm_backward_kernel"]


@pytest.fixture(autouse=True)
def _record_the_norm(launches, monkeypatch):  # noqa: F811
    monkeypatch.setattr(norm_launch, "launch", recording(norm_launch.launch, launches))


def make(channels=5, dtype=torch.float32, size=(2, 5, 7), residual=True, relu=True):
    """A normalization with negative and zero weights, a ReLU or None; x, shortcut or None and grad_y."""
    torch.manual_seed(0)
    norm = randomize(nn.Sequential(nn.BatchNorm2d(channels, eps=1e-3, momentum=0.3)))[0].train()
    shape = (size[0], channels, *size[1:])
    maps = (torch.randn(shape).to(dtype).contiguous(memory_format=torch.channels_last) for _ in range(3))
    x, shortcut, grad_y = maps
    return norm, nn.ReLU(inplace=True) if relu else None, x, shortcut if residual else None, grad_y


def step(norm, act, x, shortcut, grad_y, training=True):
    """y and all gradients; the statistics of `norm` are updated."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in (x, shortcut) if tensor is not None]
    y = normalized_sum(leaves[0], norm, *leaves[1:] if shortcut is not None else [None], act, training=training)
    return [y, *torch.autograd.grad(y, [*leaves, *norm.parameters()], grad_y)]


def exact(norm, act, x, shortcut, grad_y):
    """The same by the layers in float64, and the normalization."""
    norm = copy.deepcopy(norm).double()
    return step(norm, act, *(None if t is None else t.double() for t in (x, shortcut, grad_y))), norm


CASES = [
    # channels, dtype, (images, height, width), shortcut, ReLU
    (70, torch.float32, (2, 5, 7), True, True),
    (20, torch.bfloat16, (3, 5, 5), True, True),
    (66, torch.float16, (1, 3, 3), True, True),
    (5, torch.bfloat16, (3, 6, 7), False, True),
    (70, torch.float32, (1, 5, 3), False, True),
    (20, torch.float32, (2, 5, 7), False, False),
    (70, torch.bfloat16, (1, 5, 3), False, False),
]


@pytest.mark.parametrize("channels, dtype, size, residual, relu", CASES)  # noqa: PT006
def test_a_step_is_that_of_the_layers(channels, dtype, size, residual, relu, launches):  # noqa: F811
    """y, all gradients and the running statistics against float64; then the same statistics in inference."""
    norm, *given = make(channels, dtype, size, residual, relu)
    expected, twin = exact(norm, *given)
    launches.clear()
    actual = step(norm, *given)
    assert launches == FORWARD + BACKWARD
    assert [t.dtype for t in actual] == [*[dtype] * (2 + residual), torch.float32, torch.float32]
    assert all(t.is_contiguous(memory_format=torch.channels_last) for t in actual if t.dim() == 4)
    for index, (a, e) in enumerate(zip(actual, expected, strict=True)):
        assert relative_error(a, e) <= (2e-5 if a.dim() == 1 else TOLERANCE[dtype]), index
    for (name, buffer), (_, e) in zip(norm.named_buffers(), twin.named_buffers(), strict=True):
        assert relative_error(buffer.double(), e.double()) <= 1e-6, name

    act, x, shortcut, _ = given
    launches.clear()
    with torch.no_grad():
        y = normalized_sum(x, norm.eval(), shortcut, act)
        expected = normalized_sum(x.double(), twin.eval(), None if shortcut is None else shortcut.double(), act)
    assert launches == INFERENCE
    assert y.dtype == dtype
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert relative_error(y, expected) <= TOLERANCE[dtype]


def test_large_means_do_not_swallow_the_variance():
    norm, act, x, shortcut, grad_y = make()
    x = x + 3000 * torch.arange(1.0, 6).view(5, 1, 1)
    expected, twin = exact(norm, act, x, shortcut, grad_y)
    for index, (a, e) in enumerate(zip(step(norm, act, x, shortcut, grad_y), expected, strict=True)):
        assert relative_error(a, e) <= 2e-3, index  # x itself has 13 bits behind the point
    assert relative_error(norm.running_var, twin.running_var) <= 3e-6


@pytest.mark.parametrize("where", ["x", "shortcut"])
def test_nan_stays_nan(where):
    norm, act, x, shortcut, grad_y = make(size=(2, 3, 3))
    (x if where == "x" else shortcut)[0, 2, 1, 1] = torch.nan
    expected, _ = exact(norm, act, x, shortcut, grad_y)
    for a, e in zip(step(norm, act, x, shortcut, grad_y), expected, strict=True):
        assert torch.equal(a.isnan(), e.isnan())
    with torch.no_grad():
        y = normalized_sum(x, norm.eval(), shortcut, act)
        assert torch.equal(y.isnan(), F.relu(norm(x) + shortcut).isnan())


def test_the_registered_operators_give_the_same_bits(launches):  # noqa: F811
    """A profiler makes calls take the dispatcher's way. No gradient of a gradient, and y is kept."""
    norm, act, x, shortcut, grad_y = make()
    direct = step(copy.deepcopy(norm), act, x, shortcut, grad_y)
    with torch.autograd.profiler.profile() as profile:
        registered = step(copy.deepcopy(norm), act, x, shortcut, grad_y)
    assert all(torch.equal(a, b) for a, b in zip(direct, registered, strict=True))
    called = {event.key for event in profile.key_averages()}
    assert {"ddfnet::batch_norm_trained", "ddfnet::batch_norm_trained_backward"} <= called
    assert launches == (FORWARD + BACKWARD) * 2
    leaf = x.clone().requires_grad_()
    y = normalized_sum(leaf, norm, shortcut, act, training=True)
    (grad,) = torch.autograd.grad(y, leaf, grad_y.clone().requires_grad_(), create_graph=True)
    assert torch.equal(grad, direct[1])
    with pytest.raises(RuntimeError, match="fused_norms='none'"):
        grad.square().sum().backward()
    y.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):  # as that of a ReLU
        y.sum().backward()


@pytest.mark.parametrize("residual", [True, False])
def test_opcheck(residual):
    norm, _, x, shortcut, grad_y = make(size=(1, 3, 3), residual=residual)
    affine, checks = [p.detach() for p in norm.parameters()], ("test_schema", "test_faketensor")
    inputs = (x, *affine, norm.running_mean, norm.running_var, shortcut, 1e-5, residual)
    torch.library.opcheck(torch.ops.ddfnet.batch_norm.default, inputs, test_utils=checks)
    inputs = (x, *affine, shortcut, 1e-5, residual)
    torch.library.opcheck(torch.ops.ddfnet.batch_norm_trained.default, inputs, test_utils=checks)
    y, statistics = torch.ops.ddfnet.batch_norm_trained(*inputs)
    inputs = (grad_y, x, y if residual else None, statistics, residual)
    torch.library.opcheck(torch.ops.ddfnet.batch_norm_trained_backward.default, inputs, test_utils=checks)
