"""Learning-rate schedules: pure functions of the step, and the section of the configuration that chooses one."""

import math
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal, Protocol

from pydantic import Field

from ddfnet.config import Contradiction, Fault, NonNegative, Positive, Section
from ddfnet.optim.optimizer import OptimConfig
from ddfnet.utils.errors import ConfigError

_FALLING = ("cosine", "poly", "tanh")  # from the peak to min_lr within a cycle
_END = ("min_lr", "cooldown_epochs")
_TANH = -7.0, 3.0  # timm's part of the curve
# Keys that some schedules alone have.
_OF = {
    "milestones": ("step",), "decay_epochs": ("step",), "gamma": ("step", "plateau"), "patience": ("plateau",),
    "power": ("poly",), "k_decay": ("cosine", "poly"), "cycles": _FALLING, "cycle_mul": _FALLING,
    "cycle_decay": _FALLING, "warmup_prefix": (*_FALLING, "step"),
}  # fmt: skip


class ScheduleConfig(Section):
    name: Literal["cosine", "constant", "step", "poly", "tanh", "plateau"] = "cosine"
    """step: multiplied by gamma at each of the milestones, or every decay_epochs. plateau: by gamma whenever the run's
    metric (top-1, say) has not improved for more than patience evaluations (torch's ReduceLROnPlateau). The others fall
    from the peak to min_lr."""
    milestones: list[Annotated[float, Field(gt=0)]] = Field(default_factory=list)
    """step: epochs after which the learning rate falls, rising."""
    decay_epochs: Annotated[float, Field(gt=0)] | None = None
    """step: epochs between two falls, instead of milestones."""
    gamma: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """step, plateau: factor of each fall."""
    patience: Annotated[int, Field(ge=0)] = 10
    """plateau: evaluations without improvement that are borne."""
    power: Annotated[float, Field(gt=0)] = 1.0
    """poly: lr = min_lr + (peak - min_lr) * (1 - t / T)^power."""
    k_decay: Annotated[float, Field(gt=0)] = 1.0
    """cosine, poly: t^k / T^k in place of t / T (arXiv 2004.05909): above 1 it falls later."""
    cycles: Positive = 1
    """cosine, poly, tanh: how often the run falls from peak to min_lr, within train.epochs."""
    cycle_mul: Annotated[float, Field(gt=0)] = 1.0
    """Length of each cycle in that of the one before."""
    cycle_decay: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Peak of each cycle in that of the one before."""
    warmup_epochs: NonNegative = 0
    """Linear warm-up, counted inside train.epochs: the cosine starts at epoch 0 and takes over after it, as in timm."""
    warmup_lr: NonNegative = 0.0
    """Learning rate of the first step."""
    warmup_prefix: bool = False
    """Count from the end of the warm-up: the fall begins at the peak there, and still ends with train.epochs."""
    min_lr: NonNegative = 0.0
    """Where the fall ends; of plateau the lowest rate."""
    cooldown_epochs: NonNegative = 0
    """Epochs at min_lr, added after train.epochs."""

    called_elsewhere: ClassVar[dict[str, str]] = {
        "sched": "name",
        "scheduler": "name",
        "lr_scheduler": "name",
        "lr_scheduler_type": "name",
        "eta_min": "min_lr",
        "lr_min": "min_lr",
        "warmup_start_lr": "warmup_lr",
    }

    def faults(self) -> Iterator[Fault]:
        name, falls = {"schedule.name": self.name}, dict[str, Any]()
        if self.milestones:
            falls["schedule.milestones"] = self.milestones
        if self.decay_epochs:
            falls["schedule.decay_epochs"] = self.decay_epochs
        lacks = () if self.name in _FALLING else ("cooldown_epochs",) if self.name == "plateau" else _END
        if ignored := {f"schedule.{key}": value for key in lacks if (value := getattr(self, key))}:
            yield Fault(
                name | ignored, "contradict: this schedule has no such end; set what follows it to 0, or take cosine"
            )
        if self.name == "step" and not falls:
            yield Fault(
                name, "needs milestones or decay_epochs: set one of schedule.milestones and schedule.decay_epochs"
            )
        elif self.name == "step" and len(falls) == 2:
            yield Contradiction(falls, {"schedule.milestones": []})
        elif self.name != "step" and falls:
            yield Fault(
                name | falls, "contradict: the step schedule alone has them; leave them out or set schedule.name=step"
            )
        if self.milestones != sorted(set(self.milestones)):
            yield Fault({"schedule.milestones": self.milestones}, "must rise")

    def without_effect(self) -> Iterator[tuple[str, str]]:
        for key, names in _OF.items():
            if self.name not in names:
                yield key, f"schedule.name is {self.name}"
        if self.cycles == 1 and self.name in _FALLING:
            for key in ("cycle_mul", "cycle_decay"):
                yield key, "schedule.cycles is 1"
        if self.warmup_epochs == 0:
            yield "warmup_lr", "schedule.warmup_epochs is 0"
            if self.name in _OF["warmup_prefix"]:
                yield "warmup_prefix", "schedule.warmup_epochs is 0"


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
        if optim.base_scaling == "sqrt":
            lr = (optim.base_lr or 0) * math.sqrt(batch_size / optim.base_batch)
    for key in ("min_lr", "warmup_lr"):
        if getattr(schedule, key) > lr:
            raise ConfigError(f"schedule.{key}={getattr(schedule, key):g} is above the peak rate {lr:g}: lower it")
    last = lr * schedule.cycle_decay ** (schedule.cycles - 1)
    if schedule.min_lr > last:
        raise ConfigError(f"schedule.min_lr={schedule.min_lr:g} is above the peak of the last cycle {last:g}: lower it")
    return lr


def learning_rate(step: int, schedule: ScheduleConfig, steps: ScheduleSteps) -> float:
    """The learning rate of one optimizer step: a pure function, so nothing of it needs saving.

    The first `warmup_steps` rise linearly from warmup_lr towards the peak (of tanh towards its rate at their end, as in
    timm); the schedules count from step 0 (as timm's do with their default settings), or with warmup_prefix from the
    end of the warm-up, and stay at min_lr after `schedule_steps`. Of plateau: the rate before its first fall.
    """
    if step >= steps.warmup_steps:
        return _after_warmup(step, schedule, steps)
    top = steps.lr
    if schedule.name == "tanh" and not schedule.warmup_prefix:
        top = _after_warmup(steps.warmup_steps, schedule, steps)
    return schedule.warmup_lr + (top - schedule.warmup_lr) * step / steps.warmup_steps


def _after_warmup(step: int, schedule: ScheduleConfig, steps: ScheduleSteps) -> float:
    if schedule.name in ("constant", "plateau"):
        return steps.lr
    before = steps.warmup_steps if schedule.warmup_prefix else 0
    t, end = step - before, steps.schedule_steps - before
    if schedule.name == "step":
        if schedule.decay_epochs is not None:
            falls = t // round(schedule.decay_epochs * steps.steps_per_epoch)
        else:
            falls = sum(t >= round(epoch * steps.steps_per_epoch) for epoch in schedule.milestones)
        return steps.lr * schedule.gamma**falls
    if t >= end:
        return schedule.min_lr
    cycle, progress = _position(t, end, schedule)
    peak = steps.lr * schedule.cycle_decay**cycle
    progress **= schedule.k_decay
    if schedule.name == "poly":
        share = (1 - progress) ** schedule.power
    elif schedule.name == "tanh":
        low, high = _TANH
        share = 0.5 * (1 - math.tanh(low * (1 - progress) + high * progress))
    else:
        share = 0.5 * (1 + math.cos(math.pi * progress))
    return schedule.min_lr + (peak - schedule.min_lr) * share


def _position(t: int, end: int, schedule: ScheduleConfig) -> tuple[int, float]:
    """The cycle that a step lies in, and how much of it has passed, in [0, 1)."""
    lengths = [schedule.cycle_mul**cycle for cycle in range(schedule.cycles)]
    unit = end / sum(lengths)
    start = 0.0
    for cycle, length in enumerate(lengths):
        passed = (t - start) / (unit * length)
        if passed < 1 or cycle == schedule.cycles - 1:
            return cycle, passed
        start += unit * length
    raise AssertionError("a schedule has at least one cycle")
