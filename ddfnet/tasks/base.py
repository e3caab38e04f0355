"""What a task gives to the engine: data, loss, evaluator, and an evaluation of its checkpoints."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ddfnet.checkpoint import Weights
from ddfnet.data.batches import Batch
from ddfnet.data.sampler import TrainSampler, epoch_order
from ddfnet.evaluation.report import Report
from ddfnet.tasks.config import Config
from ddfnet.tasks.plan import RunPlan
from ddfnet.utils.errors import UserError
from ddfnet.zoo.entries import Entry


class Evaluator(Protocol):
    """Accumulates over the batches of one process; the states of all processes make the metrics."""

    def update(self, model: nn.Module, batch: Batch) -> None: ...

    def state(self) -> Any:
        """What this process has seen, on the CPU: sums, counts or records, whatever `compute` needs."""

    def compute(self, states: Sequence[Any]) -> dict[str, float]:
        """Metrics of the whole set from the states of all processes; `n` is the number of images counted."""


@dataclass(frozen=True)
class EvaluationOptions:
    """How to evaluate a checkpoint, as `eval.py` is told; a task refuses what it has no use for."""

    data: str | Path | None = None  # where the images are; None: where the training run had them
    sets: str | None = None  # several sets by name, see `ddfnet.evaluation.image_sets`
    tta: bool = False  # average the softmax over each image and its mirror image; wrong for digits, letters
    model: str | None = None  # model name, for a file that does not say it
    batch_size: int | None = None  # images per process; None: the task's choice
    workers: int | str = "auto"  # DataLoader workers per rank
    precision: str = "auto"  # fp32, bf16, fp16; auto: that of training, to give the figures that training printed
    input_size: int | None = None  # this one and the next two: instead of the checkpoint's preprocessing
    crop_pct: float | None = None
    interpolation: str | None = None

    def __post_init__(self) -> None:
        if self.workers != "auto" and not str(self.workers).isdecimal():
            raise UserError(f"--workers must be a number of processes or auto, got {self.workers!r}")
        if self.batch_size is not None and self.batch_size < 1:
            raise UserError(f"--batch-size must be at least 1, got {self.batch_size}")


@dataclass(frozen=True)
class EvaluationSet:
    """Images to evaluate, with the evaluator and the report that belong to them."""

    name: str  # "" of the only set of an evaluation; where there are several, that of a folder of the report
    data: str  # where the images are
    size: int  # number of images
    batches: Callable[..., Iterable[Batch]]  # of rank, world_size and device: the batches of that process
    evaluator: Callable[[torch.device], Evaluator]
    report: Callable[..., Report] = lambda evaluator, **about: Report(**about)  # of the evaluator after `compute`


@dataclass(frozen=True)
class Evaluation:
    """A checkpoint, ready to be evaluated."""

    network: nn.Module  # on the CPU
    model: str
    precision: str  # fp32, bf16 or fp16
    batch_size: int  # images per process
    channels_last: bool
    facts: dict[str, Any]  # what the report says besides, as plain values
    sets: list[EvaluationSet]


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

    @classmethod
    def evaluation(cls, path: Path, weights: Weights, entry: Entry | None, options: EvaluationOptions) -> Evaluation:
        """A checkpoint of this task: its file, what `read_weights` found in it, and its entry in the zoo, if any.

        Raises:
            UserError: checkpoint, data or options cannot be used.
        """


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
