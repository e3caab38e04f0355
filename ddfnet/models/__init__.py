"""Models, registered with timm on import."""

from ddfnet.models.factory import create_model, list_models

__all__ = ["create_model", "list_models"]
