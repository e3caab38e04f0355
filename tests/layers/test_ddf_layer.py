"""FilterNorm and the DDF layer: their formulas, official parameter names, shapes and dtypes."""

import math

import pytest
import torch
import torch.nn.functional as F

from ddfnet import DDF, FilterNorm, ddf
from ddfnet.ops.ddf import ddf_reference


def test_spatial_filter_norm_is_the_formula():
    filters = torch.randn(2, 2 * 9, 4, 5, dtype=torch.float64)
    out = FilterNorm(2, 3, "spatial", nonlinearity="relu")(filters)
    for head in range(2):
        taps = filters[1, head * 9 : head * 9 + 9, 2, 3]
        mean = taps.sum() / 9
        std = math.sqrt(((taps - mean) ** 2).sum() / 8)  # unbiased
        expected = math.sqrt(2) / 3 * (taps - mean) / (std + 1e-10)
        torch.testing.assert_close(out[1, head * 9 : head * 9 + 9, 2, 3], expected)


def test_channel_filter_norm_has_one_learned_scale_per_tap():
    norm = FilterNorm(4, 3, "channel").double()
    assert norm.std.shape == (36,)
    filters = torch.randn(2, 36, 1, 1, dtype=torch.float64)
    taps = filters[0, 9:18, 0, 0]
    expected = norm.std[9:18] * (taps - taps.mean()) / (taps.std() + 1e-10)
    torch.testing.assert_close(norm(filters)[0, 9:18, 0, 0], expected)


def test_constant_half_precision_filters_stay_finite():
    for kind in ("spatial", "channel"):
        out = FilterNorm(1, 3, kind)(torch.full((1, 9, 1, 1), 0.3, dtype=torch.float16))
        assert torch.isfinite(out).all()
        assert out.abs().max() == 0


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("combine", ["mul", "add"])
def test_forward_is_branches_then_operator(stride, combine):
    torch.manual_seed(0)
    layer = DDF(10, stride=stride, heads=2, combine=combine, squeeze_ratio=0.5).double()
    x = torch.randn(2, 10, 7, 5, dtype=torch.float64)
    pooled = x.mean((2, 3), keepdim=True)
    conv1, conv2, norm = layer.channel_branch[1], layer.channel_branch[3], layer.channel_branch[4]
    channel = norm(conv2(conv1(pooled).relu())).view(2, 10, 3, 3)
    spatial = layer.spatial_branch[1](layer.spatial_branch[0](x))
    assert spatial.shape == (2, 18, math.ceil(7 / stride), math.ceil(5 / stride))
    torch.testing.assert_close(layer(x), ddf(x, channel, spatial, stride=stride, combine=combine))


@pytest.mark.parametrize("stride", [1, 2])
def test_one_kind_of_filter_alone(stride):
    torch.manual_seed(0)
    x = torch.randn(2, 8, 7, 5, dtype=torch.float64)
    spatial = DDF(8, stride=stride, heads=2, filters="spatial").double()
    assert spatial.channel_branch is None
    torch.testing.assert_close(
        spatial(x), ddf_reference(x, None, spatial.spatial_branch(x), stride=stride, kernel_size=3)
    )
    channel = DDF(8, stride=stride, filters="channel").double()
    assert channel.spatial_branch is None
    filters = channel.channel_branch(x).view(2, 8, 3, 3)
    torch.testing.assert_close(channel(x), ddf_reference(x, filters, None, stride=stride))
    for layer in (spatial, channel):
        layer(x).square().sum().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in layer.parameters())


def test_baseline_normalizations():
    torch.manual_seed(0)
    x = torch.randn(4, 8, 6, 6, dtype=torch.float64)
    for kind, of_logits in (
        ("batch", lambda logits: F.batch_norm(logits, None, None, training=True)),
        ("sigmoid", torch.sigmoid),
    ):
        layer = DDF(8, heads=2, normalization=kind, squeeze_ratio=0.5).double()
        conv1, conv2 = layer.channel_branch[1], layer.channel_branch[3]
        channel = of_logits(conv2(conv1(x.mean((2, 3), keepdim=True)).relu())).view(4, 8, 3, 3)
        spatial = of_logits(layer.spatial_branch[0](x))
        torch.testing.assert_close(layer(x), ddf_reference(x, channel, spatial))


