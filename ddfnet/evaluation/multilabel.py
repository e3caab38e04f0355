"""Metrics of images with any number of classes: average precision and F1, each over classes and over all pairs."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

CURVE_POINTS = 64
_COLUMNS = 64  # classes that are looked at in one go
_NAN = 0  # key of what is below every number


@dataclass(frozen=True)
class ClassScore:
    """One class over all images; fractions in [0, 1], NaN where they are not defined."""

    positives: int  # images that have the class
    predicted: int  # images for which it is predicted, at the threshold
    average_precision: float
    precision: float
    recall: float
    f1: float
    curve: np.ndarray = field(compare=False)  # `Ranking.curve` of at most CURVE_POINTS
    best: tuple[float, float] = field(compare=False)  # `Ranking.best_f1`


@dataclass(frozen=True)
class Ranking:
    """The different scores of a class, the highest first, from one sort.

    Args:
        thresholds: float32 (scores,); NaN, of a network that answers so, comes last.
        hits, chosen: int64 (scores,), the positives, and all images, whose score is at least as high.
    """

    thresholds: np.ndarray
    hits: np.ndarray
    chosen: np.ndarray

    @classmethod
    def of(cls, scores: np.ndarray, truth: np.ndarray) -> "Ranking":
        """Of (N,) float32 and (N,) bool."""
        # A number that sorts as the score does, with the truth as its last bit: nothing has to follow the sort.
        bits = (scores.astype(np.float32) + np.float32(0)).view(np.uint32)  # -0 is 0
        keys = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))
        keys[np.isnan(scores)] = _NAN
        packed = keys.astype(np.uint64) << np.uint64(1) | truth
        packed.sort()
        packed = packed[::-1]
        keys = (packed >> np.uint64(1)).astype(np.uint32)
        last = np.append(np.flatnonzero(keys[1:] != keys[:-1]), len(keys) - 1)  # of each group of equal scores
        hits = np.cumsum((packed & np.uint64(1)).astype(bool), dtype=np.int64)[last]
        keys = keys[last]
        bits = np.where(keys >> 31, keys & np.uint32((1 << 31) - 1), ~keys)
        return cls(bits.view(np.float32), hits, last + 1)

    @cached_property
    def precision(self) -> np.ndarray:
        """Positives among all scores at least as high, float64 (scores,)."""
        return self.hits / self.chosen

    @property
    def average_precision(self) -> float:
        """Mean over the positives of the precision among all scores at least as high as theirs; NaN without positives.

        The area under the step curve of precision over recall, equal scores being one step.
        """
        if not self.hits[-1]:
            return float("nan")
        return float((np.diff(self.hits, prepend=0) * self.precision).sum() / self.hits[-1])

    def curve(self, most: int) -> np.ndarray:
        """(points, 3) of score, precision, recall, where recall rises, the highest score first; (0, 3) without
        positives.

        At most `most` points, evenly spread over those there are: with all of them, the sum of precision times the
        rise of recall is `average_precision`.
        """
        if not self.hits[-1]:
            return np.empty((0, 3))
        rises = np.flatnonzero(np.diff(self.hits, prepend=0))
        rises = rises[np.linspace(0, len(rises) - 1, min(most, len(rises))).round().astype(int)]
        return np.stack([self.thresholds[rises], self.precision[rises], self.hits[rises] / self.hits[-1]], 1)

    @property
    def best_f1(self) -> tuple[float, float]:
        """The score from which on to predict for the highest F1, and that F1; the highest such score, NaN without
        positives."""
        if not self.hits[-1]:
            return float("nan"), float("nan")
        f1 = 2 * self.hits / (self.hits[-1] + self.chosen)
        best = int(f1.argmax())
        return float(self.thresholds[best]), float(f1[best])


def mistakes_together(missed: np.ndarray, alarms: np.ndarray) -> np.ndarray:
    """Images (classes + 1, classes + 1) int64: cell a, b has those in which a was missed and b is a false alarm; the
    last row has those in which nothing was missed, the last column those without a false alarm. Both (N, classes)."""
    # float32 counts exactly up to 2^24 images.
    rows, columns = (torch.from_numpy(np.column_stack([wrong, ~wrong.any(1)])).float() for wrong in (missed, alarms))
    return (rows.T @ columns).long().numpy()


def class_scores(logits: np.ndarray, truth: np.ndarray, predicted: np.ndarray) -> list[ClassScore]:
    """Of each class its figures; logits float, truth and predicted bool, all (N, classes)."""
    both, positives, chosen = (part.sum(0).tolist() for part in (truth & predicted, truth, predicted))
    rows = []
    for start in range(0, truth.shape[1], _COLUMNS):
        columns = (np.ascontiguousarray(part[:, start : start + _COLUMNS].T) for part in (logits, truth))
        for column, (scores, own) in enumerate(zip(*columns, strict=True), start):
            ranking, hits = Ranking.of(scores, own), both[column]
            precision = hits / chosen[column] if chosen[column] else float("nan")
            recall = hits / positives[column] if positives[column] else float("nan")
            total = positives[column] + chosen[column]
            f1 = 2 * hits / total if total else float("nan")
            counts, area = (positives[column], chosen[column]), ranking.average_precision
            rows.append(ClassScore(*counts, area, precision, recall, f1, ranking.curve(CURVE_POINTS), ranking.best_f1))
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
        "map_micro": 100 * Ranking.of(logits.ravel(), truth.ravel()).average_precision,
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
