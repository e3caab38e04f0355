"""Models, registered with timm on import."""

from ddfnet.models.baselines import BAMResNet
from ddfnet.models.ddf_resnet import DDFBasicBlock, DDFBottleneck, ReplacedBottleneck, SmallImageResNet
from ddfnet.models.factory import create_model, list_models

__all__ = [
    "BAMResNet",
    "DDFBasicBlock",
    "DDFBottleneck",
    "ReplacedBottleneck",
    "SmallImageResNet",
    "create_model",
    "list_models",
]
