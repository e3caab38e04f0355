"""The configuration of object detection."""

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from ddfnet.config import Contradiction, Fault, Positive
from ddfnet.tasks.config import Config, DataSection, FlipConfig, ModelSection


class DetectionModel(ModelSection):
    name: Literal["faster_rcnn"] = "faster_rcnn"
    """Faster R-CNN with a feature pyramid (torchvision's)."""
    init_checkpoint: str | None = None
    """Start the whole detector from these weights (a ddfnet checkpoint)."""
    num_classes: Positive | None = None
    """Object classes, background not among them. null: the number of categories in the annotations."""
    backbone: str = "resnet50"
    """A timm model with features at strides 4, 8, 16 and 32, or a DDF network: ddf_mul_resnet50, ..."""
    backbone_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of the backbone's constructor."""
    backbone_checkpoint: str | None = None
    """Start the backbone from these classification weights (a ddfnet checkpoint, an official one, .safetensors,
    or `zoo:NAME`)."""
    backbone_pretrained: bool = False
    """Start the backbone from the weights that timm knows for its name (downloaded)."""
    frozen_stages: Annotated[int, Field(ge=0, le=4)] = 1
    """Parts of the backbone that are not trained: 1 the stem and the first stage, 2 also the second, ...; 0 none."""
    frozen_norm: bool = True
    """Batch norms of the backbone keep their statistics and their weights, as is usual with few images per process."""
    upsampling: Literal["nearest", "bilinear", "deconv", "pixelshuffle", "carafe", "ddfup"] = "nearest"
    """How the pyramid brings a level to the size of the next finer one (paper, table 6)."""
    channels: Positive = 256
    """Width of the pyramid."""
    box_samples: Positive = 512
    """Proposals per image that the second stage learns from."""

    no_start: ClassVar[dict[str, Any]] = {
        "init_checkpoint": None,
        "backbone_checkpoint": None,
        "backbone_pretrained": False,
    }

    def faults(self) -> Iterator[Fault]:
        if self.backbone_checkpoint and self.backbone_pretrained:
            values = {"model.backbone_checkpoint": self.backbone_checkpoint, "model.backbone_pretrained": True}
            yield Contradiction(values, {"model.backbone_pretrained": False})
        for key in ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"):
            if key in self.backbone_kwargs:
                fix = "use model.backbone_checkpoint or model.backbone_pretrained"
                yield Fault(
                    {f"model.backbone_kwargs.{key}": self.backbone_kwargs[key]}, f"cannot be given there: {fix}"
                )

    def without_effect(self) -> Iterator[tuple[str, str]]:
        if self.init_checkpoint:
            for key in ("backbone_checkpoint", "backbone_pretrained"):
                if getattr(self, key):
                    yield key, "model.init_checkpoint has the weights of the whole detector"


class DetectionData(DataSection):
    train_images: str = "train2017"
    """Folder of the training images, relative to root (or an absolute path)."""
    train_annotations: str = "annotations/instances_train2017.json"
    """COCO annotations of the training images."""
    val_images: str = "val2017"
    """Folder of the validation images."""
    val_annotations: str = "annotations/instances_val2017.json"
    """COCO annotations of the validation images."""
    min_size: Annotated[list[Positive], Field(min_length=1)] = Field(default_factory=lambda: [800])
    """Short side of the images, pixels; of several, training draws one per image and evaluation takes the last."""
    max_size: Positive = 1333
    """Longest side allowed, pixels."""


class DetectionConfig(Config):
    """One detection run: what `train.py --config FILE` reads when `task` is detection."""

    task: Literal["detection"]
    model: DetectionModel = DetectionModel()
    data: DetectionData
    augment: FlipConfig = FlipConfig()
