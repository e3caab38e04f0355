"""The detector: torchvision's on timm's backbones, frozen parts, float32 boxes, weights to start from."""

import pytest
import timm
import torch
from timm.layers import FrozenBatchNormAct2d
from torch import nn
from torchvision.models.detection import fasterrcnn_resnet50_fpn
from torchvision.ops.misc import FrozenBatchNorm2d

import ddfnet
from ddfnet.engine.evaluate import autocast
from ddfnet.tasks import create_task, load_config
from ddfnet.tasks.detection.network import create_backbone, create_detector, freeze
from ddfnet.utils.errors import CheckpointError, ConfigError

pytest.importorskip("pycocotools")

CPU = torch.device("cpu")


def task_of(tiny, *overrides):
    return create_task(load_config(tiny, overrides).config)


def test_resnet50_detector_is_torchvisions():
    """Same parameters, but for the frozen batch norms' weights, which are buffers here."""
    with torch.device("meta"):
        ours = create_detector(create_backbone("resnet50"), num_classes=90)
        theirs = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None)
    norms = sum(2 * m.num_features for m in theirs.modules() if isinstance(m, nn.BatchNorm2d))
    assert count(ours) == count(theirs) - norms
    for own, other in ((ours.rpn, theirs.rpn), (ours.roi_heads, theirs.roi_heads)):
        assert {k: v.shape for k, v in own.state_dict().items()} == {k: v.shape for k, v in other.state_dict().items()}
    assert ours.rpn.anchor_generator.sizes == theirs.rpn.anchor_generator.sizes
    assert ours.rpn.anchor_generator.aspect_ratios == theirs.rpn.anchor_generator.aspect_ratios
    assert str(ours.transform) == str(theirs.transform)


def count(model):
    return sum(p.numel() for p in model.parameters())


def test_frozen_norms_compute_what_the_norms_did():
    torch.manual_seed(0)
    plain = create_backbone("ddf_mul_resnet50").eval()
    for m in plain.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.uniform_(m.weight, 0.5, 1.5)
            nn.init.normal_(m.bias)
            nn.init.normal_(m.running_mean, std=0.1)
            nn.init.uniform_(m.running_var, 0.5, 2)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = plain(x)
        detector = create_detector(plain, num_classes=3, frozen_stages=2).train()
        found = detector.backbone.body(x)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in detector.modules())
    body = detector.backbone.body
    trained = {name.split(".")[0] for name, p in body.named_parameters() if p.requires_grad}
    assert trained == {"layer3", "layer4"}
    assert all(p.requires_grad for name, p in detector.named_parameters() if not name.startswith("backbone.body"))


@pytest.mark.parametrize(
    ("name", "stages", "trained"),
    [("resnet10t", 1, ["layer2", "layer3", "layer4"]), ("convnext_atto", 2, ["stages_2", "stages_3"])],
)
def test_frozen_stages_alone(name, stages, trained):
    with torch.device("meta"):
        body = create_detector(
            create_backbone(name), num_classes=3, frozen_stages=stages, frozen_norm=False
        ).backbone.body
    names = {n.split(".")[0]: any(p.requires_grad for p in m.parameters()) for n, m in body.named_children()}
    assert [n for n, learns in names.items() if learns] == trained
    frozen_norms = [n for n, m in body.named_modules() if isinstance(m, FrozenBatchNorm2d | FrozenBatchNormAct2d)]
    assert not any(n.startswith(tuple(trained)) for n in frozen_norms)
    if name == "resnet10t":
        assert "bn1" in frozen_norms
        assert isinstance(body.layer2[0].bn1, nn.BatchNorm2d)


@pytest.mark.parametrize("name", ["convnext_atto", "swin_tiny_patch4_window7_224"])
def test_other_backbones(name):
    kwargs = {"img_size": 64} if "swin" in name else {}
    model = create_detector(create_backbone(name, **kwargs), num_classes=2, channels=8, min_size=[64], max_size=64)
    found = model.eval()([torch.rand(3, 64, 64)])[0]
    assert set(found) == {"boxes", "labels", "scores"}


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_boxes_keep_float32(precision):
    torch.manual_seed(0)
    model = create_detector(
        create_backbone("resnet10t"), num_classes=2, channels=8, box_samples=8, min_size=[64], max_size=64
    )
    seen = {}
    model.rpn.anchor_generator.register_forward_hook(lambda m, i, anchors: seen.update(anchors=anchors[0]))
    model.rpn.head.register_forward_hook(lambda m, i, out: seen.update(deltas=out[1][0]))
    target = {"boxes": torch.tensor([[3.0, 4.0, 40.0, 50.0]]), "labels": torch.tensor([1])}
    with autocast(CPU, precision):
        losses = model.train()([torch.rand(3, 64, 64)], [target])
        found = model.eval()([torch.rand(3, 64, 64)])[0]
    assert {t.dtype for t in (*seen.values(), *losses.values(), found["boxes"])} == {torch.float32}
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.backbone=resnt50"], "model.backbone.*did you mean resnet50"),
        (["model.backbone=ddf_mul_resnet14_32px"], r"strides \[1, 1, 2, 4, 8\], a detector needs \[4, 8, 16, 32\]"),
        (["model.backbone=vit_tiny_patch16_224"], "strides"),
        (["model.backbone_kwargs={nonsense: 1}"], "model.backbone_kwargs.*nonsense"),
        (["model.num_classes=2"], "model.num_classes=2 is less than the 3 categories"),
        (
            ["model.backbone_checkpoint=a.pt", "model.backbone_pretrained=true"],
            r"backbone_checkpoint=a\.pt \(command line\) and .*pretrained=true \(command line\) contradict",
        ),
    ],
)
def test_mistakes_in_the_model(tiny, overrides, message):
    with pytest.raises(ConfigError, match=message):
        task_of(tiny, *overrides).build_model()


