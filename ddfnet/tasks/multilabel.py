"""Images with any number of classes: targets, checks of the configuration, and evaluation of a checkpoint."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from ddfnet.checkpoint import Weights
from ddfnet.data.batches import Batch, EvalBatchTransform
from ddfnet.data.dataset import EvalDataset
from ddfnet.data.decode import Decoder
from ddfnet.data.loader import Finish, eval_batches
from ddfnet.data.sources import ImageSource, SourceConfig, open_split, split_path
from ddfnet.data.sources.label_sets import LabelSets, class_names, open_labels, unused_lines
from ddfnet.data.sources.store import has_label_sets
from ddfnet.data.sources.table import DELIMITERS
from ddfnet.evaluation.image_sets import ImageSet
from ddfnet.evaluation.multilabel import MultiLabelEvaluator
from ddfnet.evaluation.multilabel_report import MultiLabelReport
from ddfnet.models.classifier import Classifier
from ddfnet.tasks.evaluation import EvaluationOptions, EvaluationSet
from ddfnet.utils.errors import DataError, UserError
from ddfnet.utils.text import plural


class ToTargets:
    """Replaces the labels of a batch, which number sets of classes, by the classes of these sets.

    `transform(batch)`: "target" int64 (B,), or float32 (B, sets) of mixed images -> float32 (B, classes) in [0, 1].
    """

    def __init__(self, source: LabelSets, device: torch.device) -> None:
        self.members = torch.from_numpy(source.members).to(device, torch.float32)

    def __call__(self, batch: Batch) -> Batch:
        target = batch["target"]
        return {**batch, "target": target @ self.members if target.is_floating_point() else self.members[target]}


def to_targets(source: ImageSource, device: torch.device) -> Finish:
    """`ToTargets` of labels that number sets of classes; nothing for others."""
    return ToTargets(source, device) if isinstance(source, LabelSets) else lambda batch: batch


def class_counts(source: ImageSource, labels: np.ndarray) -> np.ndarray:
    """Images of each class, int64 (classes,); `labels` (N,): those of `source`."""
    return source.counts() if isinstance(source, LabelSets) else np.bincount(labels, minlength=len(source.classes))


def label_notes(train: ImageSource, val: ImageSource, root: str, config: SourceConfig) -> list[str]:
    """Lines for the log on labels from a file: how many there are, by which a wrong separator shows; unused ones."""
    notes = []
    if isinstance(train, LabelSets):
        sizes = train.members.sum(1)[train.labels]
        none = f"{plural(int((sizes == 0).sum()), 'image')} without any"
        classes = plural(len(train.names), "class", "classes")
        notes.append(f"multi-label: {classes}, {sizes.mean():.2f} per image, {none}")
    if config.labels is not None and (unused := unused_lines(root, (train, val), config)):
        notes.append(f"note: {unused}")
    return notes


def training_source(weights: Weights) -> SourceConfig:
    """What the data of the training run was, as far as the checkpoint says it."""
    data = (weights.config or {}).get("data") or {}
    return SourceConfig.model_validate({key: data[key] for key in SourceConfig.model_fields if key in data})


def multilabel_images(path: Path, weights: Weights, loaded: Classifier, options: EvaluationOptions) -> ImageSource:
    """The validation images of the training run, or of `options.data`, with their labels; UserError where they cannot
    be had, or an option does not apply.

    `options.data` is another `data.root`, or itself a list with the columns image and labels, or a prepared store.
    """
    given = [f"--{key}" for key in ("sets", "tta") if getattr(options, key)]
    if given:
        raise UserError(f"{', '.join(given)} cannot be used with a multi-label checkpoint: leave it out")
    trained, config = (weights.config or {}).get("data"), training_source(weights)
    root, val = options.data or (trained or {}).get("root"), (trained or {}).get("val", "val")
    places = [] if root is None else [root, split_path(root, val)]
    if own := [place for place in places if place is not None and _brings_labels(place)]:
        alone = config.model_copy(update={"labels": None, "class_names": None, "multi_label": True})
        return open_labels("", str(own[0]), "val", classes=loaded.classes, config=alone)
    if trained is None or root is None:
        raise DataError(
            f"{path} does not hold the configuration of its run, which says where the labels are: give best.pt, or "
            "--data FILE.csv, a list with the columns image and labels"
        )
    return open_split(root, val, key="val", classes=loaded.classes, config=config)


def _brings_labels(place: str | Path) -> bool:
    """Whether these are a list, or a store of images with any number of classes."""
    return Path(place).suffix.lower() in DELIMITERS or has_label_sets(place)


def multilabel_set(
    index: ImageSource, loaded: Classifier, decoder: Decoder, options: EvaluationOptions
) -> EvaluationSet:
    """The evaluation of images of `multilabel_images`."""
    threshold = options.threshold if options.threshold is not None else loaded.threshold
    assert threshold is not None
    how = loaded.preprocessing

    def batches(*, rank: int, world_size: int, device: torch.device) -> Any:
        normalize = EvalBatchTransform(how, device=device, channels_last=loaded.channels_last)
        targets = to_targets(index, device)
        return eval_batches(
            EvalDataset(index, how, decoder=decoder).read,
            len(index),
            lambda batch: targets(normalize(batch)),
            batch_size=options.batch_size or 128,
            rank=rank,
            world_size=world_size,
            device=device,
            workers=options.workers,
            name=index.name,
        )

    def report(evaluator: MultiLabelEvaluator, **about: Any) -> MultiLabelReport:
        classes = class_names(index)
        return MultiLabelReport(
            images=ImageSet("", index, classes),
            classes=classes,
            network=loaded.network,
            rows=evaluator.rows,
            threshold=threshold,
            logits=evaluator.logits,
            truth=evaluator.truth,
            **about,
        )

    return EvaluationSet("", index.root, len(index), batches, lambda device: MultiLabelEvaluator(threshold), report)
