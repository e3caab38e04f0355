"""COCO's mean average precision, by pycocotools, exact however many processes share the images."""

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from ddfnet.tasks.detection.coco import CocoIndex

METRICS = ("map", "map50", "map75", "map_small", "map_medium", "map_large")
Record = tuple[int, np.ndarray, np.ndarray, np.ndarray]  # image id, boxes (n, 4) x1 y1 x2 y2, scores (n,), labels (n,)


class DetectionEvaluator:
    """Collects detections per image; `compute` compares them with the annotations.

    The network sees one image at a time: in a batch, images are padded to one size, which changes what it computes
    near their borders (and the pooled features of DDF everywhere), so the result would depend on which images meet.
    """

    def __init__(self, index: CocoIndex) -> None:
        self.index = index
        self.records: list[Record] = []

    @torch.no_grad()
    def update(self, model: nn.Module, batch: dict[str, Any]) -> None:
        """Adds one batch: lists `image` (3, H, W) and `target`, of which only `image_id` is read."""
        for image, target in zip(batch["image"], batch["target"], strict=True):
            detections = model([image])[0]
            arrays = (detections[key].cpu().numpy() for key in ("boxes", "scores", "labels"))
            self.records.append((target["image_id"], *arrays))

    def state(self) -> list[Record]:
        """The records of this process."""
        return self.records

    def compute(self, states: Sequence[list[Record]]) -> dict[str, float]:
        """Metrics of all images seen, in percent: `map` (mean over classes and over IoU thresholds 0.5, 0.55, ...,
        0.95), `map50`, `map75` (at one threshold), `map_small`, `map_medium`, `map_large` (objects below 32 x 32
        pixels, up to 96 x 96, above); and `n`, the images. -1, as in pycocotools, where they show no such object."""
        # By id: what comes first among equal scores must not depend on who computed it.
        records = sorted((record for state in states for record in state), key=lambda record: record[0])
        seen = [record[0] for record in records]
        if len(set(seen)) != len(seen):
            raise RuntimeError(f"{len(seen) - len(set(seen))} images were evaluated twice")
        stats = _evaluate(self.index, records)
        values = [100 * float(value) if value >= 0 else -1.0 for value in stats[: len(METRICS)]]
        return {**dict(zip(METRICS, values, strict=True)), "n": len(records)}


def _evaluate(index: CocoIndex, records: list[Record]) -> np.ndarray:
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        evaluation = COCOeval(_truth(index), _detections(index, records), "bbox")
        evaluation.params.imgIds = [record[0] for record in records]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats


def _truth(index: CocoIndex) -> Any:
    owners = np.repeat(index.ids, np.diff(index.offsets)).tolist()
    columns = (owners, index.labels.tolist(), index.boxes.tolist(), index.areas.tolist(), index.crowd.tolist())
    keys = ("image_id", "category_id", "bbox", "area", "iscrowd")
    return _coco(index, [dict(zip(keys, row, strict=True)) for row in zip(*columns, strict=True)])


def _detections(index: CocoIndex, records: list[Record]) -> Any:
    annotations = []
    for image_id, boxes, scores, labels in records:
        sides = boxes[:, 2:].astype(np.float64) - boxes[:, :2]
        rows = np.concatenate([boxes[:, :2], sides], axis=1).tolist()
        for box, score, label in zip(rows, scores.tolist(), labels.tolist(), strict=True):
            entry = {"image_id": image_id, "category_id": label, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
            annotations.append({**entry, "score": score})
    return _coco(index, annotations)


def _coco(index: CocoIndex, annotations: list[dict[str, Any]]) -> Any:
    """pycocotools' container, filled in memory. Labels take the place of category ids, in the same order."""
    from pycocotools.coco import COCO

    coco = COCO()
    coco.dataset = {
        "images": [{"id": i} for i in index.ids.tolist()],
        "categories": [{"id": row + 1, "name": c["name"]} for row, c in enumerate(index.categories)],
        # From 1: pycocotools takes the id 0 for "not matched".
        "annotations": [{**entry, "id": i} for i, entry in enumerate(annotations, 1)],
    }
    coco.createIndex()
    return coco
