"""Image classification: its configuration and its task."""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

import ddfnet
from ddfnet.config import Fault, Fraction, refuse
from ddfnet.data.augment import AugmentConfig
from ddfnet.data.batches import Batch, EvalBatchTransform, TrainBatchTransform
from ddfnet.data.class_hashes import class_hashes
from ddfnet.data.dataset import CorruptImages, EvalDataset, TrainDataset
from ddfnet.data.decode import Decoder, DecoderName
from ddfnet.data.loader import Finish
from ddfnet.data.memory import cached_images
from ddfnet.data.preprocessing import InputConfig, height_width
from ddfnet.data.sources import ImageSource, SourceConfig, open_split
from ddfnet.data.sources.label_sets import class_names
from ddfnet.data.val_cache import ValCache
from ddfnet.evaluation.metrics import ClassificationEvaluator
from ddfnet.evaluation.multilabel import METRICS as MULTI_LABEL_METRICS
from ddfnet.evaluation.multilabel import MultiLabelEvaluator
from ddfnet.models.factory import resolve_name
from ddfnet.tasks.base import Evaluator, Task
from ddfnet.tasks.classification_evaluation import classification_evaluation
from ddfnet.tasks.classification_input import NetworkInput, channel_faults
from ddfnet.tasks.config import Config, DataSection
from ddfnet.tasks.distill import DistillConfig, Distiller, build_distiller, check_teacher
from ddfnet.tasks.head_init import initialize_head
from ddfnet.tasks.labels_config import ClassificationEvalConfig, LabelConfig, label_faults, label_keys_without_effect
from ddfnet.tasks.losses import LossConfig, build_loss, loss_keys_without_effect
from ddfnet.tasks.model_config import ModelConfig
from ddfnet.tasks.multilabel import class_counts, label_notes, to_targets
from ddfnet.tasks.shown import shown_images, worst_labels
from ddfnet.utils.errors import ConfigError
from ddfnet.utils.text import plural

_log = logging.getLogger("ddfnet")
_SAMPLE = 500  # images whose names tell what a set is made of
_MAY_BE_JPEG = {".jpg", ".jpeg", ".jpe", ".jfif", ".jfi", ".pjpeg", ".pjp", ""}


class DataConfig(DataSection, SourceConfig, LabelConfig):
    root: str
    """Folder with the training and validation images."""
    train: str = "train"
    """Training images below root, or an absolute path: a folder, a file, a pattern (shards/train-*.tar), or the word
    that stands for them in the names of shards."""
    val: str = "val"
    """Validation images, likewise."""
    max_corrupt: Fraction = 0.001
    """Training stops when more than this share of the images, and more than 10, cannot be decoded."""
    decoder: DecoderName = "auto"
    """Decoder of JPEGs; all give the same pixels. auto: the first installed of simplejpeg, torchcodec and Pillow.
    Pillow reads all images for a network with other inputs than RGB (model.in_chans)."""
    cache: Literal["auto", "memory", "none"] = "auto"
    """memory: decode all images once, at the start, and keep their pixels in the memory of each process. auto: for each
    split, if its pixels take up to 512 MiB (CIFAR does)."""
    val_cache: str | None = None
    """Folder to keep the validation images in, as the network gets them: size^2 * 3 bytes each, 7.5 GB for ImageNet's
    50,000 at 224. Later evaluations read them from there; data.cache then is of the training images alone. One that all
    processes of a machine see; not on Windows; null: none."""
    input: InputConfig = InputConfig()

    renamed: ClassVar[dict[str, str]] = {"max_broken": "max_corrupt"}


