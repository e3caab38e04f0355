"""DDF-ResNets: timm's ResNet with the 3x3 convolution of each bottleneck replaced by a DDF (paper, section 5).

The models are registered with timm when `ddfnet` is imported, so `timm.create_model`, `features_only=True`,
`num_classes`, `in_chans`, `output_stride` and `drop_path_rate` work as for timm's own.
"""

from typing import Any, Literal

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import Bottleneck, ResNet
from torch import nn

from ddfnet.layers import DDF


class DDFBottleneck(Bottleneck):
    """timm's bottleneck with `conv2` replaced by a DDF of the same channels, stride and dilation.

    Args (besides those of timm's `Bottleneck`):
        combine, squeeze_ratio, heads, fused_filters: see `ddfnet.DDF`.
    """

    def __init__(
        self,
        *args: Any,
        combine: Literal["mul", "add"] = "mul",
        squeeze_ratio: float = 0.2,
        heads: int = 1,
        fused_filters: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        conv = self.conv2
        if conv.in_channels != conv.out_channels or conv.groups != 1:
            raise ValueError("a DDF needs equal input and output channels: cardinality and reduce_first must be 1")
        self.conv2 = DDF(
            conv.in_channels,
            conv.kernel_size[0],
            stride=conv.stride[0],
            dilation=conv.dilation[0],
            heads=heads,
            squeeze_ratio=squeeze_ratio,
            combine=combine,
            fused_filters=fused_filters,
            device=conv.weight.device,
            dtype=conv.weight.dtype,
        )


class SmallImageResNet(ResNet):
    """ResNet for pictures of about 32 pixels: a 3x3 stem of stride 1 and no max pooling, so strides are 1, 2, 4, 8."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        stem = self.conv1
        self.conv1 = nn.Conv2d(
            stem.in_channels, stem.out_channels, 3, padding=1, bias=False,
            device=stem.weight.device, dtype=stem.weight.dtype,
        )  # fmt: skip
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
        self.maxpool = nn.Identity()
        for stage in self.feature_info:
            stage["reduction"] = max(1, stage["reduction"] // 4)


def _cfg(**overrides: Any) -> dict[str, Any]:
    return {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "first_conv": "conv1",
        "classifier": "fc",
        "license": "mit",
        "origin_url": "https://github.com/theFoxofSky/ddfnet",
        "paper_ids": "arXiv:2104.14107",
        **overrides,
    }


_SMALL_IMAGE_CFG = _cfg(input_size=(3, 32, 32), pool_size=(4, 4), crop_pct=1.0, num_classes=10)

default_cfgs = generate_default_cfgs(
    {
        "ddf_mul_resnet50.untrained": _cfg(),
        "ddf_mul_resnet101.untrained": _cfg(),
        "ddf_mul_resnet152.untrained": _cfg(),
        "ddf_add_resnet50.untrained": _cfg(),
        "ddf_add_resnet101.untrained": _cfg(),
        "ddf_add_resnet152.untrained": _cfg(),
        "ddf_mul_resnet14_32px.untrained": _SMALL_IMAGE_CFG,
    }
)


def _create(
    variant: str,
    pretrained: bool,
    layers: tuple[int, ...],
    combine: str,
    kwargs: dict[str, Any],
    model_class: type[ResNet] = ResNet,
    **model_args: Any,
) -> ResNet:
    # The options of the DDF belong to the block; timm hands `block_args` on to it.
    options = {key: kwargs.pop(key) for key in ("squeeze_ratio", "heads", "fused_filters") if key in kwargs}
    block_args = {"combine": combine, **options, **kwargs.pop("block_args", {})}
    model_args = {"block": DDFBottleneck, "layers": layers, "block_args": block_args, **model_args, **kwargs}
    return build_model_with_cfg(model_class, variant, pretrained, **model_args)


@register_model
def ddf_mul_resnet50(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """DDF-ResNet50, filters multiplied: 16.8 M parameters. Options: squeeze_ratio, heads, fused_filters."""
    return _create("ddf_mul_resnet50", pretrained, (3, 4, 6, 3), "mul", kwargs)


@register_model
def ddf_mul_resnet101(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """DDF-ResNet101, filters multiplied: 28.1 M parameters. Options: squeeze_ratio, heads, fused_filters."""
    return _create("ddf_mul_resnet101", pretrained, (3, 4, 23, 3), "mul", kwargs)


@register_model
def ddf_mul_resnet152(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """DDF-ResNet152, filters multiplied: 37.5 M parameters. Options: squeeze_ratio, heads, fused_filters."""
    return _create("ddf_mul_resnet152", pretrained, (3, 8, 36, 3), "mul", kwargs)


@register_model
def ddf_add_resnet50(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """DDF-ResNet50, filters added: 16.8 M parameters. Options: squeeze_ratio, heads, fused_filters."""
    return _create("ddf_add_resnet50", pretrained, (3, 4, 6, 3), "add", kwargs)


@register_model
def ddf_add_resnet101(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """DDF-ResNet101, filters added: 28.1 M parameters. Options: squeeze_ratio, heads, fused_filters."""
    return _create("ddf_add_resnet101", pretrained, (3, 4, 23, 3), "add", kwargs)


@register_model
def ddf_add_resnet152(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """DDF-ResNet152, filters added: 37.5 M parameters. Options: squeeze_ratio, heads, fused_filters."""
    return _create("ddf_add_resnet152", pretrained, (3, 8, 36, 3), "add", kwargs)


@register_model
def ddf_mul_resnet14_32px(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """A small DDF-ResNet for 32-pixel pictures (digits, CIFAR): 4 bottlenecks of 16 to 128 channels."""
    args = {"model_class": SmallImageResNet, "channels": (16, 32, 64, 128)}
    return _create("ddf_mul_resnet14_32px", pretrained, (1, 1, 1, 1), "mul", kwargs, **args)
