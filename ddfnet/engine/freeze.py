"""Freezing parts of a network: their parameters do not train, and their batch norms keep the statistics they have."""

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Literal

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from ddfnet.models.weights import classifier_names
from ddfnet.utils.errors import ConfigError, did_you_mean
from ddfnet.utils.text import plural

ALL_BUT_HEAD = "all_but_head"


class Freeze:
    """The frozen part of a network.

    Freezing is done before optimizer, EMA weights and DDP are built: to all of them a frozen parameter is a constant.

    Args:
        model: its frozen parameters get `requires_grad=False`.
        patterns: `train.freeze`. None or none: nothing is frozen.

    Raises:
        ConfigError: a pattern that matches nothing, nothing is left to train, or a network whose head is not known.
    """

    def __init__(self, model: nn.Module, patterns: Sequence[str] | Literal["all_but_head"] | None) -> None:
        self.norms: list[nn.Module] = []
        self.parameters = 0
        if not patterns:
            return
        frozen = _all_but_head(model) if patterns == ALL_BUT_HEAD else _matched(model, list(patterns))
        for name, parameter in model.named_parameters():
            if name in frozen:
                parameter.requires_grad_(False)
                self.parameters += parameter.numel()
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise ConfigError(f"train.freeze={patterns} freezes every parameter: leave some to train")
        # A norm without parameters of its own is named by a pattern, or lies outside of the head. One that still trains
        # in part (['*.bias']) keeps to the statistics of its batches.
        norms = [(name, module) for name, module in model.named_modules() if isinstance(module, _NormBase)]
        self.norms = [module for name, module in norms if name in frozen or _is_constant(module)]

    def hold(self) -> None:
        """Puts the frozen batch norms into eval mode; `model.train()` takes them out of it."""
        for module in self.norms:
            module.eval()

    def __str__(self) -> str:
        norms = f", and the statistics of {plural(len(self.norms), 'batch norm')}" if self.norms else ""
        return f"frozen: {self.parameters:,} parameters{norms}"


def _is_constant(module: nn.Module) -> bool:
    """Whether it has parameters and none of them trains."""
    parameters = list(module.parameters(recurse=False))
    return bool(parameters) and not any(parameter.requires_grad for parameter in parameters)


def _matched(model: nn.Module, patterns: list[str]) -> set[str]:
    """Names of parameters and modules that a pattern names, or that lie in a module that it names."""
    names = [*(name for name, _ in model.named_parameters()), *(name for name, _ in model.named_modules() if name)]
    frozen: set[str] = set()
    for pattern in patterns:
        hits = {name for name in names if any(fnmatchcase(part, pattern) for part in _upwards(name))}
        if not hits:
            children = [name for name, _ in model.named_children()]
            hint = did_you_mean(pattern, names, otherwise=f"its parts are {', '.join(children)}")
            raise ConfigError(f"train.freeze: {pattern!r} is the name of no module or parameter of the network: {hint}")
        frozen |= hits
    return frozen


def _upwards(name: str) -> Iterator[str]:
    """A name and those of the modules around it: `a.b.c`, `a.b`, `a`."""
    while name:
        yield name
        name = name.rpartition(".")[0]


def _all_but_head(model: nn.Module) -> set[str]:
    heads = classifier_names(model)
    names = [name for name, _ in (*model.named_parameters(), *model.named_modules())]
    inside = {name for name in names if any(part in heads for part in _upwards(name))}
    if not inside:
        raise ConfigError(
            f"train.freeze={ALL_BUT_HEAD}: the classifier of {type(model).__name__} is not known: name what to freeze, "
            "e.g. train.freeze=[backbone]"
        )
    return set(names) - inside - {""}