class ClassificationConfig(Config):
    """One classification run: what `train.py --config FILE` reads when `task` is classification, the default."""

    task: Literal["classification"] = "classification"
    model: ModelConfig
    data: DataConfig
    augment: AugmentConfig = AugmentConfig()
    loss: LossConfig = LossConfig()
    distill: DistillConfig | None = None
    eval: ClassificationEvalConfig = ClassificationEvalConfig()

    def faults(self) -> Iterator[Fault]:
        yield from super().faults()
        if self.augment.mixes and self.train.device_batch_size % 2:
            mixing = {f"augment.{key}": value for key in ("mixup", "cutmix") if (value := getattr(self.augment, key))}
            yield Fault(
                mixing | {"train.device_batch_size": self.train.device_batch_size},
                "contradict: mixing pairs the images of a micro-batch, whose number must be even",
            )
        yield from label_faults(self)
        yield from channel_faults(self, self.model.in_chans)

    def without_effect(self) -> Iterator[tuple[str, str]]:
        yield from super().without_effect()
        yield from label_keys_without_effect(self)
        yield from loss_keys_without_effect(self.loss, mixes=self.augment.mixes)
        if (channels := len(self.data.input.mean)) != 3 and self.data.decoder not in ("auto", "pillow"):
            yield "data.decoder", f"images of {plural(channels, 'channel')} are decoded by Pillow, only RGB by others"


