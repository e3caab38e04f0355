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
from ddfnet.data.sources import ImageSource, SourceConfig, open_split
from ddfnet.data.sources.classes import some_names
from ddfnet.data.sources.label_sets import LabelSets, unused_lines
from ddfnet.evaluation.multilabel import MultiLabelEvaluator
from ddfnet.evaluation.multilabel_report import MultiLabelReport
from ddfnet.models.classifier import Classifier
from ddfnet.tasks.evaluation import EvaluationOptions, EvaluationSet
from ddfnet.utils.errors import DataError, UserError


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
    counts = np.bincount(labels, minlength=len(source.classes))
    return counts @ source.members if isinstance(source, LabelSets) else counts


def label_notes(train: ImageSource, val: ImageSource, root: str, config: SourceConfig) -> list[str]:
    """Lines for the log on labels from a file: how many there are, by which a wrong separator shows; unused ones."""
    notes = []
    if isinstance(train, LabelSets):
        sizes = train.members.sum(1)[train.labels]
        none = f"{int((sizes == 0).sum()):,} images without any"
        notes.append(f"multi-label: {len(train.names)} classes, {sizes.mean():.2f} per image, {none}")
    unused = unused_lines(root, (train, val), config) if config.labels is not None else []
    if unused:
        notes.append(f"note: {len(unused)} names in {config.labels} are of no image: {some_names(unused)}")
    return notes


def training_source(weights: Weights) -> SourceConfig:
    """What the data of the training run was, as far as the checkpoint says it."""
    data = (weights.config or {}).get("data") or {}
    return SourceConfig.model_validate({key: data[key] for key in SourceConfig.model_fields if key in data})


def multilabel_set(
    path: Path, weights: Weights, loaded: Classifier, decoder: Decoder, options: EvaluationOptions
) -> EvaluationSet:
    """The validation images of the training run, or of `options.data`, with their labels; UserError where they cannot
    be had, or an option does not apply."""
    given = [f"--{key}" for key in ("sets", "tta") if getattr(options, key)]
    if given:
        raise UserError(f"{', '.join(given)} cannot be used with a multi-label checkpoint: leave it out")
    data = (weights.config or {}).get("data")
    if data is None:
        raise DataError(f"{path} does not hold the configuration of its run, which says where labels are: give best.pt")
    root, config = options.data or data["root"], training_source(weights)
    index = open_split(root, data["val"], key="val", classes=loaded.classes, config=config)
    assert isinstance(index, LabelSets)
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
        return MultiLabelReport(classes=index.names, rows=evaluator.rows, threshold=threshold, **about)

    return EvaluationSet("", index.root, len(index), batches, lambda device: MultiLabelEvaluator(threshold), report)