# --- weights to start from --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ddf_mul_resnet50", "convnext_atto"])
def test_backbone_takes_the_weights_of_a_classifier(tiny, tmp_path, name):
    torch.manual_seed(1)
    classifier = ddfnet.create_model(name, num_classes=7).eval()
    for buffer in classifier.buffers():
        if buffer.is_floating_point():
            buffer.add_(0.25)
    torch.save({"state_dict": classifier.state_dict()}, tmp_path / "classifier.pt")
    overrides = [f"model.backbone={name}", "model.frozen_norm=true"]
    x = torch.rand(1, 3, 64, 64)
    model = task_of(tiny, *overrides, f"model.backbone_checkpoint={tmp_path / 'classifier.pt'}").build_model().eval()
    with torch.no_grad():
        found = model.backbone.body(x)
        if name == "convnext_atto":
            expected = classifier.forward_intermediates(x, intermediates_only=True)
        else:
            expected = [classifier.forward_features(x)]
    torch.testing.assert_close(found[-1], expected[-1], rtol=1e-3, atol=1e-3)


def test_backbone_refuses_other_weights(tiny, tmp_path):
    torch.save(ddfnet.create_model("ddf_mul_resnet101").state_dict(), tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match=r"model\.backbone_checkpoint: .*other\.pt does not hold weights"):
        task_of(
            tiny, "model.backbone=ddf_mul_resnet50", f"model.backbone_checkpoint={tmp_path / 'other.pt'}"
        ).build_model()


# --- layouts and parts of other backbones -----------------------------------------------------------------------------

# One small model of a family each; Swin and MambaOut return channels last.
BACKBONES = {
    "swin_tiny_patch4_window7_224": {"strict_img_size": False, "depths": (1, 1, 1, 1)},
    "mambaout_femto": {"depths": (1, 1, 1, 1)},
    "convnext_atto": {},
    "pvt_v2_b0": {},
    "twins_pcpvt_small": {"depths": (1, 1, 1, 1)},
    "regnetx_002": {},
}


@pytest.mark.parametrize("size", [(384, 384), (384, 512), (96, 96)])
@pytest.mark.parametrize("name", BACKBONES)
def test_levels_are_those_of_the_network_at_every_size(name, size):
    """96 x 96: Swin's finest features are 24 x 24 x 96; 384 x 384: 96 x 96 x 96, where sizes tell nothing."""
    torch.manual_seed(0)
    whole = timm.create_model(name, **BACKBONES[name]).eval()
    backbone = create_backbone(name, **BACKBONES[name])
    flat = {key.replace(".", "_"): tensor for key, tensor in whole.state_dict().items()}
    backbone.load_state_dict({k: flat[k.replace(".", "_").removeprefix("model_")] for k in backbone.state_dict()})
    pyramid = create_detector(backbone, num_classes=2, frozen_stages=0, channels=8).eval().backbone
    seen = {}
    pyramid.fpn.register_forward_pre_hook(lambda module, inputs: seen.update(levels=inputs[0]))
    x = torch.rand(1, 3, *size)
    with torch.no_grad():
        pyramid(x)
        expected = whole.forward_intermediates(x, indices=4, intermediates_only=True, output_fmt="NCHW")
    assert [tuple(level.shape[2:]) for level in seen["levels"]] == [
        (size[0] // s, size[1] // s) for s in (4, 8, 16, 32)
    ]
    for level, other in zip(seen["levels"][:3], expected[-4:-1], strict=True):  # the last may be normalized there
        assert torch.equal(level, other)


@pytest.mark.parametrize(
    ("name", "stages", "frozen"),
    [
        ("efficientnet_b0", 1, {"conv_stem", "bn1", "blocks.0", "blocks.1"}),
        ("mobilenetv3_small_100", 2, {"conv_stem", "bn1", "blocks.0", "blocks.1"}),
        ("ghostnet_100", 1, {"conv_stem", "bn1", "blocks_0", "blocks_1"}),
        ("densenet121", 1, {"features_conv0", "features_norm0", "features_denseblock1"}),
        ("convnext_atto", 1, {"stem_0", "stem_1", "stages_0"}),
        ("swin_tiny_patch4_window7_224", 1, {"patch_embed", "layers_0"}),
        ("mvitv2_tiny", 1, {"model.patch_embed", "model.stages.0"}),
        ("resnet18", 2, {"conv1", "bn1", "layer1", "layer2"}),
    ],
)
def test_frozen_stages_are_the_models_own_parts(name, stages, frozen):
    backbone = create_backbone(name)
    freeze(backbone, stages)
    for key, parameter in backbone.named_parameters():
        assert parameter.requires_grad != any(key.startswith(f"{part}.") for part in frozen), key
    norms = [n for n, m in backbone.named_modules() if isinstance(m, FrozenBatchNorm2d | FrozenBatchNormAct2d)]
    assert all(any(f"{norm}.".startswith(f"{part}.") for part in frozen) for norm in norms)
    assert not any(isinstance(m, nn.BatchNorm2d) for part in frozen for m in backbone.get_submodule(part).modules())


def test_a_network_of_parallel_branches_has_no_stages_to_freeze():
    with pytest.raises(ValueError, match="no sequence of them; freeze 0 stages"):
        freeze(create_backbone("hrnet_w18_small"), 1)
