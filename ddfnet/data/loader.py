"""Batches on the device: worker processes, transfer, and the count of broken images."""

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, default_collate

from ddfnet.data.batches import Batch
from ddfnet.data.dataset import EvalDataset, TrainDataset, Transform
from ddfnet.data.sampler import Request, TrainSampler, eval_indices
from ddfnet.data.sources.folder import FolderIndex
from ddfnet.utils.errors import DataError

_log = logging.getLogger("ddfnet")

_BROKEN_FLOOR = 10  # so many broken files are tolerated, whatever their share: a small set would stop at its first


def train_batches(
    index: FolderIndex,
    *,
    transform: Transform,
    batch_transform: Callable[[Batch], Batch],
    sampler: TrainSampler,
    device: torch.device | str,
    num_workers: int,
    seed: int,
    max_corrupt: float = 0.001,
) -> Iterator[Batch]:
    """The training batches of a whole run, in the sampler's order.

    Workers start at the call and live for the run; they read ahead over the ends of epochs. Call this before the
    process starts other threads if you can: workers are forked on Linux.

    Args:
        index: the training images.
        transform: PIL RGB image -> uint8 (3, H, W), see `train_transform`.
        batch_transform: runs on the device, see `TrainBatchTransform`.
        sampler: which images, in which order, from which step on.
        device: where the batches go.
        num_workers: reading processes; 0 reads in this one.
        seed: keys the augmentation.
        max_corrupt: largest share of broken images among those read by this process.

    Returns:
        Iterator over one dictionary per micro-batch: "image" and "target" on the device (see `TrainBatchTransform`),
        "index" and "repeat" int64 (B,) on the CPU, "epoch" int. Closing it, or dropping it, ends the workers.

    Raises:
        DataError: while iterating, if more than `max_corrupt` of the images (and more than 10 different ones) are
            broken.
    """
    reader = _TrainReader(TrainDataset(index, transform, seed=seed))
    loader = make_loader(reader, sampler, device=device, num_workers=num_workers, persistent=False)
    monitor = _BrokenImages(index, max_corrupt)
    return _train_stream(iter(loader), monitor, batch_transform, torch.device(device))


def eval_batches(
    index: FolderIndex,
    *,
    transform: Transform,
    batch_transform: Callable[[Batch], Batch],
    batch_size: int,
    rank: int,
    world_size: int,
    device: torch.device | str,
    num_workers: int,
) -> Iterable[Batch]:
    """This process's share of an evaluation set, every image exactly once over all processes, nothing padded.

    Arguments as in `train_batches`; `batch_size` is per process, the last batch may be smaller. Processes may have
    different numbers of batches, so collective operations belong after the loop.

    Returns:
        Iterable with a length, to be used as often as wished (workers stay), over dictionaries: "image" and "target"
        (int64) on the device, "index" int64 (B,) on the CPU.

    Raises:
        DataError: while iterating, on a broken image.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    reader = _EvalReader(EvalDataset(index, transform))
    batches = BatchSampler(eval_indices(len(index), rank, world_size), batch_size, drop_last=False)
    loader = make_loader(reader, batches, device=device, num_workers=num_workers, persistent=True)
    return _EvalBatches(loader, batch_transform, torch.device(device))


class _TrainReader(Dataset):
    """Reads whole batches; runs in the workers."""

    def __init__(self, dataset: TrainDataset) -> None:
        self.dataset = dataset

    def __getitems__(self, requests: list[Request]) -> Batch | DataError:
        try:
            images, labels, indices, problems = zip(*(self.dataset[request] for request in requests), strict=True)
        except DataError as error:
            return error  # as a value: raised here, its message would reach the user inside a worker's traceback
        broken = [(i, problem) for i, problem in zip(indices, problems, strict=True) if problem]
        return {
            **_collate(images, labels, indices),
            "repeat": torch.tensor([repeat for _, _, repeat in requests], dtype=torch.int64),
            "epoch": requests[0][0],
            "broken": broken,
        }


class _EvalReader(Dataset):
    """Reads whole batches; runs in the workers."""

    def __init__(self, dataset: EvalDataset) -> None:
        self.dataset = dataset

    def __getitems__(self, requests: list[int]) -> Batch | DataError:
        try:
            return _collate(*zip(*(self.dataset[i] for i in requests), strict=True))
        except DataError as error:
            return error


def _collate(images: tuple[torch.Tensor, ...], labels: tuple[int, ...], indices: tuple[int, ...]) -> Batch:
    # Images come from Pillow as H x W x C in memory. Stacked that way there is no transposition, and the batch is
    # channels_last from the start. In a worker, default_collate stacks straight into shared memory.
    stacked = default_collate([image.permute(1, 2, 0) for image in images])
    return {
        "image": stacked.permute(0, 3, 1, 2),
        "target": torch.tensor(labels, dtype=torch.int64),
        "index": torch.tensor(indices, dtype=torch.int64),
    }


def _as_read(batch: Any) -> Any:
    return batch


def _leave_signals_to_parent(worker_id: int) -> None:
    """In a worker: obey SIGTERM of the parent process only, and neither SIGINT nor SIGUSR1.

    Ctrl-C, torchrun and schedulers signal whole process groups. A worker that died of that would break the step that
    the main process is about to finish.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    # A handler would not learn who sent the signal; a thread that waits for it does.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()


