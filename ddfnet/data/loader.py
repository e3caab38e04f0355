"""The batch stream of every task: DataLoader workers read whole batches, the device gets them and finishes them."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset

from ddfnet.data.batches import Batch
from ddfnet.data.sampler import Request, TrainSampler, eval_indices
from ddfnet.utils.errors import DataError

Finish = Callable[[Batch], Batch]

_ON_CPU = ("index", "repeat")  # name samples and key draws: they are read on the CPU


def train_batches(
    read: Callable[[list[Request]], Batch],
    sampler: TrainSampler,
    finish: Finish,
    *,
    device: torch.device | str,
    workers: int | Literal["auto"],
) -> Iterator[Batch]:
    """The training batches of a whole run, in the sampler's order.

    Workers start at the call and live until the iterator is closed or dropped; they read ahead over the ends of epochs.
    Call this before the process starts other threads if you can: workers are forked on Linux.

    Args:
        read: runs in the workers; the requests of a micro-batch -> batch on the CPU. A DataError reaches the caller.
        finish: runs in this process, on a batch whose tensors are on the device ("index" and "repeat": on the CPU).
        workers: reading processes; 0 reads in this one; "auto": see `worker_count`.
    """
    return _stream(iter(_loader(read, sampler, device, workers, persistent=False)), finish, device)


def eval_batches(
    read: Callable[[list[int]], Batch | list[Batch]],
    length: int,
    finish: Finish,
    *,
    batch_size: int,
    rank: int,
    world_size: int,
    device: torch.device | str,
    workers: int | Literal["auto"],
) -> Iterable[Batch]:
    """This process's part of an evaluation set, every sample exactly once over all processes, nothing padded.

    Processes may have different numbers of batches, so collective operations belong after the loop. The result has a
    length, counted in reads, and may be iterated again: its workers stay.

    Args:
        read: indices -> one batch, or several where samples differ in size.
        length: number of samples in the set.
        batch_size: samples per read; the last one may have fewer.
        finish, workers: see `train_batches`.
    """
    sampler = BatchSampler(eval_indices(length, rank, world_size), batch_size, drop_last=False)
    return _EvalBatches(_loader(read, sampler, device, workers, persistent=True), finish, device)


def worker_count(workers: int | Literal["auto"]) -> int:
    """DataLoader workers of this rank; `auto`: its part of the usable cores less one, at least 1, at most 16."""
    if workers != "auto":
        return int(workers)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    local_world_size = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return max(1, min(16, cores // local_world_size - 1))


class _Reader(Dataset):
    """Reads whole batches; runs in the workers."""

    def __init__(self, read: Callable[[list[Any]], Any]) -> None:
        self.read = read

    def __getitems__(self, requests: list[Any]) -> Batch | list[Batch] | DataError:
        try:
            return self.read(requests)
        except DataError as error:
            return error  # as a value: raised here, its message would reach the user inside a worker's traceback

    @staticmethod
    def as_read(batch: Any) -> Any:
        return batch


class _EvalBatches:
    def __init__(self, loader: DataLoader, finish: Finish, device: torch.device | str) -> None:
        self.loader, self.finish, self.device = loader, finish, device

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        return _stream(iter(self.loader), self.finish, self.device)


def _loader(
    read: Callable[[list[Any]], Any],
    batch_sampler: Any,
    device: torch.device | str,
    workers: int | Literal["auto"],
    *,
    persistent: bool,
) -> DataLoader:
    workers = worker_count(workers)
    fork = workers > 0 and sys.platform == "linux"
    return DataLoader(
        _Reader(read),
        batch_sampler=batch_sampler,
        collate_fn=_Reader.as_read,  # the reader has collated
        num_workers=workers,  # torch gives each worker one thread
        persistent_workers=persistent and workers > 0,
        worker_init_fn=_leave_signals_to_parent if fork else None,
        multiprocessing_context="fork" if fork else None,
        pin_memory=torch.device(device).type == "cuda",
        generator=torch.Generator(),  # else starting an iterator would draw from the caller's default generator
    )


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


def _stream(host_batches: Iterator[Any], finish: Finish, device: torch.device | str) -> Iterator[Batch]:
    try:
        for read in host_batches:
            if isinstance(read, DataError):
                raise DataError(str(read))  # a new one: raising `read` itself would tie this frame into a cycle
            for batch in read if isinstance(read, list) else [read]:
                yield finish(_to_device(batch, device))
    finally:
        del host_batches  # ends the workers now: an error's traceback would keep this frame, and them, alive


def _to_device(value: Any, device: torch.device | str) -> Any:
    """A copy of a batch with all tensors on the device, those in lists and dictionaries too, but for `_ON_CPU`."""
    if isinstance(value, torch.Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, dict):
        return {key: item if key in _ON_CPU else _to_device(item, device) for key, item in value.items()}
    return [_to_device(item, device) for item in value] if isinstance(value, list) else value
