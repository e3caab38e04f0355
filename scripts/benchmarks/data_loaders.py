"""The image loaders that data.py compares: timm's, ddfnet's and torchvision's, over one list of requests."""

import multiprocessing
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torchvision
from timm.data import ImageDataset, create_loader
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info
from torchvision.transforms import InterpolationMode, v2

from ddfnet.data.augment import AugmentConfig, train_transform
from ddfnet.data.dataset import EvalDataset, TrainDataset
from ddfnet.data.loader import eval_batches, train_batches
from ddfnet.data.preprocessing import Preprocessing, eval_transform
from ddfnet.data.rng import SAMPLE, entry_key, seed_generators
from ddfnet.data.sampler import Request
from ddfnet.data.sources import open_source
from ddfnet.data.sources.folder import FolderIndex

SEED = 0
_BICUBIC = InterpolationMode.BICUBIC


@dataclass(frozen=True)
class Work:
    """What every loader of a comparison does: batches of these requests of the images of a tree."""

    index: FolderIndex
    batches: list[list[Request]]
    size: int  # pixels
    train: bool
    recipe: str | None = None  # timm's string; None: random resized crop and flip alone

    @property
    def root(self) -> Path:
        return Path(self.index.root)

    @property
    def augment(self) -> AugmentConfig:
        return AugmentConfig(interpolation="bicubic", color_jitter=0, rand_augment=self.recipe)

    @property
    def preprocessing(self) -> Preprocessing:
        return Preprocessing(size=self.size)


class Untimed:
    """Nanoseconds of CPU that a peer spends on what the comparison asks of it, one counter per worker.

    Peers draw from generators that are seeded by nobody; seeding them before each image, so that all make the same
    crops, is no work of theirs.
    """

    def __init__(self, workers: int) -> None:
        self.counters = multiprocessing.RawArray("q", max(1, workers))

    def ns(self) -> int:
        return sum(self.counters)


class _InOrder:
    """Images of a dataset in the order of the requests, whatever index its sampler asks for."""

    def start(self, work: Work, untimed: Untimed) -> None:
        self.work, self.untimed, self.calls = work, untimed, 0
        self.index = work.index

    def __len__(self) -> int:
        return sum(map(len, self.work.batches))

    def request(self) -> int:
        """Index of the next image, with the generators seeded as ddfnet seeds them for it."""
        start = time.thread_time_ns()
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        batch, place = divmod(self.calls, len(self.work.batches[0]))
        self.calls += 1
        epoch, i, repeat = self.work.batches[batch * workers + worker][place]  # DataLoader deals batches out in turn
        if self.work.train:
            seed_generators(*entry_key(SAMPLE, SEED, epoch, i, repeat))
        self.untimed.counters[worker] += time.thread_time_ns() - start
        return i


class _TimmImages(_InOrder, ImageDataset):
    def __init__(self, work: Work, untimed: Untimed) -> None:
        ImageDataset.__init__(self, str(work.root))
        self.start(work, untimed)
        positions = {path: k for k, (path, _) in enumerate(self.reader.samples)}  # timm orders names in its own way
        self.position = [positions[self.index.name(i)] for i in range(len(self.index))]

    def __getitem__(self, _: int) -> tuple[Tensor, int]:
        return ImageDataset.__getitem__(self, self.position[self.request()])


class _TorchvisionImages(_InOrder, Dataset):
    """Decoded and transformed as tensors, with the crops that timm draws."""

    def __init__(self, work: Work, untimed: Untimed) -> None:
        self.start(work, untimed)
        size = work.preprocessing.size
        self.flip = v2.RandomHorizontalFlip(work.augment.hflip)
        short_side = int(size / work.preprocessing.crop_pct)
        self.eval = v2.Compose([v2.Resize(short_side, _BICUBIC, antialias=True), v2.CenterCrop(size)])

    def __getitem__(self, _: int) -> tuple[Tensor, int]:
        i, size = self.request(), self.work.size
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecated in favor of torchcodec, which is one more package
            data = torchvision.io.read_file(self.index.name(i))
            image = torchvision.io.decode_image(data, torchvision.io.ImageReadMode.RGB)
        if not self.work.train:
            return self.eval(image), self.index.label(i)
        augment = self.work.augment
        box = RandomResizedCropAndInterpolation.get_params(image, augment.scale, augment.ratio)
        cropped = v2.functional.resized_crop(image, *box, [size, size], _BICUBIC, antialias=True)
        return self.flip(cropped), self.index.label(i)


@dataclass(frozen=True)
class Loader:
    """One side of a comparison.

    Attributes:
        open: (number of workers, Untimed) -> the batches, uint8 (B, 3, size, size) on the CPU, not normalized: that is
            the device's work in all of them.
    """

    name: str
    work: Work
    open: Callable[[int, Untimed], Iterator[Tensor]]


def timm_loader(name: str, work: Work) -> Loader:
    """timm's `create_loader` over its `ImageDataset`."""

    def batches(workers: int, untimed: Untimed) -> Iterator[Tensor]:
        loader: Any = create_loader(
            _TimmImages(work, untimed),
            work.size,
            len(work.batches[0]),
            is_training=work.train,
            color_jitter=None,  # type: ignore[arg-type]
            auto_augment=work.recipe,
            interpolation="bicubic",
            crop_pct=work.preprocessing.crop_pct,
            num_workers=workers,
            device=torch.device("cpu"),
        )
        return map(_first, iter(loader.loader))  # without the prefetcher around it, which normalizes

    return Loader(name, work, batches)


def torchvision_loader(name: str, work: Work) -> Loader:
    """torchvision's decoder and transforms v2 in a DataLoader."""

    def batches(workers: int, untimed: Untimed) -> Iterator[Tensor]:
        images = _TorchvisionImages(work, untimed)
        return map(_first, iter(DataLoader(images, len(work.batches[0]), num_workers=workers)))

    return Loader(name, work, batches)


def own_loader(name: str, work: Work, root: Path | None = None) -> Loader:
    """ddfnet's, from another form of the same images if `root` is given."""

    def batches(workers: int, _: Untimed) -> Iterator[Tensor]:
        read = own_read(work, root)
        if work.train:
            return map(_image, train_batches(read, work.batches, _same, device="cpu", workers=workers))  # type: ignore[arg-type]
        count, batch = sum(map(len, work.batches)), len(work.batches[0])
        by_position = partial(_read_batch, read, work.batches)
        stream = eval_batches(
            by_position, count, _same, batch_size=batch, rank=0, world_size=1, device="cpu", workers=workers
        )
        return map(_image, iter(stream))

    return Loader(name, work, batches)


def own_read(work: Work, root: Path | None = None) -> Callable[[list[Any]], dict[str, Any]]:
    """What runs in ddfnet's workers: requests, or indices in an evaluation -> a batch."""
    source = open_source(root or work.root)
    if work.train:
        return TrainDataset(source, train_transform(work.preprocessing, work.augment), seed=SEED).read
    return EvalDataset(source, eval_transform(work.preprocessing)).read


def _read_batch(read: Callable, batches: list[list[Request]], positions: list[int]) -> dict[str, Any]:
    return read([i for _, i, _ in batches[positions[0] // len(batches[0])]])


def _first(batch: list[Tensor]) -> Tensor:
    return batch[0]


def _image(batch: dict[str, Any]) -> Tensor:
    return batch["image"]


def _same(batch: dict[str, Any]) -> dict[str, Any]:
    return batch
