"""Reading labeled images: decode, crop, augment, and what happens when a file is corrupt."""

import logging
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ddfnet.data.augment import AugmentConfig
from ddfnet.data.batches import Batch
from ddfnet.data.decode import Decoder, decode_error, verdict
from ddfnet.data.geometry import Geometry
from ddfnet.data.jpeg import Box
from ddfnet.data.memory import DecodedImages
from ddfnet.data.policy import Policy
from ddfnet.data.preprocessing import EvalTransform, Preprocessing
from ddfnet.data.ring import empty, reading
from ddfnet.data.rng import GEOMETRY, POLICY, REPLACEMENT, key_seeds, uniforms
from ddfnet.data.sampler import Request
from ddfnet.data.sources import ImageSource
from ddfnet.data.sources.classes import some_names
from ddfnet.data.sources.store import Store
from ddfnet.data.val_cache import ValCache
from ddfnet.utils.errors import DataError
from ddfnet.utils.text import plural

_log = logging.getLogger("ddfnet")
_REPLACEMENT_ATTEMPTS = 4
_CORRUPT_FLOOR = 10  # so many corrupt files are tolerated, whatever their share: a small set would stop at its first


class TrainDataset:
    """Augmented training images, read by batches.

    A corrupt image is replaced by another one of the set, drawn by (seed, epoch, i, attempt) and so the same one in
    each repeat, together with its label. Where several replacements in a row are corrupt as well, reading raises a
    DataError.

    Augmentation depends on (seed, epoch, i, repeat) alone, and no global generator is used. Of stores, the region of a
    random crop is read and decoded where that gives the same pixels.

    Args:
        preprocessing: what the crops are to be; its size is theirs.
        on_device: the policy is drawn only, and applied to the batch by `TrainBatchTransform`.
        decoder: None: the fastest installed.
        decoded: the images of the source, in memory.
    """

    def __init__(
        self,
        source: ImageSource,
        preprocessing: Preprocessing,
        augment: AugmentConfig,
        *,
        seed: int,
        on_device: bool = False,
        decoder: Decoder | None = None,
        decoded: DecodedImages | None = None,
    ) -> None:
        self.source, self.seed, self.on_device, self.decoded = source, seed, on_device, decoded
        self.geometry, self.policy = Geometry(preprocessing, augment), Policy.of(augment, preprocessing)
        self.decoder = decoder or Decoder(channels=self.geometry.channels)
        self._padded: np.ndarray | None = None  # all images, where batches are mere copies of parts of them
        if decoded is not None and decoded.equal_sized and self.geometry.pads(*decoded.sizes[0].tolist()):
            self._padded, self.decoded = self.geometry.padded(decoded.stacked()), None
            self._labels = np.array([source.label(i) for i in range(len(source))], np.int64)

    @property
    def is_quick(self) -> bool:
        """Whether reading a batch takes a few microseconds per image: copies from memory."""
        return self._padded is not None and (self.policy is None or self.on_device)

    def __getitem__(self, request: Request) -> tuple[Tensor, int, int, str]:
        """`(image, label, i, problem)` of a request `(epoch, i, repeat)`: image uint8 (C, H, W); `problem` is an empty
        string or, if image i is corrupt, the reason. The policy is not applied where that is the device's work."""
        batch = self.read([request])
        problem = batch["corrupt"][0][1] if batch["corrupt"] else ""
        return batch["image"][0], int(batch["target"][0]), request[1], problem

    def read(self, requests: list[Request]) -> Batch:
        """One micro-batch of an epoch, on the CPU: "image" uint8 (B, C, H, W), channels last in memory; "target",
        "index" and "repeat" int64 (B,); "epoch" int; "corrupt" [(index, reason)] of the images that were replaced; and
        "policy", the `PolicyTable`, where there is one and `on_device`."""
        epoch = requests[0][0]
        indices, repeats = (np.array(column, np.int64) for column in list(zip(*requests, strict=True))[1:])
        geometry = self.geometry
        rows = empty((len(requests), geometry.height, geometry.width, geometry.channels), torch.uint8)
        draws = uniforms(GEOMETRY, self.seed, epoch, indices, repeats, self.geometry.count)
        target, corrupt = self._crops(epoch, indices, draws, rows)
        batch: Batch = {
            "image": rows.permute(0, 3, 1, 2),
            "target": torch.from_numpy(target),
            "index": torch.from_numpy(indices),
            "repeat": torch.from_numpy(repeats),
            "epoch": epoch,
            "corrupt": corrupt,
        }
        if self.policy is not None:
            table = self.policy.draw(uniforms(POLICY, self.seed, epoch, indices, repeats, self.policy.count))
            if self.on_device:
                batch["policy"] = torch.from_numpy(table)
            else:
                for b, row in enumerate(rows.numpy()):
                    image = Image.fromarray(row if geometry.channels == 3 else np.repeat(row, 3, axis=2))  # gray as RGB
                    row[...] = np.asarray(self.policy.apply(image, table, b))[..., : geometry.channels]
        return batch

    def _crops(
        self, epoch: int, indices: np.ndarray, draws: np.ndarray, rows: Tensor
    ) -> tuple[np.ndarray, list[tuple[int, str]]]:
        """Writes the crops of a batch; labels, and (index, reason) of the images that were replaced."""
        if self._padded is not None:
            self.geometry.write_padded(self._padded, indices, draws, rows)
            return self._labels[indices], []
        each = zip(indices.tolist(), draws.tolist(), rows, strict=True)
        found = [self._crop(epoch, i, own, row) for i, own, row in each]
        corrupt = [(i, problem) for i, (_, problem) in zip(indices.tolist(), found, strict=True) if problem]
        return np.array([label for label, _ in found], np.int64), corrupt

    def _crop(self, epoch: int, i: int, draws: list[float], row: Tensor) -> tuple[int, str]:
        """Writes the crop of image i or of its replacement; its label, and what was wrong with image i."""
        problem = ""
        reading(i)
        for attempt in range(_REPLACEMENT_ATTEMPTS + 1):
            j = i if attempt == 0 else self._replacement(epoch, i, attempt)
            try:
                pixels, box = self._pixels(j, draws)
            except Exception as error:
                problem = problem or decode_error(error)
                continue
            self.geometry.write(pixels, draws, row, box)
            return self.source.label(j), problem
        raise DataError(
            f"training image {self.source.name(i)} is {verdict(problem)} ({problem}) and so are the "
            f"{_REPLACEMENT_ATTEMPTS} images tried in its place; find all of them with: "
            f"python scripts/check_data.py {self.source.root}"
        )

    def _pixels(self, j: int, draws: list[float]) -> tuple[np.ndarray, Box | None]:
        """Image j, or a region of it and the place of its crop there; what the decoder raises where it is damaged."""
        pixels = self.decoded.pixels(j) if self.decoded is not None else None
        if pixels is not None:
            return pixels, None
        source = self.source
        if self.geometry.pad is not None:
            return self.decoder(source.read(j)), None
        if not (isinstance(source, Store) and source.intervals[j]):
            return self.decoder.crop(source.read(j), partial(self.geometry.box, draws))
        left, top, right, bottom = self.geometry.box(draws, *source.sizes[j].tolist())
        data, x, y = source.read_region(j, (left, top, right, bottom))
        pixels = self.decoder(data)
        if pixels.shape[0] < bottom - y or pixels.shape[1] < right - x:
            raise ValueError("the image has not the size that the index of the store gives")
        return pixels, (left - x, top - y, right - x, bottom - y)

    def _replacement(self, epoch: int, i: int, attempt: int) -> int:
        draw = key_seeds(REPLACEMENT, self.seed, epoch, i, attempt)[0]
        return (i + 1 + draw % max(1, len(self.source) - 1)) % len(self.source)


