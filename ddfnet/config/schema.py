"""What the configurations of all tasks share: every key, its type, its default and what it means.

Units stand in the names or descriptions: epochs are passes over the training set, steps are optimiser steps.
Keys are strict: an unknown key, a wrong type or a value out of range stops the run before anything is built.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
NonNegative = Annotated[float, Field(ge=0)]
# YAML has lists only; strict mode would refuse them for tuples.
Pair = Annotated[tuple[float, float], Field(strict=False)]
Triple = Annotated[tuple[float, float, float], Field(strict=False)]


class Section(BaseModel):
    """Base of all sections: unknown keys are errors, `"3"` is not a number, values cannot change after loading."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class RunConfig(Section):
    dir: str | None = None
    """Run folder: checkpoints, logs, resolved config. Default: runs/<name of the config file>.
    A folder that already holds a `last.pt` is resumed."""
    seed: Annotated[int, Field(ge=0)] = 42
    """Seed of weights, data order and augmentation."""
    device: Literal["auto", "cuda", "cpu"] = "auto"
    """auto: cuda where there is one, else cpu."""
    log_every: Positive = 50
    """Steps between two log lines; loss and rates are averaged over them."""
    save_every: Positive | None = None
    """Steps between two `last.pt`, besides those at the end of each epoch. null: only those."""
    tensorboard: bool = True
    """Write TensorBoard event files into the run folder."""
    allow_changes: bool = False
    """Resume even though the config differs from the one the run folder was started with."""


class ModelSection(Section):
    name: str
    """What the network is called."""
    init_checkpoint: str | None = None
    """Start from these weights."""


class DataSection(Section):
    root: str
    """Folder with the data."""
    workers: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    """Loader processes per rank. auto: this rank's share of the cores less one, at least 1, at most 16."""


class OptimConfig(Section):
    name: str = "sgd"
    """Any optimiser of timm's factory. timm's `sgd` uses Nesterov momentum, `momentum` does not."""
    lr: Annotated[float, Field(gt=0)] | None = None
    """Learning rate as it is. Give this or base_lr."""
    base_lr: Annotated[float, Field(gt=0)] | None = None
    """Learning rate for a batch of base_batch images: lr = base_lr * train.batch_size / base_batch."""
    base_batch: Positive = 256
    momentum: Fraction = 0.9
    weight_decay: NonNegative = 1e-4
    """Not applied to biases and other one-dimensional parameters (batch norm, filter norm)."""
    kwargs: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of the optimiser, e.g. {betas: [0.9, 0.95]}."""
    clip_grad: Annotated[float, Field(gt=0)] | None = None
    """Clip gradients; null: off."""
    clip_mode: Literal["norm", "value", "agc"] = "norm"
    """norm: global L2 norm; value: per element; agc: adaptive, by the norm of each parameter."""

    @model_validator(mode="after")
    def _one_learning_rate(self) -> "OptimConfig":
        if self.lr is None and self.base_lr is None:
            raise ValueError("no learning rate: set optim.lr (used as it is) or optim.base_lr (scaled with the batch)")
        if self.lr is not None and self.base_lr is not None:
            raise ValueError(
                f"optim.lr={self.lr:g} and optim.base_lr={self.base_lr:g} contradict: "
                "to use one, set the other to null (e.g. optim.base_lr=null)"
            )
        return self


class ScheduleConfig(Section):
    name: Literal["cosine", "constant", "step"] = "cosine"
    """step: multiplied by gamma at each of the milestones."""
    milestones: list[Annotated[float, Field(gt=0)]] = Field(default_factory=list)
    """step: epochs after which the learning rate falls, rising."""
    gamma: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """step: factor of each fall."""
    warmup_epochs: NonNegative = 0
    """Linear warm-up, counted inside train.epochs: the cosine starts at epoch 0 and takes over after it, as in timm."""
    warmup_lr: NonNegative = 0.0
    """Learning rate of the first step."""
    min_lr: NonNegative = 0.0
    """Where the cosine ends."""
    cooldown_epochs: NonNegative = 0
    """Epochs at min_lr, added after train.epochs."""


class EmaConfig(Section):
    decay: Annotated[float, Field(ge=0, lt=1)] = 0.9999
    """Weight of the old average at each step."""
    warmup: bool = True
    """Ramp the decay up from 0, so that early averages are not dominated by the random start."""


class TrainConfig(Section):
    epochs: Positive
    batch_size: Positive
    """Images per optimiser step, over all processes and micro-batches."""
    device_batch_size: Positive
    """Images per process and micro-batch; batch_size / (processes * device_batch_size) micro-batches accumulate."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """bf16, fp16: automatic mixed precision; fp16 scales the loss."""
    channels_last: bool = True
    """Memory format of the model and its input."""
    compile: bool = False
    """torch.compile the model."""
    sync_bn: bool = False
    """Batch statistics over all processes. false: per process, running statistics averaged before evaluation."""
    ema: EmaConfig | None = None
    """Keep a moving average of the weights and evaluate it too; null: off."""


class EvalConfig(Section):
    every: Positive = 1
    """Epochs between evaluations; the last epoch is always evaluated."""
    batch_size: Positive | None = None
    """Images per process; null: train.device_batch_size."""


class Config(Section):
    """One run, as the engine sees it; a task's own schema narrows `task`, `model` and `data` and adds to them."""

    task: str
    run: RunConfig = RunConfig()
    model: ModelSection
    data: DataSection
    optim: OptimConfig
    schedule: ScheduleConfig = ScheduleConfig()
    train: TrainConfig
    eval: EvalConfig = EvalConfig()

    @model_validator(mode="after")
    def _sections_agree(self) -> "Config":
        if self.schedule.warmup_epochs > self.train.epochs:
            raise ValueError(
                f"schedule.warmup_epochs={self.schedule.warmup_epochs:g} exceeds train.epochs={self.train.epochs}: "
                "lower the first or raise the second"
            )
        schedule = self.schedule
        if schedule.name != "cosine" and (schedule.min_lr or schedule.cooldown_epochs):
            raise ValueError(
                f"schedule.name={schedule.name} ignores min_lr and cooldown_epochs: set both to 0 or use cosine"
            )
        if (schedule.name == "step") != bool(schedule.milestones):
            raise ValueError(
                f"schedule.name={schedule.name} with schedule.milestones={schedule.milestones}: "
                "the step schedule needs milestones, the others have none"
            )
        if schedule.milestones != sorted(set(schedule.milestones)):
            raise ValueError(f"schedule.milestones must rise, got {schedule.milestones}")
        return self
