"""Batches of detection data: images of different sizes in lists, flips keyed by what they belong to."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from ddfnet.data.batches import Batch
from ddfnet.data.decode import decode_error, open_rgb, verdict
from ddfnet.data.image_file import MAX_PIXELS
from ddfnet.data.ring import reading
from ddfnet.data.rng import SAMPLE, key_seeds
from ddfnet.data.sampler import Request
from ddfnet.tasks.detection.coco import CocoIndex
from ddfnet.utils.errors import DataError


class DetectionReader:
    """Batches on the CPU, for `ddfnet.data.loader`.

    A batch holds "image", list of uint8 (3, H, W); "target", list of {"boxes": float32 (n, 4) as x1, y1, x2, y2,
    "labels": int64 (n,), "image_id": int}; and "index", list of int. A corrupt image, or one of another size than
    annotated, is a DataError. Flips are drawn by (seed, epoch, image).
    """

    def __init__(self, index: CocoIndex, *, seed: int = 0, hflip: float = 0.0, max_pixels: float = MAX_PIXELS) -> None:
        self.index, self.seed, self.hflip, self.max_pixels = index, seed, hflip, max_pixels

    def read(self, requests: list[Request]) -> Batch:
        images, targets = zip(*(self._sample(epoch, i) for epoch, i, _ in requests), strict=True)
        return {"image": list(images), "target": list(targets), "index": [i for _, i, _ in requests]}

    def read_eval(self, indices: list[int]) -> Batch:
        return self.read([(0, i, 0) for i in indices])

    def _sample(self, epoch: int, i: int) -> tuple[torch.Tensor, dict[str, Any]]:
        reading(i)
        path = self.index.name(i)
        try:
            pixels = np.asarray(open_rgb(Path(path).read_bytes(), self.max_pixels))
        except Exception as error:
            reason = decode_error(error)
            what = verdict(reason)
            raise DataError(f"image {path} is {what} ({reason}){': restore the file' * (what == 'corrupt')}") from error
        size = tuple(self.index.sizes[i].tolist())
        if pixels.shape[1::-1] != size:
            raise DataError(
                f"image {path} has {pixels.shape[1]} x {pixels.shape[0]} pixels, {self.index.file} says "
                f"{size[0]} x {size[1]}: its boxes would be wrong; restore the file that was annotated"
            )
        boxes, labels = self.index.objects(i)
        # A draw of its own, and not one from a generator: it depends on nothing but seed, epoch and image.
        if self.hflip and key_seeds(SAMPLE, self.seed, epoch, i)[0] < self.hflip * 2.0**64:
            pixels, boxes = pixels[:, ::-1], flip_boxes(boxes, size[0])
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))), {
            "boxes": torch.from_numpy(boxes),
            "labels": torch.from_numpy(labels),
            "image_id": int(self.index.ids[i]),
        }


def flip_boxes(boxes: np.ndarray, width: int) -> np.ndarray:
    """Boxes (n, 4) as x1, y1, x2, y2 of the image mirrored left to right."""
    return np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], axis=1)


def scale_images(batch: Batch) -> Batch:
    """The batch with images float32 in [0, 1]."""
    return {**batch, "image": [image.float().div_(255) for image in batch["image"]]}
