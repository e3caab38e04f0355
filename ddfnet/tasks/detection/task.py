"""Object detection on data in COCO's format."""

import importlib.util
import logging
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import ddfnet
from ddfnet.checkpoint import Weights, load_weights, read_weights
from ddfnet.data.loader import worker_count
from ddfnet.models.factory import create_model
from ddfnet.tasks.base import Batch, step_indices, train_sampler
from ddfnet.tasks.detection.coco import CocoIndex, index_coco
from ddfnet.tasks.detection.config import DetectionConfig
from ddfnet.tasks.detection.data import detection_eval_batches, detection_train_batches
from ddfnet.tasks.detection.metrics import DetectionEvaluator
from ddfnet.tasks.detection.network import create_backbone, create_detector
from ddfnet.tasks.evaluation import stored_evaluation
from ddfnet.tasks.plan import RunPlan
from ddfnet.utils.errors import CheckpointError, ConfigError, DataError, UserError
from ddfnet.zoo.download import locate

_log = logging.getLogger("ddfnet")


class DetectionTask:
    """Trains Faster R-CNN on `data.train_annotations` and evaluates it on `data.val_annotations`.

    The training annotations are read when they are needed: an evaluation does without them.

    Raises (at construction):
        DataError: the validation data is missing or malformed.
        ConfigError: fewer classes in the model than in the data.
        UserError: pycocotools is not installed.
    """

    config_class = DetectionConfig
    best_metric, lower_is_better, fixed_input_size = "map", False, False
    evaluation = classmethod(stored_evaluation)

    def __init__(self, config: DetectionConfig) -> None:
        if importlib.util.find_spec("pycocotools") is None:
            raise UserError("detection needs pycocotools, which is not installed: pip install pycocotools")
        self.config = config
        self._val = self._index("val")
        self.val_images = len(self._val)
        found = len(self._val.categories)
        self.num_classes = config.model.num_classes or found
        if self.num_classes < found:
            raise ConfigError(
                f"model.num_classes={self.num_classes} is less than the {found} categories of {self._val.file}: "
                "raise it, or leave it null to take their number"
            )

    @property
    def train_images(self) -> int:
        return len(self._train)

    @cached_property
    def _train(self) -> CocoIndex:
        """The training images that show something.

        Raises:
            DataError: missing or malformed, or of other categories than the validation data.
        """
        index = self._index("train")
        if index.categories != self._val.categories:
            raise DataError(
                f"{index.file} and {self._val.file} have different categories: give two files with the same ones"
            )
        return index.with_boxes()

    def build_model(self) -> nn.Module:
        """The detector of the configuration; its backbone has the weights that the configuration names."""
        model, data = self.config.model, self.config.data
        # A run that goes on has its weights in last.pt: those it started from need not be there any more.
        start = not (self.config.run.dir and (Path(self.config.run.dir) / "last.pt").exists())
        if model.backbone_checkpoint and model.backbone_pretrained:
            raise ConfigError(
                f"model.backbone_checkpoint={model.backbone_checkpoint} and model.backbone_pretrained=true contradict: "
                "set one of them to null or false"
            )
        try:
            backbone = create_backbone(
                model.backbone, pretrained=model.backbone_pretrained and start, **model.backbone_kwargs
            )
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
            return create_detector(
                backbone,
                num_classes=self.num_classes,
                upsampling=model.upsampling,
                channels=model.channels,
                frozen_stages=model.frozen_stages,
                frozen_norm=model.frozen_norm,
                box_samples=model.box_samples,
                min_size=data.min_size,
                max_size=data.max_size,
            )
        except ValueError as error:
            raise ConfigError(f"model.frozen_stages={model.frozen_stages}: {error}") from None

    def train_batches(self, plan: RunPlan, *, rank: int, start_step: int, device: torch.device) -> Iterator[Batch]:
        config, index = self.config, self._train
        if index.left_out:
            _log.info("%d training images without any box are left out", index.left_out)
        sampler = train_sampler(config, plan, len(index), rank=rank, start_step=start_step)
        return detection_train_batches(
            index,
            sampler=sampler,
            device=device,
            num_workers=worker_count(config.data.workers),
            seed=config.run.seed,
            hflip=config.augment.hflip,
        )

    def eval_batches(self, *, rank: int, world_size: int, device: torch.device) -> Iterable[Batch]:
        return detection_eval_batches(
            self._val,
            batch_size=self.config.eval.batch_size or self.config.train.device_batch_size,
            rank=rank,
            world_size=world_size,
            device=device,
            num_workers=worker_count(self.config.data.workers),
        )

    def batch_images(self, batch: Batch) -> int:
        return len(batch["image"])

    def loss(self, model: Callable[..., Any], batch: Batch) -> dict[str, Tensor]:
        """The sum of the losses of proposals (objectness, box) and detections (class, box), and each of them."""
        losses = model(batch["image"], batch["target"])
        return {"loss": sum(losses.values()), **losses}

    def evaluator(self, device: torch.device) -> DetectionEvaluator:
        return DetectionEvaluator(self._val)

    def meta(self) -> dict[str, Any]:
        """Backbone, pyramid, sizes and categories: arguments of `create_backbone` and `create_detector`."""
        model, data = self.config.model, self.config.data
        return {
            "task": "detection",
            "model": {
                "name": model.name,
                "num_classes": self.num_classes,
                "backbone": model.backbone,
                "backbone_kwargs": model.backbone_kwargs,
                "frozen_stages": model.frozen_stages,
                "frozen_norm": model.frozen_norm,
                "upsampling": model.upsampling,
                "channels": model.channels,
                "min_size": list(data.min_size),
                "max_size": data.max_size,
            },
            "categories": self._val.categories,
            "ddfnet": ddfnet.__version__,
        }

    def sample_names(self, plan: RunPlan, step: int) -> list[str]:
        """Paths of the images of one optimizer step, in the order of the global batch."""
        return [str(self._train.path(i)) for i in step_indices(self.config, plan, self.train_images, step)]

    def _index(self, split: str) -> CocoIndex:
        data = self.config.data
        root = Path(data.root)
        return index_coco(root / getattr(data, f"{split}_images"), root / getattr(data, f"{split}_annotations"))

    def _load_backbone(self, backbone: nn.Module, path: str) -> None:
        """Loads the weights of a classifier, all but what comes after its last stage, and nothing else."""
        model = self.config.model
        weights = read_weights(locate(path)[0])
        with torch.device("meta"):
            whole = create_model(model.backbone, **model.backbone_kwargs).state_dict().keys()
        # timm flattens the stages of some networks: their stages.0 is stages_0 in a backbone.
        flat = {key.replace(".", "_"): key for key in weights.state_dict}
        renamed = {key: flat.get(key.replace(".", "_")) for key in backbone.state_dict()}
        state = {own: weights.state_dict[key] for own, key in renamed.items() if key is not None}
        state.update({key: tensor for key, tensor in weights.state_dict.items() if key not in whole})
        try:
            load_weights(backbone, Weights(state, weights.meta, weights.kind), source=path, name=model.backbone)
        except CheckpointError as error:
            raise CheckpointError(f"model.backbone_checkpoint: {error}") from None


TASK = DetectionTask
