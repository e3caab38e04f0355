"""What a task gives to the engine: data, loss, evaluator. It knows nothing of processes, precision or checkpoints."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ddfnet.data.batches import Batch
from ddfnet.data.sampler import TrainSampler, epoch_order
from ddfnet.tasks.config import Config
from ddfnet.tasks.evaluation import stored_evaluation
from ddfnet.tasks.plan import RunPlan


class Evaluator(Protocol):
    """Accumulates over the batches of one process; the states of all processes make the metrics."""

    def update(self, model: nn.Module, batch: Batch) -> None: ...

    def state(self) -> Any:
        """What this process has seen, on the CPU: sums, counts or records, whatever `compute` needs."""

    def compute(self, states: Sequence[Any]) -> dict[str, float]:
        """Metrics of the whole set from the states of all processes; `n` is the number of images counted."""


class Task(Protocol):
    """One kind of training: what differs between tasks, and nothing else."""

    config_class: type[Config]
    """The configuration of this kind of training."""
    best_metric: str
    """Key of the evaluator's result that ranks checkpoints."""
    lower_is_better: bool
    """Whether the best checkpoint is the one of the lowest `best_metric`."""
    fixed_input_size: bool
    """Whether all training batches have one shape, so that it pays to search for the fastest convolutions."""
    train_images: int
    val_images: int

    def build_model(self) -> nn.Module: ...

    def train_batches(self, plan: RunPlan, *, rank: int, start_step: int, device: torch.device) -> Iterator[Batch]:
        """This rank's micro-batches from a step to the end of the run, on the device."""

    def eval_batches(self, *, rank: int, world_size: int, device: torch.device) -> Iterable[Batch]: ...

    def batch_images(self, batch: Batch) -> int: ...

    def loss(self, model: Callable[..., Tensor], batch: Batch) -> dict[str, Tensor]:
        """`{"loss": scalar, ...}` of one micro-batch."""

    def evaluator(self, device: torch.device) -> Evaluator: ...

    def meta(self) -> dict[str, Any]:
        """What a checkpoint must say so that its weights can be used without the configuration."""

    def sample_names(self, plan: RunPlan, step: int) -> list[str]:
        """The samples of one optimizer step, for a report on what went wrong in it."""

    evaluation = classmethod(stored_evaluation)
    """A checkpoint of this task, ready to be evaluated."""


def train_sampler(
    config: Config, plan: RunPlan, length: int, *, rank: int, start_step: int, repeats: int = 1
) -> TrainSampler:
    """What this rank reads from a step to the end of the run."""
    return TrainSampler(
        length=length,
        global_batch=config.train.batch_size,
        rank=rank,
        world_size=plan.world_size,
        accumulation=plan.accumulation,
        seed=config.run.seed,
        start_step=start_step,
        end_step=plan.total_steps,
        repeats=repeats,
    )


def step_indices(config: Config, plan: RunPlan, length: int, step: int, *, repeats: int = 1) -> list[int]:
    """The images of one optimizer step over all processes, in the order of the global batch."""
    epoch, place = divmod(step, plan.steps_per_epoch)
    batch = config.train.batch_size
    order = epoch_order(length, config.run.seed, epoch, repeats)
    return order[place * batch : (place + 1) * batch, 0].tolist()
