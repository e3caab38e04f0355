"""The optimizer of a run that resumes: its state, with the settings of the configuration of today."""

from typing import Any

from torch import nn
from torch.optim import Optimizer

from ddfnet.optim import OptimConfig, build_optimizer

_WITHOUT = "the optimizer starts without its former state"


def load_optimizer(
    optimizer: Optimizer, saved: dict[str, Any], model: nn.Module, settings: OptimConfig, saved_settings: Any
) -> str | None:
    """Loads the state of a checkpoint. Settings that have changed since (run.allow_changes) are those of today.

    A group holds settings and state under names that each optimizer chooses. What the configuration has changed is
    found by building the optimizer as it was configured then.

    Args:
        optimizer: new, with the settings of today.
        saved: its state in the checkpoint.
        model: of the optimizer.
        settings: of today.
        saved_settings: section `optim` of the configuration in the checkpoint.

    Returns:
        A note where the state is of no use: the optimizer starts without it.

    Raises:
        ValueError, KeyError, TypeError: the state is of another model, or damaged.
    """
    then = OptimConfig.model_validate(saved_settings)
    if then.name != settings.name:
        return f"optim.name was {then.name} and is {settings.name} now: {_WITHOUT}"
    if then == settings:
        optimizer.load_state_dict(saved)
        return None
    before = build_optimizer(model, then, 1.0).param_groups
    changed = [_changed(*groups) for groups in zip(before, optimizer.param_groups, strict=True)]
    for name, value in changed[0].items():
        if isinstance(value, bool):  # such as amsgrad: it may need a state that there was no use for
            return f"{name} of {settings.name} is {value} now: {_WITHOUT}"
    optimizer.load_state_dict(saved)
    for group, values in zip(optimizer.param_groups, changed, strict=True):
        group.update(values)
    return None


def _changed(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    names = new.keys() - {"params", "lr"}  # the schedule sets the rate
    return {name: new[name] for name in sorted(names) if name not in old or new[name] != old[name]}
