"""The channel branch of the layer in Triton's interpreter, alone; run by test_interpreter.py."""

import pytest
import torch
import torch.nn.functional as F
from ddf_cases import relative_error
from interpreter_cases import _poison  # noqa: F401  a fixture

from ddfnet.ops.ddf_layer import triton_channel
from ddfnet.ops.ddf_layer.arguments import Activations, Settings, Weights

CASES = [
    # images, parts of the average, parts of the gradient, channels, hidden channels, kernel size, dtype of the weights
    (2, 1, 1, 20, 4, 3, torch.float32),
    (3, 18, 2, 70, 40, 3, torch.float32),
    (34, 2, 1, 8, 1, 3, torch.float16),
    (2, 3, 3, 12, 7, 5, torch.bfloat16),
]


@pytest.mark.parametrize(("images", "parts", "chunks", "channels", "hidden", "kernel_size", "dtype"), CASES)
def test_against_autograd_in_float64(images, parts, chunks, channels, hidden, kernel_size, dtype):
    """Tiles that are not full in any direction, more than one of each, with biases and without."""
    generator = torch.Generator().manual_seed(0)
    random = lambda *shape: torch.randn(shape, generator=generator)  # noqa: E731
    area = kernel_size**2
    shapes = (
        (hidden, channels, 1, 1),
        (hidden,),
        (channels * area, hidden, 1, 1),
        (channels * area,),
        (channels * area,),
    )
    given = [random(*shape).to(dtype) for shape in shapes]
    if parts == 1:
        given[1] = given[3] = None
    partials, grad_parts = random(images, parts, channels), random(images, chunks, 1, area, channels)
    settings = Settings(kernel_size, 1, 1, 1, True, 0.4)
    weights = Weights(torch.empty(0), None, *given)
    pooled, active, logits, channel_filter = triton_channel.predict(partials, weights, settings)
    activations = Activations(torch.empty(0), torch.empty(0), pooled, active, logits, channel_filter)
    of_branch = triton_channel.backward(grad_parts, weights, activations, settings)
    actual = [channel_filter, of_branch.pooled, *triton_channel.weight_gradients(of_branch, activations)]

    leaves = [None if tensor is None else tensor.double().requires_grad_() for tensor in given]
    squeeze, squeeze_bias, excite, excite_bias, alpha = leaves
    average = partials.double().sum(1).requires_grad_()
    taps = F.linear(F.linear(average, squeeze.flatten(1), squeeze_bias).relu(), excite.flatten(1), excite_bias)
    taps = taps.unflatten(1, (channels, area))
    std, mean = torch.std_mean(taps, 2, keepdim=True)
    expected = (((taps - mean) / (std + 1e-10)).flatten(1) * alpha).unflatten(1, (channels, area)).transpose(1, 2)
    present = [leaf for leaf in leaves if leaf is not None]
    grads = torch.autograd.grad(expected, [average, *present], grad_parts.double().sum((1, 2)))
    if parts == 1:
        actual = [tensor for index, tensor in enumerate(actual) if index not in (3, 5)]
    for index, (a, e) in enumerate(zip(actual, [expected, *grads], strict=True)):
        assert a.dtype == torch.float32
        assert relative_error(a.reshape(e.shape), e) <= 3e-6, index
    assert (active > 0).any()


def test_nan_stays_nan():
    """And passes the ReLU in both directions, as in PyTorch."""
    random = torch.randn
    weights = Weights(torch.empty(0), None, random(3, 4, 1, 1), random(3), random(36, 3, 1, 1), None, random(36))
    settings = Settings(3, 1, 1, 1, True, 0.4)
    partials = random(2, 1, 4)
    partials[1, 0, 2] = torch.nan
    pooled, hidden, logits, channel_filter = triton_channel.predict(partials, weights, settings)
    for tensor in (hidden, logits, channel_filter):
        assert not tensor[0].isnan().any()
        assert tensor[1].isnan().all()
    activations = Activations(torch.empty(0), torch.empty(0), pooled, hidden, logits, channel_filter)
    grads = triton_channel.backward(random(2, 1, 1, 9, 4), weights, activations, settings)
    assert not grads.hidden[0].isnan().any()
    assert grads.hidden[1].isnan().all()
    assert grads.pooled[1].isnan().all()