class EvalDataset:
    """Evaluation images as a network expects them: `dataset[i]` returns `(image, label, i)`, image uint8 (C, H, W).

    A corrupt image is a DataError with its name and the reason: an evaluation never replaces an image. Where the images
    are in memory it is raised at once, else by whoever reads that image.

    Args:
        decoder: None: the fastest installed.
        decoded: the images of the source, in memory.
        cache: where transformed images are kept.
    """

    def __init__(
        self,
        source: ImageSource,
        preprocessing: Preprocessing,
        *,
        decoder: Decoder | None = None,
        decoded: DecodedImages | None = None,
        cache: ValCache | None = None,
    ) -> None:
        self.source, self.decoded, self.cache = source, decoded, cache
        self.transform = EvalTransform(preprocessing)
        self.decoder = decoder or Decoder(channels=self.transform.channels)
        # Tried again: a disk that did not answer once is no reason to end.
        again = [(i, self._fault(i)) for i, _ in decoded.faults] if decoded is not None else []
        if faults := [fault for fault in again if fault[1]]:
            raise self._unreadable(faults)

    @property
    def is_quick(self) -> bool:
        """Whether reading a batch takes a few microseconds per image: copies from memory or a complete cache."""
        decoded, transform = self.decoded, self.transform
        if decoded is not None:
            sides = transform.height, transform.width
            own = decoded.equal_sized and tuple(decoded.sizes[0].tolist()) == sides
            return own and transform.resized(*sides) == sides
        return self.cache is not None and self.cache.complete

    def __getitem__(self, i: int) -> tuple[Tensor, int, int]:
        batch = self.read([i])
        return batch["image"][0], int(batch["target"][0]), i

    def read(self, indices: list[int]) -> Batch:
        """One batch on the CPU: "image" uint8 (B, C, H, W), channels last; "target" and "index" int64 (B,)."""
        transform, cache = self.transform, self.cache
        rows = empty((len(indices), transform.height, transform.width, transform.channels), torch.uint8)
        arrays = rows.numpy()
        for b, i in enumerate(indices):
            reading(i)
            if cache is None:
                transform.write(self._pixels(i), rows[b])
            elif not cache.read(i, arrays[b]):
                transform.write(self._pixels(i), rows[b])
                cache.write(i, arrays[b])
        return {
            "image": rows.permute(0, 3, 1, 2),
            "target": torch.tensor([self.source.label(i) for i in indices], dtype=torch.int64),
            "index": torch.tensor(indices, dtype=torch.int64),
        }

    def _pixels(self, i: int) -> np.ndarray:
        pixels = self.decoded.pixels(i) if self.decoded is not None else None
        if pixels is not None:
            return pixels
        try:
            return self.decoder(self.source.read(i))
        except Exception as error:
            raise self._unreadable([(i, decode_error(error))]) from error

    def _fault(self, i: int) -> str:
        """Why image i cannot be read; empty where it can."""
        try:
            self.decoder(self.source.read(i))
        except Exception as error:
            return decode_error(error)
        return ""

    def _unreadable(self, faults: Sequence[tuple[int, str]]) -> DataError:
        (i, reason), others = faults[0], len(faults) - 1
        what = verdict(reason)
        advice = "restore the file: " if what == "corrupt" else ""
        advice += "leaving it out would change the result"
        text = f"evaluation image {self.source.name(i)} is {what} ({reason}); {advice}"
        if what == "corrupt" and self.decoded is None:
            text += f". All that are corrupt: python scripts/check_data.py {self.source.root}"
        if others:
            names = some_names([self.source.name(j) for j, _ in faults[1:]])
            text += f". {plural(others, 'other image')} cannot be read either: {names}"
        return DataError(text)


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
                _log.warning("%s training image %s (%s); another image takes its place", verdict(reason), name, reason)
        if corrupt and len(self.files) > _CORRUPT_FLOOR and self.replaced > self.limit * self.read:
            i, reason = corrupt[-1]
            raise DataError(
                f"{len(self.files)} different training images are corrupt, {self.replaced / self.read:.2%} of those "
                f"read (limit {self.limit:.2%}), for example {self.source.name(i)} ({reason}). "
                f"List them with: python scripts/check_data.py {self.source.root}"
            )
        return batch
