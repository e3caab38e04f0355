"""Optimiser, learning-rate schedule and gradient clipping."""

import difflib
import math

import torch
from timm.optim import create_optimizer_v2, list_optimizers
from timm.utils import adaptive_clip_grad
from torch import Tensor, nn

from ddfnet.config import Config, Derived
from ddfnet.config.schema import ScheduleConfig
from ddfnet.errors import ConfigError


def build_optimizer(model: nn.Module, config: Config, lr: float) -> torch.optim.Optimizer:
    """timm's optimiser factory; no weight decay on biases and other one-dimensional parameters.

    Raises:
        ConfigError: an optimiser timm does not know, or an argument it does not take.
    """
    settings = config.optim
    if settings.name.lower() not in list_optimizers():
        close = difflib.get_close_matches(settings.name.lower(), list_optimizers(), n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else "timm.optim.list_optimizers() names them"
        raise ConfigError(f"optim.name={settings.name} is no optimiser of timm: {hint}")
    try:
        return create_optimizer_v2(
            model,
            opt=settings.name,
            lr=lr,
            weight_decay=settings.weight_decay,
            momentum=settings.momentum,
            **settings.kwargs,
        )
    except (TypeError, ValueError) as error:
        raise ConfigError(f"optim.name={settings.name} with optim.kwargs={settings.kwargs}: {error}") from error


def learning_rate(step: int, schedule: ScheduleConfig, derived: Derived) -> float:
    """The learning rate of one optimiser step: a pure function, so nothing of it needs saving.

    The first `warmup_steps` rise linearly from warmup_lr towards the peak; the cosine counts from step 0 (as timm's
    does with its default settings) and stays at min_lr after `schedule_steps`. Milestones count from step 0 as well.
    """
    if step < derived.warmup_steps:
        return schedule.warmup_lr + (derived.lr - schedule.warmup_lr) * step / derived.warmup_steps
    if schedule.name == "constant":
        return derived.lr
    if schedule.name == "step":
        falls = sum(step >= round(epoch * derived.steps_per_epoch) for epoch in schedule.milestones)
        return derived.lr * schedule.gamma**falls
    progress = min(1.0, step / derived.schedule_steps)
    return schedule.min_lr + (derived.lr - schedule.min_lr) * 0.5 * (1 + math.cos(math.pi * progress))


def clip_gradients(model: nn.Module, clip: float | None, mode: str) -> Tensor:
    """Clips the gradients in place and returns their global L2 norm before clipping (on the device, no sync).

    mode: `norm` (global norm to `clip`), `value` (each element to +-clip), `agc` (adaptive, classifier excluded).
    """
    parameters = [p for p in model.parameters() if p.grad is not None]
    if clip is not None and mode == "norm":
        return nn.utils.clip_grad_norm_(parameters, clip)
    norm = nn.utils.get_total_norm([p.grad for p in parameters])
    if clip is not None and mode == "value":
        nn.utils.clip_grad_value_(parameters, clip)
    elif clip is not None:
        classifier = {id(p) for p in model.get_classifier().parameters()}
        adaptive_clip_grad([p for p in parameters if id(p) not in classifier], clip)
    return norm
