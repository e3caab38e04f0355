"""Start values of the classifier, as timm's train.py can set them."""

import torch
from torch import nn

from ddfnet.config import NonNegative, Section
from ddfnet.models.weights import classifier_names
from ddfnet.utils.errors import ConfigError


class HeadInitConfig(Section):
    """Part of the section `model` of classification."""

    head_init_scale: NonNegative | None = None
    """Weights and biases of the classifier times this number, at the start of a run. 0: all classes alike. null: as
    they are."""
    head_init_bias: float | None = None
    """Biases of the classifier at the start of a run, e.g. -log(classes) with loss.name=bce. null: as they are."""


def initialize_head(model: nn.Module, config: HeadInitConfig) -> None:
    """Changes the classifiers of a network in place; ConfigError where they are not known, or have no bias to set."""
    if config.head_init_scale is None and config.head_init_bias is None:
        return
    modules = dict(model.named_modules())
    heads = [modules[name] for name in classifier_names(model) if name in modules]
    if not heads:
        raise ConfigError(
            f"model.head_init_scale, head_init_bias: the classifier of {type(model).__name__} is not known"
        )
    with torch.no_grad():
        for head in heads:
            if config.head_init_scale is not None:
                for parameter in head.parameters():
                    parameter.mul_(config.head_init_scale)
            if config.head_init_bias is None:
                continue
            biases = [parameter for name, parameter in head.named_parameters() if name.endswith("bias")]
            if not biases:
                raise ConfigError(f"model.head_init_bias={config.head_init_bias:g}: the classifier has no bias")
            for bias in biases:
                bias.fill_(config.head_init_bias)
