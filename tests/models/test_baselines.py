"""The networks DDF-ResNet is compared with: the parameter counts the paper prints, and timm's interface."""

import pytest
import timm
import torch

import ddfnet
from ddfnet.layers.bam import BAM
from ddfnet.models import baselines

# exact count, and the millions the paper prints (tables 4 and 5); it has no such figure for the first two
PARAMETERS = {
    "dw_resnet50": (14_273_768, None),
    "involution_resnet50": (15_530_356, None),
    "condconv_resnet50": (104_808_104, "104.8"),
    "dw_condconv_resnet50": (14_541_992, "14.5"),
    "dw_weightnet_resnet50": (14_447_832, "14.4"),
    "bam_resnet50": (25_915_099, "25.9"),
    "bam_resnet101": (44_907_227, "44.9"),
    "cbam_resnet50": (28_073_576, "28.1"),
    "cbam_resnet101": (49_295_628, "49.3"),
}
REPLACED = ["dw_resnet50", "involution_resnet50", "condconv_resnet50", "dw_condconv_resnet50", "dw_weightnet_resnet50"]
SHALLOW = [name for name in PARAMETERS if name.endswith("50")]


def on_meta(name, **kwargs):
    with torch.device("meta"):
        return timm.create_model(name, **kwargs)


def one_block_per_stage(name, **kwargs):
    """The same network with four blocks: what one block does, twelve more do."""
    return timm.create_model(name, layers=(1, 1, 1, 1), num_classes=5, **kwargs)


def test_every_model_is_listed():
    assert {name.split(".")[0] for name in baselines.default_cfgs} == {*PARAMETERS, "dw_resnet14_32px"}
    assert set(ddfnet.list_models()) >= set(PARAMETERS)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_counts(name):
    exact, printed = PARAMETERS[name]
    model = on_meta(name)
    assert sum(p.numel() for p in model.parameters()) == exact
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert printed in (None, f"{exact / 1e6:.1f}")


@pytest.mark.parametrize("name", REPLACED)
@pytest.mark.parametrize("output_stride", [32, 16, 8])
def test_layers_have_the_stride_and_dilation_of_what_they_replace(name, output_stride):
    def pair(value):  # of nn.Conv2d and of our layers
        return value if isinstance(value, tuple) else (value, value)

    baseline = dict(on_meta(name, output_stride=output_stride).named_modules())
    base = dict(on_meta("resnet50", output_stride=output_stride).named_modules())
    names = [key for key in base if key.endswith(".conv2")]
    assert len(names) == 16
    for key in names:
        layer = baseline[key].conv if name == "condconv_resnet50" else baseline[key]
        assert type(baseline[key]) is not torch.nn.Conv2d or baseline[key].groups == baseline[key].in_channels
        assert pair(layer.stride) == base[key].stride, key
        assert pair(layer.dilation) == base[key].dilation, key


@pytest.mark.parametrize("name", SHALLOW)
def test_forward_backward_and_memory_formats(name):
    torch.manual_seed(0)
    model = one_block_per_stage(name, in_chans=1, drop_path_rate=0.1, zero_init_last=False)
    assert model.layer4[0].drop_path.drop_prob == pytest.approx(0.1)
    model(torch.randn(2, 1, 64, 64)).square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())

    x = torch.randn(2, 1, 65, 47)  # odd all the way down: 33, 17, 9, 5, 3
    model.eval()
    y = model(x)
    assert y.shape == (2, 5)
    last = model.to(memory_format=torch.channels_last)
    maps = last.forward_features(x.to(memory_format=torch.channels_last))
    assert maps.shape == (2, 2048, 3, 2)
    assert maps.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(last.forward_head(maps), y, rtol=1e-3, atol=1e-4)


def test_full_depth_at_64_pixels():
    model = timm.create_model("dw_condconv_resnet50").eval()
    with torch.inference_mode():
        assert model(torch.randn(1, 3, 64, 64)).shape == (1, 1000)


@pytest.mark.parametrize("name", SHALLOW)
def test_features_only_with_output_stride(name):
    options = {"features_only": True, "out_indices": (1, 3, 4), "output_stride": 16}
    backbone = timm.create_model(name, layers=(1, 1, 1, 1), **options).eval()
    assert backbone.feature_info.reduction() == [4, 16, 16]
    with torch.inference_mode():
        maps = backbone(torch.randn(1, 3, 64, 64))
    assert [tuple(m.shape) for m in maps] == [(1, 256, 16, 16), (1, 1024, 4, 4), (1, 2048, 4, 4)]


def test_bam_stands_after_each_of_the_first_three_stages():
    model = timm.create_model("bam_resnet50", layers=(1, 1, 1, 1)).eval()
    stages = (model.layer1, model.layer2, model.layer3, model.layer4)
    assert [isinstance(stage[-1], BAM) for stage in stages] == [True, True, True, False]
    assert sum(isinstance(module, BAM) for module in model.modules()) == 3
    x = torch.randn(1, 3, 32, 32)
    first, *_ = model.forward_intermediates(x, intermediates_only=True, indices=[1])
    stem = model.maxpool(model.act1(model.bn1(model.conv1(x))))
    torch.testing.assert_close(first, model.layer1[1](model.layer1[0](stem)))


def test_state_dict_round_trip_gives_equal_logits():
    a, b = (one_block_per_stage("involution_resnet50", zero_init_last=False).eval() for _ in range(2))
    x = torch.randn(1, 3, 64, 64)
    assert not torch.equal(a(x), b(x))
    b.load_state_dict(a.state_dict())
    assert torch.equal(a(x), b(x))


def test_a_grouped_convolution_cannot_be_replaced():
    with pytest.raises(ValueError, match="cardinality and reduce_first must be 1"):
        timm.create_model("dw_resnet50", cardinality=32, base_width=4)
