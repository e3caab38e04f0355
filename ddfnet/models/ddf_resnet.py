"""DDF-ResNets: timm's ResNet with the 3x3 convolutions replaced by DDFs (paper, section 5).

The models are registered with timm when `ddfnet` is imported, so `timm.create_model`, `features_only=True`,
`num_classes`, `in_chans`, `output_stride` and `drop_path_rate` work as for timm's own.
"""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from timm.models import generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import nn

from ddfnet.layers import DDF
from ddfnet.models.pretrained import build_model, tagged_cfgs

# What the models below take besides timm's arguments, and hand on to each DDF.
DDF_OPTIONS = ("kernel_size", "heads", "squeeze_ratio", "filters", "normalization", "fused_filters")


class DDFBottleneck(Bottleneck):
    """timm's bottleneck with `conv2` replaced by a DDF of the same channels, stride and dilation.

    Args (besides those of timm's `Bottleneck`):
        ddf_args: options of `ddfnet.DDF`, such as combine or heads.
    """

    def __init__(self, *args: Any, ddf_args: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.conv2.in_channels != self.conv2.out_channels or self.conv2.groups != 1:
            conv = self.conv2
            raise ValueError(
                "cardinality and reduce_first must be 1: a DDF needs equal input and output channels, got "
                f"{conv.in_channels} and {conv.out_channels} in {conv.groups} groups"
            )
        self.conv2 = _ddf_in_place_of(self.conv2, ddf_args or {})


class DDFBasicBlock(BasicBlock):
    """timm's basic block with each 3x3 convolution replaced by a DDF and a pointwise convolution behind it.

    The released code has no DDF-ResNet18, and a basic block of DDFs alone could not mix its channels. This is our
    reading of the paper's table 4: with squeeze_ratio 0.5 it has the printed 7.7 M parameters and 0.4 B FLOPs.

    Args (besides those of timm's `BasicBlock`):
        ddf_args: options of `ddfnet.DDF`, such as combine or heads.
    """

    def __init__(self, *args: Any, ddf_args: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conv1 = self._ddf_and_pointwise(self.conv1, ddf_args or {})
        self.conv2 = self._ddf_and_pointwise(self.conv2, ddf_args or {})

    @staticmethod
    def _ddf_and_pointwise(conv: nn.Conv2d, ddf_args: Mapping[str, Any]) -> nn.Sequential:
        weight = conv.weight
        pointwise = nn.Conv2d(
            conv.in_channels, conv.out_channels, 1, bias=False, device=weight.device, dtype=weight.dtype
        )
        return nn.Sequential(OrderedDict(ddf=_ddf_in_place_of(conv, ddf_args), pointwise=pointwise))


def _ddf_in_place_of(conv: nn.Conv2d, ddf_args: Mapping[str, Any]) -> DDF:
    options = {"kernel_size": conv.kernel_size[0], **ddf_args}
    return DDF(
        conv.in_channels,
        stride=conv.stride[0],
        dilation=conv.dilation[0],
        device=conv.weight.device,
        dtype=conv.weight.dtype,
        **options,
    )


class SmallImageResNet(ResNet):
    """ResNet for images of about 32 pixels: a 3x3 stem and no max pooling.

    Args (besides those of timm's `ResNet`):
        stem_stride: stride of the stem; with 1 the stages have strides 1, 2, 4, 8.
    """

    def __init__(self, *args: Any, stem_stride: int = 1, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        stem = self.conv1
        if not isinstance(stem, nn.Conv2d):
            raise ValueError("small images have a stem of one convolution: stem_type cannot be chosen")
        if stem_stride not in (1, 2):
            raise ValueError(f"stem_stride must be 1 or 2, got {stem_stride!r}")
        self.conv1 = nn.Conv2d(
            stem.in_channels, stem.out_channels, 3, stride=stem_stride, padding=1, bias=False,
            device=stem.weight.device, dtype=stem.weight.dtype,
        )  # fmt: skip
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
        self.maxpool = nn.Identity()
        for stage in self.feature_info:
            stage["reduction"] = max(1, stage["reduction"] // 4) * stem_stride  # timm's: stem 2, then pooling 2


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


def small_image_cfg() -> dict[str, Any]:
    """timm's record of a model for images of 32 pixels and 10 classes."""
    return _cfg(input_size=(3, 32, 32), pool_size=(4, 4), crop_pct=1.0, num_classes=10)


_NAMES = [f"ddf_{combine}_resnet{depth}" for combine in ("mul", "add") for depth in (18, 50, 101, 152)]
_SMALL_NAMES = ["ddf_mul_resnet14_32px", "ddf_add_resnet14_32px", "resnet14_32px"]

_cfgs: dict[str, dict[str, Any]] = {}
for _name in _NAMES:
    _cfgs.update(tagged_cfgs(_name, _cfg()))
for _name in _SMALL_NAMES:
    _cfgs.update(tagged_cfgs(_name, small_image_cfg()))
default_cfgs = generate_default_cfgs(_cfgs)


_SMALL_IMAGE_ARGS = {"model_class": SmallImageResNet, "channels": (16, 32, 64, 128)}


def _create(
    variant: str,
    pretrained: bool,
    layers: tuple[int, ...],
    combine: str,
    kwargs: dict[str, Any],
    model_class: type[ResNet] = ResNet,
    **defaults: Any,
) -> ResNet:
    # The options of the DDF belong to the block; timm hands `block_args` on to it.
    model_args = {"block": DDFBottleneck, "layers": layers, **defaults, **kwargs}
    ddf_args = {"combine": combine, **{key: model_args.pop(key) for key in DDF_OPTIONS if key in model_args}}
    if model_args["block"] is DDFBasicBlock and ddf_args.get("filters") != "spatial":
        ddf_args = {"squeeze_ratio": 0.5, **ddf_args}
    block_args = model_args.pop("block_args", {})
    block_args = {**block_args, "ddf_args": {**ddf_args, **block_args.get("ddf_args", {})}}
    return build_model(model_class, variant, pretrained, block_args=block_args, **model_args)


@register_model
def ddf_mul_resnet18(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """DDF-ResNet18, filters multiplied: 7.7 M parameters (`DDFBasicBlock`). Options besides timm's: `DDF_OPTIONS`."""
    return _create("ddf_mul_resnet18", pretrained, (2, 2, 2, 2), "mul", kwargs, block=DDFBasicBlock)


@register_model
def ddf_mul_resnet50(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """DDF-ResNet50, filters multiplied: 16.8 M parameters. Options besides timm's: `DDF_OPTIONS`."""
    return _create("ddf_mul_resnet50", pretrained, (3, 4, 6, 3), "mul", kwargs)


@register_model
def ddf_mul_resnet101(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """DDF-ResNet101, filters multiplied: 28.1 M parameters. Options besides timm's: `DDF_OPTIONS`."""
    return _create("ddf_mul_resnet101", pretrained, (3, 4, 23, 3), "mul", kwargs)


@register_model
def ddf_mul_resnet152(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """DDF-ResNet152, filters multiplied: 37.5 M parameters. Options besides timm's: `DDF_OPTIONS`."""
    return _create("ddf_mul_resnet152", pretrained, (3, 8, 36, 3), "mul", kwargs)


@register_model
def ddf_add_resnet18(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """DDF-ResNet18, filters added: 7.7 M parameters (`DDFBasicBlock`). Options besides timm's: `DDF_OPTIONS`."""
    return _create("ddf_add_resnet18", pretrained, (2, 2, 2, 2), "add", kwargs, block=DDFBasicBlock)


@register_model
def ddf_add_resnet50(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """DDF-ResNet50, filters added: 16.8 M parameters. Options besides timm's: `DDF_OPTIONS`."""
    return _create("ddf_add_resnet50", pretrained, (3, 4, 6, 3), "add", kwargs)


@register_model
def ddf_add_resnet101(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """DDF-ResNet101, filters added: 28.1 M parameters. Options besides timm's: `DDF_OPTIONS`."""
    return _create("ddf_add_resnet101", pretrained, (3, 4, 23, 3), "add", kwargs)


@register_model
def ddf_add_resnet152(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """DDF-ResNet152, filters added: 37.5 M parameters. Options besides timm's: `DDF_OPTIONS`."""
    return _create("ddf_add_resnet152", pretrained, (3, 8, 36, 3), "add", kwargs)


@register_model
def ddf_mul_resnet14_32px(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """A small DDF-ResNet for 32-pixel images (digits, CIFAR): 4 bottlenecks of 16 to 128 channels."""
    return _create("ddf_mul_resnet14_32px", pretrained, (1, 1, 1, 1), "mul", kwargs, **_SMALL_IMAGE_ARGS)


@register_model
def ddf_add_resnet14_32px(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """A small DDF-ResNet for 32-pixel images (digits, CIFAR): 4 bottlenecks of 16 to 128 channels."""
    return _create("ddf_add_resnet14_32px", pretrained, (1, 1, 1, 1), "add", kwargs, **_SMALL_IMAGE_ARGS)


@register_model
def resnet14_32px(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """The dense counterpart of ddf_mul_resnet14_32px."""
    model_args = {"block": Bottleneck, "layers": (1, 1, 1, 1), "channels": (16, 32, 64, 128), **kwargs}
    return build_model(SmallImageResNet, "resnet14_32px", pretrained, **model_args)