class ClassificationTask(NetworkInput, Task[ClassificationConfig, ImageSource]):
    """Trains a model on `data.root/train` and evaluates it on `data.root/val`."""

    config_class = ClassificationConfig
    best_metric = "top1"
    other_metrics: Sequence[tuple[str, bool]] = (("top5", False), ("loss", True))
    percentages: Sequence[str] = ("top1", "top5")
    evaluation = staticmethod(classification_evaluation)

    def __init__(self, config: ClassificationConfig) -> None:
        super().__init__(config)
        check_teacher(config.distill)
        data = config.data
        self._train = open_split(data.root, data.train, key="train", config=data)
        self.classes = class_names(self._train)
        self._val = open_split(data.root, data.val, key="val", classes=self.classes, config=data)
        self.repeats = config.augment.repeats
        self.num_classes = config.model.num_classes or len(self.classes)
        if self.num_classes < len(self.classes):
            raise ConfigError(
                f"model.num_classes={self.num_classes} is less than the "
                f"{plural(len(self.classes), 'class', 'classes')} of "
                f"{self._train.root}: raise it, or leave it null to take their number"
            )
        self.preprocessing = config.data.input.replaced()
        train_size = config.data.input.train_size or config.data.input.size
        self.train_shape = len(self.preprocessing.mean), *height_width(train_size)
        self.model_name, self._saved_kwargs = resolve_name(config.model.name)
        refuse(channel_faults(config, self.model_kwargs.get("in_chans", 3)))
        self._decoder: Decoder  # this and the cache: see open_data
        self._val_cache: ValCache | None = None
        self._data_is_open = False
        self._distiller: Distiller | None = None
        labels = np.array([self._train.label(i) for i in range(self.train_images)], np.int64)
        self.balance = labels if data.sampler == "balanced" else None
        counts = class_counts(self._train, labels)
        self._loss, self.notes = build_loss(config.loss, counts, self.classes, outputs=self.num_classes)
        self.notes += label_notes(self._train, self._val, data.root, data)
        if data.multi_label:
            self.best_metric, *others = self.percentages = MULTI_LABEL_METRICS
            self.other_metrics = (*((name, False) for name in others), ("loss", True))

    @cached_property
    def class_hashes(self) -> dict[str, dict[str, str]]:
        return {"train": class_hashes(self._train), "val": class_hashes(self._val)}

    def prepare_start(self, model: nn.Module) -> None:
        initialize_head(model, self.config.model)

    def open_data(self, *, writes: bool = True) -> None:
        data, self._data_is_open = self.config.data, True
        channels = len(self.preprocessing.mean)
        self._decoder = Decoder(data.decoder, channels=channels, max_pixels=data.max_pixels)
        if _has_jpegs(self._train) or _has_jpegs(self._val):
            _log.info("JPEGs are decoded by %s", self._decoder.name)
        self._distiller = build_distiller(self.config, self.preprocessing, self.classes, self.num_classes)
        if data.val_cache is not None:
            self._val_cache = ValCache(data.val_cache, self._val, self.preprocessing, writes=writes)
            if data.cache == "memory":
                _log.info("data.cache=memory is of the training images alone: data.val_cache keeps the others")

    def train_reader(self, device: torch.device) -> tuple[Callable, Finish]:
        config, augment = self.config, self.config.augment
        if not self._data_is_open:
            self.open_data()
        crops = self.preprocessing.replaced(size=config.data.input.train_size or config.data.input.size)
        dataset = TrainDataset(
            self._train,
            crops,
            augment,
            seed=config.run.seed,
            on_device=augment.on_device(device),
            decoder=self._decoder,
            decoded=cached_images(self._train, self._decoder, config.data.cache),
        )
        self.train_in_process = dataset.is_quick
        corrupt = CorruptImages(self._train, config.data.max_corrupt)
        transform = TrainBatchTransform(
            self.preprocessing,
            augment,
            device=device,
            seed=config.run.seed,
            num_classes=len(self._train.classes) if config.data.multi_label else self.num_classes,
            label_smoothing=config.loss.label_smoothing,
            channels_last=config.train.channels_last,
        )
        targets = to_targets(self._train, device)
        return dataset.read, lambda batch: targets(transform(corrupt.count(batch)))

    def eval_reader(self, device: torch.device) -> tuple[Callable, Finish]:
        if not self._data_is_open:
            self.open_data()
        decoder, cache = self._decoder, self._val_cache
        decoded = cached_images(self._val, decoder, self.config.data.cache) if cache is None else None
        dataset = EvalDataset(self._val, self.preprocessing, decoder=decoder, decoded=decoded, cache=cache)
        self.eval_in_process = dataset.is_quick
        transform = EvalBatchTransform(self.preprocessing, device=device, channels_last=self.config.train.channels_last)
        targets = to_targets(self._val, device)
        return dataset.read, lambda batch: targets(transform(batch))

    def loss(self, model: Callable[[Tensor], Tensor], batch: Batch) -> dict[str, Tensor]:
        """`ClassificationLoss`, and that of the teacher if there is one, of one micro-batch, computed in float32."""
        logits = model(batch["image"]).float()
        loss = self._loss.to(logits.device)(logits, batch["target"])
        return {"loss": loss if self._distiller is None else self._distiller(loss, logits, batch["image"])}

    def evaluator(self, device: torch.device) -> Evaluator:
        if self.config.data.multi_label:
            return MultiLabelEvaluator(self.config.eval.threshold)
        return ClassificationEvaluator(device)

    def shown(self, batch: Batch, most: int) -> list[tuple[Tensor, str]]:
        return shown_images(batch, self.preprocessing, self.classes, most)

    def mistakes(self, output: Tensor, batch: Batch) -> Batch:
        return worst_labels(output, batch)

    def meta(self) -> dict[str, Any]:
        """Model, classes and preprocessing: all that `eval.py` needs besides the weights and the images."""
        return {
            "task": "classification",
            "model": {"name": self.model_name, "num_classes": self.num_classes, "kwargs": self.model_kwargs},
            "classes": self.classes,
            "preprocessing": self.preprocessing.to_dict(),
            "ddfnet": ddfnet.__version__,
            **({"multi_label": {"threshold": self.config.eval.threshold}} if self.config.data.multi_label else {}),
        }


def _has_jpegs(source: ImageSource) -> bool:
    """Whether some of a sample of images are JPEGs by their names, or might be: names need not tell."""
    sample = np.linspace(0, len(source) - 1, min(_SAMPLE, len(source))).astype(int).tolist()
    kinds = {os.path.splitext(source.key(i))[1].lower() for i in sample}
    return bool(kinds & _MAY_BE_JPEG)


TASK = ClassificationTask
