"""Reading labeled images: decode, augment, collate, and what happens when a file is corrupt."""

import logging
from collections.abc import Callable, Sequence

import torch
from PIL import Image
from torch.utils.data import default_collate

from ddfnet.data.batches import Batch
from ddfnet.data.decode import decode_error, open_rgb
from ddfnet.data.regions import RegionCrop
from ddfnet.data.ring import in_worker, reading
from ddfnet.data.rng import REPLACEMENT, SAMPLE, entry_key, key_seeds, keyed_generators, seed_generators
from ddfnet.data.sampler import Request
from ddfnet.data.sources import ImageSource
from ddfnet.utils.errors import DataError

Transform = Callable[[Image.Image], torch.Tensor]  # RGB -> uint8 (3, H, W)

_log = logging.getLogger("ddfnet")
_REPLACEMENT_ATTEMPTS = 4
_CORRUPT_FLOOR = 10  # so many corrupt files are tolerated, whatever their share: a small set would stop at its first


class TrainDataset:
    """Augmented training images.

    `dataset[(epoch, i, repeat)]` returns `(image, label, i, problem)`: image uint8 (3, H, W), `problem` an empty string
    or, if image i is corrupt, the reason. A corrupt image is replaced by another one of the set, drawn by (seed, epoch,
    i, attempt) and so the same one in each repeat, together with its label.

    Where several replacements in a row are corrupt as well, reading raises a DataError.

    Augmentation depends on (seed, epoch, i, repeat) alone: the global generators are keyed before each image. In the
    main process they are left as they were (about 0.15 ms per image); in a worker nobody else uses them.
    """

    def __init__(self, source: ImageSource, transform: Transform, *, seed: int) -> None:
        self.source, self.transform, self.seed = source, transform, seed
        self._region_crop = RegionCrop.of(source, transform)

    def __getitem__(self, request: Request) -> tuple[torch.Tensor, int, int, str]:
        epoch, i, repeat = request
        reading(i)
        key = entry_key(SAMPLE, self.seed, epoch, i, repeat)
        if in_worker():
            return self._augmented(epoch, i, key)
        with keyed_generators(*key):
            return self._augmented(epoch, i, key)

    def read(self, requests: list[Request]) -> Batch:
        """One micro-batch on the CPU: "image" uint8 (B, 3, H, W), "target", "index" and "repeat" int64 (B,), "epoch"
        int, "corrupt" [(index, reason)] of the images that were replaced."""
        images, labels, indices, problems = zip(*(self[request] for request in requests), strict=True)
        return {
            **_collate(images, labels, indices),
            "repeat": torch.tensor([repeat for _, _, repeat in requests], dtype=torch.int64),
            "epoch": requests[0][0],
            "corrupt": [(i, problem) for i, problem in zip(indices, problems, strict=True) if problem],
        }

    def _augmented(self, epoch: int, i: int, key: tuple[int, ...]) -> tuple[torch.Tensor, int, int, str]:
        """Image i or its replacement, augmented with draws of `key`; see `__getitem__`."""
        problem = ""
        for attempt in range(_REPLACEMENT_ATTEMPTS + 1):
            j = i if attempt == 0 else self._replacement(epoch, i, attempt)
            try:
                image, transform = self._decode(j, key)
            except Exception as error:
                problem = problem or decode_error(error)
                continue
            return transform(image), self.source.label(j), i, problem
        raise DataError(
            f"training image {self.source.name(i)} is corrupt ({problem}) and so are the {_REPLACEMENT_ATTEMPTS} "
            f"images tried in its place; find all of them with: python scripts/check_data.py {self.source.root}"
        )

    def _decode(self, j: int, key: tuple[int, ...]) -> tuple[Image.Image, Transform]:
        """Image j, or already a crop of it, and what remains to be done with it, which draws from generators as `key`
        leaves them."""
        if self._region_crop is not None and self._region_crop.applies(j):
            seed_generators(*key)
            return self._region_crop(j), self._region_crop.rest
        image = open_rgb(self.source.read(j))
        seed_generators(*key)
        return image, self.transform

    def _replacement(self, epoch: int, i: int, attempt: int) -> int:
        draw = key_seeds(REPLACEMENT, self.seed, epoch, i, attempt)[0]
        return (i + 1 + draw % max(1, len(self.source) - 1)) % len(self.source)


class EvalDataset:
    """Evaluation images: `dataset[i]` returns `(image, label, i)`, image uint8 (3, H, W).

    A corrupt image is a DataError with its name and the reason: an evaluation never replaces an image.
    """

    def __init__(self, source: ImageSource, transform: Transform) -> None:
        self.source, self.transform = source, transform

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int, int]:
        reading(i)
        try:
            image = open_rgb(self.source.read(i))
        except Exception as error:
            raise DataError(
                f"evaluation image {self.source.name(i)} is corrupt ({decode_error(error)}); restore the file: leaving "
                "it out would change the result"
            ) from error
        return self.transform(image), self.source.label(i), i

    def read(self, indices: list[int]) -> Batch:
        """One batch on the CPU: "image" uint8 (B, 3, H, W), "target" and "index" int64 (B,)."""
        return _collate(*zip(*(self[i] for i in indices), strict=True))


class CorruptImages:
    """Counts the corrupt training images of a run in this process, and stops it at more than `limit` of those read."""

    def __init__(self, source: ImageSource, limit: float) -> None:
        self.source, self.limit = source, limit
        self.read = self.replaced = 0
        self.files: set[int] = set()

    def count(self, batch: Batch) -> Batch:
        """Takes "corrupt" out of a batch of `TrainDataset.read` and logs each of its files once; DataError where more
        than `limit` of the images read so far, and more than 10 different ones, are corrupt."""
        corrupt = batch.pop("corrupt")
        self.read += len(batch["index"])
        self.replaced += len(corrupt)
        for i, reason in corrupt:
            if i not in self.files:
                self.files.add(i)
                name = self.source.name(i)
                _log.warning("corrupt training image %s (%s); another image takes its place", name, reason)
        if corrupt and len(self.files) > _CORRUPT_FLOOR and self.replaced > self.limit * self.read:
            i, reason = corrupt[-1]
            raise DataError(
                f"{len(self.files)} different training images are corrupt, {self.replaced / self.read:.2%} of those "
                f"read (limit {self.limit:.2%}), for example {self.source.name(i)} ({reason}). "
                f"List them with: python scripts/check_data.py {self.source.root}"
            )
        return batch


def _collate(images: Sequence[torch.Tensor], labels: Sequence[int], indices: Sequence[int]) -> Batch:
    # Images come from Pillow as H x W x C in memory. Stacked that way there is no transposition, and the batch is
    # channels_last from the start. In a worker, default_collate stacks straight into shared memory.
    stacked = default_collate([image.permute(1, 2, 0) for image in images])
    return {
        "image": stacked.permute(0, 3, 1, 2),
        "target": torch.tensor(labels, dtype=torch.int64),
        "index": torch.tensor(indices, dtype=torch.int64),
    }
