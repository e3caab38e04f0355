"""Micro-batches of one image, of which batch norm cannot take statistics where features are one pixel."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.func import functional_call

from ddfnet.engine.freeze import Freeze
from ddfnet.utils.errors import ConfigError

_MARK = "more than 1 value per channel"  # in PyTorch's message


@contextmanager
def explained_batch_of_one(device_batch_size: int) -> Iterator[None]:
    """Turns PyTorch's complaint about batch norm of a single value into a ConfigError."""
    try:
        yield
    except ValueError as error:
        if _MARK not in str(error):
            raise
        raise ConfigError(
            f"train.device_batch_size={device_batch_size}: a batch norm gets one value per channel, of which it cannot "
            f"take statistics ({error}): set it to at least 2, take larger images, or freeze the batch norms "
            "(train.freeze)"
        ) from None


def check_batch_of_one(model: nn.Module, freeze: Freeze, shape: tuple[int, ...]) -> None:
    """Tries a training step's forward pass on one blank image; network, modes and random numbers stay as they are.

    Args:
        shape: of a training image, (channels, height, width).

    Raises:
        ConfigError: a batch norm cannot take statistics of it.
    """
    device = next(model.parameters()).device
    modes = [(module, module.training) for module in model.modules()]
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.train()
    freeze.hold()
    try:
        with torch.no_grad(), torch.random.fork_rng(), explained_batch_of_one(1):
            functional_call(model, buffers, (torch.zeros(1, *shape, device=device),))
    finally:
        for module, training in modes:
            module.training = training
