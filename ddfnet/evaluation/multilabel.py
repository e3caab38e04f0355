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
    _, hits, precision = ranked(scores, truth)
    return float((np.diff(hits, prepend=0) * precision).sum() / hits[-1])


def ranked(scores: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The different scores, the highest first, and for each the positives among all scores at least as high, and their
    precision. (N,) float and (N,) bool."""
    order = np.argsort(-scores, kind="stable")
    scores, hits = scores[order], np.cumsum(truth[order])
    last = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1)  # of each group of equal scores
    return scores[last], hits[last], hits[last] / (last + 1)


def precision_recall_curve(scores: np.ndarray, truth: np.ndarray, most: int) -> np.ndarray:
    """(points, 3) of score, precision, recall, where recall rises, the highest score first; (0, 3) without positives.

    At most `most` points, evenly spread over those there are: with all of them, the sum of precision times the rise
    of recall is `average_precision`.
    """
    if not truth.any():
        return np.empty((0, 3))
    thresholds, hits, precision = ranked(scores, truth)
    rises = np.flatnonzero(np.diff(hits, prepend=0))
    rises = rises[np.linspace(0, len(rises) - 1, min(most, len(rises))).round().astype(int)]
    return np.stack([thresholds[rises], precision[rises], hits[rises] / hits[-1]], 1)


def best_f1(scores: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """The score from which on to predict for the highest F1, and that F1; the highest such score, NaN without
    positives. (N,) float and (N,) bool."""
    if not truth.any():
        return float("nan"), float("nan")
    thresholds, hits, precision = ranked(scores, truth)
    f1 = 2 * hits / (hits[-1] + hits / np.where(hits > 0, precision, 1))  # 0 where there is no hit
    best = int(f1.argmax())
    return float(thresholds[best]), float(f1[best])


def mistakes_together(missed: np.ndarray, alarms: np.ndarray) -> np.ndarray:
    """Images (classes + 1, classes + 1) int64: cell a, b has those in which a was missed and b is a false alarm; the
    last row has those in which nothing was missed, the last column those without a false alarm. Both (N, classes)."""
    # float32 counts exactly up to 2^24 images.
    rows, columns = (torch.from_numpy(np.column_stack([wrong, ~wrong.any(1)])).float() for wrong in (missed, alarms))
    return (rows.T @ columns).long().numpy()


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
    """Keeps logits and targets of each image, after `compute` in the order of the set; `rows` has the figures of each
    class then.

    Args:
        threshold: of the sigmoid, from which on a class is predicted.
    """

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self.batches: list[tuple[Tensor, ...]] = []
        self.rows: list[ClassScore] = []
        self.logits: Tensor  # float32 (N, classes), on the CPU
        self.truth: Tensor  # bool (N, classes)

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
        self.logits, self.truth = logits, truth = logits[order], truth[order]
        predicted = (logits.sigmoid() >= self.threshold).numpy()
        loss = F.binary_cross_entropy_with_logits(logits.double(), truth.double()).item()
        scores, targets = logits.numpy(), truth.numpy()
        self.rows = class_scores(scores, targets, predicted)
        return {**summary(scores, targets, predicted, self.rows), "loss": loss, "n": len(index)}
