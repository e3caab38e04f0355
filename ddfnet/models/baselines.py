"""The networks the paper compares DDF-ResNet with (tables 4 and 5), as far as timm does not have them.

Registered with timm when imported, as the DDF-ResNets are; `num_classes`, `in_chans`, `features_only=True`,
`output_stride` and `drop_path_rate` work as for timm's own. ResNet, SE-ResNet, ResNeXt and Res2Net are timm's.
"""

from collections.abc import Callable
from typing import Any

from timm.models import generate_default_cfgs, register_model
from timm.models.resnet import Bottleneck, ResNet
from torch import nn

from ddfnet.layers.bam import BAM
from ddfnet.layers.dynamic_depthwise import CondConv, DepthwiseCondConv, DepthwiseWeightNet
from ddfnet.layers.involution import Involution
from ddfnet.models.ddf_resnet import SmallImageResNet, small_image_cfg
from ddfnet.models.pretrained import build_model


class ReplacedBottleneck(Bottleneck):
    """timm's bottleneck with another layer in place of `conv2`, of the same channels, stride and dilation.

    Args (besides those of timm's `Bottleneck`):
        layer: called as `layer(channels, stride=, dilation=, device=, dtype=)`.

    Raises:
        ValueError: `conv2` has unequal input and output channels, or groups.
    """

    def __init__(self, *args: Any, layer: Callable[..., nn.Module], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        conv = self.conv2
        if conv.in_channels != conv.out_channels or conv.groups != 1:
            raise ValueError(
                f"cardinality and reduce_first must be 1 to replace the 3x3 convolution: got one of {conv.in_channels} "
                f"to {conv.out_channels} channels in {conv.groups} groups"
            )
        self.conv2 = layer(
            conv.in_channels,
            stride=conv.stride[0],
            dilation=conv.dilation[0],
            device=conv.weight.device,
            dtype=conv.weight.dtype,
        )


class BAMResNet(ResNet):
    """ResNet with a BAM at the end of each of the first three stages (Park et al., BMVC 2018, figure 1)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        like = self.bn1.weight
        for stage in self.feature_info[1:4]:
            # Inside the stage, timm's forward passes and feature extraction find it without being told.
            stage_blocks = getattr(self, stage["module"])
            stage_blocks.append(BAM(stage["num_chs"], device=like.device, dtype=like.dtype))


def _depthwise_conv(channels: int, *, dilation: int, **kwargs: Any) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation, groups=channels, bias=False, **kwargs)


def _cond_conv(channels: int, **kwargs: Any) -> CondConv:
    return CondConv(channels, channels, **kwargs)


def _cfg(paper_ids: str) -> dict[str, Any]:
    # sizes, crop, mean and std are timm's defaults
    return {"pool_size": (7, 7), "first_conv": "conv1", "classifier": "fc", "paper_ids": paper_ids}


default_cfgs = generate_default_cfgs(
    {
        "dw_resnet50.untrained": _cfg("arXiv:2104.14107"),
        "condconv_resnet50.untrained": _cfg("arXiv:1904.04971"),
        "dw_condconv_resnet50.untrained": _cfg("arXiv:1904.04971"),
        "dw_weightnet_resnet50.untrained": _cfg("arXiv:2007.11823"),
        "involution_resnet50.untrained": _cfg("arXiv:2103.06255"),
        "bam_resnet50.untrained": _cfg("arXiv:1807.06514"),
        "bam_resnet101.untrained": _cfg("arXiv:1807.06514"),
        "cbam_resnet50.untrained": _cfg("arXiv:1807.06521"),
        "cbam_resnet101.untrained": _cfg("arXiv:1807.06521"),
        "dw_resnet14_32px.untrained": small_image_cfg(),
    }
)

_DEPTHS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


def _create(
    variant: str,
    pretrained: bool,
    kwargs: dict[str, Any],
    *,
    depth: int = 50,
    model_class: type[ResNet] = ResNet,
    block: type[Bottleneck] = Bottleneck,
    **block_args: Any,
) -> ResNet:
    block_args = {**block_args, **kwargs.pop("block_args", {})}
    model_args = {"block": block, "layers": _DEPTHS[depth], "block_args": block_args, **kwargs}
    return build_model(model_class, variant, pretrained, **model_args)


@register_model
def dw_resnet50(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """ResNet50 with static depthwise 3x3 convolutions: 14.3 M parameters. What DDF-ResNet50 is without dynamics."""
    return _create("dw_resnet50", pretrained, kwargs, block=ReplacedBottleneck, layer=_depthwise_conv)


@register_model
def condconv_resnet50(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """ResNet50 with 8-expert CondConv for each 3x3 convolution: 104.8 M parameters."""
    return _create("condconv_resnet50", pretrained, kwargs, block=ReplacedBottleneck, layer=_cond_conv)


@register_model
def dw_condconv_resnet50(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """ResNet50 with depthwise 8-expert CondConv for each 3x3 convolution: 14.5 M parameters."""
    return _create("dw_condconv_resnet50", pretrained, kwargs, block=ReplacedBottleneck, layer=DepthwiseCondConv)


@register_model
def dw_weightnet_resnet50(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """ResNet50 with depthwise WeightNet for each 3x3 convolution: 14.4 M parameters."""
    return _create("dw_weightnet_resnet50", pretrained, kwargs, block=ReplacedBottleneck, layer=DepthwiseWeightNet)


@register_model
def involution_resnet50(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """ResNet50 with 7x7 involution for each 3x3 convolution: 15.5 M parameters. Unlike in RedNet50, the stem stays."""
    return _create("involution_resnet50", pretrained, kwargs, block=ReplacedBottleneck, layer=Involution)


@register_model
def bam_resnet50(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """ResNet50 with a BAM after each of the first three stages: 25.9 M parameters."""
    return _create("bam_resnet50", pretrained, kwargs, model_class=BAMResNet)


@register_model
def bam_resnet101(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """ResNet101 with a BAM after each of the first three stages: 44.9 M parameters."""
    return _create("bam_resnet101", pretrained, kwargs, depth=101, model_class=BAMResNet)


@register_model
def cbam_resnet50(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """ResNet50 with timm's CBAM, reduction 16, in each block: 28.1 M parameters."""
    return _create("cbam_resnet50", pretrained, kwargs, attn_layer="cbam")


@register_model
def cbam_resnet101(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """ResNet101 with timm's CBAM, reduction 16, in each block: 49.3 M parameters."""
    return _create("cbam_resnet101", pretrained, kwargs, depth=101, attn_layer="cbam")


@register_model
def dw_resnet14_32px(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """The depthwise counterpart of ddf_mul_resnet14_32px."""
    small = {"layers": (1, 1, 1, 1), "channels": (16, 32, 64, 128), **kwargs}
    model_class = SmallImageResNet
    return _create(
        "dw_resnet14_32px", pretrained, small, model_class=model_class, block=ReplacedBottleneck, layer=_depthwise_conv
    )
