#!/usr/bin/env python
"""Measure what it costs to bring batches from workers to the main process: ddfnet beside PyTorch's DataLoader.

    python scripts/benchmarks/transport.py
    python scripts/benchmarks/transport.py --size 176 --json transport.json

Workers fill uint8 batches with one value, and that is all they do. Rows:
    ring          ddfnet: batches are written where the main process finds them
    ring, copied  ddfnet, with a reader that makes its batches elsewhere
    DataLoader    the same batches, whole, through torch.utils.data.DataLoader
    timm          image by image through a DataLoader with timm's fast_collate, as its create_loader does

Figures are CPU milliseconds per image over all processes, medians over the passes with ranges in brackets. All loaders
are open at once and take turns. "filling" is the same work in the main process; it is in all the figures.

Exit code 0: measured; 2: bad arguments.
"""

import argparse
import gc
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run from a checkout without `pip install`

import numpy as np
import torch
from timm.data.loader import fast_collate
from torch.utils.data import DataLoader, Dataset

from ddfnet.data.loader import train_batches
from ddfnet.data.ring import empty
from ddfnet.utils.cli import HelpFormatter, at_least, run
from ddfnet.utils.environment import package_version
from ddfnet.utils.files import write_json
from ddfnet.utils.markdown import table
from scripts.benchmarks import common as bench
from scripts.benchmarks.data_loaders import Loader
from scripts.benchmarks.data_measure import Stream


class Filled(Dataset):
    """Batches, whole or image by image."""

    def __init__(self, size: int, make: Callable[..., torch.Tensor] = torch.empty) -> None:
        self.size, self.make = size, make

    def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
        return np.full((3, self.size, self.size), i % 256, np.uint8), i

    def __getitems__(self, indices: list[int]) -> dict[str, Any]:
        rows = self.make((len(indices), self.size, self.size, 3), dtype=torch.uint8).fill_(indices[0] % 256)
        labels = torch.tensor(indices)
        return {"image": rows.permute(0, 3, 1, 2), "target": labels, "index": labels.clone()}

    def read(self, requests: list[tuple[int, int, int]]) -> dict[str, Any]:
        return self.__getitems__([i for _, i, _ in requests])


class Images(Filled):
    __getitems__ = None  # type: ignore[assignment]


def loaders(size: int, batches: list[list[int]]) -> dict[str, Callable[[int], Iterator[Any]]]:
    """name -> (number of workers -> its batches)."""
    requests: Any = [[(0, i, 0) for i in batch] for batch in batches]
    fork = {"batch_sampler": batches, "multiprocessing_context": "fork"}

    def own(make: Callable[..., torch.Tensor], workers: int) -> Iterator[Any]:
        return train_batches(Filled(size, make).read, requests, _same, device="cpu", workers=workers)

    return {
        "ring": partial(own, empty),
        "ring, copied": partial(own, torch.empty),
        "DataLoader": lambda n: iter(DataLoader(Filled(size), num_workers=n, collate_fn=_same, **fork)),
        "timm": lambda n: iter(DataLoader(Images(size), num_workers=n, collate_fn=fast_collate, **fork)),
    }


def measure(size: int, batch: int, workers: int, passes: int, turns: int) -> dict[str, list[float]]:
    """name -> CPU milliseconds per image of each pass, of "filling" too; the first pass warms up and is left out."""
    spare = 4 * workers + 4
    batches = [[k * batch + i for i in range(batch)] for k in range((passes + 1) * turns + spare)]
    made = loaders(size, batches)
    any_work: Any = None
    streams = {
        name: Stream(Loader(name, any_work, lambda n, _, start=start: start(n)), workers)
        for name, start in made.items()
    }
    result: dict[str, list[float]] = {name: [] for name in (*streams, "filling")}
    order, here = random.Random(0), Filled(size)
    for number in range(passes + 1):
        total = dict.fromkeys(result, 0)
        for turn in range(turns):
            for name in order.sample(list(streams), len(streams)):
                total[name] += streams[name].turn()
            start = time.process_time_ns()
            here.__getitems__(batches[turn])
            total["filling"] += time.process_time_ns() - start
        for name, ns in total.items() if number else ():
            result[name].append(ns / 1e6 / turns / batch)
    for stream in streams.values():
        stream.close()
    gc.collect()
    return result


def _same(batch: Any) -> Any:
    return batch


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    add = partial(parser.add_argument, type=at_least(1))
    add("--size", default=224, help="pixels of a side (default: %(default)s)")
    add("--batch", default=128, help="images (default: %(default)s)")
    add("--workers", default=1, help="of each loader (default: %(default)s)")
    add("--passes", default=7, help="(default: %(default)s)")
    add("--turns", default=10, help="batches of each loader in a pass (default: %(default)s)")
    add("--json", type=Path, metavar="FILE", help="write the report here")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    environment = bench.environment(torch.device("cpu")) | {"timm": package_version("timm")}
    print(f"{bench.title(environment)}, timm {environment['timm']}", flush=True)
    settings = {key: getattr(arguments, key) for key in ("size", "batch", "workers", "passes", "turns")}
    ms = measure(**settings)
    rows = [
        (name, f"{statistics.median(all_):.4f} [{min(all_):.4f}, {max(all_):.4f}]") for name, all_ in ms.items()
    ]  # fmt: skip
    print(table(("loader", "CPU ms per image"), rows))
    if arguments.json:
        write_json(arguments.json, {"environment": environment, "settings": settings, "ms": ms})
    return 0


if __name__ == "__main__":
    run(main)