def _end_with_parent(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)  # as torch's own handler does, which this one replaces


def make_loader(
    reader: Dataset, batch_sampler: Any, *, device: torch.device | str, num_workers: int, persistent: bool
) -> DataLoader:
    """A DataLoader of whole batches, the same way for every task.

    Args:
        reader: its `__getitems__` gets what the sampler yields and returns a collated batch; a `DataError` it returns
            (not raises: that would come out as a worker's traceback), see `raise_if_failed`.
        batch_sampler: iterable of requests, with a length.
        device: pinned memory where it is a GPU.
        num_workers: reading processes; 0 reads in this one.
        persistent: workers stay from one iteration to the next.
    """
    if num_workers < 0:
        raise ValueError(f"num_workers must not be negative, got {num_workers}")
    fork = num_workers > 0 and sys.platform == "linux"
    return DataLoader(
        reader,
        batch_sampler=batch_sampler,
        collate_fn=_as_read,  # the reader has collated
        num_workers=num_workers,  # torch gives each worker one thread
        persistent_workers=persistent and num_workers > 0,
        worker_init_fn=_leave_signals_to_parent if fork else None,
        multiprocessing_context="fork" if fork else None,
        pin_memory=torch.device(device).type == "cuda",
        generator=torch.Generator(),  # else starting an iterator would draw from the caller's default generator
    )


def raise_if_failed(batch: Batch | DataError) -> None:
    """Raises the error that a reader returned in place of a batch."""
    if isinstance(batch, DataError):
        raise DataError(str(batch))  # a new one: raising `batch` itself would tie the caller's frame into a cycle


def _to_device(batch: Batch, device: torch.device) -> Batch:
    moved = {key: batch[key].to(device, non_blocking=True) for key in ("image", "target")}
    return {**batch, **moved}


def _train_stream(
    host_batches: Iterator[Batch | DataError],
    monitor: "_BrokenImages",
    batch_transform: Callable[[Batch], Batch],
    device: torch.device,
) -> Iterator[Batch]:
    try:
        for batch in host_batches:
            raise_if_failed(batch)
            monitor.update(len(batch["index"]), batch.pop("broken"))
            yield batch_transform(_to_device(batch, device))
    finally:
        del host_batches  # ends the workers now: an error's traceback would keep this frame, and them, alive


class _EvalBatches:
    def __init__(self, loader: DataLoader, batch_transform: Callable[[Batch], Batch], device: torch.device) -> None:
        self.loader = loader
        self.batch_transform = batch_transform
        self.device = device

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.loader:
            raise_if_failed(batch)
            yield self.batch_transform(_to_device(batch, self.device))


class _BrokenImages:
    """Counts and reports the broken images of a run, and stops it when there are too many."""

    def __init__(self, index: FolderIndex, max_corrupt: float) -> None:
        self.index = index
        self.max_corrupt = max_corrupt
        self.read = 0
        self.replaced = 0
        self.files: set[int] = set()

    def update(self, count: int, broken: list[tuple[int, str]]) -> None:
        """Account for a batch of `count` images of which `broken` [(index, reason)] were replaced."""
        self.read += count
        self.replaced += len(broken)
        for i, reason in broken:
            if i not in self.files:
                self.files.add(i)
                _log.warning("broken training image %s (%s); another image takes its place", self.index.path(i), reason)
        if broken and len(self.files) > _BROKEN_FLOOR and self.replaced > self.max_corrupt * self.read:
            i, reason = broken[-1]
            raise DataError(
                f"{len(self.files)} different training images are broken, {self.replaced / self.read:.2%} of those "
                f"read (limit {self.max_corrupt:.2%}), for example {self.index.path(i)} ({reason}). "
                f"List them with: python scripts/check_data.py {self.index.root}"
            )


def worker_count(workers: int | str) -> int:
    """Loader processes of this rank; `auto`: its share of the usable cores less one, at least 1, at most 16."""
    if workers != "auto":
        return int(workers)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    local_world_size = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return max(1, min(16, cores // local_world_size - 1))
