"""DDF-ResNets: timm's ResNet with the 3x3 convolutions replaced by DDFs (paper, section 5).

The models are registered with timm when `ddfnet` is imported, so `timm.create_model`, `features_only=True`,
`num_classes`, `in_chans`, `output_stride` and `drop_path_rate` work as for timm's own.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

from timm.layers import DropPath
from timm.models import generate_default_cfgs
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import Tensor, nn

from ddfnet.layers import DDF
from ddfnet.layers.checks import check_choice
from ddfnet.layers.ddf import is_watched
from ddfnet.layers.normalized_ddf import absorbs_norms, normalized_ddf, one_by_one
from ddfnet.layers.normalized_sum import absorbs_sum, normalized_sum, takes_operators
from ddfnet.models.pretrained import build_model, register, tagged_cfgs

# What the models below take besides timm's arguments, and hand on to each DDF.
DDF_OPTIONS = ("kernel_size", "heads", "squeeze_ratio", "filters", "normalization", "fused_filters")
# ... and each bottleneck with a DDF.
BLOCK_OPTIONS = ("fused_norms",)


def _in_place_of(conv: nn.Conv2d, layer: Callable[..., nn.Module]) -> nn.Module:
    factory = {"device": conv.weight.device, "dtype": conv.weight.dtype}
    return layer(conv.in_channels, stride=conv.stride[0], dilation=conv.dilation[0], **factory)


class ReplacedBottleneck(Bottleneck):
    """timm's bottleneck with another layer in place of `conv2`, of the same channels, stride and dilation.

    `layer` is called as `layer(channels, stride=, dilation=, device=, dtype=)`. ValueError where `conv2` has unequal
    input and output channels, or groups.
    """

    def __init__(self, *args: Any, layer: Callable[..., nn.Module], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        conv = self.conv2
        if conv.in_channels != conv.out_channels or conv.groups != 1:
            raise ValueError(
                f"cardinality and reduce_first must be 1 to replace the 3x3 convolution: got one of {conv.in_channels} "
                f"to {conv.out_channels} channels in {conv.groups} groups"
            )
        self.add_module("conv2", _in_place_of(conv, layer))


class DDFBottleneck(ReplacedBottleneck):
    """timm's bottleneck with `conv2` replaced by a DDF of the same channels, stride and dilation.

    Args:
        ddf_args: options of `ddfnet.DDF`, such as combine or heads.
        fused_norms: `inference`: where no gradient is asked for, the two batch normalizations and ReLUs around the DDF
            are computed in its kernels, if it is one operator and nothing was exchanged (`normalized_ddf`), and the
            last one, the sum with the shortcut and its ReLU are one operator (`normalized_sum`). `all`: in training as
            well, which no GPU has run yet. `none`: never. Same parameters, and the same numbers but for rounding. Also
            an attribute, to switch it later.
    """

    def __init__(
        self,
        *args: Any,
        ddf_args: Mapping[str, Any] | None = None,
        fused_norms: Literal["none", "inference", "all"] = "inference",
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, layer=partial(DDF, **(ddf_args or {})), **kwargs)
        check_choice("fused_norms", fused_norms, ("none", "inference", "all"))
        self.fused_norms = fused_norms

    def absorbed_norms(self) -> tuple[nn.Module, ...]:
        """The batch normalizations that kernels compute in inference on their way, for x of a dtype and memory format
        that they take."""
        if self.fused_norms == "none":
            return ()
        norms = (self.bn1, self.bn2) if absorbs_norms(*self._around_ddf()) else ()
        last = not self.bn3.training and self._nothing_before_the_sum() and absorbs_sum(self.bn3, self.act3)
        return (*norms, self.bn3) if last else norms

    def _around_ddf(self) -> tuple[nn.Module, ...]:
        return self.bn1, self.act1, self.conv2, self.bn2, self.drop_block, self.act2

    def forward(self, x: Tensor) -> Tensor:
        """As timm's."""
        shortcut, trains = x, self.fused_norms == "all"
        x = self.conv1(x)
        if self.fused_norms == "none":
            x = one_by_one(x, *self._around_ddf())
        else:
            x = normalized_ddf(x, *self._around_ddf(), training=trains)
        x = self.conv3(self.aa(x))  # type: ignore[misc]  # by timm's annotations aa could be None
        if self.fused_norms != "none" and takes_operators(x) and self._nothing_before_the_sum():
            return normalized_sum(x, self.bn3, self._shortcut(shortcut, trains), self.act3, training=trains)
        x = self.bn3(x)
        if self.se is not None:
            x = self.se(x)
        if self.drop_path is not None:
            x = self.drop_path(x)
        if self.downsample is not None:
            shortcut = self.downsample(shortcut)
        x += shortcut
        return self.act3(x)

    def _nothing_before_the_sum(self) -> bool:
        """Whether the sum comes right behind `bn3`: no attention, and no path that may be dropped, nor a hook on it."""
        path = self.drop_path
        idle = type(path) is DropPath and not (path.training and path.drop_prob) and not is_watched(path)
        return self.se is None and (path is None or idle) and not nn.modules.module._has_any_global_hook()

    def _shortcut(self, x: Tensor, trains: bool) -> Tensor:
        """The shortcut of x; a batch normalization at its end by an operator, as `normalized_sum` allows."""
        if self.downsample is None:
            return x
        if type(self.downsample) is not nn.Sequential or not len(self.downsample) or is_watched(self.downsample):
            return self.downsample(x)
        *layers, norm = self.downsample
        return normalized_sum(one_by_one(x, *layers), norm, training=trains)


