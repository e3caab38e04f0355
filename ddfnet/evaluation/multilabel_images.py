"""Which images of a multi-label evaluation report.html shows, and what it says of each."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, zip_longest
from typing import Any

import numpy as np
import torch

from ddfnet.evaluation.image_sets import ImageSet
from ddfnet.evaluation.page_images import FEW_CLASSES, MOST_THUMBNAILS, PAIRS, PER_WAY, in_turn, short_name
from ddfnet.pages.pack import pack

MOST_ITEMS = 60_000  # images with a mistake that the page lists; of more, those that are wrong by most
WORST = 12  # images of either kind of mistake
MOST_LABELS = 12  # of an image: mistakes first, then what was found, then the most probable others
FEWEST_LABELS = 5
EXAMPLES = 2  # images of a label without a mistake
_ROWS = 4096  # images that are looked at in one go
OTHER, FOUND, MISSED, ALARM, NOTHING = range(5)  # what a label is for an image; NOTHING: no label stands here


@dataclass(frozen=True)
class Decisions:
    """For each image and label the sigmoid, whether the image has it and whether it is predicted; (N, labels)."""

    probability: np.ndarray  # float32
    truth: np.ndarray  # bool
    predicted: np.ndarray  # bool

    @cached_property
    def missed(self) -> np.ndarray:
        return self.truth & ~self.predicted

    @cached_property
    def alarms(self) -> np.ndarray:
        return self.predicted & ~self.truth

    @cached_property
    def error(self) -> np.ndarray:
        """How wrong each mistake is, |probability - truth|, float32; 0 where there is none."""
        wrong = self.missed | self.alarms
        return np.where(wrong, np.nan_to_num(np.abs(self.probability - self.truth), nan=1.0), np.float32(0))

    @cached_property
    def worst(self) -> np.ndarray:
        """The largest error of each image (N,)."""
        return self.error.max(1)


def decisions_of(logits: torch.Tensor, truth: torch.Tensor, threshold: float) -> Decisions:
    """Of float32 logits and bool truth (N, labels): as the evaluation decided."""
    probability = logits.sigmoid()
    return Decisions(probability.numpy(), truth.numpy(), (probability >= threshold).numpy())


@dataclass
class Chosen:
    """Rows of the evaluation."""

    items: list[int]  # all that the page speaks of: those with mistakes first
    mistakes: int  # how many of them have a mistake
    missed: list[int]  # the least probable of the missed labels
    alarms: list[int]  # the most probable of the false alarms
    top: list[int]  # three of the label that is found worst
    thumbnails: list[int]  # the most wanted first


def choose(own: Decisions, labels: Sequence[int], cells: Sequence[tuple[int, int, int]]) -> Chosen:
    """Chooses the images; `labels`: those with mistakes, the worst first; `cells` of `mistakes_together`, the most
    frequent first."""
    wrong = np.flatnonzero(own.worst)
    mistakes = wrong[np.argsort(-own.worst[wrong], kind="stable")][:MOST_ITEMS].tolist()
    missed, alarms = _worst(own.missed, own.error), _worst(own.alarms, own.error)
    top = _of_label(own, labels[0])[:3] if labels else []
    wanted = top + missed + alarms
    for a, b, _ in cells[:PAIRS]:
        wanted += _of_cell(own, a, b)
    shown = range(own.truth.shape[1]) if own.truth.shape[1] <= FEW_CLASSES else labels[:FEW_CLASSES]
    right = list(dict.fromkeys(chain.from_iterable(_right(own, label) for label in shown)))
    if len(top) < 3 and labels:  # few were mistaken: beside them, images in which the label was found
        top = list(dict.fromkeys(top + [i for i in right if own.truth[i, labels[0]]]))[:3]
    wanted += right + top
    queues: list[Iterator[int]] = [iter(_of_label(own, label)) for label in labels[:MOST_THUMBNAILS]]
    wanted += in_turn(queues, MOST_THUMBNAILS)
    thumbnails = list(dict.fromkeys(wanted))[:MOST_THUMBNAILS]
    items = list(dict.fromkeys([*mistakes, *thumbnails]))
    return Chosen(items, len(mistakes), missed, alarms, top, thumbnails)


def item_data(own: Decisions, images: ImageSet, rows: Sequence[int]) -> dict[str, Any]:
    """What the page says of images: up to MOST_LABELS labels of each with their probability, the highest first, what
    they are for it, and how many it has, were missed and are false alarms in all. Packed: there may be tens of
    thousands."""
    parts: dict[str, list[np.ndarray]] = defaultdict(list)
    for start in range(0, len(rows), _ROWS):
        for key, values in _labels_of(own, np.asarray(rows[start : start + _ROWS])).items():
            parts[key].append(values)
    return {**{key: pack(np.concatenate(values)) for key, values in parts.items()},
            "name": [short_name(images, i) for i in rows]}  # fmt: skip


def _labels_of(own: Decisions, rows: np.ndarray) -> dict[str, np.ndarray]:
    probability, truth, predicted = own.probability[rows], own.truth[rows], own.predicted[rows]
    kind = np.select([truth & predicted, truth, predicted], [FOUND, MISSED, ALARM], OTHER)
    p = np.nan_to_num(probability)
    wanted = np.select([own.error[rows] > 0, kind == FOUND], [2 + own.error[rows], 1 + p], p)
    width = min(MOST_LABELS, truth.shape[1])
    label = np.argsort(-wanted, axis=1, kind="stable")[:, :width]
    count = np.clip((kind != OTHER).sum(1), min(FEWEST_LABELS, width), width)
    kept = np.arange(width) < count[:, None]
    order = np.argsort(np.where(kept, -np.take_along_axis(p, label, 1), 1), axis=1, kind="stable")
    label = np.take_along_axis(label, order, 1)
    return {
        "label": label,
        "probability": np.take_along_axis(probability, label, 1),
        "kind": np.where(kept, np.take_along_axis(kind, label, 1), NOTHING),
        "true": truth.sum(1),
        "missed": own.missed[rows].sum(1),
        "alarms": own.alarms[rows].sum(1),
    }


def _worst(wrong: np.ndarray, error: np.ndarray) -> list[int]:
    """Images with the largest errors among these mistakes."""
    worst = np.where(wrong, error, 0).max(1)
    rows = np.flatnonzero(worst)
    return rows[np.argsort(-worst[rows], kind="stable")][:WORST].tolist()


def _of_label(own: Decisions, label: int) -> list[int]:
    """Images in which a label is mistaken, missed and false alarms in turn, the most wrong first."""
    rows = [np.flatnonzero(kind[:, label]) for kind in (own.missed, own.alarms)]
    sorted_rows = [some[np.argsort(-own.error[some, label], kind="stable")].tolist() for some in rows]
    longer, shorter = sorted(sorted_rows, key=len, reverse=True)
    return [i for pair in zip_longest(longer, shorter) for i in pair if i is not None]


def _of_cell(own: Decisions, a: int, b: int) -> list[int]:
    """Images in which a was missed and b is a false alarm; a or b behind the last label: nothing was, none is."""
    classes = own.truth.shape[1]
    rows = own.missed[:, a] if a < classes else ~own.missed.any(1)
    rows = rows & (own.alarms[:, b] if b < classes else ~own.alarms.any(1))
    found = np.flatnonzero(rows)
    return found[np.argsort(-own.worst[found], kind="stable")][:PER_WAY].tolist()


def _right(own: Decisions, label: int) -> list[int]:
    """Images of a label without any mistake, those of the least probability first."""
    rows = np.flatnonzero(own.truth[:, label] & (own.worst == 0))
    return rows[np.argsort(own.probability[rows, label], kind="stable")][:EXAMPLES].tolist()
