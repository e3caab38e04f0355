"""Losses and gradients that are not finite, noticed without waiting for the device; runs that repeat bit for bit."""

import os
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from ddfnet.engine.distributed import Distributed

_NO_STEP = torch.iinfo(torch.int64).max


@dataclass(frozen=True)
class NonFinite:
    """A step whose loss or gradient is not finite."""

    step: int
    grad_norm: float


class FiniteCheck:
    """Notes the first step whose loss or gradient is not finite, on the device: reading them at every step would make
    the host wait."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.reset()

    def reset(self) -> None:
        self.step = torch.tensor(_NO_STEP, device=self.device)
        self.grad_norm = torch.zeros((), device=self.device)

    def note(self, step: int, loss: Tensor, grad_norm: Tensor) -> None:
        """`loss` decides; both are scalars on the device."""
        first = ~loss.isfinite() & (self.step == _NO_STEP)
        self.step = torch.where(first, step, self.step)
        self.grad_norm = torch.where(first, grad_norm.float(), self.grad_norm)

    def read(self, distributed: Distributed) -> NonFinite | None:
        """The first such step of any process; waits for the device."""
        step = int(distributed.reduce_(self.step.clone(), "min"))
        return None if step == _NO_STEP else NonFinite(step, float(self.grad_norm))


class KeptBuffers:
    """The buffers of a model as they were before a step: a step that is given up must leave no running statistics."""

    def __init__(self, model: nn.Module) -> None:
        self.buffers = list(model.buffers())
        self.kept = [buffer.clone() for buffer in self.buffers]

    @torch.no_grad()
    def keep(self) -> None:
        if self.kept:
            torch._foreach_copy_(self.kept, self.buffers)

    @torch.no_grad()
    def restore(self) -> None:
        if self.kept:
            torch._foreach_copy_(self.buffers, self.kept)


def make_deterministic(stack: ExitStack) -> None:
    """Lets PyTorch take algorithms alone that give the same bits each time, until the stack is closed; a RuntimeError
    of PyTorch names an operation that has none."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS is first used
    cudnn, settings = torch.backends.cudnn, cast(Any, torch.utils.deterministic)
    former = torch.are_deterministic_algorithms_enabled(), cudnn.deterministic, settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    cudnn.deterministic = True
    settings.fill_uninitialized_memory = False  # it would write all new memory, to show defects

    def restore() -> None:
        torch.use_deterministic_algorithms(former[0])
        cudnn.deterministic, settings.fill_uninitialized_memory = former[1:]

    stack.callback(restore)


def seed_at(*position: int, device: torch.device) -> None:
    """Seeds PyTorch's generators by a position in a run: dropout and stochastic depth draw from them, and shall depend
    neither on the number of processes nor on where the run was resumed."""
    seed = int(np.random.SeedSequence(position).generate_state(1, np.uint64)[0])
    # torch.manual_seed asks for each kind of accelerator, at every step.
    seed_all = torch.default_generator.manual_seed if device.type == "cpu" else torch.manual_seed
    seed_all(seed)
