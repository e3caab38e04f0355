"""Two training loops in turn, train.py's own and a bare one: the library of engine.py."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from PIL import Image
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ddfnet.engine.distributed import LOCAL_BUFFERS
from ddfnet.engine.run_checkpoints import RunCheckpoints
from ddfnet.engine.saver import CheckpointSaver
from ddfnet.engine.train import train
from ddfnet.tasks import load_config
from ddfnet.tasks.classification import ClassificationTask

CLASSES = 10
WARM_UP = 2  # blocks that are not counted
CONFIG = """
model: {{name: {model}, num_classes: {classes}}}
data: {{root: {root}, workers: {workers}, input: {{size: {size}}}}}
optim: {{lr: 0.01}}
train: {{epochs: 100, batch_size: {batch}, device_batch_size: {device_batch}}}
run: {{dir: {folder}, tensorboard: false}}
"""


class Measured(BaseException):
    """All blocks have been run: ends the run of train.py, which treats no BaseException but its own."""


class Alternating:
    """The data of train.py's run: one batch again and again; between two blocks of its steps the bare loop has one."""

    def __init__(
        self, task: ClassificationTask, batch: dict[str, Any], device: torch.device, block: int, blocks: int
    ) -> None:
        self.batch, self.device, self.block, self.blocks = batch, device, block, blocks
        self.model: nn.Module = task.build_model().to(device)
        if task.config.train.channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)
        self.model.train()
        if dist.is_initialized():
            self.model = DistributedDataParallel(self.model, gradient_as_bucket_view=True, **LOCAL_BUFFERS)
        optim = task.config.optim
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), lr=0.01, momentum=optim.momentum, weight_decay=optim.weight_decay, nesterov=True
        )
        self.steps, self.engine, self.bare = 0, list[float](), list[float]()
        self.started = 0.0

    def __iter__(self) -> "Alternating":
        return self

    def __next__(self) -> dict[str, Any]:
        if self.steps % self.block == 0:
            if self.steps:
                self.engine.append(self._now() - self.started)
            if len(self.engine) == self.blocks:
                raise Measured
            start = self._now(together=True)
            for _ in range(self.block):
                self._bare_step(self.batch["image"], self.batch["target"])
            self.bare.append(self._now() - start)
            self.started = self._now(together=True)
        self.steps += 1
        return self.batch

    def _bare_step(self, image: Tensor, target: Tensor) -> None:
        loss = nn.functional.cross_entropy(self.model(image), target)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _now(self, *, together: bool = False) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        if together and dist.is_initialized():
            dist.barrier()
        return time.perf_counter()


def make_images(root: Path, size: int, count: int) -> None:
    """Class folders in which all images are one file, under many names."""
    first = root / "train" / "class0" / "0.jpg"
    for split, number in (("train", count), ("val", CLASSES)):
        for i in range(number):
            path = root / split / f"class{i % CLASSES}" / f"{i}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            if path == first:
                Image.effect_noise((size, size), 60).convert("RGB").save(path)
            else:
                os.link(first, path)


def write_config(folder: Path, model: str, *, size: int, batch: int, processes: int, workers: int, steps: int) -> Path:
    """A configuration, and images for epochs of so many steps."""
    if not (folder / "images").exists():
        make_images(folder / "images", size, batch * steps)
    path = folder / "run.yaml"
    path.write_text(
        CONFIG.format(
            model=model, classes=CLASSES, root=folder / "images", workers=workers, size=size,
            batch=batch, device_batch=batch // processes, folder=folder / "run",
        )
    )  # fmt: skip
    return path


def measure(config: Path, overrides: list[str], block: int, blocks: int) -> dict[str, list[float]]:
    """Runs train.py's own run with data in memory; seconds of each block, and of each save."""
    found: dict[str, Any] = {"save": [], "write": []}
    plain = ClassificationTask.train_batches

    def train_batches(self: ClassificationTask, plan: Any, **options: Any) -> Iterator[dict[str, Any]]:
        batches = plain(self, plan, **options)
        batch = next(batches)
        batches.close()  # type: ignore[attr-defined]
        found["blocks"] = Alternating(self, batch, options["device"], block, blocks)
        return found["blocks"]

    def timed(action: Callable, times: list[float]) -> Callable:
        def call(*arguments: Any, **options: Any) -> Any:
            start = time.perf_counter()
            result = action(*arguments, **options)
            times.append(time.perf_counter() - start)
            return result

        return call

    ClassificationTask.train_batches = train_batches  # type: ignore[method-assign, assignment]
    CheckpointSaver.save = timed(CheckpointSaver.save, found["save"])  # type: ignore[method-assign]
    RunCheckpoints.write = timed(RunCheckpoints.write, found["write"])  # type: ignore[method-assign]
    with contextlib.suppress(Measured):
        train(load_config(config, overrides))
    alternating = found.pop("blocks")
    return {**found, "engine": alternating.engine[WARM_UP:], "bare": alternating.bare[WARM_UP : alternating.blocks]}
