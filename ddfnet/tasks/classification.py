"""Image classification over class folders."""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from timm.loss import BinaryCrossEntropy
from torch import Tensor, nn

import ddfnet
from ddfnet.config import ClassificationConfig, Derived
from ddfnet.data import (
    EvalBatchTransform,
    Preprocessing,
    TrainBatchTransform,
    eval_batches,
    eval_transform,
    index_folder,
    train_batches,
    train_transform,
)
from ddfnet.errors import ConfigError, DataError
from ddfnet.evaluation import ClassificationEvaluator
from ddfnet.models import create_model
from ddfnet.tasks.base import Batch, step_indices, train_sampler


class ClassificationTask:
    """Trains a model on `data.root/train` and evaluates it on `data.root/val`.

    Raises (at construction):
        DataError: a data folder is missing or incomplete, or the two disagree on the classes.
        ConfigError: fewer classes in the model than in the data, or a malformed augmentation.
    """

    best_metric, lower_is_better, one_input_size = "top1", False, True

    def __init__(self, config: ClassificationConfig) -> None:
        self.config = config
        root = Path(config.data.root)
        for key in ("train", "val"):
            part = getattr(config.data, key)
            if not (root / part).is_dir():
                raise DataError(
                    f"data.root={root} has no folder {part}: data.root holds {config.data.train}/ and "
                    f"{config.data.val}/, each with one folder per class (data.{key} names another)"
                )
        self._train = index_folder(root / config.data.train)
        self._val = index_folder(root / config.data.val, classes=self._train.classes)
        self.train_images, self.val_images = len(self._train), len(self._val)
        self.classes = list(self._train.classes)
        self.num_classes = config.model.num_classes or len(self.classes)
        if self.num_classes < len(self.classes):
            raise ConfigError(
                f"model.num_classes={self.num_classes} is less than the {len(self.classes)} class folders of "
                f"{root / config.data.train}: raise it, or leave it null to take their number"
            )
        settings = config.data.input
        self.preprocessing = Preprocessing(
            settings.size, settings.crop_pct, settings.interpolation, settings.mean, settings.std
        )
        augment = config.augment
        try:
            self._transform = train_transform(
                replace(self.preprocessing, input_size=settings.train_size or settings.size),
                interpolation=augment.interpolation,
                scale=augment.scale,
                ratio=augment.ratio,
                hflip=augment.hflip,
                vflip=augment.vflip,
                color_jitter=augment.color_jitter,
                rand_augment=augment.rand_augment,
                trivial_augment=augment.trivial_augment,
                crop=augment.crop,
            )
        except ValueError as error:
            raise ConfigError(f"augment: {error}") from None
        self._bce = None
        if config.loss.name == "bce":
            self._bce = BinaryCrossEntropy(config.loss.label_smoothing, target_threshold=config.loss.bce_threshold)

    def build_model(self) -> nn.Module:
        """The model of the configuration with random weights."""
        model = self.config.model
        try:
            return create_model(
                model.name,
                num_classes=self.num_classes,
                drop_rate=model.drop_rate,
                **({"drop_path_rate": model.drop_path_rate} if model.drop_path_rate else {}),
                **model.kwargs,
            )
        except ValueError as error:
            raise ConfigError(f"model.name, model.kwargs: {error}") from None

    def train_batches(self, derived: Derived, *, rank: int, start_step: int, device: torch.device) -> Iterator[Batch]:
        config, augment = self.config, self.config.augment
        batch_transform = TrainBatchTransform(
            self.preprocessing,
            device=device,
            seed=config.run.seed,
            num_classes=self.num_classes,
            micro_batch=config.train.device_batch_size,
            channels_last=config.train.channels_last,
            erasing_prob=augment.erasing.p,
            erasing_mode=augment.erasing.mode,
            erasing_count=augment.erasing.count,
            mixup_alpha=augment.mixup,
            cutmix_alpha=augment.cutmix,
            mix_prob=augment.mixup_prob,
            switch_prob=augment.mixup_switch_prob,
            label_smoothing=config.loss.label_smoothing,
            mixup_off_epoch=augment.mixup_off_epoch,
        )
        sampler = train_sampler(
            config, derived, self.train_images, rank=rank, start_step=start_step, repeats=augment.repeats
        )
        return train_batches(
            self._train,
            transform=self._transform,
            batch_transform=batch_transform,
            sampler=sampler,
            device=device,
            num_workers=worker_count(config.data.workers),
            seed=config.run.seed,
            max_broken=config.data.max_broken,
        )

    def eval_batches(self, *, rank: int, world_size: int, device: torch.device) -> Iterable[Batch]:
        config = self.config
        return eval_batches(
            self._val,
            transform=eval_transform(self.preprocessing),
            batch_transform=EvalBatchTransform(
                self.preprocessing, device=device, channels_last=config.train.channels_last
            ),
            batch_size=config.eval.batch_size or config.train.device_batch_size,
            rank=rank,
            world_size=world_size,
            device=device,
            num_workers=worker_count(config.data.workers),
        )

    def batch_images(self, batch: Batch) -> int:
        return len(batch["image"])

    def loss(self, model: Callable[[Tensor], Tensor], batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy (or BCE) of one micro-batch, computed in float32."""
        logits, target = model(batch["image"]).float(), batch["target"]
        if self._bce is not None:
            return {"loss": self._bce(logits, target)}
        # Mixed targets (rows of probabilities) come smoothed already.
        smoothing = 0.0 if target.is_floating_point() else self.config.loss.label_smoothing
        return {"loss": F.cross_entropy(logits, target, label_smoothing=smoothing)}

    def evaluator(self, device: torch.device) -> ClassificationEvaluator:
        return ClassificationEvaluator(device)

    def meta(self) -> dict[str, Any]:
        """Model, classes and preprocessing: all that `eval.py` needs besides the weights and the pictures."""
        model = self.config.model
        return {
            "task": "classification",
            "model": {"name": model.name, "num_classes": self.num_classes, "kwargs": model.kwargs},
            "classes": self.classes,
            "preprocessing": self.preprocessing.to_dict(),
            "ddfnet": ddfnet.__version__,
        }

    def sample_names(self, derived: Derived, step: int) -> list[str]:
        """Paths of the images of one optimiser step, in the order of the global batch."""
        config = self.config
        indices = step_indices(config, derived, self.train_images, step, repeats=config.augment.repeats)
        return [self._train.path(i) for i in indices]


def worker_count(workers: int | str) -> int:
    """Loader processes of this rank; `auto`: its share of the usable cores less one, at least 1, at most 16."""
    if workers != "auto":
        return int(workers)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    local_world_size = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return max(1, min(16, cores // local_world_size - 1))
