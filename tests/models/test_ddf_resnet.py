"""DDF-ResNets: parameter counts of the paper, official keys, and timm's interface."""

import pytest
import timm
import torch
import torch.nn.functional as F

import ddfnet
from ddfnet import DDF
from ddfnet.models.ddf_resnet import DDFBasicBlock


def count(name, **kwargs):
    with torch.device("meta"):
        return sum(p.numel() for p in ddfnet.create_model(name, **kwargs).parameters())


@pytest.mark.parametrize(
    ("name", "kwargs", "parameters"),
    [
        ("ddf_mul_resnet50", {}, 16_843_748),
        ("ddf_add_resnet50", {}, 16_843_748),
        ("ddf_mul_resnet101", {}, 28_146_912),
        ("ddf_add_resnet101", {}, 28_146_912),
        ("ddf_mul_resnet152", {}, 37_462_900),
        ("ddf_add_resnet152", {}, 37_462_900),
        ("ddf_mul_resnet14_32px", {"num_classes": 10}, 363_404),
        ("ddf_mul_resnet18", {}, 7_691_032),
        ("ddf_add_resnet18", {}, 7_691_032),
        ("ddf_mul_resnet50", {"squeeze_ratio": 0.3}, 18_091_484),
        ("ddf_mul_resnet50", {"squeeze_ratio": 0.4}, 19_352_663),
        ("ddf_mul_resnet50", {"filters": "spatial"}, 14_273_912),
        ("ddf_mul_resnet50", {"filters": "channel"}, 16_809_620),
        # per layer: a weight and a bias for each tap of batch norm, against the channel branch's one scale
        ("ddf_mul_resnet50", {"normalization": "batch"}, 16_843_748 + 9 * 3776 + 2 * 9 * 16),
        ("ddf_mul_resnet50", {"normalization": "sigmoid"}, 16_843_748 - 9 * 3776),
    ],
)
def test_parameter_counts(name, kwargs, parameters):
    assert count(name, **kwargs) == parameters


@pytest.mark.parametrize(("name", "entries"), [("ddf_mul_resnet50", 416), ("ddf_mul_resnet101", 824)])
def test_official_state_dict_has_as_many_entries(name, entries):
    with torch.device("meta"):
        state = timm.create_model(name).state_dict()
    assert len(state) == entries
    assert state["layer1.0.conv2.channel_branch.3.weight"].shape == (576, 12, 1, 1)
    assert "layer1.0.conv2.weight" not in state


def test_every_bottleneck_has_the_stride_and_dilation_of_the_convolution_it_replaces():
    with torch.device("meta"):
        for output_stride in (32, 16, 8):
            ddf_net = timm.create_model("ddf_mul_resnet50", output_stride=output_stride)
            base = timm.create_model("resnet50", output_stride=output_stride)
            ddf_net, base = dict(ddf_net.named_modules()), dict(base.named_modules())
            for stage, blocks in enumerate((3, 4, 6, 3), start=1):
                for block in range(blocks):
                    name = f"layer{stage}.{block}.conv2"
                    assert ddf_net[name].stride == base[name].stride[0], name
                    assert ddf_net[name].dilation == base[name].dilation[0], name
                    assert ddf_net[name].channels == base[name].in_channels, name


def test_options_reach_every_layer():
    options = {"kernel_size": 5, "heads": 2, "normalization": "sigmoid", "fused_filters": False, "squeeze_ratio": 0.25}
    with torch.device("meta"):
        model = ddfnet.create_model("ddf_add_resnet18", **options)
    layers = [module for module in model.modules() if isinstance(module, DDF)]
    assert len(layers) == 16
    for layer in layers:
        assert (layer.kernel_size, layer.heads, layer.combine, layer.fused_filters) == (5, 2, "add", False)
        assert isinstance(layer.spatial_branch[1], torch.nn.Sigmoid)
        assert layer.channel_branch[1].out_channels == layer.channels // 4


@pytest.mark.parametrize("options", [{"filters": "spatal"}, {"normalization": "layer"}, {"filter": "spatial"}])
def test_a_mistyped_option_is_an_error(options):
    with pytest.raises(ValueError, match=next(iter(options.values())) if "filter" not in options else "filter"):
        ddfnet.create_model("ddf_mul_resnet50", **options)


def test_basic_block_is_ddf_then_pointwise():
    torch.manual_seed(0)
    block = DDFBasicBlock(8, 16, stride=2, downsample=torch.nn.Conv2d(8, 16, 1, 2), ddf_args={"squeeze_ratio": 0.5})
    block = block.double().eval()
    x = torch.randn(2, 8, 9, 7, dtype=torch.float64)
    y = block.bn1(F.conv2d(block.conv1.ddf(x), block.conv1.pointwise.weight)).relu()
    y = block.bn2(F.conv2d(block.conv2.ddf(y), block.conv2.pointwise.weight)) + block.downsample(x)
    assert y.shape == (2, 16, 5, 4)
    torch.testing.assert_close(block(x), y.relu())


def test_small_images_and_the_stride_of_their_stem():
    x = torch.randn(2, 3, 32, 32)
    for name in ("ddf_mul_resnet14_32px", "resnet14_32px", "dw_resnet14_32px"):
        for stride in (1, 2):
            maps = timm.create_model(name, features_only=True, stem_stride=stride).eval()
            reductions = maps.feature_info.reduction()
            assert reductions == [stride * r for r in (1, 1, 2, 4, 8)]
            assert [m.shape[-1] for m in maps(x)] == [32 // r for r in reductions]


def test_features_only_and_output_stride():
    backbone = timm.create_model("ddf_mul_resnet50", features_only=True, out_indices=(1, 4), output_stride=16)
    assert backbone.feature_info.reduction() == [4, 16]
    maps = backbone.eval()(torch.randn(1, 3, 64, 64))
    assert [tuple(m.shape) for m in maps] == [(1, 256, 16, 16), (1, 2048, 4, 4)]


def test_classes_channels_and_drop_path():
    model = timm.create_model("ddf_mul_resnet50", num_classes=7, in_chans=1, drop_path_rate=0.1).eval()
    assert model(torch.randn(1, 1, 33, 47)).shape == (1, 7)  # odd sizes included
    rates = [block.drop_path.drop_prob for block in model.layer4 if block.drop_path is not None]
    assert rates[-1] == pytest.approx(0.1)


def test_small_image_model():
    model = timm.create_model("ddf_mul_resnet14_32px", num_classes=10)
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    backbone = timm.create_model("ddf_mul_resnet14_32px", features_only=True)
    maps = backbone(torch.randn(1, 3, 32, 32))
    assert [m.shape[-1] for m in maps] == [32 // r for r in backbone.feature_info.reduction()]


def test_state_dict_round_trip_gives_equal_logits():
    a = timm.create_model("ddf_add_resnet50").eval()
    b = timm.create_model("ddf_add_resnet50").eval()
    x = torch.randn(1, 3, 64, 64)
    assert not torch.equal(a(x), b(x))
    b.load_state_dict(a.state_dict())
    assert torch.equal(a(x), b(x))


def test_unknown_names_and_arguments_say_what_is_right():
    with pytest.raises(ValueError, match="ddf_mul_resnet50"):
        ddfnet.create_model("ddf_mul_resnet5")
    with pytest.raises(ValueError, match="squeeze"):
        ddfnet.create_model("resnet18", squeeze=0.2)
    assert "ddf_add_resnet152" in ddfnet.list_models()
