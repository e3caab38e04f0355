"""The networks the paper compares DDF-ResNet with (tables 4 and 5), as far as timm does not have them.

Registered with timm when imported, as the DDF-ResNets are; `num_classes`, `in_chans`, `features_only=True`,
`output_stride` and `drop_path_rate` work as for timm's own. ResNet, SE-ResNet, ResNeXt and Res2Net are timm's.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from timm.models import generate_default_cfgs
from timm.models.resnet import Bottleneck, ResNet
from torch import nn

from ddfnet.layers.bam import BAM
from ddfnet.layers.dynamic_depthwise import CondConv, DepthwiseCondConv, DepthwiseWeightNet
from ddfnet.layers.involution import Involution
from ddfnet.models.ddf_resnet import LAYERS, SMALL_IMAGE_ARGS, ReplacedBottleneck, small_image_cfg
from ddfnet.models.pretrained import build_model, register


class BAMResNet(ResNet):
    """ResNet with a BAM at the end of each of the first three stages (Park et al., BMVC 2018, figure 1)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        like = next(self.parameters())
        stages: list[dict[str, Any]] = self.feature_info[1:4]
        for stage in stages:
            # Inside the stage, timm's forward passes and feature extraction find it without being told.
            stage_blocks = getattr(self, stage["module"])
            stage_blocks.append(BAM(stage["num_chs"], device=like.device, dtype=like.dtype))


def _depthwise_conv(channels: int, *, dilation: int, **kwargs: Any) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation, groups=channels, bias=False, **kwargs)


def _create(
    variant: str, pretrained: bool, kwargs: dict[str, Any], *, model_class: type[ResNet] = ResNet, **defaults: Any
) -> nn.Module:
    block_args = {**defaults.pop("block_args", {}), **kwargs.pop("block_args", {})}
    model_args = {"block": Bottleneck, **defaults, "block_args": block_args, **kwargs}
    return build_model(model_class, variant, pretrained, **model_args)


def _replaced(layer: Callable[..., nn.Module], **defaults: Any) -> dict[str, Any]:
    return {"layers": LAYERS[50], **defaults, "block": ReplacedBottleneck, "block_args": {"layer": layer}}


_CBAM = {"block_args": {"attn_layer": "cbam"}}
# Name -> (source, documentation, arguments)
_models: dict[str, tuple[str, str, dict[str, Any]]] = {
    "dw_resnet50": (
        "arXiv:2104.14107",
        "ResNet50 with static depthwise 3x3 convolutions: 14.3 M parameters. What DDF-ResNet50 is without dynamics.",
        _replaced(_depthwise_conv),
    ),
    "condconv_resnet50": (
        "arXiv:1904.04971",
        "ResNet50 with 8-expert CondConv for each 3x3 convolution: 104.8 M parameters.",
        _replaced(lambda channels, **kwargs: CondConv(channels, channels, **kwargs)),
    ),
    "dw_condconv_resnet50": (
        "arXiv:1904.04971",
        "ResNet50 with depthwise 8-expert CondConv for each 3x3 convolution: 14.5 M parameters.",
        _replaced(DepthwiseCondConv),
    ),
    "dw_weightnet_resnet50": (
        "arXiv:2007.11823",
        "ResNet50 with depthwise WeightNet for each 3x3 convolution: 14.4 M parameters.",
        _replaced(DepthwiseWeightNet),
    ),
    "involution_resnet50": (
        "arXiv:2103.06255",
        "ResNet50 with 7x7 involution for each 3x3 convolution: 15.5 M parameters. Unlike in RedNet50, the stem stays.",
        _replaced(Involution),
    ),
    "bam_resnet50": (
        "arXiv:1807.06514",
        "ResNet50 with a BAM after each of the first three stages: 25.9 M parameters.",
        {"model_class": BAMResNet, "layers": LAYERS[50]},
    ),
    "bam_resnet101": (
        "arXiv:1807.06514",
        "ResNet101 with a BAM after each of the first three stages: 44.9 M parameters.",
        {"model_class": BAMResNet, "layers": LAYERS[101]},
    ),
    "cbam_resnet50": (
        "arXiv:1807.06521",
        "ResNet50 with timm's CBAM, reduction 16, in each block: 28.1 M parameters.",
        {"layers": LAYERS[50], **_CBAM},
    ),
    "cbam_resnet101": (
        "arXiv:1807.06521",
        "ResNet101 with timm's CBAM, reduction 16, in each block: 49.3 M parameters.",
        {"layers": LAYERS[101], **_CBAM},
    ),
    "dw_resnet14_32px": (
        "arXiv:2104.14107",
        "The depthwise counterpart of ddf_mul_resnet14_32px.",
        _replaced(_depthwise_conv, **SMALL_IMAGE_ARGS),
    ),
}

# sizes, crop, mean and std are timm's defaults
_cfg = {"pool_size": (7, 7), "first_conv": "conv1", "classifier": "fc"}
default_cfgs = generate_default_cfgs(
    {
        f"{name}.untrained": small_image_cfg() if name.endswith("_32px") else {**_cfg, "paper_ids": source}
        for name, (source, _, _) in _models.items()
    }
)
for _name, (_, _doc, _arguments) in _models.items():
    register(__name__, _name, _doc, partial(_create, **_arguments))
