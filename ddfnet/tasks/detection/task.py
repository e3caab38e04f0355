"""Object detection on data in COCO's format."""

import importlib.util
import logging
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import ddfnet
from ddfnet.data.batches import Batch
from ddfnet.data.loader import Finish
from ddfnet.models.factory import create_model
from ddfnet.models.weights import load_weights, read_source
from ddfnet.tasks.base import Task
from ddfnet.tasks.detection.coco import CocoIndex, index_coco
from ddfnet.tasks.detection.config import DetectionConfig
from ddfnet.tasks.detection.data import DetectionReader, scale_images
from ddfnet.tasks.detection.metrics import METRICS, DetectionEvaluator
from ddfnet.tasks.detection.network import create_backbone, create_detector
from ddfnet.utils.errors import CheckpointError, ConfigError, DataError, UserError

_log = logging.getLogger("ddfnet")


class DetectionTask(Task[DetectionConfig, CocoIndex]):
    """Trains Faster R-CNN on `data.train_annotations` and evaluates it on `data.val_annotations`.

    The training annotations are read when they are needed: an evaluation does without them.
    """

    config_class = DetectionConfig
    best_metric, fixed_input_size = "map", False
    other_metrics = tuple((name, False) for name in METRICS[1:])
    percentages = METRICS

    def __init__(self, config: DetectionConfig) -> None:
        if importlib.util.find_spec("pycocotools") is None:
            raise UserError("detection needs pycocotools, which is not installed: pip install pycocotools")
        super().__init__(config)
        self._val = self._index("val")
        categories = len(self._val.categories)
        self.num_classes = config.model.num_classes or categories
        if self.num_classes < categories:
            raise ConfigError(
                f"model.num_classes={self.num_classes} is less than the {categories} categories of {self._val.file}: "
                "raise it, or leave it null to take their number"
            )

    @cached_property
    def _train(self) -> CocoIndex:
        """The training images that show something; DataError for other categories than those of validation."""
        index = self._index("train")
        if index.categories != self._val.categories:
            raise DataError(f"{index.file} and {self._val.file} have different categories: give two with the same ones")
        return index.with_boxes()

    def build_model(self) -> nn.Module:
        """The detector of the configuration; its backbone has the weights that the configuration names."""
        model = self.config.model
        # A run that resumes has its weights in last.pt: those it started from need not be there any more.
        start = not (self.config.run.dir and (Path(self.config.run.dir) / "last.pt").exists())
        try:
            pretrained = model.backbone_pretrained and start
            backbone = create_backbone(model.backbone, pretrained=pretrained, **model.backbone_kwargs)
        except OSError as error:  # of the download
            raise UserError(
                f"model.backbone_pretrained: cannot load the weights of {model.backbone} ({error}): download them on a "
                "machine with a network, or give a file as model.backbone_checkpoint"
            ) from None
        except ValueError as error:
            raise ConfigError(f"model.backbone, model.backbone_kwargs: {error}") from None
        if model.backbone_checkpoint and start:
            self._load_backbone(backbone, model.backbone_checkpoint)
        try:
            return create_detector(backbone, box_samples=model.box_samples, **self._options())
        except ValueError as error:
            raise ConfigError(f"model.frozen_stages={model.frozen_stages}: {error}") from None

    def _options(self) -> dict[str, Any]:
        """Arguments of `create_detector` that a checkpoint remembers."""
        model, data = self.config.model, self.config.data
        architecture = model.model_dump(include={"frozen_stages", "frozen_norm", "upsampling", "channels"})
        return {"num_classes": self.num_classes, **architecture, **data.model_dump(include={"min_size", "max_size"})}

    def train_reader(self, device: torch.device) -> tuple[Callable, Finish]:
        if self._train.left_out:
            _log.info("%d training images without any box are left out", self._train.left_out)
        seed, hflip = self.config.run.seed, self.config.augment.hflip
        reader = DetectionReader(self._train, seed=seed, hflip=hflip, max_pixels=self.config.data.max_pixels)
        return reader.read, scale_images

    def eval_reader(self, device: torch.device) -> tuple[Callable, Finish]:
        return DetectionReader(self._val, max_pixels=self.config.data.max_pixels).read_eval, scale_images

    def loss(self, model: Callable[..., Any], batch: Batch) -> dict[str, Tensor]:
        """The sum of the losses of proposals (objectness, box) and detections (class, box), and each of them."""
        losses = model(batch["image"], batch["target"])
        return {"loss": sum(losses.values()), **losses}

    def shown(self, batch: Batch, most: int) -> list[tuple[Tensor, str]]:
        pairs = zip(batch["image"][:most], batch["target"][:most], strict=True)
        return [(image, f"{len(target['boxes'])} boxes") for image, target in pairs]

    def evaluator(self, device: torch.device) -> DetectionEvaluator:
        return DetectionEvaluator(self._val)

    def meta(self) -> dict[str, Any]:
        """Backbone, pyramid, sizes and categories: arguments of `create_backbone` and `create_detector`."""
        model = self.config.model.model_dump(include={"name", "backbone", "backbone_kwargs"})
        return {
            "task": "detection",
            "model": {**model, **self._options()},
            "categories": self._val.categories,
            "ddfnet": ddfnet.__version__,
        }

    def _index(self, split: str) -> CocoIndex:
        data = self.config.data
        root = Path(data.root)
        return index_coco(root / getattr(data, f"{split}_images"), root / getattr(data, f"{split}_annotations"))

    def _load_backbone(self, backbone: nn.Module, path: str) -> None:
        """Loads the weights of a classifier, all but what comes after its last stage."""
        model = self.config.model
        try:
            whole = create_model(model.backbone, **model.backbone_kwargs)
            changes = load_weights(whole, read_source(path), source=path, name=model.backbone, new_classifier=True)
        except CheckpointError as error:
            raise CheckpointError(f"model.backbone_checkpoint: {error}") from None
        # timm flattens the stages of some networks, and wraps others: stages.0 is stages_0 or model.stages.0 there.
        flat = {key.replace(".", "_"): tensor for key, tensor in whole.state_dict().items()}
        names = {key: key.replace(".", "_") for key in backbone.state_dict()}
        backbone.load_state_dict({key: flat[n if n in flat else n.removeprefix("model_")] for key, n in names.items()})
        _log.info("backbone weights from %s%s", path, f"; {changes}" if changes else "")


TASK = DetectionTask
