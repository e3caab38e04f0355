"""CPU time, start and memory of loaders in turn; distance of their pixels; the steps of ddfnet's own."""

import contextlib
import gc
import itertools
import math
import multiprocessing
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from ddfnet.data import dataset as dataset_module
from ddfnet.data import decode
from ddfnet.data.decode import open_rgb
from ddfnet.data.geometry import Geometry
from ddfnet.data.policy import Policy
from ddfnet.data.preprocessing import EvalTransform, eval_transform
from ddfnet.data.sources.store import Store, open_store
from ddfnet.data.val_cache import ValCache
from scripts.benchmarks.data_loaders import Loader, Untimed, Work

_STARTS = 3  # of each loader, for the time to its first batch


class Stream:
    """A running loader and the CPU time of all its processes."""

    def __init__(self, loader: Loader, workers: int) -> None:
        known = {process.pid for process in multiprocessing.active_children()}
        self.untimed = Untimed(workers)
        start = time.perf_counter()
        self.batches: Iterator[Tensor] | None = loader.open(workers, self.untimed)
        next(self.batches)
        self.first_batch_ms = 1e3 * (time.perf_counter() - start)
        self.workers = [process.pid for process in multiprocessing.active_children() if process.pid not in known]
        self.seen = 0
        self.settle()

    def settle(self) -> int:
        """Waits until the workers have read ahead and rest; nanoseconds of CPU that they took since the last time, less
        those that are not to be counted."""
        before, now = -1, self._workers_ns()
        while now != before or any(map(_runs, self.workers)):
            time.sleep(0.003)
            before, now = now, self._workers_ns()
        now -= self.untimed.ns()
        taken, self.seen = now - self.seen, now
        return taken

    def turn(self) -> int:
        """Takes one batch; nanoseconds of CPU of all processes. Workers are one or two batches ahead all the time, so
        in steady state that is the time of a batch, though not of this one."""
        start = time.process_time_ns()
        next(self.batches)  # type: ignore[arg-type]
        own = time.process_time_ns() - start
        return own + self.settle()

    def worker_mib(self) -> float | None:
        """Memory that a worker has for itself alone, the mean over the workers; None where the system does not tell."""
        sizes = []
        with contextlib.suppress(OSError):
            for worker in self.workers:
                lines = Path(f"/proc/{worker}/smaps_rollup").read_text().splitlines()
                sizes.append(sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024)
        return statistics.mean(sizes) if sizes else None

    def close(self) -> None:
        """Ends the workers."""
        self.batches = None
        if self.workers:
            gc.collect()  # timm's loader and its iterator hold each other

    def _workers_ns(self) -> int:
        # The clock of another process has this number in Linux: clock_getcpuclockid(3).
        return sum(time.clock_gettime_ns((~worker << 3) | 2) for worker in self.workers)


def _runs(worker: int) -> bool:
    """Whether a process runs, or would if it got a core or its disk."""
    return Path(f"/proc/{worker}/stat").read_text().rpartition(") ")[2][0] != "S"