def test_half_precision_and_training_of_the_variants():
    x = torch.randn(4, 8, 6, 6)
    for options in ({"filters": "spatial"}, {"filters": "channel"}, {"normalization": "batch"}):
        layer = DDF(8, **options)
        with torch.autocast("cpu", torch.bfloat16):
            y = layer(x)
        assert y.dtype == torch.bfloat16, options
        y.float().square().sum().backward()
        assert torch.isfinite(layer(x)).all()


def test_the_meta_device_computes_nothing():
    layer = DDF(8, stride=2, device="meta")
    assert layer(torch.empty(1, 8, 7, 7, device="meta")).shape == (1, 8, 4, 4)


def test_official_state_dict_names_and_shapes():
    # layer1.0.conv2 of the official DDF-ResNet50: width 64, 12 hidden channels
    shapes = {name: tuple(tensor.shape) for name, tensor in DDF(64).state_dict().items()}
    assert shapes == {
        "spatial_branch.0.weight": (9, 64, 1, 1),
        "spatial_branch.0.bias": (9,),
        "channel_branch.1.weight": (12, 64, 1, 1),
        "channel_branch.1.bias": (12,),
        "channel_branch.3.weight": (576, 12, 1, 1),
        "channel_branch.3.bias": (576,),
        "channel_branch.4.std": (576,),
    }


def test_gradients_reach_every_parameter():
    layer = DDF(8, squeeze_ratio=1.0)
    layer(torch.randn(2, 8, 6, 6)).square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_autocast_and_memory_format():
    layer = DDF(16).to(memory_format=torch.channels_last)
    x = torch.randn(2, 16, 8, 8).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    assert y.is_contiguous(memory_format=torch.channels_last)
    exact = layer(x)
    assert (y.float() - exact).norm() / exact.norm() < 0.05


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"channels": 8, "kernel_size": 4}, "kernel_size"),
        ({"channels": 8, "kernel_size": 1}, "kernel_size"),
        ({"channels": 8, "heads": 3}, "heads"),
        ({"channels": 8, "combine": "sub"}, "combine"),
        ({"channels": 4, "squeeze_ratio": 0.1}, "squeeze_ratio"),
        ({"channels": 8, "filters": "none"}, "filters"),
        ({"channels": 8, "normalization": "layer"}, "normalization"),
        ({"channels": 8, "filters": "channel", "heads": 2}, "2 heads"),
        ({"channels": 0}, "channels: got 0"),
        ({"channels": -4}, "channels: got -4"),
        ({"channels": 8, "stride": 0}, "stride: got 0"),
        ({"channels": 8, "dilation": 0}, "dilation: got 0"),
    ],
)
def test_bad_arguments_are_named(arguments, word):
    with pytest.raises(ValueError, match=word):
        DDF(**arguments)


@pytest.mark.parametrize("arguments", [{"channels": "8"}, {"channels": 8.0}, {"channels": 8, "stride": (2, 2)}])
def test_arguments_of_a_wrong_type_are_named(arguments):
    with pytest.raises(TypeError, match=r"(channels|stride): got .*, expected an int"):
        DDF(**arguments)


def test_images_in_whole_numbers_are_refused():
    with pytest.raises(TypeError, match=r"x: got dtype torch.uint8"):
        DDF(8)(torch.zeros(1, 8, 5, 5, dtype=torch.uint8))


def test_a_second_number_that_looks_like_channels_is_explained():
    with pytest.raises(ValueError, match="got 128; the number of output channels is not given"):
        DDF(64, 128)


@pytest.mark.parametrize("shape", [(2, 4, 5, 5), (8, 5, 5)])
def test_an_input_of_another_shape_is_named(shape):
    with pytest.raises(ValueError, match=r"x: got shape .*, expected \(B, 8, H, W\)"):
        DDF(8)(torch.zeros(shape))


@pytest.mark.parametrize("filters", ["both", "spatial", "channel"])
def test_an_empty_batch_has_gradients_and_no_warning(filters, recwarn):
    layer, x = DDF(8, filters=filters, stride=2), torch.randn(0, 8, 5, 5, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert (y.shape, x.grad.shape) == ((0, 8, 3, 3), (0, 8, 5, 5))
    assert all((parameter.grad == 0).all() for parameter in layer.parameters())
    assert not recwarn.list
