"""Keys that were written but do nothing beside the others: said aloud, because silence would mislead.

They are notes and not errors: a recipe inherited from a base may well set what a variant does not need.
"""

from collections.abc import Iterator

from timm.optim import get_optimizer_info

from ddfnet.config.classification import ClassificationConfig
from ddfnet.config.loading import LoadedConfig
from ddfnet.config.schema import Config


def ineffective_keys(loaded: LoadedConfig) -> list[str]:
    """One line for each key that somebody wrote, with an effect in mind, and that has none."""
    written = {".".join(path): origin for path, origin in loaded.origins.items()}
    return [
        f"note: {key} ({written[key]}) has no effect: {reason}"
        for key, reason in _without_effect(loaded.config)
        if key in written
    ]


def _without_effect(config: Config) -> Iterator[tuple[str, str]]:
    optim, schedule = config.optim, config.schedule
    if isinstance(config, ClassificationConfig):
        yield from _in_classification(config)
    if optim.lr is not None:
        yield "optim.base_batch", "optim.lr is used as it is"
    if optim.clip_grad is None:
        yield "optim.clip_mode", "optim.clip_grad is null"
    if not _has_momentum(optim.name):
        yield "optim.momentum", f"{optim.name} has none"
    late = [epoch for epoch in schedule.milestones if epoch >= config.train.epochs]
    if late:
        when = " and ".join(f"{epoch:g}" for epoch in late)
        yield "schedule.milestones", f"{when} is after the end, {config.train.epochs} epochs"
    if schedule.name != "step":
        yield "schedule.gamma", f"schedule.name is {schedule.name}"
    if schedule.warmup_epochs == 0:
        yield "schedule.warmup_lr", "schedule.warmup_epochs is 0"


def _in_classification(config: ClassificationConfig) -> Iterator[tuple[str, str]]:
    augment, loss = config.augment, config.loss
    mixes = bool(augment.mixup or augment.cutmix)
    if augment.color_jitter and augment.rand_augment and not augment.rand_augment.startswith("3a"):
        yield "augment.color_jitter", "augment.rand_augment takes its place (timm's rule)"
    if augment.color_jitter and augment.trivial_augment:
        yield "augment.color_jitter", "augment.trivial_augment takes its place"
    if augment.crop == "pad":
        yield "augment.scale", "augment.crop is pad"
        yield "augment.ratio", "augment.crop is pad"
    if augment.erasing.p == 0:
        yield "augment.erasing.mode", "augment.erasing.p is 0"
        yield "augment.erasing.count", "augment.erasing.p is 0"
    if not mixes:
        yield "augment.mixup_prob", "augment.mixup and augment.cutmix are 0"
    if not (augment.mixup and augment.cutmix):
        yield "augment.mixup_switch_prob", "augment.mixup and augment.cutmix are not both on"
    total_epochs = config.train.epochs + config.schedule.cooldown_epochs
    if augment.mixup_off_epoch is not None and augment.mixup_off_epoch >= total_epochs:
        yield "augment.mixup_off_epoch", f"the run ends after {total_epochs:g} epochs"
    if loss.bce_threshold is not None:
        if loss.name != "bce":
            yield "loss.bce_threshold", f"loss.name is {loss.name}"
        elif not mixes and not loss.label_smoothing:
            yield "loss.bce_threshold", "without mixing and label smoothing the targets are 0 and 1 already"
        elif not mixes and loss.label_smoothing <= loss.bce_threshold < 1 - loss.label_smoothing:
            yield "loss.label_smoothing", "loss.bce_threshold makes the targets 0 and 1 again"


def _has_momentum(optimizer: str) -> bool:
    try:
        return get_optimizer_info(optimizer.lower()).has_momentum
    except ValueError:  # unknown: an error of its own, later
        return True
