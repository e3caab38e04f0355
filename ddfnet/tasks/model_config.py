"""The network of a classification run: the section `model` of its configuration."""

from collections.abc import Iterator
from typing import Any, ClassVar

from pydantic import Field

from ddfnet.config import Contradiction, Fault, Fraction, Positive
from ddfnet.models.weights import TIMM
from ddfnet.tasks.config import ModelSection
from ddfnet.tasks.head_init import HeadInitConfig
from ddfnet.zoo.download import HUB, LOCAL


class ModelConfig(ModelSection, HeadInitConfig):
    name: str
    """Any classification model of timm, or ddf_mul_resnet50, ddf_add_resnet101, ... (`ddfnet.list_models()`).
    MODEL.TAG, hf-hub:ORG/NAME or local-dir:FOLDER name the weights to start from, too."""
    pretrained: bool | None = None
    """Start from the weights that timm or the zoo has for the name (downloaded). null: where the name says which: it
    has a tag, or is a hub or local folder, and there is no init_checkpoint."""
    num_classes: Positive | None = None
    """null: the number of classes of the data."""
    in_chans: Positive | None = None
    """Channels of the images: 1 (gray), 2 (gray, alpha), 3 (RGB) or 4 (RGB, alpha). Weights of RGB networks are adapted
    by timm's rule. null: 3, or those of a hub or local folder."""
    drop_rate: Fraction = 0.0
    """Dropout before the classifier."""
    drop_path_rate: Fraction = 0.0
    """Stochastic depth, rising linearly to this rate at the last block."""
    kwargs: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of the model's constructor, e.g. {squeeze_ratio: 0.3}."""
    init_checkpoint: str | None = None
    """Start from these weights: a file of ddfnet or another trainer, `zoo:NAME`, `hf-hub:ORG/NAME`, `local-dir:FOLDER`.
    A classifier for another number of classes keeps its random start, and the log says so."""

    called_elsewhere: ClassVar[dict[str, str]] = {
        "arch": "name",
        "architecture": "name",
        "initial_checkpoint": "init_checkpoint",
        "channels": "in_chans",
        "dropout": "drop_rate",
        "drop_path": "drop_path_rate",
    }

    no_start: ClassVar[dict[str, Any]] = {"init_checkpoint": None, "pretrained": False}

    @property
    def start(self) -> str | None:
        if self.init_checkpoint:
            return self.init_checkpoint
        from_folder = self.name.startswith((HUB, LOCAL))
        tag = self.name.partition(".")[2]
        named = from_folder or (tag and tag != "untrained")
        if not (named if self.pretrained is None else self.pretrained):
            return None
        return self.name if from_folder else TIMM + self.name

    def faults(self) -> Iterator[Fault]:
        if self.init_checkpoint and self.pretrained:
            values = {"model.init_checkpoint": self.init_checkpoint, "model.pretrained": True}
            yield Contradiction(values, {"model.pretrained": False})
        loading = ("pretrained", "checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")
        own = {
            **{key: f"set model.{key}" for key in ("num_classes", "drop_rate", "drop_path_rate")},
            **dict.fromkeys(loading, "give a file as model.init_checkpoint, or set model.pretrained"),
            "img_size": "it follows data.input.size",
            "in_chans": "set model.in_chans",
            "features_only": "training needs the classifier",
            "block": "choose another model.name",
            "block_args": "the options of a DDF are given directly, e.g. model.kwargs.heads",
        }
        for key, fix in own.items():
            if key in self.kwargs:
                yield Fault({f"model.kwargs.{key}": self.kwargs[key]}, f"cannot be given there: {fix}")
