"""Faster R-CNN (Ren et al., NeurIPS 2015) with a feature pyramid: torchvision's detector on any backbone of timm's."""

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from timm.layers import Format, freeze_batch_norm_2d
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.rpn import RPNHead

from ddfnet.checkpoint import read_weights
from ddfnet.models.factory import create_model
from ddfnet.models.weights import load_weights
from ddfnet.tasks.detection.pyramid import FeaturePyramid
from ddfnet.utils.errors import CheckpointError

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


def load_detector(checkpoint: Path) -> tuple[Detector, list[str]]:
    """The detector of a checkpoint, in evaluation mode on the CPU, and the names of its classes, label 1 first.

    CheckpointError where the file is of no detector, or cannot be read.
    """
    weights = read_weights(checkpoint)
    meta = weights.meta or {}
    if meta.get("task") != "detection":
        task = meta.get("task", "unknown")
        raise CheckpointError(f"{checkpoint} is of the task {task}: give a checkpoint of detection")
    options = dict(meta["model"])
    name, backbone = options.pop("name"), create_backbone(options.pop("backbone"), **options.pop("backbone_kwargs"))
    detector = create_detector(backbone, **options).eval()
    load_weights(detector, weights, source=checkpoint, name=name)
    return detector, [category["name"] for category in meta["categories"]]


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


@torch.enable_grad()
def freeze(backbone: nn.Module, stages: int) -> None:
    """Takes the first parts of a backbone out of training: its stem and as many stages, batch norms among them.

    0 stages freeze nothing, 1 the stem and the first stage (stride 4), ..., 4 everything. What belongs to a stage is
    what its features depend on, whatever its name. ValueError for a backbone that is no sequence of stages.
    """
    if not stages:
        return
    levels = _levels(backbone)
    parameters = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
    used = _used(levels[:stages], parameters)
    # Stages in a sequence: each builds on those before it, so none has parameters of its own beside the next one.
    if stages < len(levels):
        aside = sum(p.numel() for p in used - _used(levels[stages : stages + 1], parameters))
        if aside > 0.01 * sum(p.numel() for p in used):
            raise ValueError("cannot freeze stages: this backbone is no sequence of them; freeze 0 stages")
    for parameter in used:
        parameter.requires_grad_(False)
    for name, module in list(backbone.named_modules()):
        own = set(module.parameters(recurse=False))
        if own and own <= used and isinstance(module, nn.BatchNorm2d | nn.SyncBatchNorm):
            backbone.set_submodule(name, freeze_batch_norm_2d(module))  # returns another module


def _levels(backbone: nn.Module) -> list[Tensor]:
    """The features of a blank image, with gradients; small where the backbone takes any size."""
    was_training, error = backbone.training, None
    for height, width in ((64, 64), backbone.pretrained_cfg["input_size"][1:]):
        try:
            return backbone.eval()(torch.zeros(1, 3, height, width))
        except (AssertionError, RuntimeError) as fault:  # of a network that is built for one size
            error = fault
        finally:
            backbone.train(was_training)
    raise ValueError(f"the backbone takes neither images of 64 pixels nor its own size: {error}") from error


def _used(levels: list[Tensor], parameters: list[nn.Parameter]) -> set[nn.Parameter]:
    """The parameters that some features depend on."""
    total = torch.stack([level.sum() for level in levels]).sum()
    gradients = torch.autograd.grad(total, parameters, allow_unused=True, retain_graph=True)
    return {parameter for parameter, gradient in zip(parameters, gradients, strict=True) if gradient is not None}


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
        # timm's networks say where their features have the channels; those that do not have them second.
        self.channels_are_last = Format(getattr(body, "output_fmt", None) or Format.NCHW) == Format.NHWC

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        levels = self.body(images)
        if self.channels_are_last:
            levels = [level.permute(0, 3, 1, 2) for level in levels]
        return OrderedDict((name, level.float()) for name, level in self.fpn(levels).items())


class _ProposalHead(RPNHead):
    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        objectness, deltas = super().forward(x)
        return [level.float() for level in objectness], [level.float() for level in deltas]


class _BoxPredictor(FastRCNNPredictor):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores, deltas = super().forward(x)
        return scores.float(), deltas.float()
