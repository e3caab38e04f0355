"""Models, registered with timm on import."""

from ddfnet.models.ddf_resnet import DDFBottleneck, SmallImageResNet
from ddfnet.models.factory import create_model, list_models

__all__ = ["DDFBottleneck", "SmallImageResNet", "create_model", "list_models"]
