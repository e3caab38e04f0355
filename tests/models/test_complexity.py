"""FLOP formulas of the operators, and the two counting conventions."""

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import ddfnet
from ddfnet import ddf, ddf_up
from ddfnet.models.complexity import count_complexity, model_complexity


def flops(call):
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def test_a_ddf_costs_what_a_depthwise_convolution_costs():
    x = torch.randn(2, 8, 9, 7)
    for stride in (1, 2):
        spatial = torch.randn(2, 18, -(-9 // stride), -(-7 // stride))
        conv = nn.Conv2d(8, 8, 3, stride=stride, padding=1, groups=8)
        expected = flops(lambda conv=conv: conv(x))
        assert expected == 2 * 9 * conv(x).numel()
        assert flops(lambda s=spatial, stride=stride: ddf(x, torch.randn(2, 8, 3, 3), s, stride=stride)) == expected


def test_upsampling_counts_its_new_pixels():
    x, spatial = torch.randn(1, 4, 5, 6), torch.randn(1, 4 * 25, 5, 6)
    assert flops(lambda: ddf_up(x, None, spatial, scale=2)) == 2 * 25 * 4 * 10 * 12


@pytest.mark.parametrize("needed", [("x",), ("x", "c"), ("x", "c", "s")])
def test_each_gradient_costs_one_more_forward(needed):
    tensors = {"x": torch.randn(1, 4, 6, 6), "c": torch.randn(1, 4, 3, 3), "s": torch.randn(1, 9, 6, 6)}
    for name in needed:
        tensors[name].requires_grad_()
    assert flops(lambda: ddf(*tensors.values()).sum().backward()) == (1 + len(needed)) * 2 * 9 * 4 * 36


def test_the_fused_layer_counts_as_its_parts():
    """The formulas of the registered op, which is not called on a CPU, against the layers that it replaces."""
    layer = ddfnet.DDF(8, stride=2, squeeze_ratio=0.5).to(memory_format=torch.channels_last)
    x = torch.randn(2, 8, 6, 6).to(memory_format=torch.channels_last).requires_grad_()
    (conv, norm), (_, squeeze, _, excite, channel_norm) = layer.spatial_branch, layer.channel_branch
    weights = [conv.weight, conv.bias, squeeze.weight, squeeze.bias, excite.weight, excite.bias, channel_norm.std]

    def fused():
        return torch.ops.ddfnet.ddf_layer(x, *weights, 3, 2, 1, 1, True, norm.std)[0]

    assert flops(fused) == flops(lambda: layer(x))
    assert flops(lambda: fused().sum().backward()) == flops(lambda: layer(x).sum().backward())


def test_both_conventions_by_hand():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), BatchNormAct2d(4), nn.Flatten())
    model.append(nn.Linear(4 * 64, 5))
    cost = count_complexity(model, (3, 8, 8))
    elements = 4 * 64
    assert cost.parameters == 4 * 27 + 4 + 8 + 8 + 5 * 256 + 5
    assert cost.multiply_adds == 27 * elements + 5 * 256
    assert cost.printed == cost.multiply_adds + (2 + 1 + 3) * elements
    assert model.training
    model[1].eval()
    count_complexity(model, (3, 8, 8))
    assert [module.training for module in model] == [True, False, True, True, True, True]
    assert not any(module._forward_hooks for module in model.modules())


def test_meta_and_real_models_count_alike():
    real = count_complexity(ddfnet.create_model("ddf_mul_resnet14_32px"), (3, 32, 32))
    assert real == model_complexity("ddf_mul_resnet14_32px", (3, 32, 32))
