"""Figures that follow from the configuration, the number of processes and the size of the training set."""

from dataclasses import dataclass

from ddfnet.optim import peak_learning_rate
from ddfnet.tasks.config import Config
from ddfnet.utils.errors import ConfigError
from ddfnet.utils.text import plural


@dataclass(frozen=True)
class RunPlan:
    """The arithmetic of a run, written down once."""

    world_size: int  # processes
    accumulation: int  # micro-batches per process and optimizer step
    lr: float  # peak learning rate
    steps_per_epoch: int  # optimizer steps per epoch (an incomplete last batch is dropped)
    schedule_steps: int  # steps of train.epochs, over which the schedule runs
    warmup_steps: int  # steps of the linear warm-up, the first of schedule_steps
    total_steps: int  # schedule_steps and the cooldown


def plan_run(config: Config, *, world_size: int, train_images: int) -> RunPlan:
    """Plans accumulation, learning rate and step counts; ConfigError where the batch is not a whole number of
    micro-batches, or larger than the training set, or the schedule passes the peak learning rate or falls within a
    step."""
    train = config.train
    micro = world_size * train.device_batch_size
    if train.batch_size % micro:
        raise ConfigError(
            f"train.batch_size={train.batch_size} is not a whole number of micro-batches of "
            f"{plural(world_size, 'process', 'processes')} x train.device_batch_size={train.device_batch_size} = "
            f"{plural(micro, 'image')}: "
            f"{_batch_fix(train.batch_size, train.device_batch_size, world_size)}"
        )
    steps_per_epoch = train_images // train.batch_size
    if steps_per_epoch == 0:
        raise ConfigError(
            f"train.batch_size={train.batch_size} exceeds the {train_images} training images: "
            f"set train.batch_size to at most {train_images} (and train.device_batch_size to match)"
        )
    decay = config.schedule.decay_epochs
    if decay is not None and round(decay * steps_per_epoch) == 0:
        raise ConfigError(
            f"schedule.decay_epochs={decay:g} is less than half a step, an epoch has {steps_per_epoch}: "
            f"set it to at least {1 / steps_per_epoch:.3g}"
        )
    schedule_steps = train.epochs * steps_per_epoch
    return RunPlan(
        world_size=world_size,
        accumulation=train.batch_size // micro,
        lr=peak_learning_rate(config.optim, config.schedule, train.batch_size),
        steps_per_epoch=steps_per_epoch,
        schedule_steps=schedule_steps,
        warmup_steps=round(config.schedule.warmup_epochs * steps_per_epoch),
        total_steps=schedule_steps + round(config.schedule.cooldown_epochs * steps_per_epoch),
    )


def _batch_fix(batch_size: int, device_batch_size: int, world_size: int) -> str:
    if batch_size % world_size == 0:
        images = batch_size // world_size
        best = max(size for size in range(1, min(images, device_batch_size) + 1) if images % size == 0)
        return f"set train.device_batch_size={best}"
    nearest = max(1, round(batch_size / world_size)) * world_size
    return f"set train.batch_size={nearest}, a multiple of the {world_size} processes"
