"""Faster R-CNN (Ren et al., NeurIPS 2015) with a feature pyramid: torchvision's detector on any backbone of timm's."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import freeze_batch_norm_2d
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.rpn import RPNHead

from ddfnet.models.factory import create_model
from ddfnet.tasks.detection.pyramid import FeaturePyramid

STRIDES = (4, 8, 16, 32)
HEAD_WIDTH = 1024  # of the box head's two layers, as in torchvision
ANCHORS_PER_PIXEL = 3  # aspect ratios 0.5, 1 and 2, one size (32, 64, ..., 512 pixels) per level: torchvision's default


class Detector(FasterRCNN):
    """Faster R-CNN whose boxes stay float32 under autocast.

    torchvision lays out anchors in the type of the features, and decodes boxes in that of the predictions. bf16 has
    8 significant bits, so that at x = 1000 pixels neighboring numbers lie 4 apart. Pyramid, proposal head and box
    predictor therefore end in float32; convolutions and matrix products keep their precision.

    Shape:
        Training: list of images (3, H_i, W_i) float in [0, 1] and list of targets {"boxes": float32 (N_i, 4), x1, y1,
        x2, y2 in pixels; "labels": int64 (N_i), from 1} -> dictionary of four scalar losses.
        Evaluation: list of images -> list of {"boxes" (M_i, 4), "labels" (M_i), "scores" (M_i)}, best score first.
    """

    # The part that depends on the classes, where the engine looks for it: new classes start it afresh.
    pretrained_cfg = {"classifier": "roi_heads.box_predictor"}  # noqa: RUF012  timm's name for it, on every model

    def get_classifier(self) -> nn.Module:
        """The layers that depend on the classes."""
        return self.roi_heads.box_predictor


def create_detector(
    backbone: nn.Module,
    *,
    num_classes: int,
    upsampling: str = "nearest",
    channels: int = 256,
    frozen_stages: int = 1,
    frozen_norm: bool = True,
    box_samples: int = 512,
    min_size: Sequence[int] = (800,),
    max_size: int = 1333,
) -> Detector:
    """Faster R-CNN on a backbone, with the anchors, samplers and thresholds of `fasterrcnn_resnet50_fpn`.

    ValueError for an unknown upsampling, or a backbone whose stages cannot be told apart.

    Args:
        backbone: see `create_backbone`; its weights are those to start from, and it is changed in place.
        num_classes: object classes; the background comes on top, as label 0.
        upsampling, ...: see `DetectionModel` and `DetectionData`.
    """
    freeze(backbone, frozen_stages)
    if frozen_norm:
        freeze_batch_norm_2d(backbone)
    pyramid = _Features(backbone, FeaturePyramid(backbone.feature_info.channels(), channels, upsampling))
    cfg = backbone.pretrained_cfg
    return Detector(
        pyramid,
        rpn_head=_ProposalHead(channels, ANCHORS_PER_PIXEL),
        box_head=TwoMLPHead(channels * 7 * 7, HEAD_WIDTH),
        box_predictor=_BoxPredictor(HEAD_WIDTH, num_classes + 1),
        box_batch_size_per_image=box_samples,
        min_size=tuple(min_size),
        max_size=max_size,
        image_mean=list(cfg["mean"]),
        image_std=list(cfg["std"]),
    )


def create_backbone(name: str, *, pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """A model of timm's that returns its features at the strides 4, 8, 16 and 32, each (B, C, H, W); ValueError for an
    unknown name or arguments, or a network without such features."""
    with torch.device("meta"):
        probe = _features_only(name, **kwargs)
    strides = probe.feature_info.reduction()
    missing = [stride for stride in STRIDES if stride not in strides]
    if missing:
        raise ValueError(f"{name} has features at the strides {strides}, a detector needs {list(STRIDES)}")
    last = [len(strides) - 1 - strides[::-1].index(stride) for stride in STRIDES]
    return _features_only(name, pretrained=pretrained, out_indices=tuple(last), **kwargs)


def freeze(backbone: nn.Module, stages: int) -> None:
    """Takes the first parts of a backbone out of training: its stem and as many stages, batch norms among them.

    0 stages freeze nothing, 1 the stem and the first stage (stride 4), ..., 4 everything. ValueError for a backbone
    that is no sequence of stages.
    """
    if not stages:
        return
    end = backbone.feature_info.module_name()[stages - 1].replace(".", "_")
    names = [name for name, _ in backbone.named_children()]
    if end not in names:
        raise ValueError(f"cannot freeze stages: {end} is not among the parts {names}; freeze 0 stages")
    for name in names[: names.index(end) + 1]:
        part = getattr(backbone, name).requires_grad_(False)
        setattr(backbone, name, freeze_batch_norm_2d(part))  # returns another module where the part is a batch norm


def _features_only(name: str, **kwargs: Any) -> nn.Module:
    try:
        return create_model(name, features_only=True, **kwargs)
    except (RuntimeError, AttributeError) as error:  # what timm raises for a network without stages
        raise ValueError(f"{name} cannot be a backbone: {error}") from error


class _Features(nn.Module):
    """Backbone and pyramid, as torchvision's detectors want them: `out_channels`, and float32 levels by name."""

    def __init__(self, body: nn.Module, fpn: FeaturePyramid) -> None:
        super().__init__()
        self.body, self.fpn = body, fpn
        self.out_channels = fpn.output[0].out_channels
        self.widths = body.feature_info.channels()

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        levels = [
            level if level.shape[1] == width else level.permute(0, 3, 1, 2)  # some transformers have channels last
            for level, width in zip(self.body(images), self.widths, strict=True)
        ]
        return OrderedDict((name, level.float()) for name, level in self.fpn(levels).items())


class _ProposalHead(RPNHead):
    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        objectness, deltas = super().forward(x)
        return [level.float() for level in objectness], [level.float() for level in deltas]


class _BoxPredictor(FastRCNNPredictor):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores, deltas = super().forward(x)
        return scores.float(), deltas.float()
