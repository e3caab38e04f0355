"""The feature pyramid: torchvision's with nearest upsampling, odd sizes, and the costs of table 6."""

from collections import OrderedDict

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

from ddfnet.tasks.detection.pyramid import UPSAMPLERS, FeaturePyramid, upsampler

LOW_RESOLUTION = [(40, 25), (80, 50), (160, 100)]  # levels that are upsampled, of an image of 1280 x 800 pixels
CHANNEL_BRANCH = 4 * (256 * 51 + 51 * 256 * 9)  # of DDF-Up: once per image, whatever its size


def multiply_adds(name, size):
    with torch.device("meta"):
        module, x = upsampler(name, 256), torch.empty(1, 256, *size)
    with FlopCounterMode(display=False) as counter:
        assert module(x).shape == (1, 256, 2 * size[0], 2 * size[1])
    return counter.get_total_flops() // 2


@pytest.mark.parametrize(("name", "printed"), [("deconv", 12.57), ("pixelshuffle", 50.18), ("carafe", 2.14)])
def test_costs_of_table_6(name, printed):
    assert sum(multiply_adds(name, size) for size in LOW_RESOLUTION) / 1e9 == pytest.approx(printed, rel=0.025)


def test_cost_of_ddf_up_is_that_of_table_6_to_the_digit():
    """The paper's 0.58 B are 4 x (depthwise + 1x1 + filters) x 256 per pixel: the channel branch is not among them."""
    for height, width in LOW_RESOLUTION:
        assert multiply_adds("ddfup", (height, width)) == 27_648 * height * width + CHANNEL_BRANCH
    assert f"{27_648 * sum(h * w for h, w in LOW_RESOLUTION) / 1e9:.2f}" == "0.58"


@pytest.mark.parametrize("name", UPSAMPLERS)
def test_gradients_reach_all_weights_and_levels(name):
    pyramid = FeaturePyramid([4, 8, 12], channels=16, upsampling=name)
    levels = [torch.randn(2, width, side, side, requires_grad=True) for width, side in ((4, 16), (8, 8), (12, 4))]
    outputs = pyramid(levels)
    assert list(outputs) == ["0", "1", "2", "pool"]
    assert [tuple(o.shape) for o in outputs.values()] == [(2, 16, side, side) for side in (16, 8, 4, 2)]
    outputs["0"].square().mean().backward()  # the finest level hears of all others
    assert all(level.grad.abs().sum() > 0 for level in levels)
    assert all(p.grad is not None for p in pyramid.upsample.parameters())


def test_equals_torchvision_with_nearest_upsampling():
    torch.manual_seed(0)
    widths = [4, 8, 12, 16]
    ours, theirs = FeaturePyramid(widths, 8), FeaturePyramidNetwork(widths, 8, extra_blocks=LastLevelMaxPool())
    for own, other in ((ours.lateral, theirs.inner_blocks), (ours.output, theirs.layer_blocks)):
        for a, b in zip(own, other, strict=True):
            a.load_state_dict(b[0].state_dict())
    levels = [torch.randn(1, width, 32 >> i, 48 >> i) for i, width in enumerate(widths)]
    expected = theirs(OrderedDict((str(i), level) for i, level in enumerate(levels)))
    for (name, a), (other, b) in zip(ours(levels).items(), expected.items(), strict=True):
        assert name == other
        torch.testing.assert_close(a, b)


def test_start_is_that_of_torchvision():
    ours, theirs = FeaturePyramid([64], 32), FeaturePyramidNetwork([64], 32)
    for a, b in ((ours.lateral[0], theirs.inner_blocks[0][0]), (ours.output[0], theirs.layer_blocks[0][0])):
        assert a.weight.std().item() == pytest.approx(b.weight.std().item(), rel=0.1)
        assert not a.bias.any()


@pytest.mark.parametrize("name", UPSAMPLERS)
def test_odd_levels_are_cut_and_not_moved(name):
    pyramid = FeaturePyramid([1, 1], channels=8, upsampling=name)
    outputs = pyramid([torch.randn(1, 1, 25, 13), torch.randn(1, 1, 13, 7)])
    assert outputs["0"].shape == (1, 8, 25, 13)
    wide = pyramid.upsample[0](pyramid.lateral[1](torch.ones(1, 1, 13, 7)))
    assert wide.shape == (1, 8, 26, 14)


def test_pixel_of_an_odd_level_gets_that_of_its_half():
    pyramid = FeaturePyramid([1, 1], channels=1)
    for conv in (*pyramid.lateral, *pyramid.output):
        torch.nn.init.zeros_(conv.weight)
        conv.weight.data[0, 0, conv.kernel_size[0] // 2, conv.kernel_size[1] // 2] = 1
    coarse = torch.arange(9.0).view(1, 1, 3, 3)
    fine = pyramid([torch.zeros(1, 1, 5, 5), coarse])["0"]
    torch.testing.assert_close(fine[0, 0], coarse[0, 0].repeat_interleave(2, 0).repeat_interleave(2, 1)[:5, :5])


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="upsampling: got 'cubic', expected one of nearest"):
        upsampler("cubic", 8)
    with pytest.raises(ValueError, match="no level"):
        FeaturePyramid([])
    with pytest.raises(ValueError, match="got 1, expected 2"):
        FeaturePyramid([4, 4], 8)([torch.zeros(1, 4, 4, 4)])
    with pytest.raises(ValueError, match="5 x 8 pixels before one of 4 x 4"):
        FeaturePyramid([4, 4], 8)([torch.zeros(1, 4, 5, 8), torch.zeros(1, 4, 4, 4)])
