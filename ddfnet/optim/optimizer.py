"""Optimizer and gradient clipping, and the section of the configuration that chooses them."""

import importlib.util
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from timm.optim import create_optimizer_v2, get_optimizer_info, list_optimizers
from timm.utils import adaptive_clip_grad
from torch import Tensor, nn

from ddfnet.config import Contradiction, Fault, Fraction, NonNegative, Positive, Section
from ddfnet.config.reader import flow
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
    """Batch that base_lr is for."""
    base_scaling: Literal["linear", "sqrt"] = "linear"
    """base_lr grows with the ratio of the batches, or with its square root."""
    momentum: Fraction = 0.9
    weight_decay: NonNegative = 1e-4
    """Not applied to biases and other one-dimensional parameters (batch norm, filter norm)."""
    kwargs: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of the optimizer, e.g. {betas: [0.9, 0.95]}."""
    clip_grad: Annotated[float, Field(gt=0)] | None = None
    """Clip gradients; null: off."""
    clip_mode: Literal["norm", "value", "agc"] = "norm"
    """norm: global L2 norm; value: per element; agc: adaptive, by the norm of each parameter, classifiers excepted."""

    called_elsewhere: ClassVar[dict[str, str]] = {
        "opt": "name",
        "optimizer": "name",
        "learning_rate": "lr",
        "wd": "weight_decay",
        "grad_clip": "clip_grad",
        "max_grad_norm": "clip_grad",
        "betas": "kwargs",
        "eps": "kwargs",
        "layer_decay": "kwargs",
    }

    def faults(self) -> Iterator[Fault]:
        if self.lr is None and self.base_lr is None:
            fix = "set optim.lr (used as it is) or optim.base_lr (scaled with the batch)"
            yield Fault({}, f"no learning rate: {fix}")
        if self.lr is not None and self.base_lr is not None:
            yield Contradiction({"optim.lr": self.lr, "optim.base_lr": self.base_lr})

    def without_effect(self) -> Iterator[tuple[str, str]]:
        if self.lr is not None:
            yield "base_batch", "optim.lr is used as it is"
            yield "base_scaling", "optim.lr is used as it is"
        if self.clip_grad is None:
            yield "clip_mode", "optim.clip_grad is null"
        if not _has_momentum(self.name):
            yield "momentum", f"{self.name} has none"


def check_optimizer(settings: OptimConfig) -> None:
    """ConfigError where timm has no such optimizer."""
    name = _inner_name(settings.name)
    if name not in list_optimizers():
        known = map(str, list_optimizers())
        hint = did_you_mean(name, known, otherwise="timm.optim.list_optimizers() names them")
        raise ConfigError(f"optim.name={settings.name} is no optimizer of timm: {hint}")


def build_optimizer(model: nn.Module, settings: OptimConfig, lr: float) -> torch.optim.Optimizer:
    """timm's optimizer factory; no weight decay on biases and other one-dimensional parameters; frozen ones left out.

    Raises:
        ConfigError: an optimizer timm does not know, or an argument it does not take.
    """
    check_optimizer(settings)
    name = _inner_name(settings.name)
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
        raise ConfigError(f"optim.kwargs={flow(settings.kwargs)}, optim.name={settings.name}: {error}") from error
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


def clip_gradients(model: nn.Module, clip: float | None, mode: str, *, classifiers: Iterable[str] = ()) -> Tensor:
    """Clips the gradients in place and returns their global L2 norm before clipping (on the device, no sync).

    mode: `norm` (global norm to `clip`), `value` (each element to +-clip), `agc` (adaptive, but for the modules named
    `classifiers`; Brock et al., arXiv 2102.06171).
    """
    parameters = [p for p in model.parameters() if p.grad is not None]
    if clip is not None and mode == "norm":
        return nn.utils.clip_grad_norm_(parameters, clip)
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if clip is not None and mode == "value":
        nn.utils.clip_grad_value_(parameters, clip)
    elif clip is not None:
        heads = tuple(f"{name}." for name in classifiers)
        named = ((name, p) for name, p in model.named_parameters() if p.grad is not None)
        adaptive_clip_grad([p for name, p in named if not name.startswith(heads)], clip)
    return norm


def _has_momentum(optimizer: str) -> bool:
    try:
        return get_optimizer_info(_inner_name(optimizer)).has_momentum
    except ValueError:  # unknown: an error of its own, later
        return True
