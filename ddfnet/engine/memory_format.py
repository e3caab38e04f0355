"""Whether a network can train with its channels last in memory."""

import torch
from torch import nn

from ddfnet.tasks import Config
from ddfnet.utils.errors import ConfigError

_FEWEST_CHANNELS = 16  # from which on PyTorch takes another way


def unsafe_layers(model: nn.Module) -> list[str]:
    """Names of the layers whose backward pass on a CPU writes beyond its memory if channels are last (PyTorch 2.14.1).

    They are dense 1x1 convolutions with a stride and few input channels, as on images: one branch of the stems of
    RepVGG, MobileOne, FastViT and others. They end the process at some image sizes, without a message, and at others
    damage what lies beside; contiguous in memory they are right.
    """
    return [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d) and _is_unsafe(module)]


def _is_unsafe(layer: nn.Conv2d) -> bool:
    small = set(layer.kernel_size) == {1} and 1 < layer.in_channels < _FEWEST_CHANNELS
    return small and max(layer.stride) > 1 and layer.groups == 1


def trainable_format(config: Config, model: nn.Module, device: torch.device) -> tuple[Config, list[str]]:
    """The configuration in which a network trains safely on a device, and a line on what was changed for it.

    Raises:
        ConfigError: channels_last was asked for, and the network cannot have it there.
    """
    if device.type != "cpu" or not config.train.channels_last:
        return config, []
    layers = unsafe_layers(model)
    if not layers:
        return config, []
    reason = (
        f"PyTorch's backward pass on a CPU damages memory with channels_last in 1x1 convolutions with a stride and few "
        f"input channels, which {config.model.name} has ({layers[0]})"
    )
    if "channels_last" in config.train.model_fields_set:
        raise ConfigError(f"train.channels_last=true: {reason}: leave it out, or set it to false")
    train = config.train.model_copy(update={"channels_last": False})
    return config.model_copy(update={"train": train}), [f"note: train.channels_last is false here: {reason}"]
