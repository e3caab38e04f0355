"""Statistics of a set of predictions: classes, confusions, calibration."""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ddfnet.evaluation.predictions import Predictions

BINS = 15


@dataclass(frozen=True)
class ClassRow:
    """One class: counts over its `n` images."""

    label: int
    n: int
    top1: int
    top5: int
    confidence: float  # mean
    predicted_as: int | None  # the most frequent wrong prediction; None where all are correct
    predicted_as_count: int


@dataclass(frozen=True)
class Confusion:
    """`count` images of class `target` were predicted as class `predicted`."""

    target: int
    predicted: int
    count: int


@dataclass(frozen=True)
class Calibration:
    """Confidence against accuracy in bins of equal width; means in [0, 1], NaN in an empty bin."""

    counts: list[int]  # images, or decisions, in each bin
    accuracy: list[float]
    confidence: list[float]
    ece: float  # expected calibration error in percent: mean |accuracy - confidence|, bins weighted by their images


def wilson_interval(hits: int, n: int) -> tuple[float, float]:
    """95 % confidence interval of a fraction `hits / n` of independent trials (Wilson 1927); n is at least 1."""
    z = 1.959964
    middle, spread = hits / n + z * z / (2 * n), z * math.sqrt(hits * (n - hits) / n + z * z / 4) / n
    low, high = ((middle + sign * spread) / (1 + z * z / n) for sign in (-1, 1))
    return max(0.0, low), min(1.0, high)


def confused_both_ways(pairs: Sequence[Confusion]) -> list[tuple[int, int, int, int, int]]:
    """Pairs of classes (a, b), a first in `pairs`, with the images confused in both directions together, and those of
    class a predicted as b and of b as a; the most frequent first."""
    ways = {(pair.target, pair.predicted): pair.count for pair in pairs}
    both = []
    for (a, b), count in ways.items():
        back = ways.get((b, a), 0)
        if back < count or (back == count and a < b):  # once, from the more frequent side
            both.append((a, b, count + back, count, back))
    return sorted(both, key=lambda pair: -pair[2])  # stable: the order of `pairs` breaks ties


def confusions(predictions: Predictions) -> list[Confusion]:
    """All pairs of classes that were confused, the most frequent first, then in the order of labels."""
    wrong = ~predictions.correct
    pairs = torch.stack([predictions.target[wrong], predictions.predicted[wrong]], 1)
    pairs, counts = pairs.unique(dim=0, return_counts=True)  # sorted by target, then by prediction
    order = counts.argsort(descending=True, stable=True)
    return [Confusion(*row) for row in torch.column_stack([pairs, counts])[order].tolist()]


def class_rows(predictions: Predictions) -> list[ClassRow]:
    """One row for each class that has images, in the order of labels."""
    columns = (torch.ones_like(predictions.confidence), predictions.correct, predictions.correct5)
    sums = [torch.bincount(predictions.target, column.double()) for column in (*columns, predictions.confidence)]
    worst: dict[int, Confusion] = {}
    for confusion in confusions(predictions):  # the most frequent of each class comes first
        worst.setdefault(confusion.target, confusion)
    rows = []
    for label, (n, top1, top5, confidence) in enumerate(torch.stack(sums, 1).tolist()):
        if n:
            wrong = worst.get(label)
            predicted = (wrong.predicted, wrong.count) if wrong else (None, 0)
            rows.append(ClassRow(label, int(n), int(top1), int(top5), confidence / n, *predicted))
    return rows


def per_class_csv(rows: Sequence[ClassRow], classes: Sequence[str], names: Sequence[str]) -> str:
    """One line per row; folder names and readable names in label order."""
    text = io.StringIO()
    write = csv.writer(text, lineterminator="\n").writerow
    head = "class", "name", "n", "top1_count", "top1_percent", "top5_count", "top5_percent", "mean_confidence"
    write([*head, "predicted_as", "predicted_as_name", "predicted_as_count"])
    for row in rows:
        i, other, percents = row.label, row.predicted_as, [f"{100 * hits / row.n:.2f}" for hits in (row.top1, row.top5)]
        predicted = ("", "", 0) if other is None else (classes[other], names[other], row.predicted_as_count)
        values = row.top1, percents[0], row.top5, percents[1], f"{row.confidence:.4f}"
        write([classes[i], names[i], row.n, *values, *predicted])
    return text.getvalue()


def calibration(predictions: Predictions, *, bins: int = BINS) -> Calibration:
    """Bins of confidence, ((i) / bins, (i + 1) / bins], as in Guo et al., arXiv 1706.04599."""
    return calibrated(predictions.confidence, predictions.correct, bins=bins)


def calibrated(confidence: Tensor, correct: Tensor, *, bins: int = BINS) -> Calibration:
    """`calibration` of (N,) probabilities, float64, of something that was so or not, (N,) bool."""
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64)[1:]
    bin_of = torch.bucketize(confidence, edges).clamp_(max=bins - 1)
    counts = torch.bincount(bin_of, minlength=bins).double()
    hits = torch.bincount(bin_of, correct.double(), minlength=bins)
    means = torch.bincount(bin_of, confidence, minlength=bins)
    ece = 100 * ((hits - means).abs().sum() / len(confidence)).item()
    return Calibration(counts.int().tolist(), (hits / counts).tolist(), (means / counts).tolist(), ece)


def worst_mistakes(predictions: Predictions, most: int) -> list[int]:
    """Rows of the wrong predictions of the highest confidence, the highest first."""
    wrong = (~predictions.correct).nonzero()[:, 0]
    order = predictions.confidence[wrong].argsort(descending=True, stable=True)
    return wrong[order][:most].tolist()
