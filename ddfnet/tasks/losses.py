"""Loss of classification: its section of the configuration, class weights, and the function."""

from collections.abc import Iterator, Sequence
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from timm.loss import BinaryCrossEntropy
from torch import Tensor, nn

from ddfnet.config import Section
from ddfnet.utils.errors import ConfigError
from ddfnet.utils.text import plural

_MOST_CLASSES = 20  # whose weights are printed one by one


class LossConfig(Section):
    name: Literal["cross_entropy", "bce"] = "cross_entropy"
    """bce: one binary cross-entropy per class."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    bce_threshold: Annotated[float, Field(gt=0, lt=1)] | None = None
    """bce: targets above it count as 1, the others as 0, so that each class in a mixed image is wholly there.
    null: targets as they are mixed."""
    bce_sum: bool = False
    """bce: sum over the classes, then mean over the images. false: mean over both."""
    bce_pos_weight: Annotated[float, Field(gt=0)] | None = None
    """bce: factor of the loss where the target is 1. null: 1."""
    class_weights: Literal["auto"] | list[Annotated[float, Field(ge=0)]] | None = None
    """A factor for each class, in the order of their names. auto: (1 / n_c) / mean over classes of (1 / n_c), n_c being
    the training images of class c, so that their mean is 1. They scale the terms of a class in the loss (its part of a
    mixed or smoothed target, its output in bce), which stays a mean over images. Evaluation is not weighted."""

    called_elsewhere: ClassVar[dict[str, str]] = {"smoothing": "label_smoothing"}

    def without_effect(self) -> Iterator[tuple[str, str]]:
        if self.name != "bce":
            for key in ("bce_threshold", "bce_sum", "bce_pos_weight"):
                yield key, f"loss.name is {self.name}"


def loss_keys_without_effect(loss: LossConfig, *, mixes: bool) -> Iterator[tuple[str, str]]:
    """`without_effect` of keys of `loss` that depend on whether images are mixed."""
    if loss.bce_threshold is None or loss.name != "bce" or mixes:
        return
    if not loss.label_smoothing:
        yield "loss.bce_threshold", "without mixing and label smoothing the targets are 0 and 1 already"
    elif loss.label_smoothing <= loss.bce_threshold < 1 - loss.label_smoothing:
        yield "loss.label_smoothing", "loss.bce_threshold makes the targets 0 and 1 again"


def class_weights(wanted: Literal["auto"] | Sequence[float], counts: np.ndarray, classes: Sequence[str]) -> Tensor:
    """The weight of each class, float32 (classes,).

    Args:
        wanted: `loss.class_weights`.
        counts: training images of each class.
        classes: their names.

    Raises:
        ConfigError: not one weight for each class, all are 0, or `auto` with a class without images.
    """
    if wanted == "auto":
        if not counts.all():
            empty = classes[int(np.argmin(counts))]
            raise ConfigError(f"loss.class_weights=auto: class {empty} has no training images: give a list of weights")
        inverse = 1 / counts.astype(np.float64)
        return torch.from_numpy(inverse / inverse.mean()).float()
    if len(wanted) != len(classes):
        names = ", ".join(classes[:_MOST_CLASSES]) + ", ..." * (len(classes) > _MOST_CLASSES)
        raise ConfigError(
            f"loss.class_weights has {len(wanted)} values, the training images have "
            f"{plural(len(classes), 'class', 'classes')}: give one "
            f"for each, in this order: {names}"
        )
    weights = torch.tensor([float(value) for value in wanted])
    if not weights.any():
        raise ConfigError("loss.class_weights are all 0: nothing would train")
    return weights


def describe_weights(weights: Tensor, classes: Sequence[str]) -> str:
    """One line for the log: each weight, or their range where there are many classes."""
    values = weights.tolist()
    if len(values) > _MOST_CLASSES:
        return f"class weights of {plural(len(values), 'class', 'classes')}: {min(values):.3g} to {max(values):.3g}"
    return "class weights: " + ", ".join(f"{name} {value:.3g}" for name, value in zip(classes, values, strict=True))


class ClassificationLoss(nn.Module):
    """The loss of `LossConfig`, a mean over the images of a batch, so that micro-batches and processes add up.

    `loss(logits, target)`: float32 (B, outputs), and labels int64 (B,) or targets float32 (B, outputs) in [0, 1], which
    come smoothed already. With t the target and w the class weights, the cross-entropy of an image is
    -sum over classes of t_c * w_c * log softmax(logits)_c: torch's, but always divided by the number of images (torch
    divides by the sum of the weights of the labels, which differs from micro-batch to micro-batch).

    Args:
        weights: of each class; outputs beyond them weigh 1. None: all alike.
        outputs: of the network.
    """

    weights: Tensor | None

    def __init__(self, config: LossConfig, weights: Tensor | None, *, outputs: int) -> None:
        super().__init__()
        if weights is not None:
            weights = torch.cat([weights, torch.ones(outputs - len(weights))])
        self.smoothing = config.label_smoothing
        self.register_buffer("weights", weights)
        self.bce = None
        if config.name == "bce":
            self.bce = BinaryCrossEntropy(
                config.label_smoothing,
                target_threshold=config.bce_threshold,
                weight=weights,
                sum_classes=config.bce_sum,
                pos_weight=config.bce_pos_weight,
            )

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        if self.bce is not None:
            return self.bce(logits, target)
        smoothing = 0.0 if target.is_floating_point() else self.smoothing
        if self.weights is None:
            return F.cross_entropy(logits, target, label_smoothing=smoothing)
        total = F.cross_entropy(logits, target, self.weights, label_smoothing=smoothing, reduction="sum")
        return total / len(logits)


def build_loss(
    config: LossConfig, counts: np.ndarray, classes: Sequence[str], *, outputs: int
) -> tuple[ClassificationLoss, list[str]]:
    """The loss for so many training images of each class, and lines for the log; ConfigError as `class_weights`."""
    if config.class_weights is None:
        return ClassificationLoss(config, None, outputs=outputs), []
    weights = class_weights(config.class_weights, counts, classes)
    return ClassificationLoss(config, weights, outputs=outputs), [describe_weights(weights, classes)]
