"""Metrics of images with any number of classes: average precision and F1, each over classes and over all pairs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class ClassScore:
    """One class over all images; fractions in [0, 1], NaN where they are not defined."""

    positives: int  # images that have the class
    predicted: int  # images for which it is predicted, at the threshold
    average_precision: float
    precision: float
    recall: float
    f1: float


def average_precision(scores: np.ndarray, truth: np.ndarray) -> float:
    """Mean over the positives of the precision among all scores at least as high as theirs; NaN without positives.

    The area under the step curve of precision over recall, equal scores being one step. (N,) float and (N,) bool.
    """
    if not truth.any():
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    scores, hits = scores[order], np.cumsum(truth[order])
    last = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1)  # of each group of equal scores
    precision = hits[last] / (last + 1)
    return float((np.diff(hits[last], prepend=0) * precision).sum() / hits[-1])


def class_scores(logits: np.ndarray, truth: np.ndarray, predicted: np.ndarray) -> list[ClassScore]:
    """Of each class its figures; logits float, truth and predicted bool, all (N, classes)."""
    rows = []
    for column in range(truth.shape[1]):
        own, chosen = truth[:, column], predicted[:, column]
        both, positives, count = int((own & chosen).sum()), int(own.sum()), int(chosen.sum())
        precision = both / count if count else float("nan")
        recall = both / positives if positives else float("nan")
        f1 = 2 * both / (positives + count) if positives + count else float("nan")
        rows.append(ClassScore(positives, count, average_precision(logits[:, column], own), precision, recall, f1))
    return rows


METRICS = ("map_macro", "map_micro", "f1_macro", "f1_micro")  # higher is better; the first one ranks


def summary(logits: np.ndarray, truth: np.ndarray, predicted: np.ndarray, rows: list[ClassScore]) -> dict[str, float]:
    """`map_macro`, `map_micro`, `f1_macro`, `f1_micro`, in percent.

    macro: mean over the classes that some image has. micro: all pairs of image and class in one.
    """
    present = [row for row in rows if row.positives]
    total = int(truth.sum()) + int(predicted.sum())
    return {
        "map_macro": 100 * float(np.mean([row.average_precision for row in present] or [float("nan")])),
        "map_micro": 100 * average_precision(logits.ravel(), truth.ravel()),
        "f1_macro": 100 * float(np.mean([row.f1 for row in present] or [float("nan")])),
        "f1_micro": 100 * (2 * int((truth & predicted).sum()) / total if total else float("nan")),
    }


class MultiLabelEvaluator:
    """Keeps logits and targets of each image; `rows` has the figures of each class after `compute`.

    Args:
        threshold: of the sigmoid, from which on a class is predicted.
    """

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self.batches: list[tuple[Tensor, ...]] = []
        self.rows: list[ClassScore] = []

    @torch.no_grad()
    def update(self, model: nn.Module, batch: dict[str, Any]) -> None:
        """Adds one batch: `image` (B, 3, H, W), `target` float32 (B, classes) of 0 and 1, `index` int64 (B,)."""
        logits = model(batch["image"]).float()
        self.batches.append((batch["index"], logits, batch["target"] > 0))

    def state(self) -> tuple[Tensor, ...]:
        """Index, logits and targets of the images of this process, on the CPU; () if it had none."""
        return tuple(torch.cat([part.cpu() for part in column]) for column in zip(*self.batches, strict=True))

    def compute(self, states: Sequence[tuple[Tensor, ...]]) -> dict[str, float]:
        """The figures of `summary`, mean binary cross-entropy `loss`, and `n`, over the states of all processes."""
        index, logits, truth = (torch.cat(column) for column in zip(*(s for s in states if s), strict=True))
        order = index.argsort()
        logits, truth = logits[order], truth[order]
        predicted = (logits.sigmoid() >= self.threshold).numpy()
        loss = F.binary_cross_entropy_with_logits(logits.double(), truth.double()).item()
        scores, targets = logits.numpy(), truth.numpy()
        self.rows = class_scores(scores, targets, predicted)
        return {**summary(scores, targets, predicted, self.rows), "loss": loss, "n": len(index)}
