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
from PIL import Image
from timm.data import ImageDataset, create_loader
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms import functional as F

from ddfnet.data.augment import AugmentConfig
from ddfnet.data.dataset import EvalDataset, TrainDataset
from ddfnet.data.decode import Decoder, open_rgb
from ddfnet.data.geometry import Geometry
from ddfnet.data.loader import eval_batches, train_batches
from ddfnet.data.memory import decode_all
from ddfnet.data.preprocessing import Preprocessing
from ddfnet.data.rng import GEOMETRY, uniforms
from ddfnet.data.sampler import Request, permutation
from ddfnet.data.sources import open_source
from ddfnet.data.sources.folder import FolderIndex, index_folder
from ddfnet.data.val_cache import ValCache

SEED = 0
_BICUBIC = InterpolationMode.BICUBIC


@dataclass(frozen=True)
class Work:
    """What every loader of a comparison does: batches of these requests of the images of a tree."""

    index: FolderIndex
    batches: list[list[Request]]
    size: int  # pixels
    train: bool
    recipe: str | None = None  # timm's string; None: crop and flip alone
    pad: bool = False  # crops of the padded image, as is usual with small ones, in place of random resized ones

    @property
    def root(self) -> Path:
        return Path(self.index.root)

    @property
    def augment(self) -> AugmentConfig:
        crop: Any = "pad" if self.pad else "random_resized"
        return AugmentConfig(crop=crop, interpolation="bicubic", color_jitter=0, rand_augment=self.recipe)

    @property
    def preprocessing(self) -> Preprocessing:
        return Preprocessing(size=self.size)


@dataclass(frozen=True)
class Plan:
    """What is read in a measurement."""

    batches: list[list[Request]]  # all of it
    images: int  # of a pass
    epoch: int  # batches that show each image once


