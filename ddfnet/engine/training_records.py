"""What the log is told of training: averages over the steps since it was told before."""

import time
from typing import Any

import torch

from ddfnet.engine.distributed import Distributed
from ddfnet.engine.pacing import paced_learning_rate
from ddfnet.engine.training_state import TrainingState
from ddfnet.tasks import Config
from ddfnet.tasks.plan import RunPlan


class Meter:
    """Time and images since the last reading: images per second, and the share of time spent waiting for data."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Starts a new interval, e.g. after an evaluation, which is not training time."""
        self._started = time.perf_counter()
        self._images = 0
        self._waited = 0.0

    def add(self, images: int, waited: float) -> None:
        self._images += images
        self._waited += waited

    def read(self) -> tuple[float, float]:
        """(images per second, data-wait share) since the last reading; starts a new interval."""
        elapsed = max(time.perf_counter() - self._started, 1e-9)
        rates = self._images / elapsed, min(1.0, self._waited / elapsed)
        self.restart()
        return rates


class TrainingRecords:
    """Makes the training records of a run.

    Args:
        config, plan, distributed: of the run.
        state: holds the sum of the losses since the last record, so that it survives a restart.

    Attributes:
        meter: is told of each micro-batch.
        grad_norm: of the last step, before clipping; a scalar on the device.
        last_finite_loss: mean over the steps of the last record that had any.
    """

    def __init__(self, config: Config, plan: RunPlan, state: TrainingState, distributed: Distributed) -> None:
        self._config, self._plan, self._state, self._distributed = config, plan, state, distributed
        self.meter = Meter()
        self.grad_norm = torch.zeros((), device=distributed.device)
        self.last_finite_loss: float | None = None

    def next(self) -> dict[str, Any]:
        """The record of the steps since the last one, whose losses are finite; all processes call this."""
        state, plan, world_size = self._state, self._plan, self._distributed.world_size
        loss = self._distributed.reduce_(state.loss_sum / max(1, state.loss_count), "sum") / world_size
        images_per_second, data_wait = self.meter.read()
        images_per_second *= world_size
        if state.loss_count:
            self.last_finite_loss = loss.item()
        record = {
            "epoch": state.step / plan.steps_per_epoch,
            "loss": self.last_finite_loss if state.loss_count else None,  # None: all steps were skipped
            "lr": paced_learning_rate(state.step - 1, self._config, plan, state.plateau),  # of the last step
            "grad_norm": float(self.grad_norm),
            "images_per_second": images_per_second,
            "data_wait": data_wait,
            "eta_seconds": (plan.total_steps - state.step) * self._config.train.batch_size / images_per_second,
        }
        if self._distributed.device.type == "cuda":
            record["memory_gib"] = torch.cuda.max_memory_allocated(self._distributed.device) / 2**30
        state.loss_sum, state.loss_count = torch.zeros_like(state.loss_sum), 0
        return record
