"""DDF-ResNets: parameter counts of the paper, official keys, and timm's interface."""

import pytest
import timm
import torch

import ddfnet


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
        ("ddf_mul_resnet50", {"squeeze_ratio": 0.3}, 18_091_484),
        ("ddf_mul_resnet50", {"squeeze_ratio": 0.4}, 19_352_663),
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
            ours = timm.create_model("ddf_mul_resnet50", output_stride=output_stride)
            base = timm.create_model("resnet50", output_stride=output_stride)
            ours, base = dict(ours.named_modules()), dict(base.named_modules())
            for stage, blocks in enumerate((3, 4, 6, 3), start=1):
                for block in range(blocks):
                    name = f"layer{stage}.{block}.conv2"
                    assert ours[name].stride == base[name].stride[0], name
                    assert ours[name].dilation == base[name].dilation[0], name
                    assert ours[name].channels == base[name].in_channels, name


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
