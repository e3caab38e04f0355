"""Involution, dynamic depthwise layers, CondConv and BAM, each against a slow formulation in float64."""

import math

import pytest
import torch
import torch.nn.functional as F

from ddfnet.layers.bam import BAM
from ddfnet.layers.dynamic_depthwise import CondConv, DepthwiseCondConv, DepthwiseWeightNet
from ddfnet.layers.involution import Involution

# stride, dilation; with a 7 x 5 map strides 2 and 3 leave windows that are partly outside
SETTINGS = [(1, 1), (2, 1), (3, 1), (1, 2), (2, 2)]

LAYERS = {
    "involution": lambda **kw: Involution(8, 3, group_channels=4, reduction=2, **kw),
    "dw_condconv": lambda **kw: DepthwiseCondConv(8, experts=3, **kw),
    "dw_weightnet": lambda **kw: DepthwiseWeightNet(8, **kw),
    "condconv": lambda **kw: CondConv(8, 8, experts=3, **kw),
    "bam": lambda **kw: BAM(8, 2, **kw),
}


def image(*shape):
    return torch.randn(*(shape or (2, 8, 7, 5)), dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def vary(layer):
    """In double and eval, with statistics and affine parameters that a skipped normalization would not match."""
    generator = torch.Generator().manual_seed(1)
    layer = layer.double().eval()
    for module in layer.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for tensor in (module.running_mean, module.bias.data):
                tensor.normal_(generator=generator)
            for tensor in (module.running_var, module.weight.data):
                tensor.uniform_(0.5, 2, generator=generator)
    return layer


def norm_relu(x, norm):
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    return ((x - norm.running_mean[:, None, None]) * scale[:, None, None] + norm.bias[:, None, None]).clamp(min=0)


def pointwise(x, conv):
    y = torch.einsum("oc,bchw->bohw", conv.weight[:, :, 0, 0], x)
    return y if conv.bias is None else y + conv.bias[:, None, None]


def per_sample(x, weights, *, stride, dilation, groups):
    """One call of F.conv2d per sample, each with weights of its own."""
    padding = dilation * (weights.shape[-1] // 2)
    outputs = [
        F.conv2d(sample[None], weight, stride=stride, padding=padding, dilation=dilation, groups=groups)
        for sample, weight in zip(x, weights, strict=True)
    ]
    return torch.cat(outputs)


@pytest.mark.parametrize(("stride", "dilation"), SETTINGS)
@pytest.mark.parametrize("kernel_size", [3, 7])
def test_involution(stride, dilation, kernel_size):
    options = {"stride": stride, "dilation": dilation, "group_channels": 4, "reduction": 2}
    layer = vary(Involution(8, kernel_size, **options))
    x = image()
    height, width = math.ceil(7 / stride), math.ceil(5 / stride)

    pooled = torch.stack(
        [
            x[:, :, i * stride : (i + 1) * stride, j * stride : (j + 1) * stride].mean((2, 3))
            for i in range(height)
            for j in range(width)
        ],
        dim=-1,
    ).view(2, 8, height, width)
    _, reduce, norm, _, expand = layer.filter_branch
    filters = pointwise(norm_relu(pointwise(pooled, reduce), norm), expand)

    padding = dilation * (kernel_size // 2)
    patches = F.unfold(x, kernel_size, dilation, padding, stride).view(2, 2, 4, kernel_size**2, height, width)
    expected = (patches * filters.view(2, 2, 1, kernel_size**2, height, width)).sum(3).view(2, 8, height, width)
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize(("stride", "dilation"), SETTINGS)
def test_depthwise_condconv(stride, dilation):
    layer = vary(DepthwiseCondConv(8, stride=stride, dilation=dilation, experts=3))
    x = image()
    logits = x.mean((2, 3)) @ layer.routing.weight.T + layer.routing.bias
    weights = [sum(p / (1 + p) * expert for p, expert in zip(row, layer.experts, strict=True)) for row in logits.exp()]
    filters = torch.stack(weights)[:, :, None]
    expected = per_sample(x, filters, stride=stride, dilation=dilation, groups=8)
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize(("stride", "dilation"), SETTINGS)
def test_depthwise_weightnet(stride, dilation):
    layer = vary(DepthwiseWeightNet(8, stride=stride, dilation=dilation))
    x = image()
    _, reduce, expand, _, grouped = layer.filter_branch
    scale = pointwise(pointwise(x.mean((2, 3), keepdim=True), reduce), expand).sigmoid()
    filters = scale[:, :, None] * grouped.weight.view(8, 1, 3, 3)  # each channel scales nine taps of its own
    expected = per_sample(x, filters, stride=stride, dilation=dilation, groups=8)
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("kernel_size", [3, 5])
@pytest.mark.parametrize(("stride", "dilation"), SETTINGS)
def test_condconv(stride, dilation, kernel_size):
    layer = vary(CondConv(8, 6, kernel_size, stride=stride, dilation=dilation, experts=3))
    x = image()
    routing = (x.mean((2, 3)) @ layer.routing.weight.T + layer.routing.bias).sigmoid()
    experts = layer.conv.weight.view(3, 6, 8, kernel_size, kernel_size)
    filters = torch.einsum("be,eoikl->boikl", routing, experts)
    expected = per_sample(x, filters, stride=stride, dilation=dilation, groups=1)
    torch.testing.assert_close(layer(x), expected)


def test_bam():
    layer = vary(BAM(8, 2, dilation=2))
    x = image()
    _, reduce, norm, _, expand = layer.channel_branch
    channel = pointwise(norm_relu(pointwise(x.mean((2, 3), keepdim=True), reduce), norm), expand)
    reduce, norm1, _, conv1, norm2, _, conv2, norm3, _, last = layer.spatial_branch
    y = norm_relu(pointwise(x, reduce), norm1)
    y = norm_relu(F.conv2d(y, conv1.weight, conv1.bias, padding=2, dilation=2), norm2)
    y = norm_relu(F.conv2d(y, conv2.weight, conv2.bias, padding=2, dilation=2), norm3)
    attention = 1 / (1 + torch.exp(-(channel + pointwise(y, last))))
    assert attention.shape == x.shape
    torch.testing.assert_close(layer(x), x + x * attention)


@pytest.mark.parametrize("name", LAYERS)
def test_gradcheck(name):
    torch.manual_seed(2)
    stride = {} if name == "bam" else {"stride": 2}
    layer = vary(LAYERS[name](**stride))
    x = image(2, 8, 3, 3).requires_grad_()
    names, values = zip(*layer.named_parameters(), strict=True)

    def call(x, *values):
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))

    # fast_mode: one random direction, for there are thousands of entries
    assert torch.autograd.gradcheck(call, (x, *values), fast_mode=True)
    assert torch.autograd.gradcheck(layer, (x,))


@pytest.mark.parametrize("name", LAYERS)
def test_training_reaches_every_parameter_but_biases_before_a_norm(name):
    torch.manual_seed(0)
    layer = LAYERS[name]().double()
    layer(image()).square().sum().backward()
    zero = {key for key, parameter in layer.named_parameters() if parameter.grad.abs().max() < 1e-9}
    # a batch normalization subtracts what such a bias adds
    dead = {"channel_branch.1.bias", "spatial_branch.0.bias", "spatial_branch.3.bias", "spatial_branch.6.bias"}
    assert zero == (dead if name == "bam" else set())


@pytest.mark.parametrize("name", LAYERS)
def test_memory_format_autocast_and_samples_apart(name):
    torch.manual_seed(0)
    layer = LAYERS[name]().eval()
    x = image().float()
    y = layer(x)
    assert y.is_contiguous()
    torch.testing.assert_close(layer(x[1:]), y[1:])  # the filters of a sample are its own
    last = layer(x.to(memory_format=torch.channels_last))
    assert last.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(last, y)
    with torch.autocast("cpu", torch.bfloat16):
        half = layer(x)
    assert (half.float() - y).norm() / y.norm() < 0.05


@pytest.mark.parametrize("name", LAYERS)
def test_meta_device_and_dtype(name):
    layer = LAYERS[name](device="meta", dtype=torch.float64)
    assert {(p.device.type, p.dtype) for p in layer.parameters()} == {("meta", torch.float64)}
    assert layer.eval()(image().to("meta")).shape == (2, 8, 7, 5)


def test_experts_start_as_convolutions_do():
    bound = DepthwiseCondConv(64).experts.abs().max()
    assert 0.98 / 3 < bound <= 1 / 3  # fan-in 9
    bound = CondConv(64, 64).conv.weight.abs().max()
    assert 0.98 / 24 < bound <= 1 / 24  # fan-in 9 * 64 = 24 ** 2


@pytest.mark.parametrize(
    ("layer", "arguments", "message"),
    [
        (Involution, {"channels": 32, "kernel_size": 4}, "kernel_size must be odd and at least 3, got 4"),
        (Involution, {"channels": 24}, "group_channels must divide the channels: got 16 for 24 channels"),
        (Involution, {"channels": 32, "group_channels": 0}, "group_channels .* got 0"),
        (Involution, {"channels": 32, "reduction": 64}, "reduction=64 .* from 1 to 32"),
        (Involution, {"channels": 32, "reduction": 0}, "reduction=0 .* from 1 to 32"),
        (DepthwiseCondConv, {"channels": 8, "kernel_size": 1}, "kernel_size must be odd and at least 3, got 1"),
        (DepthwiseCondConv, {"channels": 8, "experts": 0}, "experts: got 0, expected at least 1"),
        (DepthwiseWeightNet, {"channels": 8, "kernel_size": 2}, "kernel_size must be odd and at least 3, got 2"),
        (DepthwiseWeightNet, {"channels": 8, "reduction": 0}, "reduction: got 0, expected at least 1"),
        (CondConv, {"in_channels": 8, "out_channels": 8, "kernel_size": 2}, "kernel_size .* got 2"),
        (CondConv, {"in_channels": 8, "out_channels": 8, "experts": 0}, "experts: got 0, expected at least 1"),
        (BAM, {"channels": 8}, "reduction=16 .* from 1 to 8"),
        (BAM, {"channels": 16, "dilation": 0}, "dilation: got 0, expected at least 1"),
    ],
)
def test_bad_arguments_are_named(layer, arguments, message):
    with pytest.raises(ValueError, match=message):
        layer(**arguments)