def plan(count: int, images: int, *, turn: int = 10, passes: int, spare: int) -> Plan:
    """Passes over up to `images` of `count` images, about `images` in all, each as often as every other.

    Batches are of about `turn` images, whatever leaves out the fewest. One more pass warms up, and `spare` batches
    follow that workers read ahead.
    """
    chosen = permutation(count, 0, 0)[:images]
    batch = min(len(chosen), max(range(turn * 4 // 5, turn * 6 // 5 + 1), key=lambda size: len(chosen) // size * size))
    chosen = chosen[: len(chosen) // batch * batch]
    repeats = max(1, round(images / len(chosen)))
    needed = (passes + 1) * repeats * len(chosen) + spare * batch
    epochs = -(-needed // len(chosen))
    requests = [(e, int(chosen[j]), 0) for e in range(epochs) for j in permutation(len(chosen), 0, e)][:needed]
    batches = [requests[at : at + batch] for at in range(0, needed, batch)]
    return Plan(batches, repeats * len(chosen), len(chosen) // batch)


class Untimed:
    """Nanoseconds of CPU that a peer spends on what the comparison asks of it, one counter per worker.

    Learning which crop ddfnet draws, so that all make the same ones, is no work of theirs.
    """

    def __init__(self, workers: int) -> None:
        self.counters = multiprocessing.RawArray("q", max(1, workers))

    def ns(self) -> int:
        return sum(self.counters)


class _InOrder:
    """Images of a dataset in the order of the requests, whatever index its sampler asks for, cropped as ddfnet does."""

    def start(self, work: Work, untimed: Untimed) -> None:
        self.work, self.untimed, self.calls = work, untimed, 0
        self.index = work.index
        self.geometry = Geometry(work.preprocessing, work.augment)

    def __len__(self) -> int:
        return sum(map(len, self.work.batches))

    def request(self) -> int:
        """Index of the next image, whose draws are noted."""
        start = time.thread_time_ns()
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        batch, place = divmod(self.calls, len(self.work.batches[0]))
        self.calls += 1
        epoch, i, repeat = self.work.batches[batch * workers + worker][place]  # DataLoader deals batches out in turn
        self.draws = uniforms(GEOMETRY, SEED, epoch, [i], [repeat], self.geometry.count)[0].tolist()
        self.untimed.counters[worker] += time.thread_time_ns() - start
        return i

    def box(self, image: Any, scale: Any = None, ratio: Any = None) -> tuple[int, int, int, int]:
        """In place of the drawing of timm's crop: top, left, height, width."""
        _, height, width = F.get_dimensions(image)
        left, top, right, bottom = self.geometry.box(self.draws, width, height)
        return top, left, bottom - top, right - left

    def flip(self, image: Any) -> Any:
        """In place of a random horizontal flip."""
        return F.hflip(image) if self.draws[1] < self.work.augment.hflip else image

    def pad_crop(self, image: Any) -> Any:
        """In place of `RandomCrop(size, padding=size // 8)`."""
        size = self.work.size
        padded = F.pad(image, [size // 8])
        places = size // 8 * 2 + 1
        return F.crop(padded, int(self.draws[4] * places), int(self.draws[3] * places), size, size)


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
        if self.work.pad:
            return self.flip(self.pad_crop(image)), self.index.label(i)
        cropped = v2.functional.resized_crop(image, *self.box(image), [size, size], _BICUBIC, antialias=True)
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
        images = _TimmImages(work, untimed)
        loader: Any = create_loader(
            images,
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
        if work.train:
            steps = images.transform.transforms  # type: ignore[union-attr]
            steps[0].get_params, steps[1] = images.box, images.flip
            if work.pad:
                steps[0] = images.pad_crop
        return map(_first, iter(loader.loader))  # without the prefetcher around it, which normalizes

    return Loader(name, work, batches)


def torchvision_loader(name: str, work: Work) -> Loader:
    """torchvision's decoder and transforms v2 in a DataLoader."""

    def batches(workers: int, untimed: Untimed) -> Iterator[Tensor]:
        images = _TorchvisionImages(work, untimed)
        return map(_first, iter(DataLoader(images, len(work.batches[0]), num_workers=workers)))

    return Loader(name, work, batches)


def own_loader(
    name: str, work: Work, root: Path | None = None, *, on_device: bool = True, cache: Path | None = None
) -> Loader:
    """ddfnet's.

    Args:
        root: another form of the same images.
        on_device: the recipe's operations are drawn only: applying them is the device's work.
        cache: folder of a complete cache of the evaluation's images.
    """

    def batches(workers: int, _: Untimed) -> Iterator[Tensor]:
        dataset: Any = own_dataset(work, root, on_device=on_device, cache=cache)
        if dataset.is_quick:
            workers = 0  # as a run has it with data.workers=auto
        if work.train:
            stream = train_batches(dataset.read, work.batches, _same, device="cpu", workers=workers)  # type: ignore[arg-type]
            return map(_image, stream)
        count, batch = sum(map(len, work.batches)), len(work.batches[0])
        by_position = partial(_read_batch, dataset.read, work.batches)
        stream = iter(
            eval_batches(
                by_position, count, _same, batch_size=batch, rank=0, world_size=1, device="cpu", workers=workers
            )
        )
        return map(_image, stream)

    return Loader(name, work, batches)


def own_dataset(
    work: Work, root: Path | None = None, *, on_device: bool = True, cache: Path | None = None
) -> TrainDataset | EvalDataset:
    """What reads in ddfnet; small images from memory, as a run has it with data.cache=auto."""
    source, how = open_source(root or work.root), work.preprocessing
    if work.train:
        decoded = decode_all(source, Decoder()) if work.pad else None
        return TrainDataset(source, how, work.augment, seed=SEED, on_device=on_device, decoded=decoded)
    return EvalDataset(source, how, cache=None if cache is None else ValCache(cache, source, how))


def _read_batch(read: Callable, batches: list[list[Request]], positions: list[int]) -> dict[str, Any]:
    return read([i for _, i, _ in batches[positions[0] // len(batches[0])]])


def _first(batch: list[Tensor]) -> Tensor:
    return batch[0]


def _image(batch: dict[str, Any]) -> Tensor:
    return batch["image"]


def _same(batch: dict[str, Any]) -> dict[str, Any]:
    return batch


def make_small(root: Path, target: Path) -> Path:
    """The images of a tree as JPEGs of 32 x 32 pixels, in the same class folders."""
    index = index_folder(root)
    for i in range(len(index)):
        path = target / f"{index.key(i)}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        open_rgb(index.read(i)).resize((32, 32), Image.Resampling.LANCZOS).save(path, quality=95)
    return target
