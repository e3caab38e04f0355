"""Batches of detection data: images of different sizes in lists, flips keyed by what they belong to."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import BatchSampler, Dataset

from ddfnet.data.batches import Batch
from ddfnet.data.dataset import decode_error, open_rgb
from ddfnet.data.loader import make_loader, raise_if_failed
from ddfnet.data.rng import SAMPLE, key_seeds
from ddfnet.data.sampler import Request, TrainSampler, eval_indices
from ddfnet.tasks.detection.coco import CocoIndex
from ddfnet.utils.errors import DataError


def flip_boxes(boxes: np.ndarray, width: int) -> np.ndarray:
    """Boxes (n, 4) as x1, y1, x2, y2 of the image mirrored left to right."""
    return np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], axis=1)


def detection_train_batches(
    index: CocoIndex, *, sampler: TrainSampler, device: torch.device, num_workers: int, seed: int, hflip: float
) -> Iterator[Batch]:
    """The training batches of a whole run, in the sampler's order; see `ddfnet.data.loader.train_batches`.

    Args:
        hflip: probability that a image is mirrored; drawn by (seed, epoch, image).

    Returns:
        Iterator over one dictionary per micro-batch: "image", list of float32 (3, H, W) in [0, 1], and "target", list
        of {"boxes": float32 (n, 4) as x1, y1, x2, y2, "labels": int64 (n,), "image_id": int}, both on the device;
        "index", list of int.

    Raises:
        DataError: while iterating, on a broken image or one of another size than annotated.
    """
    reader = _Reader(index, seed=seed, hflip=hflip)
    return _stream(iter(make_loader(reader, sampler, device=device, num_workers=num_workers, persistent=False)), device)


def detection_eval_batches(
    index: CocoIndex, *, batch_size: int, rank: int, world_size: int, device: torch.device, num_workers: int
) -> Iterable[Batch]:
    """This process's share of an evaluation set, every image once over all processes; batches as in training."""
    requests = [(0, i, 0) for i in eval_indices(len(index), rank, world_size)]
    batches = BatchSampler(requests, batch_size, drop_last=False)
    return _EvalBatches(
        make_loader(_Reader(index), batches, device=device, num_workers=num_workers, persistent=True), device
    )


class _Reader(Dataset):
    """Reads whole batches; runs in the workers. Requests are those of `TrainSampler`."""

    def __init__(self, index: CocoIndex, *, seed: int = 0, hflip: float = 0.0) -> None:
        self.index, self.seed, self.hflip = index, seed, hflip

    def __getitems__(self, requests: list[Request]) -> Batch | DataError:
        try:
            images, targets = zip(*(self._read(epoch, i) for epoch, i, _ in requests), strict=True)
        except DataError as error:
            return error
        return {"image": list(images), "target": list(targets), "index": [i for _, i, _ in requests]}

    def _read(self, epoch: int, i: int) -> tuple[torch.Tensor, dict[str, Any]]:
        path = self.index.path(i)
        try:
            pixels = np.asarray(open_rgb(str(path)))
        except Exception as error:
            raise DataError(f"image {path} is broken ({decode_error(error)}): restore the file") from error
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


class _EvalBatches:
    def __init__(self, loader: Iterable[Batch | DataError], device: torch.device) -> None:
        self.loader, self.device = loader, device

    def __iter__(self) -> Iterator[Batch]:
        return _stream(iter(self.loader), self.device)


def _stream(host_batches: Iterator[Batch | DataError], device: torch.device) -> Iterator[Batch]:
    try:
        for batch in host_batches:
            raise_if_failed(batch)
            yield _to_device(batch, device)
    finally:
        del host_batches  # ends the workers now: an error's traceback would keep this frame, and them, alive


def _to_device(batch: Batch, device: torch.device) -> Batch:
    images = [image.to(device, non_blocking=True).float().div_(255) for image in batch["image"]]
    targets = [
        {k: v.to(device, non_blocking=True) if isinstance(v, torch.Tensor) else v for k, v in target.items()}
        for target in batch["target"]
    ]
    return {**batch, "image": images, "target": targets}
