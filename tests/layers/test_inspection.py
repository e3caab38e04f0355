"""What is shown of a layer is what it does: its output is the sum over the taps of input times filter."""

import pytest
import torch
from torch import nn

import ddfnet
from ddfnet import CARAFE, DDF, DDFUp, Involution
from ddfnet.layers.inspection import inspect_layers, spatial_layers
from ddfnet.ops.ddf.reference import ddf_reference, ddf_up_reference

LAYERS = [
    DDF(8, heads=2),
    DDF(8, 5, stride=2, combine="add"),
    DDF(8, dilation=2, filters="spatial"),
    DDFUp(8, heads=2, combine="add"),
    DDFUp(8, scale=3, dilation=2),
    CARAFE(8, groups=2),
    Involution(8, 3, group_channels=4, stride=2),
]


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_the_parts_make_the_output(layer):
    torch.manual_seed(0)
    network = nn.Sequential(layer, nn.ReLU(inplace=True)).eval()
    x = torch.randn(1, 8, 11, 9)
    (seen,) = inspect_layers(network, lambda: network(x))
    with torch.inference_mode():
        torch.testing.assert_close(seen.y, layer(x)[0])  # and not what the ReLU made of it
    k, up = seen.kernel_size, seen.scale > 1
    assert seen.spatial.shape[2] == k * k
    spatial = seen.spatial.flatten(0, 2)[None]
    channel = None if seen.channel is None else seen.channel.unflatten(2, (k, k))
    if up:
        channel = None if channel is None else channel[None]
        options = {"scale": seen.scale}
    else:
        options = {"stride": seen.stride}
    options |= {"dilation": seen.dilation, "combine": seen.combine, "kernel_size": k}
    y = (ddf_up_reference if up else ddf_reference)(seen.x[None], channel, spatial, **options)
    torch.testing.assert_close(seen.y, y[0])
    assert not layer._forward_hooks


def test_a_whole_network_layer_by_layer():
    torch.manual_seed(0)
    model = ddfnet.create_model("ddf_mul_resnet14_32px").eval()
    x = torch.randn(1, 3, 32, 32)
    with torch.inference_mode():
        plain = model(x)
    outputs = []
    seen = inspect_layers(model, lambda: outputs.append(model(x)))
    assert [layer.name for layer in seen] == list(spatial_layers(model)) == [f"layer{i}.0.conv2" for i in range(1, 5)]
    torch.testing.assert_close(outputs[0], plain)
    assert [layer.name for layer in inspect_layers(model, lambda: model(x), ["layer3.0.conv2"])] == ["layer3.0.conv2"]


def test_layers_without_spatial_filters_are_left_out():
    assert spatial_layers(nn.Sequential(DDF(8, filters="channel"), nn.Conv2d(8, 8, 3))) == {}
