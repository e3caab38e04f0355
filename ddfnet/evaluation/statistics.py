"""What a report says of a set of evaluated predictions: classes, confusions, calibration."""

from dataclasses import dataclass

import torch

from ddfnet.evaluation.predictions import Predictions

BINS = 15


@dataclass(frozen=True)
class ClassRow:
    """One class.

    Attributes:
        label: its label.
        n: its predictions.
        top1, top5: how many of them were right.
        confidence: mean over its predictions.
        taken_for: label its images were wrongly given most often; None where all were right.
        taken_for_count: how often.
    """

    label: int
    n: int
    top1: int
    top5: int
    confidence: float
    taken_for: int | None
    taken_for_count: int


@dataclass(frozen=True)
class Confusion:
    """`count` images of class `target` were taken for class `predicted`."""

    target: int
    predicted: int
    count: int


@dataclass(frozen=True)
class Calibration:
    """Confidence against accuracy in bins of equal width.

    Attributes:
        counts: images in each bin.
        accuracy, confidence: means in each bin, in [0, 1]; NaN in an empty bin.
        ece: expected calibration error in percent: the mean of |accuracy - confidence| over the bins, each weighed by
            its predictions.
    """

    counts: list[int]
    accuracy: list[float]
    confidence: list[float]
    ece: float


def confusions(predictions: Predictions) -> list[Confusion]:
    """All pairs of classes that were confused, the most frequent first, then in the order of labels."""
    wrong = ~predictions.right
    pairs = torch.stack([predictions.target[wrong], predictions.predicted[wrong]], 1)
    pairs, counts = pairs.unique(dim=0, return_counts=True)  # sorted by target, then by prediction
    order = counts.argsort(descending=True, stable=True)
    rows = zip(pairs[order].tolist(), counts[order].tolist(), strict=True)
    return [Confusion(target, predicted, count) for (target, predicted), count in rows]


def class_rows(predictions: Predictions) -> list[ClassRow]:
    """One row for each class that has predictions, in the order of labels."""
    size = int(predictions.target.max()) + 1

    def per_class(weights: torch.Tensor) -> list[float]:
        return torch.bincount(predictions.target, weights.double(), minlength=size).tolist()

    n = torch.bincount(predictions.target, minlength=size).tolist()
    top1, top5, confidence = map(per_class, (predictions.right, predictions.right5, predictions.confidence))
    worst: dict[int, Confusion] = {}
    for confusion in confusions(predictions):  # the most frequent of each class comes first
        worst.setdefault(confusion.target, confusion)
    rows = []
    for label in range(size):
        if n[label]:
            taken = worst.get(label)
            rows.append(
                ClassRow(
                    label,
                    n[label],
                    round(top1[label]),
                    round(top5[label]),
                    confidence[label] / n[label],
                    taken.predicted if taken else None,
                    taken.count if taken else 0,
                )
            )
    return rows


def calibration(predictions: Predictions, *, bins: int = BINS) -> Calibration:
    """Bins of confidence, ((i) / bins, (i + 1) / bins], as in Guo et al., arXiv 1706.04599."""
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64)[1:]
    place = torch.bucketize(predictions.confidence, edges).clamp_(max=bins - 1)
    counts = torch.bincount(place, minlength=bins).double()
    hits = torch.bincount(place, predictions.right.double(), minlength=bins)
    confidence = torch.bincount(place, predictions.confidence, minlength=bins)
    ece = 100 * ((hits - confidence).abs().sum() / len(predictions)).item()
    return Calibration(
        counts=[int(count) for count in counts],
        accuracy=(hits / counts).tolist(),
        confidence=(confidence / counts).tolist(),
        ece=ece,
    )


def worst_mistakes(predictions: Predictions, most: int) -> list[int]:
    """Rows of `predictions` of the wrong answers given with the highest confidence, worst first."""
    wrong = (~predictions.right).nonzero()[:, 0]
    order = predictions.confidence[wrong].argsort(descending=True, stable=True)
    return wrong[order][:most].tolist()