class DDFBasicBlock(BasicBlock):
    """timm's basic block with each 3x3 convolution replaced by a DDF and a pointwise convolution behind it.

    The released code has no DDF-ResNet18, and a basic block of DDFs alone could not mix its channels. This is our
    reading of the paper's table 4: with squeeze_ratio 0.5 it has the printed 7.7 M parameters and 0.4 B FLOPs.
    `ddf_args`: see `DDFBottleneck`.
    """

    def __init__(self, *args: Any, ddf_args: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name in ("conv1", "conv2"):
            conv: nn.Conv2d = getattr(self, name)
            like: dict[str, Any] = {"device": conv.weight.device, "dtype": conv.weight.dtype}
            pointwise = nn.Conv2d(conv.in_channels, conv.out_channels, 1, bias=False, **like)
            ddf = _in_place_of(conv, partial(DDF, **(ddf_args or {})))
            self.add_module(name, nn.Sequential(OrderedDict(ddf=ddf, pointwise=pointwise)))


class SmallImageResNet(ResNet):
    """ResNet for images of about 32 pixels: a 3x3 stem and no max pooling. With `stem_stride` 1 (or 2) the stages have
    the strides 1, 2, 4, 8 (or twice those)."""

    def __init__(self, *args: Any, stem_stride: int = 1, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        stem = self.conv1
        if not isinstance(stem, nn.Conv2d):
            raise ValueError("small images have a stem of one convolution: stem_type cannot be chosen")
        if stem_stride not in (1, 2):
            raise ValueError(f"stem_stride must be 1 or 2, got {stem_stride!r}")
        conv = nn.Conv2d(
            stem.in_channels, stem.out_channels, 3, stride=stem_stride, padding=1, bias=False,
            device=stem.weight.device, dtype=stem.weight.dtype,
        )  # fmt: skip
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        self.add_module("conv1", conv)
        self.add_module("maxpool", nn.Identity())
        for stage in self.feature_info:
            stage["reduction"] = max(1, stage["reduction"] // 4) * stem_stride  # timm's: stem 2, then pooling 2


def _cfg(**overrides: Any) -> dict[str, Any]:
    # sizes, crop, mean and std are timm's defaults
    return {
        "url": "",
        "pool_size": (7, 7),
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


LAYERS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
SMALL_IMAGE_ARGS: dict[str, Any] = {"model_class": SmallImageResNet, "layers": (1,) * 4, "channels": (16, 32, 64, 128)}


def _create(
    variant: str,
    pretrained: bool,
    kwargs: dict[str, Any],
    *,
    combine: str,
    model_class: type[ResNet] = ResNet,
    **defaults: Any,
) -> nn.Module:
    # The options of the DDF belong to the block; timm hands `block_args` on to it.
    model_args = {"block": DDFBottleneck, **defaults, **kwargs}
    ddf_args = {"combine": combine, **{key: model_args.pop(key) for key in DDF_OPTIONS if key in model_args}}
    if model_args["block"] is DDFBasicBlock and ddf_args.get("filters") != "spatial":
        ddf_args = {"squeeze_ratio": 0.5, **ddf_args}
    block_args = dict(model_args.pop("block_args", {}))
    block_args |= {key: model_args.pop(key) for key in BLOCK_OPTIONS if key in model_args}
    block_args = {**block_args, "ddf_args": {**ddf_args, **block_args.get("ddf_args", {})}}
    return build_model(model_class, variant, pretrained, block_args=block_args, **model_args)


def _create_dense(variant: str, pretrained: bool, kwargs: dict[str, Any]) -> nn.Module:
    return build_model(variant=variant, pretrained=pretrained, **{"block": Bottleneck, **SMALL_IMAGE_ARGS, **kwargs})


# Name -> (documentation, record for timm, function that creates it)
_models: dict[str, tuple[str, dict[str, Any], Callable[..., nn.Module]]] = {
    "resnet14_32px": ("The dense counterpart of ddf_mul_resnet14_32px.", small_image_cfg(), _create_dense)
}
for _combine, _how in (("mul", "multiplied"), ("add", "added")):
    for _layers, _size in ((18, "7.7 M parameters (`DDFBasicBlock`)"), (50, "16.8 M parameters"),
                          (101, "28.1 M parameters"), (152, "37.5 M parameters")):  # fmt: skip
        _doc = f"DDF-ResNet{_layers}, filters {_how}: {_size}. Options besides timm's: `DDF_OPTIONS`, `BLOCK_OPTIONS`."
        _block = DDFBasicBlock if _layers == 18 else DDFBottleneck
        _make = partial(_create, combine=_combine, layers=LAYERS[_layers], block=_block)
        _models[f"ddf_{_combine}_resnet{_layers}"] = _doc, _cfg(), _make
    _doc = "A small DDF-ResNet for 32-pixel images (digits, CIFAR): 4 bottlenecks of 16 to 128 channels."
    _make = partial(_create, combine=_combine, **SMALL_IMAGE_ARGS)
    _models[f"ddf_{_combine}_resnet14_32px"] = _doc, small_image_cfg(), _make

default_cfgs = generate_default_cfgs(
    {tag: cfg for name, (_, common, _) in _models.items() for tag, cfg in tagged_cfgs(name, common).items()}
)
for _name, (_doc, _, _function) in _models.items():
    register(__name__, _name, _doc, _function)
