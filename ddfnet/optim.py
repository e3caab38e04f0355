"""Optimizer, learning-rate schedule and gradient clipping, and the sections of the configuration that choose them."""

import importlib.util
import math
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Protocol

import torch
from pydantic import Field, model_validator
from timm.optim import create_optimizer_v2, get_optimizer_info, list_optimizers
from timm.utils import adaptive_clip_grad
from torch import Tensor, nn

from ddfnet.config import Fraction, NonNegative, Positive, Section
from ddfnet.utils.errors import ConfigError, did_you_mean


class OptimConfig(Section):
    name: str = "sgd"
    """Any optimizer of timm's factory; lookahead_NAME puts timm's Lookahead around it. timm's `sgd` uses Nesterov
    momentum, `momentum` does not."""
    lr: Annotated[float, Field(gt=0)] | None = None
    """Learning rate as it is. Give this or base_lr."""
    base_lr: Annotated[float, Field(gt=0)] | None = None
    """Learning rate for a batch of base_batch images: lr = base_lr * train.batch_size / base_batch."""
    base_batch: Positive = 256
    momentum: Fraction = 0.9
    weight_decay: NonNegative = 1e-4
    """Not applied to biases and other one-dimensional parameters (batch norm, filter norm)."""
    kwargs: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of the optimizer, e.g. {betas: [0.9, 0.95]}."""
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

    def without_effect(self) -> Iterator[tuple[str, str]]:
        if self.lr is not None:
            yield "base_batch", "optim.lr is used as it is"
        if self.clip_grad is None:
            yield "clip_mode", "optim.clip_grad is null"
        if not _has_momentum(self.name):
            yield "momentum", f"{self.name} has none"


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

    @model_validator(mode="after")
    def _keys_agree(self) -> "ScheduleConfig":
        if self.name != "cosine" and (self.min_lr or self.cooldown_epochs):
            raise ValueError(f"schedule.name={self.name} ignores min_lr, cooldown_epochs: set both to 0 or use cosine")
        if (self.name == "step") != bool(self.milestones):
            raise ValueError(
                f"schedule.name={self.name} with schedule.milestones={self.milestones}: "
                "the step schedule needs milestones, the others have none"
            )
        if self.milestones != sorted(set(self.milestones)):
            raise ValueError(f"schedule.milestones must rise, got {self.milestones}")
        return self

    def without_effect(self) -> Iterator[tuple[str, str]]:
        if self.name != "step":
            yield "gamma", f"schedule.name is {self.name}"
        if self.warmup_epochs == 0:
            yield "warmup_lr", "schedule.warmup_epochs is 0"


class ScheduleSteps(Protocol):
    """The schedule counted in steps: a `ddfnet.tasks.plan.RunPlan`."""

    @property
    def lr(self) -> float: ...
    @property
    def steps_per_epoch(self) -> int: ...
    @property
    def schedule_steps(self) -> int: ...
    @property
    def warmup_steps(self) -> int: ...


def peak_learning_rate(optim: OptimConfig, schedule: ScheduleConfig, batch_size: int) -> float:
    """The learning rate after the warm-up, for a batch of `batch_size` images over all processes.

    Raises:
        ConfigError: the schedule starts or ends above it.
    """
    lr = optim.lr
    if lr is None:  # then base_lr is given
        lr = (optim.base_lr or 0) * batch_size / optim.base_batch
    for key in ("min_lr", "warmup_lr"):
        if getattr(schedule, key) > lr:
            raise ConfigError(f"schedule.{key}={getattr(schedule, key):g} is above the peak rate {lr:g}: lower it")
    return lr


def build_optimizer(model: nn.Module, settings: OptimConfig, lr: float) -> torch.optim.Optimizer:
    """timm's optimizer factory; no weight decay on biases and other one-dimensional parameters; frozen ones left out.

    Raises:
        ConfigError: an optimizer timm does not know, or an argument it does not take.
    """
    name = _inner_name(settings.name)
    if name not in list_optimizers():
        known = map(str, list_optimizers())
        hint = did_you_mean(name, known, otherwise="timm.optim.list_optimizers() names them")
        raise ConfigError(f"optim.name={settings.name} is no optimizer of timm: {hint}")
    lacks = _lacks(name, model)
    if lacks:
        raise ConfigError(f"optim.name={settings.name} {lacks}")
    try:
        optimizer = create_optimizer_v2(
            model,
            opt=settings.name,
            lr=lr,
            weight_decay=settings.weight_decay,
            momentum=settings.momentum,
            **settings.kwargs,
        )
    except (TypeError, ValueError) as error:
        raise ConfigError(f"optim.name={settings.name} with optim.kwargs={settings.kwargs}: {error}") from error
    except (AssertionError, ImportError, RuntimeError) as error:  # of the packages that some are from
        package = str(get_optimizer_info(name).opt_class).partition(".")[0]
        raise ConfigError(
            f"optim.name={settings.name} cannot be used here ({error}): it is from the package {package}, which has to "
            "be installed and may need a GPU; or take one of PyTorch or timm, e.g. adamw"
        ) from None
    for group in optimizer.param_groups:  # without weight decay, some versions of timm take frozen parameters in
        group["params"] = [parameter for parameter in group["params"] if parameter.requires_grad]
    return optimizer


def _inner_name(name: str) -> str:
    """The optimizer that `lookahead_NAME` wraps, as timm spells it; any other name in lower case."""
    return name.lower().removeprefix("lookahead_")


def _lacks(name: str, model: nn.Module) -> str | None:
    """Why an optimizer that timm would build could not take a step here."""
    if get_optimizer_info(name).second_order:
        return "needs second derivatives of the loss, which training does not compute: take another one, e.g. adamw"
    if not name.startswith("kron"):
        return None
    if importlib.util.find_spec("opt_einsum") is None:
        return "multiplies many small matrices and needs opt_einsum to do so in little memory: pip install opt_einsum"
    if any(parameter.ndim == 4 and not parameter.is_contiguous() for parameter in model.parameters()):
        return "asks for far too much memory with weights in channels_last: set train.channels_last=false"
    return None


def learning_rate(step: int, schedule: ScheduleConfig, steps: ScheduleSteps) -> float:
    """The learning rate of one optimizer step: a pure function, so nothing of it needs saving.

    The first `warmup_steps` rise linearly from warmup_lr towards the peak; the cosine counts from step 0 (as timm's
    does with its default settings) and stays at min_lr after `schedule_steps`. Milestones count from step 0 as well.
    """
    if step < steps.warmup_steps:
        return schedule.warmup_lr + (steps.lr - schedule.warmup_lr) * step / steps.warmup_steps
    if schedule.name == "constant":
        return steps.lr
    if schedule.name == "step":
        falls = sum(step >= round(epoch * steps.steps_per_epoch) for epoch in schedule.milestones)
        return steps.lr * schedule.gamma**falls
    progress = min(1.0, step / steps.schedule_steps)
    return schedule.min_lr + (steps.lr - schedule.min_lr) * 0.5 * (1 + math.cos(math.pi * progress))


def clip_gradients(model: nn.Module, clip: float | None, mode: str) -> Tensor:
    """Clips the gradients in place and returns their global L2 norm before clipping (on the device, no sync).

    mode: `norm` (global norm to `clip`), `value` (each element to +-clip), `agc` (adaptive, classifiers excluded).
    """
    parameters = [p for p in model.parameters() if p.grad is not None]
    if clip is not None and mode == "norm":
        return nn.utils.clip_grad_norm_(parameters, clip)
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if clip is not None and mode == "value":
        nn.utils.clip_grad_value_(parameters, clip)
    elif clip is not None:
        heads = model.get_classifier() if hasattr(model, "get_classifier") else ()
        heads = heads if isinstance(heads, tuple | list) else (heads,)  # some models have two
        classifier = {id(p) for head in heads if isinstance(head, nn.Module) for p in head.parameters()}
        adaptive_clip_grad([p for p in parameters if id(p) not in classifier], clip)
    return norm


def _has_momentum(optimizer: str) -> bool:
    try:
        return get_optimizer_info(_inner_name(optimizer)).has_momentum
    except ValueError:  # unknown: an error of its own, later
        return True