def measure(loaders: Sequence[Loader], *, workers: int, images: int, passes: int) -> dict[str, dict[str, Any]]:
    """CPU milliseconds per image of each pass ("ms"), "first_batch_ms" and "worker_mib" of loaders that take turns.

    A turn is one batch of each loader, in an order shuffled every time. A pass is `images` images; one more pass before
    them warms up.
    """
    streams = {loader.name: Stream(loader, workers) for loader in loaders}
    batch = len(loaders[0].work.batches[0])
    result: dict[str, dict[str, Any]] = {name: {"ms": []} for name in streams}
    shuffled, order = list(streams), random.Random(0)  # the loaders use the global generator
    for number in range(passes + 1):
        total = dict.fromkeys(streams, 0)
        for _ in range(images // batch):
            order.shuffle(shuffled)
            for name in shuffled:
                total[name] += streams[name].turn()
        for name, ns in total.items() if number else ():
            result[name]["ms"].append(ns / 1e6 / images)
    for name, stream in streams.items():
        result[name]["worker_mib"] = stream.worker_mib()
        stream.close()
    starts: dict[str, list[float]] = {loader.name: [] for loader in loaders}
    for _, loader in itertools.product(range(_STARTS), loaders):
        stream = Stream(loader, workers)
        starts[loader.name].append(stream.first_batch_ms)
        stream.close()
    for name, times in starts.items():
        result[name]["first_batch_ms"] = statistics.median(times)
    return result


def distance(loader: Loader, reference: Loader, batches: int, other_size: Sequence[int] = ()) -> dict[str, Any]:
    """How far the pixels of the first batches are from the reference's; see `pixel_distance`.

    Images of `other_size` are left out: crops are drawn in whole pixels, so that an image of another size gets other
    crops from the same draws.
    """
    pairs = []
    both = zip(loader.open(0, Untimed(0)), reference.open(0, Untimed(0)), strict=True)
    for requests, (images, expected) in zip(loader.work.batches[:batches], both, strict=False):
        same = [place for place, (_, i, _) in enumerate(requests) if i not in other_size]
        pairs += list(zip(images[same], expected[same], strict=True))
    return pixel_distance(pairs)


def pixel_distance(pairs: Sequence[tuple[Tensor, Tensor]]) -> dict[str, Any]:
    """Of pairs of uint8 images: their number ("images"), "max" and "mean" absolute difference in levels of 255, and
    "psnr", the median in dB; None where half of the images and more are equal. All None without images."""
    if not pairs:
        return {"images": 0, "max": None, "mean": None, "psnr": None}
    differences = [(a.to(torch.float64) - b.to(torch.float64)).abs() for a, b in pairs]
    psnr = statistics.median(
        10 * math.log10(255**2 / error) if error else math.inf
        for error in (float(difference.square().mean()) for difference in differences)
    )
    return {
        "images": len(pairs),
        "max": int(max(difference.max() for difference in differences)),
        "mean": statistics.mean(float(difference.mean()) for difference in differences),
        "psnr": psnr if math.isfinite(psnr) else None,
    }


def resized(work: Work, store: Path) -> list[int]:
    """Those of the images that have another size in a store."""
    sizes = open_store(str(store)).sizes.tolist()
    chosen = sorted({i for batch in work.batches for _, i, _ in batch})
    return [i for i in chosen if list(open_rgb(work.index.read(i)).size) != sizes[i]]


def resized_distance(work: Work, store: Path, images: Sequence[int]) -> dict[str, Any]:
    """`pixel_distance` of images that a store has in another size: after the transform of an evaluation, which shows
    the same of both."""
    transform, source = eval_transform(work.preprocessing), open_store(str(store))
    return pixel_distance(
        [(transform(open_rgb(source.read(i))), transform(open_rgb(work.index.read(i)))) for i in images]
    )


def profile(dataset: Any, work: Work, batches: int) -> list[dict[str, Any]]:
    """CPU milliseconds per image of each step that ddfnet takes to read, measured in this process over some batches.

    "the rest" is all in between. Passing batches from process to process is not in it.
    """
    spent: dict[str, int] = {}
    with contextlib.ExitStack() as stack:

        def time_step(step: str, owner: Any, name: str) -> None:
            stack.enter_context(mock.patch.object(owner, name, _timed(getattr(owner, name), step, spent)))

        time_step("read the file", type(dataset.source), "read")
        if isinstance(dataset.source, Store):
            time_step("read and cut the region", Store, "read_region")
        time_step("decode", decode, "open_rgb")
        backends = {name: _timed(call, "decode", spent) for name, call in decode._BACKENDS.items()}
        stack.enter_context(mock.patch.dict(decode._BACKENDS, backends))
        if work.train:
            time_step("draw", dataset_module, "uniforms")
            time_step("crop, resize, flip", Geometry, "write_padded" if work.pad else "write")
            time_step("draw the operations", Policy, "draw")
            time_step("operations", Policy, "apply")
        else:
            time_step("resize, crop", EvalTransform, "write")
            time_step("read the cache", ValCache, "read")
        start = time.process_time_ns()
        for requests in work.batches[:batches]:
            dataset.read(requests if work.train else [i for _, i, _ in requests])
        total = time.process_time_ns() - start
    images = sum(map(len, work.batches[:batches]))
    spent["the rest"] = total - sum(spent.values())
    return [{"step": step, "ms": ns / 1e6 / images} for step, ns in spent.items()]


def _timed(call: Callable, step: str, spent: dict[str, int]) -> Callable:
    def timed(*arguments: Any, **options: Any) -> Any:
        start = time.process_time_ns()
        result = call(*arguments, **options)
        spent[step] = spent.get(step, 0) + time.process_time_ns() - start
        return result

    return timed
