"""What a task gives to the engine: data, loss, evaluator. It knows nothing of processes, precision or checkpoints."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ddfnet.config import Derived
from ddfnet.data.device import Batch


class Evaluator(Protocol):
    """Accumulates over batches; `totals` of several processes add up before `compute`."""

    totals: Tensor

    def update(self, model: nn.Module, batch: Batch) -> None: ...

    def compute(self) -> dict[str, float]: ...


class Task(Protocol):
    """One kind of training: what differs between tasks, and nothing else."""

    best_metric: str
    """Key of the evaluator's result that ranks checkpoints; higher is better."""
    train_images: int
    val_images: int

    def build_model(self) -> nn.Module: ...

    def train_batches(self, derived: Derived, *, rank: int, start_step: int, device: torch.device) -> Iterator[Batch]:
        """This rank's micro-batches from a step to the end of the run, on the device."""

    def eval_batches(self, *, rank: int, world_size: int, device: torch.device) -> Iterable[Batch]: ...

    def batch_images(self, batch: Batch) -> int: ...

    def loss(self, model: Callable[..., Tensor], batch: Batch) -> dict[str, Tensor]:
        """`{"loss": scalar, ...}` of one micro-batch."""

    def evaluator(self, device: torch.device) -> Evaluator: ...

    def meta(self) -> dict[str, Any]:
        """What a checkpoint must say so that its weights can be used without the configuration."""

    def sample_names(self, derived: Derived, step: int) -> list[str]:
        """The samples of one optimiser step, for a report on what went wrong in it."""
