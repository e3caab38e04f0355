"""The batch stream of every task: workers read whole batches, the device gets them and finishes them."""

import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field

from ddfnet.config import Section
from ddfnet.data.batches import Batch
from ddfnet.data.device_copy import DeviceCopy, to_device
from ddfnet.data.sampler import Request, TrainSampler, eval_indices
from ddfnet.data.workers import SecondIterationError, WorkerPool
from ddfnet.utils.errors import ConfigError

Finish = Callable[[Batch], Batch]
Name = Callable[[int], str]
StartMethod = Literal["auto", "fork", "forkserver", "spawn"]

_LENT = 2  # slots whose memory a caller may hold, or, of a CUDA device, that are left to the workers


class LoaderConfig(Section):
    """The keys of `data` that say how batches are read."""

    workers: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    """Processes per rank that read data. auto: this rank's part of the cores less one, at least 1, at most 16.
    0: read in the main process."""
    timeout: Annotated[float, Field(gt=0)] = 300.0
    """Seconds of waiting for a worker that does not get any further in its batch, after which the run stops and names
    the sample."""
    start_method: StartMethod = "auto"
    """How workers are started: fork, forkserver or spawn. auto: fork on Linux, else spawn."""

    called_elsewhere: ClassVar[dict[str, str]] = {"num_workers": "workers"}

    def without_effect(self) -> Iterator[tuple[str, str]]:
        yield from super().without_effect()
        if self.workers == 0:
            for key in ("timeout", "start_method"):
                yield key, "data.workers is 0"


def train_batches(
    read: Callable[[list[Request]], Batch],
    sampler: TrainSampler,
    finish: Finish,
    *,
    device: torch.device | str,
    workers: int | Literal["auto"],
    name: Name | None = None,
    timeout: float = 300.0,
    start_method: StartMethod = "auto",
) -> Iterator[Batch]:
    """The training batches of a whole run, in the sampler's order.

    Workers start at the call and live until the iterator is closed or dropped; they read ahead over the ends of epochs.
    Call this before the process starts other threads if you can: workers are forked on Linux.

    Args:
        read: runs in the workers; the requests of a micro-batch -> batch on the CPU. A DataError reaches the caller.
            It has to give the same each time it is called: what a worker was reading when it died is read again.
        finish: runs in this process, on a batch whose tensors are on the device ("index" and "repeat": on the CPU).
        workers: reading processes; 0 reads in this one; "auto": see `worker_count`.
        name: name of a sample, for messages.
        timeout, start_method: see `LoaderConfig`.

    Raises:
        DataError: workers die of the same batch again and again, hang, or cannot be started.
    """
    count = min(worker_count(workers), len(sampler))
    source = _source(read, count, device, name=name, timeout=timeout, start_method=start_method)
    return _training(source, sampler, finish)


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
    name: Name | None = None,
    timeout: float = 300.0,
    start_method: StartMethod = "auto",
) -> Iterable[Batch]:
    """This process's part of an evaluation set, every sample exactly once over all processes, nothing padded.

    Processes may have different numbers of batches, so collective operations belong after the loop. The result has a
    length, counted in reads, and may be iterated again, one iteration at a time: its workers stay.

    Args:
        read: indices -> one batch, or several where samples differ in size.
        length: number of samples in the set.
        batch_size: samples per read; the last one may have fewer.
        finish, workers, name, timeout, start_method: see `train_batches`.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    indices = eval_indices(length, rank, world_size)
    requests = [indices[start : start + batch_size] for start in range(0, len(indices), batch_size)]
    count = min(worker_count(workers), len(requests))

    start = partial(_source, read, count, device, name=name, timeout=timeout, start_method=start_method)
    return _EvalBatches(start, requests, finish)


def worker_count(workers: int | Literal["auto"]) -> int:
    """Workers of this rank; `auto`: its part of the usable cores less one, at least 1, at most 16."""
    if sys.platform == "win32":
        if workers not in (0, "auto"):
            raise ConfigError(f"data.workers={workers}: on Windows data is read in the main process, data.workers=0")
        return 0
    if workers != "auto":
        if workers < 0:
            raise ValueError(f"workers must be 0 or more, or auto, got {workers}")
        return int(workers)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if "RANK" not in os.environ and "SLURM_CPUS_PER_TASK" in os.environ:  # srun has given each rank cores of its own
        own = min(cores, int(os.environ["SLURM_CPUS_PER_TASK"]))
    else:
        own = cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return max(1, min(16, own - 1))


def _stream(source: "_Workers | _InProcess", requests: Iterable[Any], finish: Finish) -> Iterator[Batch]:
    for read in source.batches(requests):
        parts = deque(read if isinstance(read, list) else [read])
        del read  # what this frame does not hold, workers can write to again
        while parts:
            yield finish(parts.popleft())


def _training(source: "_Workers | _InProcess", requests: Iterable[Any], finish: Finish) -> Iterator[Batch]:
    try:
        yield from _stream(source, requests, finish)
    finally:
        source.close()  # an error's traceback would keep this frame, and the workers, alive


class _EvalBatches:
    def __init__(self, start: Callable[[], "_Workers | _InProcess"], requests: list[Any], finish: Finish) -> None:
        self.start, self.requests, self.finish = start, requests, finish
        self.source: _Workers | _InProcess | None = None

    def __len__(self) -> int:
        return len(self.requests)

    def __iter__(self) -> Iterator[Batch]:
        if self.source is None:
            self.source = self.start()
        return self._stream(self.source)

    def _stream(self, source: "_Workers | _InProcess") -> Iterator[Batch]:
        try:
            yield from _stream(source, self.requests, self.finish)
        except (GeneratorExit, SecondIterationError):
            raise
        except BaseException:
            self.source = None
            source.close()
            raise


def _source(
    read: Callable[[list[Any]], Any], count: int, device: torch.device | str, **options: Any
) -> "_Workers | _InProcess":
    return _Workers(WorkerPool(read, count, **options), torch.device(device)) if count else _InProcess(read, device)


class _InProcess:
    """Reads batches in this process."""

    def __init__(self, read: Callable[[list[Any]], Any], device: torch.device | str) -> None:
        self.read, self.device = read, device

    def batches(self, requests: Iterable[Any]) -> Iterator[Any]:
        return (to_device(self.read(list(batch)), self.device) for batch in requests)

    def close(self) -> None:
        pass


class _Workers:
    """Reads batches in workers."""

    def __init__(self, pool: WorkerPool, device: torch.device) -> None:
        self.pool, self.device = pool, device
        self.copy = DeviceCopy(pool.ring, device) if device.type == "cuda" else None

    def batches(self, requests: Iterable[Any]) -> Iterator[Any]:
        # What a device has copied is free again; what stays on the CPU is the caller's for as long as it likes.
        most = _LENT if self.copy is None else self.pool.ring.slots - _LENT
        return map(self._on_device, self.pool.batches(map(list, requests), lend=most))

    def close(self) -> None:
        if self.copy is not None:
            self.copy.close()
        self.pool.close()

    def _on_device(self, delivery: tuple[Any, int]) -> Any:
        value, slot = delivery
        if self.copy is None:
            return to_device(value, self.device)
        value, copied = self.copy(value, slot)
        self.pool.hold(slot, copied)
        return value
